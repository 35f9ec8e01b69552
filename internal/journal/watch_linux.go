package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// openFile opens a generation to read.
func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(fmt.Errorf("%s: %w: no regular file", path, fs.ErrInvalid), err)
	}
	return f, nil
}

// watch tells of changes in a directory.
type watch struct {
	file *os.File
	buf  [4096]byte
}

// newWatch fails where the user has as many watches as it may have.
func newWatch(dir string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &watch{file: os.NewFile(uintptr(fd), "inotify")}, nil
}

// wait returns when something has changed, after a time, or when the context ends, and says whether it has waited.
func (w *watch) wait(ctx context.Context, most time.Duration) bool {
	if w.file.SetReadDeadline(time.Now().Add(most)) != nil {
		return false
	}
	stop := context.AfterFunc(ctx, func() { w.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	// What has changed does not matter, and how often neither.
	_, err := w.file.Read(w.buf[:])
	return err == nil || errors.Is(err, os.ErrDeadlineExceeded)
}

func (w *watch) close() { w.file.Close() }
