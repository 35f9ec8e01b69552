package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A child is within its group: what is done to the group is done to both, and the child's limits are its own.
func TestChild(t *testing.T) {
	h := open(t)
	needs(t, h, "pids")
	g := create(t, h, resources(t, Limits{PIDs: 50}))
	own := start(t, g, "wait")
	own.line(t)
	if names, err := g.Children(); err != nil || len(names) > 0 {
		t.Errorf("before: %q, %v", names, err)
	}
	child, err := g.Child(t.Context(), "a", resources(t, Limits{PIDs: 20}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Child(t.Context(), "a", nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second one of this name: %v", err)
	}
	if names, err := g.Children(); err != nil || !slices.Equal(names, []string{"a"}) {
		t.Errorf("children %q, %v", names, err)
	}
	p := start(t, child, "wait")
	p.line(t)
	later := start(t, g, "wait")
	later.line(t)
	want := []int{own.Process.Pid, p.Process.Pid, later.Process.Pid}
	slices.Sort(want)
	if pids, err := g.Procs(); err != nil || !slices.Equal(pids, want) {
		t.Errorf("processes %d, %v; want %d", pids, err, want)
	}
	if pids, err := child.Procs(); err != nil || !slices.Equal(pids, []int{p.Process.Pid}) {
		t.Errorf("processes of the child %d, %v", pids, err)
	}
	if s, err := child.Stats(); err != nil || s.PIDs.Limit != 20 || s.PIDs.Current == 0 {
		t.Errorf("child: %+v, %v", s, err)
	}
	if s, err := g.Stats(); err != nil || s.PIDs.Limit != 50 {
		t.Errorf("group: %+v, %v", s, err)
	}
	if err := g.Freeze(t.Context()); err != nil {
		t.Error(err)
	}
	if frozen, err := g.Frozen(); !frozen || err != nil {
		t.Errorf("frozen: %v, %v", frozen, err)
	}
	if err := g.Thaw(t.Context()); err != nil {
		t.Error(err)
	}
	if err := child.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if err := child.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if pids, err := g.Procs(); err != nil || len(pids) != 2 {
		t.Errorf("after the child: %d, %v", pids, err)
	}
	if _, err := g.Child(t.Context(), "b", nil); err != nil { // the group takes it along
		t.Error(err)
	}
}

// Names that are none, groups that are gone, limits that are refused.
func TestChildFails(t *testing.T) {
	h := open(t)
	g := create(t, h, nil)
	for _, name := range []string{"", "..", "a/b", "main"} {
		var invalid *InvalidError
		if _, err := g.Child(t.Context(), name, nil); !errors.As(err, &invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	var limit *LimitError
	if _, err := g.Child(t.Context(), "x", resources(t, Limits{CPUSetCPUs: "9999"})); !errors.As(err, &limit) {
		t.Errorf("a processor that does not exist: %v", err)
	}
	if names, err := g.Children(); err != nil || len(names) > 0 {
		t.Errorf("left: %q, %v", names, err)
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Child(t.Context(), "x", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a group that is gone: %v", err)
	}
}

// The kills of a child are not its group's.
func TestChildOOM(t *testing.T) {
	h := open(t)
	needs(t, h, "memory")
	g := create(t, h, nil)
	start(t, g, "wait").line(t)
	child, err := g.Child(t.Context(), "hog", resources(t, Limits{Memory: 48 << 20, MemorySwap: 48 << 20}))
	if err != nil {
		t.Fatal(err)
	}
	_ = start(t, child, "hog").Wait()
	if n, err := child.OOMKills(); n == 0 || err != nil {
		t.Errorf("the child: %d kills, %v", n, err)
	}
	if n, err := g.OOMKills(); n != 0 || err != nil {
		t.Errorf("the group: %d kills, %v", n, err)
	}
}

// Many make room at once, while the group forks.
func TestChildrenAtOnce(t *testing.T) {
	h := open(t)
	needs(t, h, "pids")
	g := create(t, h, resources(t, Limits{PIDs: 60}))
	p := start(t, g, "bomb")
	p.Stderr = nil
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			child, err := g.Child(t.Context(), "c"+itoa(i), resources(t, Limits{PIDs: 5}))
			if err == nil {
				err = child.Remove(t.Context())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if names, err := g.Children(); err != nil || len(names) > 0 {
		t.Errorf("left: %q, %v", names, err)
	}
	if h.Mode() == V2 {
		if procs, err := os.ReadFile(filepath.Join(g.Path(""), "cgroup.procs")); err != nil || len(procs) > 0 {
			t.Errorf("%q, %v", procs, err)
		}
	}
}

// A program was killed between any two steps of making room: whoever comes next goes on.
func TestRoomHalfMade(t *testing.T) {
	h := open(t)
	if h.Mode() != V2 {
		t.Skip("only where all controllers are in version 2, as in the virtual machine, is room made")
	}
	for _, moved := range []int{0, 1, 2} {
		g, err := h.Create("half"+itoa(moved), nil)
		if err != nil {
			t.Fatal(err)
		}
		var pids []string
		for range 2 {
			p := start(t, g, "wait")
			p.line(t)
			pids = append(pids, itoa(p.Process.Pid))
		}
		leaf := filepath.Join(g.Path(""), leafName)
		if err := os.Mkdir(leaf, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids[:moved] {
			if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(pid), 0); err != nil {
				t.Fatal(err)
			}
		}
		start(t, g, "wait").line(t)
		if _, err := g.Child(t.Context(), "x", resources(t, Limits{PIDs: 5})); err != nil {
			t.Error(err)
		}
		if got, err := g.Procs(); err != nil || len(got) != 3 {
			t.Errorf("%d, %v", got, err)
		}
		if err := errors.Join(g.Kill(background), g.Remove(background)); err != nil {
			t.Error(err)
		}
	}
}

// What the kernel answers is told, with the file and the errno.
func TestNoRoom(t *testing.T) {
	g, dir := fakeUnified(t, "cgroup.controllers", "cgroup.subtree_control", "cgroup.procs")
	if err := os.WriteFile(filepath.Join(dir, "cgroup.controllers"), []byte("memory pids\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	g.h.log = discard
	fd, err := g.h.trees[0].dir()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.makeRoom(t.Context(), g.h.trees[0], fd); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "cgroup.procs") {
		t.Errorf("a leaf without its files: %v", err)
	}
}
