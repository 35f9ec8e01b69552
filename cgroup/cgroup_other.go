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

// A Hierarchy is where groups are made. There are control groups on Linux only: elsewhere groups do nothing.
type Hierarchy struct{}

// A Group is a control group.
type Group struct{ name string }

// Open returns a Hierarchy without control groups.
func Open(Config) (*Hierarchy, error) { return &Hierarchy{}, nil }

// Close does nothing.
func (h *Hierarchy) Close() error { return nil }

// Mode returns None.
func (h *Hierarchy) Mode() Mode { return None }

// Controllers returns nil.
func (h *Hierarchy) Controllers() []string { return nil }

// Mounts returns nil.
func (h *Hierarchy) Mounts() []Mount { return nil }

// KillsFrozen returns true.
func (h *Hierarchy) KillsFrozen() bool { return true }

// Names returns nil.
func (h *Hierarchy) Names() ([]string, error) { return nil, nil }

// Create returns a group that does nothing, or an error if r has limits.
func (h *Hierarchy) Create(name string, r *specs.LinuxResources) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := checkResources(r); err != nil {
		return nil, err
	}
	if !empty(r) {
		return nil, &UnsupportedError{Feature: "resource limits", Fix: "they need Linux"}
	}
	return &Group{name: name}, nil
}

// Load returns an error that matches fs.ErrNotExist.
func (h *Hierarchy) Load(name string) (*Group, error) {
	return nil, fmt.Errorf("cgroup: load group %q: %w", name, fs.ErrNotExist)
}

// Name returns the group's name.
func (g *Group) Name() string { return g.name }

// Path returns the empty string.
func (g *Group) Path(string) string { return "" }

// Join returns nothing to join.
func (g *Group) Join() (*Join, error) { return &Join{}, nil }

// Child returns an error that matches errors.ErrUnsupported.
func (g *Group) Child(context.Context, string, *specs.LinuxResources) (*Group, error) {
	return nil, errors.ErrUnsupported
}

// LoadChild returns a group that does nothing.
func (g *Group) LoadChild(name string) (*Group, error) { return &Group{name: g.name + "/" + name}, nil }

// Children returns nil.
func (g *Group) Children() ([]string, error) { return nil, nil }

// Update returns an error that matches errors.ErrUnsupported.
func (g *Group) Update(*specs.LinuxResources) error { return errors.ErrUnsupported }

// Stats returns an error that matches errors.ErrUnsupported.
func (g *Group) Stats() (*Stats, error) { return nil, errors.ErrUnsupported }

// Procs returns an error that matches errors.ErrUnsupported.
func (g *Group) Procs() ([]int, error) { return nil, errors.ErrUnsupported }

// Freeze returns an error that matches errors.ErrUnsupported.
func (g *Group) Freeze(context.Context) error { return errors.ErrUnsupported }

// Frozen returns an error that matches errors.ErrUnsupported.
func (g *Group) Frozen() (bool, error) { return false, errors.ErrUnsupported }

// Thaw returns an error that matches errors.ErrUnsupported.
func (g *Group) Thaw(context.Context) error { return errors.ErrUnsupported }

// Kill does nothing.
func (g *Group) Kill(context.Context) error { return nil }

// OOMKills returns an error that matches errors.ErrUnsupported.
func (g *Group) OOMKills() (uint64, error) { return 0, errors.ErrUnsupported }

// MemoryEvents returns nil.
func (g *Group) MemoryEvents() (*os.File, error) { return nil, nil }

// ParseOOMKills returns 0.
func ParseOOMKills([]byte) uint64 { return 0 }

// Remove does nothing.
func (g *Group) Remove(context.Context) error { return nil }

// empty reports whether r asks for nothing.
func empty(r *specs.LinuxResources) bool {
	return r == nil || len(r.Devices) == 0 && len(r.HugepageLimits) == 0 && len(r.Rdma) == 0 && len(r.Unified) == 0 &&
		len(settingsV1(r, true)) == 0
}
