package coracle_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"syscall"
	"time"

	"github.com/coracle-dev/coracle"
)

// A command in a running container, as with os/exec.
func ExampleCmd() {
	ctx := context.Background()
	c, done := exampleRunning(ctx, coracle.ContainerSpec{Name: "db", AutoRemove: true})
	defer done()
	cmd := c.Command("/bin/hello")
	cmd.Stdout = os.Stdout
	if err := cmd.Run(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(cmd.ProcessState)
	// Output:
	// hello from a container
	// exit status 0
}

func ExampleContainer_Command() {
	ctx := context.Background()
	c, done := exampleRunning(ctx, coracle.ContainerSpec{Name: "db", AutoRemove: true})
	defer done()
	out, err := c.Command("hello").Output(ctx) // found in /bin
	fmt.Printf("%s%v\n", out, err)
	err = c.Command("/bin/missing").Run(ctx)
	fmt.Println(errors.Is(err, fs.ErrNotExist))
	// Output:
	// hello from a container
	// <nil>
	// true
}

// The process of a command can be signalled; a context ends it too.
func ExampleProcess() {
	ctx := context.Background()
	c, done := exampleRunning(ctx, coracle.ContainerSpec{Name: "db", AutoRemove: true})
	defer done()
	cmd := c.Command("/program")
	if err := cmd.Start(ctx); err != nil {
		log.Fatal(err)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	fmt.Println(cmd.Wait())
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	err := c.Command("/program").Run(short)
	fmt.Println(errors.Is(err, context.DeadlineExceeded))
	// Output:
	// coracle: "/program" in container "db": signal: terminated
	// true
}

// A command with a terminal.
func ExampleTerminalSize() {
	ctx := context.Background()
	c, done := exampleRunning(ctx, coracle.ContainerSpec{Name: "db", AutoRemove: true})
	defer done()
	cmd := c.Command("/bin/hello")
	cmd.TTY, cmd.Size = true, coracle.TerminalSize{Rows: 24, Cols: 80}
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Run(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%q\n", out.String())
	// Output: "hello from a container\r\n"
}
