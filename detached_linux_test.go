package coracle_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// openAgain opens a root once more, as another program would.
func openAgain(t testing.TB, root string) *coracle.Engine {
	t.Helper()
	eng, err := coracle.Open(t.Context(), coracle.Config{Root: root})
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

// detached creates and starts a detached container of the tool, which is removed with the test.
func detached(t testing.TB, eng *coracle.Engine, spec coracle.ContainerSpec, args ...string) *coracle.Container {
	t.Helper()
	spec.Image, spec.Args, spec.Detached = "tool", args, true
	withoutNetwork(&spec)
	c, err := eng.Create(t.Context(), &spec)
	if err != nil {
		t.Fatal(err)
	}
	root := eng.Root()
	t.Cleanup(func() {
		eng, err := coracle.Open(context.Background(), coracle.Config{Root: root})
		if err != nil {
			t.Error(err)
			return
		}
		defer eng.Close()
		if c, err := eng.Container(context.Background(), c.ID()); err == nil {
			if err := c.Remove(context.Background(), &coracle.RemoveOptions{Force: true}); err != nil {
				t.Error(err)
			}
		}
	})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func inspect(t testing.TB, c *coracle.Container) *coracle.ContainerInfo {
	t.Helper()
	info, err := c.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// TestDetached: a container that runs on when its engine is closed, and that a later one waits for.
func TestDetached(t *testing.T) {
	testutil.RequireRoot(t)
	root := t.TempDir()
	first := openAgain(t, root)
	toolImage(t, first, nil)
	c := detached(t, first, coracle.ContainerSpec{Name: "kept", OpenStdin: true}, "cat")
	info := inspect(t, c)
	if info.Status != coracle.StatusRunning || info.PID == 0 || info.OCI == nil {
		t.Errorf("after the start: %+v", info)
	}
	if err := c.Start(t.Context()); !errors.Is(err, coracle.ErrRunning) {
		t.Errorf("started twice: %v", err)
	}
	if err := c.Remove(t.Context(), nil); !errors.Is(err, coracle.ErrRunning) {
		t.Errorf("removed while it runs: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(info.PID, 0); err != nil {
		t.Fatalf("it ended with its engine: %v", err)
	}
	second := openAgain(t, root)
	c, err := second.Container(t.Context(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	if again := inspect(t, c); again.Status != coracle.StatusRunning || again.PID != info.PID || again.OCI == nil {
		t.Errorf("from the second engine: %+v", again)
	}
	if err := c.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	exit, err := c.Wait(t.Context())
	if err != nil || exit.Signal != syscall.SIGKILL || exit.Unknown {
		t.Errorf("exit %v, %v", exit, err)
	}
	if after := inspect(t, c); after.Status != coracle.StatusExited || after.PID != 0 || after.Exit == nil || after.Finished.Before(after.Started) {
		t.Errorf("after the end: %+v", after)
	}
	if left := processesOf(second.GroupPrefix() + c.ID()); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// And again.
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(t.Context(), &coracle.StopOptions{Timeout: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	prefix := second.GroupPrefix()
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, root, prefix)
}

// TestDetachedExits: every way to end is told exactly, by an engine that was not there.
func TestDetachedExits(t *testing.T) {
	testutil.RequireRoot(t)
	root := t.TempDir()
	first := openAgain(t, root)
	toolImage(t, first, nil)
	for _, test := range []struct {
		name string
		spec coracle.ContainerSpec
		args []string
		want string
	}{
		{"code", coracle.ContainerSpec{}, []string{"exit", "42"}, "exit status 42"},
		{"signal", coracle.ContainerSpec{}, []string{"daemon", "stubborn"}, "signal: killed"},
		{"memory", coracle.ContainerSpec{Limits: cgroup.Limits{Memory: 32 << 20}}, []string{"hog", "64"}, "signal: killed (out of memory)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			first := openAgain(t, root)
			c := detached(t, first, test.spec, test.args...)
			pid := inspect(t, c).PID
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			if test.name == "signal" {
				syscall.Kill(pid, syscall.SIGKILL)
			}
			eventually(t, "it has ended", func() bool { return len(processesOf(first.GroupPrefix()+c.ID())) == 0 })
			second := openAgain(t, root)
			c, err := second.Container(t.Context(), c.ID())
			if err != nil {
				t.Fatal(err)
			}
			exit, err := c.Wait(t.Context())
			if err != nil || exit.String() != test.want {
				t.Errorf("it ended with %v, %v; want %s", exit, err, test.want)
			}
			if groups, _ := filepath.Glob("/sys/fs/cgroup/*/coracle/" + second.GroupPrefix() + c.ID()); len(groups) > 0 {
				t.Errorf("cgroups left: %v", groups)
			}
		})
	}
	t.Run("keeper killed", func(t *testing.T) {
		eng := openAgain(t, root)
		c := detached(t, eng, coracle.ContainerSpec{}, "daemon", "stubborn")
		info := inspect(t, c)
		syscall.Kill(info.KeeperPID, syscall.SIGKILL)
		exit, err := c.Wait(t.Context())
		if err != nil || !exit.Unknown || exit.Code != -1 {
			t.Errorf("it ended with %v, %v", exit, err)
		}
		eventually(t, "its processes are gone", func() bool { return len(processesOf(eng.GroupPrefix()+c.ID())) == 0 })
	})
}

// TestDetachedAutoRemove: it is removed by whoever learns of its end.
func TestDetachedAutoRemove(t *testing.T) {
	testutil.RequireRoot(t)
	root := t.TempDir()
	eng := openAgain(t, root)
	toolImage(t, eng, nil)
	// By the engine that started it, unasked.
	c := detached(t, eng, coracle.ContainerSpec{AutoRemove: true}, "true")
	eventually(t, "it is removed", func() bool {
		_, err := eng.Container(t.Context(), c.ID())
		return errors.Is(err, fs.ErrNotExist)
	})
	// By the next one.
	c = detached(t, eng, coracle.ContainerSpec{AutoRemove: true}, "stubborn")
	pid := inspect(t, c).PID
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(pid, syscall.SIGKILL)
	eventually(t, "it has ended", func() bool { return len(processesOf(eng.GroupPrefix()+c.ID())) == 0 })
	eventually(t, "the next engine removes it", func() bool {
		eng, err := coracle.Open(t.Context(), coracle.Config{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		defer eng.Close()
		list, err := eng.Containers(t.Context(), nil)
		return err == nil && len(list) == 0
	})
	checkEmpty(t, root, eng.GroupPrefix())
}

// TestDetachedWrong: what cannot be has its error.
func TestDetachedWrong(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	for name, spec := range map[string]coracle.ContainerSpec{
		"a stream of this program": {Image: "tool", Detached: true, Stdout: &bytes.Buffer{}},
		"two inputs":               {Image: "tool", OpenStdin: true, Stdin: strings.NewReader("")},
	} {
		if _, err := eng.Create(t.Context(), &spec); !errors.Is(err, coracle.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := detached(t, eng, coracle.ContainerSpec{}, "exit", "1")
	if _, err := c.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Signal(t.Context(), syscall.SIGTERM); !errors.Is(err, coracle.ErrNotRunning) {
		t.Errorf("a signal to one that has ended: %v", err)
	}
}

// TestDetachedCrash kills the program at random moments while it starts detached containers that write to their logs. No
// byte and no exit status is lost of those that were started, and nothing is left of the others.
func TestDetachedCrash(t *testing.T) {
	testutil.RequireRoot(t)
	const lines, perRound = 3000, 20
	rounds := 50
	if testing.Short() {
		rounds = 5
	}
	root := t.TempDir()
	eng := openAgain(t, root)
	toolImage(t, eng, nil)
	started := 0
	for round := range rounds {
		names := crashRound(t, root, perRound, lines, time.Duration(round*137%600)*time.Millisecond)
		started += len(names)
		checkCrashRound(t, root, names, lines)
	}
	t.Logf("%d kills, %d containers were started", rounds, started)
	prefix := eng.GroupPrefix()
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, root, prefix)
}

// crashRound runs a program that starts detached containers, kills it after a time, and returns what it had started.
func crashRound(t *testing.T, root string, containers, lines int, after time.Duration) (names []string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", fmt.Sprint(containers), fmt.Sprint(lines))
	cmd.Env = append(os.Environ(), detachedEnv+"="+root)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := bufio.NewScanner(out)
	read.Scan() // the engine is open
	time.AfterFunc(after, func() { cmd.Process.Kill() })
	for read.Scan() {
		names = append(names, read.Text())
	}
	cmd.Wait()
	return names
}

// checkCrashRound verifies what a killed program left, and removes it.
func checkCrashRound(t *testing.T, root string, started []string, lines int) {
	t.Helper()
	eng := openAgain(t, root) // sweeps
	defer eng.Close()
	list, err := eng.Containers(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string]bool)
	want := numbered(lines)
	for _, c := range list {
		known[c.Name()] = true
		if inspect(t, c).Status != coracle.StatusCreated {
			exit, err := c.Wait(t.Context())
			out := logged(t, c)
			if err != nil || exit.Code != 7 || out != want {
				// It was noted, and its program was killed before it was let go, and so before Start returned.
				if slices.Contains(started, c.Name()) || err != nil || exit.Signal != syscall.SIGKILL || !strings.HasPrefix(want, out) {
					t.Errorf("%s ended with %v, %v and logged %d bytes of %d", c.Name(), exit, err, len(out), len(want))
				}
			}
		} else if slices.Contains(started, c.Name()) {
			t.Errorf("%s was started", c.Name())
		}
		if err := c.Remove(t.Context(), nil); err != nil {
			t.Error(err)
		}
	}
	for _, name := range started {
		if !known[name] {
			t.Errorf("%s is lost", name)
		}
	}
}

const detachedEnv = "CORACLE_TEST_DETACHED"

// detachedMain is the program that is killed.
func detachedMain() {
	root := os.Getenv(detachedEnv)
	if root == "" {
		return
	}
	ctx := context.Background()
	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("open")
	n, _ := strconv.Atoi(os.Args[1])
	for i := range n {
		c, err := eng.Create(ctx, &coracle.ContainerSpec{
			Name: fmt.Sprintf("d%d", i), Image: "tool", Args: []string{"count", os.Args[2], "7"}, Detached: true,
			Log: coracle.LogSpec{MaxSize: -1},
		})
		if err == nil {
			err = c.Start(ctx)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(c.Name())
	}
	select {}
}

// numbered is what the tool writes for "count".
func numbered(lines int) string {
	var b strings.Builder
	for i := range lines {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	return b.String()
}

// logged returns the output in the log of a container that has ended.
func logged(t testing.TB, c *coracle.Container) string {
	t.Helper()
	var out bytes.Buffer
	if err := c.CopyLogs(t.Context(), &out, nil, nil); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestDetachedEvents: each start has one end, whoever notes it, and killed programs change nothing of that.
func TestDetachedEvents(t *testing.T) {
	testutil.RequireRoot(t)
	root := t.TempDir()
	eng := openAgain(t, root)
	toolImage(t, eng, nil)
	c := detached(t, eng, coracle.ContainerSpec{}, "exit", "5")
	others := []*coracle.Engine{openAgain(t, root), openAgain(t, root)}
	var wg sync.WaitGroup
	for _, e := range append(others, eng) {
		wg.Go(func() {
			seen, err := e.Container(t.Context(), c.ID())
			if err != nil {
				t.Error(err)
				return
			}
			if exit, err := seen.Wait(t.Context()); err != nil || exit.Code != 5 {
				t.Errorf("it ended with %v, %v", exit, err)
			}
		})
	}
	wg.Wait()
	removed := detached(t, eng, coracle.ContainerSpec{AutoRemove: true}, "true")
	eventually(t, "it is removed", func() bool {
		_, err := eng.Container(t.Context(), removed.ID())
		return errors.Is(err, fs.ErrNotExist)
	})
	counts := make(map[string]int)
	for ev, err := range eng.Events(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		if ev.Type == coracle.EventContainer {
			counts[ev.ID[:4]+" "+string(ev.Action)+" "+ev.Attributes["exitCode"]]++
		}
	}
	for _, want := range []string{
		c.ID()[:4] + " create ", c.ID()[:4] + " start ", c.ID()[:4] + " die 5",
		removed.ID()[:4] + " create ", removed.ID()[:4] + " start ", removed.ID()[:4] + " die 0", removed.ID()[:4] + " destroy ",
	} {
		if counts[want] != 1 {
			t.Errorf("%d events %q: %v", counts[want], want, counts)
		}
	}
}

// TestKeeperCgroups: a keeper is neither in the container's cgroups nor in those of the program that started it, which
// may be ended as a whole, in no hierarchy that can be written.
func TestKeeperCgroups(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := detached(t, eng, coracle.ContainerSpec{}, "sleep", "600000")
	info := inspect(t, c)
	groups := func(pid int) map[string]string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			t.Fatal(err)
		}
		m := make(map[string]string)
		for line := range strings.Lines(string(b)) {
			if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
				m[f[1]] = f[2]
			}
		}
		return m
	}
	found := 0
	keeper := groups(info.KeeperPID)
	for hierarchy, payload := range groups(info.PID) {
		if !strings.HasSuffix(payload, eng.GroupPrefix()+c.ID()) {
			continue // one that this machine has and cannot be written
		}
		found++
		if got := keeper[hierarchy]; !strings.HasSuffix(got, eng.GroupPrefix()+"keepers") {
			t.Errorf("in the hierarchy %q the keeper is in %s, the container in %s", hierarchy, got, payload)
		}
	}
	if found == 0 {
		t.Errorf("the container is in no cgroup of its own: %v", groups(info.PID))
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", info.KeeperPID)); err == nil && len(b) > 0 {
		t.Errorf("the keeper has an environment: %q", b)
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", info.KeeperPID)); err == nil && cwd != "/" {
		t.Errorf("the keeper is in %s, which cannot be unmounted", cwd)
	}
}

// TestKeepersGroupGoes: who closes the last engine right after the last detached container has ended leaves no cgroup.
func TestKeepersGroupGoes(t *testing.T) {
	testutil.RequireRoot(t)
	root := t.TempDir()
	first := openAgain(t, root)
	toolImage(t, first, nil)
	prefix := first.GroupPrefix()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		eng := openAgain(t, root)
		c := detached(t, eng, coracle.ContainerSpec{}, "true")
		eventually(t, "it has ended", func() bool { return inspect(t, c).Status == coracle.StatusExited })
		if err := c.Remove(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if err := eng.Close(); err != nil {
			t.Fatal(err)
		}
		checkEmpty(t, root, prefix)
	}
}
