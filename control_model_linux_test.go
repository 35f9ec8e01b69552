package coracle_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/lockorder"
	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/nsexec"
)

// The control model: two programs do everything with the same few containers, each thing at random. No operation may
// hang, give an error that is not one of the documented ones, or leave a state that is damaged; in the end nothing is
// left. A third program, which only controls what the others run, is killed again and again.

const (
	controlModelEnv     = "CORACLE_TEST_CONTROL_MODEL"
	controlModelSeedEnv = "CORACLE_CONTROL_SEED"
	controlModelOpsEnv  = "CORACLE_CONTROL_OPS" // of each program
)

type controlModelConfig struct {
	Root  string
	Seed  uint64
	Index int
	Ops   int
	Dies  int64 // it kills itself at this step; 0 means that it does not

	Detached bool // the containers are detached, see detached_model_linux_test.go
	Networks bool // they are on networks, see network_model_linux_test.go
}

// controlHang is how long one operation may take.
const controlHang = 30 * time.Second

// controlMay are the errors that are right, as the other program may do anything at any moment.
var controlMay = []error{
	fs.ErrNotExist, fs.ErrExist, coracle.ErrInUse, coracle.ErrRunning, coracle.ErrNotRunning, coracle.ErrPaused, coracle.ErrNotPaused,
}

const controlNames = 6

// controlModelMain is one of the programs.
func controlModelMain() {
	env := os.Getenv(controlModelEnv)
	if env == "" {
		return
	}
	var config controlModelConfig
	if err := json.Unmarshal([]byte(env), &config); err != nil {
		fmt.Println("!", err)
		os.Exit(1)
	}
	fail := func(format string, args ...any) {
		fmt.Printf("! "+format+"\n", args...)
		os.Exit(1)
	}
	lockorder.Enforce(func(violation string) { fail("%s", violation) })
	warn := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelWarn}))
	eng, err := coracle.Open(context.Background(), coracle.Config{Root: config.Root, Logger: warn})
	if err != nil {
		fail("open: %v", err)
	}
	rnd := rand.New(rand.NewPCG(config.Seed, uint64(config.Index)))
	if config.Dies > 0 {
		dieAfter(config.Dies)
	}
	ops := controlOps
	if config.Detached {
		ops = detachedOps()
	}
	if config.Networks {
		ops = networkOps()
	}
	for n := range config.Ops {
		op := ops[rnd.IntN(len(ops))]
		if config.Dies > 0 && op.owner && !config.Detached && !config.Networks {
			continue
		}
		fmt.Printf("> %d %s\n", n, op.name)
		hang := time.AfterFunc(controlHang, func() {
			fmt.Printf("! %d %s hangs\n", n, op.name)
			syscall.Kill(os.Getpid(), syscall.SIGQUIT)
		})
		err := op.do(context.Background(), eng, rnd)
		hang.Stop()
		allowed := err == nil
		for _, may := range controlMay {
			allowed = allowed || errors.Is(err, may)
		}
		// Whose keeper is killed when it is just known to others, and not let go yet.
		allowed = allowed || config.Detached && errors.Is(err, nsexec.ErrDied)
		var oe *coracle.OpError
		if !allowed || err != nil && !errors.As(err, &oe) {
			fail("%d %s: %v (%T)", n, op.name, err, err)
		}
		fmt.Printf("< %d %s: %v\n", n, op.name, err)
	}
	if err := eng.Close(); err != nil {
		fail("close: %v", err)
	}
	os.Exit(0)
}

type controlOp struct {
	name  string
	owner bool // it makes or starts containers
	do    func(context.Context, *coracle.Engine, *rand.Rand) error
}

// controlAny does something with any container.
func controlAny(do func(context.Context, *coracle.Container, *rand.Rand) error) func(context.Context, *coracle.Engine, *rand.Rand) error {
	return func(ctx context.Context, eng *coracle.Engine, rnd *rand.Rand) error {
		list, err := eng.Containers(ctx, nil)
		if err != nil || len(list) == 0 {
			return err
		}
		return do(ctx, list[rnd.IntN(len(list))], rnd)
	}
}

