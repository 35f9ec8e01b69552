package coracle

import (
	"context"
	"encoding/binary"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// stateWatch tells of what happens to containers' directories, by one inotify instance for all waiters of an engine. The
// zero value is ready; without waiters it holds nothing.
type stateWatch struct {
	mu   sync.Mutex
	file *os.File
	byID map[string]*watched
	byWD map[int32]*watched
}

// watched is one container that somebody waits for.
type watched struct {
	id      string
	wd      int32
	waiters int
	next    chan struct{} // closed at the next event

	// The process whose end is waited for, for all of them.
	pid    int
	start  uint64
	ended  chan struct{}
	ctx    context.Context
	cancel context.CancelFunc
}

// watchMask is how what a container's owner or keeper writes shows: a rename upon state.json, a write to the exit record,
// the removal of the directory, which begins with a rename.
const watchMask = unix.IN_MOVED_TO | unix.IN_MODIFY | unix.IN_MOVE_SELF | unix.IN_DELETE_SELF | unix.IN_ONLYDIR

// join begins to watch a container's directory.
func (w *stateWatch) join(dir, id string) (*watched, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d := w.byID[id]; d != nil {
		d.waiters++
		return d, nil
	}
	fresh := w.file == nil
	if fresh {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			return nil, os.NewSyscallError("inotify_init1", err)
		}
		w.file = os.NewFile(uintptr(fd), "inotify")
		w.byID, w.byWD = make(map[string]*watched), make(map[int32]*watched)
	}
	var wd int
	err := w.control(func(fd int) (err error) {
		wd, err = unix.InotifyAddWatch(fd, dir, watchMask)
		return os.NewSyscallError("inotify_add_watch", err)
	})
	if err != nil {
		if len(w.byID) == 0 {
			w.file.Close()
			w.file = nil
		}
		return nil, err
	}
	if fresh {
		go w.read(w.file)
	}
	d := &watched{id: id, wd: int32(wd), waiters: 1, next: make(chan struct{})}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	w.byID[id], w.byWD[d.wd] = d, d
	return d, nil
}

func (w *stateWatch) control(f func(fd int) error) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// leave ends what one join began.
func (w *stateWatch) leave(d *watched) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d.waiters--; d.waiters > 0 {
		return
	}
	d.cancel()
	delete(w.byID, d.id)
	delete(w.byWD, d.wd)
	// It is no watch any more if the directory is gone.
	_ = w.control(func(fd int) error { _, err := unix.InotifyRmWatch(fd, uint32(d.wd)); return err })
	if len(w.byID) == 0 {
		w.file.Close()
		w.file = nil
	}
}

// changed returns what is closed at the next event.
func (w *stateWatch) changed(d *watched) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return d.next
}

// process returns what is closed when the process of the state has ended.
func (w *stateWatch) process(d *watched, st *containerState) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d.ended != nil && d.pid == st.PID && d.start == st.StartTime {
		return d.ended
	}
	ended := make(chan struct{})
	d.pid, d.start, d.ended = st.PID, st.StartTime, ended
	p, err := openProcess(st.PID, st.BootID, st.StartTime)
	if err != nil {
		close(ended)
		return ended
	}
	go func() {
		defer close(ended)
		defer p.close()
		for p.wait(d.ctx) != nil && d.ctx.Err() == nil && !p.ended(0) {
			time.Sleep(recheckBlind) // the poller does not take it
		}
	}()
	return ended
}

// read hands events on until the file is closed.
func (w *stateWatch) read(file *os.File) {
	buf := make([]byte, 16<<10)
	for {
		n, err := file.Read(buf)
		if err != nil {
			return
		}
		w.mu.Lock()
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			// struct inotify_event: wd, mask, cookie, len, name.
			wd, mask, length := int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[12:])
			b = b[min(len(b), unix.SizeofInotifyEvent+int(length)):]
			for _, d := range w.byWD {
				if d.wd == wd || mask&unix.IN_Q_OVERFLOW != 0 {
					close(d.next)
					d.next = make(chan struct{})
				}
			}
		}
		w.mu.Unlock()
	}
}
