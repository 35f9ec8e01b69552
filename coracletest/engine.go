package coracletest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/filelock"
)

// RequireEnv is the variable that, set to "all", makes tests fail where they would skip because containers cannot run: set
// it in CI, where a test that silently does not run is worth nothing.
const RequireEnv = "CORACLE_TEST_REQUIRE"

// RootEnv is the variable that names the root of the tests' engine. Unset or empty means coracle/test in
// [os.UserCacheDir].
const RootEnv = "CORACLE_TEST_ROOT"

// Available says why containers cannot run here, or returns nil. The error matches errors.ErrUnsupported on another system
// than Linux, and fs.ErrPermission without root.
func Available() error {
	if runtime.GOOS != "linux" {
		return &coracle.UnsupportedError{Feature: "running containers on " + runtime.GOOS, Fix: "use Linux, or a virtual machine with it"}
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: containers need root at present: run the test as root, with go test -exec sudo for example", fs.ErrPermission)
	}
	return nil
}

// require skips the test where containers cannot run for the reason err, or fails it where they have to.
func require(t testing.TB, err error) {
	t.Helper()
	switch {
	case err == nil:
	case os.Getenv(RequireEnv) == "all":
		t.Fatalf("%s=all, but containers cannot run: %v", RequireEnv, err)
	default:
		t.Skipf("containers cannot run: %v", err)
	}
}

// shared is the engine of the test binary while a test uses it.
var shared struct {
	mu    sync.Mutex
	eng   *coracle.Engine
	mark  *os.File
	users int
}

// Engine returns the engine that all tests of the test binary share. It is open until the last of the tests that asked for
// it is over.
//
// Its root, see [RootEnv], is one for all test binaries of the user and stays, so that an image is pulled and unpacked
// once: what a test does to images, others see. Whoever needs a root of its own opens one in t.TempDir and uses [RunIn].
//
// Where containers cannot run it skips the test, or fails it; see [Available] and [RequireEnv].
func Engine(t testing.TB) *coracle.Engine {
	t.Helper()
	require(t, Available())
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.users == 0 {
		if err := openShared(); err != nil {
			t.Fatalf("open the engine for tests: %v", err)
		}
	}
	shared.users++
	t.Cleanup(func() {
		shared.mu.Lock()
		defer shared.mu.Unlock()
		if shared.users--; shared.users > 0 {
			return
		}
		if err := closeShared(); err != nil {
			t.Errorf("close the engine for tests: %v", err)
		}
	})
	return shared.eng
}

func openShared() error {
	root := os.Getenv(RootEnv)
	if root == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("%w: set %s to a directory", err, RootEnv)
		}
		root = filepath.Join(cache, "coracle", "test")
	}
	ctx := context.Background()
	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		return err
	}
	mark, err := newMark(filepath.Join(root, "tests"))
	if err == nil {
		err = sweep(ctx, eng, mark)
	}
	if err != nil {
		return errors.Join(err, removeMark(mark), eng.Close())
	}
	shared.eng, shared.mark = eng, mark
	return nil
}

func closeShared() error {
	err := errors.Join(removeMark(shared.mark), shared.eng.Close())
	shared.eng, shared.mark = nil, nil
	return err
}

// ownerLabel is on every container of Run: the base name of the mark of the test binary that has it.
const ownerLabel = "dev.coracle.test.owner"

// A mark is a file that a test binary holds locked while it has the engine open. When it can be locked, the binary was
// killed, and its containers are nobody's: those that are detached run on, and the others have left their directories.
func newMark(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, rand.Text())
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	// Locked before it has a name that others look at.
	if err = filelock.Lock(context.Background(), f); err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func markName(f *os.File) string {
	name := filepath.Base(f.Name())
	return name[:len(name)-len(".new")]
}

func removeMark(f *os.File) error {
	if f == nil {
		return nil
	}
	return errors.Join(os.Remove(filepath.Join(filepath.Dir(f.Name()), markName(f))), f.Close())
}

// sweep removes the containers of test binaries that were killed. What cannot be removed now, the next one tries again: it
// is no reason for tests to fail.
func sweep(ctx context.Context, eng *coracle.Engine, own *os.File) error {
	dir := filepath.Dir(own.Name())
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := filepath.Join(dir, entry.Name())
		switch {
		case entry.Name() == markName(own):
		case filepath.Ext(name) != "": // one that is made takes no time at all
			if info, err := entry.Info(); err == nil && time.Since(info.ModTime()) > time.Hour {
				os.Remove(name)
			}
		default:
			sweepMark(ctx, eng, name)
		}
	}
	return nil
}

func sweepMark(ctx context.Context, eng *coracle.Engine, name string) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if locked, err := filelock.TryLock(f); err != nil || !locked {
		return
	}
	list, err := eng.Containers(ctx, &coracle.ContainerFilter{Labels: map[string]string{ownerLabel: filepath.Base(name)}})
	for _, c := range list {
		err = errors.Join(err, c.Remove(ctx, &coracle.RemoveOptions{Force: true}))
	}
	if err == nil {
		os.Remove(name)
	}
}
