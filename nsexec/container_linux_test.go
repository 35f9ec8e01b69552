package nsexec

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Docker's 14 capabilities as /proc/self/status shows them.
const defaultCaps = "00000000a80425fb"

func TestDefaultContainer(t *testing.T) {
	requireRoot(t)
	s := newSpec(newRoot(t), "view")
	s.Hostname, s.Domainname = "box", "example"
	v := viewOf(t, s, nil)
	for key, want := range map[string]string{
		"CapInh": "0000000000000000", "CapPrm": defaultCaps, "CapEff": defaultCaps, "CapBnd": defaultCaps, "CapAmb": "0000000000000000",
		"NoNewPrivs": "0", "Seccomp": "2", "Groups": "", "SigIgn": "0000000000000000", "SigBlk": "0000000000000000",
		"Uid": "0\t0\t0\t0", "Gid": "0\t0\t0\t0", "TracerPid": "0",
	} {
		if got := v.Status[key]; got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	if v.Pid != 1 || v.Sid != 1 {
		t.Errorf("pid %d in session %d, want 1 in 1", v.Pid, v.Sid)
	}
	if v.Hostname != "box" || v.Domain != "example" {
		t.Errorf("host %q in domain %q", v.Hostname, v.Domain)
	}
	if !maps.EqualFunc(v.Files, map[string]string{"0": "", "1": "", "2": ""}, func(string, string) bool { return true }) {
		t.Errorf("open files: %v, want 0 to 2", v.Files)
	}
	if v.Umask != 0o022 {
		t.Errorf("umask %#o, want 022", v.Umask)
	}
	if v.Cwd != "/" {
		t.Errorf("working directory %s", v.Cwd)
	}
	if want := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}; !slices.Equal(v.Env, want) {
		t.Errorf("environment %q, want %q", v.Env, want)
	}
	if !v.Up || !slices.Equal(v.Interface, []string{"lo"}) {
		t.Errorf("network interfaces %q, lo up: %v", v.Interface, v.Up)
	}
	for line := range strings.Lines(v.Cgroups) {
		if !strings.HasSuffix(line, ":/\n") {
			t.Errorf("cgroup path %q is not /", line)
		}
	}
	for _, ns := range []string{"mnt", "pid", "uts", "ipc", "net", "cgroup"} {
		if host, _ := os.Readlink("/proc/self/ns/" + ns); v.Namespace[ns] == host {
			t.Errorf("the %s namespace is the host's", ns)
		}
	}
	for at, want := range map[string]mountLine{
		"/proc":          {Type: "proc", Options: "rw,nosuid,nodev,noexec,relatime"},
		"/dev":           {Type: "tmpfs", Options: "rw,nosuid"},
		"/dev/pts":       {Type: "devpts", Options: "rw,nosuid,noexec,relatime"},
		"/sys":           {Type: "sysfs", Options: "ro,nosuid,nodev,noexec,relatime"},
		"/dev/mqueue":    {Type: "mqueue", Options: "rw,nosuid,nodev,noexec,relatime"},
		"/dev/shm":       {Type: "tmpfs", Options: "rw,nosuid,nodev,noexec,relatime"},
		"/proc/bus":      {Type: "proc", Options: "ro,nosuid,nodev,noexec,relatime"},
		"/proc/sys":      {Type: "proc", Options: "ro,nosuid,nodev,noexec,relatime"},
		"/sys/fs/cgroup": {Options: "ro,nosuid,nodev,noexec,relatime"},
	} {
		m := v.on(at)
		if want.Type != "" && m.Type != want.Type || m.Options != want.Options {
			t.Errorf("on %s there is %s with %s, want %s with %s", at, m.Type, m.Options, want.Type, want.Options)
		}
	}
	for _, m := range v.Mounts {
		if m.Propagation != "" {
			t.Errorf("the mount on %s is %s, want private", m.At, m.Propagation)
		}
		if strings.HasPrefix(m.At, "/old") || m.At == "/" && m.Root == "/" && m.Type != "tmpfs" && m.Type != "overlay" {
			t.Errorf("a mount of the host is left: %+v", m)
		}
	}
}

