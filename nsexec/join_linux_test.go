package nsexec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A host is a running container that processes join.
type host struct {
	t      testing.TB
	l      *Launcher
	p      *Process
	spec   *specs.Spec
	root   string
	target *Target
	stdin  *os.File // its end ends the container
}

// newHost starts a container and waits for it to be ready to be joined.
func newHost(t testing.TB, change func(*specs.Spec), opts *Options) *host {
	t.Helper()
	requireRoot(t)
	h := &host{t: t, l: &Launcher{}, root: newRoot(t)}
	t.Cleanup(func() { h.l.Close() })
	h.spec = newSpec(h.root, "wait")
	if change != nil {
		change(h.spec)
	}
	prog, err := Compile(h.spec, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h.stdin = w
	t.Cleanup(func() { w.Close() })
	if h.p, err = h.l.Start(context.Background(), prog, &Stdio{Stdin: r}); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(h.p.PID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { pidfd.Close() })
	to := &TargetOptions{Process: pidfd}
	if opts != nil {
		to.Cgroup, to.Tasks = opts.Cgroup, opts.Tasks
	}
	if h.target, err = NewTarget(h.spec, to); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.target.Close() })
	return h
}

// process is the spec's process with another command of inside.
func (h *host) process(args ...string) *specs.Process {
	p := *h.spec.Process
	p.Args = append([]string{insidePath}, args...)
	return &p
}

// start starts a process, with its output in the returned pipe.
func (h *host) start(p *specs.Process, stdin *os.File) (*Process, *os.File, error) {
	prog, err := h.target.Compile(p)
	if err != nil {
		return nil, nil, err
	}
	defer prog.Close()
	r, w, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	proc, err := h.l.Start(h.t.Context(), prog, &Stdio{Stdin: stdin, Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		r.Close()
		return nil, nil, err
	}
	return proc, r, nil
}

// exec runs a process to its end.
func (h *host) exec(p *specs.Process) (string, Status, error) {
	proc, r, err := h.start(p, nil)
	if err != nil {
		return "", Status{}, err
	}
	defer r.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		h.t.Fatal(err)
	}
	status, err := proc.Wait(h.t.Context())
	return string(out), status, err
}

func (h *host) mustExec(p *specs.Process) string {
	h.t.Helper()
	out, status, err := h.exec(p)
	if err != nil {
		h.t.Fatal(err)
	}
	if status.Code != 0 {
		h.t.Fatalf("ended with %v:\n%s", status, out)
	}
	return out
}

func (h *host) view(p *specs.Process) (v view) {
	h.t.Helper()
	if err := json.Unmarshal([]byte(h.mustExec(p)), &v); err != nil {
		h.t.Fatal(err)
	}
	return v
}

// compareViews says in what a process that joined differs from the container's first.
func compareViews(t *testing.T, first, joined view) {
	t.Helper()
	for _, key := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups", "Uid", "Gid", "SigIgn", "SigBlk"} {
		if first.Status[key] != joined.Status[key] {
			t.Errorf("%s is %q, the container's is %q", key, joined.Status[key], first.Status[key])
		}
	}
	if !maps.Equal(first.Namespace, joined.Namespace) {
		t.Errorf("namespaces %v, the container's are %v", joined.Namespace, first.Namespace)
	}
	if first.Cgroups != joined.Cgroups {
		t.Errorf("cgroups %q, the container's are %q", joined.Cgroups, first.Cgroups)
	}
	if first.Umask != joined.Umask || first.Hostname != joined.Hostname || first.Cwd != joined.Cwd || first.OOMAdj != joined.OOMAdj || !maps.Equal(first.Rlimits, joined.Rlimits) {
		t.Errorf("joined %+v\nfirst %+v", joined, first)
	}
	if !slices.Equal(first.Mounts, joined.Mounts) {
		t.Errorf("mounts %v\nthe container's %v", joined.Mounts, first.Mounts)
	}
	if joined.on("/proc").Type == "proc" && len(joined.Files) != 3 {
		t.Errorf("open files %v, want 0 to 2", joined.Files)
	}
	if joined.Sid != joined.Pid {
		t.Errorf("pid %d in session %d", joined.Pid, joined.Sid)
	}
}

