package coracle_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/statefile"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// supervised supervises the root of an engine until the test ends, or until stop is called.
func supervised(t testing.TB, eng *coracle.Engine) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- eng.Supervise(ctx) }()
	done := false
	stop = func() {
		if done {
			return
		}
		done = true
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("supervise: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("it supervises on although its context has ended")
		}
	}
	t.Cleanup(stop)
	return stop
}

// actions counts the events of a container by their actions.
func actions(t testing.TB, eng *coracle.Engine, id string) map[string]int {
	t.Helper()
	counts := make(map[string]int)
	for ev, err := range eng.Events(t.Context(), &coracle.EventOptions{Filter: coracle.EventFilter{Containers: []string{id}}}) {
		if err != nil {
			t.Fatal(err)
		}
		counts[string(ev.Action)]++
	}
	return counts
}

// rests waits until a container has exited and stays so.
func rests(t testing.TB, c *coracle.Container, restarts int) {
	t.Helper()
	eventually(t, fmt.Sprintf("it has been restarted %d times and rests", restarts), func() bool {
		info := inspect(t, c)
		return info.Status == coracle.StatusExited && info.RestartCount == restarts
	})
	time.Sleep(time.Second) // a restart too many would come before, whatever the back-off of these tests
	if info := inspect(t, c); info.Status != coracle.StatusExited || info.RestartCount != restarts {
		t.Errorf("%s: %s after %d restarts, want it to rest after %d", c.Name(), info.Status, info.RestartCount, restarts)
	}
}

