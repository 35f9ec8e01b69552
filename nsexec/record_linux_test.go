package nsexec

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The tests in this file repeat published attacks on container runtimes and are named after them.

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// emptyDir is a directory of the host that must stay empty.
func emptyDir(t *testing.T) string {
	dir := t.TempDir()
	t.Cleanup(func() {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("the container reached the host: %v %v", entries, err)
		}
	})
	return dir
}

func TestCVE_2024_21626_WorkingDirectoryThroughDescriptor(t *testing.T) {
	requireRoot(t)
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "tasks"), os.O_RDWR|os.O_CREATE, 0o600)
	check(t, err)
	defer f.Close()
	l := &Launcher{}
	defer l.Close()
	root := newRoot(t)
	for n := range 40 {
		for _, cwd := range []string{"/proc/self/fd/" + strconv.Itoa(n), "/proc/self/fd/" + strconv.Itoa(n) + "/../..", "/proc/1/fd/" + strconv.Itoa(n) + "/sub"} {
			s := newSpec(root, "view")
			s.Process.Cwd = cwd
			prog, err := Compile(s, &Options{Tasks: []*os.File{f}})
			check(t, err)
			// The path is cleaned when it is compiled, which is one half of the answer; the other one is how it is opened.
			if clean := filepath.Clean(cwd); strings.HasPrefix(clean, "/proc/self/fd/") || strings.HasPrefix(clean, "/proc/1/fd/") {
				_, err = l.Start(t.Context(), prog, nil)
				if !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
					t.Errorf("%s: %v, want ELOOP", cwd, err)
				}
			}
			prog.Close()
		}
	}
	s := newSpec(root, "view")
	if v := viewOf(t, s, &Options{Tasks: []*os.File{f}}); len(v.Files) != 3 {
		t.Errorf("open files: %v, want 0 to 2", v.Files)
	}
}

func TestCVE_2019_19921_FakeProc(t *testing.T) {
	requireRoot(t)
	host := emptyDir(t)
	for _, target := range []string{"/fake", host, "../../../../../.." + host, "/proc/self/fd/3"} {
		root := newRoot(t)
		check(t, os.Mkdir(root+"/fake", 0o755))
		check(t, os.Symlink(target, root+"/proc"))
		_, _, err := run(t, newSpec(root, "view"), nil)
		if !errors.Is(err, unix.ELOOP) {
			t.Errorf("/proc is a link to %s: %v, want ELOOP", target, err)
		}
	}
}

