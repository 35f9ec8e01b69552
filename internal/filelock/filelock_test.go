//go:build unix

package filelock_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-dev/coracle/internal/filelock"
)

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	a, b := open(), open()
	if ok, err := filelock.TryLock(a); !ok || err != nil {
		t.Fatalf("first lock: %v, %v", ok, err)
	}
	if ok, err := filelock.TryLock(b); ok || err != nil {
		t.Fatalf("second lock while the first is held: %v, %v", ok, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := filelock.Lock(ctx, b); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("waiting with a deadline: %v", err)
	}
	locked := make(chan error)
	go func() { locked <- filelock.Lock(context.Background(), b) }()
	a.Close()
	if err := <-locked; err != nil {
		t.Fatalf("waiting until the holder closes: %v", err)
	}
}

func TestTryRLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	owner, one, two := open(), open(), open()
	if ok, err := filelock.TryLock(owner); !ok || err != nil {
		t.Fatalf("lock: %v, %v", ok, err)
	}
	if ok, err := filelock.TryRLock(one); ok || err != nil {
		t.Fatalf("shared while it is held: %v, %v", ok, err)
	}
	owner.Close()
	for _, f := range []*os.File{one, two} {
		if ok, err := filelock.TryRLock(f); !ok || err != nil {
			t.Fatalf("shared by two: %v, %v", ok, err)
		}
	}
}
