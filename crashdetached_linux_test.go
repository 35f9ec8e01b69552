package coracle_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
)

// What the crash walk does to detached containers. Their keepers outlive the program that is killed; what the walk looks
// at is what is there when they have ended too.

// detachedScenarios are a part of walkScenarios.
func detachedScenarios() map[string]*walkScenario {
	short := coracle.ContainerSpec{Image: "tool", Args: []string{"exit", "3"}, Detached: true}
	long := coracle.ContainerSpec{Image: "tool", Args: []string{"stubborn"}, Detached: true}
	auto := func(spec coracle.ContainerSpec) coracle.ContainerSpec {
		spec.AutoRemove = true
		return spec
	}
	return map[string]*walkScenario{
		"detach": {root: "tool", keeps: true, timing: true, before: drop("kept"), act: both(create("kept", short), start("kept"), waitKept(3)),
			state: hasContainers("kept"), legal: []string{"", "kept created", "kept exited"}, end: "kept exited"},
		"detach-auto": {root: "tool", keeps: true, timing: true, before: drop("kept"), act: both(create("kept", auto(short)), start("kept"), waitGone),
			state: hasContainers("kept"), legal: []string{""}},
		"detach-again": {root: "tool", keeps: true, timing: true, before: both(create("kept", short), start("kept"), waitKept(3)), act: both(start("kept"), waitKept(3)),
			state: hasContainers("kept"), legal: []string{"kept exited"}, end: "kept exited"},
		"detached-stop": {root: "tool", keeps: true, timing: true, before: both(create("kept", long), start("kept")),
			act: with("kept", func(w *walkWorld, c *coracle.Container) error {
				return c.Stop(w.ctx, &coracle.StopOptions{Timeout: coracle.StopAtOnce})
			}),
			state: hasContainers("kept"), legal: []string{"kept exited"}, end: "kept exited"},
		"detached-remove": {root: "tool", keeps: true, timing: true, before: both(drop("kept"), create("kept", long), start("kept")), act: drop("kept"),
			state: hasContainers("kept"), legal: []string{"", "kept exited"}, end: ""},
		"settle": {root: "tool", keeps: true, opens: true, timing: true, before: leaveEnded(long), act: openOrGoOn,
			state: hasContainers("kept"), legal: []string{"", "kept exited"}, end: "kept exited"},
		"settle-auto": {root: "tool", keeps: true, opens: true, timing: true, before: leaveEnded(auto(long)), act: openOrGoOn,
			state: hasContainers("kept"), legal: []string{""}, end: ""},
	}
}

// waitKept waits for the container and wants its exit code.
func waitKept(code int) func(*walkWorld) error {
	return with("kept", func(w *walkWorld, c *coracle.Container) error {
		exit, err := c.Wait(w.ctx)
		if err == nil && exit.Code != code {
			err = fmt.Errorf("exit: %v", exit)
		}
		return err
	})
}

// waitGone waits until the container is removed.
func waitGone(w *walkWorld) error {
	for range 10_000 {
		if _, err := w.eng.Container(w.ctx, "kept"); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("the container is not removed")
}

// leaveEnded leaves a container whose end nobody has noted, and no engine.
func leaveEnded(spec coracle.ContainerSpec) func(*walkWorld) error {
	return func(w *walkWorld) error {
		if w.eng == nil {
			if err := w.open(); err != nil {
				return err
			}
		}
		if err := both(create("kept", spec), start("kept"))(w); err != nil {
			return err
		}
		if err := w.eng.Close(); err != nil {
			return err
		}
		w.eng = nil
		return endKept(w.root)
	}
}

// openOrGoOn opens the engine, unless that is done.
func openOrGoOn(w *walkWorld) error {
	if w.eng != nil {
		return nil
	}
	return w.open()
}

// endKept kills the programs of the detached containers of a root and waits for their keepers.
func endKept(root string) error {
	prefix := coracle.GroupPrefix(root)
	for range 10_000 {
		left := processesOf(prefix)
		if len(left) == 0 {
			return nil
		}
		for _, path := range left {
			b, err := os.ReadFile(path)
			if err != nil || strings.Contains(string(b), prefix+"keepers") {
				continue
			}
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("still there: %v", processesOf(prefix))
}

// waitKeepers gives the detached containers of a root time to end by themselves, and ends the others.
func waitKeepers(t *testing.T, root string) {
	t.Helper()
	for range 200 {
		if len(processesOf(coracle.GroupPrefix(root))) == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	if err := endKept(root); err != nil {
		t.Fatal(err)
	}
}
