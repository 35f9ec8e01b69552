package coracle_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/nsexec"
)

// limitsEnv makes the test binary a program that runs a command with limits in the container "c" of a root, until it is killed.
const limitsEnv = "CORACLE_TEST_LIMITS"

func limitsMain() {
	root := os.Getenv(limitsEnv)
	if root == "" {
		return
	}
	if last := os.Getenv(limitsEnv + "_AT"); last != "" {
		crashpoint.Observe(func(step string) {
			if step == last {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		})
	}
	ctx := context.Background()
	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	var c *coracle.Container
	if err == nil {
		c, err = eng.Container(ctx, "c")
	}
	if err == nil {
		cmd := tool(c, "daemon", "stubborn")
		cmd.Limits = cgroup.Limits{PIDs: 20, Memory: 64 << 20}
		err = cmd.Start(ctx)
	}
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println("ready")
	if os.Getenv(limitsEnv+"_AT") != "" { // a step that there is in version 2 only
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	select {}
}

// commandGroups lists the cgroups of commands of a root, in all hierarchies.
func commandGroups(prefix string) (all []string) {
	for _, pattern := range []string{"/sys/fs/cgroup/*/coracle/" + prefix + "*/coracle.exec-*", "/sys/fs/cgroup/coracle/" + prefix + "*/coracle.exec-*"} {
		found, _ := filepath.Glob(pattern)
		all = append(all, found...)
	}
	return all
}

func limited(c *coracle.Container, l cgroup.Limits, args ...string) *coracle.Cmd {
	cmd := tool(c, args...)
	cmd.Limits = l
	return cmd
}

// TestCommandLimits: each limit holds for the command, and the container's for both.
func TestCommandLimits(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	for name, spec := range map[string]coracle.ContainerSpec{
		"attached": {Limits: cgroup.Limits{PIDs: 40, Memory: 256 << 20}},
		"detached": {Limits: cgroup.Limits{PIDs: 40, Memory: 256 << 20}, Detached: true},
	} {
		t.Run(name, func(t *testing.T) {
			spec.Args = []string{"stubborn"}
			c := running(t, eng, spec)
			if err := tool(c, "true").Run(ctx); err != nil { // its target is kept, and is that of before
				t.Fatal(err)
			}
			for range 2 {
				cmd := limited(c, cgroup.Limits{Memory: 32 << 20, MemorySwap: 32 << 20}, "hog", "128")
				out, err := cmd.Output(ctx)
				var exit *coracle.ExitError
				if !errors.As(err, &exit) || !exit.OOMKilled || !cmd.ProcessState.OOMKilled || len(out) > 0 {
					t.Errorf("more memory than it may have: %q, %v", out, err)
				}
			}
			if out, err := limited(c, cgroup.Limits{Memory: 64 << 20}, "hog", "16").Output(ctx); err != nil || string(out) != "held\n" {
				t.Errorf("less memory than it may have: %q, %v", out, err)
			}
			var n int
			out, err := limited(c, cgroup.Limits{PIDs: 12}, "forks", "100").Output(ctx)
			if fmt.Sscan(string(out), &n); err != nil || n == 0 || n >= 12 {
				t.Errorf("processes: %s, %v", out, err)
			}
			out, err = limited(c, cgroup.Limits{PIDs: 90}, "forks", "100").Output(ctx)
			if fmt.Sscan(string(out), &n); err != nil || n == 0 || n >= 40 {
				t.Errorf("processes under the container's limit: %s, %v", out, err)
			}
			out, err = limited(c, cgroup.Limits{CPUs: 0.2}, "echo", "x").Output(ctx)
			if err != nil || string(out) != "x\n" {
				t.Errorf("processor time: %q, %v", out, err)
			}
			if out, err := tool(c, "echo", "plain").Output(ctx); err != nil || string(out) != "plain\n" {
				t.Errorf("a command without limits: %q, %v", out, err)
			}
			if left := commandGroups(eng.GroupPrefix()); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if err := c.Pause(ctx); err != nil {
				t.Error(err)
			}
			if err := limited(c, cgroup.Limits{PIDs: 5}, "true").Run(ctx); !errors.Is(err, coracle.ErrPaused) {
				t.Errorf("in a paused container: %v", err)
			}
			if err := c.Resume(ctx); err != nil {
				t.Error(err)
			}
			// A command is ended with its container, and that not marked by what it did.
			cmd := limited(c, cgroup.Limits{PIDs: 5}, "stubborn")
			if err := cmd.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if err := c.Stop(ctx, &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
				t.Error(err)
			}
			cmd.Wait()
			st, err := c.Wait(ctx)
			if err != nil || st.OOMKilled {
				t.Errorf("the container: %v, %v", st, err)
			}
			if err := c.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if err := limited(c, cgroup.Limits{PIDs: 12}, "true").Run(ctx); err != nil {
				t.Errorf("after a restart: %v", err)
			}
		})
	}
}

// TestCommandLimitsCPU: a command that spins gets the time it may have.
func TestCommandLimitsCPU(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{Security: nsexec.Security{Privileged: true}})
	cmd := limited(c, cgroup.Limits{CPUs: 0.1}, "spin")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	cmd.Run(ctx)
	if used := cmd.ProcessState.UserTime + cmd.ProcessState.SystemTime; used > time.Second {
		t.Errorf("it used %v of a processor in 2 s", used)
	}
}

// TestCommandLimitsErrors: limits that cannot be have an error that says so, and leave nothing.
func TestCommandLimitsErrors(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{})
	var invalid *cgroup.InvalidError
	if err := limited(c, cgroup.Limits{Memory: -1}, "true").Run(ctx); !errors.As(err, &invalid) || !errors.Is(err, coracle.ErrInvalid) {
		t.Errorf("invalid: %v", err)
	}
	var limit *cgroup.LimitError
	if err := limited(c, cgroup.Limits{CPUSetCPUs: "9999"}, "true").Run(ctx); !errors.As(err, &limit) {
		t.Errorf("refused: %v", err)
	}
	if err := limited(c, cgroup.Limits{Unified: map[string]string{"memory.nothing": "1"}}, "true").Run(ctx); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("unsupported: %v", err)
	}
	cmd := c.Command("/missing")
	cmd.Limits = cgroup.Limits{PIDs: 5}
	if err := cmd.Run(ctx); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a command that does not exist: %v", err)
	}
	if left := commandGroups(eng.GroupPrefix()); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestCommandLimitsStorm: many at once, of two engines, while plain commands run and the container forks; nothing is left.
