package coracle_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/journal"
	"github.com/coracle-dev/coracle/internal/registrytest"
	"github.com/coracle-dev/coracle/internal/testutil"
)

var updateEvents = flag.Bool("update-events", false, "write the golden list of events anew")

// events reads what there is.
func events(t testing.TB, eng *coracle.Engine, opts *coracle.EventOptions) []coracle.Event {
	t.Helper()
	var list []coracle.Event
	for ev, err := range eng.Events(t.Context(), opts) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, ev)
	}
	return list
}

// lastEvent is the cursor of the last event.
func lastEvent(t testing.TB, eng *coracle.Engine) string {
	t.Helper()
	list := events(t, eng, nil)
	if len(list) == 0 {
		return ""
	}
	return list[len(list)-1].Cursor
}

// describe writes events without what differs from run to run.
func describe(list []coracle.Event, registry string) string {
	ids := make(map[string]string)
	var b strings.Builder
	for _, ev := range list {
		if ids[ev.ID] == "" && ev.ID != "" {
			ids[ev.ID] = fmt.Sprintf("%s%d", ev.Type, len(ids)+1)
		}
		fmt.Fprintf(&b, "%s %s %s", ev.Type, ev.Action, ids[ev.ID])
		for _, k := range slices.Sorted(maps.Keys(ev.Attributes)) {
			v := ev.Attributes[k]
			if k == "execDuration" || k == "reclaimed" {
				v = "N"
			}
			if id := ids[v]; id != "" {
				v = id
			}
			fmt.Fprintf(&b, " %s=%s", k, v)
		}
		b.WriteByte('\n')
	}
	return strings.ReplaceAll(b.String(), registry, "REGISTRY")
}

// readyWriter tells when something is written to it.
type readyWriter struct {
	once  sync.Once
	ready chan struct{}
}

func (w *readyWriter) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.ready) })
	return len(p), nil
}

