package cgroup

import (
	"errors"
	"fmt"
)

// An UnsupportedError says that this machine, or this program on it, cannot do what was asked for. It matches
// errors.ErrUnsupported and, where the kernel refused, the errno.
type UnsupportedError struct {
	Feature string // what was asked for: "memory limit"
	File    string // the file or directory that is missing or cannot be written; may be empty
	Fix     string // what to do about it; may be empty
	Err     error  // what the kernel said; may be nil
}

// Error names feature, file, cause and remedy.
func (e *UnsupportedError) Error() string {
	s := "cgroup: " + e.Feature + " is not supported here"
	if e.File != "" {
		s += ": " + e.File
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
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

// ErrThawed says that a group was thawed by somebody else while it was being frozen.
var ErrThawed = errors.New("thawed by somebody else meanwhile")

// A LimitError says that the kernel has the limit but refused the value.
type LimitError struct {
	Feature string // what was asked for: "cpuset"
	File    string // the file that was written
	Value   string // what was written to it
	Err     error  // what the kernel said
}

// Error names feature, file, value and cause.
func (e *LimitError) Error() string {
	return fmt.Sprintf("cgroup: set the %s: write %q to %s: %v", e.Feature, e.Value, e.File, e.Err)
}

// Unwrap returns what the kernel said.
func (e *LimitError) Unwrap() error { return e.Err }

// An InvalidError says that a limit or a name makes no sense on any machine.
type InvalidError struct {
	Field  string // as in the Go struct: "Memory", "Devices[2].Access"
	Value  string
	Reason string
}

// Error names field, value and reason.
func (e *InvalidError) Error() string {
	return fmt.Sprintf("cgroup: %s %q: %s", e.Field, e.Value, e.Reason)
}

func invalid(field string, value any, reason string) error {
	return &InvalidError{Field: field, Value: fmt.Sprint(value), Reason: reason}
}
