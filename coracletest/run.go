package coracletest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
)

// TestLabel is the label of a test's containers that has the name of the test.
const TestLabel = "dev.coracle.test.name"

// Run starts a container for a test, waits for it, one wait after the other, and removes it when the test and its subtests
// are over. If any of that fails it ends the test. The image is pulled if it is not there.
//
// What the spec leaves open is filled in: the Name is that of the test and something random, and Log.Mode is LogFile. If
// the test fails, the last lines of the log are logged; they lack what Stdout or Stderr of the spec take. AutoRemove is
// ignored, so that a container that has ended can still be looked at: it is removed with the test. Where there is a health
// check or a restart policy, the engine supervises until the test is over.
//
// It uses the engine of [Engine], and as that does it skips the test where containers cannot run.
func Run(t testing.TB, spec coracle.ContainerSpec, waits ...Wait) *coracle.Container {
	t.Helper()
	return RunIn(t, Engine(t), spec, waits...)
}

// RunIn is [Run] with an engine of the test's own, which is closed by a cleanup function that was registered before, or
// later. Nil means that of [Engine].
func RunIn(t testing.TB, eng *coracle.Engine, spec coracle.ContainerSpec, waits ...Wait) *coracle.Container {
	t.Helper()
	c, err := Start(t, eng, spec, waits...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Start is [RunIn] for tests that want an error instead of being failed: that a container refuses to start, for example.
// With an error nothing is left of the container; that of a wait is a [*WaitError].
//
// A test that go test gives less time than the waits, with -timeout, ends waiting a little earlier, so that it can say
// what it has waited for.
func Start(t testing.TB, eng *coracle.Engine, spec coracle.ContainerSpec, waits ...Wait) (*coracle.Container, error) {
	t.Helper()
	if eng == nil {
		eng = Engine(t)
	}
	if spec.Name == "" {
		spec.Name = nameFor(t.Name())
	}
	if spec.Log.Mode == coracle.LogAuto {
		spec.Log.Mode = coracle.LogFile
	}
	spec.AutoRemove = false
	spec.Labels = maps.Clone(spec.Labels)
	if spec.Labels == nil {
		spec.Labels = make(map[string]string)
	}
	spec.Labels[TestLabel] = t.Name()
	if owner := ownerOf(eng); owner != "" {
		spec.Labels[ownerLabel] = owner
	}
	ctx, cancel := testContext(t)
	defer cancel()
	c, err := eng.Create(ctx, &spec)
	if err != nil {
		return nil, err
	}
	gone := false
	t.Cleanup(func() {
		if gone {
			return
		}
		if t.Failed() {
			t.Log(describe(c))
		}
		if err := remove(c); err != nil {
			t.Errorf("remove the container of the test: %v", err)
		}
	})
	err = c.Start(ctx)
	if err == nil {
		err = supervise(ctx, t, eng, c)
	}
	for i := 0; err == nil && i < len(waits); i++ {
		err = waits[i].Wait(ctx, c)
	}
	if err != nil {
		left := remove(c)
		gone = left == nil
		return nil, errors.Join(err, left)
	}
	return c, nil
}

// ownerOf is the mark of the test binary if the engine is the shared one.
func ownerOf(eng *coracle.Engine) string {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if eng != shared.eng || shared.mark == nil {
		return ""
	}
	return markName(shared.mark)
}

// testContext is done when the test is, and before go test ends it for the time it has taken.
func testContext(t testing.TB) (context.Context, context.CancelFunc) {
	limited, ok := t.(interface{ Deadline() (time.Time, bool) })
	if !ok {
		return context.WithCancel(t.Context())
	}
	deadline, ok := limited.Deadline()
	if !ok {
		return context.WithCancel(t.Context())
	}
	// What is left is for cleaning up.
	return context.WithDeadline(t.Context(), deadline.Add(-min(5*time.Second, time.Until(deadline)/5)))
}

const cleanupTime = 30 * time.Second

func remove(c *coracle.Container) error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	err := c.Remove(ctx, &coracle.RemoveOptions{Force: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the test has removed it
	}
	return err
}

// describe says for a test that has failed what has become of a container.
func describe(c *coracle.Container) string {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	info, err := c.Inspect(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf("container %q was removed by the test", c.Name())
	}
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "container %q of %s: %s", info.Name, info.Image, info.Status)
	if info.Exit != nil && info.Status == coracle.StatusExited {
		fmt.Fprintf(&b, ", %v", info.Exit)
	}
	b.WriteString(logText(lastLines(ctx, c, failureLines)))
	return b.String()
}

// nameFor makes a name for a container of the test's name.
func nameFor(test string) string {
	const room = 100 // of 128
	clean := func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '_', r == '.', r == '-':
			return r
		case r == '/':
			return '.'
		}
		return '-'
	}
	name := strings.TrimLeft(strings.Map(clean, test), "_.-")
	if len(name) > room {
		name = name[len(name)-room:] // what tells subtests apart is at the end
		name = strings.TrimLeft(name, "_.-")
	}
	if name == "" {
		name = "test"
	}
	return name + "-" + strings.ToLower(rand.Text()[:8])
}
