package coracletest

import (
	"context"
	"errors"
	"testing"

	"github.com/coracle-dev/coracle"
)

// supervise does for a test's container what its health check and its restart policy ask for, until the test is over. Of all
// tests that use a root one does it at a time.
func supervise(t testing.TB, eng *coracle.Engine, c *coracle.Container) error {
	info, err := c.Inspect(t.Context())
	if err != nil {
		return err
	}
	if mode := info.Spec.Restart.Mode; info.Health == nil && (mode == "" || mode == coracle.RestartNo) {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- eng.Supervise(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, coracle.ErrClosed) {
			t.Errorf("supervise the container of the test: %v", err)
		}
	})
	return nil
}
