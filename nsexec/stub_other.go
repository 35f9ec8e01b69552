//go:build !linux

package nsexec

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Options exist on Linux.
type Options struct {
	Root, Cgroup, CgroupKill *os.File
	Tasks                    []*os.File
	Init                     bool
	Connect                  func(context.Context, *os.File) error
	Log                      *Log
	Keeper                   *Keeper
	Input                    *Input
}

// A Program exists on Linux.
type Program struct{}

// Compile returns errors.ErrUnsupported: containers need Linux.
func Compile(*specs.Spec, *Options) (*Program, error) { return nil, errors.ErrUnsupported }

// Close does nothing.
func (*Program) Close() error { return nil }

// TargetOptions exist on Linux.
type TargetOptions struct {
	Process, Cgroup *os.File
	Tasks           []*os.File
}

// A Target exists on Linux.
type Target struct{}

// NewTarget returns errors.ErrUnsupported: containers need Linux.
func NewTarget(*specs.Spec, *TargetOptions) (*Target, error) { return nil, errors.ErrUnsupported }

// Compile returns errors.ErrUnsupported.
func (*Target) Compile(*specs.Process) (*Program, error) { return nil, errors.ErrUnsupported }

// Within returns errors.ErrUnsupported.
func (*Target) Within(*os.File, []*os.File) (*Target, error) { return nil, errors.ErrUnsupported }

// Close does nothing.
func (*Target) Close() error { return nil }

// A Launcher exists on Linux.
type Launcher struct{ Dir string }

// Start returns errors.ErrUnsupported: containers need Linux.
func (*Launcher) Start(context.Context, *Program, *Stdio) (*Process, error) {
	return nil, errors.ErrUnsupported
}

// StartDetached returns errors.ErrUnsupported: containers need Linux.
func (*Launcher) StartDetached(context.Context, *Program, *Stdio) (*Detached, error) {
	return nil, errors.ErrUnsupported
}

// Close does nothing.
func (*Launcher) Close() error { return nil }

// A Detached exists on Linux.
type Detached struct{}

// PID returns 0.
func (*Detached) PID() int { return 0 }

// KeeperPID returns 0.
func (*Detached) KeeperPID() int { return 0 }

// Release returns errors.ErrUnsupported.
func (*Detached) Release() error { return errors.ErrUnsupported }

// Abandon does nothing.
func (*Detached) Abandon() {}

// PrepareRecord returns errors.ErrUnsupported.
func PrepareRecord(*os.File) error { return errors.ErrUnsupported }

// ReadRecord returns errors.ErrUnsupported.
func ReadRecord(io.ReaderAt) (Record, error) { return Record{}, errors.ErrUnsupported }

// A Process exists on Linux.
type Process struct{}

// PID returns 0.
func (*Process) PID() int { return 0 }

// Terminal returns nil.
func (*Process) Terminal() *os.File { return nil }

// Signal returns errors.ErrUnsupported.
func (*Process) Signal(syscall.Signal) error { return errors.ErrUnsupported }

// Kill returns errors.ErrUnsupported.
func (*Process) Kill() error { return errors.ErrUnsupported }

// Done returns nil.
func (*Process) Done() <-chan struct{} { return nil }

// Wait returns errors.ErrUnsupported.
func (*Process) Wait(context.Context) (Status, error) { return Status{}, errors.ErrUnsupported }
