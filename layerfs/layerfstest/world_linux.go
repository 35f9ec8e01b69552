package layerfstest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/layerfs"
)

// driverName is the driver of the stores that are made here. It is the one under test, with a look at what it is told.
const driverName = "layerfstest"

// opening has what the next store in a directory shall use.
var opening sync.Map

func init() {
	layerfs.RegisterDriver(driverName, func(c layerfs.DriverConfig) (layerfs.Driver, error) {
		w, ok := opening.Load(c.Dir)
		if !ok {
			return nil, fmt.Errorf("driver %q is for Run: %w", driverName, errors.ErrUnsupported)
		}
		return w.(*world).openDriver(c)
	})
}

// world is a store with the driver under test, and the driver by itself.
type world struct {
	Options
	dir    string
	open   layerfs.OpenDriver
	store  *layerfs.Store
	driver layerfs.Driver // the store's own
	names  atomic.Int64

	mu     sync.Mutex
	probed *layerfs.SnapshotDir // of the Prepare that was no more than a question
	probe  bool
}

func newWorld(t *testing.T, open layerfs.OpenDriver, o Options) *world {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	dir, err := os.MkdirTemp(o.Dir, "store-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Options: o, dir: dir, open: open}
	t.Cleanup(func() {
		if w.store != nil {
			if err := w.store.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	w.store = w.openStore(t)
	return w
}

// openStore opens the store as another process would.
func (w *world) openStore(t *testing.T) *layerfs.Store {
	t.Helper()
	opening.Store(w.dir, w)
	defer opening.Delete(w.dir)
	st, err := layerfs.OpenStore(w.dir, &layerfs.StoreOptions{Driver: driverName, UserXattrs: w.UserXattrs})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func (w *world) openDriver(c layerfs.DriverConfig) (layerfs.Driver, error) {
	d, err := w.open(c)
	if err != nil {
		return nil, err
	}
	if d == nil {
		return nil, errors.New("OpenDriver returned neither a driver nor an error")
	}
	if w.driver == nil {
		w.driver = d
	}
	return &watched{d, w}, nil
}

// newDriver opens the driver once more, as another process would.
func (w *world) newDriver(t *testing.T) layerfs.Driver {
	t.Helper()
	d, err := w.open(layerfs.DriverConfig{Dir: w.dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// watched is a driver in a store.
type watched struct {
	layerfs.Driver
	w *world
}

func (d *watched) Prepare(ctx context.Context, s *layerfs.SnapshotDir) error {
	d.w.mu.Lock()
	probe := d.w.probe
	if probe {
		c := *s
		d.w.probed = &c
	}
	d.w.mu.Unlock()
	if probe {
		return nil
	}
	return d.Driver.Prepare(ctx, s)
}

// stack is layers as a store has them.
type stack struct {
	layers []layerfs.Layer
	paths  []string
	root   layerfs.RootAttr
}

// stack unpacks an image and finds out what a driver is told of it.
func (w *world) stack(t *testing.T, layers ...[]node) stack {
	t.Helper()
	specs := make([]layerfs.LayerSpec, 0, len(layers))
	for _, l := range layers {
		specs = append(specs, specOf(archive(t, l)))
	}
	unpacked, err := w.store.UnpackAll(t.Context(), specs, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.probe = true
	w.mu.Unlock()
	id := w.name()
	_, err = w.store.NewSnapshot(t.Context(), id, unpacked, nil)
	if err == nil {
		err = w.store.RemoveSnapshot(t.Context(), id)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.probe = false
	if err != nil {
		t.Fatal(err)
	}
	return stack{unpacked, w.probed.LayerPaths, w.probed.Root}
}

func (w *world) name() string { return fmt.Sprintf("t%d", w.names.Add(1)) }

// snapshot is the directory of one, for calls of the driver without the store.
type snapshot struct {
	layerfs.SnapshotDir
	w    *world
	file *os.File
}

// empty makes a snapshot's directory, with nothing in it.
func (w *world) empty(t testing.TB, st stack, volatile bool) *snapshot {
	t.Helper()
	path := filepath.Join(w.dir, "snapshots", w.name())
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	s := &snapshot{w: w, SnapshotDir: layerfs.SnapshotDir{Path: path, LayerPaths: st.paths, Root: st.root, UserXattrs: w.UserXattrs, Volatile: volatile}}
	s.reopen(t)
	t.Cleanup(func() { s.file.Close() })
	return s
}

func (s *snapshot) reopen(t testing.TB) {
	t.Helper()
	if s.file != nil {
		s.file.Close()
	}
	fd, err := unix.Open(s.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.file, s.Dir = os.NewFile(uintptr(fd), s.Path), fd
}

// prepared makes one that is ready to be mounted.
func (w *world) prepared(t testing.TB, st stack, volatile bool) *snapshot {
	t.Helper()
	s := w.empty(t, st, volatile)
	if err := w.driver.Prepare(t.Context(), &s.SnapshotDir); err != nil {
		t.Fatalf("prepare: %v", err)
	}
	return s
}

func (s *snapshot) mount(t testing.TB, o layerfs.MountOptions) *os.File {
	t.Helper()
	f, err := s.w.driver.Mount(t.Context(), &s.SnapshotDir, &o)
	if err != nil {
		t.Fatalf("mount: %v", err)
	}
	if f == nil {
		t.Fatal("Mount returned neither a file nor an error")
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// remove does what the store does: it renames the directory and has it emptied.
func (s *snapshot) remove(t testing.TB) {
	t.Helper()
	gone := s.Path + ".gone"
	if err := os.Rename(s.Path, gone); err != nil {
		t.Fatal(err)
	}
	r := s.SnapshotDir
	r.Path, r.LayerPaths, r.Root = gone, nil, layerfs.RootAttr{}
	for _, when := range []string{"", " again"} {
		if err := s.w.driver.Remove(t.Context(), &r); err != nil {
			t.Errorf("remove%s: %v", when, err)
		}
	}
	ents, err := os.ReadDir(gone)
	if err != nil || len(ents) > 0 {
		t.Errorf("Remove left %v, %v", ents, err)
	}
	if err := os.RemoveAll(gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// withMount mounts, lets f look, and closes.
func (s *snapshot) withMount(t testing.TB, o layerfs.MountOptions, f func(root *os.File)) {
	t.Helper()
	root := s.mount(t, o)
	f(root)
	if err := root.Close(); err != nil {
		t.Error(err)
	}
}