// TestRestartPolicies: each policy with each end, for one that comes by itself and one that somebody brings about.
func TestRestartPolicies(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	supervised(t, eng)
	policy := func(mode coracle.RestartMode, retries int) coracle.ContainerSpec {
		return coracle.ContainerSpec{Restart: coracle.RestartPolicy{Mode: mode, MaxRetries: retries}}
	}
	for _, test := range []struct {
		name     string
		spec     coracle.ContainerSpec
		args     []string
		restarts int // -1: again and again
	}{
		{"none", coracle.ContainerSpec{}, []string{"exit", "1"}, 0},
		{"no", policy(coracle.RestartNo, 0), []string{"exit", "1"}, 0},
		{"on-failure, success", policy(coracle.RestartOnFailure, 0), []string{"exit", "0"}, 0},
		{"on-failure, failure", policy(coracle.RestartOnFailure, 0), []string{"exit", "1"}, -1},
		{"on-failure:2", policy(coracle.RestartOnFailure, 2), []string{"exit", "7"}, 2},
		{"always", policy(coracle.RestartAlways, 0), []string{"exit", "0"}, -1},
		{"unless-stopped", policy(coracle.RestartUnlessStopped, 0), []string{"exit", "0"}, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := detached(t, eng, test.spec, test.args...)
			restarts := test.restarts
			if restarts < 0 {
				eventually(t, "it was restarted three times", func() bool { return inspect(t, c).RestartCount >= 3 })
				if err := c.Stop(t.Context(), nil); err != nil { // while it waits to be restarted, most likely
					t.Error(err)
				}
				restarts = inspect(t, c).RestartCount
			}
			rests(t, c, restarts)
			if got := actions(t, eng, c.ID()); got["start"] != restarts+1 || got["die"] != restarts+1 {
				t.Errorf("events: %v, want %d starts and ends", got, restarts+1)
			}
		})
	}
	for _, mode := range []coracle.RestartMode{coracle.RestartOnFailure, coracle.RestartAlways, coracle.RestartUnlessStopped} {
		for how, end := range map[string]func(*coracle.Container) error{
			"stop":        func(c *coracle.Container) error { return c.Stop(t.Context(), nil) },
			"kill":        func(c *coracle.Container) error { return c.Kill(t.Context()) },
			"stop signal": func(c *coracle.Container) error { return c.Signal(t.Context(), syscall.SIGTERM) },
		} {
			t.Run(string(mode)+" "+how, func(t *testing.T) {
				t.Parallel()
				c := detached(t, eng, policy(mode, 0), "obey")
				// Another signal is not an order to stay away.
				eventually(t, "it listens", func() bool { return strings.Contains(logged(t, c), "ready") })
				if err := c.Signal(t.Context(), syscall.SIGHUP); err != nil {
					t.Fatal(err)
				}
				eventually(t, "it was restarted", func() bool { info := inspect(t, c); return info.RestartCount == 1 && info.PID != 0 })
				// The kernel gives no signal to the first process of a pid namespace that does not listen to it yet.
				eventually(t, "it listens again", func() bool { return strings.Count(logged(t, c), "ready") == 2 })
				if err := end(c); err != nil {
					t.Fatal(err)
				}
				rests(t, c, 1)
				// And a start forgets that.
				if err := c.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
				if info := inspect(t, c); info.RestartCount != 0 {
					t.Errorf("restarts after a start: %d", info.RestartCount)
				}
				syscall.Kill(inspect(t, c).PID, syscall.SIGKILL)
				eventually(t, "it was restarted again", func() bool { return inspect(t, c).RestartCount == 1 })
				if err := c.Restart(t.Context(), &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
					t.Fatal(err)
				}
				if info := inspect(t, c); info.Status != coracle.StatusRunning || info.RestartCount != 0 {
					t.Errorf("after Restart: %s, %d restarts", info.Status, info.RestartCount)
				}
				if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestRestartPauses: the pauses double, and who takes over goes on with them.
func TestRestartPauses(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	stop := supervised(t, eng)
	c := detached(t, eng, coracle.ContainerSpec{Restart: coracle.RestartPolicy{Mode: coracle.RestartAlways}}, "true")
	eventually(t, "it was restarted", func() bool { return inspect(t, c).RestartCount >= 2 })
	stop()
	supervised(t, openAgain(t, eng.Root()))
	eventually(t, "it was restarted by another", func() bool { return inspect(t, c).RestartCount >= 4 })
	if err := c.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var died time.Time
	var pauses []time.Duration
	for ev, err := range eng.Events(t.Context(), &coracle.EventOptions{Filter: coracle.EventFilter{Containers: []string{c.ID()}}}) {
		switch {
		case err != nil:
			t.Fatal(err)
		case ev.Action == coracle.ActionDie:
			died = ev.Time
		case ev.Action == coracle.ActionStart && !died.IsZero():
			pauses = append(pauses, ev.Time.Sub(died))
		}
	}
	// The event of an end comes after it, the later the more the machine has to do, and makes the pause look shorter.
	var total, least time.Duration
	for i, p := range pauses {
		total, least = total+p, least+100*time.Millisecond<<i
	}
	if len(pauses) < 4 || total < least*3/4 {
		t.Errorf("pauses %v, %v in all, and should have been %v at least", pauses, total, least)
	}
}

// TestRestartNotStarting: a start that fails is tried again, as often as the policy says, and nobody else suffers.
func TestRestartNotStarting(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, fstest.MapFS{"once": {Data: []byte("x"), Mode: 0o644}})
	supervised(t, eng)
	source := filepath.Join(t.TempDir(), "source")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	mounts := []coracle.Mount{{Source: source, Target: "/data"}}
	always := detached(t, eng, coracle.ContainerSpec{Mounts: mounts, Restart: coracle.RestartPolicy{Mode: coracle.RestartAlways}}, "sleep", "600000")
	twice := detached(t, eng, coracle.ContainerSpec{Mounts: mounts, Restart: coracle.RestartPolicy{Mode: coracle.RestartOnFailure, MaxRetries: 2}}, "sleep", "600000")
	if err := os.Remove(source); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*coracle.Container{always, twice} {
		syscall.Kill(inspect(t, c).PID, syscall.SIGKILL)
		eventually(t, "it has ended", func() bool { return inspect(t, c).Status == coracle.StatusExited })
	}
	time.Sleep(time.Second) // 100, 200 and 400 ms
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is restarted when it can be", func() bool { return inspect(t, always).Status == coracle.StatusRunning })
	rests(t, twice, 0)
}

// TestRestartAfterBoot: what is brought back depends on policy, end and orders, and comes back once.
func TestRestartAfterBoot(t *testing.T) {
	testutil.RequireRoot(t)
	root := t.TempDir()
	eng := openAgain(t, root)
	toolImage(t, eng, nil)
	type row struct {
		mode  coracle.RestartMode
		args  []string
		end   string // "" means that the host goes down while it runs
		comes bool
		c     *coracle.Container
	}
	long := []string{"sleep", "600000"}
	rows := []*row{
		{mode: coracle.RestartNo, args: long},
		{mode: coracle.RestartOnFailure, args: long, comes: true},
		{mode: coracle.RestartAlways, args: long, comes: true},
		{mode: coracle.RestartUnlessStopped, args: long, comes: true},
		{mode: coracle.RestartOnFailure, args: long, end: "stopped"},
		{mode: coracle.RestartAlways, args: long, end: "stopped", comes: true},
		{mode: coracle.RestartUnlessStopped, args: long, end: "stopped"},
		{mode: coracle.RestartOnFailure, args: []string{"true"}, end: "ended"},
		{mode: coracle.RestartAlways, args: []string{"true"}, end: "ended", comes: true},
		{mode: coracle.RestartUnlessStopped, args: []string{"true"}, end: "ended", comes: true},
	}
	for i, r := range rows {
		r.c = detached(t, eng, coracle.ContainerSpec{Name: fmt.Sprintf("c%d", i), Restart: coracle.RestartPolicy{Mode: r.mode}}, r.args...)
		switch r.end {
		case "stopped":
			if err := r.c.Stop(t.Context(), &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
				t.Fatal(err)
			}
		case "ended":
			if _, err := r.c.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		default:
			info := inspect(t, r.c)
			syscall.Kill(info.KeeperPID, syscall.SIGKILL)
			if exit, err := r.c.Wait(t.Context()); err != nil || !exit.Unknown {
				t.Fatalf("it ended with %v, %v", exit, err)
			}
		}
	}
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		otherBoot(t, root, r.c.ID())
	}
	eng = openAgain(t, root)
	supervised(t, eng)
	for i, r := range rows {
		c, err := eng.Container(t.Context(), r.c.ID())
		if err != nil {
			t.Fatal(err)
		}
		if r.comes {
			eventually(t, c.Name()+" comes back", func() bool { return actions(t, eng, c.ID())["start"] >= 2 })
			if r.end != "ended" && inspect(t, c).RestartCount != 0 {
				t.Errorf("%d: restarts after the boot: %d", i, inspect(t, c).RestartCount)
			}
			continue
		}
		rests(t, c, 0)
		if got := actions(t, eng, c.ID()); got["start"] != 1 {
			t.Errorf("%d (%s, %s): %v", i, r.mode, r.end, got)
		}
	}
	// And what is stopped now stays so.
	c, err := eng.Container(t.Context(), "c5")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(t.Context(), &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
		t.Fatal(err)
	}
	rests(t, c, 0)
}

// otherBoot makes a container that has ended one of another boot of the host.
func otherBoot(t *testing.T, root, id string) {
	t.Helper()
	dir := filepath.Join(root, "containers", id)
	var st map[string]any
	if err := statefile.Read(dir, "state.json", &st); err != nil {
		t.Fatal(err)
	}
	st["BootID"] = "00000000-0000-0000-0000-000000000000"
	if err := statefile.Write(dir, "state.json", st); err != nil {
		t.Fatal(err)
	}
	var ch map[string]any
	if err := statefile.Read(dir, "changes.json", &ch); err == nil {
		if mark, ok := ch["Stopped"].(map[string]any); ok {
			mark["Boot"] = st["BootID"]
			if err := statefile.Write(dir, "changes.json", ch); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestPruneAwaited: what is waiting to be restarted is not pruned.
func TestPruneAwaited(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := detached(t, eng, coracle.ContainerSpec{Restart: coracle.RestartPolicy{Mode: coracle.RestartAlways}}, "true")
	if _, err := c.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !inspect(t, c).Restarting {
		t.Error("it is not said to be restarting")
	}
	if report, err := eng.PruneContainers(t.Context(), nil); err != nil || len(report.Containers) != 0 {
		t.Errorf("pruned: %+v, %v", report, err)
	}
	if err := c.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if inspect(t, c).Restarting {
		t.Error("it is said to be restarting after the stop")
	}
	if report, err := eng.PruneContainers(t.Context(), nil); err != nil || len(report.Containers) != 1 {
		t.Errorf("pruned after the stop: %+v, %v", report, err)
	}
}

// TestSuperviseMany: fifty containers, half of which end again and again, and nothing is left of watching them.
func TestSuperviseMany(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil, coracle.ImageConfig{Entrypoint: []string{"/tool"}})
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	stop := supervised(t, eng)
	var all []*coracle.Container
	many := 50
	if testutil.Short() {
		many = 10
	}
	for i := range many {
		spec := coracle.ContainerSpec{Restart: coracle.RestartPolicy{Mode: coracle.RestartAlways},
			Health: &coracle.HealthSpec{Test: []string{"CMD", "/tool", "true"}, Interval: 300 * time.Millisecond}}
		args := []string{"sleep", "600000"}
		if i%2 == 0 {
			args = []string{"exit", "1"}
		}
		all = append(all, detached(t, eng, spec, args...))
	}
	for i, c := range all {
		if i%2 == 0 {
			eventually(t, "it was restarted twice", func() bool { return inspect(t, c).RestartCount >= 2 })
		} else if err := c.WaitFor(t.Context(), coracle.ConditionHealthy); err != nil {
			t.Fatal(err)
		}
	}
	// A container costs its supervisor a pidfd, another one if this engine has started it, and the files of a check that
	// is under way; the targets of the last eight checks have a dozen each.
	if n := openFiles(t) - files; n > 450 {
		t.Errorf("%d open files", n)
	}
	for _, c := range all {
		if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "the supervisor forgets them", func() bool { return runtime.NumGoroutine() <= goroutines+8 })
	stop()
	eventually(t, "nothing is left", func() bool { return runtime.NumGoroutine() <= goroutines+4 && openFiles(t) <= files+130 })
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestSuperviseClosed: it ends with the engine.
func TestSuperviseClosed(t *testing.T) {
	testutil.RequireRoot(t)
	eng := openAgain(t, t.TempDir())
	ended := make(chan error, 1)
	go func() { ended <- eng.Supervise(context.Background()) }()
	time.Sleep(50 * time.Millisecond)
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, coracle.ErrClosed) {
		t.Errorf("it ended with %v", err)
	}
	if err := eng.Supervise(context.Background()); !errors.Is(err, coracle.ErrClosed) {
		t.Errorf("with a closed engine: %v", err)
	}
}

// TestRemoveForceWins: who removes a container by force has not to fear who starts it again and again.
func TestRemoveForceWins(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	other := openAgain(t, eng.Root())
	for range 10 {
		c := detached(t, eng, coracle.ContainerSpec{}, "sleep", "600000")
		theirs, err := other.Container(t.Context(), c.ID())
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			for {
				if err := theirs.Start(context.Background()); err != nil && !errors.Is(err, coracle.ErrRunning) {
					ended <- err
					return
				}
			}
		}()
		if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a start of what is gone: %v", err)
		}
	}
}
