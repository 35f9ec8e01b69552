package layerfs

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

func unpackAll(t testing.TB, s *Store, archives ...[]byte) []Layer {
	t.Helper()
	var specs []LayerSpec
	for _, a := range archives {
		specs = append(specs, specOf(a, a))
	}
	ls, err := s.UnpackAll(t.Context(), specs, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ls
}

func mount(t testing.TB, n *Snapshot, o *MountOptions) *os.File {
	t.Helper()
	f, err := n.Mount(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// under is a path through a descriptor, for the standard library's functions.
func under(f *os.File, path string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), path)
}

var mountWays = map[string]mountWay{"auto": wayAuto, "lowerdir+": wayLowerPlus, "descriptor names": wayFDNames, "classic": wayClassic}

// waysHere are the ways that this kernel must know: lowerdir+ came with Linux 6.8.
func waysHere() (map[string]mountWay, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return nil, err
	}
	ways := maps.Clone(mountWays)
	if major < 6 || major == 6 && minor < 8 {
		delete(ways, "lowerdir+")
	}
	return ways, nil
}

func withWay(s *Store, w mountWay) { s.driver.(*overlayDriver).way = w }

// TestOverlayWays has what only the ways of mounting are about; package layerfstest checks what they mount.
func TestOverlayWays(t *testing.T) {
	testutil.RequireRoot(t)
	s := openTest(t, nil)
	var archives [][]byte
	for i := range 120 {
		archives = append(archives, makeTar(t, ent{name: "top", data: fmt.Sprint(i)}))
	}
	ls := unpackAll(t, s, archives...)
	t.Run("more names of descriptors than fit", func(t *testing.T) {
		withWay(s, wayFDNames)
		n, err := s.NewSnapshot(t.Context(), "many", ls, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Mount(t.Context(), nil); !errors.Is(err, errTooLong) {
			t.Errorf("120 layers fit 255 bytes? %v", err)
		}
	})
	t.Run("a kernel without lowerdir+", func(t *testing.T) {
		withWay(s, wayAuto)
		s.driver.(*overlayDriver).best.Store(int32(wayFDNames))
		for _, count := range []int{1, 40, 120} {
			n, err := s.NewSnapshot(t.Context(), "old", ls[:count], nil)
			if err != nil {
				t.Fatal(err)
			}
			f := mount(t, n, nil)
			if data, err := os.ReadFile(under(f, "top")); err != nil || string(data) != fmt.Sprint(count-1) {
				t.Errorf("%d layers: %q, %v", count, data, err)
			}
			f.Close()
			if err := n.Remove(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("a layer that is missing", func(t *testing.T) {
		n, err := s.NewSnapshot(t.Context(), "z", ls[:1], nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.RemoveLayer(t.Context(), ls[0].Key); err != nil {
			t.Fatal(err)
		}
		var oe *OverlayError
		if _, err := n.Mount(t.Context(), nil); !errors.As(err, &oe) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v", err)
		}
	})
}

func TestSnapshotInALongPath(t *testing.T) {
	testutil.RequireRoot(t)
	s, err := OpenStore(t.TempDir()+strings.Repeat("/"+strings.Repeat("p", 100), 4), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ls := unpackAll(t, s, makeTar(t, ent{name: "f", data: "x"}))
	n, err := s.NewSnapshot(t.Context(), "c", ls, nil)
	if err != nil {
		t.Fatal(err)
	}
	f := mount(t, n, nil)
	if data, err := os.ReadFile(under(f, "f")); err != nil || string(data) != "x" {
		t.Errorf("%q, %v", data, err)
	}
}

// TestSnapshots has what the store adds to its driver.
func TestSnapshots(t *testing.T) {
	testutil.RequireRoot(t)
	t.Run("of the same layer twice", func(t *testing.T) {
		// As builders make for steps that change nothing.
		s := openTest(t, nil)
		n, err := s.NewSnapshot(t.Context(), "c1", unpackAll(t, s, makeTar(t, ent{name: "f", data: "1"}), makeTar(t), makeTar(t)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := listTree(t, under(mount(t, n, nil), "")); !maps.Equal(got, map[string]string{"f": `f 644 "1"`}) {
			t.Errorf("%v", got)
		}
	})
	t.Run("half-made", func(t *testing.T) {
		s := openTest(t, nil)
		write(t, s.Dir()+"/snapshots/half/upper/x", "")
		if _, err := s.OpenSnapshot("half"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v", err)
		}
		if ids, err := s.Snapshots(); err != nil || !slices.Equal(ids, []string{"half"}) {
			t.Errorf("%v, %v", ids, err)
		}
		if err := s.RemoveSnapshot(t.Context(), "half"); err != nil {
			t.Error(err)
		}
		wantEmpty(t, s, "snapshots")
	})
	t.Run("errors", func(t *testing.T) {
		s := openTest(t, nil)
		for _, id := range []string{"", "..", "a/b", ".hidden", "-x", "a\x00", strings.Repeat("x", 129)} {
			if _, err := s.NewSnapshot(t.Context(), id, nil, nil); !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%q: %v", id, err)
			}
			if err := s.RemoveSnapshot(t.Context(), id); !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%q: %v", id, err)
			}
		}
		if _, err := s.NewSnapshot(t.Context(), "y", []Layer{{Key: "d-" + strings.Repeat("0", 64)}}, nil); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a layer that is not there: %v", err)
		}
		if _, err := s.NewSnapshot(t.Context(), "y", []Layer{{Key: "../../etc"}}, nil); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("a key that is a path: %v", err)
		}
	})
}

// Overlay cannot write to overlay: inside a container the store needs a volume, or the copy driver.
func TestStoreOnOverlay(t *testing.T) {
	testutil.RequireRoot(t)
	base := openTest(t, nil)
	layers := unpackAll(t, base, makeTar(t, ent{name: "var/"}))
	for _, driver := range []string{"overlay", "copy"} {
		t.Run(driver, func(t *testing.T) {
			// The kernel must find the path by name: attached in a mount namespace that ends with its thread.
			dir := t.TempDir()
			outer, err := base.NewSnapshot(t.Context(), "outer-"+driver, layers, nil)
			if err != nil {
				t.Fatal(err)
			}
			root := mount(t, outer, nil)
			onOwnThread(func() {
				if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
					t.Error(err)
					return
				}
				if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
					t.Error(err)
					return
				}
				if err := unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
					t.Error(err)
					return
				}
				s, err := OpenStore(dir+"/var/"+driver, &StoreOptions{Driver: driver})
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				ls := unpackAll(t, s, makeTar(t, ent{name: "f", data: "x"}))
				n, err := s.NewSnapshot(t.Context(), "c", ls, nil)
				if err != nil {
					t.Error(err)
					return
				}
				f, err := n.Mount(t.Context(), nil)
				if driver == "overlay" {
					var oe *OverlayError
					if !errors.As(err, &oe) || !oe.Unsupported || !errors.Is(err, errors.ErrUnsupported) {
						t.Errorf("%v", err)
					}
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Close()
				if data, err := os.ReadFile(under(f, "f")); err != nil || string(data) != "x" {
					t.Errorf("%q, %v", data, err)
				}
			})
		})
	}
}
