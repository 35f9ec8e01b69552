//go:build !unix

package logfile

import "os"

const openFlags = os.O_RDONLY
