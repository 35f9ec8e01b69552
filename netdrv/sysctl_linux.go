package netdrv

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// sysctls are the settings of one network namespace, for threads in any: a directory of /proc/sys/net/ipv4 or ipv6 that was opened
// inside stays that of its namespace. (/proc/sys/net itself does not: it has what is global in it.)
type sysctls struct{ v4, v6 *os.File } // v6 is nil in a kernel without IPv6

// openSysctls opens those of the calling thread's namespace.
func openSysctls() (*sysctls, error) {
	s := &sysctls{}
	for _, dir := range []struct {
		name string
		to   **os.File
	}{{"/proc/sys/net/ipv4", &s.v4}, {"/proc/sys/net/ipv6", &s.v6}} {
		fd, err := unix.Open(dir.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) && dir.to == &s.v6 {
			continue
		}
		if err != nil {
			s.Close()
			return nil, &Error{Op: "open the settings of the network namespace", Err: &fs.PathError{Op: "open", Path: dir.name, Err: err}, Fix: "mount /proc"}
		}
		*dir.to = os.NewFile(uintptr(fd), dir.name)
	}
	return s, nil
}

// Close closes them.
func (s *sysctls) Close() {
	if s != nil {
		s.v4.Close() // of a nil file it does nothing
		s.v6.Close()
	}
}

// open opens a setting: "ipv4/ip_forward". One of IPv6 in a kernel without is an error that matches fs.ErrNotExist.
func (s *sysctls) open(name string, flags int) (int, error) {
	dir, rest := s.v4, strings.TrimPrefix(name, "ipv4/")
	if of6, ok := strings.CutPrefix(name, "ipv6/"); ok {
		dir, rest = s.v6, of6
	}
	if dir == nil {
		return -1, fs.ErrNotExist
	}
	raw, err := dir.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var failed error
	if err = raw.Control(func(at uintptr) { fd, failed = unix.Openat(int(at), rest, flags|unix.O_CLOEXEC, 0) }); err == nil {
		err = failed
	}
	return fd, err
}

// read reads a setting.
func (s *sysctls) read(name string) (string, error) {
	fd, err := s.open(name, unix.O_RDONLY)
	if err != nil {
		return "", sysctlError("read", name, err)
	}
	defer unix.Close(fd)
	b := make([]byte, 256)
	n, err := unix.Read(fd, b)
	if err != nil {
		return "", sysctlError("read", name, err)
	}
	return strings.TrimSpace(string(b[:n])), nil
}

// write changes a setting.
func (s *sysctls) write(name, value string) error {
	fd, err := s.open(name, unix.O_WRONLY)
	if err != nil {
		return sysctlError("change", name, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return sysctlError("set to "+value+" the setting", name, err)
	}
	return nil
}

// set changes a setting where it is not as it has to be: what is right already needs no permission.
func (s *sysctls) set(name, value string) error {
	have, err := s.read(name)
	if err != nil || have == value {
		return err
	}
	return s.write(name, value)
}

func sysctlError(op, name string, err error) error {
	e := &Error{Op: op + " net." + strings.ReplaceAll(name, "/", "."), Err: err}
	switch {
	case errors.Is(err, unix.EROFS):
		e.Fix = "/proc/sys is read-only here: a container that makes containers needs it writable"
	case errors.Is(err, fs.ErrPermission):
		e.Fix = "run as root, or with CAP_NET_ADMIN"
	}
	return e
}
