package coracle_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/testtool"
	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/nsexec"
)

// running starts a container that runs until the end of the test.
func running(t testing.TB, eng *coracle.Engine, spec coracle.ContainerSpec) *coracle.Container {
	t.Helper()
	if spec.Image == "" {
		spec.Image = "tool"
	}
	if spec.Args == nil {
		spec.Args = []string{"stubborn"}
	}
	withoutNetwork(&spec)
	c, err := eng.Create(t.Context(), &spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Remove(context.Background(), &coracle.RemoveOptions{Force: true}); err != nil && !errors.Is(err, coracle.ErrClosed) {
			t.Error(err)
		}
	})
	return c
}

// tool makes a command of the tool.
func tool(c *coracle.Container, args ...string) *coracle.Cmd {
	return c.Command("/tool", args...)
}

// reportOf runs a command that says of itself what it is.
func reportOf(t testing.TB, cmd *coracle.Cmd) (r testtool.Report) {
	t.Helper()
	out, err := cmd.Output(t.Context())
	var exit *coracle.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("%v: %s", err, exit.Stderr)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return r
}

func TestCommand(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{})
	out, err := tool(c, "echo", "hello", "world").Output(t.Context())
	if err != nil || string(out) != "hello world\n" {
		t.Errorf("%q, %v", out, err)
	}
	for _, code := range []int{0, 1, 7, 126, 137, 255} {
		cmd := tool(c, "exit", fmt.Sprint(code))
		err := cmd.Run(t.Context())
		var exit *coracle.ExitError
		if code == 0 && err != nil || code != 0 && (!errors.As(err, &exit) || exit.Code != code || exit.Signal != 0 || exit.Command != "/tool") {
			t.Errorf("exit %d: %v", code, err)
		}
		if cmd.ProcessState == nil || cmd.ProcessState.Code != code {
			t.Errorf("exit %d: %v", code, cmd.ProcessState)
		}
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGHUP} {
		var exit *coracle.ExitError
		if err := tool(c, "kill-self", fmt.Sprint(int(sig))).Run(t.Context()); !errors.As(err, &exit) || exit.Signal != sig || exit.Code != -1 {
			t.Errorf("%v: %v", sig, err)
		}
	}
	cmd := tool(c, "cat", "/missing")
	_, err = cmd.Output(t.Context())
	var exit *coracle.ExitError
	if !errors.As(err, &exit) || !strings.Contains(string(exit.Stderr), "no such file") || !strings.Contains(err.Error(), "/tool") {
		t.Errorf("stderr in the error: %v", err)
	}
	out, err = tool(c, "cat", "/missing").CombinedOutput(t.Context())
	if !errors.As(err, &exit) || !strings.Contains(string(out), "no such file") {
		t.Errorf("combined: %q, %v", out, err)
	}
}

// TestCommandIsolation: a command has all that the container's first process has.
func TestCommandIsolation(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	for name, spec := range map[string]coracle.ContainerSpec{
		"default": {},
		"user":    {User: "alice", GroupAdd: []string{"99"}, WorkingDir: "/home/alice", Limits: cgroup.Limits{PIDs: 100}},
		"strict": {Security: nsexec.Security{NoNewPrivileges: true, CapDrop: []string{"ALL"}, CapAdd: []string{"KILL"}},
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 0, Hard: 0}}},
		"privileged":   {Security: nsexec.Security{Privileged: true}},
		"host network": {Networks: []coracle.Attachment{{Network: coracle.NetworkHost}}},
	} {
		t.Run(name, func(t *testing.T) {
			first := report(t, eng, spec)
			c := running(t, eng, spec)
			r := reportOf(t, tool(c, "report"))
			for _, key := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Seccomp", "Seccomp_filters", "NoNewPrivs", "SigIgn", "SigBlk"} {
				if r.Status[key] != first.Status[key] {
					t.Errorf("%s is %s, the container's is %s", key, r.Status[key], first.Status[key])
				}
			}
			if r.Status["CapInh"] != "0000000000000000" {
				t.Errorf("CVE-2022-24769: CapInh is %s", r.Status["CapInh"])
			}
			if r.UID != first.UID || r.GID != first.GID || !slices.Equal(r.Groups, first.Groups) || r.Umask != first.Umask || r.Cwd != first.Cwd {
				t.Errorf("uid %d gid %d groups %v umask %o cwd %s", r.UID, r.GID, r.Groups, r.Umask, r.Cwd)
			}
			if !slices.Equal(r.FDs, []int{0, 1, 2}) {
				t.Errorf("descriptors %v", r.FDs)
			}
			info, err := c.Inspect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for kind, link := range r.Links {
				want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", info.PID, kind))
				if err == nil && link != want {
					t.Errorf("namespace %s: %s, the container's is %s", kind, link, want)
				}
			}
			for _, line := range r.Cgroups {
				if !strings.HasSuffix(line, ":/") {
					t.Errorf("cgroup %s", line)
				}
			}
			if r.PPID != 0 || r.SID != r.PID || r.PID == 1 {
				t.Errorf("pid %d, parent %d, session %d", r.PID, r.PPID, r.SID)
			}
		})
	}
}

