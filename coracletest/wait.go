package coracletest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/coracle-dev/coracle"
)

// A Wait waits until a container is ready in some sense.
//
// The waits of this package return a [*WaitError] when it is not: when ctx is done, when their time is up, which is
// [DefaultTimeout] but for [WithTimeout], and at once when the container ends (unless it has a restart policy) or cannot ever
// be ready.
type Wait interface {
	Wait(ctx context.Context, c *coracle.Container) error
}

// DefaultTimeout is how long a wait may take that WithTimeout gives no other time.
const DefaultTimeout = 60 * time.Second

// Pauses between two looks, where the kernel does not tell.
const (
	firstPause   = time.Millisecond
	longestPause = 100 * time.Millisecond
)

// A WaitFunc is a function that is called, with pauses of 1 to 100 ms, until it returns nil. It should heed ctx.
type WaitFunc func(ctx context.Context, c *coracle.Container) error

// Wait calls the function until it returns nil.
func (f WaitFunc) Wait(ctx context.Context, c *coracle.Container) error {
	return poll(ctx, c, "a function", func(ctx context.Context) error { return f(ctx, c) })
}

// A WaitError says that a container did not become ready, and shows the end of its log.
type WaitError struct {
	// What was waited for: "port 5432/tcp".
	What string
	// Container is the container's name.
	Container string
	// After is how long it was waited.
	After time.Duration
	// Err is why the waiting has ended: a *coracle.ExitError if the container has (even with code 0), the error of the
	// context if the time was up, or what makes going on useless.
	Err error
	// Last is how the last look failed, or nil.
	Last error
	// Log are the last lines of the container's log, at most 20, each as "stdout | text". What is not printable in them is
	// escaped.
	Log []string
}

// Error names what was waited for, and shows the log.
func (e *WaitError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "container %q: waited %v for %s: %v", e.Container, e.After.Round(time.Millisecond), e.What, e.Err)
	if e.Last != nil {
		fmt.Fprintf(&b, "; last: %s", printable(e.Last.Error()))
	}
	b.WriteString(logText(e.Log))
	return b.String()
}

// Unwrap returns Err and Last.
func (e *WaitError) Unwrap() []error {
	if e.Last == nil {
		return []error{e.Err}
	}
	return []error{e.Err, e.Last}
}

// All waits for all of the waits, one after the other.
func All(waits ...Wait) Wait { return allOf(waits) }

type allOf []Wait

func (a allOf) Wait(ctx context.Context, c *coracle.Container) error {
	for _, w := range a {
		if err := w.Wait(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// Any waits at the same time for each of the waits, until the first of them succeeds. If none does, the error has all of
// theirs. Of no waits at all none succeeds: that is coracle.ErrInvalid.
func Any(waits ...Wait) Wait { return anyOf(waits) }

type anyOf []Wait

func (a anyOf) Wait(ctx context.Context, c *coracle.Container) error {
	if len(a) == 0 {
		return fmt.Errorf("%w: any of no waits", coracle.ErrInvalid)
	}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	errs := make(chan error, len(a))
	for _, w := range a {
		all.Go(func() { errs <- w.Wait(ctx, c) })
	}
	var failed []error
	for range a {
		err := <-errs
		if err == nil {
			return nil
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// WithTimeout gives a wait, and all within it, that time instead of [DefaultTimeout], be it more or less. Of several
// around each other the shortest counts.
func WithTimeout(d time.Duration, w Wait) Wait { return timed{d, w} }

type timed struct {
	limit time.Duration
	wait  Wait
}

// timedKey is in the context of what WithTimeout bounds.
type timedKey struct{}

func (w timed) Wait(ctx context.Context, c *coracle.Container) error {
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, timedKey{}, true), w.limit)
	defer cancel()
	return w.wait.Wait(ctx, c)
}

// bounded gives a wait its time.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if ctx.Value(timedKey{}) != nil {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, DefaultTimeout)
}

// errUseless wraps an error after which there is nothing to wait for.
type errUseless struct{ error }

func (e errUseless) Unwrap() error { return e.error }

// useless says whether an error will be the same at the next look.
func useless(err error) bool {
	var u errUseless
	return errors.As(err, &u) || errors.Is(err, errors.ErrUnsupported) || errors.Is(err, coracle.ErrInvalid) || errors.Is(err, coracle.ErrClosed)
}

// await calls do, whose context is done when the time is up and when the container ends.
func await(ctx context.Context, c *coracle.Container, what string, do func(ctx context.Context) error) error {
	began := time.Now()
	limited, cancel := bounded(ctx)
	defer cancel()
	running, end := context.WithCancelCause(limited)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if restarts(running, c) {
			return // its end is not the last
		}
		exit, err := c.Wait(running)
		switch {
		case running.Err() != nil:
		case err != nil:
			end(err)
		default:
			end(&coracle.ExitError{ExitStatus: exit, Container: c.Name()})
		}
	}()
	err := do(running)
	cause := context.Cause(running)
	end(nil)
	<-watched
	if err == nil {
		return nil
	}
	return newWaitError(ctx, c, what, time.Since(began), cause, err)
}

// restarts says whether the container has a restart policy.
func restarts(ctx context.Context, c *coracle.Container) bool {
	info, err := c.Inspect(ctx)
	return err == nil && info.Spec.Restart.Mode != "" && info.Spec.Restart.Mode != coracle.RestartNo
}

// newWaitError makes the error of a wait that last failed with err, for a cause that may be nil.
func newWaitError(ctx context.Context, c *coracle.Container, what string, after time.Duration, cause, err error) error {
	w := &WaitError{What: what, Container: c.Name(), After: after, Err: cause, Last: err}
	if cause == nil {
		w.Err, w.Last = err, nil
	}
	if w.Last != nil && errors.Is(w.Last, w.Err) {
		w.Last = nil
	}
	// What is said of the log is worth some time also when there is none left.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	w.Log = lastLines(ctx, c, waitLines)
	return w
}

// poll calls look, with pauses, until it succeeds or there is no sense in going on.
func poll(ctx context.Context, c *coracle.Container, what string, look func(ctx context.Context) error) error {
	return await(ctx, c, what, func(ctx context.Context) error {
		var last error
		for pause := firstPause; ; pause = min(2*pause, longestPause) {
			err := look(ctx)
			if err == nil || useless(err) {
				return err
			}
			// What failed because the time is up says less than what failed before.
			if last == nil || ctx.Err() == nil {
				last = err
			}
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return last
			}
		}
	})
}
