package coracle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/statefile"
)

// probeGrace is how long a check that has ended, or was killed, may keep its output open to what it has left behind.
const probeGrace = time.Second

// checkHealth checks the health of one start of a container, one check after the other, until ctx is done or that start
// has ended.
func (c *Container) checkHealth(ctx context.Context, st *containerState) {
	check := st.Resolved.Health
	h, err := c.eng.health(st)
	if err != nil {
		c.eng.log.Warn("read the health of a container", "container", c.name, "id", c.id, "error", err)
		h = &Health{Status: HealthStarting}
	}
	skipped := time.Time{}
	for {
		now := time.Now()
		due := h.next(check, st.Started, now)
		if at := skipped.Add(check.Interval); !skipped.IsZero() && at.After(due) {
			due = at
		}
		timer := time.NewTimer(due.Sub(now))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		r, ok := c.probe(ctx, st)
		if ctx.Err() != nil {
			return
		}
		if !ok { // it is paused, or about to end
			skipped = time.Now()
			continue
		}
		before := h.Status
		h.record(check, st.Started, r)
		if err := c.noteHealth(ctx, st.Starts, h, before); errors.Is(err, errOtherRun) || errors.Is(err, fs.ErrNotExist) {
			return
		} else if err != nil && ctx.Err() == nil {
			c.eng.log.Warn("note the health of a container", "container", c.name, "id", c.id, "error", err)
		}
	}
}

// errOtherRun says that the start of a container that something is about has ended.
var errOtherRun = errors.New("that start of the container has ended")

// noteHealth stores the health of a start of the container.
func (c *Container) noteHealth(ctx context.Context, run int, h *Health, before HealthStatus) error {
	st, unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if st.Starts != run || st.Status != StatusRunning {
		return errOtherRun
	}
	// What cannot be written, as on a full disk, holds all the same as long as this supervisor lives.
	err = statefile.Write(c.eng.containerDir(c.id), healthFile, healthRecord{Version: stateVersion, Run: run, Health: *h})
	if h.Status != before {
		c.eng.emitContainer(st, ActionHealthStatus+EventAction(": "+h.Status))
	}
	crashpoint.At("health: noted")
	return err
}

// probe runs the health check once. It returns false if there is nothing to learn from it: the container is paused, ends,
// or ctx is done.
func (c *Container) probe(ctx context.Context, st *containerState) (HealthResult, bool) {
	check := st.Resolved.Health
	limited, cancel := context.WithTimeout(ctx, check.Timeout)
	defer cancel()
	out := &head{most: maxHealthOutput}
	cmd := c.Command(check.Args[0], check.Args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = out, out, probeGrace
	cmd.silent = true // or the journal would hold little else
	// One that is frozen dies only when somebody resumes it, and then nobody can tell that it was.
	var frozen atomic.Bool
	cmd.Cancel = func() error {
		frozen.Store(c.eng.paused(st))
		return cmd.Process.Kill()
	}
	r := HealthResult{Start: time.Now()}
	err := cmd.Start(limited)
	if err == nil {
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case err = <-ended:
		case <-ctx.Done():
			// It is being killed. If that has to wait until somebody resumes the container, nobody waits for it.
			select {
			case <-ended:
			case <-time.After(probeGrace):
			}
			return r, false
		}
	}
	r.End = time.Now()
	late := limited.Err() != nil && err != nil && !errors.Is(err, exec.ErrWaitDelay)
	var exit *ExitError
	switch {
	case ctx.Err() != nil, errors.Is(err, ErrNotRunning), errors.Is(err, ErrPaused), errors.Is(err, ErrClosed):
		return r, false
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // it has left something behind
		r.Output = out.String()
	case frozen.Load() || c.eng.paused(st) || !alive(st):
		return r, false // it would have failed because of that
	case late:
		r.ExitCode = -1
		r.Output = cutOutput(fmt.Sprintf("Health check exceeded timeout (%v): %s", check.Timeout, out))
	case errors.As(err, &exit):
		r.Output, r.ExitCode = out.String(), exit.Code
		if exit.Signal != 0 {
			r.ExitCode = 128 + int(exit.Signal)
		}
	default:
		var op *OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		r.ExitCode, r.Output = -1, cutOutput(err.Error())
	}
	return r, true
}

// head keeps the first bytes written to it.
type head struct {
	mu   sync.Mutex
	buf  []byte
	most int
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf = append(h.buf, p[:min(len(p), h.most-len(h.buf))]...)
	return len(p), nil
}

// String returns what was kept. What is no UTF-8 would not survive its way through a file of JSON.
func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return cutOutput(string(h.buf))
}

// cutOutput makes a text fit HealthResult.Output.
func cutOutput(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxHealthOutput)], "?")
}
