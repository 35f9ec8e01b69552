//go:build linux && (amd64 || arm64)

package nsexec

import (
	"bytes"
	"errors"
	"sync"
	"unsafe"
)

var errNoInterpreter = errors.New("nsexec: the interpreter's code cannot be read")

// interpAddr returns the address of the interpreter's first instruction in this program's text.
func interpAddr() unsafe.Pointer

// interpEnd follows the interpreter's last instruction.
var interpEnd = []byte("\xc0\xac\x1ecoracle.end\xc0\xac")

// interpreter returns the machine code that performs plans. It is written in assembly (interp_linux_*.s), linked into
// the importing program as a function that is never called, and copied from there: no blob in the repository, no
// compiler at run time.
var interpreter = sync.OnceValues(func() ([]byte, error) {
	text := unsafe.Slice((*byte)(interpAddr()), 2048)
	for n := 16; n+len(interpEnd) <= len(text); n++ {
		if bytes.HasPrefix(text[n:], interpEnd) {
			return bytes.Clone(text[:n]), nil
		}
	}
	return nil, errNoInterpreter
})
