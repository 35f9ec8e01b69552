package netdrv

import (
	"errors"
	"fmt"
	"strings"
)

// An UnsupportedError says that this machine cannot do what was asked for. It matches errors.ErrUnsupported and, where
// the kernel refused, the errno.
type UnsupportedError struct {
	Feature string // what was asked for: "a network of driver ipvlan"
	Kernel  string // what the kernel has to have: "CONFIG_IPVLAN", with the version since when it can have it; may be empty
	Fix     string // what to do about it; may be empty
	Err     error  // what the kernel said; may be nil
}

// Error names feature, cause and remedy.
func (e *UnsupportedError) Error() string {
	s := "netdrv: " + e.Feature + " is not supported here"
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Kernel != "" {
		s += ": it needs a kernel with " + e.Kernel
	}
	if e.Fix != "" {
		s += " (" + e.Fix + ")"
	}
	return s
}

// Unwrap returns what the kernel said.
func (e *UnsupportedError) Unwrap() error { return e.Err }

// Is makes the error match errors.ErrUnsupported.
func (e *UnsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }

// An Error says what was tried, on which interface, and what came of it. It matches what the kernel said, by errno and as
// fs.ErrPermission, fs.ErrExist or fs.ErrNotExist.
type Error struct {
	Op        string // what was tried: "make the bridge"
	Interface string // on which interface; may be empty
	Err       error  // what the kernel said
	Fix       string // what to do about it; may be empty
}

// Error names what was tried, the interface, the cause and the remedy.
func (e *Error) Error() string {
	s := "netdrv: " + e.Op
	if e.Interface != "" {
		s += " " + e.Interface
	}
	s += ": " + e.Err.Error()
	if e.Fix != "" {
		s += " (" + e.Fix + ")"
	}
	return s
}

// Unwrap returns what the kernel said.
func (e *Error) Unwrap() error { return e.Err }

// A BusyError says that a network cannot be taken down because containers are connected.
type BusyError struct {
	Network   string   // the name
	Interface string   // the network's interface on the host
	Ports     []string // the host ends of the containers' interfaces
}

// Error names the network and what is connected.
func (e *BusyError) Error() string {
	return fmt.Sprintf("netdrv: the network %s (%s) is in use: %s are connected (stop or disconnect their containers first)",
		e.Network, e.Interface, strings.Join(e.Ports, ", "))
}

// An InvalidError says that a value makes no sense on any machine.
type InvalidError struct {
	Field  string // as in the Go struct: "Network.MTU"
	Value  string
	Reason string
}

// Error names field, value and reason.
func (e *InvalidError) Error() string {
	return fmt.Sprintf("netdrv: %s %q: %s", e.Field, e.Value, e.Reason)
}

func invalid(field string, value any, reason string) error {
	return &InvalidError{Field: field, Value: fmt.Sprint(value), Reason: reason}
}
