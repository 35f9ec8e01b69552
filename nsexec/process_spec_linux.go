package nsexec

import (
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// rlimits by number; resource.h has the same ones on amd64 and arm64.
var rlimits = [...]string{
	"RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_CORE", "RLIMIT_RSS", "RLIMIT_NPROC", "RLIMIT_NOFILE",
	"RLIMIT_MEMLOCK", "RLIMIT_AS", "RLIMIT_LOCKS", "RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_RTPRIO",
	"RLIMIT_RTTIME",
}

// schedulerPolicies by number; linux/sched.h.
var schedulerPolicies = [...]specs.LinuxSchedulerPolicy{
	specs.SchedOther, specs.SchedFIFO, specs.SchedRR, specs.SchedBatch, specs.SchedISO, specs.SchedIdle, specs.SchedDeadline,
}

// schedulerFlags by bit; linux/sched.h.
var schedulerFlags = [...]specs.LinuxSchedulerFlag{
	specs.SchedFlagResetOnFork, specs.SchedFlagReclaim, specs.SchedFlagDLOverrun, specs.SchedFlagKeepPolicy, specs.SchedFlagKeepParams,
}

// ioClasses by number; ioprio_set(2).
var ioClasses = [...]specs.IOPriorityClass{"", specs.IOPRIO_CLASS_RT, specs.IOPRIO_CLASS_BE, specs.IOPRIO_CLASS_IDLE}

func (c *compiler) checkProcess() {
	p := c.spec.Process
	c.checkTerminal()
	if len(p.Args) == 0 || p.Args[0] == "" {
		c.invalid("process.args", "no program to execute")
	}
	c.checkStrings("process.args", p.Args)
	c.checkStrings("process.env", p.Env)
	if p.CommandLine != "" {
		c.unsupported("process.commandLine", "a command line of Windows")
	}
	if p.Cwd == "" {
		c.invalid("process.cwd", "missing")
	} else {
		c.absolute("process.cwd", p.Cwd)
	}
	c.checkUser(&p.User)
	for i, l := range p.Rlimits {
		field := index("process.rlimits", i)
		if !slices.Contains(rlimits[:], l.Type) {
			c.invalid(field+".type", "unknown limit %q", l.Type)
		}
		if l.Soft > l.Hard {
			c.invalid(field+".soft", "%d is above the hard limit %d", l.Soft, l.Hard)
		}
		for _, other := range p.Rlimits[:i] {
			if other.Type == l.Type {
				c.invalid(field+".type", "%s appears twice", l.Type)
			}
		}
	}
	if a := p.OOMScoreAdj; a != nil && (*a < -1000 || *a > 1000) {
		c.invalid("process.oomScoreAdj", "%d is not within -1000 and 1000", *a)
	}
	if s := p.Scheduler; s != nil {
		if !slices.Contains(schedulerPolicies[:], s.Policy) {
			c.invalid("process.scheduler.policy", "unknown policy %q", s.Policy)
		}
		for i, f := range s.Flags {
			if !slices.Contains(schedulerFlags[:], f) {
				c.unsupported(index("process.scheduler.flags", i), "scheduler flag "+strconv.Quote(string(f)))
			}
		}
	}
	if io := p.IOPriority; io != nil {
		if io.Class == "" || !slices.Contains(ioClasses[:], io.Class) {
			c.invalid("process.ioPriority.class", "unknown class %q", io.Class)
		}
		if io.Priority < 0 || io.Priority > 7 {
			c.invalid("process.ioPriority.priority", "%d is not within 0 and 7", io.Priority)
		}
	}
	if p.ExecCPUAffinity != nil {
		c.unsupported("process.execCPUAffinity", "CPU affinity of processes that join a container")
	}
	if d := c.spec.Linux.Personality; d != nil {
		if d.Domain != specs.PerLinux && d.Domain != specs.PerLinux32 {
			c.invalid("linux.personality.domain", "unknown domain %q", d.Domain)
		}
		if len(d.Flags) > 0 {
			c.unsupported("linux.personality.flags", "personality flags")
		}
	}
	c.checkLabels()
	c.checkCapabilities()
	if !c.compiled {
		c.compileSeccomp()
	}
}

func (c *compiler) checkStrings(field string, list []string) {
	for i, s := range list {
		if strings.IndexByte(s, 0) >= 0 {
			c.invalid(index(field, i), "%q has a NUL byte", s)
		}
		// MAX_ARG_STRLEN, execve(2).
		if len(s) >= 128<<10 {
			c.invalid(index(field, i), "%d bytes, at most %d are possible", len(s), 128<<10-1)
		}
	}
}

const noID = 1<<32 - 1 // means "unchanged" to setresuid and setresgid

func (c *compiler) checkUser(u *specs.User) {
	if u.UID == noID {
		c.invalid("process.user.uid", "%d is not an id", u.UID)
	}
	if u.GID == noID {
		c.invalid("process.user.gid", "%d is not an id", u.GID)
	}
	for i, g := range u.AdditionalGids {
		if g == noID {
			c.invalid(index("process.user.additionalGids", i), "%d is not an id", g)
		}
	}
	if len(u.AdditionalGids) > 1<<16 {
		c.invalid("process.user.additionalGids", "%d groups, at most 65536 are possible", len(u.AdditionalGids))
	}
	if u.Username != "" {
		c.unsupported("process.user.username", "user names of Windows")
	}
	if u.Umask != nil && *u.Umask > 0o777 {
		c.invalid("process.user.umask", "%#o is above 0777", *u.Umask)
	}
}

func (c *compiler) setRlimits() {
	for _, l := range c.spec.Process.Rlimits {
		c.Syscall("set "+l.Type+" (raising a hard limit needs CAP_SYS_RESOURCE)", unix.SYS_PRLIMIT64, Const(0),
			Int(slices.Index(rlimits[:], l.Type)).As(l.Type), c.Words(Const(l.Soft), Const(l.Hard)).
				As("{"+strconv.FormatUint(l.Soft, 10)+", "+strconv.FormatUint(l.Hard, 10)+"}"), Const(0))
	}
}

func (c *compiler) setScheduler() {
	if s := c.spec.Process.Scheduler; s != nil {
		var flags uint64
		for _, f := range s.Flags {
			flags |= 1 << slices.Index(schedulerFlags[:], f)
		}
		// struct sched_attr, sched_setattr(2).
		attr := c.Words(
			Const(48|uint64(slices.Index(schedulerPolicies[:], s.Policy))<<32), Const(flags),
			Const(uint64(uint32(s.Nice))|uint64(uint32(s.Priority))<<32), Const(s.Runtime), Const(s.Deadline), Const(s.Period))
		c.Syscall("set the scheduler to "+string(s.Policy), unix.SYS_SCHED_SETATTR, Const(0), attr, Const(0))
	}
	if p := c.spec.Process.IOPriority; p != nil {
		const whoProcess, classShift = 1, 13
		c.Syscall("set the I/O priority", unix.SYS_IOPRIO_SET, Const(whoProcess), Const(0), Int(slices.Index(ioClasses[:], p.Class)<<classShift|p.Priority))
	}
}

// Security modules of the running kernel.
var (
	haveAppArmor = sync.OnceValue(func() bool {
		b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
		return err == nil && len(b) > 0 && b[0] == 'Y'
	})
	haveSELinux = sync.OnceValue(func() bool {
		_, err := os.Stat("/sys/fs/selinux/enforce")
		return err == nil
	})
)

func (c *compiler) checkLabels() {
	p := c.spec.Process
	if l := p.ApparmorProfile; l != "" && l != "unconfined" && !haveAppArmor() {
		c.unsupported("process.apparmorProfile", "this kernel has no AppArmor enabled: profile "+strconv.Quote(l))
	}
	if p.SelinuxLabel != "" && !haveSELinux() {
		c.unsupported("process.selinuxLabel", "this kernel has no SELinux enabled: label "+strconv.Quote(p.SelinuxLabel))
	}
	c.checkStrings("process.apparmorProfile", []string{p.ApparmorProfile})
	c.checkStrings("process.selinuxLabel", []string{p.SelinuxLabel})
}

// setLabels emits the labels that the next execve takes.
func (c *compiler) setLabels() {
	p := c.spec.Process
	if l := p.ApparmorProfile; l != "" && haveAppArmor() {
		// Since Linux 5.8 every module has its own directory; attr/exec belongs to the first one.
		c.writeProc("set the AppArmor profile "+l+" (is it loaded?)", "self/attr/apparmor/exec", "exec "+l)
	}
	if p.SelinuxLabel != "" {
		c.writeProc("set the SELinux label "+p.SelinuxLabel, "self/attr/exec", p.SelinuxLabel)
	}
}

// changeDirectory enters the working directory. The path is resolved without magic links: a path such as
// /proc/self/fd/7 would lead out of the container while the plan's descriptors are open (CVE-2024-21626).
func (c *compiler) changeDirectory() {
	cwd := path.Clean(c.spec.Process.Cwd)
	if cwd == "/" {
		return
	}
	c.cwdAgain = c.NewSlot("again")
	// A directory that root may not enter, on a network filesystem or in a user namespace, the user may.
	c.enterDirectory(cwd, func(fd Slot) {
		yes := c.NewLabel()
		c.Branch(fd.Value(), Equal, Errno(unix.EACCES), yes)
		c.Branch(fd.Value(), NotEqual, Errno(unix.EPERM), c.failTarget())
		c.Place(yes)
		c.Add(c.cwdAgain, Const(1), Const(0))
	})
}

func (c *compiler) enterDirectory(cwd string, denied func(fd Slot)) {
	fd := c.NewSlot("cwd")
	label := "enter the working directory " + cwd
	special, retry, done := c.NewLabel(), c.NewLabel(), c.NewLabel()
	c.Place(retry)
	c.openat2(label, Int(unix.AT_FDCWD), c.Str(cwd), unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_MAGICLINKS).Into(fd).Else(special)
	chdir := c.Syscall(label, unix.SYS_FCHDIR, fd.Value())
	var refused Label
	if denied != nil {
		refused = c.NewLabel()
		chdir.Into(fd).Else(refused)
	}
	c.Place(done)
	c.later(func() {
		c.Place(special)
		denial := c.NewLabel()
		c.Branch(fd.Value(), NotEqual, Errno(unix.EAGAIN), denial)
		c.retry(fd, retry)
		c.Place(denial)
		if denied == nil {
			c.Jump(c.failTarget())
			return
		}
		c.Place(refused)
		denied(fd)
		c.Jump(done)
	})
}

// changeDirectoryAgain is the second attempt, as the user.
func (c *compiler) changeDirectoryAgain() {
	cwd := path.Clean(c.spec.Process.Cwd)
	if cwd == "/" {
		return
	}
	again, entered := c.NewLabel(), c.NewLabel()
	c.Branch(c.cwdAgain.Value(), NotEqual, Const(0), again)
	c.Place(entered)
	c.later(func() {
		c.Place(again)
		c.enterDirectory(cwd, nil)
		c.Jump(entered)
	})
}

// closeFiles keeps everything but the standard streams from the program, and sets its umask. It comes before the filter,
// which may allow nothing of the kind.
func (c *compiler) closeFiles() {
	c.Syscall("let nothing but the standard streams through", unix.SYS_CLOSE_RANGE, Const(firstFile), Const(maxFD),
		Const(unix.CLOSE_RANGE_CLOEXEC).As("CLOSE_RANGE_CLOEXEC"))
	umask := uint64(0o022)
	if u := c.spec.Process.User.Umask; u != nil {
		umask = uint64(*u)
	}
	c.Syscall("set the umask", unix.SYS_UMASK, Const(umask).As("0"+strconv.FormatUint(umask, 8)))
}

// execute emits the last steps of all.
func (c *compiler) execute() {
	p := c.spec.Process
	if p.NoNewPrivileges {
		c.installSeccomp()
	}
	if c.opts.Init {
		c.becomeInit()
	}
	c.ready()
	argv, env := c.Vector(p.Args), c.Vector(p.Env)
	name := p.Args[0]
	label := execLabel + name
	if strings.IndexByte(name, '/') >= 0 {
		c.Syscall(label, unix.SYS_EXECVE, c.Str(name), argv, env)
		c.Jump(c.failTarget())
		return
	}
	// As execvp(3): what is not there, or not reachable, is passed over; EACCES is remembered; the rest is final.
	denied, result := c.NewSlot("denied"), c.NewSlot("result")
	for i, candidate := range searchPath(name, p.Env) {
		next, found := c.NewLabel(), c.NewLabel()
		if i == maxCandidates {
			break
		}
		c.Syscall(label, unix.SYS_EXECVE, c.Str(candidate), argv, env).Into(result).Else(found)
		c.Place(found)
		for _, e := range []unix.Errno{unix.ENOENT, unix.ENOTDIR, unix.ESTALE, unix.ENODEV, unix.ETIMEDOUT} {
			c.Branch(result.Value(), Equal, Errno(e), next)
		}
		c.Branch(result.Value(), NotEqual, Errno(unix.EACCES), c.failTarget())
		c.Add(denied, Const(1), Const(0))
		c.Place(next)
	}
	last := c.NewLabel()
	c.Branch(denied.Value(), Equal, Const(0), last)
	c.Add(slotResult, Errno(unix.EACCES), Const(0))
	c.Place(last)
	c.Jump(c.failTarget())
}

// maxCandidates bounds the search for a program.
const maxCandidates = 256

// defaultPath is searched where the container's environment has no PATH, as by Docker.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// searchPath lists where a program without a slash in its name may be.
func searchPath(name string, env []string) []string {
	dirs := defaultPath
	for _, e := range slices.Backward(env) {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			dirs = v
			break
		}
	}
	list := make([]string, 0, 8)
	for dir := range strings.SplitSeq(dirs, ":") {
		if dir == "" {
			dir = "." // POSIX: the working directory
		}
		list = append(list, dir+"/"+name)
	}
	return list
}
