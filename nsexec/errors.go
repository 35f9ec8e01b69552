package nsexec

import (
	"errors"
	"fmt"
	"syscall"
)

// A StepError says which step of a launch plan failed. The errno is preserved: errors.Is(err, unix.EPERM) and
// errors.Is(err, fs.ErrPermission) hold where they should.
type StepError struct {
	Step  int           // index in the plan's listing
	Label string        // what the step was for, in words
	Call  string        // name of the system call
	Errno syscall.Errno // why it failed
}

// Error gives the label, the call and the cause.
func (e *StepError) Error() string {
	return fmt.Sprintf("%s: %s: %v", e.Label, e.Call, e.Errno)
}

// Unwrap returns the errno.
func (e *StepError) Unwrap() error { return e.Errno }

// An ExecError says that the set-up was done and the container's program could not be executed: it does not exist
// (fs.ErrNotExist), may not be executed (fs.ErrPermission) or is of a format or architecture that the kernel does not
// run (ENOEXEC).
type ExecError struct {
	Path  string // as in process.args
	Errno syscall.Errno
}

// Error names the program and the cause.
func (e *ExecError) Error() string {
	hint := ""
	switch e.Errno {
	case syscall.ENOENT:
		hint = " (neither the file nor, for a script or a dynamic program, its interpreter may be missing)"
	case syscall.ENOEXEC:
		hint = " (not a program, a script without #!, or made for another architecture)"
	case syscall.EACCES:
		hint = " (not a regular file, without the execute permission, or on a noexec mount)"
	}
	return fmt.Sprintf("execute %q: %v%s", e.Path, e.Errno, hint)
}

// Unwrap returns the errno.
func (e *ExecError) Unwrap() error { return e.Errno }

// ErrDied says that the container's process or its guard was killed before its program could be executed, by an
// out-of-memory kill for example.
var ErrDied = errors.New("nsexec: killed during set-up")

// ErrUnknownStatus says that a process ended and nobody could tell how: its guard was killed with it.
var ErrUnknownStatus = errors.New("nsexec: exit status unknown: the guard was killed")

// ErrClosed says that the launcher was closed.
var ErrClosed = errors.New("nsexec: launcher closed")
