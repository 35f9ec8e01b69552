package nsexec

import (
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A process that joins a running container is started much like a container's first one, see guard_linux.go:
//
//	program                    joiner                            payload
//	  fork, exec of the plan --> hygiene, what needs the host's /proc
//	                             setns: all namespaces but the cgroup's
//	                             clone3 -----------------------> pid and cgroup of the container
//	  <- report: pidfd --------- closes all but report           cgroup namespace, terminal, credentials, filter
//	  reads status: READY, EOF                                   execve (closes status)
//	                             poll(payload, report)
//	  <- report: wait status --- exit
//
// The joiner stays in the host's pid namespace, where nothing in the container can see or trace it, and in the importing
// program's cgroup, where neither a limit nor a freezer of the container's stops it. When the program ends, the report
// socket hangs up and the joiner kills the payload; when the joiner is killed, the payload's death signal does.
//
// From its first instruction on the payload can be seen by the container's processes. It is undumpable, so that only
// who has CAP_SYS_PTRACE can look in (CVE-2016-9962); confine_linux.go is about containers that have it. What it holds
// leads nowhere in any case: the pidfd of the container's own first process, its cgroup's tasks files, its cgroup's
// directory as a read-only mount that has no parent, and the two pipes to the importing program, which believes nothing
// that comes through them but an outcome.

// TargetOptions say where a container is that processes are to join. Process is required.
type TargetOptions struct {
	// Process is a pidfd of a process that is in the container's namespaces, usually its first. Whoever opened it has
	// made sure that it is that process and not a later one of the same number.
	Process *os.File
	// Cgroup is the directory of the container's cgroup in the v2 hierarchy, or nil.
	Cgroup *os.File
	// Tasks are the "tasks" files of its cgroups in v1 hierarchies, open for writing.
	Tasks []*os.File
}

// A Target is a running container that processes can join: what does not change from one to the next, checked and
// compiled once. It may be used by several goroutines. Close it in the end.
type Target struct {
	spec   specs.Spec // without process and mounts
	opts   Options
	pidfd  *os.File
	cgroup *os.File // owned
	filter *filter

	traceable bool // by the container's processes
}

// NewTarget prepares for starting processes in a running container that spec describes: its namespaces, seccomp profile
// and personality are taken from there, and no more. The files in opts have to stay open as long as the Target is used.
//
// The error is a *SpecError where the spec is at fault.
func NewTarget(spec *specs.Spec, opts *TargetOptions) (*Target, error) {
	if spec == nil || spec.Linux == nil {
		return nil, &SpecError{"linux", fmt.Errorf("missing")}
	}
	if opts == nil || opts.Process == nil {
		return nil, fmt.Errorf("nsexec: no process is given whose namespaces are to be joined: %w", os.ErrInvalid)
	}
	l := *spec.Linux
	t := &Target{pidfd: opts.Process, opts: Options{Tasks: opts.Tasks}, traceable: traceable(spec)}
	t.spec = specs.Spec{Version: spec.Version, Linux: &specs.Linux{
		Namespaces: l.Namespaces, Seccomp: l.Seccomp, Personality: l.Personality,
	}}
	if err := t.prepare(); err != nil {
		return nil, err
	}
	if opts.Cgroup != nil {
		var err error
		if t.cgroup, err = dropParent(opts.Cgroup); err != nil {
			return nil, err
		}
		t.opts.Cgroup = t.cgroup
	}
	return t, nil
}

// Within returns the same container for processes that are to be in other cgroups: groups inside of the container's, for
// limits of their own. dir and tasks are as in [TargetOptions]; tasks has to stay open as long as the result is used, and
// t too. Close it in the end.
func (t *Target) Within(dir *os.File, tasks []*os.File) (*Target, error) {
	in := *t
	in.opts.Tasks, in.opts.Cgroup, in.cgroup = tasks, nil, nil
	if dir != nil {
		var err error
		if in.cgroup, err = dropParent(dir); err != nil {
			return nil, err
		}
		in.opts.Cgroup = in.cgroup
	}
	return &in, nil
}

// prepare compiles the filter and checks the namespaces.
func (t *Target) prepare() error {
	c := &compiler{spec: &t.spec, opts: &t.opts}
	c.compileSeccomp()
	c.joinedNamespaces()
	t.filter = c.filter
	return c.bad
}

// dropParent returns a view of a directory that shows nothing but the directory and changes nothing: the kernel takes
// it for the directory itself when a process is cloned into it, and who steals it has stolen what the container's
// /sys/fs/cgroup shows anyway.
func dropParent(dir *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(int(dir.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, fmt.Errorf("nsexec: prepare the container's cgroup: %w", &os.PathError{Op: "open_tree", Path: dir.Name(), Err: err})
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("nsexec: prepare the container's cgroup: %w", &os.PathError{Op: "mount_setattr", Path: dir.Name(), Err: err})
	}
	return os.NewFile(uintptr(fd), dir.Name()), nil
}

// Close frees what NewTarget took. Processes that have joined go on. It is safe to call more than once.
func (t *Target) Close() error {
	if t.cgroup == nil {
		return nil
	}
	err := t.cgroup.Close()
	t.cgroup, t.opts.Cgroup = nil, nil
	return err
}

// Compile turns a process into a program that [Launcher.Start] runs in the container. The process is read and not kept.
//
// Its root is that of the container's mount namespace, and its cgroups are the container's. All fields count as they do
// for a container's first process, terminal and consoleSize included. The process ends with the launcher and with the
// importing program; its children are the container's, and stay. The error is a *SpecError that names the field.
func (t *Target) Compile(process *specs.Process) (*Program, error) {
	spec := t.spec
	spec.Process = process
	c := &compiler{spec: &spec, opts: &t.opts, Plan: &Plan{}, filter: t.filter, compiled: true, traceable: t.traceable}
	c.prog = &Program{Plan: c.Plan, joins: true, traceable: t.traceable}
	c.reserve(140)
	if process == nil {
		c.invalid("process", "missing")
	} else {
		c.checkProcess()
		c.joinedNamespaces()
	}
	if c.bad == nil {
		c.joiner(t.pidfd)
		c.setFileCount()
	}
	err := c.bad
	if err == nil {
		err = c.Plan.Err()
	}
	if err != nil {
		return nil, err
	}
	return c.prog, nil
}

// joinedNamespaces takes over which namespaces the container has, wherever it has them from.
func (c *compiler) joinedNamespaces() {
	for i, ns := range c.spec.Linux.Namespaces {
		flag := namespaceFlag(ns.Type)
		if flag == 0 {
			c.unsupported(index("linux.namespaces", i)+".type", fmt.Sprintf("namespace type %q", ns.Type))
			return
		}
		c.namespaces.joined |= flag
	}
	if c.namespaces.joined&unix.CLONE_NEWNS == 0 {
		c.invalid("linux.namespaces", "a mount namespace is missing: the process would have the host's files")
	}
}

// joiner emits the whole plan of a process that joins a container.
func (c *compiler) joiner(target *os.File) {
	c.prog.report = c.file("report", nil)
	c.prog.status = c.file("status", nil)
	pidfdOfTarget := c.file("container", target)

	child, failed := c.NewLabel(), c.NewLabel()
	c.FailTo(failed)
	c.hygiene()
	c.tuneThroughHost()
	// The cgroup namespace is for later: where the v2 hierarchy is delegated to namespaces, who is in it cannot clone
	// into a group from outside of it.
	if c.traceable && c.confines() {
		c.setnsOf(pidfdOfTarget, c.namespaces.joined&^(unix.CLONE_NEWCGROUP|unix.CLONE_NEWPID))
		c.joinConfined(pidfdOfTarget, failed)
		c.Place(failed)
		c.reportFailure()
		return
	}
	c.setnsOf(pidfdOfTarget, c.namespaces.joined&^unix.CLONE_NEWCGROUP)
	if c.inUserNamespace() {
		c.Syscall("stay undumpable", unix.SYS_PRCTL, Const(unix.PR_SET_DUMPABLE).As("PR_SET_DUMPABLE"), Const(0))
	}
	pid, pidfd := c.NewSlot("payload"), c.NewSlot("pidfd")
	c.clone(pid, pidfd)
	c.Branch(pid.Value(), Equal, Const(0), child)

	c.supervise(pid, pidfd, child, keepFiles{})

	c.Place(child)
	c.FailTo(failed)
	c.Syscall("start a session", unix.SYS_SETSID)
	c.dieWithJoiner()
	c.enterCgroups()
	if ns := c.namespaces.joined & unix.CLONE_NEWCGROUP; ns != 0 {
		c.setnsOf(pidfdOfTarget, ns)
	}
	c.becomeRoot()
	c.leaveKeyring()
	c.tuneSelf()
	c.joinTerminal()

	c.changeDirectory()
	c.setRlimits()
	c.closeFiles()
	c.setCredentials()
	c.execute()
	c.emitLater()

	c.Place(failed)
	c.reportFailure()
}

// reportFailure emits the end of a set-up that has failed.
func (c *compiler) reportFailure() {
	c.Syscall("report the error", unix.SYS_WRITE, c.prog.status, slotResult.Addr(), Const(statusSize)).Ignore()
	c.Syscall("exit", unix.SYS_EXIT_GROUP, Const(125)).Ignore()
}

func (c *compiler) setnsOf(pidfd Arg, flags uint64) {
	c.Syscall("join the container's namespaces", unix.SYS_SETNS, pidfd, Const(flags).As(cloneFlagNames(flags)))
}

// dieWithJoiner makes the kernel kill the payload when the joiner is killed, which nobody in the container can do. A
// change of user clears it, so it is set again after that.
func (c *compiler) dieWithJoiner() {
	if !c.prog.joins {
		return
	}
	c.Syscall("die with the joiner", unix.SYS_PRCTL, Const(unix.PR_SET_PDEATHSIG).As("PR_SET_PDEATHSIG"), Const(uint64(unix.SIGKILL)).As("SIGKILL"))
}

// tuneThroughHost emits what is written to /proc/self. The joiner does it, through the host's procfs: what a container
// has on its /proc may lead the writes elsewhere (CVE-2019-16884, CVE-2025-52881). The payload inherits all of it.
func (c *compiler) tuneThroughHost() {
	if !c.tunesThroughProc() {
		return
	}
	st, magic, wrong := c.Zeroed(sizeofStatfs), c.NewSlot("magic"), c.NewLabel()
	c.procFS, c.haveProc = c.NewSlot("proc"), true
	c.Syscall("open the host's /proc", unix.SYS_OPENAT, Int(unix.AT_FDCWD), c.Str("/proc"),
		Const(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC).As("O_PATH|O_DIRECTORY|O_CLOEXEC"), Const(0)).Into(c.procFS)
	c.Syscall("see what /proc is", unix.SYS_FSTATFS, c.procFS.Value(), st)
	c.Load(magic, 8, st, Const(0))
	c.Branch(magic.Value(), NotEqual, Const(unix.PROC_SUPER_MAGIC).As("PROC_SUPER_MAGIC"), wrong)
	c.tuneProc()
	// Nothing of the host's procfs reaches the payload.
	c.Syscall("close the host's files", unix.SYS_CLOSE_RANGE, c.procFS.Value(), Const(maxFD), Const(0))
	c.later(func() {
		c.Place(wrong)
		c.refuse("the importing program's /proc is no procfs")
	})
}

// sizeofStatfs is the size of struct statfs, whose first 8 bytes are the type.
const sizeofStatfs = 120
