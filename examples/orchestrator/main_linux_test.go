package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/testtool"
	"github.com/coracle-dev/coracle/internal/testutil"
)

const programEnv = "ORCHESTRATOR_TEST_ROOT"

func TestMain(m *testing.M) {
	testtool.Main()
	if root := os.Getenv(programEnv); root != "" { // the program, to be killed
		svc := &service{}
		err := json.Unmarshal([]byte(os.Args[1]), svc)
		if err == nil {
			err = run(context.Background(), root, svc, os.Stdout)
		}
		fmt.Println("ended:", err)
		os.Exit(1)
	}
	code := testutil.LeakCheck(m)
	testtool.Cleanup()
	os.Exit(code)
}

// program is an orchestrator in a process of its own.
type program struct {
	cmd   *exec.Cmd
	mu    sync.Mutex
	lines []string
}

func start(t *testing.T, root string, svc *service) *program {
	t.Helper()
	b, err := json.Marshal(svc)
	if err != nil {
		t.Fatal(err)
	}
	p := &program{cmd: exec.Command("/proc/self/exe", string(b))}
	p.cmd.Env = append(os.Environ(), programEnv+"="+root)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, lines.Text())
			p.mu.Unlock()
		}
	}()
	t.Cleanup(p.kill)
	return p
}

