package nsexec

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// payload emits everything that the container's first process does between clone3 and its program.
func (c *compiler) payload() {
	c.Syscall("make files with the modes asked for", unix.SYS_UMASK, Const(0))
	c.enterCgroups()
	c.join()
	c.becomeRoot()
	c.leaveKeyring()
	c.nameHost()
	c.loopback()

	c.attachRoot()
	c.mountAll()
	c.otherDevices()
	c.startTerminal()
	c.needProc()
	c.setSysctls()
	c.readonlyPaths()
	c.maskPaths()
	c.tuneProc()
	c.tuneSelf()
	c.enterRoot()

	c.changeDirectory()
	c.setRlimits()
	c.closeFiles()
	c.setCredentials()
	c.execute()

	c.emitLater()
}

// enterCgroups emits the entry into the cgroups of v1 hierarchies and the creation of the cgroup namespace, whose root
// they become. Writing 0 to a tasks file moves the calling thread, which is all of this process, and does not wait for
// other processors as a write to cgroup.procs does.
func (c *compiler) enterCgroups() {
	for _, f := range c.opts.Tasks {
		if f == nil {
			continue
		}
		c.Syscall("enter the cgroup of "+f.Name(), unix.SYS_WRITE, c.file(f.Name(), f), c.Str("0"), Const(1))
	}
	if c.namespaces.fresh&unix.CLONE_NEWCGROUP != 0 {
		c.Syscall("create a cgroup namespace", unix.SYS_UNSHARE, Const(unix.CLONE_NEWCGROUP).As("CLONE_NEWCGROUP"))
	}
}

// becomeRoot makes the payload root of its user namespace: until now it has the importing program's ids, which may have
// no name there, and could not own files.
func (c *compiler) becomeRoot() {
	if !c.inUserNamespace() {
		return
	}
	c.Syscall("become group 0 of the user namespace", unix.SYS_SETRESGID, Const(0), Const(0), Const(0))
	// Refused where setgroups is denied, as it is to unprivileged users; there are no groups to lose then.
	c.Syscall("leave the host's groups", unix.SYS_SETGROUPS, Const(0), Const(0)).Ignore()
	c.Syscall("become root of the user namespace", unix.SYS_SETRESUID, Const(0), Const(0), Const(0))
}

// leaveKeyring gives the container a session keyring of its own: the importing program's may hold credentials.
func (c *compiler) leaveKeyring() {
	result, special, left := c.NewSlot("keyring"), c.NewLabel(), c.NewLabel()
	c.Syscall("leave the host's session keyring", unix.SYS_KEYCTL, Const(unix.KEYCTL_JOIN_SESSION_KEYRING).As("KEYCTL_JOIN_SESSION_KEYRING"), Const(0)).
		Into(result).Else(special)
	c.Place(left)
	c.later(func() {
		// A kernel without keyrings has nothing to leave; a filter that forbids the call, such as that of a container
		// around the importing program, forbids the use of keyrings as well.
		c.Place(special)
		c.Branch(result.Value(), Equal, Errno(unix.ENOSYS), left)
		c.Branch(result.Value(), Equal, Errno(unix.EPERM), left)
		c.Jump(c.failTarget())
	})
}

func (c *compiler) nameHost() {
	if h := c.spec.Hostname; h != "" {
		c.Syscall("set the hostname to "+h, unix.SYS_SETHOSTNAME, c.Str(h), Int(len(h)))
	}
	if d := c.spec.Domainname; d != "" {
		c.Syscall("set the domainname to "+d, unix.SYS_SETDOMAINNAME, c.Str(d), Int(len(d)))
	}
}

func (c *compiler) checkNames() {
	for _, n := range []struct{ field, name string }{{"hostname", c.spec.Hostname}, {"domainname", c.spec.Domainname}} {
		switch {
		case n.name == "":
		case !c.namespaces.has(unix.CLONE_NEWUTS):
			c.invalid(n.field, "without a uts namespace it would be the host's")
		case len(n.name) > 64:
			c.invalid(n.field, "%d bytes, at most 64 are possible", len(n.name))
		case strings.IndexByte(n.name, 0) >= 0:
			c.invalid(n.field, "%q has a NUL byte", n.name)
		}
	}
}

// loopback brings the loopback interface of a new network namespace up.
func (c *compiler) loopback() {
	if c.namespaces.fresh&unix.CLONE_NEWNET == 0 {
		return
	}
	socket := c.NewSlot("socket")
	ifreq := make([]byte, 40) // struct ifreq: the name, then the flags
	copy(ifreq, "lo")
	ifreq[16] = unix.IFF_UP
	c.Syscall("open a socket to bring lo up", unix.SYS_SOCKET, Const(unix.AF_INET).As("AF_INET"),
		Const(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC).As("SOCK_DGRAM|SOCK_CLOEXEC"), Const(0)).Into(socket)
	c.Syscall("bring lo up", unix.SYS_IOCTL, socket.Value(), Const(unix.SIOCSIFFLAGS).As("SIOCSIFFLAGS"), c.Bytes(ifreq).As("{lo, IFF_UP}"))
}

