package coracle_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/nsexec"
)

// The tests in this file repeat published attacks on processes that join a container, and are named after them.

// attackJoiners runs commands in a container while a process of it tries to look into them, and returns what it got.
func attackJoiners(t *testing.T, eng *coracle.Engine, spec coracle.ContainerSpec) string {
	t.Helper()
	var out syncBuffer
	spec.Args, spec.Stdout = []string{"attack", "joiners", "1500"}, &out
	c := running(t, eng, spec)
	waitForOutput(t, c, "ready")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !strings.Contains(out.String(), "looked") {
				cmd := tool(c, "true")
				err := cmd.Run(t.Context())
				var exit *coracle.ExitError
				if err != nil && !errors.Is(err, coracle.ErrNotRunning) && !errors.Is(err, nsexec.ErrDied) && !(errors.As(err, &exit) && exit.Signal == syscall.SIGKILL) {
					t.Error(err)
				}
				if errors.Is(err, coracle.ErrNotRunning) {
					return
				}
			}
		})
	}
	wg.Wait()
	t.Log(out.String())
	return out.String()
}

// A process in the container cannot look into one that joins it: it is undumpable. A container with CAP_SYS_PTRACE may
// trace whatever is in its pid namespace: there, it finds nothing that has more rights or files than itself.
func TestCVE_2016_9962_JoinerTraced(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	before := sumOf(t, exe)
	t.Run("default", func(t *testing.T) {
		out := attackJoiners(t, eng, coracle.ContainerSpec{})
		if strings.Contains(out, "looked 0\n") {
			t.Error("the attacker saw none of the processes")
		}
		for _, got := range []string{"fd ", "escaped", "may write", "overwrote", "traced", "read its memory", "took"} {
			if strings.Contains(out, got) {
				t.Errorf("the attacker got: %s", got)
			}
		}
	})
	t.Run("CAP_SYS_PTRACE", func(t *testing.T) {
		out := attackJoiners(t, eng, coracle.ContainerSpec{Security: nsexec.Security{CapAdd: []string{"SYS_PTRACE"}}})
		for _, got := range []string{"escaped", "may write", "overwrote", "fd /sys", "fd /\n"} {
			if strings.Contains(out, got) {
				t.Errorf("the attacker got: %s", got)
			}
		}
		// What it can trace has no more rights than itself.
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "CapEff:") && line != "CapEff: 00000000a80c25fb\n" || strings.HasPrefix(line, "Seccomp:") && line != "Seccomp: 2\n" {
				t.Errorf("it could trace a process with %s", line)
			}
		}
	})
	if sumOf(t, exe) != before {
		t.Error("this program was changed")
	}
}

func sumOf(t *testing.T, path string) [32]byte {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

func TestCVE_2019_5736_CommandThroughProcSelfExe(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, fstest.MapFS{"bin/script": {Data: []byte("#!/proc/self/exe\n"), Mode: 0o755}})
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	before := sumOf(t, exe)
	c := running(t, eng, coracle.ContainerSpec{Security: nsexec.Security{Privileged: true}})
	for _, program := range []string{"/proc/self/exe", "/bin/script"} {
		out, err := c.Command(program, "report").CombinedOutput(t.Context())
		if err == nil || bytes.Contains(out, []byte("Status")) {
			t.Errorf("%s ran: %s", program, out)
		}
	}
	if sumOf(t, exe) != before {
		t.Error("this program was changed")
	}
}

func TestCVE_2024_21626_CommandDirectoryThroughDescriptor(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	leak, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	c := running(t, eng, coracle.ContainerSpec{})
	for n := range 40 {
		for _, dir := range []string{"/proc/self/fd/%d", "/proc/self/fd/%d/.", "/proc/thread-self/fd/%d/etc", "/proc/1/fd/%d"} {
			cmd := tool(c, "report")
			cmd.Dir = fmt.Sprintf(dir, n)
			if err := cmd.Run(t.Context()); !errors.Is(err, syscall.ELOOP) && !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENOTDIR) {
				t.Errorf("%s: %v", cmd.Dir, err)
			}
		}
	}
	// A link of the image's to such a path.
	if err := tool(c, "attack", "link", "/proc/self/fd/3", "/way").Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	cmd := tool(c, "report")
	cmd.Dir = "/way"
	if err := cmd.Run(t.Context()); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("through a link: %v", err)
	}
	if r := reportOf(t, tool(c, "report")); !slices.Equal(r.FDs, []int{0, 1, 2}) {
		t.Errorf("descriptors %v", r.FDs)
	}
}

