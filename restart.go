package coracle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// A RestartPolicy says when a detached container is started again. [Engine.Supervise] does it, in whichever program that
// runs. The zero policy is "no".
//
// What somebody has ended by Stop, by Kill, by a forced Remove, or by Signal with SIGKILL or the container's stop signal is
// not started again, also if that came while it was waiting to be; a Start or Restart ends that.
//
// The first restart comes 100 ms after the end, every further one after twice the time of the last, up to a minute. A
// container that has run for ten seconds begins with 100 ms again.
type RestartPolicy struct {
	// Mode is one of the modes below. Empty means RestartNo.
	Mode RestartMode `json:",omitempty"`
	// MaxRetries bounds the restarts with RestartOnFailure since the last Start by a program. Zero means no bound.
	MaxRetries int `json:",omitempty"`
}

// RestartMode is the kind of a RestartPolicy. The names are Docker's.
type RestartMode string

// The restart policies. All but RestartNo need Detached, and neither AutoRemove nor Customize.
const (
	// RestartNo never starts the container again.
	RestartNo RestartMode = "no"
	// RestartOnFailure starts it again if it has ended with another exit code than 0, by a signal, or in a way that nobody
	// knows. After a boot of the host it does so with what was running at its end.
	RestartOnFailure RestartMode = "on-failure"
	// RestartAlways starts it again however it has ended, and after a boot even if somebody had stopped it before.
	RestartAlways RestartMode = "always"
	// RestartUnlessStopped is RestartAlways, and what was stopped stays so after a boot.
	RestartUnlessStopped RestartMode = "unless-stopped"
)

func (p RestartPolicy) validate(s *ContainerSpec) error {
	switch p.Mode {
	case "", RestartNo, RestartOnFailure, RestartAlways, RestartUnlessStopped:
	default:
		return fmt.Errorf("the Mode %q is unknown", p.Mode)
	}
	switch {
	case p.MaxRetries < 0:
		return errors.New("MaxRetries is negative")
	case p.MaxRetries != 0 && p.Mode != RestartOnFailure:
		return errors.New("only on-failure has MaxRetries")
	case !p.restarts():
		return nil
	case !s.Detached:
		return errors.New("only a container that is Detached can be started again by whoever supervises it")
	case s.AutoRemove:
		return errors.New("with AutoRemove there is nothing to start again")
	case s.Customize != nil:
		return errors.New("others have to start it again, and Customize is known to this program only")
	}
	return nil
}

// restarts reports whether the policy ever restarts anything.
func (p RestartPolicy) restarts() bool { return p.Mode != "" && p.Mode != RestartNo }

// Docker's back-off.
const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = time.Minute
	longRun      = 10 * time.Second
)

// ending is what the decision depends on whether a container that has ended is started again.
type ending struct {
	failed   bool          // its exit code is not 0, or unknown
	restarts int           // since somebody has started it
	stopped  bool          // somebody has ended it
	booted   bool          // the host was booted since it was started, and since it was stopped
	ran      time.Duration // how long
	backoff  time.Duration // before it was restarted the last time
}

// decide says whether a container is started again, and how long after its end. It is Docker's decision with one exception:
// with on-failure Docker starts after a boot also what somebody had stopped, if it had not ended with 0.
func (p RestartPolicy) decide(in ending) (restart bool, delay time.Duration) {
	switch {
	case in.stopped && !(in.booted && p.Mode == RestartAlways):
		return false, 0
	case p.Mode == RestartAlways, p.Mode == RestartUnlessStopped:
	case p.Mode == RestartOnFailure && in.failed && (p.MaxRetries == 0 || in.restarts < p.MaxRetries):
	default:
		return false, 0
	}
	if in.booted {
		return true, 0
	}
	return true, nextBackoff(in.backoff, in.ran)
}

// nextBackoff is the pause before the next restart after one of last, and a run of that length.
func nextBackoff(last, ran time.Duration) time.Duration {
	if last <= 0 || ran >= longRun {
		return firstBackoff
	}
	return min(2*last, lastBackoff)
}

// stopMark says that somebody has ended a start of a container: it is no mark of the next one.
type stopMark struct {
	Run  int    // containerState.Starts
	Boot string // when the mark was made
}

// restart says whether the container, which has ended, is to be started again, and when.
func (st *containerState) restart() (wanted bool, delay time.Duration, booted bool) {
	if !st.Spec.Restart.restarts() || st.Status != StatusExited || st.Started.IsZero() || st.Customized {
		return false, 0, false
	}
	in := ending{
		failed:   st.Exit == nil || st.Exit.Unknown || !st.Exit.Success(),
		restarts: st.Restarts, backoff: st.Backoff,
		stopped: st.stopped != nil && st.stopped.Run == st.Starts,
		booted:  st.BootID != "" && st.BootID != bootID(),
	}
	in.booted = in.booted && !(in.stopped && st.stopped.Boot == bootID())
	if st.Finished.After(st.Started) {
		in.ran = st.Finished.Sub(st.Started)
	}
	wanted, delay = st.Spec.Restart.decide(in)
	return wanted, delay, in.booted
}

// noteStop notes that somebody ends the container: it is not restarted. A Stop goes on if that cannot be noted, as on a
// full disk, and returns the error after it.
func (c *Container) noteStop(ctx context.Context) error {
	st, err := c.current()
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.Spec.Restart.restarts() {
		return nil
	}
	if err != nil {
		return err
	}
	st, unlock, err := c.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		defer unlock()
		mark := stopMark{Run: st.Starts, Boot: bootID()}
		if st.Status == StatusCreated || st.stopped != nil && *st.stopped == mark {
			return nil
		}
		err = c.eng.change(st.ID, func(ch *containerChanges) { ch.Stopped = &mark })
	}
	if err != nil {
		return fmt.Errorf("note that it is not to be restarted: %w", err)
	}
	return nil
}

// errNoRestart says that a restart is not wanted any more: somebody else has started, stopped or removed the container.
var errNoRestart = errors.New("it is not to be restarted")

// restartRun starts the container again after its run has ended, if that is still wanted.
func (c *Container) restartRun(ctx context.Context, run int) error {
	return c.startIf(ctx, func(st *containerState) error {
		wanted, delay, booted := st.restart()
		switch {
		case !wanted || st.Starts != run:
			return errNoRestart
		case booted:
			st.Restarts, st.Backoff = 0, 0
		default:
			st.Restarts, st.Backoff = st.Restarts+1, delay
		}
		return nil
	})
}
