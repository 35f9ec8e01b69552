package coracle_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/registrytest"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// The crash walk ends a program with SIGKILL at every named step of whatever changes a root, and opens the root again.
// Each scenario runs in a process of its own: the test binary once more, see walkMain. A first run lists the steps;
// then each of them gets a fresh copy of the same root, and a program that dies there.

// walkEnv holds the walkOrder of a test binary that is to perform a scenario.
const walkEnv = "CORACLE_TEST_WALK"

// walkOrder tells the other process what to do.
type walkOrder struct {
	Scenario, Root, Registry string
	// Cut is the step at which the process dies, with the number of its occurrence. Empty means that it goes through
	// and lists its steps.
	Cut string
}

// endpointFile is in the name of a step that has another one each time.
var endpointFile = regexp.MustCompile("^write [0-9a-f]{10}:")

// walkEnd is the step after the last one.
const walkEnd = "end"

// walkMain performs a scenario and exits, where the process was started for that.
func walkMain() {
	text := os.Getenv(walkEnv)
	if text == "" {
		return
	}
	var order walkOrder
	err := json.Unmarshal([]byte(text), &order)
	if err == nil && order.Scenario == messScenario {
		err = makeMess(order)
	} else if err == nil && order.Scenario == foreignScenario {
		err = foreignConnect.perform(order)
	} else if err == nil {
		err = walkScenarios[order.Scenario].perform(order)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// perform goes through the scenario, or to the step where the process dies.
func (s *walkScenario) perform(order walkOrder) error {
	w := &walkWorld{ctx: context.Background(), root: order.Root, registry: order.Registry}
	if !s.opens {
		if err := w.open(); err != nil {
			return err
		}
	}
	if err := s.prepare(w); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	var mu sync.Mutex
	var steps []string
	seen := make(map[string]int)
	at := func(step string) {
		step = endpointFile.ReplaceAllString(step, "write an endpoint:")
		mu.Lock() // and keep it: nobody else comes to a step while this process dies
		seen[step]++
		step = fmt.Sprintf("%s #%d", step, seen[step])
		if order.Cut == step {
			dieHere()
		}
		steps = append(steps, step)
		mu.Unlock()
	}
	crashpoint.Observe(at)
	if err := s.act(w); err != nil {
		return fmt.Errorf("act: %w", err)
	}
	if err := w.eng.Close(); err != nil {
		return err
	}
	at(walkEnd)
	crashpoint.Observe(nil)
	return json.NewEncoder(os.Stdout).Encode(steps)
}

// dieHere kills the process, after it has said which processes hang on it.
func dieHere() {
	json.NewEncoder(os.Stdout).Encode(descendants(os.Getpid()))
	unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// descendants lists the processes below one, each with its start time, by which it is told from a later one.
func descendants(of int) []string {
	parents, names := make(map[int]int), make(map[int]string)
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		pid, parent, start := processStat(path)
		parents[pid], names[pid] = parent, fmt.Sprintf("%d %s", pid, start)
	}
	found := []string{}
	for pid := range parents {
		for p := parents[pid]; p > 0; p = parents[p] {
			if p == of {
				found = append(found, names[pid])
				break
			}
		}
	}
	return found
}

func processStat(path string) (pid, parent int, start string) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, ""
	}
	head, rest, _ := strings.Cut(string(b), "(")
	fields := strings.Fields(rest[strings.LastIndexByte(rest, ')')+1:])
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" { // the dead run nothing
		return 0, 0, ""
	}
	pid, _ = strconv.Atoi(strings.TrimSpace(head))
	parent, _ = strconv.Atoi(fields[1])
	return pid, parent, fields[19]
}

// program starts the test binary for an order and returns what it printed and how it ended.
func (o walkOrder) program() (out []byte, state *os.ProcessState, err error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), walkEnv+"="+string(text))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("%w\n%s%s", err, &stdout, &stderr)
	}
	return stdout.Bytes(), cmd.ProcessState, err
}

