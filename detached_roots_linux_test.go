package coracle_test

import (
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
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// keepersGroups are the directories of a root's group of keepers.
func keepersGroups(prefix string) (found []string) {
	for _, pattern := range []string{"/sys/fs/cgroup/*/coracle/%skeepers", "/sys/fs/cgroup/coracle/%skeepers"} {
		groups, _ := filepath.Glob(fmt.Sprintf(pattern, prefix))
		found = append(found, groups...)
	}
	return found
}

// TestDetachedRoots: two roots have their own keepers, and what becomes of one is nothing to the other. A group of keepers
// stays as long as there is a keeper, and goes with the last engine that closes.
func TestDetachedRoots(t *testing.T) {
	testutil.RequireRoot(t)
	roots := []string{t.TempDir(), t.TempDir()}
	var engines []*coracle.Engine
	var list []*coracle.Container
	for _, root := range roots {
		eng := openAgain(t, root)
		toolImage(t, eng, nil)
		engines = append(engines, eng)
		list = append(list, detached(t, eng, coracle.ContainerSpec{Name: "same"}, "stubborn"))
	}
	for _, eng := range engines {
		if err := eng.Close(); err != nil {
			t.Fatal(err)
		}
		if len(keepersGroups(eng.GroupPrefix())) == 0 {
			t.Error("the keepers' group went with the engine")
		}
	}
	eng := openAgain(t, roots[0])
	c, err := eng.Container(t.Context(), "same")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if err := eng.Close(); err != nil {
		t.Error(err)
	}
	if left := keepersGroups(eng.GroupPrefix()); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	checkEmpty(t, roots[0], eng.GroupPrefix())
	eng = openAgain(t, roots[1])
	if c, err = eng.Container(t.Context(), "same"); err != nil {
		t.Fatal(err)
	}
	if info := inspect(t, c); info.Status != coracle.StatusRunning || info.ID != list[1].ID() {
		t.Errorf("in the other root: %+v", info)
	}
}

// TestDetachedKeepersGroup: programs that start their first detached container while others close, and take the keepers'
// group with them, do not get into each other's way.
func TestDetachedKeepersGroup(t *testing.T) {
	testutil.RequireRoot(t)
	rounds := 30
	if testing.Short() || testutil.RaceEnabled {
		rounds = 5
	}
	root := t.TempDir()
	eng := openAgain(t, root)
	toolImage(t, eng, nil)
	for range rounds {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				err := func() error {
					eng, err := coracle.Open(t.Context(), coracle.Config{Root: root})
					if err != nil {
						return err
					}
					c, err := eng.Create(t.Context(), &coracle.ContainerSpec{Image: "tool", Args: []string{"true"}, Detached: true})
					if err == nil {
						err = c.Start(t.Context())
					}
					if err == nil {
						err = c.Remove(t.Context(), &coracle.RemoveOptions{Force: true})
					}
					return errors.Join(err, eng.Close())
				}()
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	prefix := eng.GroupPrefix()
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, root, prefix)
}

// TestDetachedNeighbours: a container that runs out of memory takes nobody with it, and keepers are the last that the
// kernel would choose.
func TestDetachedNeighbours(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	quiet := detached(t, eng, coracle.ContainerSpec{}, "stubborn")
	for range 5 {
		c := detached(t, eng, coracle.ContainerSpec{Limits: cgroup.Limits{Memory: 32 << 20}}, "hog", "64")
		if exit, err := c.Wait(t.Context()); err != nil || !exit.OOMKilled {
			t.Errorf("it ended with %v, %v", exit, err)
		}
	}
	info := inspect(t, quiet)
	if info.Status != coracle.StatusRunning {
		t.Errorf("its neighbour is %s", info.Status)
	}
	t.Run("badness", func(t *testing.T) {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1"), 0); err != nil {
			t.Skip("lowering a badness needs CAP_SYS_RESOURCE, which the virtual machine has")
		}
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0); err != nil {
			t.Error(err)
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", info.KeeperPID))
		if err != nil || strings.TrimSpace(string(b)) != "-999" {
			t.Errorf("the keeper's oom_score_adj is %q, %v", b, err)
		}
	})
}

const openerEnv = "CORACLE_TEST_OPENER"

// openerMain opens a root as whoever it is, and says what error that gives.
func openerMain() {
	root := os.Getenv(openerEnv)
	if root == "" {
		return
	}
	eng, err := coracle.Open(context.Background(), coracle.Config{Root: root})
	if err == nil {
		eng.Close()
	}
	var op *coracle.OpError
	fmt.Printf("OpError %v, permission %v: %v", errors.As(err, &op), errors.Is(err, fs.ErrPermission), err)
	os.Exit(0)
}

// TestDetachedForeign: a user who may not is told so, and the container runs on.
func TestDetachedForeign(t *testing.T) {
	testutil.RequireRoot(t)
	root := filepath.Join(t.TempDir(), "root")
	eng := openAgain(t, root)
	toolImage(t, eng, nil)
	c := detached(t, eng, coracle.ContainerSpec{}, "stubborn")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), openerEnv+"="+root)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "OpError true, permission true: ") {
		t.Errorf("opened by another user: %s, %v", out, err)
	}
	if info := inspect(t, c); info.Status != coracle.StatusRunning {
		t.Errorf("then it is %s", info.Status)
	}
}

// TestDetachedMoved: a root that was moved while a container runs in it is opened at its new place, and the container is
// controlled from there.
func TestDetachedMoved(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	old, moved := filepath.Join(dir, "old"), filepath.Join(dir, "new")
	eng := openAgain(t, old)
	toolImage(t, eng, nil)
	c, err := eng.Create(t.Context(), &coracle.ContainerSpec{Name: "kept", Image: "tool", Args: []string{"stubborn"}, Detached: true})
	if err == nil {
		err = c.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	oldPrefix := eng.GroupPrefix()
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(old, moved); err != nil {
		t.Fatal(err)
	}
	eng = openAgain(t, moved)
	if c, err = eng.Container(t.Context(), "kept"); err != nil {
		t.Fatal(err)
	}
	if info := inspect(t, c); info.Status != coracle.StatusRunning {
		t.Errorf("it is %s", info.Status)
	}
	if err := c.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if exit, err := c.Wait(t.Context()); err != nil || exit.Signal != syscall.SIGKILL {
		t.Errorf("it ended with %v, %v", exit, err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Errorf("start it at its new place: %v", err)
	}
	if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if err := eng.Close(); err != nil {
		t.Error(err)
	}
	checkEmpty(t, moved, eng.GroupPrefix())
	// The groups of its old place are found by whoever knows that.
	for _, pattern := range []string{"/sys/fs/cgroup/*/coracle/" + oldPrefix + "*", "/sys/fs/cgroup/coracle/" + oldPrefix + "*"} {
		groups, _ := filepath.Glob(pattern)
		for _, g := range groups {
			t.Logf("of the old place: %s", g)
			if err := os.Remove(g); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestDetachedSlowStart: other engines run commands in a container with AutoRemove however long its program took to note
// that it runs.
func TestDetachedSlowStart(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	crashpoint.Observe(func(step string) {
		if step == "write config.json: renamed" {
			time.Sleep(100 * time.Millisecond)
		}
	})
	defer crashpoint.Observe(nil)
	c := detached(t, eng, coracle.ContainerSpec{AutoRemove: true}, "stubborn")
	seen := as(t, another(t, eng), c)
	if err := seen.Command(toolPath(t, c), "true").Run(t.Context()); err != nil {
		t.Error(err)
	}
}
