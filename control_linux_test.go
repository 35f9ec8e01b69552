package coracle_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
)

// another opens the root of an engine once more, as another program would.
func another(t testing.TB, eng *coracle.Engine) *coracle.Engine {
	t.Helper()
	other, err := coracle.Open(t.Context(), coracle.Config{Root: eng.Root()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := other.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return other
}

// runningContainer starts a container of the tool and waits until it says that it is ready.
func runningContainer(t testing.TB, eng *coracle.Engine, spec coracle.ContainerSpec, args ...string) *coracle.Container {
	t.Helper()
	spec.Image, spec.Args, spec.Stdout = "tool", args, &syncBuffer{}
	withoutNetwork(&spec)
	c, err := eng.Create(t.Context(), &spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitForOutput(t, c, "ready")
	return c
}

// as finds the container in another engine.
func as(t testing.TB, eng *coracle.Engine, c *coracle.Container) *coracle.Container {
	t.Helper()
	found, err := eng.Container(t.Context(), c.ID())
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func wantStatus(t testing.TB, want coracle.ContainerStatus, list ...*coracle.Container) {
	t.Helper()
	for _, c := range list {
		if info, err := c.Inspect(t.Context()); err != nil || info.Status != want {
			t.Errorf("status %v, %v, want %s", info, err, want)
		}
	}
}

func wantExit(t testing.TB, c *coracle.Container, code int, signal syscall.Signal) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	exit, err := c.Wait(ctx)
	if err != nil || exit.Code != code || exit.Signal != signal {
		t.Errorf("ended with %v (code %d, signal %d), %v, want code %d, signal %d", exit, exit.Code, exit.Signal, err, code, signal)
	}
}

// TestPause: a paused container is paused for everybody, gets its signals later, and can be ended at any time.
func TestPause(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	other := another(t, eng)
	start := func(t *testing.T) (mine, theirs *coracle.Container) {
		c := runningContainer(t, eng, coracle.ContainerSpec{}, "obey")
		if err := as(t, other, c).Pause(ctx); err != nil {
			t.Fatal(err)
		}
		return c, as(t, other, c)
	}
	t.Run("status", func(t *testing.T) {
		c, theirs := start(t)
		wantStatus(t, coracle.StatusPaused, c, theirs)
		for _, e := range []*coracle.Engine{eng, other} {
			if list, err := e.Containers(ctx, &coracle.ContainerFilter{Status: coracle.StatusPaused}); err != nil || len(list) != 1 {
				t.Errorf("paused containers: %v, %v", list, err)
			}
			if list, err := e.Containers(ctx, &coracle.ContainerFilter{Status: coracle.StatusRunning}); err != nil || len(list) != 0 {
				t.Errorf("running containers: %v, %v", list, err)
			}
		}
		for _, c := range []*coracle.Container{c, theirs} {
			if err := c.Pause(ctx); !errors.Is(err, coracle.ErrPaused) {
				t.Errorf("pause again: %v", err)
			}
		}
		if err := c.Start(ctx); !errors.Is(err, coracle.ErrRunning) {
			t.Errorf("start: %v", err)
		}
		if err := c.Signal(ctx, syscall.SIGUSR1); err != nil {
			t.Error(err)
		}
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if exit, err := c.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it ran: %v, %v", exit, err)
		}
		if err := c.Resume(ctx); err != nil {
			t.Error(err)
		}
		wantExit(t, c, int(syscall.SIGUSR1), 0)
		wantStatus(t, coracle.StatusExited, c, theirs)
		if err := c.Resume(ctx); !errors.Is(err, coracle.ErrNotRunning) {
			t.Errorf("resume after the end: %v", err)
		}
	})
	t.Run("resume", func(t *testing.T) {
		c, theirs := start(t)
		if err := theirs.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		wantStatus(t, coracle.StatusRunning, c, theirs)
		if err := c.Resume(ctx); !errors.Is(err, coracle.ErrNotPaused) {
			t.Errorf("resume again: %v", err)
		}
		if err := c.Stop(ctx, nil); err != nil {
			t.Error(err)
		}
		wantExit(t, c, int(syscall.SIGTERM), 0)
	})
	for name, test := range map[string]struct {
		end    func(mine, theirs *coracle.Container) error
		code   int
		signal syscall.Signal
	}{
		"kill":            {func(c, _ *coracle.Container) error { return c.Kill(ctx) }, -1, syscall.SIGKILL},
		"kill by another": {func(_, c *coracle.Container) error { return c.Kill(ctx) }, -1, syscall.SIGKILL},
		"stop":            {func(c, _ *coracle.Container) error { return c.Stop(ctx, nil) }, int(syscall.SIGTERM), 0},
		"stop by another": {func(_, c *coracle.Container) error { return c.Stop(ctx, nil) }, int(syscall.SIGTERM), 0},
		"stop at once": {func(c, _ *coracle.Container) error {
			return c.Stop(ctx, &coracle.StopOptions{Timeout: coracle.StopAtOnce, Signal: "SIGWINCH"})
		}, -1, 0},
		"its stop signal":   {func(c, _ *coracle.Container) error { return c.Signal(ctx, syscall.SIGTERM) }, int(syscall.SIGTERM), 0},
		"remove with force": {func(c, _ *coracle.Container) error { return c.Remove(ctx, &coracle.RemoveOptions{Force: true}) }, -2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c, theirs := start(t)
			if err := test.end(c, theirs); err != nil {
				t.Fatal(err)
			}
			switch test.code {
			case -2:
				if _, err := eng.Container(ctx, c.ID()); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("still there: %v", err)
				}
				return
			case -1:
				if test.signal == 0 { // whichever was first
					if _, err := c.Wait(ctx); err != nil {
						t.Error(err)
					}
					break
				}
				fallthrough
			default:
				wantExit(t, c, test.code, test.signal)
			}
			// And it starts again, running.
			if err := c.Start(ctx); err != nil {
				t.Fatal(err)
			}
			wantStatus(t, coracle.StatusRunning, c, theirs)
			if err := c.Remove(ctx, &coracle.RemoveOptions{Force: true}); err != nil {
				t.Error(err)
			}
		})
	}
}