func TestCVE_2022_24769_InheritableCapabilitiesOfCommand(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	for _, security := range []nsexec.Security{{}, {Privileged: true}, {CapAdd: []string{"ALL"}}} {
		c := running(t, eng, coracle.ContainerSpec{Security: security})
		for _, privileged := range []bool{false, true} {
			cmd := tool(c, "report")
			cmd.Privileged = privileged
			if r := reportOf(t, cmd); r.Status["CapInh"] != "0000000000000000" || r.Status["CapAmb"] != "0000000000000000" {
				t.Errorf("%+v: inheritable %s, ambient %s", security, r.Status["CapInh"], r.Status["CapAmb"])
			}
		}
	}
}

func TestCVE_2022_36109_SupplementaryGroupsOfCommand(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{})
	for user, want := range map[string][]int{"": {0}, "alice": {10, 50, 1000}, "alice:77": {77}, "4711": {0}} {
		cmd := tool(c, "report")
		cmd.User = user
		if r := reportOf(t, cmd); !slices.Equal(r.Groups, want) {
			t.Errorf("%q: groups %v, want %v", user, r.Groups, want)
		}
	}
}

// A container that puts something in the place of its /proc redirects no write of a process that joins it. The class of
// CVE-2019-16884, CVE-2023-28642 and CVE-2025-52881.
func TestCVE_2025_52881_CommandWithFakeProc(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{Security: nsexec.Security{Privileged: true}})
	for _, program := range [][]string{
		{"write", "/oom", "unchanged"},
		{"mount-tmpfs", "/proc"},
		{"mkdirs", "/proc/self", "/proc/1", "/proc/thread-self/attr"},
		{"attack", "link", "/oom", "/proc/self/oom_score_adj"},
	} {
		if out, err := tool(c, program...).CombinedOutput(t.Context()); err != nil {
			t.Fatalf("%v: %v: %s", program, err, out)
		}
	}
	adj := 321
	cmd := tool(c, "true")
	cmd.OOMScoreAdj = &adj
	if err := cmd.Run(t.Context()); err != nil {
		t.Error(err)
	}
	cmd = tool(c, "stubborn")
	cmd.OOMScoreAdj = &adj
	if err := cmd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.PID)); err != nil || string(b) != "321\n" {
		t.Errorf("oom_score_adj %q, %v", b, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if out, err := tool(c, "cat", "/oom").Output(t.Context()); err != nil || string(out) != "unchanged" {
		t.Errorf("the write went to %q, %v", out, err)
	}
}

// The terminal of a command is the container's own, whatever lies in the place of the device that makes it.
func TestCVE_2025_52565_TerminalOfCommand(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	for _, program := range [][]string{
		{"attack", "link", "/oom", "/dev/ptmx"},
		{"attack", "link", "/", "/dev/console"},
		{"bind", "/victim", "/dev/pts/ptmx"},
		{"mount-tmpfs", "/dev/pts"},
	} {
		c := running(t, eng, coracle.ContainerSpec{Security: nsexec.Security{Privileged: true}})
		if err := tool(c, "write", "/victim", "unchanged").Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if out, err := tool(c, program...).CombinedOutput(t.Context()); err != nil {
			t.Fatalf("%v: %v: %s", program, err, out)
		}
		cmd := tool(c, "tty")
		cmd.TTY = true
		out, err := cmd.Output(t.Context())
		var step *nsexec.StepError
		switch program[0] {
		case "attack":
			if err != nil || !strings.HasPrefix(string(out), "0 0 0") {
				t.Errorf("%v: %q, %v", program, out, err)
			}
		default:
			if !errors.As(err, &step) {
				t.Errorf("%v: %q, %v", program, out, err)
			}
		}
		if out, err := tool(c, "cat", "/victim").Output(t.Context()); err != nil || string(out) != "unchanged" {
			t.Errorf("%v: %q, %v", program, out, err)
		}
	}
}

// TestCommandHostileUsers: what a container has in the place of its user database neither hangs nor fills the program.
func TestCommandHostileUsers(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for name, attack := range map[string][][]string{
		"fifo":          {{"attack", "fifo", "/etc/passwd"}},
		"fifo of group": {{"attack", "fifo", "/etc/group"}},
		"huge":          {{"attack", "huge", "/etc/passwd"}},
		"link out":      {{"attack", "link", "../../../../../../../../etc/shadow", "/etc/passwd"}},
		"link through":  {{"attack", "link", "/proc/1/root/etc/passwd", "/etc/passwd"}},
		"link to fd":    {{"attack", "link", "/proc/self/fd/0", "/etc/passwd"}},
		"loop":          {{"attack", "link", "/etc/passwd", "/etc/passwd"}},
		"device":        {{"attack", "link", "/dev/zero", "/etc/passwd"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := running(t, eng, coracle.ContainerSpec{})
			for _, program := range attack {
				if out, err := tool(c, program...).CombinedOutput(ctx); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			cmd := tool(c, "report")
			cmd.User = "root" // the host's has one
			start := time.Now()
			out, err := cmd.Output(ctx)
			if err == nil || len(out) > 0 {
				t.Errorf("%s, %v", out, err)
			}
			if ctx.Err() != nil || time.Since(start) > 10*time.Second {
				t.Errorf("it took %v: %v", time.Since(start), err)
			}
			t.Log(err)
		})
	}
}

// TestCommandHostileProcesses: commands in a container that kills all it sees, and in one that forks without end, end
// with an error or as they should, and never hang.
func TestCommandHostileProcesses(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for name, spec := range map[string]coracle.ContainerSpec{
		"kills all": {Args: []string{"attack", "kill-all"}},
		"fork bomb": {Args: []string{"attack", "bomb"}, Limits: cgroup.Limits{PIDs: 60}},
	} {
		t.Run(name, func(t *testing.T) {
			spec.Stdout = &syncBuffer{}
			c := running(t, eng, spec)
			waitForOutput(t, c, "ready")
			tool(c, "true").Run(ctx) // what an engine keeps for the next command
			before := testutil.Resources()
			ok, failed := 0, 0
			for range 40 {
				cmd := c.Command("/tool", "exit", "0")
				err := cmd.Run(ctx)
				var exit *coracle.ExitError
				var step *nsexec.StepError
				switch {
				case err == nil:
					ok++
				case errors.As(err, &exit) && (exit.Signal == syscall.SIGKILL || exit.Code == 2), errors.Is(err, nsexec.ErrDied), errors.As(err, &step) && step.Errno == syscall.EAGAIN:
					failed++
				default:
					t.Errorf("got %v", err)
				}
			}
			t.Logf("%d ran, %d did not", ok, failed)
			if name == "kills all" { // the other one has children all the time
				testutil.Settled(t, before)
			}
		})
	}
}

// commandChildEnv makes the test binary a program that runs a command in a container of another program.
const commandChildEnv = "CORACLE_TEST_COMMAND"

// commandChildMain is that program: it starts a command, says its pid, and waits to be killed.
func commandChildMain() {
	root, ok := os.LookupEnv(commandChildEnv)
	if !ok {
		return
	}
	ctx := context.Background()
	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err == nil {
		var c *coracle.Container
		if c, err = eng.Container(ctx, "c"); err == nil {
			for _, user := range []string{"", "alice"} {
				for _, tty := range []bool{false, true} {
					cmd := c.Command("/tool", "stubborn")
					cmd.User, cmd.TTY, cmd.Stdout = user, tty, &syncBuffer{}
					if err = cmd.Start(ctx); err != nil {
						break
					}
					json.NewEncoder(os.Stdout).Encode(cmd.Process.PID)
				}
			}
		}
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	select {}
}

// TestCommandProgramKilled: a command ends with the program that runs it, though its container belongs to another.
func TestCommandProgramKilled(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{Name: "c"})
	if err := tool(c, "true").Run(t.Context()); err != nil { // config.json is there by now
		t.Fatal(err)
	}
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), commandChildEnv+"="+eng.Root())
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	var pids []int
	for d := json.NewDecoder(out); len(pids) < 4; {
		var pid int
		if err := d.Decode(&pid); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); err != nil {
			t.Errorf("command %d: %v", pid, err)
		}
	}
	child.Process.Kill()
	for _, pid := range pids {
		for deadline := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("command %d is left", pid)
			}
		}
	}
	if r := reportOf(t, tool(c, "report")); len(r.Processes) != 2 {
		t.Errorf("processes left in the container: %v", r.Processes)
	}
}
