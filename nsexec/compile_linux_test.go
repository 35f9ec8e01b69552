package nsexec

import (
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

// portable makes a spec whose plan is the same on every machine: DefaultSpec looks at the processors, plans at the
// hierarchies of the host.
func portable() *specs.Spec {
	s := DefaultSpec()
	s.Root.Path = "/rootfs"
	s.Process.Args = []string{"/bin/true"}
	s.Process.OOMScoreAdj = new(int)
	s.Linux.MaskedPaths = append([]string(nil), defaultMaskedPaths[:]...)
	for i := range s.Mounts {
		if s.Mounts[i].Type == "cgroup" {
			s.Mounts[i].Type = "cgroup2"
		}
	}
	s.Linux.Seccomp = nil
	return s
}

// TestGolden compares the listings of plans with those in testdata. They show what each step of a container's start is:
// read default.golden first.
func TestGolden(t *testing.T) {
	mappings := []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
	for _, test := range []struct {
		name   string
		change func(*specs.Spec)
	}{
		{"default", func(s *specs.Spec) {}},
		{"minimal", func(s *specs.Spec) {
			s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil, nil
			s.Linux.Namespaces = s.Linux.Namespaces[:1]
			s.Process.OOMScoreAdj = nil
		}},
		{"readonly", func(s *specs.Spec) {
			s.Root.Readonly = true
			s.Mounts[1].Options = append(s.Mounts[1].Options, "ro")
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
			s.Linux.RootfsPropagation = "rshared"
		}},
		{"user", func(s *specs.Spec) {
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
			s.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{4, 5}}
			s.Process.Cwd = "/home/user"
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 4096}}
			s.Process.Args = []string{"program", "argument"}
			s.Hostname, s.Domainname = "box", "example"
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}}}
		}},
		{"nonewprivs", func(s *specs.Spec) {
			s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil, nil
			s.Process.User = specs.User{UID: 1000, GID: 1000}
			s.Process.NoNewPrivileges = true
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}}}
		}},
		{"userns", func(s *specs.Spec) {
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings, s.Linux.GIDMappings = mappings, mappings
			s.Root.Path = "/" // is opened while compiling
		}},
		{"mounts", func(s *specs.Spec) {
			s.Mounts = []specs.Mount{
				{Destination: "/a/b", Type: "bind", Source: "/src", Options: []string{"rbind", "ro", "rslave"}},
				{Destination: "/c", Type: "tmpfs", Options: []string{"ro", "size=1m", "sync"}},
				{Destination: "/d", Type: "tmpfs", Options: []string{"tmpcopyup"}},
				{Destination: "/e", Type: "nfs", Source: "server:/path", Options: []string{"noatime", "addr=192.0.2.1"}},
				{Destination: "/a/b", Options: []string{"remount", "bind", "nosuid"}},
			}
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = []string{"/secret"}, []string{"/etc"}
		}},
		{"init", func(s *specs.Spec) {
			s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil, nil
			s.Process.OOMScoreAdj = nil
		}},
		{"sysctl", func(s *specs.Spec) {
			s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil, nil
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "4096", "net/ipv4/conf/eth0.1/forwarding": "1"}
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5}
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE}
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 5}, "boottime": {Secs: -7, Nanosecs: 1}}
		}},
		{"terminal", func(s *specs.Spec) {
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = []string{"/proc/kcore"}, nil
			s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Height: 24, Width: 80}
			s.Process.User = specs.User{UID: 1000, GID: 1000}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := portable()
			test.change(s)
			if test.name == "userns" && os.Geteuid() != 0 {
				requireRoot(t)
			}
			var opts *Options
			if test.name == "init" {
				opts = &Options{Init: true}
			}
			prog, err := Compile(s, opts)
			if err != nil {
				t.Fatal(err)
			}
			defer prog.Close()
			golden(t, test.name, prog)
		})
	}
}

