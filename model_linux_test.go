package coracle_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/registrytest"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// The model test: many processes do everything with one root at once, each thing at random, and are killed at random.
// model_child_linux_test.go is what each of them does and what it may see; here they are started and killed, and here is
// what must be true of the root when they have ended.
//
// The seed decides what each process does, which of them is killed after how many operations, and what the registry
// serves meanwhile. It does not decide how the kernel interleaves the processes: a failure may need several runs with its
// seed to come again.

// Settings of TestModel in the environment.
const (
	modelSeedEnv  = "CORACLE_MODEL_SEED"  // this seed alone
	modelOpsEnv   = "CORACLE_MODEL_OPS"   // operations of each seed
	modelKillsEnv = "CORACLE_MODEL_KILLS" // kills of each seed
)

const (
	modelProcesses = 8
	modelOps       = 1000
	modelKills     = 20
	modelEpochs    = 2 // how many times in a run all processes end and the root is looked at

	modelSeeds  = "testdata/model/seeds"  // the saved seeds, one a line
	modelFailed = "testdata/model/failed" // those that failed here
)

func TestModel(t *testing.T) {
	testutil.RequireRoot(t)
	if exitProgram(0, false) == nil {
		testutil.Skip(t, "the model's containers have programs for amd64 and arm64 only")
	}
	ops, kills := modelOps, modelKills
	seeds := savedSeeds(t)
	if testutil.Short() {
		seeds, ops, kills = seeds[:1], 200, 6
	}
	if s := os.Getenv(modelSeedEnv); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{seed}
	}
	for name, n := range map[string]*int{modelOpsEnv: &ops, modelKillsEnv: &kills} {
		if s := os.Getenv(name); s != "" {
			var err error
			if *n, err = strconv.Atoi(s); err != nil {
				t.Fatal(err)
			}
		}
	}
	var total modelCount
	start := time.Now()
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Logf("seed %d", seed)
			t.Cleanup(func() {
				if t.Failed() {
					keepSeed(t, seed, ops, kills)
				}
			})
			count := runModel(t, seed, ops, kills)
			total.ops, total.kills = total.ops+count.ops, total.kills+count.kills
		})
	}
	t.Logf("%d operations by %d processes, %d kills, %d seeds, %v", total.ops, modelProcesses, total.kills, len(seeds), time.Since(start).Round(time.Second))
}

func savedSeeds(t *testing.T) (seeds []uint64) {
	t.Helper()
	b, err := os.ReadFile(modelSeeds)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Fields(string(b)) {
		seed, err := strconv.ParseUint(line, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = append(seeds, seed)
	}
	return seeds
}

// keepSeed says how to repeat a run, and notes its seed.
func keepSeed(t *testing.T, seed uint64, ops, kills int) {
	t.Logf("again: %s=%d %s=%d %s=%d go test -run '^TestModel$' -count 10 .", modelSeedEnv, seed, modelOpsEnv, ops, modelKillsEnv, kills)
	f, err := os.OpenFile(modelFailed, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Logf("the seed is not noted: %v", err)
		return
	}
	defer f.Close()
	fmt.Fprintln(f, seed)
}

type modelCount struct{ ops, kills int }

// model is one run.
type model struct {
	t      *testing.T
	seed   uint64
	rnd    *rand.Rand
	root   string
	prefix string // of the root's cgroups
	reg    *registrytest.Registry
	images []*registrytest.Image

	children []*modelChild
	events   chan modelEvent
	count    modelCount
	log      []string // the last lines that the processes wrote
}

// modelChild is one of the processes, and those that take its place when it is killed.
type modelChild struct {
	index, incarnation int
	cmd                *exec.Cmd
	stdin              io.WriteCloser
	killed             bool // or told to kill itself
	running            bool
}

// modelEvent is a line that a process wrote, or its end.
type modelEvent struct {
	child *modelChild
	line  string
	ended bool
	err   error
}

func runModel(t *testing.T, seed uint64, ops, kills int) modelCount {
	m := &model{t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 0)), root: modelRoot(t), reg: registrytest.New(), events: make(chan modelEvent, 1024)}
	t.Cleanup(m.reg.Close)
	m.images = modelImages()
	for tag := range modelTags {
		m.moveTag(tag)
	}
	eng := m.open()
	m.prefix = eng.GroupPrefix()
	m.close(eng)
	for i := range modelProcesses {
		m.children = append(m.children, &modelChild{index: i})
	}
	t.Cleanup(m.killAll)
	for epoch := range modelEpochs {
		part := func(n int) int { return n*(epoch+1)/modelEpochs - n*epoch/modelEpochs }
		m.epoch(part(ops), part(kills))
		if t.Failed() {
			m.printLog()
			return m.count
		}
	}
	m.empty()
	if t.Failed() {
		m.printLog()
	}
	return m.count
}

