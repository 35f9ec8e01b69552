// Command tool is the static program that tests run in containers; see package testtool.
package main

import (
	"os"

	"github.com/coracle-dev/coracle/internal/testtool"
)

func main() { os.Exit(testtool.Run(os.Args[1:])) }
