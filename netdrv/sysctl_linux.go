package netdrv

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// sysctlRoot is where the settings of the calling thread's network namespace are.
const sysctlRoot = "/proc/sys/net/"

// readSysctl reads a setting of the calling thread's namespace: "ipv4/ip_forward".
func readSysctl(name string) (string, error) {
	b, err := os.ReadFile(sysctlRoot + name)
	if err != nil {
		return "", sysctlError("read", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// writeSysctl changes a setting of the calling thread's namespace.
func writeSysctl(name, value string) error {
	f, err := os.OpenFile(sysctlRoot+name, os.O_WRONLY, 0)
	if err != nil {
		return sysctlError("change", name, err)
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return sysctlError("set to "+value+" the setting", name, err)
	}
	return nil
}

// setSysctl changes a setting where it is not as it has to be, and reports whether it did.
func setSysctl(name, value string) (changed bool, err error) {
	have, err := readSysctl(name)
	if err != nil || have == value {
		return false, err
	}
	return true, writeSysctl(name, value)
}

func sysctlError(op, name string, err error) error {
	e := &Error{Op: op + " net." + strings.ReplaceAll(name, "/", "."), Err: err}
	switch {
	case errors.Is(err, unix.EROFS):
		e.Fix = "/proc/sys is read-only here: a container that makes containers needs it writable"
	case errors.Is(err, os.ErrPermission):
		e.Fix = "run as root, or with CAP_NET_ADMIN"
	}
	return e
}
