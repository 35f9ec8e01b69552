package coracle

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/filelock"
	"github.com/coracle-dev/coracle/internal/lockorder"
)

// Supervise does what a daemon would do for the containers of the root, whichever program has started them, until ctx is
// done: it runs their health checks, starts them again as their restart policies say, after a boot of the host too, and
// notes their ends. Then it returns nil and leaves the containers as they are.
//
// Any number of programs may call it; one at a time supervises, and the others wait. If that one ends, however it does,
// another takes over within a second, and goes on with counts and pauses where it has stopped. Nothing is started twice.
//
// What goes wrong with a single container is logged and does not end it: a start that fails is tried again with the same
// pauses as after an end, and counts as a restart. The error is ErrClosed if the engine is closed, or that of the lock file.
func (e *Engine) Supervise(ctx context.Context) error {
	err := e.supervise(ctx)
	if err == nil || ctx.Err() != nil && !errors.Is(err, ErrClosed) {
		return nil
	}
	return &OpError{Op: "supervise", Kind: "engine", Name: e.root, Err: err}
}

const (
	// takeoverPoll is how often a program that waits looks whether the one that supervises is gone.
	takeoverPoll = 400 * time.Millisecond
	// superviseAnyway is how often all containers are looked at, for what no event tells of. Events tell of all, unless
	// the disk is full.
	superviseAnyway = 30 * time.Second
	// startsAtOnce bounds how many containers a supervisor starts at the same time.
	startsAtOnce = 8
	// superviseAgain is the pause after an error that has no end of its own.
	superviseAgain = time.Second
)

func (e *Engine) supervise(ctx context.Context) error {
	ctx, done, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	lock, err := os.OpenFile(filepath.Join(e.root, "supervisor.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	for {
		locked, err := filelock.TryLock(lock)
		if err != nil {
			return err
		}
		if locked {
			break
		}
		if !sleep(ctx, takeoverPoll) {
			return context.Cause(ctx)
		}
	}
	defer lockorder.Taken(lockorder.Supervisor, "supervisor.lock")()
	crashpoint.At("supervise: begins")
	s := &supervisor{eng: e, ctx: ctx, wards: make(map[string]*ward), starts: make(chan struct{}, startsAtOnce)}
	s.run()
	s.wg.Wait()
	return context.Cause(ctx)
}

// sleep returns false if the context ends before the time has passed.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// supervisor is the engine that supervises a root. For each container that runs, or is to be started again, it has a ward.
type supervisor struct {
	eng    *Engine
	ctx    context.Context
	starts chan struct{} // a place for each start under way
	wg     sync.WaitGroup

	mu    sync.Mutex
	wards map[string]*ward
}

// ward is a container that is looked after, by a goroutine of its own.
type ward struct {
	c     *Container
	nudge chan struct{} // there may be something new

	again bool // since the last look; under supervisor.mu

	// Starts that have failed since the end of the run.
	run, failures int
	backoff       time.Duration
	failedAt      time.Time
	resting       bool // there is nothing to do, but the above is to be remembered; under supervisor.mu
}

// run looks after containers until ctx is done.
func (s *supervisor) run() {
	// What happens after this and before the first look is seen twice.
	after, err := s.eng.events.journal.End()
	if err != nil {
		s.eng.log.Warn("follow the events of what is supervised", "error", err)
	}
	s.wg.Go(func() { s.follow(after.String()) })
	for {
		if ids, err := s.eng.containerIDs(); err == nil {
			for _, id := range ids {
				s.wake(id)
			}
			s.forget(ids)
		} else {
			s.eng.log.Warn("list the containers to supervise", "error", err)
		}
		if !sleep(s.ctx, superviseAnyway) {
			return
		}
	}
}

// follow wakes those that events tell of.
func (s *supervisor) follow(after string) {
	for s.ctx.Err() == nil {
		opts := &EventOptions{Follow: true, After: after, Filter: EventFilter{
			Types: []EventType{EventContainer}, Actions: []EventAction{ActionStart, ActionDie, ActionDestroy},
		}}
		for ev, err := range s.eng.Events(s.ctx, opts) {
			var gap *EventGapError
			switch {
			case errors.As(err, &gap):
				ids, _ := s.eng.containerIDs()
				for _, id := range ids {
					s.wake(id)
				}
			case err != nil && s.ctx.Err() == nil:
				s.eng.log.Warn("follow the events of what is supervised", "error", err)
			case err == nil:
				after = ev.Cursor
				s.wake(ev.ID)
			}
		}
		sleep(s.ctx, superviseAgain)
	}
}

// wake makes sure that somebody has another look at a container.
func (s *supervisor) wake(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.wards[id]
	if w != nil && !w.resting {
		w.again = true
		select {
		case w.nudge <- struct{}{}:
		default:
		}
		return
	}
	if s.ctx.Err() != nil {
		return
	}
	c, err := s.eng.handle(id)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.eng.log.Debug("a container that cannot be read is not supervised", "id", id, "error", err)
		}
		return
	}
	if w == nil {
		w = &ward{nudge: make(chan struct{}, 1)}
		s.wards[id] = w
	}
	w.c, w.resting = c, false
	s.wg.Go(func() { s.tend(w) })
}