// frozenInVersion1 pauses where the tree of version 2 is not there, in which a frozen process dies only when it is thawed.
// It is one of the places of TestPlaces.
func frozenInVersion1(ctx context.Context, root string) (err error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			if err := unix.Unmount(f[1], unix.MNT_DETACH); err != nil {
				return err
			}
		}
	}
	if h, err := cgroup.Open(cgroup.Config{}); err != nil || h.Mode() != cgroup.V1 {
		return errors.Join(err, h.Close()) // version 2 is all there is
	} else {
		h.Close()
	}
	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for name, end := range map[string]func(*coracle.Container) error{
		"kill":   func(c *coracle.Container) error { return c.Kill(ctx) },
		"stop":   func(c *coracle.Container) error { return c.Stop(ctx, &coracle.StopOptions{Timeout: time.Millisecond}) },
		"remove": func(c *coracle.Container) error { return c.Remove(ctx, &coracle.RemoveOptions{Force: true}) },
		"resume": func(c *coracle.Container) error { return errors.Join(c.Resume(ctx), c.Kill(ctx)) },
		"close":  func(*coracle.Container) error { return eng.Close() },
	} {
		c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"stubborn"}, AutoRemove: true})
		if err == nil {
			err = c.Start(ctx)
		}
		if err == nil {
			err = c.Pause(ctx)
		}
		if err == nil {
			var info *coracle.ContainerInfo
			if info, err = c.Inspect(ctx); err == nil && info.Status != coracle.StatusPaused {
				err = fmt.Errorf("status %s", info.Status)
			}
		}
		if err == nil {
			err = end(c)
		}
		if err == nil && name != "remove" && name != "close" {
			_, err = c.Wait(ctx)
			c.Cleaned()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if name == "close" {
			if eng, err = coracle.Open(ctx, coracle.Config{Root: root}); err != nil {
				return err
			}
		}
	}
	return nil
}