// TestGoldenJoin compares the listings of plans that join a container: read join.golden first.
func TestGoldenJoin(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*specs.Spec)
		opts   Options
	}{
		{"join", func(*specs.Spec) {}, Options{}},
		{"join-traceable", traceableSpec, Options{Tasks: []*os.File{named(t, "/sys/fs/cgroup/pids/box/tasks")}}},
		{"join-all", func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{4, 5}}
			s.Process.Cwd = "/home/user"
			s.Process.Args = []string{"program", "argument"}
			s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Height: 24, Width: 80}
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}}}
		}, Options{Cgroup: named(t, "cgroup"), Tasks: []*os.File{named(t, "/sys/fs/cgroup/pids/box/tasks")}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := portable()
			test.change(s)
			if test.name == "join-traceable" {
				s.Linux.Seccomp = nil
			}
			target := &Target{spec: specs.Spec{Linux: s.Linux}, opts: test.opts, pidfd: named(t, "pidfd"), traceable: traceable(s)}
			if err := target.prepare(); err != nil {
				t.Fatal(err)
			}
			prog, err := target.Compile(s.Process)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, test.name, prog)
		})
	}
}

// named is an open file with a name of its own.
func named(t *testing.T, name string) *os.File {
	fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	return f
}

// golden compares the listing of a plan with the file of the name.
func golden(t *testing.T, name string, prog *Program) {
	t.Helper()
	got := prog.Plan.String()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the plan differs from %s (see it with git diff after go test -update):\n%s", path, firstDifference(got, string(want)))
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return "line " + strconv.Itoa(i+1) + "\n got " + g[i] + "\nwant " + w[i]
		}
	}
	return "one is longer"
}

// TestMountOptions has every option of config.md, "Linux mount options".
func TestMountOptions(t *testing.T) {
	const (
		ro, nosuid, nodev, noexec = unix.MOUNT_ATTR_RDONLY, unix.MOUNT_ATTR_NOSUID, unix.MOUNT_ATTR_NODEV, unix.MOUNT_ATTR_NOEXEC
		noatime, strict, nodir    = unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR_NODIRATIME
		nofollow, atimes          = unix.MOUNT_ATTR_NOSYMFOLLOW, unix.MOUNT_ATTR__ATIME
	)
	for _, test := range []struct {
		options string
		want    mount
	}{
		{"defaults", mount{}},
		{"ro", mount{set: ro}}, {"rw", mount{clear: ro}}, {"ro rw", mount{clear: ro}}, {"rw ro", mount{set: ro}},
		{"nosuid", mount{set: nosuid}}, {"suid", mount{clear: nosuid}},
		{"nodev", mount{set: nodev}}, {"dev", mount{clear: nodev}},
		{"noexec", mount{set: noexec}}, {"exec", mount{clear: noexec}},
		{"nodiratime", mount{set: nodir}}, {"diratime", mount{clear: nodir}},
		{"nosymfollow", mount{set: nofollow}}, {"symfollow", mount{clear: nofollow}},
		{"noatime", mount{set: noatime, clear: atimes}}, {"atime", mount{clear: atimes}},
		{"strictatime", mount{set: strict, clear: atimes}}, {"nostrictatime", mount{clear: atimes}},
		{"relatime", mount{clear: atimes}}, {"norelatime", mount{clear: atimes}},
		{"noatime strictatime", mount{set: strict, clear: atimes}},
		{"rro", mount{setAll: ro}}, {"rrw", mount{clearAll: ro}},
		{"rnosuid", mount{setAll: nosuid}}, {"rsuid", mount{clearAll: nosuid}},
		{"rnodev", mount{setAll: nodev}}, {"rdev", mount{clearAll: nodev}},
		{"rnoexec", mount{setAll: noexec}}, {"rexec", mount{clearAll: noexec}},
		{"rnodiratime", mount{setAll: nodir}}, {"rdiratime", mount{clearAll: nodir}},
		{"rnosymfollow", mount{setAll: nofollow}}, {"rsymfollow", mount{clearAll: nofollow}},
		{"rnoatime", mount{setAll: noatime, clearAll: atimes}}, {"ratime", mount{clearAll: atimes}},
		{"rstrictatime", mount{setAll: strict, clearAll: atimes}}, {"rnostrictatime", mount{clearAll: atimes}},
		{"rrelatime", mount{clearAll: atimes}}, {"rnorelatime", mount{clearAll: atimes}},
		{"sync", mount{super: unix.MS_SYNCHRONOUS}}, {"sync async", mount{}},
		{"dirsync", mount{super: unix.MS_DIRSYNC}},
		{"lazytime", mount{super: unix.MS_LAZYTIME}}, {"lazytime nolazytime", mount{}},
		{"mand", mount{super: unix.MS_MANDLOCK}}, {"mand nomand", mount{}},
		{"iversion", mount{super: unix.MS_I_VERSION}}, {"iversion noiversion", mount{}},
		{"silent", mount{super: unix.MS_SILENT}}, {"silent loud", mount{}},
		{"private", mount{propagation: []uint64{unix.MS_PRIVATE}}},
		{"rprivate", mount{propagation: []uint64{unix.MS_PRIVATE | unix.MS_REC}}},
		{"slave rshared", mount{propagation: []uint64{unix.MS_SLAVE, unix.MS_SHARED | unix.MS_REC}}},
		{"shared", mount{propagation: []uint64{unix.MS_SHARED}}},
		{"rslave", mount{propagation: []uint64{unix.MS_SLAVE | unix.MS_REC}}},
		{"unbindable", mount{propagation: []uint64{unix.MS_UNBINDABLE}}},
		{"runbindable", mount{propagation: []uint64{unix.MS_UNBINDABLE | unix.MS_REC}}},
		{"bind", mount{kind: "bind"}}, {"rbind", mount{kind: "bind", recursive: true}},
		{"remount", mount{remount: true}}, {"tmpcopyup", mount{copyUp: true}},
		{"size=1m,mode=755,ro", mount{data: []string{"size=1m", "mode=755"}, set: ro}},
		{`context="a,b"`, mount{data: []string{`context="a,b"`}}},
	} {
		t.Run(test.options, func(t *testing.T) {
			c := &compiler{spec: &specs.Spec{Mounts: []specs.Mount{{
				Destination: "/x/../y/", Type: "tmpfs", Source: "/source", Options: strings.Fields(test.options),
			}}}, Plan: &Plan{}, opts: &Options{}}
			c.checkMount(0)
			if c.bad != nil {
				t.Fatal(c.bad)
			}
			got := c.mounts[0]
			if test.want.kind == "" {
				test.want.kind = "tmpfs"
			}
			test.want.field, test.want.source, test.want.dest = "mounts[0]", "/source", "/y"
			g, _ := json.Marshal(plain(got))
			w, _ := json.Marshal(plain(test.want))
			if string(g) != string(w) {
				t.Errorf("got  %s\nwant %s", g, w)
			}
		})
	}
}

