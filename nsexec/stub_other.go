//go:build !linux

package nsexec

import (
	"context"
	"errors"
	"os"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Options exist on Linux.
type Options struct {
	Root, Cgroup, CgroupKill *os.File
	Tasks                    []*os.File
	Init                     bool
}

// A Program exists on Linux.
type Program struct{}

// Compile returns errors.ErrUnsupported: containers need Linux.
func Compile(*specs.Spec, *Options) (*Program, error) { return nil, errors.ErrUnsupported }

// Close does nothing.
func (*Program) Close() error { return nil }

// A Launcher exists on Linux.
type Launcher struct{ Dir string }

// Start returns errors.ErrUnsupported: containers need Linux.
func (*Launcher) Start(context.Context, *Program, *Stdio) (*Process, error) {
	return nil, errors.ErrUnsupported
}

// Close does nothing.
func (*Launcher) Close() error { return nil }

// A Process exists on Linux.
type Process struct{}

// PID returns 0.
func (*Process) PID() int { return 0 }

// Signal returns errors.ErrUnsupported.
func (*Process) Signal(syscall.Signal) error { return errors.ErrUnsupported }

// Kill returns errors.ErrUnsupported.
func (*Process) Kill() error { return errors.ErrUnsupported }

// Done returns nil.
func (*Process) Done() <-chan struct{} { return nil }

// Wait returns errors.ErrUnsupported.
func (*Process) Wait(context.Context) (Status, error) { return Status{}, errors.ErrUnsupported }
