package coracle_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/testutil"
)

const superviseEnv = "CORACLE_TEST_SUPERVISE"

// superviseMain is a program that supervises a root. With a number it kills itself at that step of doing so, after it
// has said which it is.
func superviseMain() {
	root := os.Getenv(superviseEnv)
	if root == "" {
		return
	}
	last, _ := strconv.ParseInt(os.Args[1], 10, 64)
	var leads atomic.Bool
	var n atomic.Int64
	crashpoint.Observe(func(step string) {
		if step == "supervise: begins" {
			fmt.Println("leads")
			leads.Store(true)
		}
		if leads.Load() && n.Add(1) == last {
			fmt.Println("dies at", step)
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	})
	eng, err := coracle.Open(context.Background(), coracle.Config{Root: root, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err == nil {
		err = eng.Supervise(context.Background())
	}
	fmt.Println("error:", err)
	os.Exit(1)
}

// otherSupervisor is such a program.
type otherSupervisor struct {
	cmd   *exec.Cmd
	leads chan struct{} // closed when it does
	ended chan string   // gets the step at which it has ended
}

func supervisor(t *testing.T, root string, last int) *otherSupervisor {
	t.Helper()
	s := &otherSupervisor{cmd: exec.Command("/proc/self/exe", strconv.Itoa(last)), leads: make(chan struct{}), ended: make(chan string, 1)}
	s.cmd.Env = append(os.Environ(), superviseEnv+"="+root)
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		step := ""
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if lines.Text() == "leads" {
				close(s.leads)
			} else {
				step = lines.Text()
			}
		}
		s.ended <- step
	}()
	t.Cleanup(s.kill)
	return s
}

func (s *otherSupervisor) kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

// TestSuperviseTakeover kills the program that supervises, and with it or a little before or after a container. Of those
// that are left one restarts it, once.
func TestSuperviseTakeover(t *testing.T) {
	testutil.RequireRoot(t)
	root := t.TempDir()
	eng := openAgain(t, root)
	toolImage(t, eng, nil)
	var all []*coracle.Container
	for range 4 {
		all = append(all, detached(t, eng, coracle.ContainerSpec{Restart: coracle.RestartPolicy{Mode: coracle.RestartAlways}, Health: healthCheck("true")}, "sleep", "600000"))
	}
	waiting := supervisor(t, root, 0)
	<-waiting.leads
	rounds := 12
	if testutil.Short() {
		rounds = 3
	}
	var slowest time.Duration
	for round := range rounds {
		leader := waiting
		waiting = supervisor(t, root, 0)
		pids := make([]int, len(all))
		for i, c := range all {
			// The pauses begin anew.
			if err := c.Restart(t.Context(), &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
				t.Fatal(err)
			}
			pids[i] = inspect(t, c).PID
		}
		kill := func() {
			for _, pid := range pids {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if round%2 == 0 {
			kill()
			time.Sleep(time.Duration(round) * 15 * time.Millisecond) // around the first pause
		}
		began := time.Now()
		leader.kill()
		if round%2 == 1 {
			kill()
		}
		<-waiting.leads
		slowest = max(slowest, time.Since(began))
		for _, c := range all {
			var info *coracle.ContainerInfo
			again := func() bool {
				info = inspect(t, c)
				return info.Status == coracle.StatusRunning && info.RestartCount == 1
			}
			for end := time.Now().Add(30 * time.Second); !again(); time.Sleep(2 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("round %d: it is not running after one restart: %s, restarts %d, exit %+v, restarting %v, events %v",
						round, info.Status, info.RestartCount, info.Exit, info.Restarting, actions(t, eng, c.ID()))
				}
			}
		}
	}
	// A second at most, on a machine that has time.
	t.Logf("the slowest of %d takeovers took %v", rounds, slowest)
	if slowest > 10*time.Second {
		t.Errorf("a takeover took %v", slowest)
	}
	for _, c := range all {
		if err := c.WaitFor(t.Context(), coracle.ConditionHealthy); err != nil {
			t.Error(err)
		}
		if got := actions(t, eng, c.ID()); got["start"] != 2*rounds+1 || got["die"] != 2*rounds {
			t.Errorf("events: %v, want %d starts", got, 2*rounds+1)
		}
	}
}

// TestSuperviseCrash kills a supervisor at each step of restarting a container and of checking its health. The next one
// finishes the work.
func TestSuperviseCrash(t *testing.T) {
	testutil.RequireRoot(t)
	root := t.TempDir()
	eng := openAgain(t, root)
	toolImage(t, eng, nil)
	c := detached(t, eng, coracle.ContainerSpec{Restart: coracle.RestartPolicy{Mode: coracle.RestartAlways}, Health: healthCheck("true")}, "sleep", "600000")
	healthy := func() bool {
		info := inspect(t, c)
		return info.Status == coracle.StatusRunning && info.Health.Status == coracle.HealthHealthy
	}
	seen := make(map[string]bool)
	wanted := []string{"dies at supervise: begins", "dies at supervise: restarts", "dies at detach: noted", "dies at write health.json: written", "dies at health: noted"}
	missing := func() []string {
		return slices.DeleteFunc(slices.Clone(wanted), func(want string) bool { return seen[want] })
	}
	for step, pass := 1, 1; ; step++ {
		// The pauses begin anew.
		if err := c.Restart(t.Context(), &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
			t.Fatal(err)
		}
		info := inspect(t, c)
		syscall.Kill(info.PID, syscall.SIGKILL)
		eventually(t, "it has ended", func() bool { return inspect(t, c).PID != info.PID })
		s := supervisor(t, root, step)
		deadline := time.Now().Add(30 * time.Second)
		died, over := "", false
		for !over && died == "" {
			select {
			case died = <-s.ended:
			case <-time.After(2 * time.Millisecond):
				over = healthy() && inspect(t, c).PID != info.PID && len(inspect(t, c).Health.Log) >= 3
			}
			if time.Now().After(deadline) {
				t.Fatalf("step %d: neither killed nor done", step)
			}
		}
		s.kill()
		seen[died] = true
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- eng.Supervise(ctx) }()
		eventually(t, "the next one brings it back after "+died, healthy)
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		// The counts are right although programs are killed before they have told what they did.
		if got := actions(t, eng, c.ID()); got["start"] != got["die"]+1 {
			t.Errorf("after %q: events %v", died, got)
		}
		if report, err := eng.Check(t.Context()); err != nil || len(report.Damage) != 0 {
			t.Fatalf("after %q: %+v, %v", died, report, err)
		}
		if over && died == "" {
			t.Logf("%d steps, kills at %v", step, slices.Sorted(maps.Keys(seen)))
			// Goroutines take their steps in any order: one may have been passed over.
			if len(missing()) == 0 || pass == 3 {
				break
			}
			step, pass = 0, pass+1
		}
	}
	for _, want := range missing() {
		t.Errorf("it was never killed at %q", want)
	}
}