func TestCVE_2025_31133_FakeNullDevice(t *testing.T) {
	requireRoot(t)
	victim := filepath.Join(t.TempDir(), "victim")
	check(t, os.WriteFile(victim, []byte("content"), 0o644))
	for name, make := range map[string]func(dev string) error{
		"link":         func(dev string) error { return os.Symlink("/proc/sys/kernel/core_pattern", dev+"/null") },
		"file":         func(dev string) error { return os.WriteFile(dev+"/null", nil, 0o666) },
		"zero":         func(dev string) error { return unix.Mknod(dev+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) },
		"block device": func(dev string) error { return unix.Mknod(dev+"/null", unix.S_IFBLK|0o666, int(unix.Mkdev(1, 3))) },
	} {
		t.Run(name, func(t *testing.T) {
			dev := t.TempDir()
			check(t, make(dev))
			s := newSpec(newRoot(t), "view")
			for i := range s.Mounts {
				if s.Mounts[i].Destination == "/dev" {
					s.Mounts[i] = specs.Mount{Destination: "/dev", Type: "bind", Source: dev, Options: []string{"bind"}}
				}
			}
			_, _, err := run(t, s, nil)
			var se *StepError
			if !errors.As(err, &se) || !strings.Contains(se.Label, "null device") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestCVE_2026_88264_LinkedDev(t *testing.T) {
	requireRoot(t)
	host := emptyDir(t)
	for _, target := range []string{host, "/", "/proc", "/elsewhere"} {
		root := newRoot(t)
		check(t, os.Mkdir(root+"/elsewhere", 0o755))
		check(t, os.Symlink(target, root+"/dev"))
		_, _, err := run(t, newSpec(root, "view"), nil)
		if !errors.Is(err, unix.ELOOP) {
			t.Errorf("/dev is a link to %s: %v, want ELOOP", target, err)
		}
	}
}

func TestCVE_2026_88265_NoDevMount(t *testing.T) {
	requireRoot(t)
	host := emptyDir(t)
	root := newRoot(t)
	check(t, os.Mkdir(root+"/dev", 0o755))
	// The nodes of a runtime that writes to the image's /dev would go through these.
	for _, name := range []string{"null", "console", "ptmx", "shm", "pts"} {
		check(t, os.Symlink(host+"/"+name, root+"/dev/"+name))
	}
	s := newSpec(root, "stat", "/dev/null", "/dev/ptmx")
	s.Mounts = s.Mounts[:1] // only /proc
	if got, want := mustRun(t, s, nil), "/dev/null 20666 0:0 1:3 \n/dev/ptmx 120777 0:0 0:0 pts/ptmx\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if l, err := os.Readlink(root + "/dev/null"); err != nil || l != host+"/null" {
		t.Errorf("the image's /dev was changed: %s %v", l, err)
	}
}

// The attacker shares a volume with the container that starts, and swaps a directory on the way to a mount point for a
// link that leads out of it. It covers CVE-2024-45310 as well: no mount point is made on the host.
func TestCVE_2021_30465_MountTargetSwapped(t *testing.T) {
	requireRoot(t)
	host := emptyDir(t)
	volume := t.TempDir()
	check(t, os.Mkdir(volume+"/a", 0o755))
	check(t, os.Symlink(host, volume+"/b"))
	check(t, os.Symlink("../../../../../../../../../.."+host, volume+"/c"))
	stop := make(chan struct{})
	var swaps sync.WaitGroup
	swaps.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			unix.Renameat2(unix.AT_FDCWD, volume+"/a", unix.AT_FDCWD, volume+[]string{"/b", "/c"}[i%2], unix.RENAME_EXCHANGE)
		}
	})
	l := &Launcher{}
	defer l.Close()
	root := newRoot(t)
	outside := 0
	for i := range 50 {
		s := newSpec(root, "view")
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}}
		at := "/volume/a/" + strconv.Itoa(i) + "/deep"
		s.Mounts = []specs.Mount{
			{Destination: "/proc", Type: "proc"},
			{Destination: "/volume", Type: "bind", Source: volume, Options: []string{"rbind"}},
			{Destination: at, Type: "tmpfs"},
		}
		out, _, err := runWith(t, l, s, nil)
		if err == nil && !strings.Contains(out, `"`+at+`"`) {
			outside++ // inside of the container, where the link leads when / is the container's root
		}
	}
	close(stop)
	swaps.Wait()
	if len(mountLines()) == 0 {
		t.Fatal("no mounts")
	}
	for _, m := range mountLines() {
		if strings.HasPrefix(m.At, host) || strings.HasPrefix(m.At, volume) {
			t.Errorf("a mount on the host: %+v", m)
		}
	}
	t.Logf("%d mounts followed the link inside of the container", outside)
}

func TestCVE_2025_52881_RedirectedProcWrite(t *testing.T) {
	requireRoot(t)
	root, volume := newRoot(t), t.TempDir()
	check(t, os.WriteFile(volume+"/ip_forward", []byte("unchanged"), 0o666))
	check(t, os.Symlink("/proc/sys/net/ipv4", root+"/alias"))
	s := newSpec(root, "view")
	s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/alias", Type: "bind", Source: volume, Options: []string{"bind"}})
	_, _, err := run(t, s, nil)
	if !errors.Is(err, unix.EXDEV) {
		t.Errorf("got %v, want EXDEV", err)
	}
	if b, _ := os.ReadFile(volume + "/ip_forward"); string(b) != "unchanged" {
		t.Errorf("the write went to the volume: %q", b)
	}
}

func TestCVE_2022_0811_SysctlInjection(t *testing.T) {
	for _, key := range []string{"net.ipv4.x+kernel.core_pattern", "net/../kernel/core_pattern", "net..ipv4", "net.ipv4.", ".net", "net.ipv4.ip_forward=1", "net.\n", "kernel.core_pattern", "kernel/core_pattern", ""} {
		s := portable()
		s.Linux.Sysctl = map[string]string{key: "1"}
		var se *SpecError
		if _, err := Compile(s, nil); !errors.As(err, &se) {
			t.Errorf("%q: %v, want a SpecError", key, err)
		}
	}
}

func TestCVE_2018_10856_CapabilitiesOfAnotherUser(t *testing.T) {
	requireRoot(t)
	s := newSpec(newRoot(t), "view")
	s.Process.User = specs.User{UID: 1000, GID: 1000}
	v := viewOf(t, s, nil)
	for _, set := range []string{"CapEff", "CapPrm", "CapInh", "CapAmb"} {
		if v.Status[set] != "0000000000000000" {
			t.Errorf("%s is %s, want none", set, v.Status[set])
		}
	}
}

