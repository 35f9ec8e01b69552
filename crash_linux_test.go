package coracle_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// helperEnv makes the test binary another program that uses coracle.
const helperEnv = "CORACLE_TEST_HELPER"

// helperMain is that program: it starts containers in a root that exists, prints their pids and waits to be killed.
func helperMain() {
	root := os.Getenv(helperEnv)
	if root == "" {
		return
	}
	ctx := context.Background()
	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	var args [][]string
	json.Unmarshal([]byte(os.Args[1]), &args)
	for i, a := range args {
		c, err := eng.Create(ctx, &coracle.ContainerSpec{
			Name: fmt.Sprintf("c%d", i), Image: "tool", Args: a, Limits: cgroup.Limits{PIDs: 64}, AutoRemove: i%3 == 0,
		})
		if err == nil {
			err = c.Start(ctx)
		}
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		info, _ := c.Inspect(ctx)
		fmt.Println(info.PID)
	}
	fmt.Println("ready")
	select {}
}

// program starts the helper and waits until its containers run.
func program(t *testing.T, root string, args [][]string) (cmd *exec.Cmd, pids []int) {
	t.Helper()
	b, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command("/proc/self/exe", string(b))
	cmd.Env = append(os.Environ(), helperEnv+"="+root)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var pid int
		if lines.Text() == "ready" {
			return cmd, pids
		}
		if _, err := fmt.Sscan(lines.Text(), &pid); err != nil {
			t.Fatalf("the program says: %s", lines.Text())
		}
		pids = append(pids, pid)
	}
	t.Fatal("the program ended")
	return nil, nil
}

// inContainers lists the processes whose cgroup belongs to the root.
func processesOf(prefix string) []string {
	var found []string
	entries, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, path := range entries {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), prefix) {
			found = append(found, path)
		}
	}
	return found
}

// TestKill9 kills a program with 50 running containers, half of which change their uid, detach from their parent or
// ignore every signal. The kernel must end all their processes, and the next Open remove all else.
func TestKill9(t *testing.T) {
	testutil.RequireRoot(t)
	ctx, root := t.Context(), t.TempDir()
	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	toolImage(t, eng, nil)
	prefix := eng.GroupPrefix()
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}

	var args [][]string
	for i := range 50 {
		args = append(args, [][]string{
			{"sleep", "600000"}, {"setuid", "1000", "sleep", "600000"}, {"sleep", "600000"}, {"daemon", "stubborn"}, {"obey"}, {"stubborn"},
		}[i%6])
	}
	cmd, pids := program(t, root, args)
	if len(pids) != 50 {
		t.Fatalf("%d containers", len(pids))
	}
	start := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		alive := 0
		for _, pid := range pids {
			if syscall.Kill(pid, 0) == nil {
				alive++
			}
		}
		left := processesOf(prefix)
		if alive == 0 && len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d first processes alive, in the cgroups: %v", alive, left)
		}
	}
	t.Logf("all processes gone after %v", time.Since(start))

	eng, err = coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	if list, err := eng.Containers(ctx, nil); err != nil || len(list) != 0 {
		t.Errorf("containers after the next open: %v, %v", list, err)
	}
	if err := eng.Close(); err != nil {
		t.Error(err)
	}
	checkEmpty(t, root, prefix)
}

// checkEmpty verifies that a closed engine's root holds no container and nothing of one.
func checkEmpty(t testing.TB, root, prefix string) {
	t.Helper()
	for _, dir := range []string{"containers", "names", "owners", "store/snapshots"} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("left in %s: %s", dir, e.Name())
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/coracle/" + prefix + "*", "/sys/fs/cgroup/coracle/" + prefix + "*"} {
		if groups, _ := filepath.Glob(pattern); len(groups) > 0 {
			t.Errorf("cgroups left: %v", groups)
		}
	}
}

// TestTwoPrograms: another program's containers are seen, waited for and signalled, but neither removed nor swept.
func TestTwoPrograms(t *testing.T) {
	testutil.RequireRoot(t)
	ctx, root := t.Context(), t.TempDir()
	open := func() *coracle.Engine {
		eng, err := coracle.Open(ctx, coracle.Config{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		return eng
	}
	eng := open()
	toolImage(t, eng, nil)
	program(t, root, [][]string{{"stubborn"}, {"exit", "7"}, {"sleep", "600000"}})
	other := open() // its sweep leaves the program's containers alone
	defer other.Close()
	defer eng.Close()
	for i, want := range map[int]coracle.ContainerStatus{1: coracle.StatusExited, 2: coracle.StatusRunning} {
		c, err := eng.Container(ctx, fmt.Sprintf("c%d", i))
		if err != nil {
			t.Fatal(err)
		}
		if want == coracle.StatusExited {
			if exit, err := c.Wait(ctx); err != nil || exit.Code != 7 {
				t.Errorf("wait for another program's container: %v, %v", exit, err)
			}
			if err := c.Remove(ctx, nil); err == nil {
				t.Error("another program's container was removed")
			}
			continue
		}
		info, err := c.Inspect(ctx)
		if err != nil || info.Status != want {
			t.Errorf("c%d: %+v, %v", i, info, err)
		}
		if err := c.Start(ctx); err == nil {
			t.Error("another program's container was started")
		}
		if err := c.Kill(ctx); err != nil {
			t.Fatal(err)
		}
		if exit, err := c.Wait(ctx); err != nil || exit.Signal != syscall.SIGKILL {
			t.Errorf("killed: %v, %v", exit, err)
		}
	}
}
