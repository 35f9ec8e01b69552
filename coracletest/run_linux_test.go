package coracletest_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/coracletest"
	"github.com/coracle-dev/coracle/internal/testtool"
	"github.com/coracle-dev/coracle/internal/testutil"
)

func TestMain(m *testing.M) {
	testtool.Main()
	flag.Parse()
	if skip := flag.Lookup("test.skip"); os.Geteuid() != 0 && skip != nil && skip.Value.String() == "" {
		fmt.Println("examples that start containers are skipped: they need root")
		flag.Set("test.skip", "^Example(HTTPOptions|Wait|WaitFunc|WaitError)$")
	}
	if os.Getenv(killedEnv) == "" {
		root, err := os.MkdirTemp("", "coracle-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(root)
		os.Setenv(coracletest.RootEnv, root)
	}
	code := testutil.LeakCheck(m)
	testtool.Cleanup()
	if os.Getenv(killedEnv) == "" {
		os.RemoveAll(os.Getenv(coracletest.RootEnv))
	}
	os.Exit(code)
}

// tool makes the image "tool" in the shared engine.
func tool(t testing.TB) *coracle.Engine {
	t.Helper()
	testutil.RequireRoot(t)
	eng := coracletest.Engine(t)
	makeTool(t, eng)
	return eng
}

// makeTool makes the image "tool", whose entrypoint is the tool of the tests.
func makeTool(t testing.TB, eng *coracle.Engine) {
	t.Helper()
	_, err := eng.ImageFromFS(t.Context(), "tool", testtool.FS(t, nil), &coracle.ImageFSOptions{Config: coracle.ImageConfig{Entrypoint: []string{"/tool"}}})
	if err != nil {
		t.Fatal(err)
	}
}

func spec(args ...string) coracle.ContainerSpec {
	return coracle.ContainerSpec{Image: "tool", Args: args}
}

// A recorder is a test that is looked at by another one.
type recorder struct {
	testing.TB
	name     string
	deadline time.Time

	mu       sync.Mutex
	said     strings.Builder
	failed   bool
	skipped  bool
	cleanups []func()
	ctx      context.Context
}

func (r *recorder) Name() string {
	if r.name != "" {
		return r.name
	}
	return r.TB.Name()
}

func (r *recorder) Context() context.Context        { return r.ctx }
func (r *recorder) Deadline() (time.Time, bool)     { return r.deadline, !r.deadline.IsZero() }
func (r *recorder) Failed() bool                    { r.mu.Lock(); defer r.mu.Unlock(); return r.failed }
func (r *recorder) Log(args ...any)                 { r.say(fmt.Sprintln(args...)) }
func (r *recorder) Logf(format string, args ...any) { r.say(fmt.Sprintf(format+"\n", args...)) }
func (r *recorder) Error(args ...any)               { r.Log(args...); r.Fail() }
func (r *recorder) Errorf(f string, args ...any)    { r.Logf(f, args...); r.Fail() }
func (r *recorder) Fail()                           { r.mu.Lock(); defer r.mu.Unlock(); r.failed = true }
func (r *recorder) FailNow()                        { r.Fail(); runtime.Goexit() }
func (r *recorder) Fatal(args ...any)               { r.Error(args...); runtime.Goexit() }
func (r *recorder) Fatalf(f string, args ...any)    { r.Errorf(f, args...); runtime.Goexit() }
func (r *recorder) Skipf(f string, args ...any) {
	r.Logf(f, args...)
	r.skipped = true
	runtime.Goexit()
}
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

func (r *recorder) say(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said.WriteString(text)
}

// record runs a test to its end, cleanup functions included, and returns what became of it.
func record(t testing.TB, r *recorder, test func(t testing.TB)) *recorder {
	t.Helper()
	var cancel context.CancelFunc
	r.TB = t
	r.ctx, cancel = context.WithCancel(t.Context())
	inGoroutine := func(f func()) {
		done := make(chan struct{})
		go func() { defer close(done); f() }()
		<-done
	}
	inGoroutine(func() { test(r) })
	cancel()
	for _, f := range slices.Backward(r.cleanups) {
		inGoroutine(f)
	}
	return r
}

// containers lists the names of all containers of the shared root.
func containers(t testing.TB) []string {
	t.Helper()
	list, err := coracletest.Engine(t).Containers(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range list {
		names = append(names, c.Name())
	}
	return names
}

// TestRun: containers of parallel subtests are named after them and gone with them.
func TestRun(t *testing.T) {
	tool(t)
	t.Run("group", func(t *testing.T) {
		shared := coracletest.Run(t, spec("say", "ready"), coracletest.ForLog("ready", 1))
		for i := range 8 {
			t.Run(fmt.Sprintf("a b/ü?%d", i), func(t *testing.T) {
				t.Parallel()
				s := spec("say", "ready")
				s.Labels = map[string]string{"mine": "yes"}
				s.AutoRemove = true
				c := coracletest.Run(t, s, coracletest.ForLog("ready", 1))
				if !strings.HasPrefix(c.Name(), fmt.Sprintf("TestRun.group.a_b.--%d-", i)) {
					t.Errorf("the name is %q", c.Name())
				}
				info, err := c.Inspect(t.Context())
				if err != nil || info.Status != coracle.StatusRunning || info.Labels["mine"] != "yes" || info.Labels[coracletest.TestLabel] != t.Name() {
					t.Errorf("%+v, %v", info, err)
				}
				if len(s.Labels) != 1 {
					t.Errorf("the spec's own labels were changed: %v", s.Labels)
				}
				if err := shared.Command("/tool", "true").Run(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	})
	t.Run("removed by the test", func(t *testing.T) {
		c := coracletest.Run(t, spec("say"))
		if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	})
	if left := containers(t); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestFailure: a test that fails shows the end of its containers' logs, made harmless; one that succeeds says nothing.
func TestFailure(t *testing.T) {
	tool(t)
	lines := []string{"say"}
	for i := range 60 {
		lines = append(lines, fmt.Sprintf("line %d", i))
	}
	lines = append(lines, "\x1b]0;title\a\x1b[2Jred", "bad \xff\xfe utf-8", "right\u202eleft", strings.Repeat("x", 3000), "ünïcode 水", "--- FAIL: TestOther (0.00s)")
	r := record(t, &recorder{name: "TestX/a"}, func(t testing.TB) {
		coracletest.Run(t, spec(lines...), coracletest.ForLog("FAIL", 1))
		c := coracletest.Run(t, spec("exit", "3"), coracletest.ForExit(3))
		gone := coracletest.Run(t, spec("exit", "3"))
		gone.Remove(t.Context(), &coracle.RemoveOptions{Force: true})
		t.Errorf("%s: not what I wanted", c.Name())
	})
	said := r.said.String()
	for _, want := range []string{
		`container "TestX.a-`, "of tool: running", "the last 50 lines of its log:", "    stdout | line 59\n", `\x1b]0;title\a\x1b[2Jred`,
		`bad \xff\xfe utf-8`, `right\u202eleft`, "... (2500 bytes more)", "ünïcode 水", "    stdout | --- FAIL: TestOther",
		"of tool: exited, exit status 3\nthere is nothing in its log", "was removed by the test",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in:\n%s", want, said)
		}
	}
	if strings.Contains(said, "line 15\n") || strings.ContainsAny(said, "\x1b\a\u202e") || !utf8.ValidString(said) {
		t.Errorf("said:\n%q", said)
	}
	r = record(t, &recorder{}, func(t testing.TB) {
		coracletest.Run(t, spec("say", "hello"), coracletest.ForLog("hello", 1))
	})
	if r.failed || r.said.String() != "" {
		t.Errorf("a test that succeeds says %q", r.said.String())
	}
	if left := containers(t); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestStartErrors: what cannot be started is an error, and nothing is left.
func TestStartErrors(t *testing.T) {
	eng := tool(t)
	missing := spec()
	missing.Image, missing.Pull = "no-such-image", coracle.PullNever
	noProgram := spec()
	noProgram.Entrypoint = []string{"/no-such-program"}
	for _, test := range []struct {
		name string
		spec coracle.ContainerSpec
		want error
	}{
		{"no image", missing, fs.ErrNotExist},
		{"no program", noProgram, fs.ErrNotExist},
		{"no sense", coracle.ContainerSpec{Image: "tool", Name: "?"}, coracle.ErrInvalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			if c, err := coracletest.Start(t, eng, test.spec); !errors.Is(err, test.want) || c != nil {
				t.Errorf("%v, %v", c, err)
			}
			r := record(t, &recorder{}, func(t testing.TB) {
				coracletest.Run(t, test.spec)
				t.Log("not reached")
			})
			if !r.failed || strings.Contains(r.said.String(), "not reached") {
				t.Errorf("said %s", r.said.String())
			}
		})
	}
	r := record(t, &recorder{}, func(t testing.TB) {
		coracletest.Run(t, spec("count", "3", "7"), coracletest.ForPort("80"))
	})
	if said := r.said.String(); !r.failed || strings.Count(said, "stdout | line 2") != 1 || !strings.Contains(said, "port 80: coracle: container") || !strings.Contains(said, "exit status 7") {
		t.Errorf("said %s", said)
	}
	// A test's own function may end the test.
	r = record(t, &recorder{}, func(t testing.TB) {
		coracletest.Run(t, spec("say", "hello"), failing{t})
	})
	if said := r.said.String(); !r.failed || !strings.Contains(said, "given up") || !strings.Contains(said, "running") {
		t.Errorf("said %s", said)
	}
	if left := containers(t); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

type failing struct{ t testing.TB }

func (f failing) Wait(context.Context, *coracle.Container) error { f.t.Fatal("given up"); return nil }

// TestSkip: without root a test skips and says why, or fails where it has to run.
func TestSkip(t *testing.T) {
	run := func() *recorder {
		return record(t, &recorder{}, func(t testing.TB) {
			coracletest.Require(t, &coracle.UnsupportedError{Feature: "running containers here", Fix: "use Linux"})
			t.Log("not reached")
		})
	}
	t.Setenv(coracletest.RequireEnv, "")
	if r := run(); !r.skipped || r.failed || r.said.String() != "containers cannot run: running containers here is not supported here: use Linux\n" {
		t.Errorf("skipped %t, failed %t: %s", r.skipped, r.failed, r.said.String())
	}
	t.Setenv(coracletest.RequireEnv, "all")
	if r := run(); r.skipped || !r.failed || !strings.HasPrefix(r.said.String(), "CORACLE_TEST_REQUIRE=all, but ") {
		t.Errorf("skipped %t, failed %t: %s", r.skipped, r.failed, r.said.String())
	}
	if err := coracletest.Available(); os.Geteuid() != 0 && !errors.Is(err, fs.ErrPermission) || os.Geteuid() == 0 && err != nil {
		t.Errorf("available: %v", err)
	}
}

// TestDeadline: the test ends before go test ends it.
func TestDeadline(t *testing.T) {
	tool(t)
	began := time.Now()
	r := record(t, &recorder{deadline: began.Add(3 * time.Second)}, func(t testing.TB) {
		coracletest.Run(t, spec("say", "hello"), coracletest.WithTimeout(time.Hour, coracletest.ForLog("never", 1)))
	})
	if took := time.Since(began); !r.failed || took > 3*time.Second || !strings.Contains(r.said.String(), "deadline exceeded") {
		t.Errorf("after %v: %s", took, r.said.String())
	}
}

// TestEngineShared: the engine is one for all tests, and closed after the last.
func TestEngineShared(t *testing.T) {
	testutil.RequireRoot(t)
	var first, later *coracle.Engine
	t.Run("one", func(t *testing.T) {
		first = coracletest.Engine(t)
		t.Run("two", func(t *testing.T) {
			if coracletest.Engine(t) != first {
				t.Error("another engine")
			}
		})
		if _, err := first.Images(t.Context()); err != nil {
			t.Errorf("closed while it is used: %v", err)
		}
	})
	if _, err := first.Container(t.Context(), "x"); !errors.Is(err, coracle.ErrClosed) {
		t.Errorf("not closed: %v", err)
	}
	t.Run("three", func(t *testing.T) { later = coracletest.Engine(t) })
	if later == first {
		t.Error("a closed engine")
	}
	entries, err := os.ReadDir(filepath.Join(os.Getenv(coracletest.RootEnv), "tests"))
	if err != nil || len(entries) > 0 {
		t.Errorf("marks left: %v, %v", entries, err)
	}
}

const killedEnv = "CORACLE_TEST_KILLED"

// TestKilled: what the tests of a binary that was killed have left is removed when the next opens the engine, detached
// containers that still run included, and what those of one that lives have is not.
func TestKilled(t *testing.T) {
	if os.Getenv(killedEnv) != "" {
		eng := tool(t)
		for _, detached := range []bool{true, false} {
			s := spec("say", "ready")
			s.Detached = detached
			coracletest.RunIn(t, eng, s, coracletest.ForLog("ready", 1))
		}
		coracletest.RunIn(t, eng, spec("exit", "0"), coracletest.ForExit())
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	testutil.RequireRoot(t)
	testutil.NotInVM(t, "there is too little room for a second root")
	root := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$", "-test.v")
	cmd.Env = append(os.Environ(), killedEnv+"=1", coracletest.RootEnv+"="+root, "TMPDIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the other test: %v: %s", err, out)
	}
	eng, err := coracle.Open(t.Context(), coracle.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer eng.Close()
	if list, err := eng.Containers(t.Context(), nil); err != nil || len(list) == 0 {
		t.Fatalf("containers: %v, %v", list, err)
	}
	t.Setenv(coracletest.RootEnv, root)
	t.Run("next", func(t *testing.T) {
		mine := coracletest.Run(t, spec("say", "ready"), coracletest.ForLog("ready", 1))
		list, err := eng.Containers(t.Context(), nil)
		if err != nil || len(list) != 1 || list[0].ID() != mine.ID() {
			t.Errorf("containers: %v, %v", list, err)
		}
		// One more binary comes.
		if err := coracletest.SweepAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := mine.Command("/tool", "true").Run(t.Context()); err != nil {
			t.Errorf("a container of a test that lives: %v", err)
		}
	})
}
