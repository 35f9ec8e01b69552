package coracletest_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/coracletest"
)

// TestForHealthy: tests whose containers have health checks, in parallel.
func TestForHealthy(t *testing.T) {
	eng := tool(t)
	for i := range 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			s := spec("sleep", "600000")
			s.Health = &coracle.HealthSpec{Test: []string{"CMD", "/tool", "true"}, Interval: 10 * time.Millisecond}
			c := coracletest.RunIn(t, eng, s, within(coracletest.ForHealthy()))
			if info, err := c.Inspect(t.Context()); err != nil || info.Health.Status != coracle.HealthHealthy {
				t.Errorf("it is %+v, %v", info, err)
			}
		})
	}
}