func plain(m mount) map[string]any {
	return map[string]any{"field": m.field, "source": m.source, "dest": m.dest, "kind": m.kind, "set": m.set, "clear": m.clear,
		"setAll": m.setAll, "clearAll": m.clearAll, "super": m.super, "propagation": m.propagation, "data": m.data,
		"recursive": m.recursive, "remount": m.remount, "copyUp": m.copyUp}
}

func TestSpecErrors(t *testing.T) {
	mode := fs.FileMode(0o4755)
	withMount := func(m specs.Mount) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Mounts = append(s.Mounts[:0:0], m) }
	}
	withOptions := func(kind string, options ...string) func(*specs.Spec) {
		return withMount(specs.Mount{Destination: "/x", Type: kind, Source: "/s", Options: options})
	}
	withDevice := func(d specs.LinuxDevice) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{d} }
	}
	sysctl := func(key string) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{key: "1"} }
	}
	without := func(kind specs.LinuxNamespaceType, also func(*specs.Spec)) func(*specs.Spec) {
		return func(s *specs.Spec) {
			var kept []specs.LinuxNamespace
			for _, ns := range s.Linux.Namespaces {
				if ns.Type != kind {
					kept = append(kept, ns)
				}
			}
			s.Linux.Namespaces = kept
			also(s)
		}
	}
	for _, test := range []struct {
		name        string
		field       string
		unsupported bool
		change      func(*specs.Spec)
	}{
		{"version", "ociVersion", true, func(s *specs.Spec) { s.Version = "2.0.0" }},
		{"windows", "windows", true, func(s *specs.Spec) { s.Windows = &specs.Windows{} }},
		{"vm", "vm", true, func(s *specs.Spec) { s.VM = &specs.VM{} }},
		{"solaris", "solaris", true, func(s *specs.Spec) { s.Solaris = &specs.Solaris{} }},
		{"zos", "zos", true, func(s *specs.Spec) { s.ZOS = &specs.ZOS{} }},
		{"freebsd", "freebsd", true, func(s *specs.Spec) { s.FreeBSD = &specs.FreeBSD{} }},
		{"hook", "hooks.poststop", true, func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}}} }},
		{"no linux", "linux", false, func(s *specs.Spec) { s.Linux = nil }},
		{"no process", "process", false, func(s *specs.Spec) { s.Process = nil }},
		{"no root", "root", false, func(s *specs.Spec) { s.Root = nil }},
		{"relative root", "root.path", false, func(s *specs.Spec) { s.Root.Path = "rootfs" }},
		{"rdt", "linux.intelRdt", true, func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} }},
		{"numa", "linux.memoryPolicy", true, func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{} }},
		{"network device", "linux.netDevices", true, func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth1": {}} }},
		{"mount label", "linux.mountLabel", true, func(s *specs.Spec) { s.Linux.MountLabel = "x" }},
		{"namespace type", "linux.namespaces[0].type", true, func(s *specs.Spec) { s.Linux.Namespaces[0].Type = "syslog" }},
		{"namespace twice", "linux.namespaces[1].type", false, func(s *specs.Spec) { s.Linux.Namespaces[1].Type = "mount" }},
		{"namespace not there", "linux.namespaces", false, func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/no/such/ns" }},
		{"namespace of another type", "linux.namespaces", false, func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/proc/self/ns/uts" }},
		{"not a namespace", "linux.namespaces", false, func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/dev/null" }},
		{"join mounts", "linux.namespaces[0].path", true, func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/self/ns/mnt" }},
		{"no mount namespace", "linux.namespaces", false, without("mount", func(*specs.Spec) {})},
		{"no mappings", "linux.uidMappings", false, func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
		}},
		{"mappings only", "linux.uidMappings", false, func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }},
		{"offsets only", "linux.timeOffsets", false, func(s *specs.Spec) {
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}}
		}},
		{"hostname without uts", "hostname", false, without("uts", func(s *specs.Spec) { s.Hostname = "x" })},
		{"long hostname", "hostname", false, func(s *specs.Spec) { s.Hostname = strings.Repeat("x", 65) }},
		{"domainname without uts", "domainname", false, without("uts", func(s *specs.Spec) { s.Domainname = "x" })},

		{"console size", "process.consoleSize", false, func(s *specs.Spec) {
			s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Height: 1 << 16}
		}},
		{"no args", "process.args", false, func(s *specs.Spec) { s.Process.Args = nil }},
		{"empty program", "process.args", false, func(s *specs.Spec) { s.Process.Args = []string{""} }},
		{"NUL in args", "process.args[1]", false, func(s *specs.Spec) { s.Process.Args = []string{"a", "b\x00c"} }},
		{"long arg", "process.args[0]", false, func(s *specs.Spec) { s.Process.Args = []string{strings.Repeat("x", 128<<10)} }},
		{"NUL in env", "process.env[0]", false, func(s *specs.Spec) { s.Process.Env = []string{"a=\x00"} }},
		{"no cwd", "process.cwd", false, func(s *specs.Spec) { s.Process.Cwd = "" }},
		{"relative cwd", "process.cwd", false, func(s *specs.Spec) { s.Process.Cwd = "home" }},
		{"uid -1", "process.user.uid", false, func(s *specs.Spec) { s.Process.User.UID = 1<<32 - 1 }},
		{"gid -1", "process.user.gid", false, func(s *specs.Spec) { s.Process.User.GID = 1<<32 - 1 }},
		{"group -1", "process.user.additionalGids[1]", false, func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{1, 1<<32 - 1} }},
		{"umask", "process.user.umask", false, func(s *specs.Spec) { u := uint32(0o1000); s.Process.User.Umask = &u }},
		{"username", "process.user.username", true, func(s *specs.Spec) { s.Process.User.Username = "x" }},
		{"limit", "process.rlimits[0].type", false, func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }},
		{"limit twice", "process.rlimits[1].type", false, func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CPU"}, {Type: "RLIMIT_CPU"}}
		}},
		{"soft above hard", "process.rlimits[0].soft", false, func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CPU", Soft: 2, Hard: 1}}
		}},
		{"oom score", "process.oomScoreAdj", false, func(s *specs.Spec) { n := 1001; s.Process.OOMScoreAdj = &n }},
		{"scheduler", "process.scheduler.policy", false, func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: "SCHED_X"} }},
		{"scheduler flag", "process.scheduler.flags[0]", true, func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagUtilClampMin}}
		}},
		{"io class", "process.ioPriority.class", false, func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{} }},
		{"io priority", "process.ioPriority.priority", false, func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 8}
		}},
		{"affinity", "process.execCPUAffinity", true, func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{} }},
		{"personality", "linux.personality.domain", false, func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "BSD"} }},
		{"capability", "process.capabilities.bounding[0]", false, func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_FLY"} }},
		{"effective beyond permitted", "process.capabilities.effective", false, func(s *specs.Spec) { s.Process.Capabilities.Permitted = nil }},
		{"ambient beyond inheritable", "process.capabilities.ambient", false, func(s *specs.Spec) { s.Process.Capabilities.Ambient = []string{"CAP_KILL"} }},
		{"seccomp action", "linux.seccomp.defaultAction", false, func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_X"} }},
		{"seccomp notify", "linux.seccomp", true, func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mount"}, Action: specs.ActNotify}}}
		}},

		{"mount over the root", "mounts[0].destination", true, withMount(specs.Mount{Destination: "/a/..", Type: "tmpfs"})},
		{"no destination", "mounts[0].destination", false, withMount(specs.Mount{Type: "tmpfs"})},
		{"NUL in destination", "mounts[0].destination", false, withMount(specs.Mount{Destination: "/\x00", Type: "tmpfs"})},
		{"no type", "mounts[0].type", false, withMount(specs.Mount{Destination: "/x"})},
		{"relative source", "mounts[0].source", false, withMount(specs.Mount{Destination: "/x", Type: "bind", Source: "data"})},
		{"no source", "mounts[0].source", false, withMount(specs.Mount{Destination: "/x", Options: []string{"rbind"}})},
		{"idmap", "mounts[0].options[0]", true, withOptions("bind", "idmap")},
		{"ridmap", "mounts[0].options[1]", true, withOptions("bind", "ro", "ridmap")},
		{"id mappings", "mounts[0].uidMappings", true, withMount(specs.Mount{Destination: "/x", Type: "tmpfs", UIDMappings: []specs.LinuxIDMapping{{Size: 1}}})},
		{"unknown option of a bind mount", "mounts[0].options", true, withOptions("bind", "rbnd")},
		{"filesystem's option of a bind mount", "mounts[0].options", true, withOptions("bind", "sync")},
		{"empty option", "mounts[0].options[0]", false, withOptions("tmpfs", "")},
		{"NUL in an option", "mounts[0].options[0]", false, withOptions("tmpfs", "a\x00")},
		{"copy up of something else", "mounts[0].options", false, withOptions("sysfs", "tmpcopyup")},
		{"options of cgroup", "mounts[0].options", true, withOptions("cgroup", "memory")},
		{"iversion with fsmount", "mounts[0].options", true, withOptions("tmpfs", "rro", "iversion")},
		{"fake proc", "mounts[0].destination", false, withMount(specs.Mount{Destination: "/proc", Type: "tmpfs"})},
		{"fake proc by bind", "mounts[0].destination", false, withMount(specs.Mount{Destination: "/proc/", Type: "bind", Source: "/tmp"})},
		{"inside of proc", "mounts[0].destination", false, withMount(specs.Mount{Destination: "/x/../proc/self/attr", Type: "tmpfs"})},
		{"propagation", "linux.rootfsPropagation", false, func(s *specs.Spec) { s.Linux.RootfsPropagation = "public" }},
		{"masked", "linux.maskedPaths[0]", false, func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"x"} }},
		{"read-only", "linux.readonlyPaths[0]", false, func(s *specs.Spec) { s.Linux.ReadonlyPaths = []string{""} }},

		{"device type", "linux.devices[0].type", false, withDevice(specs.LinuxDevice{Path: "/dev/x", Type: "x"})},
		{"device path", "linux.devices[0].path", false, withDevice(specs.LinuxDevice{Path: "x", Type: "c"})},
		{"device major", "linux.devices[0].major", false, withDevice(specs.LinuxDevice{Path: "/dev/x", Type: "c", Major: 4096})},
		{"device minor", "linux.devices[0].minor", false, withDevice(specs.LinuxDevice{Path: "/dev/x", Type: "b", Minor: -1})},
		{"device mode", "linux.devices[0].fileMode", true, withDevice(specs.LinuxDevice{Path: "/dev/x", Type: "c", FileMode: &mode})},

		{"the host's sysctl", "linux.sysctl.kernel.core_pattern", false, sysctl("kernel.core_pattern")},
		{"the host's fs", "linux.sysctl.fs.file-max", false, sysctl("fs.file-max")},
		{"hostname by sysctl", "linux.sysctl.kernel.hostname", false, sysctl("kernel.hostname")},
		{"no network namespace", "linux.sysctl.net.ipv4.ip_forward", false, without("network", sysctl("net.ipv4.ip_forward"))},
		{"no ipc namespace", "linux.sysctl.kernel.shmmax", false, without("ipc", sysctl("kernel.shmmax"))},
		{"traversal", "linux.sysctl.net.../../kernel.core_pattern", false, sysctl("net.../../kernel.core_pattern")},
		{"injection", "linux.sysctl.net.x+kernel.core_pattern=|", false, sysctl("net.x+kernel.core_pattern=|")},
		{"sysctl's value", "linux.sysctl.net.x", false, func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.x": "1\nkernel.core_pattern=|x"} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := portable()
			test.change(s)
			prog, err := Compile(s, nil)
			var se *SpecError
			if !errors.As(err, &se) {
				t.Fatalf("got %v, want a SpecError of %s", err, test.field)
			}
			if prog != nil {
				t.Error("a program and an error")
			}
			if se.Field != test.field || errors.Is(err, errors.ErrUnsupported) != test.unsupported {
				t.Errorf("got %v (unsupported: %v), want field %s (%v)", err, !test.unsupported, test.field, test.unsupported)
			}
		})
	}
	if _, err := Compile(nil, nil); err == nil {
		t.Error("no spec was compiled")
	}
}

