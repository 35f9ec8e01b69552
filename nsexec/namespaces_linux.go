package nsexec

import (
	"errors"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// namespaces are the namespaces of the spec: which are new and which are joined.
type namespaces struct {
	fresh  uint64 // CLONE_NEW... flags of those to be created
	joined uint64
	files  []joinedNamespace
}

type joinedNamespace struct {
	flag uint64
	path string
	file *os.File
}

// namespaceFlag is the flag of clone3 and setns for a type of namespace, or 0.
func namespaceFlag(t specs.LinuxNamespaceType) uint64 {
	switch t {
	case specs.PIDNamespace:
		return unix.CLONE_NEWPID
	case specs.NetworkNamespace:
		return unix.CLONE_NEWNET
	case specs.MountNamespace:
		return unix.CLONE_NEWNS
	case specs.IPCNamespace:
		return unix.CLONE_NEWIPC
	case specs.UTSNamespace:
		return unix.CLONE_NEWUTS
	case specs.UserNamespace:
		return unix.CLONE_NEWUSER
	case specs.CgroupNamespace:
		return unix.CLONE_NEWCGROUP
	case specs.TimeNamespace:
		return unix.CLONE_NEWTIME
	}
	return 0
}

// has says whether the container has a namespace of its own or a joined one of the kind.
func (n *namespaces) has(flag uint64) bool { return (n.fresh|n.joined)&flag != 0 }

func (c *compiler) checkNamespaces() {
	l := c.spec.Linux
	n := &c.namespaces
	for i, ns := range l.Namespaces {
		field := index("linux.namespaces", i)
		flag := namespaceFlag(ns.Type)
		switch {
		case flag == 0:
			c.unsupported(field+".type", "namespace type "+strconv.Quote(string(ns.Type)))
			return
		case n.has(flag):
			c.invalid(field+".type", "a second %s namespace", ns.Type)
			return
		case ns.Path == "":
			n.fresh |= flag
			continue
		case flag == unix.CLONE_NEWNS:
			c.unsupported(field+".path", "joining a mount namespace at the start of a container")
			return
		}
		n.joined |= flag
		n.files = append(n.files, joinedNamespace{flag: flag, path: ns.Path})
	}
	if n.fresh&unix.CLONE_NEWNS == 0 {
		c.invalid("linux.namespaces", "a mount namespace is missing: without it the mounts would be the host's")
	}
	if n.fresh&unix.CLONE_NEWUSER != 0 {
		if len(l.UIDMappings) == 0 || len(l.GIDMappings) == 0 {
			c.invalid("linux.uidMappings", "a user namespace needs uidMappings and gidMappings")
		}
		c.prog.uidMappings, c.prog.gidMappings = l.UIDMappings, l.GIDMappings
	} else if len(l.UIDMappings)+len(l.GIDMappings) > 0 {
		c.invalid("linux.uidMappings", "mappings without a new user namespace")
	}
	if n.fresh&unix.CLONE_NEWTIME == 0 && len(l.TimeOffsets) > 0 {
		c.invalid("linux.timeOffsets", "offsets without a new time namespace")
	}
	for clock := range l.TimeOffsets {
		if clock != "monotonic" && clock != "boottime" {
			c.invalid("linux.timeOffsets."+clock, "the clocks with offsets are monotonic and boottime")
		}
		if l.TimeOffsets[clock].Nanosecs >= 1e9 {
			c.invalid("linux.timeOffsets."+clock+".nanosecs", "a second or more")
		}
	}
	if c.bad != nil {
		return
	}
	for i := range n.files {
		j := &n.files[i]
		f, err := openNamespace(j.path)
		if err != nil {
			c.invalid("linux.namespaces", "open the %s namespace to join: %w", cloneFlagNames(j.flag), err)
			return
		}
		c.prog.owned = append(c.prog.owned, f)
		kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
		if err != nil || uint64(kind) != j.flag {
			c.invalid("linux.namespaces", "%s is not a namespace of the kind %s", j.path, cloneFlagNames(j.flag))
			return
		}
		j.file = f
	}
}

// openNamespace opens a file that stands for a namespace, and nothing else: opening a device or a pipe may have effects
// or wait.
func openNamespace(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	if st.Type != unix.NSFS_MAGIC {
		return nil, &os.PathError{Op: "open", Path: path, Err: errNoNamespace}
	}
	return os.Open("/proc/self/fd/" + strconv.Itoa(fd))
}

var errNoNamespace = errors.New("not a file of a namespace")

// ownPIDNamespace says whether the container has a pid namespace of its own, which the guard's can contain.
func (c *compiler) ownPIDNamespace() bool { return c.namespaces.fresh&unix.CLONE_NEWPID != 0 }

// cloneFlags are the namespaces that the payload is born in. The cgroup namespace is not among them: its root is the
// cgroup at the time of its creation, and the payload has yet to enter its own. Offsets of a time namespace must be
// written before the first process enters it, so the guard makes that one.
func (c *compiler) cloneFlags() uint64 {
	return c.namespaces.fresh &^ (unix.CLONE_NEWCGROUP | unix.CLONE_NEWTIME)
}

// early are the namespaces that the guard has to join: a pid or time namespace takes effect for children, and the
// payload of a new user namespace has no privilege over namespaces outside of it.
func (c *compiler) early() uint64 {
	if c.namespaces.fresh&unix.CLONE_NEWUSER != 0 {
		return ^uint64(0)
	}
	return unix.CLONE_NEWPID | unix.CLONE_NEWUSER | unix.CLONE_NEWTIME
}

// joinBeforeClone emits the guard's part of joining namespaces.
func (c *compiler) joinBeforeClone() {
	user := c.namespaces.joined & unix.CLONE_NEWUSER
	if os.Geteuid() != 0 {
		// Without privilege, the user namespace gives it over the others.
		c.setns(user)
	}
	c.setns(c.early() &^ unix.CLONE_NEWUSER)
	if os.Geteuid() == 0 {
		c.setns(user)
	}
	if c.namespaces.fresh&unix.CLONE_NEWTIME != 0 {
		c.Syscall("create a time namespace", unix.SYS_UNSHARE, Const(unix.CLONE_NEWTIME).As("CLONE_NEWTIME"))
		if len(c.spec.Linux.TimeOffsets) > 0 {
			var b strings.Builder
			for _, clock := range []string{"monotonic", "boottime"} {
				if o, ok := c.spec.Linux.TimeOffsets[clock]; ok {
					b.WriteString(clock + " " + strconv.FormatInt(o.Secs, 10) + " " + strconv.Itoa(int(o.Nanosecs)) + "\n")
				}
			}
			fd := c.NewSlot("offsets")
			c.Syscall("open the offsets of the time namespace", unix.SYS_OPENAT, Int(unix.AT_FDCWD), c.Str("/proc/self/timens_offsets"),
				Const(unix.O_WRONLY|unix.O_CLOEXEC).As("O_WRONLY|O_CLOEXEC"), Const(0)).Into(fd)
			c.Syscall("set the offsets of the time namespace", unix.SYS_WRITE, fd.Value(), c.Str(b.String()), Int(b.Len()))
			c.Syscall("close the offsets", unix.SYS_CLOSE, fd.Value())
		}
	}
}

// join emits the payload's part of joining namespaces.
func (c *compiler) join() { c.setns(^c.early()) }

func (c *compiler) setns(which uint64) {
	for i := range c.namespaces.files {
		j := &c.namespaces.files[i]
		if j.flag&which == 0 {
			continue
		}
		fd := c.file(j.path, j.file)
		c.Syscall("join the namespace "+j.path, unix.SYS_SETNS, fd, Const(j.flag).As(cloneFlagNames(j.flag)))
	}
}