// TestCommandCgroups looks from the host: a command is in the very groups of the container.
func TestCommandCgroups(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{})
	cmd := tool(c, "stubborn")
	if err := cmd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	info, _ := c.Inspect(t.Context())
	first, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", info.PID))
	if err != nil {
		t.Fatal(err)
	}
	joined, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.PID))
	if err != nil || !bytes.Equal(first, joined) {
		t.Errorf("%v: groups\n%s\nthe container's\n%s", err, joined, first)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	var exit *coracle.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Signal != syscall.SIGKILL {
		t.Error(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
}

func TestCommandEnvironment(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil, coracle.ImageConfig{Entrypoint: []string{"/tool"}, Env: []string{"A=image", "B=image"}})
	c := running(t, eng, coracle.ContainerSpec{Env: []string{"C=spec"}, Hostname: "boat"})
	cmd := tool(c, "report")
	cmd.Env = []string{"B=command", "C", "D=command"}
	cmd.Dir = "/proc"
	r := reportOf(t, cmd)
	for _, want := range []string{"A=image", "B=command", "D=command", "HOME=/root", "HOSTNAME=boat", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"} {
		if !slices.Contains(r.Env, want) {
			t.Errorf("no %s in %q", want, r.Env)
		}
	}
	if slices.Contains(r.Env, "C=spec") || r.Cwd != "/proc" {
		t.Errorf("environment %q, directory %s", r.Env, r.Cwd)
	}
	cmd = tool(c, "report")
	cmd.User, cmd.Env = "alice", []string{"HOME=/elsewhere"}
	if r := reportOf(t, cmd); !slices.Contains(r.Env, "HOME=/elsewhere") {
		t.Errorf("environment %q", r.Env)
	}
}

func TestCommandUser(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{User: "4711", GroupAdd: []string{"99"}})
	for _, test := range []struct {
		user     string
		uid, gid int
		groups   []int
		home     string
	}{
		{"", 4711, 0, []int{0, 99}, "/"},
		{"0", 0, 0, []int{0, 99}, "/root"},
		{"root", 0, 0, []int{0, 99}, "/root"},
		{"alice", 1000, 1000, []int{10, 50, 99, 1000}, "/home/alice"},
		{"alice:staff", 1000, 50, []int{50, 99}, "/home/alice"},
		{"1001", 1001, 0, []int{0, 99}, "/"}, // CVE-2026-46680
		{"5:6", 5, 6, []int{6, 99}, "/"},
	} {
		t.Run(test.user, func(t *testing.T) {
			cmd := tool(c, "report")
			cmd.User = test.user
			r := reportOf(t, cmd)
			if r.UID != test.uid || r.GID != test.gid || !slices.Equal(r.Groups, test.groups) || !slices.Contains(r.Env, "HOME="+test.home) {
				t.Errorf("uid %d gid %d groups %v env %q", r.UID, r.GID, r.Groups, r.Env)
			}
			if test.uid != 0 && (r.Status["CapEff"] != "0000000000000000" || r.Status["CapPrm"] != "0000000000000000") {
				t.Errorf("capabilities kept: %v", r.Status)
			}
		})
	}
	for _, user := range []string{"nobody-knows", "4294967296", "-1", "alice:nobody-knows"} {
		cmd := tool(c, "true")
		cmd.User = user
		if err := cmd.Run(t.Context()); !errors.Is(err, coracle.ErrInvalid) {
			t.Errorf("user %q: %v", user, err)
		}
	}
	// The files of now count, not those of the image.
	root := tool(c, "write", "/etc/passwd", "new:x:77:78::/new:\n")
	root.User = "0"
	if err := root.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	cmd := tool(c, "report")
	cmd.User = "new"
	if r := reportOf(t, cmd); r.UID != 77 || r.GID != 78 || !slices.Contains(r.Env, "HOME=/new") {
		t.Errorf("uid %d gid %d env %q", r.UID, r.GID, r.Env)
	}
}