func TestCommandLimitsStorm(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{Name: "c"})
	other, err := coracle.Open(ctx, coracle.Config{Root: eng.Root()})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	found, err := other.Container(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			cmd := tool([]*coracle.Container{c, found}[i%2], "echo", "x")
			if i%5 != 4 {
				cmd.Limits = cgroup.Limits{PIDs: 20, Memory: 64 << 20}
			}
			if out, err := cmd.Output(ctx); err != nil || string(out) != "x\n" {
				t.Errorf("%d: %q, %v", i, out, err)
			}
		})
	}
	wg.Wait()
	if left := commandGroups(eng.GroupPrefix()); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestCommandLimitsKill9: what a killed program leaves of its commands goes with the next Open, while the container runs on.
func TestCommandLimitsKill9(t *testing.T) {
	testutil.RequireRoot(t)
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{Name: "c", Detached: true})
	for _, next := range []string{"open", "command"} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), limitsEnv+"="+eng.Root())
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if line, _ := bufio.NewReader(out).ReadString('\n'); !strings.HasPrefix(line, "ready") {
			t.Fatal(line)
		}
		if len(commandGroups(eng.GroupPrefix())) == 0 {
			t.Error("there is no group")
		}
		cmd.Process.Kill()
		cmd.Wait()
		if next == "open" {
			other, err := coracle.Open(ctx, coracle.Config{Root: eng.Root()})
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
		} else if err := limited(c, cgroup.Limits{PIDs: 10}, "true").Run(ctx); err != nil {
			t.Error(err)
		}
		if left := commandGroups(eng.GroupPrefix()); len(left) > 0 {
			t.Errorf("after the next %s there are %v", next, left)
		}
		if err := tool(c, "true").Run(ctx); err != nil {
			t.Errorf("the container: %v", err)
		}
	}
}