// killed waits until the kernel has ended what hung on a process that died at a step.
func killed(t *testing.T, out []byte) {
	t.Helper()
	var pids []string
	if err := json.Unmarshal(out, &pids); err != nil {
		t.Fatalf("what the program said: %q", out)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		pids = slices.DeleteFunc(pids, func(p string) bool {
			pid, start, _ := strings.Cut(p, " ")
			_, _, now := processStat("/proc/" + pid + "/stat")
			return now != start
		})
		if len(pids) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("these processes (pid, start time) outlive their program: %q", pids)
		}
	}
}

// cuts chooses the steps at which to end the program: of one that repeats, for each layer for example, the first two
// and the last.
func cuts(steps []string) []string {
	last := make(map[string]int)
	number := func(step string) (string, int) {
		i := strings.LastIndex(step, " #")
		n, _ := strconv.Atoi(step[i+2:])
		return step[:i], n
	}
	for _, s := range steps {
		name, n := number(s)
		last[name] = max(last[name], n)
	}
	return slices.DeleteFunc(slices.Clone(steps), func(s string) bool {
		name, n := number(s)
		return n > 2 && n < last[name]
	})
}

// walkWorld is a root in use.
type walkWorld struct {
	ctx            context.Context
	root, registry string
	eng            *coracle.Engine
}

func (w *walkWorld) open() (err error) {
	w.eng, err = coracle.Open(w.ctx, coracle.Config{Root: w.root})
	return err
}

// walk is one scenario with the root that all its programs get a copy of.
type walk struct {
	*walkScenario
	name     string
	prepared string
	registry string
	dir      string

	n     atomic.Int32
	kills *atomic.Int32
	// missed counts the steps that were not reached this time.
	missed *atomic.Int32
}

func (k *walk) copyRoot(t *testing.T) string {
	t.Helper()
	root := filepath.Join(k.dir, fmt.Sprintf("%s-%d", k.name, k.n.Add(1)))
	if k.prepared != "" {
		if err := cloneTree(k.prepared, root); err != nil {
			t.Fatal(err)
		}
	}
	if k.messy {
		out, _, err := walkOrder{Scenario: messScenario, Root: root, Registry: k.registry}.program()
		if err != nil {
			t.Fatal(err)
		}
		killed(t, out)
	}
	return root
}

// steps is the run that goes through.
func (k *walk) steps(t *testing.T) []string {
	t.Helper()
	root := k.copyRoot(t)
	out, _, err := walkOrder{Scenario: k.name, Root: root, Registry: k.registry}.program()
	var steps []string
	if err == nil {
		err = json.Unmarshal(out, &steps)
	}
	if err != nil {
		t.Fatal(err)
	}
	wantCleanRoot(t, root, false)
	w := &walkWorld{ctx: t.Context(), root: root, registry: k.registry}
	k.settled(t, w, k.end)
	if err := os.RemoveAll(root); err != nil {
		t.Error(err)
	}
	return steps
}

// inBackground reports whether a step is taken at any time: the runtime spec is written while a container runs, which may be
// before the scenario begins.
func inBackground(step string) bool { return strings.HasPrefix(step, "write config.json:") }

// cut ends a program at a step and opens its root again.
func (k *walk) cut(t *testing.T, step string) {
	root := k.copyRoot(t)
	out, state, err := walkOrder{Scenario: k.name, Root: root, Registry: k.registry, Cut: step}.program()
	if err != nil {
		t.Fatal(err)
	}
	if state.Success() {
		if !k.timing && !inBackground(step) {
			t.Fatal("the program did not come to the step")
		}
		k.missed.Add(1)
		return
	}
	k.kills.Add(1)
	killed(t, out)
	if k.keeps {
		waitKeepers(t, root)
	}
	w := &walkWorld{ctx: t.Context(), root: root, registry: k.registry}
	if err := w.open(); err != nil {
		t.Fatalf("open: %v", err)
	}
	closed := false
	defer func() {
		if !closed {
			w.eng.Close()
		}
	}()
	wantCleanRoot(t, root, true)
	k.whole(t, w)
	now, err := k.state(w)
	if err != nil || !slices.Contains(k.legal, now) || step == walkEnd+" #1" && now != k.end {
		t.Errorf("after the kill: %q, %v, where %q are right", now, err, k.legal)
	}
	if err := cmp.Or(k.prepare(w), k.act(w)); err != nil {
		t.Errorf("once more: %v", err)
	}
	closed = true
	if err := w.eng.Close(); err != nil {
		t.Error(err)
	}
	wantCleanRoot(t, root, false)
	k.settled(t, w, k.end)
	if err := os.RemoveAll(root); err != nil {
		t.Error(err)
	}
}

