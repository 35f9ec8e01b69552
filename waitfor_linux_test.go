package coracle_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
)

// TestWaitFor: conditions of one's own containers and of others', by many waiters at once.
func TestWaitFor(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	other := another(t, eng)
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Name: "c", Image: "tool", Args: []string{"obey"}, Stdout: &syncBuffer{}})
	if err != nil {
		t.Fatal(err)
	}
	const waiters = 500 // in each of two engines
	wait := func(cond coracle.Condition) (all func(within time.Duration)) {
		errs := make(chan error, 2*waiters)
		for range waiters {
			for _, e := range []*coracle.Engine{eng, other} {
				found := as(t, e, c)
				go func() { errs <- found.WaitFor(ctx, cond) }()
			}
		}
		time.Sleep(20 * time.Millisecond)
		select {
		case err := <-errs:
			t.Fatalf("%s holds already: %v", cond, err)
		default:
		}
		return func(within time.Duration) {
			t.Helper()
			start := time.Now()
			for range 2 * waiters {
				select {
				case err := <-errs:
					if err != nil {
						t.Fatalf("%s: %v", cond, err)
					}
				case <-time.After(20 * time.Second):
					t.Fatalf("a waiter for %s waits on", cond)
				}
			}
			if d := time.Since(start); d > within {
				t.Errorf("%d waiters for %s took %v", 2*waiters, cond, d)
			}
		}
	}
	fds := func() int { list, _ := os.ReadDir("/proc/self/fd"); return len(list) }
	before := fds()
	running := wait(coracle.ConditionRunning)
	exited := wait(coracle.ConditionExited)
	if n := fds() - before; n > 10 {
		t.Errorf("%d waiters need %d descriptors", 4*waiters, n)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	running(5 * time.Second)
	removed := wait(coracle.ConditionRemoved)
	if err := c.WaitFor(ctx, coracle.ConditionRunning); err != nil {
		t.Errorf("running, while it is: %v", err)
	}
	waitForOutput(t, c, "ready")
	if err := c.Stop(ctx, nil); err != nil {
		t.Fatal(err)
	}
	exited(5 * time.Second)
	if err := as(t, other, c).WaitFor(ctx, coracle.ConditionExited); err != nil {
		t.Errorf("exited, when it has: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := c.WaitFor(short, coracle.ConditionRunning); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("running, with a context that ends: %v", err)
	}
	if err := c.Remove(ctx, nil); err != nil {
		t.Fatal(err)
	}
	removed(5 * time.Second)
	if err := c.WaitFor(ctx, coracle.ConditionRemoved); err != nil {
		t.Errorf("removed, when it is: %v", err)
	}
	// What removes itself has exited.
	auto := runningContainer(t, eng, coracle.ContainerSpec{AutoRemove: true}, "obey")
	theirs := as(t, other, auto)
	errs := make(chan error)
	go func() { errs <- theirs.WaitFor(ctx, coracle.ConditionExited) }()
	time.Sleep(10 * time.Millisecond)
	if err := auto.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-errs; err != nil {
		t.Error(err)
	}
}

// TestWaitForThread: waiting for another program's container takes no thread.
func TestWaitForThread(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c := runningContainer(t, eng, coracle.ContainerSpec{}, "obey")
	theirs := as(t, another(t, eng), c)
	threads := func() int { list, _ := os.ReadDir("/proc/self/task"); return len(list) }
	before := threads()
	const waiters = 200
	errs := make(chan error, waiters)
	for range waiters {
		go func() { _, err := theirs.Wait(ctx); errs <- err }()
	}
	time.Sleep(100 * time.Millisecond)
	if n := threads() - before; n > 20 {
		t.Errorf("%d waiters have %d threads", waiters, n)
	}
	if err := c.Stop(ctx, nil); err != nil {
		t.Fatal(err)
	}
	for range waiters {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	c2 := runningContainer(t, eng, coracle.ContainerSpec{}, "obey")
	if _, err := as(t, another(t, eng), c2).Wait(canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}