// TestEventSequences compares the events of whole lives with a list.
func TestEventSequences(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	reg := registrytest.New()
	defer reg.Close()
	img := registrytest.RandomImage(1, 1, 10)
	img.Config.Config.Labels = map[string]string{"team": "a", "exitCode": "0"}
	reg.Push("team/app", "v1", img)
	toolImage(t, eng, nil)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	create := func(spec coracle.ContainerSpec) *coracle.Container {
		t.Helper()
		spec.Image = "tool"
		c, err := eng.Create(ctx, &spec)
		must(err)
		return c
	}
	wait := func(c *coracle.Container) {
		t.Helper()
		_, err := c.Wait(ctx)
		must(err)
	}
	lives := []struct {
		name string
		live func()
	}{
		{"exit", func() {
			c := create(coracle.ContainerSpec{Name: "c", Args: []string{"exit", "3"}, Labels: map[string]string{"app": "x", "exitCode": "0", "name": "forged"}})
			must(c.Start(ctx))
			wait(c)
			must(c.Start(ctx))
			wait(c)
			must(c.Remove(ctx, nil))
			must(c.Remove(ctx, nil))
		}},
		{"run", func() { must(eng.Run(ctx, &coracle.ContainerSpec{Name: "c", Image: "tool", Args: []string{"true"}})) }},
		{"stop", func() {
			ready := &readyWriter{ready: make(chan struct{})}
			c := create(coracle.ContainerSpec{Name: "c", Args: []string{"obey"}, Stdout: ready})
			must(c.Stop(ctx, nil)) // it does not run: nothing happens
			must(c.Start(ctx))
			<-ready.ready
			must(c.Stop(ctx, nil))
			must(c.Stop(ctx, nil))
			must(c.Remove(ctx, nil))
		}},
		{"stop that has to kill", func() {
			ready := &readyWriter{ready: make(chan struct{})}
			c := create(coracle.ContainerSpec{Name: "c", Args: []string{"stubborn"}, Stdout: ready})
			must(c.Start(ctx))
			<-ready.ready // before, a signal would end it
			must(c.Stop(ctx, &coracle.StopOptions{Timeout: 50 * time.Millisecond}))
			must(c.Remove(ctx, nil))
		}},
		{"kill", func() {
			ready := &readyWriter{ready: make(chan struct{})}
			c := create(coracle.ContainerSpec{Name: "c", Args: []string{"stubborn"}, Stdout: ready})
			must(c.Start(ctx))
			<-ready.ready // before, a signal would end it
			must(c.Signal(ctx, syscall.SIGUSR1))
			must(c.Kill(ctx))
			wait(c)
			if err := c.Kill(ctx); !errors.Is(err, coracle.ErrNotRunning) {
				t.Errorf("kill once more: %v", err)
			}
			must(c.Remove(ctx, nil))
		}},
		{"remove by force", func() {
			ready := &readyWriter{ready: make(chan struct{})}
			c := create(coracle.ContainerSpec{Name: "c", Args: []string{"stubborn"}, Stdout: ready})
			must(c.Start(ctx))
			<-ready.ready // before, a signal would end it
			must(c.Remove(ctx, &coracle.RemoveOptions{Force: true}))
		}},
		{"out of memory", func() {
			c := create(coracle.ContainerSpec{Name: "c", Args: []string{"hog", "200"}, Limits: cgroup.Limits{Memory: 32 << 20}})
			must(c.Start(ctx))
			wait(c)
			must(c.Remove(ctx, nil))
		}},
		{"failures", func() {
			if _, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Name: "no/name"}); err == nil {
				t.Error("created")
			}
			c := create(coracle.ContainerSpec{Name: "c", Entrypoint: []string{"/none"}})
			if _, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Name: "c"}); !errors.Is(err, fs.ErrExist) {
				t.Errorf("a name taken: %v", err)
			}
			if err := c.Start(ctx); err == nil {
				t.Error("started")
			}
			must(c.Remove(ctx, nil))
		}},
		{"images", func() {
			ref := reg.Host + "/team/app:v1"
			opts := &coracle.PullOptions{Credentials: &coracle.Credentials{}}
			i, err := eng.Pull(ctx, ref, opts)
			must(err)
			_, err = eng.Pull(ctx, ref, opts)
			must(err)
			must(i.Tag(ctx, "app:tested"))
			must(i.Untag(ctx, "app:tested"))
			must(i.Tag(ctx, "app:tested"))
			if err := i.Untag(ctx, "app:other"); err == nil {
				t.Error("untagged what it was not called")
			}
			must(i.Remove(ctx, nil))
			if err := i.Remove(ctx, nil); err == nil {
				t.Error("removed twice")
			}
		}},
		{"prune", func() {
			create(coracle.ContainerSpec{Name: "c", Args: []string{"true"}})
			_, err := eng.PruneContainers(ctx, nil)
			must(err)
			_, err = eng.PruneImages(ctx, &coracle.ImagePruneOptions{All: true})
			must(err)
		}},
	}
	var got strings.Builder
	var list []coracle.Event
	for _, l := range lives {
		after := lastEvent(t, eng)
		l.live()
		these := events(t, eng, &coracle.EventOptions{After: after})
		list = append(list, these...)
		fmt.Fprintf(&got, "# %s\n%s\n", l.name, describe(these, reg.Host))
	}
	golden := filepath.Join("testdata", "events", "sequences.txt")
	if *updateEvents {
		must(os.WriteFile(golden, []byte(got.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	must(err)
	if got.String() != string(want) {
		t.Errorf("the events are not those of %s:\n%s", golden, got.String())
	}
	// Their times and cursors are in order, and each cursor leads to what comes after it.
	for i := 1; i < len(list); i++ {
		if !list[i-1].Time.Before(list[i].Time) || list[i-1].Cursor >= list[i].Cursor {
			t.Errorf("out of order: %v, %v", list[i-1], list[i])
		}
	}
	for _, i := range []int{0, len(list) / 2, len(list) - 1} {
		rest := events(t, eng, &coracle.EventOptions{After: list[i].Cursor})
		if describe(rest, "") != describe(list[i+1:], "") {
			t.Errorf("after event %d there are %d, want %d", i, len(rest), len(list)-i-1)
		}
	}
	n := len(list) / 2
	if rest := events(t, eng, &coracle.EventOptions{Since: list[n].Time}); len(rest) != len(list)-n {
		t.Errorf("since event %d there are %d of %d", n, len(rest), len(list))
	}
	before := events(t, eng, &coracle.EventOptions{Until: list[n].Time, Since: list[0].Time})
	if len(before) != n {
		t.Errorf("until event %d there are %d", n, len(before))
	}
}

// TestEventOrder: who gets an event finds what it tells of, also in another program.
func TestEventOrder(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	eng := engine(t)
	toolImage(t, eng, nil)
	other, err := coracle.Open(ctx, coracle.Config{Root: eng.Root()})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	following := other.Events(ctx, &coracle.EventOptions{Follow: true, Filter: coracle.EventFilter{Types: []coracle.EventType{coracle.EventContainer}}})
	const rounds = 20
	failed, looked := make(chan error, 1), make(chan struct{}, rounds)
	go func() {
		failed <- func() error {
			for range rounds {
				c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"sleep", "20"}})
				if err != nil {
					return err
				}
				if err := c.Start(ctx); err != nil {
					return err
				}
				if _, err := c.Wait(ctx); err != nil {
					return err
				}
				select {
				case <-looked: // at the container's end: it has to be there for that
				case <-ctx.Done():
					return ctx.Err()
				}
				if err := c.Remove(ctx, nil); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	counts := make(map[coracle.EventAction]int)
	for ev, err := range following {
		if err != nil {
			t.Fatal(err)
		}
		c, err := other.Container(ctx, ev.ID)
		counts[ev.Action]++
		if ev.Action == coracle.ActionDestroy {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after destroy: %v, %v", c, err)
			}
			if counts[ev.Action] == rounds {
				break
			}
			continue
		}
		if err != nil {
			t.Errorf("at %s: %v", ev.Action, err)
			continue
		}
		info, err := c.Inspect(ctx)
		switch {
		case err != nil:
			t.Errorf("at %s: %v", ev.Action, err)
		case ev.Action == coracle.ActionStart && info.Status == coracle.StatusCreated:
			t.Errorf("at start the container is %s", info.Status)
		case ev.Action == coracle.ActionDie && (info.Status != coracle.StatusExited || info.Exit == nil || info.Exit.Code != 0):
			t.Errorf("at die the container is %s with exit status %v", info.Status, info.Exit)
		}
		if ev.Action == coracle.ActionDie {
			looked <- struct{}{}
		}
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	if len(counts) != 4 || counts[coracle.ActionDie] != rounds || counts[coracle.ActionStart] != rounds {
		t.Errorf("events: %v", counts)
	}
}

// TestEventsEnd: following ends with its context, at Until and when the engine is closed.
func TestEventsEnd(t *testing.T) {
	testutil.RequireRoot(t)
	eng, err := coracle.Open(t.Context(), coracle.Config{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	follow := func(ctx context.Context, opts coracle.EventOptions) (list []coracle.Event, last error) {
		opts.Follow = true
		for ev, err := range eng.Events(ctx, &opts) {
			if err != nil {
				last = err
				continue
			}
			list = append(list, ev)
		}
		return list, last
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	var op *coracle.OpError
	if _, err := follow(ctx, coracle.EventOptions{}); !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &op) {
		t.Errorf("with a context that ends: %v", err)
	}
	time.AfterFunc(30*time.Millisecond, func() {
		if _, err := eng.ImageFromFS(t.Context(), "small", smallFS("small"), nil); err != nil {
			t.Error(err)
		}
	})
	start := time.Now()
	list, err := follow(t.Context(), coracle.EventOptions{Until: start.Add(2 * time.Second)})
	if took := time.Since(start); err != nil || len(list) != 1 || took < 2*time.Second || took > 4*time.Second {
		t.Errorf("until two seconds later: %v, %v, after %v", list, err, took)
	}
	if list, err := follow(t.Context(), coracle.EventOptions{Since: start, Until: time.Now()}); err != nil || len(list) != 1 {
		t.Errorf("of the last two seconds: %v, %v", list, err)
	}
	for _, err := range eng.Events(t.Context(), &coracle.EventOptions{After: "x"}) {
		if !errors.Is(err, coracle.ErrInvalid) {
			t.Errorf("with a bad cursor: %v", err)
		}
	}
	time.AfterFunc(20*time.Millisecond, func() { eng.Close() })
	if _, err := follow(t.Context(), coracle.EventOptions{}); !errors.Is(err, coracle.ErrClosed) {
		t.Errorf("when the engine is closed: %v", err)
	}
	if _, err := follow(t.Context(), coracle.EventOptions{}); !errors.Is(err, coracle.ErrClosed) {
		t.Errorf("after the engine was closed: %v", err)
	}
}

// TestEventGaps: what was removed before it was read, and what could not be written, is told.
func TestEventGaps(t *testing.T) {
	testutil.RequireRoot(t)
	root := t.TempDir()
	eng, err := coracle.Open(t.Context(), coracle.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer eng.Close()
	j := journal.New(filepath.Join(root, "events"), &journal.Options{FileSize: 200, Files: 2})
	defer j.Close()
	record := func(name string) []byte {
		return fmt.Appendf(nil, `{"time":"2026-01-02T03:04:05Z","type":"container","action":"create","id":"x","name":%q}`, name)
	}
	for i := range 10 {
		if err := j.Append(record(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	first := events(t, eng, nil)[0]
	j.Append([]byte("\n")) // is refused, and counts as lost
	j.Append(make([]byte, journal.MaxPayload+1))
	for i := range 10 {
		if err := j.Append(record(fmt.Sprint(10 + i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Append([]byte(`{"not":"an event"}`)); err != nil {
		t.Fatal(err)
	}
	var gaps, got int
	for ev, err := range eng.Events(t.Context(), &coracle.EventOptions{After: first.Cursor}) {
		var gap *coracle.EventGapError
		switch {
		case errors.As(err, &gap):
			if gap.After != first.Cursor || gap.Lost != 0 || got > 0 {
				t.Errorf("%v after %d events", gap, got)
			}
			gaps++
		case err != nil:
			t.Fatal(err)
		default:
			got++
			if ev.ID != "x" {
				t.Errorf("%v", ev)
			}
		}
	}
	if gaps != 1 || got == 0 {
		t.Errorf("%d gaps and %d events", gaps, got)
	}
}

// TestEventsOfKilled: the containers of a program that was killed die and are destroyed once, whoever sweeps.
func TestEventsOfKilled(t *testing.T) {
	testutil.RequireRoot(t)
	ctx, root := t.Context(), t.TempDir()
	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	toolImage(t, eng, nil)
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		cmd, _ := program(t, root, [][]string{{"stubborn"}, {"exit", "0"}, {"stubborn"}, {"exit", "5"}})
		time.Sleep(50 * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		// Many sweep at once.
		engines := make(chan *coracle.Engine)
		for range 8 {
			go func() {
				e, err := coracle.Open(ctx, coracle.Config{Root: root})
				if err != nil {
					t.Error(err)
				}
				engines <- e
			}()
		}
		for range 8 {
			if e := <-engines; e != nil {
				if _, err := e.PruneContainers(ctx, nil); err != nil {
					t.Error(err)
				}
				defer e.Close()
			}
		}
		wantEvents(t, root)
	}
}

// TestEventsOfLateKill: a program brings its container in sight when a sweep has just listed it as half made, and is killed then:
// the container is there, and nobody is told that it is destroyed.
func TestEventsOfLateKill(t *testing.T) {
	testutil.RequireRoot(t)
	ctx, root := t.Context(), t.TempDir()
	eng := openAgain(t, root)
	toolImage(t, eng, nil)
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"/tool", "exit", "0"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	// As the program has left it that is killed after the event of the creation.
	if err := os.WriteFile(filepath.Join(root, "owners", "dead"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	made := filepath.Join(root, "containers", c.ID())
	making := filepath.Join(root, "containers", ".dead."+c.ID())
	if err := os.Rename(made, making); err != nil {
		t.Fatal(err)
	}
	listed := 0
	crashpoint.Observe(func(step string) {
		if step == "sweep: containers listed" {
			if listed++; listed == 1 {
				if err := os.Rename(making, made); err != nil {
					t.Error(err)
				}
			}
		}
	})
	defer crashpoint.Observe(nil)
	eng = openAgain(t, root)
	crashpoint.Observe(nil)
	if listed == 0 {
		t.Fatal("the sweep has not listed the containers")
	}
	wantEvents(t, root)
	if c, err = eng.Container(ctx, c.ID()); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(ctx, nil); err != nil {
		t.Error(err)
	}
	wantEvents(t, root)
}

// wantEvents looks at the containers' events of a root in which none runs: their order, and that they are the events of the
// containers that are there and of those that are gone.
func wantEvents(t testing.TB, root string) {
	t.Helper()
	wantEventsBut(t, root)
}

// wantEventsBut is wantEvents without those events that are told by who holds no lock, and may come late.
func wantEventsBut(t testing.TB, root string, loose ...coracle.EventAction) {
	t.Helper()
	eng, err := coracle.Open(t.Context(), coracle.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer eng.Close()
	last := make(map[string]coracle.EventAction)
	for _, ev := range events(t, eng, nil) {
		before, bad := last[ev.ID], false
		kind, _, _ := strings.Cut(string(ev.Action), ":") // exec_start: /exit
		if ev.Type != coracle.EventContainer || ev.ID == "" || slices.Contains(loose, coracle.EventAction(kind)) {
			continue
		}
		switch ev.Action {
		case coracle.ActionCreate:
			bad = before != ""
		case coracle.ActionStart:
			bad = before != coracle.ActionCreate && before != coracle.ActionDie
		case coracle.ActionDie:
			bad = before != coracle.ActionStart
		case coracle.ActionDestroy:
			bad = before != coracle.ActionCreate && before != coracle.ActionDie
		default:
			if bad = before == "" || before == coracle.ActionDestroy; !bad {
				continue
			}
		}
		if bad {
			t.Errorf("event %s of container %s (%s) after %q", ev.Action, ev.Name, ev.ID[:min(len(ev.ID), 12)], before)
		}
		last[ev.ID] = ev.Action
	}
	there := make(map[string]bool)
	entries, err := os.ReadDir(filepath.Join(root, "containers"))
	if err != nil {
		t.Error(err)
	}
	for _, entry := range entries {
		there[entry.Name()] = true
		if a := last[entry.Name()]; a != coracle.ActionCreate && a != coracle.ActionDie {
			t.Errorf("the container %.12s is there, its last event is %q", entry.Name(), a)
		}
	}
	for id, a := range last {
		if a != coracle.ActionDestroy && !there[id] {
			t.Errorf("the container %.12s is gone, its last event is %q", id, a)
		}
	}
}

// TestEventsOfControl: what is done to a running container.
func TestEventsOfControl(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := startTool(t, eng, coracle.ContainerSpec{Name: "one", OpenStdin: true, TTY: true}, "typist")
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	must("pause", c.Pause(t.Context()))
	must("resume", c.Resume(t.Context()))
	must("update", c.Update(t.Context(), cgroup.Limits{PIDs: 100}))
	must("rename", c.Rename(t.Context(), "two"))
	must("resize", c.Resize(t.Context(), coracle.TerminalSize{Rows: 1, Cols: 1}))
	must("a command", c.Command("/tool", "exit", "0").Run(t.Context()))
	if err := c.Command("/tool", "exit", "3").Run(t.Context()); err == nil {
		t.Error("a command that fails: no error")
	}
	if err := c.Attach(t.Context(), &coracle.AttachOptions{Stdin: strings.NewReader("\x10"), DetachKeys: "ctrl-p"}); !errors.Is(err, coracle.ErrDetached) {
		t.Error(err)
	}
	must("restart", c.Restart(t.Context(), nil))
	must("remove", c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}))
	var got []string
	for ev, err := range eng.Events(t.Context(), nil) {
		must("events", err)
		if ev.Type != coracle.EventContainer {
			continue
		}
		text := ev.Name + " " + string(ev.Action)
		for _, name := range []string{"exitCode", "oldName"} {
			if v, ok := ev.Attributes[name]; ok {
				text += " " + name + "=" + v
			}
		}
		if strings.HasPrefix(string(ev.Action), "exec_") != (len(ev.Attributes["execID"]) == 64) {
			t.Errorf("%v: %v", ev, ev.Attributes)
		}
		got = append(got, text)
	}
	want := []string{
		"one create", "one start", "one pause", "one unpause", "one update", "two rename oldName=one", "two resize",
		"two exec_create: /tool exit 0", "two exec_start: /tool exit 0", "two exec_die exitCode=0",
		"two exec_create: /tool exit 3", "two exec_start: /tool exit 3", "two exec_die exitCode=3",
		"two attach", "two detach", "two kill", "two die exitCode=2", "two stop", "two start", "two restart",
		"two kill", "two die exitCode=137", "two destroy",
	}
	if !slices.Equal(got, want) {
		t.Errorf("events\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