func (p *program) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// said counts the lines that begin so.
func (p *program) said(prefix string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, line := range p.lines {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}

// world is a root with the versions of a service's image.
type world struct {
	*testing.T
	eng *coracle.Engine
	svc *service
}

func newWorld(t *testing.T) *world {
	testutil.RequireRoot(t)
	eng, err := coracle.Open(t.Context(), coracle.Config{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t, eng, &service{Name: "web", Image: "web:stable", Replicas: 3, Args: []string{"/tool", "sleep", "600000"}, Patience: 20 * time.Second,
		Health: &coracle.HealthSpec{Test: []string{"CMD", "/tool", "cat", "/healthy"}, Interval: 50 * time.Millisecond, Retries: 3}}}
	t.Cleanup(func() {
		list, err := eng.Containers(context.Background(), nil)
		if err != nil {
			t.Error(err)
		}
		for _, c := range list {
			if err := c.Remove(context.Background(), &coracle.RemoveOptions{Force: true}); err != nil {
				t.Error(err)
			}
		}
		if err := eng.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// release makes the image's name lead to another version, and returns that.
func (w *world) release(version string, healthy bool) string {
	w.Helper()
	files := fstest.MapFS{"version": {Data: []byte(version), Mode: 0o644}}
	if healthy {
		files["healthy"] = &fstest.MapFile{Data: []byte("yes"), Mode: 0o644}
	}
	img, err := w.eng.ImageFromFS(w.Context(), "web:stable", testtool.FS(w, files), nil)
	if err != nil {
		w.Fatal(err)
	}
	return img.ID().String()
}

// found are the replicas that run and are healthy: their versions by id. all says whether these are all that there are.
func (w *world) found() (versions map[string]string, all bool) {
	w.Helper()
	list, err := w.eng.Containers(w.Context(), &coracle.ContainerFilter{Labels: map[string]string{labelService: "web"}})
	if err != nil {
		w.Fatal(err)
	}
	versions, all = make(map[string]string), true
	for _, c := range list {
		info, err := c.Inspect(w.Context())
		if err != nil {
			all = false // it is just being removed
			continue
		}
		if info.Status == coracle.StatusRunning && info.Health.Status == coracle.HealthHealthy {
			versions[info.ID] = info.Labels[labelVersion]
		} else {
			all = false
		}
	}
	return versions, all
}

// becomes waits until there are so many healthy replicas of each version, and nothing else. At no time may there be fewer
// than are to run, once there were as many.
func (w *world) becomes(least int, want map[string]int) map[string]string {
	w.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		versions, all := w.found()
		got := make(map[string]int)
		for _, v := range versions {
			got[v]++
		}
		if all && maps.Equal(got, want) {
			return versions
		}
		if len(versions) < least {
			w.Fatalf("only %d replicas are healthy: %v", len(versions), got)
		}
		if time.Now().After(deadline) {
			w.Fatalf("there are %v, and should be %v", got, want)
		}
	}
}

// TestRoll: a service comes up, rolls to a new image without a moment with too few replicas, is not rolled to one that
// is not healthy, and replaces what is taken away.
func TestRoll(t *testing.T) {
	w := newWorld(t)
	one := w.release("one", true)
	p := start(t, w.eng.Root(), w.svc)
	w.becomes(0, map[string]int{one: 3})
	two := w.release("two", true)
	// An old one goes when the new one is healthy: while it does there are two others and the new one.
	w.becomes(3, map[string]int{two: 3})
	w.release("three", false)
	for deadline := time.Now().Add(time.Minute); p.said("aborted: ") == 0; time.Sleep(5 * time.Millisecond) {
		if versions, _ := w.found(); len(versions) < 3 {
			t.Fatal("there are too few while the roll is tried")
		}
		if time.Now().After(deadline) {
			t.Fatal("the roll was not aborted")
		}
	}
	kept := w.becomes(3, map[string]int{two: 3})
	// Somebody removes one.
	c, err := w.eng.Container(t.Context(), slices.Collect(maps.Keys(kept))[0])
	if err == nil {
		err = c.Remove(t.Context(), &coracle.RemoveOptions{Force: true})
	}
	if err != nil {
		t.Fatal(err)
	}
	kept = w.becomes(2, map[string]int{two: 3})
	// Somebody stops one, and one ends by itself.
	for i, id := range slices.Collect(maps.Keys(kept))[:2] {
		c, err := w.eng.Container(t.Context(), id)
		if err == nil && i == 0 {
			err = c.Stop(t.Context(), &coracle.StopOptions{Timeout: coracle.StopAtOnce})
		} else if err == nil {
			var info *coracle.ContainerInfo
			if info, err = c.Inspect(t.Context()); err == nil {
				err = syscall.Kill(info.PID, syscall.SIGKILL)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for id := range w.becomes(1, map[string]int{two: 3}) {
		if kept[id] == "" {
			t.Error("a replica that has ended was replaced, and not started again")
		}
	}
	four := w.release("four", true)
	w.becomes(3, map[string]int{four: 3})
	if n := p.said("event: container health_status: healthy web-"); n < 9 {
		t.Errorf("it has printed %d events of health", n)
	}
}

// TestKilled kills the program in the middle of rolls. The next one goes on, and touches nothing of what is done.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	old := w.release("v0", true)
	p := start(t, w.eng.Root(), w.svc)
	w.becomes(0, map[string]int{old: 3})
	rounds := 6
	if testutil.Short() {
		rounds = 2
	}
	for round := range rounds {
		version := w.release(fmt.Sprintf("v%d", round+1), true)
		// In the middle: one, or two, or three are new, or a little after.
		for deadline := time.Now().Add(time.Minute); p.said("new: ") < 1+round%3; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the roll does not go on")
			}
		}
		time.Sleep(time.Duration(round*23) * time.Millisecond)
		p.kill()
		done, _ := w.found()
		pids := make(map[string]int)
		for id, v := range done {
			c, err := w.eng.Container(t.Context(), id)
			if err != nil {
				continue // it was being removed
			}
			if info, err := c.Inspect(t.Context()); err == nil && v == version {
				pids[id] = info.PID
			}
		}
		p = start(t, w.eng.Root(), w.svc)
		w.becomes(2, map[string]int{version: 3}) // an old one may have been stopped, and the next one not be healthy yet
		for id, pid := range pids {
			c, err := w.eng.Container(t.Context(), id)
			if err != nil {
				t.Errorf("round %d: a replica that was done is gone: %v", round, err)
				continue
			}
			if info, err := c.Inspect(t.Context()); err != nil || info.PID != pid {
				t.Errorf("round %d: a replica that was done was touched: %+v, %v", round, info, err)
			}
		}
		p.kill()
		if versions, _ := w.found(); len(versions) != 3 {
			t.Errorf("round %d: without the program %d run", round, len(versions))
		}
		p = start(t, w.eng.Root(), w.svc)
		if again := w.becomes(3, map[string]int{version: 3}); round == 0 && len(again) != 3 {
			t.Error(again)
		}
	}
}
