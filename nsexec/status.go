package nsexec

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

// Status is how a process ended, exactly as the kernel gave it.
type Status struct {
	// Code is the exit code, 0 to 255, or -1 if a signal ended the process.
	Code int
	// Signal is the signal that ended the process, or 0.
	Signal syscall.Signal
	// CoreDump says whether the signal made the process dump core.
	CoreDump bool
	// UserTime and SystemTime are the processor time of the process and of the descendants that it waited for.
	UserTime, SystemTime time.Duration
	// MaxRSS is the largest resident set of any of them, in bytes.
	MaxRSS int64
}

// String says how the process ended, in words.
func (s Status) String() string {
	switch {
	case s.Signal != 0 && s.CoreDump:
		return fmt.Sprintf("signal: %v (core dumped)", s.Signal)
	case s.Signal != 0:
		return fmt.Sprintf("signal: %v", s.Signal)
	}
	return fmt.Sprintf("exit status %d", s.Code)
}

// Stdio are the standard streams of a process. Nil stands for /dev/null of the host.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
}
