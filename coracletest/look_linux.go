package coracletest

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/firstprocess"
	"github.com/coracle-dev/coracle/internal/inroot"
)

// fileExists looks for a file in the root directory of the container's first process.
func fileExists(c *coracle.Container, path string) error {
	proc, err := firstprocess.Open(c)
	if err != nil {
		return err
	}
	defer proc.Close()
	root, err := unix.Openat(int(proc.Fd()), "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open the container's root for", Path: path, Err: err}
	}
	defer unix.Close(root)
	f, err := inroot.OpenPath(root, path)
	if err != nil {
		return err
	}
	return f.Close()
}

// listening looks for a port in the network namespace of the container's first process.
func listening(c *coracle.Container, port uint16, udp bool) error {
	proc, err := firstprocess.Open(c)
	if err != nil {
		return err
	}
	defer proc.Close()
	tables, state := []string{"net/tcp", "net/tcp6"}, stateListen
	if udp {
		tables, state = []string{"net/udp", "net/udp6"}, stateUnconnected
	}
	for _, table := range tables {
		fd, err := unix.Openat(int(proc.Fd()), table, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return &os.PathError{Op: "open", Path: table, Err: err}
		}
		f := os.NewFile(uintptr(fd), table)
		found, err := hasPort(io.LimitReader(f, maxTable), port, state)
		f.Close()
		if err != nil {
			return err
		}
		if found {
			return nil
		}
	}
	return errSilent
}

// maxTable bounds what is read of a table, about 400,000 sockets.
const maxTable = 64 << 20
