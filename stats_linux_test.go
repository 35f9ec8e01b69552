package coracle_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
)

// TestTop: what is in the container shows, with both its numbers, whatever it calls itself.
func TestTop(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	other := another(t, eng)
	evil := "x) R 1 1\nUid:\t0\x1b[2J" + strings.Repeat("y", 10000)
	c := runningContainer(t, eng, coracle.ContainerSpec{User: "1000:1000", Init: true}, "daemon", "sleep", "60000", evil)
	var list []coracle.ProcessInfo
	for deadline := time.Now().Add(20 * time.Second); len(list) != 3; {
		var err error
		if list, err = as(t, other, c).Top(ctx); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes: %+v", list)
		}
	}
	info, err := c.Inspect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	first := list[slices.IndexFunc(list, func(p coracle.ProcessInfo) bool { return p.ContainerPID == 1 })]
	if first.PID != info.PID || first.Command != "coracle-init" {
		t.Errorf("the first process: %+v, want pid %d", first, info.PID)
	}
	for _, p := range list {
		if p.UID != 1000 || p.GID != 1000 || p.PID <= 0 || p.ContainerPID < 1 || p.ContainerPID == p.PID || p.Threads < 1 || p.RSS < 0 ||
			time.Since(p.Started) > time.Minute || time.Since(p.Started) < -time.Second || !strings.Contains("RSDTtZI", p.State) {
			t.Errorf("process %+v", p)
		}
		if p.ContainerPID > 1 && (len(p.Args) < 3 || p.Args[0] != "/tool" && p.Args[0] != "tool") {
			t.Errorf("arguments %.100q", p.Args)
		}
		if n := len(strings.Join(p.Args, " ")); n > 4096 {
			t.Errorf("%d bytes of arguments", n)
		}
	}
	if err := c.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if paused, err := c.Top(ctx); err != nil || len(paused) != len(list) {
		t.Errorf("paused: %+v, %v", paused, err)
	}
}

// TestTopWhileTheyGo: processes that come and go are no error.
func TestTopWhileTheyGo(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := eng.Run(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"forks", "20"}}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		list, err := eng.Containers(ctx, nil)
		if err != nil {
			t.Error(err)
		}
		for _, c := range list {
			if _, err := c.Top(ctx); err != nil && !errors.Is(err, coracle.ErrNotRunning) && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			if _, err := c.Stats(ctx); err != nil && !errors.Is(err, coracle.ErrNotRunning) && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		}
	}
	close(done)
	wg.Wait()
}

func TestStats(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c := runningContainer(t, eng, coracle.ContainerSpec{Limits: cgroup.Limits{Memory: 256 << 20, PIDs: 100}}, "spin")
	theirs := as(t, another(t, eng), c)
	s, err := theirs.Stats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.CPU == nil || s.Memory == nil || s.PIDs == nil || s.PIDs.Current < 1 || s.PIDs.Limit != 100 || s.MemoryLimit != 256<<20 ||
		s.MemoryUsage == 0 || s.MemoryUsage > s.Memory.Usage || s.MemoryPercent <= 0 || s.MemoryPercent > 100 || s.CPUPercent != 0 {
		b, _ := json.Marshal(s)
		t.Errorf("stats: %s", b)
	}
	n := 0
	for s, err := range theirs.StatsStream(ctx, 100*time.Millisecond) {
		if err != nil {
			t.Fatal(err)
		}
		// A process that does nothing but spin, on a machine with others.
		if s.CPUPercent < 5 || s.CPUPercent > 150*float64(s.OnlineCPUs) || s.Interval < 50*time.Millisecond {
			t.Errorf("sample %d: %.0f percent in %v", n, s.CPUPercent, s.Interval)
		}
		if n++; n == 3 {
			break
		}
	}
	if err := c.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	for s, err := range c.StatsStream(ctx, 50*time.Millisecond) {
		if err != nil || s.CPUPercent > 1 {
			t.Errorf("paused: %+v, %v", s, err)
		}
		break
	}
	// The stream ends with the container.
	time.AfterFunc(50*time.Millisecond, func() { c.Kill(ctx) })
	start := time.Now()
	for s, err := range theirs.StatsStream(ctx, time.Hour) {
		t.Errorf("a sample at the end: %+v, %v", s, err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("the stream ended after %v", d)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	c2 := runningContainer(t, eng, coracle.ContainerSpec{}, "obey")
	var last error
	for _, last = range c2.StatsStream(canceled, time.Hour) {
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("with a context that has ended: %v", last)
	}
}

// TestInitContainer: an init forwards and reaps in whole containers too.
func TestInitContainer(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c := runningContainer(t, eng, coracle.ContainerSpec{Init: true, User: "alice"}, "obey")
	// Others join it, and leave it what they do not wait for.
	if out, err := c.Command("/tool", "echo", "joined").Output(ctx); err != nil || string(out) != "joined\n" {
		t.Errorf("a command: %q, %v", out, err)
	}
	if err := c.Stop(ctx, nil); err != nil {
		t.Fatal(err)
	}
	wantExit(t, c, int(syscall.SIGTERM), 0)
	var exit *coracle.ExitError
	if err := eng.Run(ctx, &coracle.ContainerSpec{Image: "tool", Init: true, Args: []string{"kill-self", "9"}}); !errors.As(err, &exit) || exit.Code != 128+9 {
		t.Errorf("killed: %v", err)
	}
	r := report(t, eng, coracle.ContainerSpec{Init: true})
	if r.PID != 2 || r.PPID != 1 || r.PGID != 2 || r.Exe1 != "" || r.Environ1 != "" {
		t.Errorf("behind an init: pid %d, parent %d, group %d, /proc/1/exe %q, environ %q", r.PID, r.PPID, r.PGID, r.Exe1, r.Environ1)
	}
}

// TestOOM: that the kernel killed something for want of memory shows, whichever process it was.
func TestOOM(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	limits := cgroup.Limits{Memory: 64 << 20, MemorySwap: 64 << 20}
	for _, init := range []bool{false, true} {
		var exit *coracle.ExitError
		err := eng.Run(ctx, &coracle.ContainerSpec{Image: "tool", Init: init, Limits: limits, Args: []string{"hog", "200"}})
		if !errors.As(err, &exit) || !exit.OOMKilled {
			t.Errorf("init %v: %v", init, err)
		} else if init && exit.Code != 128+9 || !init && exit.Signal != syscall.SIGKILL {
			t.Errorf("init %v: %+v", init, exit.ExitStatus)
		}
		// A child is killed, and the container goes on.
		c := runningContainer(t, eng, coracle.ContainerSpec{Init: init, Limits: limits}, "daemon", "hog", "200")
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			s, err := c.Stats(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if s.Memory.OOMKills > 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("init %v: no process was killed: %+v", init, s.Memory)
			}
		}
		wantStatus(t, coracle.StatusRunning, c)
		if err := c.Stop(ctx, &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
			t.Fatal(err)
		}
		if exit, err := c.Wait(ctx); err != nil || !exit.OOMKilled {
			t.Errorf("init %v: %+v, %v", init, exit, err)
		}
	}
}