// needProc makes a procfs that nobody else sees, if the plan has to write to /proc and the container has none of the
// right kind. Writes through it cannot be redirected by what an image or another container mounted (CVE-2025-52881).
func (c *compiler) needProc() {
	if c.haveProc || len(c.spec.Linux.Sysctl) == 0 && !c.tunesThroughProc() {
		return
	}
	fs := c.temp("fs")
	c.procFS, c.haveProc = c.NewSlot("proc"), true
	const label = "make a private procfs"
	c.newFS(label, "proc", fs)
	c.createFS(label, fs, c.procFS, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}

// writeProc writes a file of our own procfs.
func (c *compiler) writeProc(label, file, value string) {
	fd := c.temp("fd")
	resolve := uint64(ownFiles)
	if strings.HasPrefix(file, "self/") {
		resolve &^= unix.RESOLVE_NO_SYMLINKS // /proc/self is one
	}
	c.openat2(label, c.procFS.Value(), c.Str(file), unix.O_WRONLY, resolve).Into(fd)
	c.Syscall(label, unix.SYS_WRITE, fd.Value(), c.Str(value), Int(len(value)))
}

// namespacedSysctl knows the settings that belong to the ipc namespace.
func namespacedSysctl(name string) bool {
	switch name {
	case "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
		"kernel.shm_rmid_forced", "kernel.msg_next_id", "kernel.sem_next_id", "kernel.shm_next_id", "kernel.auto_msgmni":
		return true
	}
	return strings.HasPrefix(name, "fs.mqueue.")
}

func (c *compiler) checkSysctl() {
	c.checkNames()
	for key, value := range c.spec.Linux.Sysctl {
		field := "linux.sysctl." + key
		if strings.IndexByte(value, 0) >= 0 || strings.IndexByte(value, '\n') >= 0 {
			c.invalid(field, "the value %q has a NUL byte or line end", value)
		}
		name := sysctlName(key)
		ok, missing := false, ""
		switch {
		case !validSysctl(key):
			c.invalid(field, "not a name of letters, digits, -, _ and single dots or slashes")
		case namespacedSysctl(name):
			if ok = c.namespaces.has(unix.CLONE_NEWIPC); !ok {
				missing = "ipc"
			}
		case strings.HasPrefix(name, "net."):
			if ok = c.namespaces.has(unix.CLONE_NEWNET); !ok {
				missing = "network"
			}
		case name == "kernel.domainname":
			if ok = c.namespaces.has(unix.CLONE_NEWUTS); !ok {
				missing = "uts"
			}
		case name == "kernel.hostname":
			c.invalid(field, "use hostname")
		}
		if missing != "" {
			c.invalid(field, "without a %s namespace it would be the host's", missing)
		} else if !ok {
			c.invalid(field, "not a setting of a namespace: it would be the host's")
		}
	}
}

// validSysctl keeps everything out that could lead elsewhere in a path (CVE-2022-0811).
func validSysctl(key string) bool {
	separator := true
	for i := range len(key) {
		switch b := key[i]; {
		case b == '.' || b == '/':
			if separator {
				return false
			}
			separator = true
			continue
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9', b == '_', b == '-', b == '@', b == ':':
		default:
			return false
		}
		separator = false
	}
	return !separator && len(key) < 256
}

// sysctlName is the name with dots between its parts. As with sysctl(8), the separator that comes first separates, and
// the other one stands for itself: net.ipv4.conf.eth0/1.forwarding is for the interface eth0.1.
func sysctlName(key string) string {
	if i := strings.IndexAny(key, "./"); i < 0 || key[i] == '.' {
		return key
	}
	return strings.Map(swapSeparators, key)
}

func swapSeparators(r rune) rune {
	switch r {
	case '.':
		return '/'
	case '/':
		return '.'
	}
	return r
}

// setSysctls writes them in order, so that plans of equal specs are equal.
func (c *compiler) setSysctls() {
	if len(c.spec.Linux.Sysctl) == 0 {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(c.spec.Linux.Sysctl)) {
		file := strings.Map(swapSeparators, sysctlName(key))
		c.writeProc("set the sysctl "+key, "sys/"+file, c.spec.Linux.Sysctl[key])
	}
}

// tunesThroughProc says whether a process has to write to its own files in /proc.
func (c *compiler) tunesThroughProc() bool {
	p := c.spec.Process
	return p.OOMScoreAdj != nil || p.ApparmorProfile != "" || p.SelinuxLabel != ""
}

// tuneProc emits what a process sets for itself in /proc.
func (c *compiler) tuneProc() {
	p := c.spec.Process
	self := c.haveProc && c.inUserNamespace() && !c.prog.joins && c.tunesThroughProc()
	if self {
		// The files in /proc/self of an undumpable process belong to the host's root. There is nobody else in a new
		// user namespace who could use the moment.
		c.Syscall("own our files in /proc", unix.SYS_PRCTL, Const(unix.PR_SET_DUMPABLE).As("PR_SET_DUMPABLE"), Const(1))
	}
	if p.OOMScoreAdj != nil {
		v := strconv.Itoa(*p.OOMScoreAdj)
		c.writeProc("set oom_score_adj to "+v+" (less than the present value needs CAP_SYS_RESOURCE)", "self/oom_score_adj", v)
	}
	c.setLabels()
	if self {
		c.Syscall("become undumpable again", unix.SYS_PRCTL, Const(unix.PR_SET_DUMPABLE).As("PR_SET_DUMPABLE"), Const(0))
	}
}

// tuneSelf emits what a process may set for itself only while it is privileged.
func (c *compiler) tuneSelf() {
	if d := c.spec.Linux.Personality; d != nil {
		domain := Const(0).As("PER_LINUX")
		if d.Domain == specs.PerLinux32 {
			domain = Const(8).As("PER_LINUX32")
		}
		c.Syscall("set the personality", unix.SYS_PERSONALITY, domain)
	}
	c.setScheduler()
}
