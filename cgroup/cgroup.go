package cgroup

import (
	"log/slog"
	"os"
)

// Config says where groups are made. The zero Config works.
type Config struct {
	// Parent is the cgroup below which groups are made, as an absolute path from the top of each mounted hierarchy
	// ("/coracle"). It is made where it is missing. Empty means the best place there is; see the package's overview.
	Parent string
	// Logger receives what is worth knowing and is no error. Nil discards.
	Logger *slog.Logger
}

// A Mode is the version of cgroups that a machine has mounted.
type Mode int

const (
	// None: no cgroups are mounted.
	None Mode = iota
	// V1: hierarchies of version 1 alone.
	V1
	// Hybrid: controllers are in hierarchies of version 1, and the tree of version 2 is mounted too.
	Hybrid
	// V2: the unified hierarchy alone.
	V2
)

// String returns "none", "v1", "hybrid" or "v2".
func (m Mode) String() string {
	switch m {
	case V1:
		return "v1"
	case Hybrid:
		return "hybrid"
	case V2:
		return "v2"
	}
	return "none"
}

// A Mount is a hierarchy as the machine has it mounted, for building a container's own /sys/fs/cgroup.
type Mount struct {
	Path        string   // the mount point
	Controllers []string // of version 1: "cpu", "cpuacct", or "name=systemd"; empty for version 2
	V2          bool
}

// Join is what puts a new process into a group. All of it belongs to whoever called [Group.Join], and all of it may
// be nil: where there are no cgroups there is nothing to join.
type Join struct {
	// Dir is the group's directory in the tree of version 2, for clone3 with CLONE_INTO_CGROUP.
	Dir *os.File
	// Tasks are the group's tasks files in the hierarchies of version 1, open for writing. Writing "0" to one moves the
	// calling thread, so it is for a process with a single one: a write to cgroup.procs moves all threads, and waits
	// milliseconds for an RCU grace period.
	Tasks []*os.File
	// Kill is the group's cgroup.kill, open for writing. Writing "1" to it kills all that is in the group.
	Kill *os.File
}

// Close closes the files. It may be called again, and on nil.
func (j *Join) Close() error {
	if j == nil {
		return nil
	}
	for _, f := range append([]*os.File{j.Dir, j.Kill}, j.Tasks...) {
		if f != nil {
			f.Close()
		}
	}
	*j = Join{}
	return nil
}
