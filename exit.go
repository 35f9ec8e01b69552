package coracle

import (
	"fmt"
	"syscall"
	"time"

	"github.com/coracle-dev/coracle/nsexec"
)

// ExitStatus is how a container's first process ended, exactly as the kernel gave it.
type ExitStatus struct {
	// Code is the exit code, 0 to 255, or -1 if a signal ended the process or nobody knows.
	Code int
	// Signal is the signal that ended the process, or 0.
	Signal syscall.Signal
	// OOMKilled says that the kernel killed a process of the container because it ran into its memory limit. It may
	// hold with any code and signal: what was killed need not have been the first process. Of a command it is known only if
	// it has limits of its own: then what was killed of it counts for the command and not for the container.
	OOMKilled bool
	// Unknown says that the process ended and nobody could tell how: its guard was killed with it.
	Unknown bool
	// UserTime and SystemTime are the processor time of the process and of the descendants that it waited for.
	UserTime, SystemTime time.Duration
	// MaxRSS is the largest resident set of any of them, in bytes.
	MaxRSS int64
}

func newExitStatus(s nsexec.Status) *ExitStatus {
	return &ExitStatus{Code: s.Code, Signal: s.Signal, UserTime: s.UserTime, SystemTime: s.SystemTime, MaxRSS: s.MaxRSS}
}

// Success reports whether the process ended by itself with code 0.
func (s ExitStatus) Success() bool { return s.Code == 0 && s.Signal == 0 && !s.Unknown }

// String says how the process ended, in words.
func (s ExitStatus) String() string {
	text := fmt.Sprintf("exit status %d", s.Code)
	switch {
	case s.Unknown:
		text = "exit status unknown"
	case s.Signal != 0:
		text = fmt.Sprintf("signal: %v", s.Signal)
	}
	if s.OOMKilled {
		text += " (out of memory)"
	}
	return text
}

// An ExitError says that a container, or a command in one, ran and did not end with code 0.
type ExitError struct {
	ExitStatus
	// Container is the container's name.
	Container string
	// Command is the program of a command in the container, or empty where the container itself ended.
	Command string
	// Stderr is the end of what it wrote to its standard error, at most 32 kB, if Output ran it and the spec had no
	// Stderr of its own.
	Stderr []byte
}

// Error says which container ended how.
func (e *ExitError) Error() string {
	if e.Command != "" {
		return fmt.Sprintf("coracle: %q in container %q: %v", e.Command, e.Container, e.ExitStatus)
	}
	return fmt.Sprintf("coracle: container %q: %v", e.Container, e.ExitStatus)
}