// modelRoot is a directory in memory, where there is one: what the model takes its time for otherwise is waiting for the
// disk to sync, and the loss of power is not what it tries.
func modelRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "coracle-model-")
	if err != nil || os.Getenv("TMPDIR") != "" {
		os.RemoveAll(dir)
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// killAll ends what a failure has left.
func (m *model) killAll() {
	n := 0
	for _, c := range m.children {
		if c.running {
			c.cmd.Process.Kill()
			n++
		}
	}
	for n > 0 {
		if e := <-m.events; e.ended {
			n--
		}
	}
}

// moveTag makes the registry serve another image under a tag.
func (m *model) moveTag(tag int) {
	m.reg.Push("app", fmt.Sprint(tag), m.images[m.rnd.IntN(len(m.images))])
	m.reg.Requests() // which would be kept for ever
}

// epoch lets the processes do n operations, kills some on the way, ends all, and looks at the root.
func (m *model) epoch(n, kills int) {
	// Some of the kills come at the end, so that the root is opened with the dead in it.
	last := min(kills, modelProcesses)/3 + m.rnd.IntN(2)
	last = min(last, kills)
	var at []int
	for range kills - last {
		at = append(at, m.rnd.IntN(max(n, 1)))
	}
	slices.Sort(at)
	tags := m.rnd.Perm(max(n, 1))[:n/25+1]
	for _, c := range m.children {
		m.start(c)
	}
	for done := 0; done < n; {
		e := m.next()
		switch {
		case m.t.Failed():
			return
		case e.ended:
			m.start(e.child) // it was killed: see next
		case strings.HasPrefix(e.line, "<"):
			done++
			m.count.ops++
			if slices.Contains(tags, done) {
				m.moveTag(m.rnd.IntN(modelTags))
			}
			for len(at) > 0 && done >= at[0] {
				at = at[1:]
				m.killNext(m.rnd.IntN(len(m.children)))
			}
		}
	}
	for _, i := range m.rnd.Perm(len(m.children)) {
		if c := m.children[i]; last > 0 && !c.killed {
			last--
			m.kill(c)
		} else {
			c.stdin.Close()
		}
	}
	for slices.ContainsFunc(m.children, func(c *modelChild) bool { return c.running }) {
		if m.next(); m.t.Failed() {
			return
		}
	}
	m.settled()
}

// start starts a process, in the place of the one before.
func (m *model) start(c *modelChild) {
	m.t.Helper()
	c.incarnation++
	c.killed = false
	config, err := json.Marshal(modelConfig{Root: m.root, Registry: m.reg.Host, Seed: m.seed, Index: c.index, Incarnation: c.incarnation})
	if err != nil {
		m.t.Fatal(err)
	}
	c.cmd = exec.Command("/proc/self/exe")
	c.cmd.Env = append(os.Environ(), modelEnv+"="+string(config))
	var stderr bytes.Buffer
	c.cmd.Stderr = &stderr
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		m.t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	c.running = true
	cmd := c.cmd
	go func() {
		lines := bufio.NewScanner(stdout)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			m.events <- modelEvent{child: c, line: lines.Text()}
		}
		err := cmd.Wait()
		for line := range strings.Lines(stderr.String()) {
			m.events <- modelEvent{child: c, line: "stderr: " + strings.TrimSuffix(line, "\n")}
		}
		m.events <- modelEvent{child: c, ended: true, err: err}
	}()
}

// killNext kills the process with that index, or the next one that is not being killed already.
func (m *model) killNext(i int) {
	for n := range m.children {
		if c := m.children[(i+n)%len(m.children)]; !c.killed {
			m.kill(c)
			return
		}
	}
}

