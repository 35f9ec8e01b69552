package coracle_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
)

// What TestModel has found, each by itself.

// TestBlobOfLayerThatStayed: a container keeps the layers of an image that is removed, but not its blobs. When the image
// is made again all of it has to be there.
func TestBlobOfLayerThatStayed(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	img := toolImage(t, eng, nil)
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool"})
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Remove(ctx, &coracle.ImageRemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	toolImage(t, eng, nil)
	report, err := eng.Check(ctx)
	if err != nil || len(report.Damage) > 0 {
		t.Errorf("damage: %v, %v", report.Damage, err)
	}
	if err := c.Remove(ctx, nil); err != nil {
		t.Error(err)
	}
}

// TestCgroupOfKilledStart: a program is killed when the cgroup is made and nothing says yet that the container runs. The
// next start must not mind, and the sweep takes the group.
func TestCgroupOfKilledStart(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	leave := func() (dirs []string) {
		parents, _ := filepath.Glob("/sys/fs/cgroup/*/coracle")
		for _, parent := range append(parents, "/sys/fs/cgroup/coracle") {
			dir := filepath.Join(parent, eng.GroupPrefix()+c.ID())
			if os.Mkdir(dir, 0o755) == nil {
				dirs = append(dirs, dir)
			}
		}
		return dirs
	}
	// The first start makes the parents.
	for range 2 {
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		info, err := c.Inspect(ctx)
		if err != nil || info.Status != coracle.StatusExited {
			t.Fatalf("%+v, %v", info, err)
		}
		groupGone(t, eng, c)
		leave()
	}
	if err := eng.Close(); err != nil { // nobody's from now on
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(eng.Root(), "owners/dead"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	next, err := coracle.Open(ctx, coracle.Config{Root: eng.Root()})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	groupGone(t, eng, c)
}

// groupGone fails if a container has a cgroup, which a container that has just ended has for a moment.
func groupGone(t *testing.T, eng *coracle.Engine, c *coracle.Container) {
	t.Helper()
	if err := c.Stop(t.Context(), nil); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	var left []string
	for range 200 {
		left, _ = filepath.Glob("/sys/fs/cgroup/*/coracle/" + eng.GroupPrefix() + c.ID())
		more, _ := filepath.Glob("/sys/fs/cgroup/coracle/" + eng.GroupPrefix() + c.ID())
		if left = append(left, more...); len(left) == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("cgroups left: %v", left)
}

// TestPruneWhileCreating: another goroutine prunes what is being made. A container that was created is whole, or has been
// pruned as a whole.
func TestPruneWhileCreating(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := eng.PruneContainers(ctx, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 300 {
		if _, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Name: fmt.Sprintf("c%d", i)}); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
	if _, err := eng.PruneContainers(ctx, nil); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{"containers", "names", "store/snapshots"} {
		if entries, err := os.ReadDir(filepath.Join(eng.Root(), dir)); err != nil || len(entries) > 0 {
			t.Errorf("left in %s: %v, %v", dir, entries, err)
		}
	}
}

// TestCheckAmongTheDead: what a program that was killed left half made or half removed is swept, and no damage.
func TestCheckAmongTheDead(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	root := eng.Root()
	toolImage(t, eng, nil)
	id := func(digit string) string { return strings.Repeat(digit, 64) }
	put := func(path, content string) {
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
	for digit, owner := range map[string]string{"1": "dead", "2": ""} { // being made; nobody's, being removed
		put("containers/"+id(digit)+"/state.json", fmt.Sprintf(`{"Version":1,"ID":%q,"Name":"x","Owner":%q,"Status":"created","Spec":{"Image":"tool"}}`, id(digit), owner))
	}
	put("store/snapshots/"+id("3")+"/upper/file", "x")
	if err := os.Symlink(id("4"), filepath.Join(root, "names", "ghost")); err != nil {
		t.Fatal(err)
	}
	report, err := eng.Check(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range report.Damage {
		t.Errorf("damage: %v", d)
	}
}
