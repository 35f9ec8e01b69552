package nsexec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
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
	// Init puts an init in front of the program: the container's first process executes the program in a child, forwards
	// signals to it and reaps what nobody waits for. It exits with the program's code, or with 128 and the number of the
	// signal that ended it. It is subject to the seccomp filter: one that forbids clone makes the start fail, one that
	// forbids rt_sigtimedwait makes it forward nothing.
	Init bool
	// Connect is called with a pidfd of the first process of a container whose network and user namespaces are new, before
	// anything is done there: the network namespace belongs to the user namespace, so it cannot be made and joined. An error
	// ends the start.
	Connect func(ctx context.Context, pidfd *os.File) error

	// Log makes the guard write what the program writes to its streams into files.
	Log *Log
	// Keeper makes the guard, and with it the program, outlive the importing program: see [Launcher.StartDetached].
	Keeper *Keeper
	// Input makes the guard take messages.
	Input *Input
}

// Compile turns a runtime spec into a program that [Launcher.Start] runs. The spec is read and not kept.
//
// All of the spec is checked before: an error is a *SpecError that names the field. Namespaces to join are opened here
// and belong to the Program. Bind sources and the root's path are opened while the container starts, in its mount
// namespace, so that they may change between two starts; only for a new user namespace, whose root could not reach
// them, they are opened here, and the Program can be started once.
//
// A mount point that is missing is made, in the root filesystem or in what is mounted there. Without a mount on /dev the
// container gets one. Relative paths (root.path, sources of bind mounts) are errors: only the caller knows the bundle
// that they are relative to.
//
// Resources and cgroupsPath are the business of whoever makes the cgroup and passes it in the options; hooks are the
// business of whoever starts the program. Annotations change nothing.
func Compile(spec *specs.Spec, opts *Options) (*Program, error) {
	if opts == nil {
		opts = &Options{}
	}
	c := &compiler{spec: spec, opts: opts, Plan: &Plan{}}
	c.prog = &Program{Plan: c.Plan}
	c.reserve(640)
	c.check()
	if c.bad == nil {
		c.guard(c.payload)
		c.setFileCount()
	}
	err := c.bad
	if err == nil {
		err = c.Plan.Err()
	}
	if err != nil {
		c.prog.Close()
		return nil, err
	}
	return c.prog, nil
}

// compiler carries one spec through compilation.
type compiler struct {
	*Plan
	spec *specs.Spec
	opts *Options
	prog *Program
	bad  error // the first *SpecError

	hygieneStep int // see setFileCount

	// What check understood of the spec.
	namespaces namespaces
	mounts     []mount
	devices    []device
	caps       capabilities
	filter     *filter // the seccomp profile, compiled
	compiled   bool    // filter was there before
	traceable  bool    // the container that is joined has CAP_SYS_PTRACE
	crowded    bool    // so much is opened that descriptors have to be closed on the way

	// Where the plan keeps what later steps need.
	root         Slot // the container's root, as a mount
	procFS       Slot // our own procfs: the container's, or a private one
	haveProc     bool
	procOnProc   bool // procFS is what the container has on /proc
	dev          Slot // the container's /dev, if the plan mounts it
	haveDev      bool
	cwd          Slot   // the directory that the plan changed to last
	cwdAgain     Slot   // whether the working directory is to be entered as the user
	hostRelation uint64 // see hostPropagation
	retries      Slot   // how often openat2 was interrupted by renames
	haveRetry    bool

	temps map[string]Slot // see temp
	hows  map[how]Arg     // one struct open_how of each kind
	final []func()        // steps after all mounts: attributes that were put off
	late  []func()        // steps off the usual path, laid out behind it
}

// reserve makes room for a usual plan at once.
func (c *compiler) reserve(steps int) {
	c.steps = make([]step, 0, steps)
	c.data = make([]byte, 0, 24*steps)
	c.labels = make([]int, 0, steps/3)
}

// temp is a slot for a value that is not needed for longer than the steps of one mount, device or file. All of a name
// share one.
func (c *compiler) temp(name string) Slot {
	s, ok := c.temps[name]
	if !ok {
		if c.temps == nil {
			c.temps = make(map[string]Slot, 16)
		}
		s = c.NewSlot(name)
		c.temps[name] = s
	}
	return s
}