// TestJoin: a process that joins has all that the container's first process has.
func TestJoin(t *testing.T) {
	requireRoot(t)
	mappings := []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
	adj := 300
	for _, test := range []struct {
		name   string
		change func(*specs.Spec)
	}{
		{"default", nil},
		{"user", func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 1001, 70000}}
			s.Process.Cwd, s.Process.OOMScoreAdj = "/dev", &adj
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 0, Hard: 4096}}
			s.Hostname = "boat"
		}},
		{"no new privileges", func(s *specs.Spec) { s.Process.NoNewPrivileges = true }},
		{"no filter", func(s *specs.Spec) { s.Linux.Seccomp = nil }},
		{"a filter that forbids set-up", func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{
				Names:  []string{"close_range", "umask", "setresuid", "setgroups", "setns", "prctl", "openat2", "write", "ppoll", "wait4"}[:7],
				Action: specs.ActErrno,
			}}}
			s.Process.User = specs.User{UID: 1000, GID: 1000}
		}},
		{"ambient", func(s *specs.Spec) {
			c := []string{"CAP_NET_BIND_SERVICE"}
			s.Process.User = specs.User{UID: 1000, GID: 1000}
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: c, Effective: c, Permitted: c, Inheritable: c, Ambient: c}
		}},
		{"user namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings, s.Linux.GIDMappings = mappings, mappings
		}},
		{"traceable", traceableSpec},
		{"traceable user without filter", func(s *specs.Spec) {
			traceableSpec(s)
			s.Process.User, s.Linux.Seccomp = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5}}, nil
			s.Process.Cwd = "/dev"
		}},
		{"traceable with no new privileges", func(s *specs.Spec) {
			traceableSpec(s)
			s.Process.NoNewPrivileges = true
		}},
		{"traceable with a filter that forbids the way", func(s *specs.Spec) {
			traceableSpec(s)
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"setsid"}, Action: specs.ActErrno}}}
		}},
		{"time namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		}},
		{"the host's pid namespace", sharesPIDs},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHost(t, func(s *specs.Spec) {
				if test.change != nil {
					test.change(s)
				}
				if len(s.Linux.UIDMappings) > 0 { // the root has to belong to the container's user
					os.Chown(s.Root.Path, 100000, 100000)
				}
			}, nil)
			first := *h.spec
			process := *h.spec.Process
			first.Process = &process
			first.Process.Args = []string{insidePath, "view"}
			want := viewOf(t, &first, nil)
			got := h.view(h.process("view"))
			// Another container of the same spec has namespaces of its own.
			want.Namespace, want.Mounts = got.Namespace, got.Mounts
			want.Rlimits, want.Hostname = got.Rlimits, h.spec.Hostname
			if h.spec.Hostname == "" {
				want.Hostname = got.Hostname
			}
			compareViews(t, want, got)
			for kind, link := range got.Namespace {
				of, err := os.Readlink("/proc/" + strconv.Itoa(h.p.PID()) + "/ns/" + kind)
				if err == nil && of != link {
					t.Errorf("the %s namespace is %s, the container's %s", kind, link, of)
				}
			}
		})
	}
}

// eitherWay are the specs of containers that are joined in one way and in the other; see confine_linux.go.
var eitherWay = map[string]func(*specs.Spec){"default": nil, "traceable": traceableSpec}

// traceableSpec gives a container CAP_SYS_PTRACE.
func traceableSpec(s *specs.Spec) {
	if err := (&Security{CapAdd: []string{"SYS_PTRACE"}}).Apply(s); err != nil {
		panic(err)
	}
}