// kill kills a process: at once, or by its own hand at one of the next steps that change the root.
func (m *model) kill(c *modelChild) {
	if c.killed {
		return
	}
	c.killed = true
	m.count.kills++
	if m.rnd.IntN(2) == 0 {
		c.cmd.Process.Kill()
		return
	}
	// It may be at its end already, and then there is nobody to write to.
	fmt.Fprintf(c.stdin, "die %d\n", 1+m.rnd.IntN(40))
	c.stdin.Close() // if it does not come to so many steps, it ends in order
}

// modelPatience is how long no process may come to the end of any operation.
const modelPatience = 2 * time.Minute

// next waits for what happens next.
func (m *model) next() modelEvent {
	timer := time.NewTimer(modelPatience)
	defer timer.Stop()
	select {
	case e := <-m.events:
		name := fmt.Sprintf("%d.%d", e.child.index, e.child.incarnation)
		if e.ended {
			e.child.running = false
			e.child.stdin.Close()
			var exit *exec.ExitError
			killed := errors.As(e.err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
			if e.err != nil && !(killed && e.child.killed) {
				m.t.Errorf("process %s: %v", name, e.err)
			}
			e.line = fmt.Sprintf("ended: %v", e.err)
		}
		m.log = append(m.log, fmt.Sprintf("%s %-5s %s", time.Now().Format("05.000000"), name, e.line))
		if strings.HasPrefix(e.line, "!") {
			m.t.Errorf("process %s: %s", name, e.line)
		}
		return e
	case <-timer.C:
		m.t.Errorf("no operation has ended for %v", modelPatience)
		for _, c := range m.children {
			if c.running {
				c.killed = true
				c.cmd.Process.Signal(syscall.SIGQUIT) // which prints the goroutines
			}
		}
		for deadline := time.After(10 * time.Second); ; {
			select {
			case e := <-m.events:
				e.child.running = e.child.running && !e.ended
				m.log = append(m.log, fmt.Sprintf("%d.%d %s", e.child.index, e.child.incarnation, e.line))
			case <-deadline:
				return modelEvent{}
			}
		}
	}
}

func (m *model) printLog() {
	m.t.Logf("what the processes did (> begins an operation, < ends it):\n%s", strings.Join(m.log, "\n"))
}

func (m *model) open() *coracle.Engine {
	m.t.Helper()
	eng, err := coracle.Open(m.t.Context(), modelEngine(m.root, m.reg.Host, nil))
	if err != nil {
		m.t.Fatal(err)
	}
	return eng
}

func (m *model) close(eng *coracle.Engine) {
	m.t.Helper()
	if err := eng.Close(); err != nil {
		m.t.Error(err)
	}
}

// settled looks at a root that nobody uses, after one more process has opened it and closed it.
func (m *model) settled() {
	t := m.t
	m.close(m.open())
	m.checkFiles()
	eng := m.open()
	defer m.close(eng)
	ctx := t.Context()
	report, err := eng.Check(ctx)
	if err != nil {
		t.Error(err)
		return
	}
	for _, d := range report.Damage {
		t.Errorf("damage: %v", d)
	}
	usage, err := eng.DiskUsage(ctx)
	if err != nil {
		t.Error(err)
		return
	}
	images, err := eng.Images(ctx)
	if err != nil || len(images) != len(usage.Images) {
		t.Errorf("%d images, the disk usage has %d: %v", len(images), len(usage.Images), err)
	}
	entries := make(map[string]bool)
	for _, img := range images {
		entries[string(img.Digest())] = true
		m.tryImage(eng, img)
	}
	// Every entry of the index is an image and was listed.
	var index ocispec.Index
	if b, err := os.ReadFile(filepath.Join(m.root, "store/index.json")); err != nil || json.Unmarshal(b, &index) != nil {
		t.Errorf("index: %v", err)
	}
	for _, d := range index.Manifests {
		if !entries[string(d.Digest)] {
			t.Errorf("the entry %s of the index is no image that can be used", d.Digest)
		}
	}
	containers, err := eng.Containers(ctx, nil)
	if err != nil {
		t.Error(err)
	}
	for _, i := range m.rnd.Perm(len(containers))[:min(3, len(containers))] {
		m.tryContainer(containers[i])
	}
}

// tryImage runs a container of an image.
func (m *model) tryImage(eng *coracle.Engine, img *coracle.Image) {
	t, ctx := m.t, m.t.Context()
	name := img.Ref()
	if name == "" {
		name = string(img.ID())
	}
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: name, Pull: coracle.PullNever, Args: []string{"/exit"}})
	if err != nil {
		t.Errorf("image %v: %v", img.Refs(), err)
		return
	}
	m.tryContainer(c)
	if err := c.Remove(ctx, nil); err != nil {
		t.Error(err)
	}
}

