package layerfstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/layerfs"
)

// inMountNamespace runs f on a thread with a mount namespace of its own, which ends with it.
func inMountNamespace(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() { done <- onNewThread(func() error { return inNewNamespace(f) }) }()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// onNewThread ends the thread that f ran on: a goroutine that exits while locked takes it along. The process's first
// thread cannot end, so f never gets that one.
func onNewThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			done <- onNewThread(f) // while this goroutine keeps the first thread busy
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

func inNewNamespace(f func()) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	f()
	return nil
}

// mountID is the number in the first column of mountinfo.
func mountID(f *os.File) (uint64, error) {
	var st unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st)
	return st.Mnt_id, err
}

// mountLine finds a mount in a mount table.
func mountLine(t testing.TB, table string, id uint64) string {
	t.Helper()
	data, err := os.ReadFile(table)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, fmt.Sprint(id, " ")) {
			return line
		}
	}
	return ""
}

// testDetached: the mount is in no mount table until someone attaches it, which works once, and it has nothing to do with
// the mounts of the host.
func testDetached(t *testing.T, w *world) {
	st := w.stack(t, []node{{name: "f", data: "x"}, {name: "proc/"}})
	s := w.prepared(t, st, false)
	root := s.mount(t, layerfs.MountOptions{})
	id, err := mountID(root)
	if err != nil {
		t.Fatal(err)
	}
	if line := mountLine(t, "/proc/self/mountinfo", id); line != "" {
		t.Errorf("the mount is in the mount table: %s", line)
	}
	target := w.dir + "/tmp/target"
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(target)
	attach := func() error {
		return unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	inMountNamespace(t, func() {
		if err := attach(); err != nil {
			t.Errorf("move_mount: %v", err)
			return
		}
		if data, err := os.ReadFile(target + "/f"); err != nil || string(data) != "x" {
			t.Errorf("attached: %q, %v", data, err)
		}
		line := mountLine(t, "/proc/thread-self/mountinfo", id)
		before, _, _ := strings.Cut(line, " - ")
		if line == "" || strings.Contains(before, " shared:") || strings.Contains(before, " master:") {
			t.Errorf("mounts below would show on the host, or the other way round: %q", line)
		}
		if err := unix.Mount("none", target+"/proc", "tmpfs", 0, ""); err != nil {
			t.Errorf("mount below: %v", err)
		}
		// This is the table of the process's first thread.
		host, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || strings.Contains(string(host), w.dir) {
			t.Errorf("the host has a mount below %s: %v\n%s", w.dir, err, host)
		}
	})
	// That namespace is gone, and the mount with it.
	inMountNamespace(t, func() {
		if attach() == nil {
			t.Error("one mount was attached twice")
		}
	})
	root.Close()
	s.remove(t)
}

// testStateless: any process can go on where another left off.
func testStateless(t *testing.T, w *world) {
	s := w.prepared(t, w.written(t), false)
	other := w.newDriver(t)
	root, err := other.Mount(t.Context(), &s.SnapshotDir, &layerfs.MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !w.ReadOnly {
		if err := scribble(under(root, "")); err != nil {
			t.Error(err)
		}
	}
	root.Close()
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	s.withMount(t, layerfs.MountOptions{}, func(root *os.File) {
		if tree := scan(t, under(root, "")); !w.ReadOnly {
			wantScribbles(t, tree)
		} else if tree["f"].size != 8 {
			t.Errorf("%v", tree["f"])
		}
	})
	s.remove(t)
}

func testRemove(t *testing.T, w *world) {
	st := w.written(t)
	t.Run("prepared only", func(t *testing.T) { w.prepared(t, st, false).remove(t) })
	t.Run("mounted", func(t *testing.T) {
		s := w.prepared(t, st, false)
		s.withMount(t, layerfs.MountOptions{}, func(*os.File) {})
		s.remove(t)
	})
	t.Run("with a read-only mount that is still open", func(t *testing.T) {
		s := w.prepared(t, st, false)
		root := s.mount(t, layerfs.MountOptions{ReadOnly: true})
		s.remove(t)
		root.Close()
	})
	if w.ReadOnly {
		return
	}
	t.Run("written, with directories that nobody may enter", func(t *testing.T) {
		s := w.prepared(t, st, false)
		s.withMount(t, layerfs.MountOptions{}, func(root *os.File) {
			if err := scribble(under(root, "")); err != nil {
				t.Fatal(err)
			}
		})
		s.remove(t)
	})
	t.Run("a tree deeper than a path can say", func(t *testing.T) {
		s := w.prepared(t, st, false)
		s.withMount(t, layerfs.MountOptions{}, func(root *os.File) {
			cur := int(root.Fd())
			for i := range 1100 {
				if err := unix.Mkdirat(cur, "down", 0o700); err != nil {
					t.Fatal(err)
				}
				next, err := unix.Openat(cur, "down", unix.O_PATH|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				if i > 0 {
					unix.Close(cur)
				}
				cur = next
			}
			unix.Close(cur)
		})
		s.remove(t)
	})
}

// testHalfMade removes directories that hold only a part of what Prepare makes.
func testHalfMade(t *testing.T, w *world) {
	st := w.written(t)
	t.Run("nothing", func(t *testing.T) { w.empty(t, st, false).remove(t) })
	for _, volatile := range []bool{false, true} {
		for _, mounted := range []bool{false, true} {
			t.Run(fmt.Sprintf("parts, volatile %v, mounted %v", volatile, mounted), func(t *testing.T) {
				for keep := 0; ; keep++ {
					s := w.prepared(t, st, volatile)
					if mounted {
						s.withMount(t, layerfs.MountOptions{}, func(*os.File) {})
					}
					var all []string
					err := filepath.WalkDir(s.Path, func(p string, _ fs.DirEntry, err error) error {
						all = append(all, p)
						return err
					})
					if err != nil {
						t.Fatal(err)
					}
					all = all[1:]
					for _, p := range slices.Backward(all[min(keep, len(all)):]) {
						if err := os.Remove(p); err != nil {
							t.Fatal(err)
						}
					}
					s.remove(t)
					if keep >= len(all) {
						return
					}
				}
			})
		}
	}
	t.Run("Prepare that was cancelled", func(t *testing.T) {
		var layers [][]node
		for i := range max(min(w.MaxLayers, 3), 1) {
			var l []node
			for j := range 300 {
				l = append(l, node{name: fmt.Sprintf("d%d.%d/", i, j)}, node{name: fmt.Sprintf("d%d.%d/f", i, j), data: "x"})
			}
			layers = append(layers, l)
		}
		st := w.stack(t, layers...)
		for i := range 20 {
			s := w.empty(t, st, false)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				for range i * 20 {
					runtime.Gosched()
				}
				cancel()
			}()
			if err := w.driver.Prepare(ctx, &s.SnapshotDir); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("prepare: %v", err)
			}
			cancel()
			s.remove(t)
		}
	})
}

func testErrors(t *testing.T, w *world) {
	t.Run("a layer that is missing", func(t *testing.T) {
		st := w.written(t)
		st.paths = slices.Clone(st.paths)
		for i, p := range st.paths {
			st.paths[i] = filepath.Dir(filepath.Dir(p)) + "/missing/fs"
			s := w.empty(t, st, false)
			err := w.driver.Prepare(t.Context(), &s.SnapshotDir)
			if err == nil {
				var root *os.File
				if root, err = w.driver.Mount(t.Context(), &s.SnapshotDir, &layerfs.MountOptions{}); err == nil {
					root.Close()
				}
			}
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("layer %d: %v", i, err)
			}
			s.remove(t)
			st.paths[i] = p
		}
	})
	if !w.ReadOnly {
		t.Run("Mount of what was never prepared", func(t *testing.T) {
			s := w.empty(t, w.written(t), false)
			for _, o := range []layerfs.MountOptions{{}, {ReadOnly: true}} {
				if root, err := w.driver.Mount(t.Context(), &s.SnapshotDir, &o); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%+v: %v", o, err)
					root.Close()
				}
			}
			s.remove(t)
		})
	}
	t.Run("a context that is over", func(t *testing.T) {
		st := w.written(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s := w.empty(t, st, false)
		if err := w.driver.Prepare(ctx, &s.SnapshotDir); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("prepare: %v", err)
		}
		s.remove(t)
		s = w.prepared(t, st, false)
		root, err := w.driver.Mount(ctx, &s.SnapshotDir, &layerfs.MountOptions{})
		if err == nil {
			root.Close()
		} else if !errors.Is(err, context.Canceled) {
			t.Errorf("mount: %v", err)
		}
		// Callers clean up with a context that is over.
		if err := w.driver.Remove(ctx, &layerfs.SnapshotDir{Dir: s.Dir, Path: s.Path, UserXattrs: s.UserXattrs}); err != nil {
			t.Errorf("remove: %v", err)
		}
		s.remove(t)
	})
}