// TestRunFilter holds the compiled default profile against what it is known to do.
func TestRunFilter(t *testing.T) {
	f, err := compileProfile(DefaultSpec().Linux.Seccomp)
	check(t, err)
	for name, test := range map[string]struct {
		nr   uint64
		args []uint64
		want bool
	}{
		"write": {unix.SYS_WRITE, nil, true}, "clone": {unix.SYS_CLONE, []uint64{unix.CLONE_PARENT | uint64(unix.SIGCHLD)}, true},
		"clone of a user namespace": {unix.SYS_CLONE, []uint64{unix.CLONE_NEWUSER}, false}, "clone3": {unix.SYS_CLONE3, nil, false},
		"mount": {unix.SYS_MOUNT, nil, false}, "personality": {unix.SYS_PERSONALITY, []uint64{0}, true}, "another personality": {unix.SYS_PERSONALITY, []uint64{7}, false},
		"unknown": {4000, nil, false},
	} {
		if got := f.allows(test.nr, test.args...); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	for _, bad := range [][]byte{nil, {1}, make([]byte, 8), bytes.Repeat([]byte{0x05, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f}, 3), bytes.Repeat([]byte{0x15, 0, 255, 255, 0, 0, 0, 0}, 3), {0x20, 0, 0, 0, 61, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0xff, 0x7f}} {
		if result, ok := runFilter(bad, make([]byte, 64)); ok {
			t.Errorf("%v: %x", bad, result)
		}
	}
}

func TestJoinStatus(t *testing.T) {
	for name, change := range eitherWay {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, change, nil)
			for _, code := range []int{0, 1, 7, 137, 255} {
				if _, status, err := h.exec(h.process("exit", strconv.Itoa(code))); err != nil || status.Code != code || status.Signal != 0 || status.MaxRSS == 0 {
					t.Errorf("exit %d: %+v, %v", code, status, err)
				}
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGSEGV} {
				proc, out, err := h.start(h.process("wait"), r)
				if err != nil {
					t.Fatal(err)
				}
				out.Close()
				pid := proc.PID()
				if err := proc.Signal(sig); err != nil {
					t.Error(err)
				}
				status, err := proc.Wait(t.Context())
				if err != nil || status.Signal != sig && !(sig == syscall.SIGSEGV && status.Code == 2) {
					t.Errorf("%v: %+v, %v", sig, status, err)
				}
				gone(t, pid)
			}
			if _, err := h.p.Wait(shortContext(t)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the container has ended: %v", err)
			}
		})
	}
}

func shortContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestJoinErrors(t *testing.T) {
	for name, change := range eitherWay {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, change, nil)
			check(t, os.WriteFile(h.root+"/plain", []byte("x"), 0o644))
			check(t, os.WriteFile(h.root+"/bin/script", []byte("no interpreter line"), 0o755))
			for name, want := range map[string]error{"/missing": fs.ErrNotExist, "missing": fs.ErrNotExist, "/plain": fs.ErrPermission, "/bin": fs.ErrPermission, "/bin/script": syscall.ENOEXEC} {
				p := h.process()
				p.Args = []string{name}
				_, _, err := h.exec(p)
				var ee *ExecError
				if !errors.As(err, &ee) || !errors.Is(err, want) || ee.Path != name {
					t.Errorf("%s: %v", name, err)
				}
			}
			p := h.process("view")
			p.Cwd = "/missing"
			var se *StepError
			if _, _, err := h.exec(p); !errors.As(err, &se) || !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("working directory: %v", err)
			}
			var spec *SpecError
			p = h.process("view")
			p.Cwd = "relative"
			if _, err := h.target.Compile(p); !errors.As(err, &spec) || spec.Field != "process.cwd" {
				t.Errorf("relative directory: %v", err)
			}
			if _, err := h.target.Compile(nil); !errors.As(err, &spec) {
				t.Errorf("no process: %v", err)
			}
			if _, err := NewTarget(nil, nil); !errors.As(err, &spec) {
				t.Errorf("no spec: %v", err)
			}
			if _, err := NewTarget(h.spec, nil); err == nil {
				t.Error("no process to join: no error")
			}
			// A container that has ended.
			h.stdin.Close()
			if _, err := h.p.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, _, err := h.exec(h.process("view")); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("the container has ended: %v", err)
			}
		})
	}
}