func TestCommandOptions(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{})
	cmd := tool(c, "report")
	cmd.Privileged = true
	adj := 500
	cmd.OOMScoreAdj = &adj
	r := reportOf(t, cmd)
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "CapBnd:\t"+r.Status["CapBnd"]) || r.Status["CapEff"] != r.Status["CapBnd"] || r.Status["CapInh"] != "0000000000000000" || r.Status["Seccomp"] != "2" {
		t.Errorf("privileged: %v", r.Status)
	}
	cmd = tool(c, "cat", "/proc/self/oom_score_adj", "/proc/self/limits")
	cmd.OOMScoreAdj = &adj
	cmd.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 4096, Hard: 8192}}
	out, err := cmd.Output(t.Context())
	if err != nil || !strings.HasPrefix(string(out), "500\n") || !strings.Contains(string(out), "4096                 8192") {
		t.Errorf("%s, %v", out, err)
	}
}

// TestCommandMisuse: each mistake has its error, and nothing is left.
func TestCommandMisuse(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, fstest.MapFS{"plain": {Data: []byte("text"), Mode: 0o644}, "script": {Data: []byte("no interpreter line"), Mode: 0o755}})
	c := running(t, eng, coracle.ContainerSpec{})
	for name, test := range map[string]struct {
		change func(*coracle.Cmd)
		want   error
		exec   bool
	}{
		"no program":            {func(c *coracle.Cmd) { c.Args = nil }, coracle.ErrInvalid, false},
		"NUL":                   {func(c *coracle.Cmd) { c.Args = []string{"a\x00"} }, coracle.ErrInvalid, false},
		"relative directory":    {func(c *coracle.Cmd) { c.Dir = "tmp" }, coracle.ErrInvalid, false},
		"no such directory":     {func(c *coracle.Cmd) { c.Dir = "/missing" }, fs.ErrNotExist, false},
		"directory is a file":   {func(c *coracle.Cmd) { c.Dir = "/plain" }, syscall.ENOTDIR, false},
		"environment":           {func(c *coracle.Cmd) { c.Env = []string{"=x"} }, coracle.ErrInvalid, false},
		"stderr of a terminal":  {func(c *coracle.Cmd) { c.TTY, c.Stderr = true, io.Discard }, coracle.ErrInvalid, false},
		"size without terminal": {func(c *coracle.Cmd) { c.Size.Rows = 1 }, coracle.ErrInvalid, false},
		"score":                 {func(c *coracle.Cmd) { n := 1001; c.OOMScoreAdj = &n }, coracle.ErrInvalid, false},
		"rlimit":                {func(c *coracle.Cmd) { c.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }, nil, false},
		"missing command":       {func(c *coracle.Cmd) { c.Args = []string{"/missing"} }, fs.ErrNotExist, true},
		"missing in PATH":       {func(c *coracle.Cmd) { c.Args = []string{"missing"} }, fs.ErrNotExist, true},
		"not executable":        {func(c *coracle.Cmd) { c.Args = []string{"/plain"} }, fs.ErrPermission, true},
		"no format":             {func(c *coracle.Cmd) { c.Args = []string{"/script"} }, syscall.ENOEXEC, true},
		"a directory":           {func(c *coracle.Cmd) { c.Args = []string{"/etc"} }, fs.ErrPermission, true},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := tool(c, "true")
			test.change(cmd)
			err := cmd.Run(ctx)
			var op *coracle.OpError
			var exec *nsexec.ExecError
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !errors.As(err, &op) || errors.As(err, &exec) != test.exec {
				t.Errorf("got %v", err)
			}
		})
	}
	invalid := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, coracle.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	cmd := tool(c, "true")
	invalid("wait before the start", cmd.Wait())
	invalid("resize before the start", cmd.Resize(1, 1))
	if err := cmd.Run(ctx); err != nil {
		t.Fatal(err)
	}
	invalid("start again", cmd.Start(ctx))
	invalid("wait again", cmd.Wait())
	invalid("resize without terminal", cmd.Resize(1, 1))
	_, err := cmd.StdinPipe()
	invalid("pipe after the start", err)
	cmd = tool(c, "true")
	cmd.Stdout = io.Discard
	_, err = cmd.Output(ctx)
	invalid("Stdout set twice", err)
	_, err = cmd.CombinedOutput(ctx)
	invalid("Stdout set twice", err)
	_, err = cmd.StdoutPipe()
	invalid("Stdout set twice", err)
	cmd = tool(c, "true")
	if _, err := cmd.StderrPipe(); err != nil {
		t.Fatal(err)
	}
	_, err = cmd.StderrPipe()
	invalid("Stderr set twice", err)
	cmd.Dir = "/missing"
	if err := cmd.Run(ctx); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := tool(c, "true").Run(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before the start: %v", err)
	}
}

