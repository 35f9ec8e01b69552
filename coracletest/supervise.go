package coracletest

import (
	"context"
	"sync"
	"testing"

	"github.com/coracle-dev/coracle"
)

// supervisors are the engines that supervise at present, for tests whose containers need it.
var supervisors struct {
	mu  sync.Mutex
	all map[*coracle.Engine]*supervisor
}

type supervisor struct {
	users int
	stop  context.CancelFunc
	err   error // to be read when done is closed
	done  chan struct{}
}

// supervise makes the engine supervise until the test is over, if the container needs it.
func supervise(ctx context.Context, t testing.TB, eng *coracle.Engine, c *coracle.Container) error {
	t.Helper()
	info, err := c.Inspect(ctx)
	if err != nil {
		return err
	}
	if info.Health == nil && info.Spec.Restart == (coracle.RestartPolicy{}) {
		return nil
	}
	supervisors.mu.Lock()
	defer supervisors.mu.Unlock()
	s := supervisors.all[eng]
	if s == nil {
		ctx, stop := context.WithCancel(context.Background())
		s = &supervisor{stop: stop, done: make(chan struct{})}
		go func() {
			defer close(s.done)
			s.err = eng.Supervise(ctx)
		}()
		if supervisors.all == nil {
			supervisors.all = make(map[*coracle.Engine]*supervisor)
		}
		supervisors.all[eng] = s
	}
	s.users++
	t.Cleanup(func() {
		supervisors.mu.Lock()
		defer supervisors.mu.Unlock()
		if s.users--; s.users > 0 {
			return
		}
		delete(supervisors.all, eng)
		s.stop()
		if <-s.done; s.err != nil {
			t.Errorf("supervise the containers of tests: %v", s.err)
		}
	})
	return nil
}