// TestJoinEndsWithContainer: who ends the container ends what has joined it, and the status is known.
func TestJoinEndsWithContainer(t *testing.T) {
	for name, change := range eitherWay {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, change, nil)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			proc, out, err := h.start(h.process("wait"), r)
			if err != nil {
				t.Fatal(err)
			}
			out.Close()
			h.p.Kill()
			if status, err := proc.Wait(t.Context()); err != nil || status.Signal != syscall.SIGKILL {
				t.Errorf("%+v, %v", status, err)
			}
		})
	}
}

// TestJoinerKilled: what has joined does not survive its joiner, whatever user it has become.
func TestJoinerKilled(t *testing.T) {
	for name, user := range map[string]specs.User{"root": {}, "another": {UID: 1000, GID: 1000}, "traceable": {UID: 1000, GID: 1000}} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, eitherWay[name], nil)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			p := h.process("wait")
			p.User = user
			proc, out, err := h.start(p, r)
			if err != nil {
				t.Fatal(err)
			}
			out.Close()
			pid := proc.PID()
			proc.mu.Lock()
			unix.PidfdSendSignal(proc.guard, unix.SIGKILL, nil, 0)
			proc.mu.Unlock()
			if status, err := proc.Wait(t.Context()); !errors.Is(err, ErrUnknownStatus) {
				t.Errorf("%+v, %v", status, err)
			}
			gone(t, pid)
		})
	}
}

func TestJoinCancel(t *testing.T) {
	for name, change := range eitherWay {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, change, nil)
			for i := range 30 {
				prog, err := h.target.Compile(h.process("exit", "0"))
				check(t, err)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*50*time.Microsecond)
				p, err := h.l.Start(ctx, prog, nil)
				switch {
				case err == nil:
					if _, err := p.Wait(t.Context()); err != nil {
						t.Error(err)
					}
				case !errors.Is(err, context.DeadlineExceeded):
					t.Errorf("cancelled: %v", err)
				}
				cancel()
			}
			// Nothing but the container's first process is in its pid namespace.
			if out := h.mustExec(h.process("ls", "/proc")); strings.HasPrefix(out, "1\n") {
				lines := strings.Split(out, "\n")
				n := 0
				for _, l := range lines {
					if _, err := strconv.Atoi(l); err == nil {
						n++
					}
				}
				if n != 2 {
					t.Errorf("%d processes in the container, want 2:\n%s", n, out)
				}
			}
		})
	}
}

// TestJoinCgroups: what joins is in the container's groups.
func TestJoinCgroups(t *testing.T) {
	for name, change := range eitherWay {
		t.Run(name, func(t *testing.T) {
			requireRoot(t)
			opts := cgroupsOf(t)
			h := newHost(t, change, opts)
			first, err := os.ReadFile("/proc/" + strconv.Itoa(h.p.PID()) + "/cgroup")
			check(t, err)
			r, w, err := os.Pipe()
			check(t, err)
			defer r.Close()
			defer w.Close()
			proc, out, err := h.start(h.process("wait"), r)
			check(t, err)
			out.Close()
			joined, err := os.ReadFile("/proc/" + strconv.Itoa(proc.PID()) + "/cgroup")
			check(t, err)
			if string(first) != string(joined) {
				t.Errorf("groups\n%s\nthe container's\n%s", joined, first)
			}
			if !strings.Contains(string(joined), "nsexec-test-") {
				t.Errorf("no group of the test's in %s", joined)
			}
			proc.Kill()
			proc.Wait(t.Context())
			for line := range strings.Lines(h.view(h.process("view")).Cgroups) {
				if !strings.HasSuffix(line, ":/\n") {
					t.Errorf("cgroup path %q is not /", line)
				}
			}
			h.l.Close()
		})
	}
}

// cgroupsOf makes groups in the hierarchies that this machine has.
func cgroupsOf(t *testing.T) *Options {
	t.Helper()
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
	return opts
}