func TestCommandNotRunning(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"stubborn"}})
	if err != nil {
		t.Fatal(err)
	}
	notRunning := func(what string, want error) {
		t.Helper()
		if err := tool(c, "true").Run(ctx); !errors.Is(err, want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	notRunning("before the start", coracle.ErrNotRunning)
	for range 2 {
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if err := tool(c, "true").Run(ctx); err != nil {
			t.Error(err)
		}
		if err := c.Kill(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		notRunning("after the end", coracle.ErrNotRunning)
	}
	if err := c.Remove(ctx, nil); err != nil {
		t.Fatal(err)
	}
	notRunning("after the removal", fs.ErrNotExist)
}

// TestCommandWhileEnding: commands that meet the end of their container either run, are killed with it, or say that it is
// not running.
func TestCommandWhileEnding(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, fstest.MapFS{"bin/true": {Data: trueELF(t), Mode: 0o755}})
	for round := range 20 {
		spec := coracle.ContainerSpec{Image: "tool", Args: []string{"stubborn"}}
		if round%2 == 1 {
			spec.Security.CapAdd = []string{"SYS_PTRACE"}
		}
		c, err := eng.Create(ctx, &spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					err := c.Command("/bin/true").Run(ctx)
					var exit *coracle.ExitError
					switch {
					case err == nil, errors.As(err, &exit) && exit.Signal == syscall.SIGKILL:
					case errors.Is(err, coracle.ErrNotRunning):
						return
					default:
						t.Errorf("round %d: %v", round, err)
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(round) * 300 * time.Microsecond)
		if err := c.Kill(ctx); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if err := c.Remove(ctx, &coracle.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
}

// TestCommandElsewhere: an engine that did not start the container runs commands in it, with the container's isolation.
func TestCommandElsewhere(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{Name: "c", Customize: func(s *specs.Spec) error {
		s.Process.NoNewPrivileges = true
		return nil
	}})
	other, err := coracle.Open(ctx, coracle.Config{Root: eng.Root()})
	if err != nil {
		t.Fatal(err)
	}
	found, err := other.Container(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	if r := reportOf(t, tool(found, "report")); r.Status["NoNewPrivs"] != "1" || r.Status["Seccomp"] != "2" {
		t.Errorf("%v", r.Status)
	}
	// Closing the engine ends its commands and waits for them, and leaves the container of the other one alone.
	cmd := tool(found, "stubborn")
	var out syncBuffer
	cmd.Stdout = &out
	if err := cmd.Start(ctx); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.PID
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("the command is left: %v", err)
	}
	var exit *coracle.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Signal != syscall.SIGKILL {
		t.Error(err)
	}
	if err := tool(found, "true").Run(ctx); !errors.Is(err, coracle.ErrClosed) {
		t.Errorf("after the close: %v", err)
	}
	if err := tool(c, "true").Run(ctx); err != nil {
		t.Errorf("the container: %v", err)
	}
}

// TestCommandEvents: who watches the root sees commands, with how they ended.
func TestCommandEvents(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{Name: "c"})
	tool(c, "exit", "7").Run(ctx)
	tool(c, "kill-self", "9").Run(ctx)
	c.Command("/missing", "x").Run(ctx)
	var got []string
	ids := map[string]bool{}
	for _, ev := range events(t, eng, &coracle.EventOptions{Filter: coracle.EventFilter{Actions: []coracle.EventAction{coracle.ActionExecCreate, coracle.ActionExecStart, coracle.ActionExecDie}}}) {
		got = append(got, fmt.Sprintf("%s %s%s", ev.Action, ev.Attributes["exitCode"], ev.Attributes["signal"]))
		ids[ev.Attributes["execID"]] = true
	}
	want := []string{"exec_create: /tool exit 7 ", "exec_start: /tool exit 7 ", "exec_die 7", "exec_create: /tool kill-self 9 ",
		"exec_start: /tool kill-self 9 ", "exec_die 1379", "exec_create: /missing x "}
	if !slices.Equal(got, want) || len(ids) != 3 {
		t.Errorf("got %q, %d ids", got, len(ids))
	}
}

// TestCommandDetached: commands run in a container whose program has ended.
func TestCommandDetached(t *testing.T) {
	ctx := t.Context()
	testutil.RequireRoot(t)
	root := t.TempDir()
	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	toolImage(t, eng, nil)
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Name: "c", Image: "tool", Args: []string{"stubborn"}, Detached: true, User: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	first := reportOf(t, tool(c, "report"))
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	if eng, err = coracle.Open(ctx, coracle.Config{Root: root}); err != nil {
		t.Fatal(err)
	}
	defer eng.Close()
	if c, err = eng.Container(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	defer c.Remove(context.Background(), &coracle.RemoveOptions{Force: true})
	r := reportOf(t, tool(c, "report"))
	if r.UID != 1000 || r.UID != first.UID || r.Status["Seccomp"] != "2" || r.Status["CapBnd"] != first.Status["CapBnd"] || r.Links["pid"] != first.Links["pid"] {
		t.Errorf("%+v", r)
	}
	cmd := tool(c, "tty")
	cmd.TTY = true
	if out, err := cmd.Output(ctx); err != nil || !strings.HasPrefix(string(out), "0 0 0") {
		t.Errorf("%q, %v", out, err)
	}
	if err := c.Stop(ctx, &coracle.StopOptions{Timeout: time.Millisecond}); err != nil {
		t.Error(err)
	}
	if err := tool(c, "true").Run(ctx); !errors.Is(err, coracle.ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

// TestCommandCloseEngine: an engine's end takes commands in its own containers along, whoever reads their output.
func TestCommandCloseEngine(t *testing.T) {
	ctx := t.Context()
	testutil.RequireRoot(t)
	before := testutil.Resources()
	eng, err := coracle.Open(ctx, coracle.Config{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	toolImage(t, eng, nil)
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"stubborn"}, AutoRemove: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	var cmds []*coracle.Cmd
	for i := range 8 {
		cmd := tool(c, []string{"stubborn", "daemon"}[i%2], "stubborn")
		cmd.TTY = i >= 4
		cmd.Stdout = &syncBuffer{}
		if i%4 == 3 {
			cmd.Stdout = nil
		}
		if err := cmd.Start(ctx); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	if err := eng.Close(); err != nil {
		t.Error(err)
	}
	for i, cmd := range cmds {
		var exit *coracle.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.Signal != syscall.SIGKILL {
			t.Errorf("%d: %v", i, err)
		}
	}
	testutil.Settled(t, before)
}

// TestCommandPaused: a frozen container is refused at once.
func TestCommandPaused(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{})
	if err := tool(c, "true").Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	h, err := cgroup.Open(cgroup.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	g, err := h.Load(eng.GroupPrefix() + c.ID())
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Freeze(t.Context()); errors.Is(err, errors.ErrUnsupported) {
		testutil.Skip(t, err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	if err := tool(c, "true").Run(t.Context()); !errors.Is(err, coracle.ErrPaused) {
		t.Errorf("got %v", err)
	}
	if err := g.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := tool(c, "true").Run(t.Context()); err != nil {
		t.Error(err)
	}
}

// exitELF is a program that does nothing but end with a code.
func exitELF(t testing.TB, code int) []byte {
	t.Helper()
	p := &nsexec.Plan{}
	p.Syscall("exit", unix.SYS_EXIT_GROUP, nsexec.Const(uint64(code)))
	b, err := p.ELF()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestCommandStorm: many commands, many at once, and nothing of them is left.
func TestCommandStorm(t *testing.T) {
	total, atOnce := 10_000, 50
	if testing.Short() || testutil.RaceEnabled {
		total = 500
	}
	ctx, eng := t.Context(), engine(t)
	const codes = 50
	files := fstest.MapFS{}
	for code := range codes {
		files[fmt.Sprintf("bin/exit-%d", code)] = &fstest.MapFile{Data: exitELF(t, code), Mode: 0o755}
	}
	toolImage(t, eng, files)
	c := running(t, eng, coracle.ContainerSpec{})
	if err := tool(c, "true").Run(ctx); err != nil {
		t.Fatal(err)
	}
	before := testutil.Resources()
	numbers := make(chan int)
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for n := range numbers {
				cmd := c.Command(fmt.Sprintf("exit-%d", n%codes))
				err := cmd.Run(ctx)
				var exit *coracle.ExitError
				if want := n % codes; want > 0 && !errors.As(err, &exit) || cmd.ProcessState == nil || cmd.ProcessState.Code != want || cmd.Process.PID == 0 {
					t.Errorf("%d: %v, want %d", n, err, want)
				}
			}
		})
	}
	for n := range total {
		numbers <- n
	}
	close(numbers)
	wg.Wait()
	testutil.Settled(t, before)
	if r := reportOf(t, tool(c, "report")); len(r.Processes) != 2 {
		t.Errorf("processes left in the container: %v", r.Processes)
	}
}
