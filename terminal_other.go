//go:build !linux

package coracle

import (
	"errors"
	"os"
)

func readableBefore(_, _ *os.File) bool { return true }

func setTerminalSize(*os.File, TerminalSize) error { return errors.ErrUnsupported }

func rawTerminal(*os.File, func(TerminalSize)) (func() error, error) {
	return nil, errors.ErrUnsupported
}