// beside ends a program at a step while this one has the same root open and works.
func (k *walk) beside(t *testing.T, step string) {
	root := k.copyRoot(t)
	w := &walkWorld{ctx: t.Context(), root: root, registry: k.registry}
	if err := w.open(); err != nil {
		t.Fatal(err)
	}
	defer w.eng.Close()
	stop, worked := make(chan struct{}), make(chan error, 1)
	go func() { worked <- busy(w, stop) }()
	out, state, err := walkOrder{Scenario: k.name, Root: root, Registry: k.registry, Cut: step}.program()
	close(stop)
	if err := cmp.Or(err, <-worked); err != nil {
		t.Fatal(err)
	}
	if state.Success() {
		if inBackground(step) {
			return
		}
		t.Fatal("the program did not come to the step")
	}
	k.kills.Add(1)
	killed(t, out)
	// This engine has not swept anything, and its work is not in the way of what the dead one left.
	if err := cmp.Or(k.prepare(w), k.act(w)); err != nil {
		t.Errorf("once more, in the program that lives: %v", err)
	}
	third := &walkWorld{ctx: t.Context(), root: root, registry: k.registry}
	if err := third.open(); err != nil {
		t.Fatalf("third open: %v", err)
	}
	k.whole(t, third)
	if err := errors.Join(w.eng.Close(), third.eng.Close()); err != nil {
		t.Error(err)
	}
	wantCleanRoot(t, root, false)
	// Who was dead was still thought alive when the scenario was done again, and third has swept since.
	k.settled(t, w, k.legal...)
	if err := os.RemoveAll(root); err != nil {
		t.Error(err)
	}
}

// busy makes and removes containers until stop is closed.
func busy(w *walkWorld, stop chan struct{}) error {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		img, err := w.eng.ImageFromFS(w.ctx, "busy", smallFS("busy"), nil)
		if err != nil {
			return fmt.Errorf("busy: %w", err)
		}
		c, err := w.eng.Create(w.ctx, &coracle.ContainerSpec{Name: "busy", Image: "busy", Pull: coracle.PullNever, Args: []string{"/none"}})
		if err == nil {
			err = c.Remove(w.ctx, nil)
		}
		// Whoever prunes all may do so between two steps of this.
		if err == nil {
			err = img.Tag(w.ctx, "busy:again")
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("busy: %w", err)
		}
	}
}

// whole verifies that a check finds no damage, or none but what the scenario began with.
func (k *walk) whole(t *testing.T, w *walkWorld) {
	t.Helper()
	if k.damaged {
		return
	}
	report, err := w.eng.Check(w.ctx)
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	for _, d := range report.Damage {
		t.Errorf("check: %v", d)
	}
}

