package netdrv

import (
	"errors"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernelError says what was tried on which interface, and what to do where that is known.
func kernelError(op, iface string, err error) error {
	e := &Error{Op: op, Interface: iface, Err: err}
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		e.Fix = "run as root, or with CAP_NET_ADMIN"
	case errors.Is(err, unix.ENFILE), errors.Is(err, unix.EMFILE):
		e.Fix = "raise the limit of open files"
	}
	return e
}

// again asks until no other program changed the answer while the kernel gave it.
func again[T any](ask func() (T, error)) (T, error) {
	for tries := 0; ; tries++ {
		v, err := ask()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || tries == 50 {
			return v, err
		}
	}
}
