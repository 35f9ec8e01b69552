//go:build unix

package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Lock takes the exclusive lock of the open file, waiting for it as long as the context allows.
func Lock(ctx context.Context, f *os.File) error {
	return retry(ctx, func() (bool, error) { return TryLock(f) })
}

// TryLock takes the exclusive lock of the open file, or returns false if somebody else has it.
func TryLock(f *os.File) (bool, error) { return try(f, unix.LOCK_EX) }

// RLock takes the shared lock of the open file, waiting for it as long as the context allows.
func RLock(ctx context.Context, f *os.File) error {
	return retry(ctx, func() (bool, error) { return TryRLock(f) })
}

// TryRLock takes the shared lock of the open file, or returns false if somebody has the exclusive one.
func TryRLock(f *os.File) (bool, error) { return try(f, unix.LOCK_SH) }

// Release unlocks a file and closes it. Closing it alone leaves the lock to a process that was just forked and has not
// executed its program yet.
func Release(f *os.File) error {
	_, err := try(f, unix.LOCK_UN)
	return errors.Join(err, f.Close())
}

func try(f *os.File, how int) (bool, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var lockErr error
	err = raw.Control(func(fd uintptr) {
		for {
			if lockErr = unix.Flock(int(fd), how|unix.LOCK_NB); lockErr != unix.EINTR {
				return
			}
		}
	})
	if err = errors.Join(err, lockErr); errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return true, nil
}
