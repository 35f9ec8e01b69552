package cgroup

import specs "github.com/opencontainers/runtime-spec/specs-go"

func (g *Group) set(r *specs.LinuxResources, create bool) error { return nil }

// OOMKills returns how many processes of the group were killed for want of memory.
func (g *Group) OOMKills() (uint64, error) { return 0, nil }

type deviceFilters struct{}

func (*deviceFilters) close() {}