func TestDevices(t *testing.T) {
	requireRoot(t)
	mode := fs.FileMode(0o640)
	uid, gid := uint32(7), uint32(8)
	s := newSpec(newRoot(t), "stat", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/fd",
		"/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/ptmx", "/dev/core", "/dev/fuse", "/dev/deep/er/loop", "/dev/pipe", "/opt/device")
	s.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: &mode, UID: &uid, GID: &gid},
		{Path: "/dev/deep/er/loop", Type: "b", Major: 7, Minor: 300},
		{Path: "/dev/pipe", Type: "p"},
		{Path: "/opt/device", Type: "u", Major: 1, Minor: 3},
	}
	got := mustRun(t, s, nil)
	want := `/dev/null 20666 0:0 1:3 
/dev/zero 20666 0:0 1:5 
/dev/full 20666 0:0 1:7 
/dev/random 20666 0:0 1:8 
/dev/urandom 20666 0:0 1:9 
/dev/tty 20666 0:0 5:0 
/dev/fd 120777 0:0 0:0 /proc/self/fd
/dev/stdin 120777 0:0 0:0 /proc/self/fd/0
/dev/stdout 120777 0:0 0:0 /proc/self/fd/1
/dev/stderr 120777 0:0 0:0 /proc/self/fd/2
/dev/ptmx 120777 0:0 0:0 pts/ptmx
/dev/core 120777 0:0 0:0 /proc/kcore
/dev/fuse 20640 7:8 10:229 
/dev/deep/er/loop 60666 0:0 7:300 
/dev/pipe 10666 0:0 0:0 
/opt/device 20666 0:0 1:3 
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestMasksAndReadonlyPaths(t *testing.T) {
	requireRoot(t)
	root := newRoot(t)
	for _, d := range []string{"/secret", "/etc", "/keep", "/link-to"} {
		if err := os.MkdirAll(root+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"/secret/key", "/etc/shadow", "/keep/file", "/link-to/key"} {
		if err := os.WriteFile(root+f, []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/link-to", root+"/link"); err != nil {
		t.Fatal(err)
	}
	s := newSpec(root,
		"try", "readdir", "/secret", ";", "try", "read", "/etc/shadow", ";", "try", "read", "/link-to/key", ";",
		"try", "write", "/keep/file", "x", ";", "try", "create", "/keep/new", ";", "try", "create", "/new", ";",
		"try", "write", "/proc/sys/kernel/domainname", "x", ";", "try", "write", "/proc/sysrq-trigger", "h", ";",
		"try", "read", "/proc/keys", ";", "try", "read", "/proc/timer_list", ";", "try", "readdir", "/sys/firmware", ";",
		"try", "create", "/sys/fs/cgroup/x", ";", "try", "mount", "/keep")
	s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/secret", "/etc/shadow", "/link/key", "/does/not/exist", "/etc/shadow/sub")
	s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/keep", "/also/missing")
	got := mustRun(t, s, nil)
	want := `readdir /secret: EOF
