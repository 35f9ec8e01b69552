package coracle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// Wait waits until the container has ended and its output has arrived, and returns how it ended. A container that ended
// before gives its last exit status at once; one that was never started gives ErrNotRunning. Cancelling ctx ends the
// waiting, not the container. If a container that another program runs, or a detached one, is started again so soon that
// its end was not seen, the status is unknown.
//
// If a writer of the spec failed, Wait returns its error together with the exit status.
func (c *Container) Wait(ctx context.Context) (ExitStatus, error) {
	exit, err := c.wait(ctx)
	return exit, c.fail("wait for", err)
}

func (c *Container) wait(ctx context.Context) (ExitStatus, error) {
	if r := c.lastRun(); r != nil {
		select {
		case <-r.ended:
			return r.exit, r.streamErr
		case <-ctx.Done():
			return ExitStatus{Code: -1, Unknown: true}, ctx.Err()
		}
	}
	return c.waitElsewhere(ctx)
}

// waitFor is the process whose end makes the container's: its keeper, or its own.
func (st *containerState) waitFor() (pid int, boot string, start uint64) {
	if st.KeeperPID != 0 {
		return st.KeeperPID, st.BootID, st.KeeperStart
	}
	return st.PID, st.BootID, st.StartTime
}

// waitElsewhere waits for a container that another program runs, or a keeper: for the end of its process, which the
// kernel tells, and then for the record that is made of it.
func (c *Container) waitElsewhere(ctx context.Context) (ExitStatus, error) {
	unknown := ExitStatus{Code: -1, Unknown: true}
	run := 0 // which start of the container it is about
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		st, err := c.current()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return unknown, fmt.Errorf("removed by its owner: %w", err)
		case err != nil:
			return unknown, err
		case run != 0 && st.Starts != run:
			return unknown, nil // it has ended and was started again, too soon to see how
		case st.Exit != nil && st.Status == StatusExited:
			if st.unsettled() {
				err = c.settle(ctx)
			}
			return *st.Exit, err
		case st.Status != StatusRunning:
			return unknown, ErrNotRunning
		case st.KeeperPID == 0 && !c.eng.ownerAlive(st.Owner):
			return unknown, nil
		}
		run = st.Starts
		p, err := openProcess(st.waitFor())
		if err == nil {
			err = p.wait(ctx)
			p.close()
		}
		if err != nil && !errors.Is(err, os.ErrProcessDone) {
			return unknown, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return unknown, ctx.Err()
		}
	}
}

// Signal sends a signal to the container's first process. The error matches ErrNotRunning if there is none.
//
// A paused container gets it when it is resumed. Its stop signal and SIGKILL resume it, as in Docker; where the kernel
// can kill what is frozen (cgroup version 2), SIGKILL ends it without.
func (c *Container) Signal(ctx context.Context, sig syscall.Signal) error {
	return c.fail(fmt.Sprintf("send %v to", sig), c.signalByName(ctx, sig))
}

// send sends a signal to the first process, and leaves a paused one paused: see signal.
func (c *Container) send(sig syscall.Signal) error {
	if r := c.lastRun(); r != nil {
		c.emitKill(sig, r.proc.Signal)
		err := r.proc.Signal(sig)
		if errors.Is(err, os.ErrProcessDone) {
			return ErrNotRunning
		}
		return err
	}
	st, err := c.current()
	if err != nil {
		return err
	}
	if st.Status != StatusRunning {
		return ErrNotRunning
	}
	p, err := openProcess(st.PID, st.BootID, st.StartTime)
	if err == nil {
		c.emitKill(sig, p.signal)
		err = p.signal(sig)
		p.close()
	}
	if errors.Is(err, os.ErrProcessDone) {
		return ErrNotRunning
	}
	return err
}

// Kill ends the container at once and with all its processes. The error matches ErrNotRunning if it is not running.
func (c *Container) Kill(ctx context.Context) error {
	return c.fail("kill", c.signalByName(ctx, syscall.SIGKILL))
}

// StopOptions are the settings of one Stop; nil means the defaults.
type StopOptions struct {
	// Signal ends the container politely: a name or a number. Empty means that of the spec or the image, or SIGTERM.
	Signal string
	// Timeout is how long to wait before the container is killed. Zero means that of the spec, or 10 s; StopAtOnce
	// means not at all, and a negative one for ever.
	Timeout time.Duration
}