func TestCVE_2022_24769_InheritableCapabilities(t *testing.T) {
	requireRoot(t)
	for _, security := range []*Security{{}, {Privileged: true}, {CapAdd: []string{"ALL"}}} {
		s := newSpec(newRoot(t), "view")
		check(t, security.Apply(s))
		if v := viewOf(t, s, nil); v.Status["CapInh"] != "0000000000000000" {
			t.Errorf("%+v: CapInh is %s", security, v.Status["CapInh"])
		}
	}
}

func TestCVE_2022_36109_SupplementaryGroups(t *testing.T) {
	requireRoot(t)
	for want, groups := range map[string][]uint32{"": nil, "7": {7}, "7 8": {8, 7}} {
		s := newSpec(newRoot(t), "view")
		s.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: groups}
		if v := viewOf(t, s, nil); v.Status["Groups"] != want {
			t.Errorf("groups %q, want %q", v.Status["Groups"], want)
		}
	}
}

func TestCVE_2026_31431_CryptoSockets(t *testing.T) {
	requireRoot(t)
	out := mustRun(t, newSpec(newRoot(t), "try", "alg"), nil)
	if !strings.Contains(out, "not permitted") && !strings.Contains(out, "not supported") && !strings.Contains(out, "not implemented") {
		t.Errorf("AF_ALG: %s", out)
	}
}

func TestCVE_2019_5736_RuntimeThroughProcSelfExe(t *testing.T) {
	requireRoot(t)
	exe, err := os.Executable()
	check(t, err)
	before, err := os.Stat(exe)
	check(t, err)
	root := newRoot(t)
	check(t, os.WriteFile(root+"/bin/script", []byte("#!/proc/self/exe\n"), 0o755))
	for _, arg := range []string{"/proc/self/exe", "/bin/script", "/proc/1/exe"} {
		s := newSpec(root, "x")
		s.Process.Args = []string{arg, "view"}
		out, status, err := run(t, s, nil)
		if err == nil && status.Code == 0 {
			t.Errorf("%s ran: %s", arg, out)
		}
		if strings.Contains(out, "Status") {
			t.Errorf("%s is this program: %s", arg, out)
		}
	}
	after, err := os.Stat(exe)
	check(t, err)
	if after.ModTime() != before.ModTime() || after.Size() != before.Size() {
		t.Error("this program was changed")
	}
}

// TestCgroups starts containers in groups of the hierarchies that this machine has.
func TestCgroups(t *testing.T) {
	requireRoot(t)
	unified := "/sys/fs/cgroup"
	if len(hostCgroups().v1) > 0 {
		unified = "/sys/fs/cgroup/unified"
	}
	name := "nsexec-test-" + strconv.Itoa(os.Getpid())
	opts := &Options{}
	group := func(parent, file string, flags int) *os.File {
		dir := filepath.Join(parent, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Skipf("no cgroup can be made here: %v", err)
		}
		t.Cleanup(func() { os.Remove(dir) })
		f, err := os.OpenFile(filepath.Join(dir, file), flags, 0)
		check(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	if _, err := os.Stat(unified + "/cgroup.procs"); err == nil {
		opts.Cgroup = group(unified, "", unix.O_DIRECTORY)
	}
	for _, h := range hostCgroups().v1 {
		if h.name == "pids" || h.name == "freezer" {
			opts.Tasks = append(opts.Tasks, group("/sys/fs/cgroup/"+h.name, "tasks", unix.O_WRONLY))
		}
	}
	s := newSpec(newRoot(t), "view")
	v := viewOf(t, s, opts)
	for line := range strings.Lines(v.Cgroups) {
		if !strings.HasSuffix(line, ":/\n") {
			t.Errorf("cgroup path %q is not /", line)
		}
	}
	file := "/sys/fs/cgroup/cgroup.procs"
	if len(opts.Tasks) > 0 {
		file = "/sys/fs/cgroup/pids/cgroup.procs"
	}
	s.Process.Args = []string{insidePath, "cat", file, ";", "try", "mkdir", "/sys/fs/cgroup/x"}
	if out := mustRun(t, s, opts); !strings.HasPrefix(out, "1\nmkdir /sys/fs/cgroup/x: ") || !strings.Contains(out, "read-only") {
		t.Errorf("the group holds %q, want 1, read-only", out)
	}
}
