package logfile

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A user may have 128 inotify instances by default, and a test run may follow more logs than that: all readers of a process
// share one. It exists while anybody waits.
var shared struct {
	sync.Mutex
	*notifier
}

type notifier struct {
	fd   int
	f    *os.File // the same descriptor; Close ends the goroutine
	done chan struct{}
	subs map[int32][]*subscription // by watch descriptor
}

const notifyMask = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_ONLYDIR

// notify signals s when something changes in the directory, until the returned function is called. It returns nil if
// there are no instances or watches left, or no procfs.
func notify(dir *os.File, s *subscription) (stop func()) {
	shared.Lock()
	defer shared.Unlock()
	n := shared.notifier
	if n == nil {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			return nil
		}
		n = &notifier{fd: fd, f: os.NewFile(uintptr(fd), "inotify"), done: make(chan struct{}), subs: make(map[int32][]*subscription)}
	}
	// By descriptor: the directory may have another name by now. One directory has one watch, however many subscribe.
	wd, err := unix.InotifyAddWatch(n.fd, fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), notifyMask)
	if err != nil {
		if shared.notifier == nil {
			n.f.Close()
		}
		return nil
	}
	if shared.notifier == nil {
		shared.notifier = n
		go n.run()
	}
	n.subs[int32(wd)] = append(n.subs[int32(wd)], s)
	return func() { n.unsubscribe(int32(wd), s) }
}

func (n *notifier) unsubscribe(wd int32, s *subscription) {
	shared.Lock()
	left := n.subs[wd][:0:0]
	for _, other := range n.subs[wd] {
		if other != s {
			left = append(left, other)
		}
	}
	if n.subs[wd] = left; len(left) == 0 {
		delete(n.subs, wd)
		unix.InotifyRmWatch(n.fd, uint32(wd)) // fails if the directory is gone
	}
	last := len(n.subs) == 0
	if last {
		shared.notifier = nil
	}
	shared.Unlock()
	if last {
		n.f.Close()
		<-n.done
	}
}

// run signals subscribers until the descriptor is closed.
func (n *notifier) run() {
	defer close(n.done)
	buf := make([]byte, 16<<10)
	for {
		got, err := n.f.Read(buf)
		if err != nil {
			return
		}
		shared.Lock()
		for b := buf[:got]; len(b) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(b))
			mask, length := binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[12:])
			if mask&unix.IN_Q_OVERFLOW != 0 {
				for _, list := range n.subs {
					for _, s := range list {
						s.signal()
					}
				}
			}
			for _, s := range n.subs[wd] {
				s.signal()
			}
			b = b[min(len(b), unix.SizeofInotifyEvent+int(length)):]
		}
		shared.Unlock()
	}
}