// invalid records that a field cannot be compiled.
func (c *compiler) invalid(field, format string, args ...any) {
	if c.bad == nil {
		c.bad = &SpecError{field, fmt.Errorf(format, args...)}
	}
}

// unsupported records that a field asks for what the package does not do.
func (c *compiler) unsupported(field, what string) {
	if c.bad == nil {
		c.bad = &SpecError{field, fmt.Errorf("%s: %w", what, errors.ErrUnsupported)}
	}
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

// check validates what does not belong to one of the parts of the payload, which check their own.
func (c *compiler) check() {
	s := c.spec
	if s == nil {
		c.invalid("", "there is no spec")
		return
	}
	if v := s.Version; v != "" && !strings.HasPrefix(v, "1.") {
		c.unsupported("ociVersion", "version "+strconv.Quote(v)+" of the runtime specification")
	}
	for _, other := range []struct {
		field string
		there bool
	}{{"solaris", s.Solaris != nil}, {"windows", s.Windows != nil}, {"vm", s.VM != nil}, {"zos", s.ZOS != nil}, {"freebsd", s.FreeBSD != nil}} {
		if other.there {
			c.unsupported(other.field, "another platform than linux")
		}
	}
	if h := s.Hooks; h != nil {
		for _, hooks := range []struct {
			field string
			n     int
		}{
			{"prestart", len(h.Prestart)}, {"createRuntime", len(h.CreateRuntime)}, {"createContainer", len(h.CreateContainer)},
			{"startContainer", len(h.StartContainer)}, {"poststart", len(h.Poststart)}, {"poststop", len(h.Poststop)},
		} {
			if hooks.n > 0 {
				c.unsupported("hooks."+hooks.field, "hooks")
			}
		}
	}
	if s.Linux == nil {
		c.invalid("linux", "missing")
		return
	}
	if s.Process == nil {
		c.invalid("process", "missing")
		return
	}
	if s.Root == nil && c.opts.Root == nil {
		c.invalid("root", "missing, and no mount is given in its place")
		return
	}
	l := s.Linux
	if l.IntelRdt != nil {
		c.unsupported("linux.intelRdt", "resource director technology")
	}
	if l.MemoryPolicy != nil {
		c.unsupported("linux.memoryPolicy", "NUMA memory policies")
	}
	if len(l.NetDevices) > 0 {
		c.unsupported("linux.netDevices", "moving network devices")
	}
	if l.MountLabel != "" {
		c.unsupported("linux.mountLabel", "SELinux labels of mounts")
	}
	c.checkNamespaces()
	if n := c.namespaces.fresh; c.opts.Connect != nil && (n&unix.CLONE_NEWUSER == 0 || n&unix.CLONE_NEWNET == 0) {
		c.invalid("linux.namespaces", "Connect is for a new network namespace of a new user namespace")
	}
	c.prog.connect = c.opts.Connect
	c.checkProcess()
	c.checkMounts()
	c.checkRootfs()
	c.checkDevices()
	c.checkSysctl()
	c.crowded = len(c.mounts)+len(l.MaskedPaths)+len(l.ReadonlyPaths)+len(l.Devices) > crowd
}

// absolute checks a path inside the container and returns it cleaned.
func (c *compiler) absolute(field, p string) string {
	switch {
	case p == "":
		c.invalid(field, "empty path")
	case p[0] != '/':
		c.invalid(field, "%q is not an absolute path", p)
	case strings.IndexByte(p, 0) >= 0:
		c.invalid(field, "%q has a NUL byte", p)
	case len(p) >= unix.PathMax:
		c.invalid(field, "path of %d bytes, at most %d are possible", len(p), unix.PathMax-1)
	}
	return path.Clean(p)
}

// index names an element of an array in a SpecError.
func index(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

// later puts steps behind the usual path.
func (c *compiler) later(emit func()) { c.late = append(c.late, emit) }

// emitLater lays out what later collected.
func (c *compiler) emitLater() {
	for len(c.late) > 0 {
		late := c.late
		c.late = nil
		for _, emit := range late {
			emit()
		}
	}
}

// refuse ends the set-up because of something that was found, with EINVAL: there is no prctl of this number.
func (c *compiler) refuse(why string) {
	c.Syscall(why, unix.SYS_PRCTL, Int(-1))
	c.Jump(c.failTarget())
}
