package logfile

import (
	"context"
	"os"
	"time"
)

const (
	// Where the kernel tells of changes, one looks by oneself as well, for filesystems that do not tell.
	watchedPause = time.Second
	// Where it does not, one looks at once after a change, and less and less often.
	minPause, maxPause = 2 * time.Millisecond, 64 * time.Millisecond
)

// watch is what a reader that waits holds.
type watch struct {
	changes *subscription // nil where the kernel does not tell
	pause   time.Duration
	timer   *time.Timer
	size    int64
}

func (w *watch) close() {
	if w.changes != nil {
		w.changes.close()
	}
	w.timer.Stop()
}

// Wait waits until there may be more to read, ctx is done or ended is closed. It costs nothing while nothing is written
// where the kernel tells of changes (inotify, of which a process has one instance for all readers), and a look at the file
// every 64 ms otherwise. Whoever sees ended closed calls Next once more until it returns io.EOF.
func (r *Reader) Wait(ctx context.Context, ended <-chan struct{}) error {
	if r.watch == nil {
		r.watch = &watch{pause: minPause, timer: time.NewTimer(time.Hour)}
		if dir, err := r.dir.Open("."); err == nil {
			r.watch.changes = subscribe(dir)
			dir.Close()
		}
		return ctx.Err() // what was written before the watch came gives no sign
	}
	w := r.watch
	var changed <-chan struct{}
	if w.changes != nil {
		changed, w.pause = w.changes.C, watchedPause
	} else if r.cur != nil && r.cur.size != w.size {
		w.size, w.pause = r.cur.size, minPause
	}
	w.timer.Reset(w.pause)
	w.pause = min(2*w.pause, maxPause)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-ended:
	case <-changed:
	case <-w.timer.C:
	}
	return nil
}

// subscription tells of changes in a directory.
type subscription struct {
	C    chan struct{} // has room for one
	stop func()
}

func (s *subscription) close() { s.stop() }

// signal wakes the subscriber, if it is not awake anyway.
func (s *subscription) signal() {
	select {
	case s.C <- struct{}{}:
	default:
	}
}

// subscribe returns nil where the kernel cannot tell, or has no more to give.
func subscribe(dir *os.File) *subscription {
	s := &subscription{C: make(chan struct{}, 1)}
	if s.stop = notify(dir, s); s.stop == nil {
		return nil
	}
	return s
}
