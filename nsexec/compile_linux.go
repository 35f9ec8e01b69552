package nsexec

import (
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Options say what a runtime spec cannot: files that are open already. The zero Options, like nil, suit a spec that
// stands by itself.
type Options struct {
	// Root is a detached mount (of fsmount or open_tree with OPEN_TREE_CLONE) that becomes the container's root in
	// place of spec.Root.Path. A detached mount can be attached once, so every start needs its own.
	Root *os.File
	// Cgroup is the directory of a cgroup of the v2 hierarchy that the container's first process is born in.
	Cgroup *os.File
	// Tasks are "tasks" files of v1 hierarchies, open for writing, that the first process writes itself into.
	Tasks []*os.File
	// CgroupKill is the group's cgroup.kill, open for writing. A container that shares the pid namespace of the host
	// or of another container is ended by it.
	CgroupKill *os.File
}

// compiler carries one spec through compilation.
type compiler struct {
	*Plan
	spec *specs.Spec
	opts *Options
	prog *Program

	hygieneStep int // see setFileCount
}

// file makes room for an inherited file and remembers which one it is.
func (c *compiler) file(name string, f *os.File) Arg {
	a := c.File(name)
	c.prog.files = append(c.prog.files, f)
	return a
}

// own is file for one that was opened for this Program only.
func (c *compiler) own(name string, f *os.File) Arg {
	c.prog.owned = append(c.prog.owned, f)
	return c.file(name, f)
}
