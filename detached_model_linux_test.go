package coracle_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// The model of detached containers: four programs do everything with the same few of them, each thing at random, and each
// program kills itself at a random step and is followed by another one. Keepers are killed too. What control_model_linux_test.go
// says of operations holds here. In the end nothing is left, and each start has one end in the events.

// detachedOps are controlOps with containers that outlive their programs.
func detachedOps() []controlOp {
	ops := []controlOp{
		{"create", true, func(ctx context.Context, eng *coracle.Engine, rnd *rand.Rand) error {
			spec := &coracle.ContainerSpec{
				Name: fmt.Sprint("name-", rnd.IntN(controlNames)), Image: "model", Args: []string{"/pause"}, Detached: true,
				OpenStdin: rnd.IntN(2) == 0, TTY: rnd.IntN(4) == 0, AutoRemove: rnd.IntN(4) == 0, Limits: cgroup.Limits{PIDs: 50}, Networks: onNetworks(coracle.NetworkNone),
			}
			if rnd.IntN(3) == 0 {
				spec.Args = []string{"/exit"}
			}
			_, err := eng.Create(ctx, spec)
			return err
		}},
		{"exec", false, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			cmd := c.Command("/exit")
			if err := cmd.Start(ctx); err != nil {
				return err
			}
			if rnd.IntN(2) == 0 { // else whoever closes the engine ends it
				cmd.Wait()
			}
			return nil
		})},
		{"logs", false, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
			ctx, cancel := context.WithTimeout(ctx, time.Duration(1+rnd.IntN(20))*time.Millisecond)
			defer cancel()
			err := c.CopyLogs(ctx, io.Discard, io.Discard, &coracle.LogOptions{Follow: rnd.IntN(2) == 0})
			if errors.Is(err, context.DeadlineExceeded) {
				return nil
			}
			return err
		})},
		{"murder", false, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
			info, err := c.Inspect(ctx)
			if err == nil && info.KeeperPID != 0 && rnd.IntN(2) == 0 {
				syscall.Kill(info.KeeperPID, syscall.SIGKILL)
			}
			return err
		})},
	}
	for _, op := range controlOps {
		if op.name != "create" {
			ops = append(ops, op)
		}
	}
	return ops
}

func TestDetachedModel(t *testing.T) {
	testutil.RequireRoot(t)
	if exitProgram(0, false) == nil {
		testutil.Skip(t, "the model's containers have programs for amd64 and arm64 only")
	}
	programs, seeds := 60, []uint64{1, 2, 3}
	if testutil.Short() {
		programs, seeds = 12, seeds[:1]
	}
	if s := os.Getenv(controlModelSeedEnv); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{seed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runDetachedModel(t, seed, programs) })
	}
}

func runDetachedModel(t *testing.T, seed uint64, programs int) {
	root := modelRoot(t)
	eng := openAgain(t, root)
	if _, err := eng.ImageFromFS(t.Context(), "model", controlModelFS(), nil); err != nil {
		t.Fatal(err)
	}
	prefix := eng.GroupPrefix()
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(1000+i)))
			for n := range programs {
				config := controlModelConfig{Root: root, Seed: seed, Index: i*1000 + n, Ops: 60, Dies: 1 + rnd.Int64N(300), Detached: true}
				if n%8 == 7 {
					config.Dies = 0
				}
				if out, err := config.run(); err != nil {
					t.Errorf("program %d: %v\n%s", config.Index, err, out[max(0, len(out)-4000):])
					return
				}
			}
		})
	}
	wg.Wait()
	eng = openAgain(t, root)
	if report, err := eng.Check(t.Context()); err != nil || len(report.Damage) > 0 {
		t.Errorf("damage: %v, %v", report, err)
	}
	list, err := eng.Containers(t.Context(), nil)
	if err != nil {
		t.Error(err)
	}
	running := 0
	for _, c := range list {
		if info := inspect(t, c); info.Status == coracle.StatusRunning || info.Status == coracle.StatusPaused {
			running++
		} else if err := c.Start(t.Context()); err != nil {
			t.Errorf("start what is left: %v", err)
		}
		if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d containers were left, %d of them running", len(list), running)
	eventually(t, "no process is left", func() bool { return len(processesOf(prefix)) == 0 })
	if err := eng.Close(); err != nil {
		t.Error(err)
	}
	wantEventsBut(t, root, coracle.ActionKill, coracle.ActionStop, coracle.ActionUnpause, coracle.ActionRestart, coracle.ActionRename, coracle.ActionUpdate, coracle.ActionExecCreate, coracle.ActionExecStart, coracle.ActionExecDie)
	checkEmpty(t, root, prefix)
	if marks, err := os.ReadDir(filepath.Join(root, "detached")); err != nil || len(marks) > 0 {
		t.Errorf("marks left: %v, %v", marks, err)
	}
}

// run is one program to its end, or its death.
func (config controlModelConfig) run() (out string, err error) {
	text, err := json.Marshal(config)
	if err != nil {
		return "", err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), controlModelEnv+"="+string(text))
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	err = cmd.Run()
	if config.Dies > 0 && cmd.ProcessState != nil && cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		err = nil
	}
	if err == nil && (strings.HasPrefix(b.String(), "!") || strings.Contains(b.String(), "\n!") || strings.Contains(b.String(), "level=WARN")) {
		err = errors.New("it complains")
	}
	return b.String(), err
}
