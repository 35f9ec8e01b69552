package coracle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// A Condition is what WaitFor waits for.
type Condition string

// The conditions of [Container.WaitFor].
const (
	// ConditionRunning: the container runs; it may be paused.
	ConditionRunning Condition = "running"
	// ConditionExited: the container was started and has ended. One that is created and never started has not.
	ConditionExited Condition = "exited"
	// ConditionRemoved: the container is gone.
	ConditionRemoved Condition = "removed"
	// ConditionHealthy: the container runs and its health checks succeed. Some program has to run them, see
	// [Engine.Supervise]: without one it never comes. A container without a health check is ErrInvalid.
	ConditionHealthy Condition = "healthy"
)

// WaitFor waits until the condition holds, and returns at once if it does. It works on any container of the root,
// whoever runs it. Cancelling ctx ends the waiting.
//
// A condition that holds for a moment only may be missed: that a container runs which ends at once. A container that is
// removed has exited, if it was running when the waiting began or later; other conditions then end with an error that
// matches fs.ErrNotExist. An unknown condition is ErrInvalid.
//
// Waiting costs neither a thread nor a timer: the kernel tells of changes. Many waiters for one container share what it
// takes.
func (c *Container) WaitFor(ctx context.Context, cond Condition) error {
	return c.fail("wait for", c.waitFor(ctx, cond))
}

const (
	// recheck is how soon a waiter looks again where the kernel does not tell of what it waits for: after a process has
	// ended, until its owner has noted it or is dead too.
	recheck = 20 * time.Millisecond
	// recheckBlind is that where the kernel tells nothing at all: a user's inotify watches are used up.
	recheckBlind = 100 * time.Millisecond
	// recheckAnyway is that where it does.
	recheckAnyway = 10 * time.Second
)

func (c *Container) waitFor(ctx context.Context, cond Condition) error {
	switch cond {
	case ConditionRunning, ConditionExited, ConditionRemoved, ConditionHealthy:
	default:
		return fmt.Errorf("%w: the condition %q is unknown", ErrInvalid, cond)
	}
	w, watchErr := c.eng.watch.join(c.eng.containerDir(c.id), c.id)
	if watchErr == nil {
		defer c.eng.watch.leave(w)
	}
	ran := false
	for {
		pause := recheckAnyway
		var changed <-chan struct{}
		if watchErr == nil {
			changed = c.eng.watch.changed(w) // before the look: what happens after it closes this channel
		} else {
			pause = recheckBlind
		}
		st, err := c.present()
		if errors.Is(err, fs.ErrNotExist) {
			if cond == ConditionRemoved || cond == ConditionExited && ran {
				return nil
			}
			return err
		}
		if err != nil {
			return err
		}
		if st.unsettled() { // whoever learns of a detached container's end notes it
			if err := c.settle(ctx); err != nil {
				return err
			}
			ran = true
			continue
		}
		if cond == ConditionHealthy {
			if healthy, err := c.eng.healthy(st); healthy || err != nil {
				return err
			}
		}
		var ended <-chan struct{}
		switch {
		case st.Status != StatusRunning:
			if cond == ConditionExited && st.Status == StatusExited {
				return nil
			}
		case cond == ConditionRunning && alive(st):
			return nil
		default:
			ran = true
			over := !alive(st)
			if over && st.KeeperPID == 0 && !c.eng.ownerAlive(st.Owner) && cond == ConditionExited {
				return nil // nobody is left who would note it
			}
			if over {
				pause = min(pause, recheck)
			} else if watchErr == nil {
				ended = c.eng.watch.process(w, st)
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-changed:
		case <-ended:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// present is current for a container that may have been removed: its owner remembers the last state.
func (c *Container) present() (*containerState, error) {
	if _, err := os.Lstat(c.eng.containerDir(c.id)); err != nil {
		return nil, err
	}
	return c.current()
}
