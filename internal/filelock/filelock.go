// Package filelock locks open files against other processes and other opens in this one, with flock(2).
//
// The kernel drops a lock when the last descriptor of the open file is closed, also when the process is killed: who
// holds the lock is alive.
package filelock

import (
	"context"
	"time"
)

// poll is the longest pause between two attempts. A blocked flock would not heed a context.
const poll = 10 * time.Millisecond

// retry calls try until it succeeds, fails or the context ends.
func retry(ctx context.Context, try func() (bool, error)) error {
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, poll) {
		ok, err := try()
		if ok || err != nil {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}