var controlStop = []time.Duration{coracle.StopAtOnce, time.Millisecond, 5 * time.Millisecond}

var controlOps = []controlOp{
	{"create", true, func(ctx context.Context, eng *coracle.Engine, rnd *rand.Rand) error {
		spec := &coracle.ContainerSpec{
			Name: fmt.Sprint("name-", rnd.IntN(controlNames)), Image: "model", Args: []string{"/pause"},
			Init: rnd.IntN(2) == 0, AutoRemove: rnd.IntN(4) == 0, Detached: rnd.IntN(3) == 0, Limits: cgroup.Limits{PIDs: 50}, Networks: onNetworks(coracle.NetworkNone),
		}
		if rnd.IntN(4) == 0 {
			spec.Args = []string{"/exit"}
		}
		_, err := eng.Create(ctx, spec)
		return err
	}},
	{"start", true, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error { return c.Start(ctx) })},
	{"start", true, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error { return c.Start(ctx) })},
	{"restart", true, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
		return c.Restart(ctx, &coracle.StopOptions{Timeout: controlStop[rnd.IntN(len(controlStop))]})
	})},
	{"stop", false, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
		return c.Stop(ctx, &coracle.StopOptions{Timeout: controlStop[rnd.IntN(len(controlStop))]})
	})},
	{"kill", false, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error { return c.Kill(ctx) })},
	{"signal", false, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
		return c.Signal(ctx, []syscall.Signal{syscall.SIGTERM, syscall.SIGWINCH, syscall.SIGCONT}[rnd.IntN(3)])
	})},
	{"pause", false, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error { return c.Pause(ctx) })},
	{"pause", false, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error { return c.Pause(ctx) })},
	{"resume", false, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error { return c.Resume(ctx) })},
	{"rename", false, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
		return c.Rename(ctx, fmt.Sprint("name-", rnd.IntN(controlNames)))
	})},
	{"update", false, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
		return c.Update(ctx, []cgroup.Limits{{PIDs: 40}, {PIDs: -1}, {Memory: 64 << 20}, {Memory: -1}, {CPUs: 0.5}, {CPUs: -1}}[rnd.IntN(6)])
	})},
	{"top", false, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
		_, err := c.Top(ctx)
		return err
	})},
	{"stats", false, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
		_, err := c.Stats(ctx)
		return err
	})},
	{"remove", true, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
		return c.Remove(ctx, &coracle.RemoveOptions{Force: rnd.IntN(2) == 0})
	})},
	{"inspect", false, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
		info, err := c.Inspect(ctx)
		if err == nil && (info.Name == "" || info.Spec.Name != info.Name || !strings.HasPrefix(info.Name, "name-")) {
			return fmt.Errorf("container %+v", info)
		}
		return err
	})},
	{"wait", false, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
		ctx, cancel := context.WithTimeout(ctx, time.Duration(rnd.IntN(5))*time.Millisecond)
		defer cancel()
		err := c.WaitFor(ctx, []coracle.Condition{coracle.ConditionRunning, coracle.ConditionExited, coracle.ConditionRemoved}[rnd.IntN(3)])
		if errors.Is(err, context.DeadlineExceeded) {
			return nil
		}
		return err
	})},
	{"find", false, func(ctx context.Context, eng *coracle.Engine, rnd *rand.Rand) error {
		_, err := eng.Container(ctx, fmt.Sprint("name-", rnd.IntN(controlNames)))
		return err
	}},
}

func TestControlModel(t *testing.T) {
	testutil.RequireRoot(t)
	if exitProgram(0, false) == nil {
		testutil.Skip(t, "the model's containers have programs for amd64 and arm64 only")
	}
	ops, seeds := 400, []uint64{1, 2, 3}
	if testutil.Short() {
		ops, seeds = 100, seeds[:1]
	}
	if s := os.Getenv(controlModelSeedEnv); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{seed}
	}
	if s := os.Getenv(controlModelOpsEnv); s != "" {
		var err error
		if ops, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runControlModel(t, seed, ops) })
	}
}

