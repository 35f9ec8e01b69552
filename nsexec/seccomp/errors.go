package seccomp

import (
	"errors"
	"fmt"
)

// A ProfileError says which field of a profile has a value that it may not have.
type ProfileError struct {
	Field  string // path in the seccomp section: "syscalls[3].args[0].op"
	Value  string // what stands there
	Reason string // what is wrong with it, or what may stand there
}

// Error names field, value and reason.
func (e *ProfileError) Error() string {
	return fmt.Sprintf("seccomp profile: %s: %q: %s", e.Field, e.Value, e.Reason)
}

// An ArchError names an architecture that this package has no system call table for.
// errors.Is(err, errors.ErrUnsupported) holds.
type ArchError struct {
	Arch string // an SCMP_ARCH_ name of the profile, or a GOARCH of Options
}

// Error names the architecture and those that would do.
func (e *ArchError) Error() string {
	return fmt.Sprintf("seccomp: architecture %q is not supported (amd64, 386, arm64, arm; "+
		"SCMP_ARCH_X86_64, _X86, _X32, _AARCH64, _ARM are)", e.Arch)
}

// Unwrap returns errors.ErrUnsupported.
func (e *ArchError) Unwrap() error { return errors.ErrUnsupported }

// A TooLargeError says that a profile does not fit into the number of instructions that the kernel accepts. Fewer
// conditions on arguments, or fewer architectures, make it smaller.
type TooLargeError struct {
	Limit int // MaxInstructions
}

// Error gives the limit.
func (e *TooLargeError) Error() string {
	return fmt.Sprintf("seccomp profile: more than the %d instructions that the kernel accepts: "+
		"use fewer argument conditions or architectures", e.Limit)
}
