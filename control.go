package coracle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/crashpoint"
)

// Who is paused is the kernel's knowledge, not that of state.json: a group that is frozen, or about to be, is a paused
// container. So every program sees the same, and one that is killed while it pauses leaves a container that is paused,
// which can be resumed, or one that is not.

// Pause stops all processes of the container until Resume, whoever owns it; it returns when they are stopped. They keep
// their memory, and notice nothing but the time that has passed.
//
// The error matches ErrPaused if it is paused already, ErrNotRunning if it is not running, ErrNotPaused if somebody else
// has just resumed it to let it end, and errors.ErrUnsupported where no cgroup with a freezer may be written. If it fails, for a process that cannot be stopped within ten seconds or
// for the end of ctx, the container runs on.
func (c *Container) Pause(ctx context.Context) error { return c.fail("pause", c.pause(ctx)) }

func (c *Container) pause(ctx context.Context) error {
	return c.control(ctx, func(ctx context.Context, st *containerState, group *cgroup.Group) error {
		switch frozen, err := group.Frozen(); {
		case err != nil:
			return err
		case frozen:
			return ErrPaused
		}
		crashpoint.At("pause: begins")
		if err := group.Freeze(ctx); errors.Is(err, cgroup.ErrThawed) {
			// By a Stop or a signal, which do not wait for the lock.
			return unlessGone(st, fmt.Errorf("%w: another program lets it run", ErrNotPaused))
		} else if err != nil {
			return unlessGone(st, err)
		}
		crashpoint.At("pause: frozen")
		if !alive(st) {
			// It ended meanwhile: an empty group freezes too, and whatever comes to it has to be able to run.
			return errors.Join(ErrNotRunning, group.Thaw(ctx))
		}
		c.eng.emitContainer(st, ActionPause)
		return nil
	})
}

// Resume lets a paused container run on, whoever paused it.
//
// The error matches ErrNotPaused if it is not paused, and ErrNotRunning if it is not running.
func (c *Container) Resume(ctx context.Context) error { return c.fail("resume", c.resume(ctx)) }

func (c *Container) resume(ctx context.Context) error {
	return c.control(ctx, func(ctx context.Context, st *containerState, group *cgroup.Group) error {
		switch frozen, err := group.Frozen(); {
		case err != nil:
			return err
		case !frozen:
			return unlessGone(st, ErrNotPaused)
		}
		crashpoint.At("resume: begins")
		if err := group.Thaw(ctx); err != nil {
			return err
		}
		c.eng.emitContainer(st, ActionUnpause)
		return nil
	})
}

func ifTrue(cond bool, err error) error {
	if cond {
		return err
	}
	return nil
}

// freezeWait bounds how long the freezing or thawing of a container may take. A process that waits for a disk or a
// network filesystem cannot be frozen before it gets its answer.
const freezeWait = 10 * time.Second

// control calls do, with the container locked, for one that is running.
func (c *Container) control(ctx context.Context, do func(ctx context.Context, st *containerState, group *cgroup.Group) error) error {
	ctx, st, end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if !alive(st) {
		return ErrNotRunning
	}
	group, err := c.eng.group(st.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return unlessGone(st, &UnsupportedError{Feature: "controlling a container without a cgroup", Fix: "mount cgroups that this program may write"})
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, freezeWait)
	defer cancel()
	err = do(ctx, st, group)
	if errors.Is(err, fs.ErrNotExist) {
		return unlessGone(st, err)
	}
	return err
}

// unlessGone is ErrNotRunning if the container has ended by now, which explains whatever went wrong, and err otherwise.
func unlessGone(st *containerState, err error) error {
	if !alive(st) {
		return ErrNotRunning
	}
	return err
}

// alive reports whether the container's first process exists and has not ended, whoever its owner is.
func alive(st *containerState) bool {
	if st.Status != StatusRunning {
		return false
	}
	p, err := openProcess(st.PID, st.BootID, st.StartTime)
	if err != nil {
		return false
	}
	defer p.close()
	return !p.ended(0)
}

// group returns the cgroup of a container.
func (e *Engine) group(id string) (*cgroup.Group, error) { return e.cgroups.Load(e.groupName(id)) }

// status is the status that everybody sees: StatusPaused is no state of its own.
func (e *Engine) status(st *containerState) ContainerStatus {
	if e.paused(st) {
		return StatusPaused
	}
	return st.Status
}

// paused reports whether the container is paused.
func (e *Engine) paused(st *containerState) bool {
	if st.Status != StatusRunning {
		return false
	}
	group, err := e.group(st.ID)
	if err != nil {
		return false
	}
	frozen, err := group.Frozen()
	return err == nil && frozen
}

// signal sends a signal to the first process. SIGKILL ends a paused container too.
func (c *Container) signal(sig syscall.Signal) error {
	if err := c.send(sig); err != nil {
		return err
	}
	if sig == syscall.SIGKILL {
		return c.thawKilled()
	}
	return nil
}