func testConcurrent(t *testing.T, w *world) {
	st := w.written(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 4 {
				s := w.empty(t, st, j%2 == 0)
				if err := w.driver.Prepare(t.Context(), &s.SnapshotDir); err != nil {
					t.Errorf("prepare: %v", err)
					return
				}
				root, err := w.driver.Mount(t.Context(), &s.SnapshotDir, &layerfs.MountOptions{})
				if err != nil {
					t.Errorf("mount: %v", err)
					return
				}
				mine := []byte(fmt.Sprint(i, j))
				if !w.ReadOnly {
					if err := os.WriteFile(under(root, "f"), mine, 0o600); err != nil {
						t.Error(err)
					}
				} else {
					mine = []byte("original")
				}
				runtime.Gosched()
				if data, err := os.ReadFile(under(root, "f")); err != nil || !bytes.Equal(data, mine) {
					t.Errorf("%q, not %q, %v", data, mine, err)
				}
				root.Close()
				r := s.SnapshotDir
				r.LayerPaths = nil
				if err := w.driver.Remove(t.Context(), &r); err != nil {
					t.Errorf("remove: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

// testClose: mounts outlive the driver that made them.
func testClose(t *testing.T, w *world) {
	s := w.prepared(t, w.written(t), false)
	d := w.newDriver(t)
	root, err := d.Mount(t.Context(), &s.SnapshotDir, &layerfs.MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, when := range []string{"", " again"} {
		if err := d.Close(); err != nil {
			t.Errorf("close%s: %v", when, err)
		}
	}
	if data, err := os.ReadFile(under(root, "f")); err != nil || string(data) != "original" {
		t.Errorf("%q, %v", data, err)
	}
	// One that was never used.
	if err := w.newDriver(t).Close(); err != nil {
		t.Error(err)
	}
}

// testStore is the life of a snapshot as programs see it.
func testStore(t *testing.T, w *world) {
	st := w.written(t)
	id := w.name()
	n, err := w.store.NewSnapshot(t.Context(), id, st.layers, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.NewSnapshot(t.Context(), id, st.layers, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("the same id again: %v", err)
	}
	root, err := n.Mount(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !w.ReadOnly {
		if err := scribble(under(root, "")); err != nil {
			t.Error(err)
		}
	}
	want := scan(t, under(root, ""))
	root.Close()
	other := w.openStore(t)
	defer other.Close()
	again, err := other.OpenSnapshot(id)
	if err != nil {
		t.Fatal(err)
	}
	if root, err = again.Mount(t.Context(), &layerfs.MountOptions{ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	compare(t, "in another process", want, scan(t, under(root, "")))
	root.Close()
	for _, remove := range []func(context.Context) error{again.Remove, n.Remove} {
		if err := remove(t.Context()); err != nil {
			t.Error(err)
		}
	}
	// A snapshot that Prepare failed to make is not there.
	st.layers = slices.Clone(st.layers)
	for _, l := range st.layers {
		if err := w.store.RemoveLayer(t.Context(), l.Key); err != nil {
			t.Fatal(err)
		}
	}
	n, err = w.store.NewSnapshot(t.Context(), id, st.layers, nil)
	if err == nil {
		root, err = n.Mount(t.Context(), nil)
		if err == nil {
			root.Close()
		}
		if err := n.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of layers that are missing: %v", err)
	}
	if err := errors.Join(other.Close(), w.store.Close()); err != nil {
		t.Error(err)
	}
	for _, d := range []string{"snapshots", "tmp"} {
		if ents, err := os.ReadDir(w.dir + "/" + d); err != nil || len(ents) > 0 {
			t.Errorf("left in %s: %v, %v", d, ents, err)
		}
	}
}