// Stop asks the container to end with its stop signal, kills it if it has not done so in time, and waits for the end.
// It is no error if the container is not running. A paused one is resumed, so that it sees the signal. Cancelling ctx
// ends the waiting; the container may then go on.
//
// Its restart policy does not start it again. If that cannot be noted, as on a full disk, the container ends all the same
// and Stop returns the error.
func (c *Container) Stop(ctx context.Context, opts *StopOptions) error {
	return c.fail("stop", c.stop(ctx, opts))
}

func (c *Container) stop(ctx context.Context, opts *StopOptions) (err error) {
	if opts == nil {
		opts = &StopOptions{}
	}
	st, err := c.current()
	if err != nil {
		return err
	}
	name, timeout := opts.Signal, opts.Timeout
	if name == "" {
		name = st.Resolved.StopSignal
	}
	if timeout == 0 {
		timeout = st.Spec.StopTimeout
	}
	if timeout == 0 {
		timeout = defaultStopTimeout
	}
	sig, err := parseSignal(name)
	if err != nil {
		return err
	}
	if noted := c.noteStop(ctx); noted != nil {
		defer func() { err = errors.Join(err, noted) }()
	}
	sent := c.signal(sig)
	if sent != nil && !errors.Is(sent, ErrNotRunning) {
		return sent
	}
	if err := c.thaw(); err != nil {
		return err
	}
	polite := ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		polite, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	_, err = c.wait(polite)
	if polite.Err() == nil || ctx.Err() != nil {
		return c.stopped(ctx, st, sent, err)
	}
	if err := c.signal(syscall.SIGKILL); err != nil && !errors.Is(err, ErrNotRunning) {
		return err
	}
	_, err = c.wait(ctx)
	return c.stopped(ctx, st, sent, err)
}

const defaultStopTimeout = 10 * time.Second

// stopped is the error of a stop for the error of its wait: that the owner has removed the container is as good an end
// as any. What was sent a signal and has ended is an event.
func (c *Container) stopped(ctx context.Context, st *containerState, sent, err error) error {
	if sent == nil && ctx.Err() == nil {
		c.eng.emitContainer(st, ActionStop)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotRunning) {
		return nil
	}
	return err
}

// RemoveOptions are the settings of one Remove; nil means the defaults.
type RemoveOptions struct {
	// Force kills a running container first.
	Force bool
}

// Remove removes the container: its root filesystem, its name and its record. The error matches ErrRunning if it is
// running and Force is not set, and ErrInUse if it belongs to another program that is running. It is no error if it is
// gone already.
func (c *Container) Remove(ctx context.Context, opts *RemoveOptions) error {
	return c.fail("remove", c.remove(ctx, opts))
}

func (c *Container) remove(ctx context.Context, opts *RemoveOptions) error {
	e := c.eng
	ctx, done, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	if opts != nil && opts.Force {
		if err := c.noteStop(ctx); err != nil {
			e.log.Warn("a container that is being removed may be restarted before", "container", c.name, "id", c.id, "error", err)
		}
		if err := c.signal(syscall.SIGKILL); err != nil && !errors.Is(err, ErrNotRunning) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// Also where its process has just ended by itself, or somebody else has killed it: that is not noted yet.
		if c.wait(ctx); ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if r := c.lastRun(); r != nil {
		select {
		case <-r.ended:
			<-r.cleaned
		default:
			return ErrRunning
		}
	}
	st, unlock, err := c.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	if opts != nil && opts.Force && st.kept() {
		if st, err = c.killKept(ctx); err != nil {
			return err
		}
	}
	switch {
	case st.Status == StatusRunning && (st.KeeperPID != 0 || e.ownerAlive(st.Owner)):
		return ErrRunning
	case st.Owner != e.owner.id && e.ownerAlive(st.Owner):
		return fmt.Errorf("%w: the container belongs to another program that is running", ErrInUse)
	}
	e.settleEvents(ctx, st)
	if st.unsettled() {
		e.tellEnd(ctx, st)
	}
	// Removing goes on to its end once begun.
	if err := e.destroy(context.WithoutCancel(ctx), st); err != nil {
		return err
	}
	e.disown(c.id)
	c.mu.Lock()
	c.state = nil // what is on disk counts, and there is nothing
	c.mu.Unlock()
	return nil
}

// killKept ends a detached container that somebody has started again since it was killed. It is locked: nobody can do so
// once more.
func (c *Container) killKept(ctx context.Context) (*containerState, error) {
	if err := c.signal(syscall.SIGKILL); err != nil && !errors.Is(err, ErrNotRunning) {
		return nil, err
	}
	st, err := c.current()
	if err != nil || !st.kept() {
		return st, err
	}
	p, err := openProcess(st.waitFor())
	if err == nil {
		err = p.wait(ctx)
		p.close()
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return nil, err
	}
	return c.current()
}
