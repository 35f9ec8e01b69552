package coracle_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
)

// TestRename: by its owner and by others, running or not; every handle and every way of finding it see the new name.
func TestRename(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	other := another(t, eng)
	c := runningContainer(t, eng, coracle.ContainerSpec{Name: "first"}, "obey")
	theirs := as(t, other, c)
	names := func() string {
		entries, err := os.ReadDir(filepath.Join(eng.Root(), "names"))
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, e := range entries {
			list = append(list, e.Name())
		}
		return strings.Join(list, " ")
	}
	want := func(name string) {
		t.Helper()
		for i, c := range []*coracle.Container{c, theirs} {
			if c.Name() != name {
				t.Errorf("handle %d: the name is %q, want %q", i, c.Name(), name)
			}
			if info, err := c.Inspect(ctx); err != nil || info.Name != name || info.Spec.Name != name {
				t.Errorf("inspect %d: %+v, %v", i, info, err)
			}
		}
		for _, e := range []*coracle.Engine{eng, other} {
			if found, err := e.Container(ctx, name); err != nil || found.ID() != c.ID() || found.Name() != name {
				t.Errorf("find %q: %v, %v", name, found, err)
			}
		}
		if got := names(); got != name {
			t.Errorf("names: %q, want %q", got, name)
		}
	}
	want("first")
	if err := theirs.Rename(ctx, "second"); err != nil {
		t.Fatal(err)
	}
	want("second")
	if _, err := eng.Container(ctx, "first"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old name: %v", err)
	}
	if err := c.Rename(ctx, "third"); err != nil {
		t.Fatal(err)
	}
	want("third")
	if err := c.Rename(ctx, "third"); err != nil {
		t.Errorf("its own name: %v", err)
	}
	if err := c.Stop(ctx, nil); err != nil {
		t.Fatal(err)
	}
	want("third")
	if err := theirs.Rename(ctx, "fourth"); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	want("fourth")
	if err := c.Remove(ctx, &coracle.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if got := names(); got != "" {
		t.Errorf("names left: %q", got)
	}
	// One without a name gets one, and with AutoRemove it goes by the new name.
	auto := runningContainer(t, eng, coracle.ContainerSpec{AutoRemove: true}, "obey")
	if err := as(t, other, auto).Rename(ctx, "auto"); err != nil {
		t.Fatal(err)
	}
	if err := auto.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := auto.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	auto.Cleaned()
	if got := names(); got != "" {
		t.Errorf("names left: %q", got)
	}
	// Two containers race for a name: one gets it.
	var list []*coracle.Container
	for i := range 4 {
		c, err := []*coracle.Engine{eng, other}[i%2].Create(ctx, &coracle.ContainerSpec{Image: "tool"})
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	var wg sync.WaitGroup
	errs := make([]error, len(list))
	for i, c := range list {
		wg.Go(func() { errs[i] = c.Rename(ctx, "one") })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, fs.ErrExist) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d containers have the name: %v", won, errs)
	}
}

// limitsOf reads limits as the kernel has them, of version 1 or 2.
func limitsOf(t testing.TB, eng *coracle.Engine, c *coracle.Container) string {
	t.Helper()
	read := func(names ...string) string {
		for _, name := range names {
			for _, pattern := range []string{"/sys/fs/cgroup/*/coracle/", "/sys/fs/cgroup/coracle/"} {
				files, _ := filepath.Glob(pattern + eng.GroupPrefix() + c.ID() + "/" + name)
				for _, f := range files {
					if b, err := os.ReadFile(f); err == nil {
						return strings.TrimSpace(string(b))
					}
				}
			}
		}
		return "none"
	}
	return fmt.Sprintf("memory %s, quota %s, pids %s, cpus %s", read("memory.limit_in_bytes", "memory.max"), read("cpu.cfs_quota_us", "cpu.max"),
		read("pids.max"), read("cpuset.cpus"))
}

// TestUpdate: limits change at once and for the next starts, all or none of them.
func TestUpdate(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	other := another(t, eng)
	quota := func(us int) string { return fmt.Sprint(us) }
	if unified() {
		quota = func(us int) string { return fmt.Sprint(us, " 100000") }
	}
	c := runningContainer(t, eng, coracle.ContainerSpec{Limits: cgroup.Limits{Memory: 64 << 20, PIDs: 100, CPUs: 0.5, CPUSetCPUs: "0"}}, "obey")
	want := func(what string, memory int64, us, pids int) {
		t.Helper()
		if got, want := limitsOf(t, eng, c), fmt.Sprintf("memory %d, quota %s, pids %d, cpus 0", memory, quota(us), pids); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
		for _, c := range []*coracle.Container{c, as(t, other, c)} {
			info, err := c.Inspect(ctx)
			l := info.Spec.Limits
			if err != nil || l.Memory != memory || l.PIDs != int64(pids) || l.CPUs != float64(us)/100000 {
				t.Errorf("%s: the spec has %+v, %v", what, l, err)
			}
		}
	}
	want("before", 64<<20, 50000, 100)
	if err := as(t, other, c).Update(ctx, cgroup.Limits{Memory: 128 << 20}); err != nil {
		t.Fatal(err)
	}
	want("more memory", 128<<20, 50000, 100)
	if err := c.Update(ctx, cgroup.Limits{PIDs: 50, CPUs: 1, Memory: 96 << 20}); err != nil {
		t.Fatal(err)
	}
	want("several", 96<<20, 100000, 50)
	var le *cgroup.LimitError
	if err := c.Update(ctx, cgroup.Limits{PIDs: 20, CPUs: 0.25, Memory: 64 << 20, CPUSetCPUs: "4000"}); !errors.As(err, &le) {
		t.Errorf("processors that there are not: %v", err)
	}
	want("refused", 96<<20, 100000, 50)
	if err := c.Update(ctx, cgroup.Limits{PIDs: 20, Memory: 4096}); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("less memory than it holds: %v", err)
	}
	want("too little memory", 96<<20, 100000, 50)
	if err := c.Update(ctx, cgroup.Limits{MemorySwap: 1 << 20}); !errors.As(err, new(*cgroup.InvalidError)) {
		t.Errorf("less swap than the memory that stays: %v", err)
	}
	if err := c.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Update(ctx, cgroup.Limits{PIDs: 60}); err != nil {
		t.Errorf("while it is paused: %v", err)
	}
	want("paused", 96<<20, 100000, 60)
	if err := c.Restart(ctx, nil); err != nil {
		t.Fatal(err)
	}
	want("restarted", 96<<20, 100000, 60)
	if err := c.Stop(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if err := as(t, other, c).Update(ctx, cgroup.Limits{PIDs: 70}); err != nil {
		t.Errorf("while it is stopped: %v", err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	want("stopped and started", 96<<20, 100000, 70)
	if err := c.Update(ctx, cgroup.Limits{PIDs: -1, Memory: -1, CPUs: -1}); err != nil {
		t.Fatal(err)
	}
	info, err := c.Inspect(ctx)
	if l := info.Spec.Limits; err != nil || l.Memory != 0 || l.MemorySwap != 0 || l.PIDs != 0 || l.CPUs != 0 || l.CPUSetCPUs != "0" {
		t.Errorf("lifted: %+v, %v", l, err)
	}
	s, err := c.Stats(ctx)
	if err != nil || s.Memory.Limit != 0 || s.PIDs.Limit != 0 {
		t.Errorf("lifted: %+v, %v", s, err)
	}
	if err := c.Restart(ctx, nil); err != nil {
		t.Error(err)
	}
}

func unified() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}