// controlModelFS are the files of the model's image.
func controlModelFS() fstest.MapFS {
	return fstest.MapFS{
		"pause": {Data: exitProgram(0, true), Mode: 0o755},
		"exit":  {Data: exitProgram(modelExit, false), Mode: 0o755},
	}
}

func runControlModel(t *testing.T, seed uint64, ops int) {
	ctx, root := t.Context(), modelRoot(t)
	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := eng.ImageFromFS(ctx, "model", controlModelFS(), nil); err != nil {
		t.Fatal(err)
	}
	prefix := eng.GroupPrefix()
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var logs []string
	program := func(config controlModelConfig) {
		config.Root, config.Seed, config.Ops = root, seed, ops
		text, err := json.Marshal(config)
		if err != nil {
			t.Error(err)
			return
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), controlModelEnv+"="+string(text))
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err = cmd.Run()
		killed := cmd.ProcessState != nil && cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		if config.Dies > 0 && killed {
			err = nil
		}
		bad := err != nil
		for lines := bufio.NewScanner(bytes.NewReader(out.Bytes())); lines.Scan(); {
			bad = bad || strings.HasPrefix(lines.Text(), "!") || strings.Contains(lines.Text(), "level=WARN")
		}
		if bad {
			mu.Lock()
			defer mu.Unlock()
			t.Errorf("program %d: %v", config.Index, err)
			text := out.String()
			logs = append(logs, fmt.Sprintf("program %d:\n%s", config.Index, text[max(0, len(text)-6000):]))
		}
	}
	over := make(chan struct{})
	for i := range 2 {
		wg.Go(func() { program(controlModelConfig{Index: i}) })
	}
	kills := 0
	var killer sync.WaitGroup
	killer.Go(func() {
		rnd := rand.New(rand.NewPCG(seed, 99))
		for n := 0; ; n++ {
			select {
			case <-over:
				return
			default:
			}
			program(controlModelConfig{Index: 100 + n, Dies: 1 + rnd.Int64N(30)})
			kills++
		}
	})
	wg.Wait()
	close(over)
	killer.Wait()
	if t.Failed() {
		t.Logf("again: %s=%d %s=%d go test -run TestControlModel .\n%s", controlModelSeedEnv, seed, controlModelOpsEnv, ops, strings.Join(logs, "\n"))
	}
	if eng, err = coracle.Open(ctx, coracle.Config{Root: root}); err != nil {
		t.Fatal(err)
	}
	defer eng.Close()
	report, err := eng.Check(ctx)
	if err != nil || len(report.Damage) > 0 {
		t.Errorf("damage: %v, %v", report, err)
	}
	list, err := eng.Containers(ctx, nil)
	if err != nil {
		t.Error(err)
	}
	for _, c := range list {
		info, err := c.Inspect(ctx)
		runs := info != nil && (info.Status == coracle.StatusRunning || info.Status == coracle.StatusPaused)
		if err != nil || runs && !info.Spec.Detached {
			t.Errorf("left: %+v, %v", info, err)
		}
		if found, err := eng.Container(ctx, c.Name()); err != nil || found.ID() != c.ID() {
			t.Errorf("by its name %q: %v, %v", c.Name(), found, err)
		}
		if err := c.Start(ctx); err != nil && !(runs && errors.Is(err, coracle.ErrRunning)) {
			t.Errorf("start what is left: %v", err)
		}
		if err := c.Remove(ctx, &coracle.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range []string{"containers", "names"} {
		if entries, err := os.ReadDir(filepath.Join(root, dir)); err != nil || len(entries) > 0 {
			t.Errorf("left in %s: %v, %v", dir, entries, err)
		}
	}
	t.Logf("%d containers were left, %d programs that only controlled", len(list), kills)
	if err := eng.Close(); err != nil {
		t.Error(err)
	}
	checkEmpty(t, root, prefix)
}