func TestParseCgroups(t *testing.T) {
	const lines = `25 20 0:22 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
26 25 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
27 25 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
28 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
29 25 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory,release_agent=/x
30 1 0:28 / /elsewhere/memory rw - cgroup cgroup rw,memory
broken line
`
	got := parseCgroups(strings.NewReader(lines)).v1
	want := []hierarchy{
		{"systemd", "none,name=systemd", nil},
		{"cpu,cpuacct", "cpu,cpuacct", []string{"cpu", "cpuacct"}},
		{"memory", "memory", nil},
	}
	g, _ := json.Marshal(len(got))
	if len(got) != len(want) {
		t.Fatalf("%s hierarchies, want %d: %+v", g, len(want), got)
	}
	for i := range want {
		if got[i].name != want[i].name || got[i].data != want[i].data || strings.Join(got[i].links, " ") != strings.Join(want[i].links, " ") {
			t.Errorf("got %+v, want %+v", got[i], want[i])
		}
	}
}

// FuzzCompile compiles whatever JSON is: a plan that encodes, or an error.
func FuzzCompile(f *testing.F) {
	add := func(change func(*specs.Spec)) {
		s := portable()
		change(s)
		b, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	add(func(*specs.Spec) {})
	add(func(s *specs.Spec) {
		s.Process.Args = []string{"x"}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/a", Type: "bind", Source: "/b", Options: []string{"rbind", "rro", "rshared"}},
			specs.Mount{Destination: "/t", Type: "tmpfs", Options: []string{"tmpcopyup", "size=5"}})
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
		s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x/y", Type: "c", Major: 1, Minor: 2}}
	})
	f.Add([]byte(`{"process":{"args":["/x"],"cwd":"/"},"root":{"path":"/"},"linux":{"namespaces":[{"type":"mount"}],"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s specs.Spec
		if json.Unmarshal(b, &s) != nil {
			return
		}
		if target := (&Target{spec: specs.Spec{Linux: s.Linux}, pidfd: os.Stdin}); s.Linux != nil && target.prepare() == nil {
			if prog, err := target.Compile(s.Process); err == nil {
				if _, err := prog.Plan.ELF(); err != nil {
					t.Fatal(err)
				}
			}
		}
		prog, err := Compile(&s, nil)
		if err != nil {
			return
		}
		defer prog.Close()
		if _, err := prog.Plan.ELF(); err != nil {
			t.Fatal(err)
		}
		if prog.Plan.String() == "" {
			t.Fatal("an empty listing")
		}
	})
}

func BenchmarkCompile(b *testing.B) {
	s := DefaultSpec()
	s.Root.Path = "/rootfs"
	b.ReportAllocs()
	for b.Loop() {
		prog, err := Compile(s, nil)
		if err != nil {
			b.Fatal(err)
		}
		prog.Close()
	}
}

func BenchmarkDefaultSpec(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		DefaultSpec()
	}
}
