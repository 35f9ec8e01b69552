package nsexec

import (
	"context"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A Program is a spec made ready to start: the plan and the files that it inherits. A Program whose root is a detached
// mount can be started once.
type Program struct {
	Plan  *Plan
	files []*os.File // by Plan.Files; nil for those that Start makes
	owned []*os.File // closed with the Program

	report Arg  // socket on which the guard reports the payload's pidfd and exit status
	kill   Arg  // cgroup.kill, if the guard needs it
	status Arg  // pipe on which set-up reports READY or its error
	sync   Arg  // pipe on which the payload waits for the mappings of its user namespace
	nested bool // the guard is pid 1 of an outer pid namespace

	detached  bool // the guard is a keeper
	joins     bool // the guard is a joiner: the payload is in a running container, see join_linux.go
	traceable bool // by the container's processes

	terminal     bool // the payload sends a terminal through the report socket
	keptTerminal Arg  // or through this one, to the guard; the other is the payload's end
	terminalEnd  Arg

	uidMappings, gidMappings []specs.LinuxIDMapping // of a new user namespace
	connect                  func(context.Context, *os.File) error
}

// mapped says whether the program has to write the mappings of a new user namespace.
func (c *compiler) mapped() bool {
	return len(c.prog.uidMappings) > 0 || len(c.prog.gidMappings) > 0
}

// Close closes what Compile opened. It is safe to call more than once.
func (p *Program) Close() error {
	for _, f := range p.owned {
		f.Close()
	}
	p.owned = nil
	return nil
}

var cloneFlags = []struct {
	flag uint64
	name string
}{
	{unix.CLONE_NEWNS, "CLONE_NEWNS"}, {unix.CLONE_NEWPID, "CLONE_NEWPID"}, {unix.CLONE_NEWUTS, "CLONE_NEWUTS"},
	{unix.CLONE_NEWIPC, "CLONE_NEWIPC"}, {unix.CLONE_NEWNET, "CLONE_NEWNET"}, {unix.CLONE_NEWUSER, "CLONE_NEWUSER"},
	{unix.CLONE_NEWCGROUP, "CLONE_NEWCGROUP"}, {unix.CLONE_NEWTIME, "CLONE_NEWTIME"},
	{unix.CLONE_PIDFD, "CLONE_PIDFD"}, {unix.CLONE_INTO_CGROUP, "CLONE_INTO_CGROUP"},
}

// cloneFlagNames shows flags of clone3, setns and unshare in the listing.
func cloneFlagNames(flags uint64) string {
	var names []string
	for _, f := range cloneFlags {
		if flags&f.flag != 0 {
			names = append(names, f.name)
		}
	}
	return strings.Join(names, "|")
}