func (m *model) tryContainer(c *coracle.Container) {
	t, ctx := m.t, m.t.Context()
	if err := c.Start(ctx); err != nil {
		t.Error(err)
		return
	}
	info, err := c.Inspect(ctx)
	if err != nil {
		t.Error(err)
		return
	}
	if slices.Equal(info.Spec.Args, []string{"/pause"}) {
		if err := c.Kill(ctx); err != nil {
			t.Error(err)
		}
		return
	}
	if exit, err := c.Wait(ctx); err != nil || exit.Code != modelExit {
		t.Errorf("container %s of %s: %v, %v", info.Name, info.Image, exit, err)
	}
}

// checkFiles looks at the files of a root that nobody has open.
func (m *model) checkFiles() {
	t := m.t
	for _, dir := range []string{"owners", "store/tmp", "store/locks", "store/leases", "store/damaged"} {
		for _, name := range m.list(dir) {
			t.Errorf("left in %s: %s", dir, name)
		}
	}
	containers, snapshots, names := m.list("containers"), m.list("store/snapshots"), m.list("names")
	named := make(map[string]string) // id by name
	for _, id := range containers {
		var st struct {
			ID, Name, Owner, Status string
			Spec                    struct{ Name string }
		}
		b, err := os.ReadFile(filepath.Join(m.root, "containers", id, "state.json"))
		if err == nil {
			err = json.Unmarshal(b, &st)
		}
		if err != nil || st.ID != id || st.Owner != "" || st.Status == string(coracle.StatusRunning) {
			t.Errorf("container %s: %+v, %v", id, st, err)
		}
		if st.Spec.Name != "" {
			named[st.Name] = id
		}
		if _, err := os.Readlink(filepath.Join(m.root, "store/snapshots", id, "layers")); err != nil {
			t.Errorf("container %s has no snapshot: %v", id, err)
		}
	}
	for _, id := range snapshots {
		if !slices.Contains(containers, id) {
			t.Errorf("snapshot %s has no container", id)
		}
	}
	for _, name := range names {
		if id, err := os.Readlink(filepath.Join(m.root, "names", name)); err != nil || named[name] != id {
			t.Errorf("the name %s leads to %s, and the container of that name is %q: %v", name, id, named[name], err)
		}
		delete(named, name)
	}
	for name, id := range named {
		t.Errorf("container %s should have the name %s", id, name)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/coracle/", "/sys/fs/cgroup/coracle/"} {
		if groups, _ := filepath.Glob(pattern + m.prefix + "*"); len(groups) > 0 {
			t.Errorf("cgroups left: %v", groups)
		}
	}
	if left := processesOf(m.prefix); len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(b, []byte(m.root)) {
		t.Errorf("mounts left below %s: %v", m.root, err)
	}
}

func (m *model) list(dir string) []string {
	m.t.Helper()
	entries, err := os.ReadDir(filepath.Join(m.root, dir))
	if err != nil {
		m.t.Error(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// empty prunes everything, and then nothing must be there.
func (m *model) empty() {
	t, ctx := m.t, m.t.Context()
	eng := m.open()
	if _, err := eng.PruneContainers(ctx, nil); err != nil {
		t.Error(err)
	}
	if _, err := eng.PruneImages(ctx, &coracle.ImagePruneOptions{All: true}); err != nil {
		t.Error(err)
	}
	m.close(eng)
	m.checkFiles()
	for _, dir := range []string{"containers", "names", "store/snapshots", "store/stacks", "store/layers", "store/blobs/sha256"} {
		for _, name := range m.list(dir) {
			t.Errorf("left in %s: %s", dir, name)
		}
	}
	if b, err := os.ReadFile(filepath.Join(m.root, "store/index.json")); err != nil || bytes.Contains(b, []byte("digest")) {
		t.Errorf("index: %s, %v", b, err)
	}
}