// signalByName is signal as a user of Signal expects it.
func (c *Container) signalByName(ctx context.Context, sig syscall.Signal) (err error) {
	if sig < 0 || sig > 64 {
		return fmt.Errorf("%w: %d is no signal", ErrInvalid, sig)
	}
	if sig == syscall.SIGKILL || c.stopsBy(sig) {
		if noted := c.noteStop(ctx); noted != nil {
			defer func() { err = errors.Join(err, noted) }()
		}
	}
	if err := c.signal(sig); err != nil {
		return err
	}
	st, err := c.current()
	if err != nil {
		return ifTrue(!errors.Is(err, fs.ErrNotExist), err)
	}
	if stop, err := parseSignal(st.Resolved.StopSignal); err != nil || stop != sig {
		return nil
	}
	return c.thaw()
}

// stopsBy reports whether the signal is the container's stop signal.
func (c *Container) stopsBy(sig syscall.Signal) bool {
	st, err := c.current()
	if err != nil {
		return false
	}
	stop, err := parseSignal(st.Resolved.StopSignal)
	return err == nil && stop == sig
}

// thawKilled lets a container die that was killed while it was paused, or while somebody was about to pause it.
func (c *Container) thawKilled() error {
	if c.eng.cgroups.KillsFrozen() {
		return nil
	}
	for end := time.Now().Add(freezeWait); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if err := c.thaw(); err != nil {
			return err
		}
		if st, err := c.current(); err != nil || !alive(st) {
			break
		}
	}
	return nil
}

// thaw lets a container run on if it is paused, without a word if it is not.
func (c *Container) thaw() error {
	group, err := c.eng.group(c.id)
	if err == nil {
		var frozen bool
		if frozen, err = group.Frozen(); err == nil && frozen {
			ctx, cancel := context.WithTimeout(context.Background(), freezeWait)
			defer cancel()
			if err = group.Thaw(ctx); err == nil {
				c.emit(ActionUnpause)
			}
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has ended
	}
	return err
}

// StopAtOnce is the Timeout of a Stop that does not wait: the container gets its stop signal, and SIGKILL right after it.
const StopAtOnce time.Duration = 1

// ParseSignal returns the signal with that name ("SIGTERM", "term", "SIGRTMIN+3", "RTMAX-1") or number ("15"), for
// Signal. The error matches ErrInvalid.
func ParseSignal(name string) (syscall.Signal, error) { return parseSignal(name) }

// Restart stops the container, if it is running, and starts it again. AutoRemove does not remove it in between. If the
// stop fails the container is not started; if the start fails it stays stopped, or is removed with AutoRemove.
//
// The errors are those of Stop and Start: ErrInUse if it belongs to another program, which is not asked to stop it
// then, and ErrRunning if somebody else has started it in between.
func (c *Container) Restart(ctx context.Context, opts *StopOptions) error {
	return c.fail("restart", c.stopAndStart(ctx, opts))
}

func (c *Container) stopAndStart(ctx context.Context, opts *StopOptions) error {
	if err := c.eng.use(); err != nil {
		return err
	}
	c.restart.Lock()
	defer c.restart.Unlock()
	st, err := c.current()
	if err != nil {
		return err
	}
	if st.Owner != c.eng.owner.id && c.eng.ownerAlive(st.Owner) {
		return fmt.Errorf("%w: the container belongs to another program that is running", ErrInUse)
	}
	if st.Spec.AutoRemove {
		if err := c.keepAtEnd(ctx, true); err != nil {
			return err
		}
	}
	err = c.stop(ctx, opts)
	if st.Spec.AutoRemove { // the next run may end at once
		err = errors.Join(err, c.keepAtEnd(context.WithoutCancel(ctx), false))
	}
	if err == nil {
		err = c.start(ctx)
	}
	if err == nil {
		c.emit(ActionRestart)
	}
	if err != nil && st.Spec.AutoRemove && !errors.Is(err, ErrRunning) {
		// What should have gone when it ended, had it not been for this.
		if now, stErr := c.current(); stErr == nil && now.Status == StatusExited {
			removing := c.remove(context.WithoutCancel(ctx), nil)
			err = errors.Join(err, ifTrue(!errors.Is(removing, ErrRunning) && !errors.Is(removing, ErrClosed), removing))
		}
	}
	return err
}

// keepAtEnd notes that the container is to stay when it ends, in spite of AutoRemove, or that it is not any more. The note
// holds as long as this engine lives.
func (c *Container) keepAtEnd(ctx context.Context, keep bool) error {
	st, unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return c.eng.change(st.ID, func(ch *containerChanges) {
		ch.Restarting = ""
		if keep {
			ch.Restarting = c.eng.owner.id
		}
	})
}

// removedAtEnd reports whether a container that has just ended is to be removed.
func (e *Engine) removedAtEnd(st *containerState) bool {
	if !st.Spec.AutoRemove {
		return false
	}
	ch, err := e.changes(st.ID)
	return err != nil || ch.Restarting == "" || !e.ownerAlive(ch.Restarting)
}
