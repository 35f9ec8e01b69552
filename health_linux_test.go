package coracle_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/testtool"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// healthCheck is a health check of the tool that is made often.
func healthCheck(args ...string) *coracle.HealthSpec {
	return &coracle.HealthSpec{Test: append([]string{"CMD", "/tool"}, args...), Interval: 20 * time.Millisecond, Retries: 2}
}

// hasHealth waits for a health of a container.
func hasHealth(t testing.TB, c *coracle.Container, want coracle.HealthStatus) *coracle.Health {
	t.Helper()
	var h *coracle.Health
	eventually(t, "it is "+string(want), func() bool {
		h = inspect(t, c).Health
		return h != nil && h.Status == want
	})
	return h
}

// inside runs the tool in a container.
func inside(t testing.TB, c *coracle.Container, args ...string) {
	t.Helper()
	if out, err := c.Command("/tool", args...).CombinedOutput(t.Context()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestHealth follows a container through its health, from two engines.
func TestHealth(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := detached(t, eng, coracle.ContainerSpec{Health: healthCheck("cat", "/ok")}, "sleep", "600000")
	if h := inspect(t, c).Health; h == nil || h.Status != coracle.HealthStarting || len(h.Log) != 0 {
		t.Errorf("without a supervisor: %+v", h)
	}
	other := openAgain(t, eng.Root())
	seen, err := other.Container(t.Context(), c.ID())
	if err != nil {
		t.Fatal(err)
	}
	supervised(t, eng)
	h := hasHealth(t, c, coracle.HealthUnhealthy)
	if last := h.Log[len(h.Log)-1]; h.FailingStreak < 2 || last.ExitCode != 1 || !strings.Contains(last.Output, "/ok") || last.End.Before(last.Start) {
		t.Errorf("unhealthy: %+v", h)
	}
	waited := make(chan error, 1)
	go func() { waited <- seen.WaitFor(t.Context(), coracle.ConditionHealthy) }()
	inside(t, c, "write", "/ok", "fine")
	if err := <-waited; err != nil {
		t.Errorf("wait for it to be healthy: %v", err)
	}
	eventually(t, "it says so", func() bool { // the first time the file may have been empty yet
		h = inspect(t, seen).Health
		last := h.Log[len(h.Log)-1]
		return h.Status == coracle.HealthHealthy && h.FailingStreak == 0 && last.ExitCode == 0 && last.Output == "fine"
	})
	eventually(t, "the log is full", func() bool { return len(inspect(t, c).Health.Log) == 5 })
	time.Sleep(100 * time.Millisecond)
	if n := len(inspect(t, c).Health.Log); n != 5 {
		t.Errorf("%d results", n)
	}
	// Every start begins anew. The file is still there.
	if err := c.Restart(t.Context(), &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitFor(t.Context(), coracle.ConditionHealthy); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(t.Context(), &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
		t.Fatal(err)
	}
	if h := inspect(t, c).Health; h == nil || h.Status != coracle.HealthHealthy {
		t.Errorf("after the end: %+v", h)
	}
	var changes []string
	for ev, err := range eng.Events(t.Context(), &coracle.EventOptions{Filter: coracle.EventFilter{Actions: []coracle.EventAction{coracle.ActionHealthStatus}}}) {
		if err != nil {
			t.Fatal(err)
		}
		changes = append(changes, string(ev.Action))
	}
	if want := []string{"health_status: unhealthy", "health_status: healthy", "health_status: healthy"}; !slices.Equal(changes, want) {
		t.Errorf("events %q, want %q", changes, want)
	}
	none := detached(t, eng, coracle.ContainerSpec{}, "sleep", "600000")
	if err := none.WaitFor(t.Context(), coracle.ConditionHealthy); !errors.Is(err, coracle.ErrInvalid) {
		t.Errorf("wait for the health of one that has no check: %v", err)
	}
	if h := inspect(t, none).Health; h != nil {
		t.Errorf("it has none: %+v", h)
	}
}

// TestHealthOfImage: the image's health check, of attached containers too.
func TestHealthOfImage(t *testing.T) {
	eng := engine(t)
	files := testtool.FS(t, nil)
	img, err := eng.ImageFromFS(t.Context(), "checked", files, &coracle.ImageFSOptions{
		Config: coracle.ImageConfig{Entrypoint: []string{"/tool"}, Labels: map[string]string{"a": "b"}},
		Health: &coracle.HealthSpec{Test: []string{"CMD", "/tool", "echo", "hello"}, Interval: 20 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	if h, err := img.Health(); err != nil || h == nil || h.Interval != 20*time.Millisecond || len(h.Test) != 4 || img.Config().Config.Labels["a"] != "b" {
		t.Errorf("the image has %+v, %v", h, err)
	}
	supervised(t, openAgain(t, eng.Root()))
	for _, auto := range []bool{false, true} {
		c, err := eng.Create(t.Context(), &coracle.ContainerSpec{Image: "checked", Args: []string{"sleep", "600000"}, AutoRemove: auto})
		if err == nil {
			err = c.Start(t.Context())
		}
		if err == nil {
			err = c.WaitFor(t.Context(), coracle.ConditionHealthy)
		}
		if err != nil {
			t.Fatal(err)
		}
		if h := inspect(t, c).Health; h.Log[0].Output != "hello\n" {
			t.Errorf("output %q", h.Log[0].Output)
		}
		if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
	c, err := eng.Create(t.Context(), &coracle.ContainerSpec{Image: "checked", Args: []string{"true"}, Health: &coracle.HealthSpec{Test: []string{"NONE"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitFor(t.Context(), coracle.ConditionHealthy); !errors.Is(err, coracle.ErrInvalid) {
		t.Errorf("without a check: %v", err)
	}
	if err := c.Remove(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if _, err := eng.ImageFromFS(t.Context(), "wrong", files, &coracle.ImageFSOptions{Health: &coracle.HealthSpec{Test: []string{"SHELL"}}}); !errors.Is(err, coracle.ErrInvalid) {
		t.Errorf("an image with a wrong health check: %v", err)
	}
}

// TestHealthHostile: health checks that mean no good. The container is unhealthy, or not; nothing else happens.
func TestHealthHostile(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, fstest.MapFS{"junk": {Data: []byte("\xff\xfe ok"), Mode: 0o644}})
	supervised(t, eng)
	limits := cgroup.Limits{PIDs: 200, Memory: 256 << 20}
	for name, test := range map[string]struct {
		spec   coracle.HealthSpec
		status coracle.HealthStatus
		code   int
		output string // its beginning
	}{
		"floods its output":           {coracle.HealthSpec{Test: []string{"CMD", "/tool", "flood", "50000000"}, Timeout: time.Minute}, coracle.HealthHealthy, 0, "abcdefgh"},
		"floods for ever":             {coracle.HealthSpec{Test: []string{"CMD", "/tool", "flood", "1000000000000"}, Timeout: 500 * time.Millisecond}, coracle.HealthUnhealthy, -1, "Health check exceeded timeout (500ms): abc"},
		"never ends":                  {coracle.HealthSpec{Test: []string{"CMD", "/tool", "stubborn"}, Timeout: 500 * time.Millisecond}, coracle.HealthUnhealthy, -1, "Health check exceeded timeout (500ms): ready"},
		"spins":                       {coracle.HealthSpec{Test: []string{"CMD", "/tool", "spin"}, Timeout: 500 * time.Millisecond}, coracle.HealthUnhealthy, -1, "Health check exceeded timeout (500ms): ready"},
		"leaves children":             {coracle.HealthSpec{Test: []string{"CMD", "/tool", "daemon", "again", "sleep", "600000"}, Interval: time.Second}, coracle.HealthHealthy, 0, ""},
		"is killed with its children": {coracle.HealthSpec{Test: []string{"CMD", "/tool", "daemon", "stubborn"}, Interval: 300 * time.Millisecond, Timeout: 300 * time.Millisecond}, coracle.HealthUnhealthy, -1, "Health check exceeded timeout"},
		"does not exist":              {coracle.HealthSpec{Test: []string{"CMD", "/nothing"}}, coracle.HealthUnhealthy, -1, ""},
		"needs a shell":               {coracle.HealthSpec{Test: []string{"CMD-SHELL", "true"}}, coracle.HealthUnhealthy, -1, ""},
		"exits with 255":              {coracle.HealthSpec{Test: []string{"CMD", "/tool", "exit", "255"}}, coracle.HealthUnhealthy, 255, ""},
		"dies by a signal":            {coracle.HealthSpec{Test: []string{"CMD", "/tool", "kill-self", "9"}}, coracle.HealthUnhealthy, 137, ""},
		"writes no text":              {coracle.HealthSpec{Test: []string{"CMD", "/tool", "cat", "/junk"}}, coracle.HealthHealthy, 0, "? ok"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := test.spec
			if spec.Interval == 0 {
				spec.Interval = 20 * time.Millisecond
			}
			spec.Retries = 2
			c := detached(t, eng, coracle.ContainerSpec{Health: &spec, Limits: limits}, "sleep", "600000")
			before := heap()
			h := hasHealth(t, c, test.status)
			if grown := heap() - before; grown > 16<<20 {
				t.Errorf("memory grew by %d bytes", grown)
			}
			last := h.Log[len(h.Log)-1]
			if last.ExitCode != test.code || !strings.HasPrefix(last.Output, test.output) || len(last.Output) > 4096 {
				t.Errorf("code %d, output of %d bytes: %.100q", last.ExitCode, len(last.Output), last.Output)
			}
			if info := inspect(t, c); info.Status != coracle.StatusRunning {
				t.Errorf("the container is %s", info.Status)
			}
			if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
				t.Error(err)
			}
		})
	}
	// The check kills the container itself: its success is one of a container that is gone.
	t.Run("ends the container", func(t *testing.T) {
		c := detached(t, eng, coracle.ContainerSpec{Health: healthCheck("kill", "1", "15"), Restart: coracle.RestartPolicy{Mode: coracle.RestartAlways}}, "obey")
		eventually(t, "it was restarted", func() bool { return inspect(t, c).RestartCount >= 2 })
		if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	})
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestHealthPaused: who is paused is not asked, and is not unhealthy for that; nor does the supervisor wait for it.
func TestHealthPaused(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	stop := supervised(t, eng)
	spec := healthCheck("sleep", "50")
	timeout := 300 * time.Millisecond
	if testutil.InVM() {
		timeout = 3 * time.Second // as long as an emulated machine may take for a command
	}
	spec.Timeout, spec.Retries = timeout, 1
	c := detached(t, eng, coracle.ContainerSpec{Health: spec}, "sleep", "600000")
	hasHealth(t, c, coracle.HealthHealthy)
	for range 5 { // at any moment of a check
		if err := c.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(timeout + timeout/10)
		before := inspect(t, c).Health.Log
		time.Sleep(100 * time.Millisecond)
		if after := inspect(t, c).Health.Log; !after[len(after)-1].Start.Equal(before[len(before)-1].Start) {
			t.Error("it was asked while it was paused")
		}
		if err := c.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		last := before[len(before)-1].Start
		eventually(t, "it is asked again", func() bool {
			log := inspect(t, c).Health.Log
			return log[len(log)-1].Start.After(last)
		})
	}
	if got := actions(t, eng, c.ID()); got["health_status: unhealthy"] != 0 || got["health_status: healthy"] != 1 {
		t.Errorf("events: %v", got)
	}
	if err := c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := c.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestHealthTakeover: the health of a start goes on with the next supervisor.
func TestHealthTakeover(t *testing.T) {
	testutil.RequireRoot(t)
	root := t.TempDir()
	eng := openAgain(t, root)
	toolImage(t, eng, nil)
	spec := healthCheck("exit", "1")
	spec.Retries = 1000
	c := detached(t, eng, coracle.ContainerSpec{Health: spec}, "sleep", "600000")
	streak := func() int {
		if h := inspect(t, c).Health; h != nil {
			return h.FailingStreak
		}
		return 0
	}
	last := 0
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		other := openAgain(t, root)
		go func() { ended <- other.Supervise(ctx) }()
		eventually(t, "it fails on", func() bool { return streak() >= last+3 })
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		last = streak()
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}
	if h := inspect(t, c).Health; h.Status != coracle.HealthStarting {
		t.Errorf("it is %s", h.Status)
	}
	// A file that a power failure has torn is none.
	path := filepath.Join(root, "containers", c.ID(), "health.json")
	if err := os.WriteFile(path, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	if h := inspect(t, c).Health; h.Status != coracle.HealthStarting || h.FailingStreak != 0 {
		t.Errorf("torn: %+v", h)
	}
	if err := syscall.Kill(inspect(t, c).PID, 0); err != nil {
		t.Errorf("the container: %v", err)
	}
}
