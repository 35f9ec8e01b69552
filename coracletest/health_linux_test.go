package coracletest_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/coracletest"
)

// TestForHealthy: health checks are run for the containers of tests, in the shared engine and in one of the test's own.
func TestForHealthy(t *testing.T) {
	shared := tool(t)
	own, err := coracle.Open(t.Context(), coracle.Config{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { own.Close() })
	makeTool(t, own)
	checked := spec("say", "ready")
	checked.Health = &coracle.HealthSpec{Test: []string{"CMD", "/tool", "cat", "/made"}, Interval: 20 * time.Millisecond, Retries: 2}
	for name, eng := range map[string]*coracle.Engine{"shared": shared, "own": own} {
		t.Run(name, func(t *testing.T) {
			for i := range 3 {
				t.Run("", func(t *testing.T) {
					t.Parallel()
					s := checked
					s.Detached = i == 0
					c := coracletest.RunIn(t, eng, s)
					err := brief(coracletest.ForHealthy()).Wait(t.Context(), c)
					if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "it is unhealthy, the check ended with 1: open /made") {
						t.Errorf("%v", err)
					}
					if err := c.Command("/tool", "write", "/made", "x").Run(t.Context()); err != nil {
						t.Fatal(err)
					}
					if err := within(coracletest.ForHealthy()).Wait(t.Context(), c); err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
	var failed *coracletest.WaitError
	if _, err := coracletest.Start(t, shared, spec("say"), coracletest.ForHealthy()); !errors.Is(err, coracle.ErrInvalid) || !errors.As(err, &failed) {
		t.Errorf("without a health check: %v", err)
	}
}

// TestRestarted: a container with a restart policy is started again while the test runs, waits go on over its ends, and it
// is gone after the test.
func TestRestarted(t *testing.T) {
	tool(t)
	t.Run("run", func(t *testing.T) {
		s := spec("count", "1", "1")
		s.Detached, s.Restart = true, coracle.RestartPolicy{Mode: coracle.RestartAlways}
		coracletest.Run(t, s, within(coracletest.ForLog("line 0", 3)), within(coracletest.WaitFunc(
			func(ctx context.Context, c *coracle.Container) error {
				info, err := c.Inspect(ctx)
				if err == nil && info.RestartCount < 4 {
					err = errors.New("not yet")
				}
				return err
			})))
	})
	if left := containers(t); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
