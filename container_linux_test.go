package coracle_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/lockorder"
	"github.com/coracle-dev/coracle/internal/powerloss"
	"github.com/coracle-dev/coracle/internal/testtool"
	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/nsexec"
)

func TestMain(m *testing.M) {
	powerloss.Main()
	testtool.Main()
	helperMain()
	limitsMain()
	detachedMain()
	superviseMain()
	modelMain()
	controlModelMain()
	pullMain()
	walkMain()
	placeMain()
	commandChildMain()
	openerMain()
	flag.Parse()
	if skip := flag.Lookup("test.skip"); os.Geteuid() != 0 && skip != nil && skip.Value.String() == "" {
		fmt.Println("examples that start containers are skipped: they need root")
		flag.Set("test.skip", needsRoot)
	}
	chooseInVM()
	lockorder.Enforce(func(violation string) { panic(violation) })
	code := testutil.LeakCheck(m)
	testtool.Cleanup()
	os.Exit(code)
}

// engine opens an engine on a root of its own.
func engine(t testing.TB) *coracle.Engine {
	t.Helper()
	testutil.RequireRoot(t)
	eng, err := coracle.Open(t.Context(), coracle.Config{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := eng.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return eng
}

// toolImage makes the image "tool", whose entrypoint is the tool of the tests.
func toolImage(t testing.TB, eng *coracle.Engine, extra fstest.MapFS, config ...coracle.ImageConfig) *coracle.Image {
	t.Helper()
	c := coracle.ImageConfig{Entrypoint: []string{"/tool"}}
	if len(config) > 0 {
		c = config[0]
	}
	img, err := eng.ImageFromFS(t.Context(), "tool", testtool.FS(t, extra), &coracle.ImageFSOptions{Config: c})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// withoutNetwork takes the container off the default network, where the test says nothing of networks or ports: tests of
// other things do without.
func withoutNetwork(spec *coracle.ContainerSpec) {
	if spec.Networks == nil && spec.Ports == nil {
		spec.Networks = onNetworks(coracle.NetworkNone)
	}
}

// output runs the tool and returns what it said.
func output(t testing.TB, eng *coracle.Engine, spec coracle.ContainerSpec, args ...string) string {
	t.Helper()
	if spec.Image == "" {
		spec.Image = "tool"
	}
	spec.Args = args
	withoutNetwork(&spec)
	out, err := eng.Output(t.Context(), &spec)
	var exit *coracle.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("%v: %s", err, exit.Stderr)
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// report runs the tool and returns what it says of itself.
func report(t testing.TB, eng *coracle.Engine, spec coracle.ContainerSpec, paths ...string) testtool.Report {
	t.Helper()
	var r testtool.Report
	if err := json.Unmarshal([]byte(output(t, eng, spec, append([]string{"report"}, paths...)...)), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRun(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	if out := output(t, eng, coracle.ContainerSpec{}, "echo", "hello", "world"); out != "hello world\n" {
		t.Errorf("output %q", out)
	}
	for _, test := range []struct {
		name   string
		args   []string
		code   int
		signal syscall.Signal
	}{
		{"exit 0", []string{"exit", "0"}, 0, 0},
		{"exit 1", []string{"exit", "1"}, 1, 0},
		{"exit 255", []string{"exit", "255"}, 255, 0},
		{"exit 137 is not a signal", []string{"exit", "137"}, 137, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := eng.Run(t.Context(), &coracle.ContainerSpec{Image: "tool", Args: test.args})
			var exit *coracle.ExitError
			if test.code == 0 && err == nil {
				return
			}
			if !errors.As(err, &exit) || exit.Code != test.code || exit.Signal != test.signal || exit.OOMKilled || exit.Unknown {
				t.Errorf("got %#v", err)
			}
		})
	}
	if list, err := eng.Containers(t.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}

func TestLifecycle(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Name: "db", Image: "tool", Args: []string{"obey"}, Labels: map[string]string{"a": "b"}, Stdout: &syncBuffer{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(ctx); !errors.Is(err, coracle.ErrNotRunning) {
		t.Errorf("wait before the start: %v", err)
	}
	if err := c.Kill(ctx); !errors.Is(err, coracle.ErrNotRunning) {
		t.Errorf("kill before the start: %v", err)
	}
	if err := c.Stop(ctx, nil); err != nil {
		t.Errorf("stop before the start: %v", err)
	}
	if _, err := eng.Create(ctx, &coracle.ContainerSpec{Name: "db", Image: "tool"}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second container of the name: %v", err)
	}
	for round := range 2 {
		if err := c.Start(ctx); err != nil {
			t.Fatalf("start %d: %v", round, err)
		}
		if err := c.Start(ctx); !errors.Is(err, coracle.ErrRunning) {
			t.Errorf("start while running: %v", err)
		}
		if err := c.Remove(ctx, nil); !errors.Is(err, coracle.ErrRunning) {
			t.Errorf("remove while running: %v", err)
		}
		info, err := c.Inspect(ctx)
		if err != nil || info.Status != coracle.StatusRunning || info.PID == 0 || info.OCI == nil || info.Labels["a"] != "b" {
			t.Errorf("inspect while running: %+v, %v", info, err)
		}
		if err := syscall.Kill(info.PID, 0); err != nil {
			t.Errorf("process %d: %v", info.PID, err)
		}
		waitForOutput(t, c, strings.Repeat("ready\n", round+1))
		if err := c.Stop(ctx, &coracle.StopOptions{Timeout: time.Minute}); err != nil {
			t.Fatal(err)
		}
		exit, err := c.Wait(ctx)
		if err != nil || exit.Code != int(syscall.SIGTERM) {
			t.Errorf("wait: %v, %v", exit, err)
		}
	}
	for _, name := range []string{"db", c.ID(), c.ID()[:10]} {
		if found, err := eng.Container(ctx, name); err != nil || found != c {
			t.Errorf("container %q: %v, %v", name, found, err)
		}
	}
	if list, _ := eng.Containers(ctx, &coracle.ContainerFilter{Status: coracle.StatusExited, Labels: map[string]string{"a": ""}}); len(list) != 1 {
		t.Errorf("filter: %v", list)
	}
	if list, _ := eng.Containers(ctx, &coracle.ContainerFilter{Status: coracle.StatusRunning}); len(list) != 0 {
		t.Errorf("filter: %v", list)
	}
	if err := c.Remove(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(ctx, nil); err != nil {
		t.Errorf("second remove: %v", err)
	}
	if _, err := eng.Container(ctx, "db"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after remove: %v", err)
	}
	if err := c.Start(ctx); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("start after remove: %v", err)
	}
}

// outputs finds the buffer that a container writes to.
func waitForOutput(t testing.TB, c *coracle.Container, want string) {
	t.Helper()
	info, err := c.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	buf := info.Spec.Stdout.(*syncBuffer)
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(buf.String(), want); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %q in %q", want, buf.String())
		}
	}
}

func TestStop(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	for _, test := range []struct {
		name string
		args []string
		spec coracle.ContainerSpec
		opts *coracle.StopOptions
		want coracle.ExitStatus
	}{
		{"obeys", []string{"obey"}, coracle.ContainerSpec{}, nil, coracle.ExitStatus{Code: 15}},
		{"signal of the spec", []string{"obey"}, coracle.ContainerSpec{StopSignal: "SIGUSR1"}, nil, coracle.ExitStatus{Code: 10}},
		{"signal of the call", []string{"obey"}, coracle.ContainerSpec{}, &coracle.StopOptions{Signal: "int"}, coracle.ExitStatus{Code: 2}},
		{"ignores", []string{"stubborn"}, coracle.ContainerSpec{}, &coracle.StopOptions{Timeout: time.Millisecond}, coracle.ExitStatus{Code: -1, Signal: syscall.SIGKILL}},
		{"ignores, time-out of the spec", []string{"stubborn"}, coracle.ContainerSpec{StopTimeout: time.Millisecond}, nil, coracle.ExitStatus{Code: -1, Signal: syscall.SIGKILL}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.spec.Image, test.spec.Args, test.spec.Stdout = "tool", test.args, &syncBuffer{}
			c, err := eng.Create(ctx, &test.spec)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(ctx); err != nil {
				t.Fatal(err)
			}
			waitForOutput(t, c, "ready")
			if err := c.Stop(ctx, test.opts); err != nil {
				t.Fatal(err)
			}
			exit, err := c.Wait(ctx)
			if err != nil || exit.Code != test.want.Code || exit.Signal != test.want.Signal {
				t.Errorf("got %v, %v, want %v", exit, err, test.want)
			}
			if err := c.Remove(ctx, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRemoveForce(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"stubborn"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(ctx, &coracle.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := eng.Container(ctx, c.ID()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}

func TestCancelRun(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	ctx, cancel := context.WithCancel(t.Context())
	started := &callOnWrite{call: cancel}
	err := eng.Run(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"stubborn"}, Stdout: started})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if list, err := eng.Containers(t.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}

func TestStreams(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	t.Run("stdin", func(t *testing.T) {
		in := strings.Repeat("0123456789", 100_000)
		if out := output(t, eng, coracle.ContainerSpec{Stdin: strings.NewReader(in)}, "cat"); out != in {
			t.Errorf("%d bytes came back of %d", len(out), len(in))
		}
	})
	t.Run("stdin is a file", func(t *testing.T) {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		f.WriteString("from a file")
		f.Seek(0, io.SeekStart)
		if out := output(t, eng, coracle.ContainerSpec{Stdin: f}, "cat"); out != "from a file" {
			t.Errorf("output %q", out)
		}
	})
	t.Run("no stdin", func(t *testing.T) {
		if out := output(t, eng, coracle.ContainerSpec{}, "cat"); out != "" {
			t.Errorf("output %q", out)
		}
	})
	t.Run("stdin nobody reads", func(t *testing.T) {
		r, w := io.Pipe()
		defer w.Close()
		if out := output(t, eng, coracle.ContainerSpec{Stdin: r}, "echo", "done"); out != "done\n" {
			t.Errorf("output %q", out)
		}
	})
	t.Run("stdout and stderr are one", func(t *testing.T) {
		var both bytes.Buffer
		for _, cmd := range []string{"echo", "echo2"} {
			if err := eng.Run(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{cmd, cmd}, Stdout: &both, Stderr: &both}); err != nil {
				t.Fatal(err)
			}
		}
		if both.String() != "echo\necho2\n" {
			t.Errorf("output %q", both.String())
		}
	})
	t.Run("stderr in the error", func(t *testing.T) {
		_, err := eng.Output(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"cat", "/missing"}})
		var exit *coracle.ExitError
		if !errors.As(err, &exit) || !strings.Contains(string(exit.Stderr), "no such file") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("opened again by another user", func(t *testing.T) {
		if out := output(t, eng, coracle.ContainerSpec{User: "alice"}, "write", "/dev/stdout", "again"); out != "again" {
			t.Errorf("output %q", out)
		}
	})
	t.Run("much output", func(t *testing.T) {
		const n = 10 << 20
		if out := output(t, eng, coracle.ContainerSpec{}, "flood", fmt.Sprint(n)); len(out) != n || strings.Trim(out, "abcdefghijklmnopqrstuvwxyz") != "" {
			t.Errorf("%d bytes of %d", len(out), n)
		}
	})
	t.Run("a writer that fails", func(t *testing.T) {
		boom := errors.New("boom")
		err := eng.Run(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"flood", "1000000"}, Stdout: failingWriter{boom}})
		if !errors.Is(err, boom) {
			t.Errorf("got %v", err)
		}
	})
}

func TestConfiguration(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil, coracle.ImageConfig{
		Entrypoint: []string{"/tool"}, Cmd: []string{"echo", "default"}, Env: []string{"A=image", "B=image", "C=image"},
		WorkingDir: "/made/by/the/engine", Labels: map[string]string{"from": "image"},
	})
	if out := output(t, eng, coracle.ContainerSpec{}); out != "default\n" {
		t.Errorf("image's command: %q", out)
	}
	if out := output(t, eng, coracle.ContainerSpec{Entrypoint: []string{"/tool", "echo"}}, "x"); out != "x\n" {
		t.Errorf("entrypoint: %q", out)
	}
	if out := output(t, eng, coracle.ContainerSpec{Entrypoint: []string{""}}, "/tool", "echo", "y"); out != "y\n" {
		t.Errorf("no entrypoint: %q", out)
	}
	r := report(t, eng, coracle.ContainerSpec{Env: []string{"A=spec", "B", "D=spec"}, Hostname: "boat"})
	for _, want := range []string{"A=spec", "C=image", "D=spec", "HOME=/root", "HOSTNAME=boat", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"} {
		if !slices.Contains(r.Env, want) {
			t.Errorf("no %s in %q", want, r.Env)
		}
	}
	if slices.ContainsFunc(r.Env, func(s string) bool { return strings.HasPrefix(s, "B=") }) {
		t.Errorf("B is set in %q", r.Env)
	}
	if r.Hostname != "boat" || r.Cwd != "/made/by/the/engine" {
		t.Errorf("hostname %q, cwd %q", r.Hostname, r.Cwd)
	}
}

func TestUsers(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	for _, test := range []struct {
		user     string
		add      []string
		uid, gid int
		groups   []int
		home     string
	}{
		{"", nil, 0, 0, []int{0}, "/root"},
		{"0", nil, 0, 0, []int{0}, "/root"},
		{"alice", nil, 1000, 1000, []int{10, 50, 1000}, "/home/alice"},
		{"1000", nil, 1000, 1000, []int{10, 50, 1000}, "/home/alice"},
		{"alice:staff", nil, 1000, 50, []int{50}, "/home/alice"},
		{"alice:77", nil, 1000, 77, []int{77}, "/home/alice"},
		{"4711", nil, 4711, 0, []int{0}, "/"},
		{"1001", nil, 1001, 0, []int{0}, "/"}, // CVE-2026-46680: the image calls uid 0 "1001"
		{"4711:4712", []string{"wheel", "99"}, 4711, 4712, []int{10, 99, 4712}, "/"},
	} {
		t.Run(test.user, func(t *testing.T) {
			r := report(t, eng, coracle.ContainerSpec{User: test.user, GroupAdd: test.add})
			if r.UID != test.uid || r.GID != test.gid || !slices.Equal(r.Groups, test.groups) || !slices.Contains(r.Env, "HOME="+test.home) {
				t.Errorf("uid %d gid %d groups %v env %q", r.UID, r.GID, r.Groups, r.Env)
			}
			if test.uid != 0 && (r.Status["CapEff"] != "0000000000000000" || r.Status["CapPrm"] != "0000000000000000") {
				t.Errorf("CVE-2018-10856: capabilities kept: %v", r.Status)
			}
		})
	}
	for _, user := range []string{"nobody-knows", "broken", "huge", "4294967296", "2147483648", "-1", "alice:nobody-knows", "99999999999999999999"} {
		if err := eng.Run(ctx, &coracle.ContainerSpec{Image: "tool", User: user, Args: []string{"true"}}); !errors.Is(err, coracle.ErrInvalid) {
			t.Errorf("user %q: %v", user, err)
		}
	}
	if list, _ := eng.Containers(ctx, nil); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
}

// TestInside lets a container look at itself.
func TestInside(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	t.Setenv("CORACLE_TEST_SECRET", "of the host")
	leak, err := os.Open("/etc/passwd") // CVE-2024-21626: a descriptor of the host that could leak
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	r := report(t, eng, coracle.ContainerSpec{}, "/proc/kcore", "/proc/keys", "/proc/sys", "/proc/timer_list", "/sys", "/sys/firmware", "/proc/sysrq-trigger", "/dev/null", "/")
	if r.PID != 1 || r.PPID != 0 || r.SID != 1 || !slices.Equal(r.Processes, []int{1}) {
		t.Errorf("pid %d, parent %d, session %d, processes %v", r.PID, r.PPID, r.SID, r.Processes)
	}
	if !slices.Equal(r.FDs, []int{0, 1, 2}) {
		t.Errorf("descriptors %v", r.FDs)
	}
	for name, want := range map[string]string{
		"CapInh": "0000000000000000", "CapPrm": "00000000a80425fb", "CapEff": "00000000a80425fb", "CapBnd": "00000000a80425fb",
		"CapAmb": "0000000000000000", "Seccomp": "2", "NoNewPrivs": "0", "SigIgn": "0000000000000000", "SigBlk": "0000000000000000",
	} {
		// The Go runtime of the tool itself catches signals, but ignores and blocks none.
		if r.Status[name] != want {
			t.Errorf("%s is %s, want %s", name, r.Status[name], want)
		}
	}
	for _, line := range r.Cgroups {
		if _, path, _ := strings.Cut(line, ":"); !strings.HasSuffix(path, ":/") {
			t.Errorf("cgroup %s", line)
		}
	}
	if r.Exe1 != "/tool" || strings.Contains(r.Environ1, "CORACLE_TEST_SECRET") || slices.Contains(r.Env, "CORACLE_TEST_SECRET=of the host") {
		t.Errorf("exe %q, environ %q", r.Exe1, r.Environ1)
	}
	if r.Umask != 0o022 || r.Cwd != "/" {
		t.Errorf("umask %o, cwd %q", r.Umask, r.Cwd)
	}
	if got := r.MaskedOrRO; got["/proc/sys"] != "read-only" || got["/sys"] != "read-only" || got["/proc/kcore"] == "writable" || got["/"] != "writable" {
		t.Errorf("access: %v", got)
	}
	for kind, link := range r.Links {
		host, _ := os.Readlink("/proc/self/ns/" + kind)
		if same := host == link; same != (kind == "user" || kind == "time" || kind == "time_for_children") {
			t.Errorf("namespace %s: %s, the host has %s", kind, link, host)
		}
	}
}

func TestHostNetwork(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	r := report(t, eng, coracle.ContainerSpec{Networks: []coracle.Attachment{{Network: coracle.NetworkHost}}})
	host, _ := os.Readlink("/proc/self/ns/net")
	name, _ := os.Hostname()
	if r.Links["net"] != host || r.Hostname != name {
		t.Errorf("netns %s, want %s; hostname %s, want %s", r.Links["net"], host, r.Hostname, name)
	}
}

func TestFiles(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	spec := coracle.ContainerSpec{Hostname: "boat", ExtraHosts: []string{"db:10.0.0.7"}, DNS: []string{"192.0.2.1"}, DNSSearch: []string{"example"}}
	if out := output(t, eng, spec, "cat", "/etc/hostname"); out != "boat\n" {
		t.Errorf("hostname: %q", out)
	}
	if out := output(t, eng, spec, "cat", "/etc/hosts"); !strings.Contains(out, "127.0.0.1\tlocalhost\n") || !strings.Contains(out, "10.0.0.7\tdb\n") || !strings.Contains(out, "\tboat\n") {
		t.Errorf("hosts: %q", out)
	}
	for network, server := range map[string]string{coracle.NetworkBridge: "127.0.0.11", coracle.NetworkNone: "192.0.2.1"} {
		spec.Networks = onNetworks(network)
		if out := output(t, eng, spec, "cat", "/etc/resolv.conf"); out != "nameserver "+server+"\nsearch example\n" {
			t.Errorf("%s: resolv.conf: %q", network, out)
		}
	}
}

func TestMounts(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/file", []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	bind := coracle.ContainerSpec{Mounts: []coracle.Mount{{Source: dir, Target: "/deep/data"}, {Source: dir + "/file", Target: "/etc/single"}}}
	if out := output(t, eng, bind, "cat", "/deep/data/file", "/etc/single"); out != "of the hostof the host" {
		t.Errorf("bind: %q", out)
	}
	output(t, eng, bind, "write", "/deep/data/new", "by the container")
	if b, err := os.ReadFile(dir + "/new"); string(b) != "by the container" {
		t.Errorf("written: %q, %v", b, err)
	}
	readOnly := coracle.ContainerSpec{Image: "tool", Mounts: []coracle.Mount{{Source: dir, Target: "/data", ReadOnly: true}}, Args: []string{"write", "/data/x", "y"}}
	if err := eng.Run(ctx, &readOnly); err == nil {
		t.Error("a read-only bind mount was written to")
	}
	r := report(t, eng, coracle.ContainerSpec{Mounts: []coracle.Mount{{Type: coracle.MountTmpfs, Target: "/scratch", TmpfsSize: 1 << 20, TmpfsMode: 0o700}}})
	if !slices.ContainsFunc(r.Mounts, func(m string) bool {
		return strings.Contains(m, " /scratch rw,nosuid,nodev,noexec") && strings.Contains(m, "size=1024k,mode=700")
	}) {
		t.Errorf("no tmpfs in %q", r.Mounts)
	}
	err := eng.Run(ctx, &coracle.ContainerSpec{Image: "tool", Mounts: []coracle.Mount{{Source: dir + "/missing", Target: "/x"}}, Args: []string{"true"}})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing source: %v", err)
	}
}

func TestLimits(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	err := eng.Run(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"hog", "512"}, Limits: cgroup.Limits{Memory: 48 << 20, MemorySwap: 48 << 20}})
	var exit *coracle.ExitError
	if !errors.As(err, &exit) || exit.Signal != syscall.SIGKILL || !exit.OOMKilled {
		t.Errorf("memory hog: %v", err)
	}
	killed, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"stubborn"}, Limits: cgroup.Limits{Memory: 512 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	if err := killed.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := killed.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if status, err := killed.Wait(ctx); err != nil || status.Signal != syscall.SIGKILL || status.OOMKilled {
		t.Errorf("killed, but not for memory: %v, %v", status, err)
	}
	if out := output(t, eng, coracle.ContainerSpec{Limits: cgroup.Limits{PIDs: 30}}, "forks", "100"); out == "100\n" || out == "0\n" {
		t.Errorf("forks under a limit of 30: %s", out)
	}
}

func TestCustomize(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	r := report(t, eng, coracle.ContainerSpec{Customize: func(s *specs.Spec) error { s.Hostname = "customized"; return nil }})
	if r.Hostname != "customized" {
		t.Errorf("hostname %q", r.Hostname)
	}
	boom := errors.New("boom")
	if err := eng.Run(ctx, &coracle.ContainerSpec{Image: "tool", Customize: func(*specs.Spec) error { return boom }}); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	if list, _ := eng.Containers(ctx, nil); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
}

// TestBadInput: each mistake has its typed error, and nothing is left behind.
func TestBadInput(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, fstest.MapFS{
		"plain":   {Data: []byte("text"), Mode: 0o644},
		"script":  {Data: []byte("no interpreter line"), Mode: 0o755},
		"foreign": {Data: foreignELF(), Mode: 0o755},
		"bin/x":   {Data: []byte("x"), Mode: 0o644},
	})
	for _, test := range []struct {
		name string
		spec coracle.ContainerSpec
		want error
		exec bool
	}{
		{"no image named", coracle.ContainerSpec{}, coracle.ErrInvalid, false},
		{"missing image", coracle.ContainerSpec{Image: "missing", Pull: coracle.PullNever}, fs.ErrNotExist, false},
		{"bad name", coracle.ContainerSpec{Image: "tool", Name: "../x"}, coracle.ErrInvalid, false},
		{"nothing to execute", coracle.ContainerSpec{Image: "tool", Entrypoint: []string{""}}, coracle.ErrInvalid, false},
		{"missing command", coracle.ContainerSpec{Image: "tool", Entrypoint: []string{"/missing"}}, fs.ErrNotExist, true},
		{"missing command in PATH", coracle.ContainerSpec{Image: "tool", Entrypoint: []string{"missing"}}, fs.ErrNotExist, true},
		{"not executable", coracle.ContainerSpec{Image: "tool", Entrypoint: []string{"/plain"}}, fs.ErrPermission, true},
		{"not executable in PATH", coracle.ContainerSpec{Image: "tool", Entrypoint: []string{"x"}}, fs.ErrPermission, true},
		{"a directory", coracle.ContainerSpec{Image: "tool", Entrypoint: []string{"/etc"}}, fs.ErrPermission, true},
		{"no format", coracle.ContainerSpec{Image: "tool", Entrypoint: []string{"/script"}}, syscall.ENOEXEC, true},
		{"wrong architecture", coracle.ContainerSpec{Image: "tool", Entrypoint: []string{"/foreign"}}, syscall.ENOEXEC, true},
		{"bad sysctl", coracle.ContainerSpec{Image: "tool", Sysctls: map[string]string{"kernel.core_pattern": "|/x"}}, nil, false},
		{"bad limit", coracle.ContainerSpec{Image: "tool", Limits: cgroup.Limits{Memory: -5}}, coracle.ErrInvalid, false},
		{"bad mount", coracle.ContainerSpec{Image: "tool", Mounts: []coracle.Mount{{Source: "/", Target: "relative"}}}, coracle.ErrInvalid, false},
		{"bad signal", coracle.ContainerSpec{Image: "tool", StopSignal: "SIGNOTHING"}, coracle.ErrInvalid, false},
		{"bad capability", coracle.ContainerSpec{Image: "tool", Security: nsexec.Security{CapAdd: []string{"FLY"}}}, nil, false},
		{"unknown network", coracle.ContainerSpec{Image: "tool", Networks: []coracle.Attachment{{Network: "nowhere"}}}, fs.ErrNotExist, false},
		{"NUL", coracle.ContainerSpec{Image: "tool", Args: []string{"a\x00b"}}, coracle.ErrInvalid, false},
		{"working directory is a file", coracle.ContainerSpec{Image: "tool", WorkingDir: "/plain"}, syscall.ENOTDIR, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := eng.Run(ctx, &test.spec)
			var op *coracle.OpError
			var exec *nsexec.ExecError
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !errors.As(err, &op) || errors.As(err, &exec) != test.exec {
				t.Errorf("got %v", err)
			}
			t.Log(err)
		})
	}
	if list, _ := eng.Containers(ctx, nil); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
}

// foreignELF is the beginning of a program for a machine that nobody has here.
func foreignELF() []byte {
	b := make([]byte, 4096)
	copy(b, "\x7fELF\x02\x01\x01")
	b[16], b[18], b[20] = 2, 0xbe, 1
	return b
}

func TestOwnFilesystem(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	a, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"write", "/etc/passwd", "gone"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if exit, err := a.Wait(ctx); err != nil || !exit.Success() {
		t.Fatal(exit, err)
	}
	if out := output(t, eng, coracle.ContainerSpec{}, "cat", "/etc/passwd"); !strings.HasPrefix(out, "root:") {
		t.Errorf("another container sees %q", out)
	}
	if err := a.Remove(ctx, nil); err != nil {
		t.Error(err)
	}
	readOnly := coracle.ContainerSpec{Image: "tool", Security: nsexec.Security{ReadonlyRootfs: true}, Args: []string{"write", "/x", "y"}}
	if err := eng.Run(ctx, &readOnly); err == nil {
		t.Error("a read-only root was written to")
	}
}
