package cgroup

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// background is for cleanups, which run when the context of the test is done.
var background = context.Background()

func TestGroupLife(t *testing.T) {
	h := open(t)
	t.Logf("mode %v, controllers %v", h.Mode(), h.Controllers())
	g, err := h.Create("life", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Create("life", nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second group of this name: %v", err)
	}
	for _, tr := range h.trees {
		if st, err := os.Stat(filepath.Join(tr.where(), "life")); err != nil || !st.IsDir() {
			t.Errorf("%v: %v", tr.where(), err)
		}
	}
	if names, err := h.Names(); err != nil || !slices.Equal(names, []string{"life"}) {
		t.Errorf("names %q, %v", names, err)
	}
	if again, err := h.Load("life"); err != nil || again.Name() != "life" {
		t.Errorf("load: %v", err)
	}
	for range 2 {
		if err := g.Kill(t.Context()); err != nil {
			t.Errorf("kill an empty group: %v", err)
		}
	}
	for range 2 {
		if err := g.Remove(t.Context()); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if err := g.Kill(t.Context()); err != nil {
		t.Errorf("kill a group that is gone: %v", err)
	}
	if _, err := h.Load("life"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("load a group that is gone: %v", err)
	}
	if _, err := g.Stats(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("statistics of a group that is gone: %v", err)
	}
	if err := g.Update(resources(t, Limits{PIDs: 5})); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("update a group that is gone: %v", err)
	}
	if _, err := g.Join(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("join a group that is gone: %v", err)
	}
}

func TestNames(t *testing.T) {
	h := open(t)
	for _, name := range []string{"", ".", "..", "../x", "a/b", "/", "/etc", "a\x00b", "a\nb", "-x", "tasks", "cgroup.procs",
		"memory.max", "ä", strings.Repeat("x", 201), strings.Repeat("x", 1<<20)} {
		var invalid *InvalidError
		if _, err := h.Create(name, nil); !errors.As(err, &invalid) || len(err.Error()) > 1000 {
			t.Errorf("create %.20q: %v", name, err)
		}
		if _, err := h.Load(name); !errors.As(err, &invalid) {
			t.Errorf("load %.20q: %v", name, err)
		}
	}
	long, err := h.Create(strings.Repeat("x", 200), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := long.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	for _, parent := range []string{"x", "/", "/a/../b", "/a/", "//a", "/a\nb"} {
		if _, err := Open(Config{Parent: parent}); err == nil {
			t.Errorf("parent %q was taken", parent)
		}
	}
}

// A limit that cannot be set leaves nothing behind.
func TestCreateRollsBack(t *testing.T) {
	h := open(t)
	needs(t, h, "cpuset")
	_, err := h.Create("back", resources(t, Limits{CPUSetCPUs: "9999"}))
	var limit *LimitError
	if !errors.As(err, &limit) || limit.Feature != "cpuset" || limit.Value != "9999" {
		t.Errorf("a processor that does not exist: %v", err)
	}
	if names, err := h.Names(); err != nil || len(names) > 0 {
		t.Errorf("names %q, %v", names, err)
	}
}

func TestJoin(t *testing.T) {
	h := open(t)
	g := create(t, h, nil)
	p := start(t, g, "wait")
	p.line(t)
	data, err := os.ReadFile("/proc/" + itoa(p.Process.Pid) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	in := strings.Count(string(data), testParent+"/"+g.Name()+"\n")
	if in != len(h.trees) {
		t.Errorf("the process is in %d of %d hierarchies:\n%s", in, len(h.trees), data)
	}
	if pids, err := g.Procs(); err != nil || !slices.Equal(pids, []int{p.Process.Pid}) {
		t.Errorf("processes %d, %v; want %d", pids, err, p.Process.Pid)
	}
	j, err := g.Join()
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if h.Mode() != V1 && (j.Dir == nil || j.Kill == nil) {
		t.Errorf("join: %+v", j)
	}
	if (h.Mode() == V2) != (len(j.Tasks) == 0) {
		t.Errorf("mode %v, %d tasks files", h.Mode(), len(j.Tasks))
	}
	if err := g.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Procs(); err != nil || len(pids) > 0 {
		t.Errorf("after kill: %d, %v", pids, err)
	}
	var exit *os.ProcessState
	if exit, err = p.Process.Wait(); err != nil || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("%v, %v", exit, err)
	}
}

// Without cgroup.kill: Linux 5.10, or v1 alone.
func TestKillEach(t *testing.T) {
	h := open(t)
	g := create(t, h, nil)
	for range 3 {
		start(t, g, "wait").line(t)
	}
	if pids, err := g.Procs(); err != nil || len(pids) != 3 {
		t.Fatalf("%d, %v", pids, err)
	}
	if err := g.killEach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Procs(); err != nil || len(pids) != 0 {
		t.Errorf("%d, %v", pids, err)
	}
}

// What a container made inside of its group goes with it.
func TestRemoveNested(t *testing.T) {
	h := open(t)
	g := create(t, h, nil)
	for _, tr := range h.trees {
		dir := filepath.Join(tr.where(), g.Name())
		for i := range 70 {
			if err := os.Mkdir(filepath.Join(dir, "wide"+itoa(i)), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for range 40 {
			dir = filepath.Join(dir, "deep")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(filepath.Dir(dir), "beside"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if names, err := h.Names(); err != nil || len(names) > 0 {
		t.Errorf("names %q, %v", names, err)
	}
}

func TestRemoveBusy(t *testing.T) {
	h := open(t)
	g := create(t, h, nil)
	start(t, g, "wait").line(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Remove(ctx); !errors.Is(err, unix.EBUSY) || !errors.Is(err, context.Canceled) {
		t.Errorf("remove with a process: %v", err)
	}
}

// One process removes the empty parent while another uses it.
func TestParentRemovedByAnother(t *testing.T) {
	h := open(t)
	other, err := Open(Config{Parent: testParent})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, tr := range other.trees {
			_ = os.Remove(tr.where())
		}
	}()
	if left := leftovers(); len(left) > 0 {
		t.Errorf("parents are left: %q", left)
	}
	if names, err := other.Names(); err != nil || len(names) > 0 {
		t.Errorf("names %q, %v", names, err)
	}
	g, err := other.Create("x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(g.Remove(t.Context()), other.Close()); err != nil {
		t.Error(err)
	}
}

// An empty parent that somebody else made, with limits maybe, stays.
func TestForeignParentStays(t *testing.T) {
	h := open(t)
	other, err := Open(Config{Parent: testParent})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tr := range h.trees {
		if _, err := os.Stat(tr.where()); err != nil {
			t.Error(err)
		}
	}
}

func TestWithoutCgroups(t *testing.T) {
	testutil.RequireRoot(t)
	for _, role := range []string{"readonly", "unmounted"} {
		t.Run(role, func(t *testing.T) {
			open(t)
			p := command(t, role)
			p.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			for p.out.Scan() {
				said.WriteString(p.out.Text() + "\n")
			}
			if err := p.Wait(); err != nil || !strings.HasSuffix(said.String(), "good\n") {
				t.Errorf("%v: %s", err, said.String())
			}
		})
	}
}

// A user whose group was delegated, as systemd does it: the directory is theirs, and they are in a leaf of it.
func TestDelegated(t *testing.T) {
	h := open(t)
	needs(t, h, "pids")
	g := create(t, h, nil)
	leaf := &Group{h: h, name: g.Name() + "/leaf"}
	const nobody = 65534
	for _, tr := range h.trees {
		dir := filepath.Join(tr.where(), g.Name())
		if err := os.Mkdir(filepath.Join(dir, "leaf"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{".", "leaf", "cgroup.procs", "cgroup.subtree_control", "tasks", "leaf/cgroup.procs", "leaf/tasks"} {
			if err := os.Chown(filepath.Join(dir, f), nobody, nobody); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
	p := command(t, "delegated", testParent)
	p.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if err := p.startIn(leaf); err != nil {
		t.Fatal(err)
	}
	said := p.line(t)
	_ = p.Wait()
	where := testParent + "/" + g.Name() + testParent + "/x"
	if !strings.HasPrefix(said, "good ") || !strings.HasSuffix(said, where) {
		t.Errorf("%s; want a group %s", said, where)
	}
}

// A parent that holds a process can have no controllers for its children in v2, and is left as it is.
func TestBusyParent(t *testing.T) {
	h := open(t)
	needs(t, h, "memory")
	g := create(t, h, nil)
	start(t, g, "wait").line(t)
	inner, err := Open(Config{Parent: testParent + "/" + g.Name()})
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	if x, err := inner.Create("plain", nil); err != nil {
		t.Error(err)
	} else if err := x.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	x, err := inner.Create("limited", resources(t, Limits{Memory: 64 << 20}))
	if h.Mode() == V2 {
		var u *UnsupportedError
		if !errors.As(err, &u) || u.Fix == "" {
			t.Errorf("a limit below a process: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

// The root of a cgroup namespace holds processes as a rule, and has none of the exceptions that are made for the real one.
func TestNamespaceRoot(t *testing.T) {
	h := open(t)
	if h.tree("") == nil {
		t.Skip("there is no v2 hierarchy")
	}
	g := create(t, h, nil)
	p := command(t, "namespace", t.TempDir())
	p.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWCGROUP | unix.CLONE_NEWNS}
	if err := p.startIn(g); err != nil {
		t.Fatal(err)
	}
	if said := p.line(t); said != "good" {
		t.Error(said)
	}
	_ = p.Wait()
}

// A program without rights opens a hierarchy all the same.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("for users other than root")
	}
	h, err := Open(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if len(h.Controllers()) > 0 {
		t.Skip("a cgroup was delegated to this user")
	}
	if _, err := h.Create("x", nil); err != nil {
		t.Error(err)
	}
	_, err = h.Create("x", resources(t, Limits{Memory: 64 << 20}))
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a limit: %v", err)
	}
	// No CAP_MKNOD: the rules guard nothing.
	if _, err := h.Create("x", &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}}); err != nil {
		t.Errorf("device rules: %v", err)
	}
}

func TestFreeze(t *testing.T) {
	h := open(t)
	if h.tree("") == nil && h.tree("freezer") == nil {
		testutil.Skip(t, "nothing can freeze here")
	}
	g := create(t, h, nil)
	p := start(t, g, "spin")
	p.line(t)
	// Of all threads: the one that spins need not be the first.
	used := func() (sum uint64) {
		threads, err := filepath.Glob("/proc/" + itoa(p.Process.Pid) + "/task/*/schedstat")
		if err != nil || len(threads) == 0 {
			t.Fatalf("the threads of the process: %q, %v", threads, err)
		}
		for _, path := range threads {
			data, err := os.ReadFile(path)
			if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			sum += parseFirst(string(data))
		}
		return sum
	}
	first := used()
	eventually(t, "it runs", func() bool { return used() > first })
	frozen := func(want bool) {
		t.Helper()
		if got, err := g.Frozen(); err != nil || got != want {
			t.Errorf("frozen: %v, %v", got, err)
		}
	}
	frozen(false)
	if err := g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	frozen(true)
	before := used()
	for range 20 {
		unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
	}
	if after := used(); after != before {
		t.Errorf("it ran %d ns while it was frozen", after-before)
	}
	if err := g.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	frozen(false)
	eventually(t, "it runs again", func() bool { return used() > before })
	// Killing works on what is frozen.
	if err := g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestFreezeFails: a freeze that does not come to its end leaves nothing frozen, and Frozen tells what is.
func TestFreezeFails(t *testing.T) {
	h := open(t)
	if h.tree("") == nil && h.tree("freezer") == nil {
		testutil.Skip(t, "nothing can freeze here")
	}
	g := create(t, h, nil)
	frozen := func(want bool) {
		t.Helper()
		if got, err := g.Frozen(); err != nil || got != want {
			t.Errorf("frozen: %v, %v, want %v", got, err, want)
		}
	}
	p := start(t, g, "spin")
	p.line(t)
	frozen(false)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		// It may be frozen before the context is looked at.
		if err := g.Freeze(ctx); err == nil {
			frozen(true)
			if err := g.Thaw(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		frozen(false)
	}
	if err := g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	frozen(true)
	other, err := h.Load(g.Name())
	if err != nil {
		t.Fatal(err)
	}
	if is, err := other.Frozen(); err != nil || !is {
		t.Errorf("frozen, asked elsewhere: %v, %v", is, err)
	}
	if err := g.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if is, err := g.Frozen(); err != nil || is {
		t.Errorf("frozen, of a group that is gone: %v, %v", is, err)
	}
	if err := g.Freeze(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("freeze a group that is gone: %v", err)
	}
}

// TestThawedMeanwhile: a freeze that somebody else undoes does not wait for ever. Processes that fork all the time keep it busy.
func TestThawedMeanwhile(t *testing.T) {
	h := open(t)
	if h.tree("") == nil && h.tree("freezer") == nil {
		testutil.Skip(t, "nothing can freeze here")
	}
	g := create(t, h, nil)
	p := start(t, g, "spin")
	p.line(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stop := make(chan struct{})
	thawed := make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				thawed <- nil
				return
			default:
			}
			if err := g.Thaw(ctx); err != nil {
				thawed <- err
				return
			}
		}
	}()
	lost := 0
	for range 200 {
		if err := g.Freeze(ctx); errors.Is(err, ErrThawed) {
			lost++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-thawed; err != nil {
		t.Error(err)
	}
	t.Logf("%d of 200 freezes were undone", lost)
}

// TestThawEnds: thawing what ends by that, and whose group somebody removes at once, is no error.
func TestThawEnds(t *testing.T) {
	h := open(t)
	if h.tree("") == nil && h.tree("freezer") == nil {
		testutil.Skip(t, "nothing can freeze here")
	}
	for range 100 {
		g := create(t, h, nil)
		p := start(t, g, "spin")
		p.line(t)
		if err := g.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := p.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		tree, _ := g.freezer()
		dir := filepath.Join(tree.where(), g.Name())
		removed := make(chan struct{})
		go func() {
			defer close(removed)
			for t.Context().Err() == nil && os.Remove(dir) != nil { // with a process in it that fails
			}
		}()
		if err := g.Thaw(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-removed
		if err := g.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func parseFirst(s string) uint64 {
	var n uint64
	for _, c := range s {
		if c < '0' || c > '9' {
			break
		}
		n = 10*n + uint64(c-'0')
	}
	return n
}

// Several engines, each opening and closing the same parent, and several goroutines on one of them.
func TestConcurrent(t *testing.T) {
	h := open(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for k := range 25 {
				name := "c" + itoa(i) + "." + itoa(k)
				g, err := h.Create(name, resources(t, Limits{PIDs: 5}))
				if err != nil {
					t.Error(err)
					return
				}
				j, err := g.Join()
				if err != nil {
					t.Error(err)
					return
				}
				if err := errors.Join(j.Close(), g.Kill(t.Context()), g.Remove(t.Context())); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 25 {
			other, err := Open(Config{Parent: testParent})
			if err != nil {
				t.Error(err)
				return
			}
			for _, tr := range other.trees {
				_ = unix.Rmdir(tr.where()) // as the engine that made it would on closing
			}
			if _, err := h.Names(); err != nil {
				t.Error(err)
			}
			other.Close()
		}
	})
	wg.Wait()
}

// TestLoadAfterParentWasRemoved: whoever closes a hierarchy removes the empty parent, and the next one makes it anew. A
// group that is made there is found, and removed, by those that had the old one open.
func TestLoadAfterParentWasRemoved(t *testing.T) {
	testutil.RequireRoot(t)
	const parent = "/coracle-test-removed"
	hierarchy := func() *Hierarchy {
		h, err := Open(Config{Parent: parent})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	first := hierarchy()
	second := hierarchy()
	defer second.Close()
	if first.tree("") == nil && len(first.Controllers()) == 0 {
		testutil.Skip(t, "there are no cgroups that may be written")
	}
	if err := first.Close(); err != nil { // it made the parent, and removes it
		t.Fatal(err)
	}
	third := hierarchy()
	defer third.Close()
	if _, err := third.Create("group", nil); err != nil {
		t.Fatal(err)
	}
	g, err := second.Load("group")
	if err != nil {
		t.Fatalf("a group in a parent that was made anew: %v", err)
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := third.Load("group"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after it was removed: %v", err)
	}
}

// TestParentOftenRemoved: a program that lives long beside many that come and go takes no descriptor for each of them.
func TestParentOftenRemoved(t *testing.T) {
	testutil.RequireRoot(t)
	config := Config{Parent: "/coracle-test-often"}
	h, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if h.tree("") == nil && len(h.Controllers()) == 0 {
		testutil.Skip(t, "there are no cgroups that may be written")
	}
	before := testutil.Resources()
	for range 50 {
		for _, tree := range h.trees { // as the Close of the program that made it does
			if _, err := tree.dir(); err == nil {
				if err := unix.Rmdir(tree.where()); err != nil {
					t.Fatal(err)
				}
			}
		}
		g, err := h.Create("group", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	testutil.Settled(t, before)
}