// forget drops what is remembered of containers that are gone.
func (s *supervisor) forget(ids []string) {
	exists := make(map[string]bool, len(ids))
	for _, id := range ids {
		exists[id] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, w := range s.wards {
		if w.resting && !exists[id] {
			delete(s.wards, id)
		}
	}
}

// tend looks after a container as long as there is something to do.
func (s *supervisor) tend(w *ward) {
	for {
		s.mu.Lock()
		w.again = false
		s.mu.Unlock()
		more := s.look(w)
		s.mu.Lock()
		if s.ctx.Err() != nil || !more && !w.again {
			if w.failures > 0 {
				w.resting = true
			} else {
				delete(s.wards, w.c.id)
			}
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
	}
}

// look does what is to be done about a container at present, and returns whether to look again.
func (s *supervisor) look(w *ward) (more bool) {
	e, c := s.eng, w.c
	warn := func(what string, err error) {
		if s.ctx.Err() == nil {
			e.log.Warn(what, "container", c.Name(), "id", c.id, "error", err)
		}
	}
	st, err := c.present()
	if errors.Is(err, fs.ErrNotExist) {
		w.failures = 0
		return false
	}
	if err != nil {
		warn("look at a container that is supervised", err)
		return false // the next round will
	}
	if w.run != st.Starts {
		w.run, w.failures, w.backoff = st.Starts, 0, 0
	}
	switch {
	case st.Status == StatusRunning && st.KeeperPID == 0 && !e.ownerAlive(st.Owner):
		return false // it has ended with its program: the next sweep takes it
	case st.Status == StatusRunning:
		if st.KeeperPID != 0 && e.startUntold(st.ID) {
			if err := c.settle(s.ctx); err != nil {
				warn("tell the start of a container", err)
			}
		}
		if err := s.accompany(w, st); err != nil {
			warn("wait for a container", err)
			return sleep(s.ctx, superviseAgain)
		}
		return true
	case st.unsettled():
		if err := c.settle(s.ctx); err != nil {
			warn("note the end of a container", err)
			return sleep(s.ctx, superviseAgain)
		}
		return true
	}
	wanted, delay, _ := st.restart()
	if p := st.Spec.Restart; !wanted || p.Mode == RestartOnFailure && p.MaxRetries > 0 && st.Restarts+w.failures >= p.MaxRetries {
		return false
	}
	due := st.Finished.Add(delay)
	if w.failures > 0 {
		due = w.failedAt.Add(w.backoff)
	}
	// The clock may have been set back.
	if pause := min(time.Until(due), max(delay, w.backoff)); pause > 0 {
		timer := time.NewTimer(pause)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-w.nudge:
			return true
		case <-s.ctx.Done():
			return false
		}
	}
	select {
	case s.starts <- struct{}{}:
	case <-s.ctx.Done():
		return false
	}
	crashpoint.At("supervise: restarts")
	err = c.restartRun(s.ctx, st.Starts)
	<-s.starts
	switch {
	case err == nil, errors.Is(err, errNoRestart), errors.Is(err, ErrRunning), errors.Is(err, fs.ErrNotExist) && gone(c):
		return true
	case errors.Is(err, ErrInUse):
		return sleep(s.ctx, superviseAgain)
	}
	if w.failures == 0 {
		w.backoff = st.Backoff
	}
	w.failures, w.failedAt, w.backoff = w.failures+1, time.Now(), nextBackoff(w.backoff, 0)
	warn("restart a container", err)
	return true
}

func gone(c *Container) bool {
	_, err := os.Lstat(c.eng.containerDir(c.id))
	return errors.Is(err, fs.ErrNotExist)
}

// accompany checks the health of a container that runs until that run is over.
func (s *supervisor) accompany(w *ward, st *containerState) error {
	ctx, cancel := context.WithCancel(s.ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	if st.Resolved.Health != nil {
		wg.Go(func() { w.c.checkHealth(ctx, st) })
	}
	ended := make(chan error, 1)
	wg.Go(func() {
		_, err := w.c.wait(ctx)
		ended <- err
	})
	for {
		select {
		case err := <-ended:
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotRunning) {
				return nil
			}
			return err
		case <-w.nudge:
			// Its end may have been noted by somebody else, and perhaps it runs again already.
			if now, err := w.c.present(); err != nil || now.Starts != st.Starts || now.Status != StatusRunning {
				return nil
			}
		case <-s.ctx.Done():
			return nil
		}
	}
}
