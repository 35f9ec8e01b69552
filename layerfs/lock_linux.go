package layerfs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/lockorder"
)

// fileLock is an flock. It belongs to the open file, so it excludes goroutines of one process as well as processes,
// and it ends with its holder, however that dies.
type fileLock struct {
	dirFD    int
	name     string
	fd       int
	keep     bool
	closed   bool
	released func()
}

// lockFile takes the lock, polling with LOCK_NB since a blocked flock would ignore ctx. Unless keep is set the file is
// removed on release; whoever opened it in between sees that by its inode and tries again.
func lockFile(ctx context.Context, rank lockorder.Rank, dirFD int, name string, keep bool) (*fileLock, error) {
	var l *fileLock
	err := poll(ctx, func() (_ bool, err error) {
		l, err = tryLockFile(dirFD, name, keep)
		return l != nil, err
	})
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	l.released = lockorder.Taken(rank, name)
	crashpoint.At("lock: taken")
	return l, nil
}

// poll calls try until it succeeds or fails, or the context ends.
func poll(ctx context.Context, try func() (bool, error)) error {
	for wait := 200 * time.Microsecond; ; wait = min(wait*2, 20*time.Millisecond) {
		if ok, err := try(); ok || err != nil {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("held by another: %w", context.Cause(ctx))
		case <-t.C:
		}
	}
}

// tryLockFile returns nil and no error where another holds the lock.
func tryLockFile(dirFD int, name string, keep bool) (*fileLock, error) {
	for {
		fd, err := openatRetry(dirFD, name, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			unix.Close(fd)
			if err == unix.EWOULDBLOCK {
				return nil, nil
			}
			return nil, err
		}
		var mine, now unix.Stat_t
		if err := unix.Fstat(fd, &mine); err != nil {
			unix.Close(fd)
			return nil, err
		}
		err = unix.Fstatat(dirFD, name, &now, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && mine.Ino == now.Ino && mine.Dev == now.Dev {
			return &fileLock{dirFD: dirFD, name: name, fd: fd, keep: keep}, nil
		}
		unix.Close(fd)
	}
}

// release may be called more than once.
func (l *fileLock) release() {
	if l == nil || l.closed {
		return
	}
	l.closed = true
	if l.released != nil {
		l.released()
	}
	if !l.keep {
		_ = unix.Unlinkat(l.dirFD, l.name, 0)
	}
	unix.Close(l.fd)
	crashpoint.At("lock: released")
}

func flock(fd, how int) error {
	for {
		if err := unix.Flock(fd, how); err != unix.EINTR {
			return err
		}
	}
}

func randomName() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
