package coracle

import (
	"errors"
	"fmt"
	"strings"
)

// Errors that the standard library has no word for. What does not exist matches fs.ErrNotExist, what exists already
// fs.ErrExist, what is forbidden fs.ErrPermission, and what this machine cannot do errors.ErrUnsupported.
var (
	// ErrClosed: the engine was closed.
	ErrClosed = errors.New("engine is closed")
	// ErrInUse: another object still needs this one.
	ErrInUse = errors.New("in use")
	// ErrRunning: the container is running, and the operation needs it not to be.
	ErrRunning = errors.New("container is running")
	// ErrNotRunning: the container is not running, and the operation needs it to be.
	ErrNotRunning = errors.New("container is not running")
	// ErrPaused: the container is paused, and the operation needs it not to be.
	ErrPaused = errors.New("container is paused")
	// ErrNotPaused: the container is running and not paused.
	ErrNotPaused = errors.New("container is not paused")
	// ErrCorrupt: content does not match its digest, or a stored object is damaged.
	ErrCorrupt = errors.New("content is corrupt")
	// ErrInvalid: a spec or an option makes no sense, and the error names the field; or a method was called that can
	// be called only before or after another one.
	ErrInvalid = errors.New("invalid value")
)

// An OpError says what was tried, on which object, and why it failed.
type OpError struct {
	Op   string // what was tried: "pull", "create", "start"
	Kind string // what it was tried on: "image", "container", "engine"
	Name string // reference, name or id of the object
	Err  error  // why
}

// Error gives operation, object and cause in one line.
func (e *OpError) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("coracle: %s %s: %v", e.Op, e.Kind, e.Err)
	}
	return fmt.Sprintf("coracle: %s %s %q: %v", e.Op, e.Kind, e.Name, e.Err)
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }

// An UnsupportedError says that this machine cannot do what was asked for. It matches errors.ErrUnsupported.
type UnsupportedError struct {
	Feature   string // what is missing
	MinKernel string // the Linux version that has it, or empty
	Fix       string // what to do about it, or empty
}

// Error names the feature and the remedy.
func (e *UnsupportedError) Error() string {
	s := e.Feature + " is not supported here"
	if e.MinKernel != "" {
		s += " (Linux " + e.MinKernel + " has it)"
	}
	if e.Fix != "" {
		s += ": " + e.Fix
	}
	return s
}

// Is makes the error match errors.ErrUnsupported.
func (e *UnsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }

// An InUseError says which objects still need the one that was to go. It matches [ErrInUse].
type InUseError struct {
	Kind  string   // what uses it: "container"
	Users []string // their names
}

// Error names the users.
func (e *InUseError) Error() string {
	const most = 5
	names := e.Users
	more := ""
	if len(names) > most {
		names, more = names[:most], fmt.Sprintf(" and %d more", len(e.Users)-most)
	}
	return fmt.Sprintf("in use by %s %s%s", e.Kind, strings.Join(names, ", "), more)
}

// Is makes the error match ErrInUse.
func (e *InUseError) Is(target error) bool { return target == ErrInUse }
