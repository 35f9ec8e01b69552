//go:build !linux

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Hierarchy is the place where groups are made. There are cgroups on Linux only.
type Hierarchy struct{}

// Open returns a hierarchy in which nothing can be made.
func Open(Config) (*Hierarchy, error) { return &Hierarchy{}, nil }

// Close does nothing.
func (h *Hierarchy) Close() error { return nil }

// Mode returns [ModeNone].
func (h *Hierarchy) Mode() Mode { return ModeNone }

// Controllers returns nothing.
func (h *Hierarchy) Controllers() []string { return nil }

// Names returns nothing.
func (h *Hierarchy) Names() ([]string, error) { return nil, nil }

// Create returns a group that does nothing, or an [*UnsupportedError] if r is not nil.
func (h *Hierarchy) Create(name string, r *specs.LinuxResources) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if r != nil {
		return nil, unsupported()
	}
	return &Group{name: name}, nil
}

// Load returns an error that matches [fs.ErrNotExist].
func (h *Hierarchy) Load(name string) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("cgroup: load group %q: %w", name, fs.ErrNotExist)
}

func unsupported() error {
	return &UnsupportedError{Err: errors.New("cgroups are a part of Linux")}
}

// Group is the cgroup of one container.
type Group struct{ name string }

// Name returns the name of the group.
func (g *Group) Name() string { return g.name }

// Path returns "".
func (g *Group) Path(string) string { return "" }

// Join is what a first process needs to start in the group: nothing here.
type Join struct {
	Dir   *os.File
	Tasks []*os.File
	Kill  *os.File
}

// Join returns a Join without files.
func (g *Group) Join() (*Join, error) { return &Join{}, nil }

// Close does nothing.
func (j *Join) Close() error { return nil }

// Kill does nothing.
func (g *Group) Kill(context.Context) error { return nil }

// Remove does nothing.
func (g *Group) Remove(context.Context) error { return nil }

// Freeze returns an [*UnsupportedError].
func (g *Group) Freeze(context.Context) error { return unsupported() }

// Thaw returns an [*UnsupportedError].
func (g *Group) Thaw(context.Context) error { return unsupported() }

// Procs returns nothing.
func (g *Group) Procs() ([]int, error) { return nil, nil }

// OOMKills returns 0.
func (g *Group) OOMKills() (uint64, error) { return 0, nil }

// Stats returns an [*UnsupportedError].
func (g *Group) Stats() (*Stats, error) { return nil, unsupported() }

// Update returns an [*UnsupportedError] if r is not nil.
func (g *Group) Update(r *specs.LinuxResources) error {
	if r != nil {
		return unsupported()
	}
	return nil
}