// settled verifies that the next open of a root finds nothing to do, and the scenario in one of the given states.
func (k *walk) settled(t *testing.T, w *walkWorld, right ...string) {
	t.Helper()
	before := listTree(t, w.root)
	if err := w.open(); err != nil {
		t.Fatalf("open again: %v", err)
	}
	defer w.eng.Close()
	if after := listTree(t, w.root); !slices.Equal(before, after) {
		for _, line := range after {
			if !slices.Contains(before, line) {
				t.Errorf("the second open made: %s", line)
			}
		}
		for _, line := range before {
			if !slices.Contains(after, line) {
				t.Errorf("the second open took: %s", line)
			}
		}
	}
	now, err := k.state(w)
	if err != nil || !slices.Contains(right, now) {
		t.Errorf("in the end: %q, %v instead of %q", now, err, right)
	}
	if !k.found { // the scenario repairs
		return
	}
	report, err := w.eng.Check(w.ctx)
	if err != nil || len(report.Damage) > 0 {
		t.Errorf("check in the end: %v, %v", report.Damage, err)
	}
}

// listTree lists all files below a root but for the owners, with what changes when they do.
func listTree(t *testing.T, root string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == filepath.Join(root, "owners") {
			return cmp.Or(err, fs.SkipDir)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := strings.TrimPrefix(path, root)
		if !d.IsDir() {
			line += fmt.Sprintf(" inode %d, %d bytes, %v", info.Sys().(*syscall.Stat_t).Ino, info.Size(), info.ModTime())
		}
		list = append(list, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// wantCleanRoot looks for what nobody needs in a root, which one engine has open or none.
func wantCleanRoot(t *testing.T, root string, open bool) {
	t.Helper()
	list := func(dir string) []string {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil {
			t.Error(err)
		}
		names := make([]string, len(entries))
		for i, e := range entries {
			names[i] = e.Name()
		}
		return names
	}
	wantEvents(t, root)
	for _, dir := range []string{"store/locks", "store/leases"} {
		for _, name := range list(dir) {
			t.Errorf("left: %s/%s", dir, name)
		}
	}
	for _, name := range list("store/tmp") {
		f, err := os.Open(filepath.Join(root, "store/tmp", name))
		if !open || err == nil && unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			t.Errorf("left: store/tmp/%s", name)
		}
		f.Close()
	}
	owners := list("owners")
	if want := map[bool]int{true: 1}[open]; len(owners) != want {
		t.Errorf("%d owners instead of %d", len(owners), want)
	}
	containers := list("containers")
	named := make(map[string]string)
	for _, id := range containers {
		if strings.HasPrefix(id, ".") {
			t.Errorf("left: containers/%s", id)
			continue
		}
		b, err := os.ReadFile(filepath.Join(root, "containers", id, "state.json"))
		var st struct {
			ID, Name, Owner string
			Status          coracle.ContainerStatus
			Spec            coracle.ContainerSpec
		}
		if err = cmp.Or(err, json.Unmarshal(b, &st)); err != nil || st.ID != id || st.Owner != "" || st.Status == coracle.StatusRunning {
			t.Errorf("container %s: %+v, %v", id, st, err)
		}
		var renamed struct{ Name string }
		if b, err := os.ReadFile(filepath.Join(root, "containers", id, "changes.json")); err == nil && json.Unmarshal(b, &renamed) == nil && renamed.Name != "" {
			st.Name, st.Spec.Name = renamed.Name, renamed.Name
		}
		if st.Spec.Name != "" {
			named[st.Name] = id
		}
		if link, err := os.Readlink(filepath.Join(root, "names", st.Name)); st.Spec.Name != "" && (err != nil || link != id) {
			t.Errorf("the name of container %s, %q, leads to %q, %v", id, st.Name, link, err)
		}
		if _, err := os.Lstat(filepath.Join(root, "store/snapshots", id, "layers")); err != nil {
			t.Errorf("the snapshot of container %s: %v", id, err)
		}
	}
	for _, name := range list("names") {
		if id, err := os.Readlink(filepath.Join(root, "names", name)); err != nil || named[name] != id {
			t.Errorf("the name %q leads to %q, %v", name, id, err)
		}
	}
	for _, id := range list("store/snapshots") {
		if !slices.Contains(containers, id) {
			t.Errorf("left: store/snapshots/%s", id)
		}
	}
	filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if path == filepath.Join(root, "store/layers") || path == filepath.Join(root, "store/snapshots") {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, ".new") {
			t.Errorf("left: %s", path)
		}
		return nil
	})
	prefix := coracle.GroupPrefix(root)
	for _, pattern := range []string{"/sys/fs/cgroup/*/coracle/" + prefix + "*", "/sys/fs/cgroup/coracle/" + prefix + "*"} {
		groups, _ := filepath.Glob(pattern)
		groups = slices.DeleteFunc(groups, func(g string) bool { return open && strings.HasSuffix(g, "-keepers") }) // until the last one closes
		if len(groups) > 0 {
			t.Errorf("cgroups left: %v", groups)
		}
	}
	checkNetworks(t, root)
	if marks, err := os.ReadDir(filepath.Join(root, "detached")); err == nil && len(marks) > 0 {
		t.Errorf("left: detached/%s", marks[0].Name())
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(b, []byte(root)) {
		t.Errorf("something is mounted, or cannot be read: %v", err)
	}
}

// cloneTree copies a root. What never changes in place is linked.
func cloneTree(from, to string) error {
	type dirTime struct {
		path string
		info fs.FileInfo
	}
	var dirs []dirTime
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(path, from)
		target := to + rel
		switch {
		case d.IsDir():
			info, err := d.Info()
			dirs = append(dirs, dirTime{target, info})
			return cmp.Or(err, os.Mkdir(target, 0o700))
		case strings.HasPrefix(rel, "/store/blobs/") || strings.HasPrefix(rel, "/store/layers/"):
			return os.Link(path, target)
		case d.Type() == fs.ModeSymlink:
			link, err := os.Readlink(path)
			return cmp.Or(err, os.Symlink(link, target))
		}
		b, err := os.ReadFile(path)
		return cmp.Or(err, os.WriteFile(target, b, 0o600))
	})
	for _, d := range slices.Backward(dirs) {
		err = cmp.Or(err, os.Chmod(d.path, d.info.Mode()), os.Chtimes(d.path, d.info.ModTime(), d.info.ModTime()))
	}
	return err
}