read /etc/shadow: EOF
read /link-to/key: EOF
write /keep/file x: open /keep/file: read-only file system
create /keep/new: open /keep/new: read-only file system
create /new: <nil>
write /proc/sys/kernel/domainname x: open /proc/sys/kernel/domainname: read-only file system
write /proc/sysrq-trigger h: open /proc/sysrq-trigger: read-only file system
read /proc/keys: EOF
read /proc/timer_list: EOF
readdir /sys/firmware: EOF
create /sys/fs/cgroup/x: open /sys/fs/cgroup/x: read-only file system
mount /keep: operation not permitted
`
	got = withoutMissing(got, "/proc/sysrq-trigger", "/sys/firmware", "/proc/keys", "/proc/timer_list")
	if want = withoutMissingIn(want, got); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// withoutMissing drops lines about files that this kernel does not have.
func withoutMissing(out string, paths ...string) string {
	var b strings.Builder
	for line := range strings.Lines(out) {
		if slices.ContainsFunc(paths, func(p string) bool { return strings.Contains(line, p+":") && strings.Contains(line, "no such file") }) {
			continue
		}
		b.WriteString(line)
	}
	return b.String()
}

func withoutMissingIn(want, got string) string {
	var b strings.Builder
	for line := range strings.Lines(want) {
		command, _, ok := strings.Cut(line, ": ")
		if !ok || strings.Contains(got, command+": ") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestReadonlyRoot(t *testing.T) {
	requireRoot(t)
	s := newSpec(newRoot(t), "try", "create", "/x", ";", "try", "create", "/dev/shm/x", ";", "try", "create", "/dev/x", ";", "try", "create", "/run/x")
	s.Root.Readonly = true
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/run", Type: "tmpfs", Options: []string{"ro"}})
	got := mustRun(t, s, nil)
	want := "create /x: open /x: read-only file system\ncreate /dev/shm/x: <nil>\ncreate /dev/x: <nil>\ncreate /run/x: open /run/x: read-only file system\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestReadonlyDev(t *testing.T) {
	requireRoot(t)
	s := newSpec(newRoot(t), "try", "create", "/dev/x", ";", "try", "create", "/dev/shm/x", ";", "write", "/dev/null", "x", ";", "stat", "/dev/own")
	s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/own", Type: "c", Major: 1, Minor: 3}}
	for i := range s.Mounts {
		if s.Mounts[i].Destination == "/dev" {
			s.Mounts[i].Options = append(s.Mounts[i].Options, "ro")
		}
	}
	got := mustRun(t, s, nil)
	want := "create /dev/x: open /dev/x: read-only file system\ncreate /dev/shm/x: <nil>\n/dev/own 20666 0:0 1:3 \n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestUserAndCapabilities(t *testing.T) {
	requireRoot(t)
	umask := uint32(0o077)
	for _, test := range []struct {
		name   string
		change func(*specs.Spec)
		want   map[string]string
	}{
		{"another user has no effective capabilities", func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 1001, 70000}, Umask: &umask}
		}, map[string]string{
			"Uid": "1000\t1000\t1000\t1000", "Gid": "1001\t1001\t1001\t1001", "Groups": "5 1001 70000",
			"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapInh": "0000000000000000", "CapBnd": defaultCaps, "Seccomp": "2",
		}},
		{"no new privileges", func(s *specs.Spec) {
			s.Process.NoNewPrivileges = true
			s.Process.User = specs.User{UID: 1000, GID: 1000}
		}, map[string]string{"NoNewPrivs": "1", "Seccomp": "2", "CapBnd": defaultCaps, "Groups": ""}},
		{"ambient capabilities survive the change of user", func(s *specs.Spec) {
			c := []string{"CAP_NET_BIND_SERVICE"}
			s.Process.User = specs.User{UID: 1000, GID: 1000}
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: c, Effective: c, Permitted: c, Inheritable: c, Ambient: c}
		}, map[string]string{
			"CapInh": "0000000000000400", "CapPrm": "0000000000000400", "CapEff": "0000000000000400", "CapBnd": "0000000000000400",
			"CapAmb": "0000000000000400", "Seccomp": "2",
		}},
		{"no capabilities", func(s *specs.Spec) { s.Process.Capabilities = nil }, map[string]string{
			"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "CapInh": "0000000000000000", "Seccomp": "2",
		}},
		{"no filter", func(s *specs.Spec) { s.Linux.Seccomp = nil }, map[string]string{"Seccomp": "0"}},
		{"a filter that forbids set-up", func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{
				Names:  []string{"close_range", "umask", "setresuid", "setgroups", "mount", "statx", "move_mount", "fchdir", "openat2"},
				Action: specs.ActErrno,
			}}}
			s.Process.User = specs.User{UID: 1000, GID: 1000}
		}, map[string]string{"Seccomp": "2", "Uid": "1000\t1000\t1000\t1000"}},
		{"filter after no new privileges as root", func(s *specs.Spec) { s.Process.NoNewPrivileges = true }, map[string]string{
			"NoNewPrivs": "1", "Seccomp": "2", "CapEff": defaultCaps,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSpec(newRoot(t), "view")
			test.change(s)
			v := viewOf(t, s, nil)
			for key, want := range test.want {
				if got := v.Status[key]; got != want {
					t.Errorf("%s is %q, want %q", key, got, want)
				}
			}
			if s.Process.User.Umask != nil && v.Umask != 0o077 {
				t.Errorf("umask %#o, want 077", v.Umask)
			}
		})
	}
}

func TestProcessSettings(t *testing.T) {
	requireRoot(t)
	root := newRoot(t)
	if err := os.MkdirAll(root+"/work/dir", 0o755); err != nil {
		t.Fatal(err)
	}
	s := newSpec(root, "view")
	p, adj := s.Process, 500
	p.Cwd = "/work/./dir"
	p.Env = []string{"A=1", "B=two words"}
	p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 0, Hard: 4096}, {Type: "RLIMIT_FSIZE", Soft: 1 << 30, Hard: 1 << 31}}
	p.OOMScoreAdj = &adj
	p.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
	p.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 3}
	s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "12345678", "net/ipv4/conf/lo/forwarding": "1"}
	v := viewOf(t, s, nil)
	if v.Cwd != "/work/dir" || !slices.Equal(v.Env, p.Env) || v.OOMAdj != "500" {
		t.Errorf("directory %s, environment %q, oom_score_adj %s", v.Cwd, v.Env, v.OOMAdj)
	}
	if v.Rlimits["RLIMIT_CORE"] != [2]uint64{0, 4096} || v.Rlimits["RLIMIT_FSIZE"] != [2]uint64{1 << 30, 1 << 31} {
		t.Errorf("limits %v", v.Rlimits)
	}
	s.Process.Args = []string{insidePath, "cat", "/proc/sys/net/ipv4/ip_forward", ";", "cat", "/proc/sys/kernel/shmmax", ";", "cat", "/proc/sys/net/ipv4/conf/lo/forwarding", ";", "cat", "/proc/self/sched"}
	out := mustRun(t, s, nil)
	if !strings.HasPrefix(out, "1\n12345678\n1\n") {
		t.Errorf("sysctls:\n%s", out)
	}
}

func TestPersonality(t *testing.T) {
	requireRoot(t)
	s := newSpec(newRoot(t), "view")
	s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
	if v := viewOf(t, s, nil); v.Machine == "x86_64" || v.Machine == "aarch64" {
		t.Errorf("machine %s with LINUX32", v.Machine)
	}
}

func TestMounts(t *testing.T) {
	requireRoot(t)
	root, vol := newRoot(t), t.TempDir()
	if err := os.MkdirAll(vol+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vol+"/file", []byte("from the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(root+"/etc/deep", 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+"/etc/deep/f", []byte("copied up"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(root+"/etc", 12, 34); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/var/target", root+"/via"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(root+"/var/target", 0o755); err != nil {
		t.Fatal(err)
	}
	s := newSpec(root, "view")
	s.Mounts = append(s.Mounts,
		specs.Mount{Destination: "/data/new/place", Type: "bind", Source: vol, Options: []string{"rbind", "ro", "nosuid", "noexec", "noatime", "rprivate"}},
		specs.Mount{Destination: "/files/one", Source: vol + "/file", Options: []string{"bind", "rro"}},
		specs.Mount{Destination: "/via", Type: "bind", Source: vol, Options: []string{"bind"}},
		specs.Mount{Destination: "/etc", Type: "tmpfs", Options: []string{"tmpcopyup", "nodev"}},
		specs.Mount{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m,mode=1770", "nodev", "rnoexec", "strictatime"}},
		specs.Mount{Destination: "/dev/mnt", Type: "tmpfs", Options: []string{"noatime", "nodiratime"}},
		specs.Mount{Destination: "/pass", Type: "bind", Source: vol, Options: []string{"bind"}},
		specs.Mount{Destination: "/pass", Options: []string{"remount", "bind", "ro"}},
		specs.Mount{Destination: "/scratch", Type: "tmpfs", Options: []string{"remount", "size=2m", "nodev"}},
		specs.Mount{Destination: "/alone", Type: "bind", Source: vol, Options: []string{"bind", "unbindable"}},
	)
	v := viewOf(t, s, nil)
	for at, want := range map[string]mountLine{
		"/data/new/place": {Options: "ro,nosuid,noexec,noatime"},
		"/files/one":      {Options: "ro,relatime"},
		"/var/target":     {Options: "rw,relatime"},
		"/etc":            {Options: "rw,nodev,relatime", Type: "overlay"},
		"/scratch":        {Options: "rw,nodev", Type: "tmpfs", Super: "size=2048k,mode=1770"},
		"/dev/mnt":        {Options: "rw,noatime,nodiratime", Type: "tmpfs"},
		"/pass":           {Options: "ro,relatime"},
		"/alone":          {Options: "rw,relatime", Propagation: "unbindable"},
	} {
		m := v.on(at)
		if m.At == "" {
			t.Errorf("nothing is mounted on %s", at)
			continue
		}
		if m.Options != want.Options || want.Type != "" && m.Type != want.Type || !strings.Contains(m.Super, want.Super) || m.Propagation != want.Propagation {
			t.Errorf("on %s: %+v, want %+v", at, m, want)
		}
	}
	s.Process.Args = []string{insidePath, "cat", "/files/one", ";", "cat", "/etc/deep/f", ";", "stat", "/etc", "/etc/deep", "/etc/deep/f", ";",
		"write", "/etc/deep/f", "changed", ";", "cat", "/etc/deep/f", ";", "ls", "/via"}
	want := "from the hostcopied up/etc 40750 12:34 0:0 \n/etc/deep 40750 0:0 0:0 \n/etc/deep/f 100640 0:0 0:0 \nchangedfile\nsub\n"
	if err := os.Chmod(root+"/etc", 0o750); err != nil {
		t.Fatal(err)
	}
	if got := mustRun(t, s, nil); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if b, _ := os.ReadFile(root + "/etc/deep/f"); string(b) != "copied up" {
		t.Errorf("tmpcopyup let a write through: %q", b)
	}
}

func TestPropagation(t *testing.T) {
	requireRoot(t)
	host := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mount("tmpfs", host, "tmpfs", 0, ""))
	defer unix.Unmount(host, unix.MNT_DETACH)
	must(unix.Mount("", host, "", unix.MS_SHARED, ""))
	must(os.Mkdir(host+"/sub", 0o755))
	must(unix.Mount("tmpfs", host+"/sub", "tmpfs", 0, ""))
	for _, test := range []struct{ option, rootfs, want, root string }{
		{"rprivate", "", "", ""},
		{"rslave", "", "master:", ""},
		{"rslave", "rslave", "master:", ""},
		{"rshared", "", "shared:", ""},
		{"rshared", "shared", "shared:", "shared:"},
		{"rprivate", "shared", "", "shared:"},
		{"rprivate", "rslave", "", ""},
	} {
		t.Run(test.option+" in "+test.rootfs, func(t *testing.T) {
			s := newSpec(newRoot(t), "view")
			s.Linux.RootfsPropagation = test.rootfs
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/shared", Type: "bind", Source: host, Options: []string{"rbind", test.option}})
			v := viewOf(t, s, nil)
			for _, at := range []string{"/shared", "/shared/sub"} {
				if m := v.on(at); m.At == "" || !strings.HasPrefix(m.Propagation, test.want) || test.want == "" && m.Propagation != "" {
					t.Errorf("%s: %+v, want %q", at, m, test.want)
				}
			}
			if m := v.on("/"); !strings.HasPrefix(m.Propagation, test.root) || test.root == "" && m.Propagation != "" {
				t.Errorf("/: %+v, want %q", m, test.root)
			}
			if !slices.ContainsFunc(mountLines(), func(m mountLine) bool { return m.At == host+"/sub" }) {
				t.Fatal("the container's start unmounted something on the host")
			}
		})
	}
}

func TestUserNamespace(t *testing.T) {
	requireRoot(t)
	root, vol := newRoot(t), t.TempDir()
	for _, dir := range []string{root, root + "/bin"} {
		if err := os.Chown(dir, 100000, 100000); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(vol, "secret")
	if err := os.Mkdir(secret, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(secret+"/f", []byte("reached"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := newSpec(root, "view")
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/f", Type: "bind", Source: secret + "/f", Options: []string{"bind"}})
	v := viewOf(t, s, nil)
	if v.Status["Uid"] != "0\t0\t0\t0" || v.Status["CapEff"] != defaultCaps || v.Status["Seccomp"] != "2" {
		t.Errorf("status %v", v.Status)
	}
	if host, _ := os.Readlink("/proc/self/ns/user"); v.Namespace["user"] == host {
		t.Error("the user namespace is the host's")
	}
	s.Process.Args = []string{insidePath, "stat", "/dev/null", "/dev/tty", ";", "cat", "/f", ";", "write", "/dev/null", "x", ";", "try", "read", "/proc/keys"}
	got := mustRun(t, s, nil)
	if want := "/dev/null 20666 65534:65534 1:3 \n/dev/tty 20666 65534:65534 5:0 \nreachedread /proc/keys: EOF\n"; withoutMissing(got, "/proc/keys") != withoutMissingIn(want, got) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestConnect: whoever starts a container with a user namespace gets hold of its network namespace before anything is done
// there, and can still call the start off.
func TestConnect(t *testing.T) {
	requireRoot(t)
	root := newRoot(t)
	for _, dir := range []string{root, root + "/bin"} {
		if err := os.Chown(dir, 100000, 100000); err != nil {
			t.Fatal(err)
		}
	}
	s := newSpec(root, "view")
	var invalid *SpecError
	if _, err := Compile(s, &Options{Connect: func(context.Context, *os.File) error { return nil }}); !errors.As(err, &invalid) {
		t.Errorf("without a user namespace: %v", err)
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
	seen := ""
	v := viewOf(t, s, &Options{Connect: func(_ context.Context, pidfd *os.File) (err error) {
		seen, err = os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pidOf(int(pidfd.Fd()))))
		return err
	}})
	if v.Namespace["net"] != seen || seen == "" {
		t.Errorf("its network namespace is %q, Connect saw %q", v.Namespace["net"], seen)
	}
	no := errors.New("no")
	prog, err := Compile(s, &Options{Connect: func(context.Context, *os.File) error { return no }})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	var l Launcher
	defer l.Close()
	if _, err := l.Start(t.Context(), prog, nil); !errors.Is(err, no) {
		t.Errorf("a Connect that fails: %v", err)
	}
}

func TestJoinNamespaces(t *testing.T) {
	requireRoot(t)
	s := newSpec(newRoot(t), "view")
	host := map[string]string{}
	for i := range s.Linux.Namespaces {
		ns := &s.Linux.Namespaces[i]
		name := map[specs.LinuxNamespaceType]string{"network": "net", "uts": "uts", "ipc": "ipc", "pid": "pid"}[ns.Type]
		if name == "" {
			continue
		}
		ns.Path = "/proc/self/ns/" + name
		host[name], _ = os.Readlink(ns.Path)
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
	s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1000000, Nanosecs: 5}}
	v := viewOf(t, s, nil)
	for name, want := range host {
		if v.Namespace[name] != want {
			t.Errorf("the %s namespace is %s, want the host's %s", name, v.Namespace[name], want)
		}
	}
	if h, _ := os.Readlink("/proc/self/ns/time"); v.Namespace["time"] == h || v.Namespace["time"] == "" {
		t.Errorf("the time namespace is %q, the host's is %q", v.Namespace["time"], h)
	}
	s.Process.Args = []string{insidePath, "cat", "/proc/uptime"}
	if out := mustRun(t, s, nil); len(strings.Split(out, ".")[0]) < 7 {
		t.Errorf("uptime %s, want more than a million seconds", out)
	}
}

func TestDetachedRoot(t *testing.T) {
	requireRoot(t)
	root := newRoot(t)
	fd, err := unix.OpenTree(unix.AT_FDCWD, root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "root")
	defer f.Close()
	s := newSpec("", "view")
	s.Root.Readonly = true
	v := viewOf(t, s, &Options{Root: f})
	if m := v.on("/"); !strings.HasPrefix(m.Options, "ro,") {
		t.Errorf("the root is %+v, want it read-only", m)
	}
	if len(v.Files) != 3 {
		t.Errorf("open files: %v", v.Files)
	}
}

func TestSearchPath(t *testing.T) {
	requireRoot(t)
	root := newRoot(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(root+"/a", 0o755))
	must(os.WriteFile(root+"/a/inside", []byte("x"), 0o644)) // not executable
	must(os.WriteFile(root+"/a/denied", []byte("x"), 0o644))
	must(os.WriteFile(root+"/a/text", []byte("not a program\n"), 0o755))
	must(os.WriteFile(root+"/a/script", []byte("#!/no/such/interpreter\n"), 0o755))
	for _, test := range []struct {
		arg, path string
		want      error // nil: it runs
	}{
		{"inside", "PATH=/none:/a:/bin/inside:/bin", nil}, // EACCES and ENOTDIR are passed over
		{"inside", "", nil},              // the default
		{"inside", "PATH=", unix.ENOENT}, // the working directory
		{"missing", "PATH=/bin:/a", unix.ENOENT},
		{"denied", "PATH=/bin:/a:/none", unix.EACCES}, // remembered
		{"text", "PATH=/a:/bin", unix.ENOEXEC},        // no shell is tried
		{"script", "PATH=/a", unix.ENOENT},
		{"./bin/inside", "PATH=/a", nil},
		{"bin/inside", "PATH=/a", nil},
		{"/bin/inside/x", "PATH=/a", unix.ENOTDIR},
		{"/bin", "PATH=/a", unix.EACCES},
	} {
		t.Run(test.arg+" "+test.path, func(t *testing.T) {
			s := newSpec(root, "echo")
			s.Process.Args[0] = test.arg
			s.Process.Env = []string{"PATH=/wrong", test.path}
			if test.path == "" {
				s.Process.Env = nil
			}
			_, _, err := run(t, s, nil)
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			var ee *ExecError
			if test.want != nil && (!errors.As(err, &ee) || ee.Path != test.arg) {
				t.Errorf("got %#v, want an ExecError of %s", err, test.arg)
			}
		})
	}
}

func TestSetupErrors(t *testing.T) {
	requireRoot(t)
	for _, test := range []struct {
		name   string
		change func(*specs.Spec)
		want   error
		label  string
	}{
		{"no root", func(s *specs.Spec) { s.Root.Path = "/no/such/root" }, unix.ENOENT, "open the root /no/such/root"},
		{"no bind source", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/no/such/source", Options: []string{"bind"}})
		}, unix.ENOENT, "open /no/such/source to bind it on /x"},
		{"a directory on a file", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: insidePath, Type: "bind", Source: "/tmp", Options: []string{"bind"}})
		}, nil, "bind /tmp on " + insidePath},
		{"unknown filesystem", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "nosuchfs"})
		}, unix.ENODEV, "mount nosuchfs on /x"},
		{"filesystem's option", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"size=banana"}})
		}, unix.EINVAL, "mount tmpfs on /x with size=banana"},
		{"no working directory", func(s *specs.Spec) { s.Process.Cwd = "/nowhere" }, unix.ENOENT, "enter the working directory /nowhere"},
		{"sysctl's value", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "banana"} }, unix.EINVAL, "set the sysctl net.ipv4.ip_forward"},
		{"sysctl's name", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.no.such": "1"} }, unix.ENOENT, "set the sysctl net.no.such"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSpec(newRoot(t), "echo")
			test.change(s)
			_, _, err := run(t, s, nil)
			var se *StepError
			if !errors.As(err, &se) || se.Label != test.label || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %v, want step %q to fail with %v", err, test.label, test.want)
			}
		})
	}
}

// TestManyMounts has more mounts than a process may have open files.
func TestManyMounts(t *testing.T) {
	requireRoot(t)
	s := newSpec(newRoot(t), "view")
	for i := range 600 {
		m := specs.Mount{Destination: "/m/" + strconv.Itoa(i), Type: "bind", Source: "/tmp", Options: []string{"bind", "ro"}}
		if i%10 == 0 {
			m = specs.Mount{Destination: m.Destination, Type: "tmpfs", Options: []string{"size=4k"}}
		}
		s.Mounts = append(s.Mounts, m)
		s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, m.Destination)
	}
	if v := viewOf(t, s, nil); len(v.Mounts) < 1200 {
		t.Errorf("%d mounts", len(v.Mounts))
	}
}

func TestAppArmor(t *testing.T) {
	requireRoot(t)
	s := newSpec(newRoot(t), "cat", "/proc/self/attr/current")
	s.Process.ApparmorProfile = "coracle-no-such-profile"
	_, _, err := run(t, s, nil)
	if !haveAppArmor() {
		var se *SpecError
		if !errors.As(err, &se) || !errors.Is(err, errors.ErrUnsupported) || se.Field != "process.apparmorProfile" {
			t.Errorf("without AppArmor: %v", err)
		}
	} else if !errors.Is(err, unix.ENOENT) {
		t.Errorf("a profile that is not loaded: %v", err)
	}
	s.Process.ApparmorProfile = "unconfined"
	if !haveAppArmor() {
		s.Process.Args = []string{insidePath, "echo"}
	}
	if out := mustRun(t, s, nil); haveAppArmor() && !strings.HasPrefix(out, "unconfined") {
		t.Errorf("label %q", out)
	}
}