// TestCommandLimitsBomb: the container forks as fast as it may, and the command gets its group, or the error says why not.
func TestCommandLimitsBomb(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	exit := exitProgram(0, false) // unlike the tool, it needs no further threads
	if exit == nil {
		testutil.Skip(t, "the command is a program for amd64 and arm64 only")
	}
	toolImage(t, eng, fstest.MapFS{"exit": {Data: exit, Mode: 0o755}})
	c := running(t, eng, coracle.ContainerSpec{Args: []string{"attack", "bomb"}, Limits: cgroup.Limits{PIDs: 100}})
	begin := time.Now()
	cmd := c.Command("/exit")
	cmd.Limits = cgroup.Limits{PIDs: 10}
	err := cmd.Run(ctx)
	t.Logf("after %v: %v", time.Since(begin), err)
	// The bomb may leave no process for the command under the container's limit.
	var limit *cgroup.LimitError
	if err != nil && !errors.As(err, &limit) && !errors.Is(err, syscall.EAGAIN) {
		t.Error(err)
	}
	if left := commandGroups(eng.GroupPrefix()); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestCommandLimitsCrash kills the program at each step of making the group: the container runs on, whole and within its
// limits, the next Open takes what is left, and the next command goes on from there.
func TestCommandLimitsCrash(t *testing.T) {
	testutil.RequireRoot(t)
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	for _, step := range []string{"cgroup: leaf made", "cgroup: processes moved", "cgroup: room made", "cgroup: child made", "cgroup: child limited", "start: guard forked"} {
		t.Run(step, func(t *testing.T) {
			c := running(t, eng, coracle.ContainerSpec{Name: "c", Detached: true, Limits: cgroup.Limits{PIDs: 30}})
			defer c.Remove(ctx, &coracle.RemoveOptions{Force: true})
			if err := tool(c, "true").Run(ctx); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), limitsEnv+"="+eng.Root(), limitsEnv+"_AT="+step)
			out, _ := cmd.Output()
			t.Logf("%s: %q", cmd.ProcessState, out)
			if err := tool(c, "true").Run(ctx); err != nil {
				t.Errorf("a command: %v", err)
			}
			other, err := coracle.Open(ctx, coracle.Config{Root: eng.Root()})
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			if left := commandGroups(eng.GroupPrefix()); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if out, err := limited(c, cgroup.Limits{PIDs: 100}, "forks", "100").Output(ctx); err != nil || string(out) == "100\n" {
				t.Errorf("the next: %q, %v", out, err)
			}
			if err := tool(c, "true").Run(ctx); err != nil {
				t.Errorf("a command: %v", err)
			}
		})
	}
}

// TestCommandLimitsContainerOOM: what the container's own processes are killed for stays its own.
func TestCommandLimitsContainerOOM(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	for _, detached := range []bool{false, true} {
		c := running(t, eng, coracle.ContainerSpec{Detached: detached, Limits: cgroup.Limits{Memory: 64 << 20, MemorySwap: 64 << 20}})
		if err := limited(c, cgroup.Limits{PIDs: 10}, "true").Run(ctx); err != nil {
			t.Fatal(err)
		}
		if err := tool(c, "hog", "128").Run(ctx); err == nil {
			t.Error("it held more than it may")
		}
		if err := c.Stop(ctx, &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
			t.Error(err)
		}
		if st, err := c.Wait(ctx); err != nil || !st.OOMKilled {
			t.Errorf("detached %v: %v, %v", detached, st, err)
		}
	}
}