// walkDir is where the roots are: in memory where there is room, since nothing that is synced matters to a program that
// is killed, and most of the time would go into that.
func walkDir(t *testing.T) string {
	var st unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &st); err != nil || st.Type != unix.TMPFS_MAGIC || st.Bavail*uint64(st.Bsize) < 256<<20 {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "walk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestCrashWalk: after SIGKILL at any step the next Open finds a root in which nothing is damaged or left over, the
// operation is done or it is not, and it can be done again.
func TestCrashWalk(t *testing.T) {
	testutil.RequireRoot(t)
	begin := time.Now()
	reg := registrytest.New()
	defer reg.Close()
	dir := walkDir(t)
	roots := prepareRoots(t, dir, reg)
	var steps, kills, missed atomic.Int32
	t.Run("scenarios", func(t *testing.T) {
		for name, s := range walkScenarios {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				k := &walk{walkScenario: s, name: name, prepared: roots[s.root], registry: reg.Host, dir: dir, kills: &kills, missed: &missed}
				all := k.steps(t)
				steps.Add(int32(len(all)))
				chosen := cuts(all)
				every := 1
				if testutil.InVM() {
					every = 25 // the rest of them outside, ten times as fast
				} else if testutil.Short() {
					every = 5
				}
				for i, step := range chosen {
					if i%every != 0 {
						continue
					}
					t.Run(step, func(t *testing.T) { k.cut(t, step) })
					if s.beside && i%4 == 0 {
						t.Run("beside another: "+step, func(t *testing.T) { k.beside(t, step) })
					}
				}
			})
		}
	})
	if missed.Load() > kills.Load()/20 {
		t.Errorf("%d steps were not reached a second time", missed.Load())
	}
	t.Logf("%d scenarios, %d steps, %d kills, in %v", len(walkScenarios), steps.Load(), kills.Load(), time.Since(begin).Round(time.Second))
}
