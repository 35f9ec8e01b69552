package coracle_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/netdrv"
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

// processesOf lists the processes whose cgroup belongs to the root, but those that have ended and wait for the host's init.
func processesOf(prefix string) []string {
	var found []string
	entries, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, path := range entries {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), prefix) && !zombie(filepath.Dir(path)) {
			found = append(found, path)
		}
	}
	return found
}

func zombie(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	_, after, _ := strings.Cut(string(b), ") ")
	return err == nil && strings.HasPrefix(after, "Z")
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
	checkNetworks(t, root)
}

// checkNetworks expects that nothing of a root's networks is in use, and nothing of them on the host.
func checkNetworks(t testing.TB, root string) {
	t.Helper()
	networks, err := os.ReadDir(filepath.Join(root, "networks"))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		t.Error(err)
	}
	tables, err := netdrv.FirewallObjects(context.Background())
	if err != nil {
		t.Error(err)
	}
	names, err := os.ReadDir(filepath.Join(root, "networknames"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for _, name := range names {
		if id, err := os.Readlink(filepath.Join(root, "networknames", name.Name())); err != nil || !slices.ContainsFunc(networks, func(n fs.DirEntry) bool { return n.Name() == id }) {
			t.Errorf("the name of a network, %s, leads to %q, %v", name.Name(), id, err)
		}
	}
	for _, n := range networks {
		id := n.Name()
		if strings.HasPrefix(id, ".") {
			t.Errorf("a half-made network is left: %s", id)
			continue
		}
		for _, dir := range []string{"endpoints", "addresses", "names", "followers"} {
			entries, err := os.ReadDir(filepath.Join(root, "networks", id, dir))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			for _, e := range entries {
				t.Errorf("left in %s of network %.12s: %s", dir, id, e.Name())
			}
		}
		if _, err := os.Lstat(filepath.Join(root, "networks", id, "onhost")); err == nil {
			t.Errorf("network %.12s is still marked as being on the host", id)
		}
		if i, err := net.InterfaceByName((&netdrv.Network{ID: id}).Interface()); err == nil {
			t.Errorf("the bridge of network %.12s is left: %v", id, i)
		}
		for _, object := range tables {
			if strings.Contains(object.Table, id[:12]) {
				t.Errorf("an nftables object of network %.12s is left: %+v", id, object)
			}
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
	prefix := eng.GroupPrefix()
	cmd, _ := program(t, root, [][]string{{"stubborn"}, {"exit", "7"}, {"sleep", "600000"}})
	other := open() // its sweep leaves the program's containers alone
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
	// Killed itself, the program leaves what the next open takes away, while two other engines are open.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	last := open()
	if _, err := last.Container(ctx, "c0"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a running container of a program that was killed: %v", err)
	}
	list, err := last.Containers(ctx, nil) // those that had ended are nobody's now
	if err != nil || len(list) == 0 {
		t.Errorf("containers: %v, %v", list, err)
	}
	for _, c := range list {
		if err := c.Remove(ctx, nil); err != nil {
			t.Error(err)
		}
	}
	for _, e := range []*coracle.Engine{last, other, eng} {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	checkEmpty(t, root, prefix)
}

// TestSweep puts into a root what a program may leave that is killed between any two steps of making or removing a
// container, and opens it.
func TestSweep(t *testing.T) {
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
	id := func(digit string) string { return strings.Repeat(digit, 64) }
	put := func(path string, content string) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("owners/dead", "")
	put("containers/.dead."+id("1")+"/state.json", "half")            // being made
	put("containers/.dead."+id("2")+"/hosts", "127.0.0.1\tlocalhost") // being removed
	put("store/snapshots/"+id("3")+"/upper/file", "x")                // half made, its container gone
	if err := os.Symlink(id("4"), filepath.Join(root, "names", "ghost")); err != nil {
		t.Fatal(err)
	}
	for _, status := range []string{"running", "created"} { // with AutoRemove the second goes too
		state := fmt.Sprintf(`{"Version":1,"ID":%q,"Name":%q,"Owner":"dead","Status":%q,"Spec":{"Image":"tool","AutoRemove":true}}`,
			id("5"), "five-"+status, status)
		if status == "created" {
			state = strings.ReplaceAll(state, id("5"), id("6"))
			put("containers/"+id("6")+"/state.json", state)
			continue
		}
		put("containers/"+id("5")+"/state.json", state)
	}
	// Cgroups: of a container that is gone, and of one that is swept.
	var groups []string
	for _, tree := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"} {
		var fs unix.Statfs_t
		if err := unix.Statfs(tree, &fs); err != nil || fs.Type != unix.CGROUP_SUPER_MAGIC && fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		for _, digit := range []string{"5", "7"} {
			dir := filepath.Join(tree, "coracle", prefix+id(digit))
			if os.MkdirAll(dir, 0o755) == nil {
				groups = append(groups, dir)
			}
		}
	}
	// A container of a program that lives stays, whatever it is called.
	if len(groups) == 0 {
		testutil.Skip(t, "needs a cgroup hierarchy in which groups can be made")
	}
	alive, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range groups {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("left: %s", dir)
		}
	}
	c, err := alive.Create(ctx, &coracle.ContainerSpec{Name: "ghost", Image: "tool", Args: []string{"true"}})
	if err != nil {
		t.Fatalf("the name of a container that is gone: %v", err)
	}
	put("owners/dead2", "")
	other, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	if list, err := other.Containers(ctx, nil); err != nil || len(list) != 1 || list[0].ID() != c.ID() {
		t.Errorf("containers: %v, %v", list, err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Remove(ctx, nil); err != nil {
		t.Error(err)
	}
	if err := alive.Close(); err != nil {
		t.Error(err)
	}
	checkEmpty(t, root, prefix)
}