// TestClosePaused: an engine that is closed ends its paused containers too.
func TestClosePaused(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	for _, auto := range []bool{false, true} {
		if err := runningContainer(t, eng, coracle.ContainerSpec{AutoRemove: auto}, "stubborn").Pause(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestPauseGivesUp: a pause whose context has ended leaves the container running.
func TestPauseGivesUp(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c := runningContainer(t, eng, coracle.ContainerSpec{}, "stubborn")
	for range 20 {
		done, cancel := context.WithCancel(ctx)
		cancel()
		want := coracle.StatusRunning
		if err := c.Pause(done); err == nil {
			want = coracle.StatusPaused
		} else if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		wantStatus(t, want, c)
		if want == coracle.StatusPaused {
			if err := c.Resume(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestWrongCalls has every call in every state in which it makes no sense.
func TestWrongCalls(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	other := another(t, eng)
	create := func(name string) *coracle.Container {
		c, err := eng.Create(ctx, &coracle.ContainerSpec{Name: name, Image: "tool", Args: []string{"stubborn"}})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	states := map[string]*coracle.Container{}
	for _, name := range []string{"created", "running", "paused", "exited", "removed"} {
		states[name] = create(name)
		if name == "created" {
			continue
		}
		must(states[name].Start(ctx))
	}
	must(states["paused"].Pause(ctx))
	must(states["exited"].Stop(ctx, &coracle.StopOptions{Timeout: coracle.StopAtOnce}))
	must(states["removed"].Remove(ctx, &coracle.RemoveOptions{Force: true}))
	calls := map[string]func(*coracle.Container) error{
		"start":            func(c *coracle.Container) error { return c.Start(ctx) },
		"pause":            func(c *coracle.Container) error { return c.Pause(ctx) },
		"resume":           func(c *coracle.Container) error { return c.Resume(ctx) },
		"kill":             func(c *coracle.Container) error { return c.Kill(ctx) },
		"signal":           func(c *coracle.Container) error { return c.Signal(ctx, syscall.SIGUSR1) },
		"signal 99":        func(c *coracle.Container) error { return c.Signal(ctx, 99) },
		"remove":           func(c *coracle.Container) error { return c.Remove(ctx, nil) },
		"wait":             func(c *coracle.Container) error { _, err := c.Wait(ctx); return err },
		"wait for health":  func(c *coracle.Container) error { return c.WaitFor(ctx, coracle.ConditionHealthy) },
		"wait for nothing": func(c *coracle.Container) error { return c.WaitFor(ctx, "nothing") },
		"wait for running": func(c *coracle.Container) error { return c.WaitFor(ctx, coracle.ConditionRunning) },
		"top":              func(c *coracle.Container) error { _, err := c.Top(ctx); return err },
		"stats":            func(c *coracle.Container) error { _, err := c.Stats(ctx); return err },
		"stream": func(c *coracle.Container) error {
			for _, err := range c.StatsStream(ctx, time.Hour) {
				return err
			}
			return nil
		},
		"update":          func(c *coracle.Container) error { return c.Update(ctx, cgroup.Limits{PIDs: 50}) },
		"update nonsense": func(c *coracle.Container) error { return c.Update(ctx, cgroup.Limits{MemorySwap: 5}) },
		"rename taken":    func(c *coracle.Container) error { return c.Rename(ctx, "created") },
		"rename nonsense": func(c *coracle.Container) error { return c.Rename(ctx, "../x") },
		"inspect":         func(c *coracle.Container) error { _, err := c.Inspect(ctx); return err },
		"restart": func(c *coracle.Container) error {
			return c.Restart(ctx, &coracle.StopOptions{Timeout: coracle.StopAtOnce})
		},
	}
	var invalid *cgroup.InvalidError
	for _, test := range []struct {
		state, call string
		theirs      bool // the caller is another program
		want        error
	}{
		{"created", "pause", false, coracle.ErrNotRunning},
		{"created", "resume", false, coracle.ErrNotRunning},
		{"created", "kill", false, coracle.ErrNotRunning},
		{"created", "signal", false, coracle.ErrNotRunning},
		{"created", "wait", false, coracle.ErrNotRunning},
		{"created", "top", false, coracle.ErrNotRunning},
		{"created", "stats", false, coracle.ErrNotRunning},
		{"created", "stream", false, coracle.ErrNotRunning},
		{"created", "start", true, coracle.ErrInUse},
		{"created", "restart", true, coracle.ErrInUse},
		{"created", "remove", true, coracle.ErrInUse},
		{"running", "start", false, coracle.ErrRunning},
		{"running", "start", true, coracle.ErrInUse},
		{"running", "restart", true, coracle.ErrInUse},
		{"running", "resume", false, coracle.ErrNotPaused},
		{"running", "resume", true, coracle.ErrNotPaused},
		{"running", "remove", false, coracle.ErrRunning},
		{"running", "remove", true, coracle.ErrRunning},
		{"running", "signal 99", false, coracle.ErrInvalid},
		{"running", "wait for health", false, coracle.ErrInvalid},
		{"running", "wait for nothing", false, coracle.ErrInvalid},
		{"running", "rename taken", false, fs.ErrExist},
		{"running", "rename taken", true, fs.ErrExist},
		{"running", "rename nonsense", false, coracle.ErrInvalid},
		{"running", "update nonsense", true, invalid},
		{"paused", "pause", false, coracle.ErrPaused},
		{"paused", "pause", true, coracle.ErrPaused},
		{"paused", "start", false, coracle.ErrRunning},
		{"paused", "remove", false, coracle.ErrRunning},
		{"exited", "pause", false, coracle.ErrNotRunning},
		{"exited", "pause", true, coracle.ErrNotRunning},
		{"exited", "resume", false, coracle.ErrNotRunning},
		{"exited", "kill", false, coracle.ErrNotRunning},
		{"exited", "top", true, coracle.ErrNotRunning},
		{"exited", "stats", true, coracle.ErrNotRunning},
		{"exited", "rename taken", false, fs.ErrExist},
		{"removed", "start", false, fs.ErrNotExist},
		{"removed", "restart", false, fs.ErrNotExist},
		{"removed", "pause", false, fs.ErrNotExist},
		{"removed", "resume", false, fs.ErrNotExist},
		{"removed", "update", false, fs.ErrNotExist},
		{"removed", "rename taken", false, fs.ErrNotExist},
		{"removed", "inspect", false, fs.ErrNotExist},
		{"removed", "stats", false, fs.ErrNotExist},
		{"removed", "top", false, fs.ErrNotExist},
		{"removed", "wait for running", false, fs.ErrNotExist},
	} {
		t.Run(test.state+"/"+test.call, func(t *testing.T) {
			c := states[test.state]
			if test.theirs {
				c = as(t, other, c)
			}
			err := calls[test.call](c)
			matches := errors.Is(err, test.want)
			if test.want == error(invalid) {
				matches = errors.As(err, new(*cgroup.InvalidError))
			}
			var op *coracle.OpError
			if !matches || !errors.As(err, &op) || op.Kind != "container" {
				t.Errorf("got %v (%T), want %v", err, err, test.want)
			}
		})
	}
	wantStatus(t, coracle.StatusRunning, states["running"])
	wantStatus(t, coracle.StatusPaused, states["paused"])
}

// TestRestart: a container that is restarted runs anew, also one that would be removed at its end.
func TestRestart(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	for _, auto := range []bool{false, true} {
		c := runningContainer(t, eng, coracle.ContainerSpec{AutoRemove: auto}, "obey")
		before, err := c.Inspect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		if err := c.Restart(ctx, nil); err != nil {
			t.Fatal(err)
		}
		after, err := c.Inspect(ctx)
		if err != nil || after.Status != coracle.StatusRunning || after.PID == before.PID || !after.Started.After(before.Started) {
			t.Errorf("after the restart: %+v, %v", after, err)
		}
		waitForOutput(t, c, "ready\nready\n")
		if err := c.Stop(ctx, nil); err != nil {
			t.Fatal(err)
		}
		if auto {
			c.Cleaned()
			if _, err := eng.Container(ctx, c.ID()); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("it is not removed after the restart: %v", err)
			}
			continue
		}
		// One that is stopped is started.
		if err := c.Restart(ctx, nil); err != nil {
			t.Error(err)
		}
		wantStatus(t, coracle.StatusRunning, c)
	}
}

func TestStopAtOnce(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	for name, spec := range map[string]coracle.ContainerSpec{"option": {}, "spec": {StopTimeout: coracle.StopAtOnce}} {
		c := runningContainer(t, eng, spec, "stubborn")
		var opts *coracle.StopOptions
		if name == "option" {
			opts = &coracle.StopOptions{Timeout: coracle.StopAtOnce}
		}
		start := time.Now()
		if err := c.Stop(ctx, opts); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("%s: it took %v", name, d)
		}
		wantExit(t, c, -1, syscall.SIGKILL)
	}
}

func TestParseSignal(t *testing.T) {
	for name, want := range map[string]syscall.Signal{
		"SIGTERM": 15, "term": 15, "sigkill": 9, "15": 15, "64": 64, "HUP": 1, "SIGRTMIN": 34, "RTMIN+3": 37, "SIGRTMAX": 64, "rtmax-1": 63, "SIGSTOP": 19,
	} {
		if got, err := coracle.ParseSignal(name); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", name, got, err, want)
		}
	}
	for _, name := range []string{"", "0", "65", "-1", "SIG", "SIGNOTHING", "RTMIN+31", "RTMAX-31", "RTMAX+1", "TERM ", "1x"} {
		if got, err := coracle.ParseSignal(name); !errors.Is(err, coracle.ErrInvalid) {
			t.Errorf("%q: %d, %v", name, got, err)
		}
	}
}

// TestControlDetached: what runs under a keeper is controlled by any program, also after the one that started it.
func TestControlDetached(t *testing.T) {
	ctx, first := t.Context(), engine(t)
	toolImage(t, first, nil)
	create := func(spec coracle.ContainerSpec) *coracle.Container {
		t.Helper()
		spec.Image, spec.Args, spec.Detached = "tool", []string{"stubborn"}, true
		c, err := first.Create(ctx, &spec)
		if err == nil {
			err = c.Start(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	id := create(coracle.ContainerSpec{Name: "kept", Init: true}).ID()
	auto := create(coracle.ContainerSpec{Name: "auto", AutoRemove: true}).ID()
	eng := another(t, first)
	must(first.Close())
	other := another(t, eng)
	find := func(e *coracle.Engine, id string) *coracle.Container {
		t.Helper()
		c, err := e.Container(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c, theirs := find(eng, id), find(other, id)
	must(c.Pause(ctx))
	wantStatus(t, coracle.StatusPaused, c, theirs)
	must(theirs.Rename(ctx, "renamed"))
	must(c.Update(ctx, cgroup.Limits{PIDs: 77}))
	if s, err := theirs.Stats(ctx); err != nil || s.PIDs.Limit != 77 {
		t.Errorf("stats: %+v, %v", s, err)
	}
	if list, err := theirs.Top(ctx); err != nil || len(list) != 2 || list[0].Command != "coracle-init" {
		t.Errorf("top: %+v, %v", list, err)
	}
	before, err := c.Inspect(ctx)
	must(err)
	must(theirs.Restart(ctx, &coracle.StopOptions{Timeout: coracle.StopAtOnce}))
	after, err := c.Inspect(ctx)
	if err != nil || after.Status != coracle.StatusRunning || after.PID == before.PID || after.Name != "renamed" {
		t.Errorf("restarted: %+v, %v", after, err)
	}
	ended := make(chan error, 2)
	for _, c := range []*coracle.Container{c, theirs} {
		go func() { ended <- c.WaitFor(ctx, coracle.ConditionExited) }()
	}
	must(theirs.Pause(ctx))
	must(c.Kill(ctx))
	must(<-ended)
	must(<-ended)
	wantStatus(t, coracle.StatusExited, c, theirs)
	wantExit(t, c, -1, syscall.SIGKILL)
	must(c.Remove(ctx, nil))

	c = find(eng, auto)
	must(c.Restart(ctx, &coracle.StopOptions{Timeout: coracle.StopAtOnce}))
	wantStatus(t, coracle.StatusRunning, c, find(other, auto))
	theirs = find(other, auto)
	go func() { ended <- theirs.WaitFor(ctx, coracle.ConditionRemoved) }()
	time.Sleep(10 * time.Millisecond)
	must(c.Kill(ctx))
	must(<-ended)
}

// TestControlEvents: what is done to a container is told, under its name at that time.
func TestControlEvents(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c := runningContainer(t, eng, coracle.ContainerSpec{Name: "first"}, "obey")
	stop := &coracle.StopOptions{Timeout: coracle.StopAtOnce}
	for _, do := range []func() error{
		func() error { return c.Pause(ctx) }, func() error { return c.Rename(ctx, "second") }, func() error { return c.Resume(ctx) },
		func() error { return c.Update(ctx, cgroup.Limits{PIDs: 50}) }, func() error { return c.Restart(ctx, stop) },
		func() error { waitForOutput(t, c, "ready\nready\n"); return nil },
		func() error { return c.Pause(ctx) }, func() error { return c.Stop(ctx, &coracle.StopOptions{Timeout: time.Minute}) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	var told []string
	filter := coracle.EventFilter{Actions: []coracle.EventAction{coracle.ActionPause, coracle.ActionUnpause, coracle.ActionRename, coracle.ActionUpdate, coracle.ActionRestart}}
	for ev, err := range eng.Events(ctx, &coracle.EventOptions{Filter: filter}) {
		if err != nil {
			t.Fatal(err)
		}
		told = append(told, strings.TrimSpace(fmt.Sprint(ev.Name, " ", ev.Action, " ", ev.Attributes["oldName"])))
	}
	want := []string{"first pause", "second rename first", "second unpause", "second update", "second restart", "second pause", "second unpause"}
	if !slices.Equal(told, want) {
		t.Errorf("events %q, want %q", told, want)
	}
}
