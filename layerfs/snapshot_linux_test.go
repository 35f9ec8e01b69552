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
	"time"

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
func waysHere(t *testing.T) map[string]mountWay {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	ways := maps.Clone(mountWays)
	if major < 6 || major == 6 && minor < 8 {
		delete(ways, "lowerdir+")
	}
	return ways
}

func withWay(s *Store, w mountWay) { s.driver.(*overlayDriver).way = w }

func TestSnapshot(t *testing.T) {
	testutil.RequireRoot(t)
	for name, way := range waysHere(t) {
		t.Run(name, func(t *testing.T) {
			s := openTest(t, nil)
			withWay(s, way)
			mounts := mountLines()
			ls := unpackAll(t, s,
				makeTar(t, ent{name: "./", mode: 0o750, uid: 7, gid: 8, pax: map[string]string{"SCHILY.xattr.trusted.test": "value", "SCHILY.xattr.trusted.overlay.opaque": "y"}}, ent{name: "a/"}, ent{name: "a/one", data: "1"}, ent{name: "a/two", data: "2"}, ent{name: "gone/"}, ent{name: "gone/x"}),
				makeTar(t, ent{name: "a/"}, ent{name: "a/two", data: "22"}, ent{name: ".wh.gone"}),
				makeTar(t, ent{name: "a/three", data: "3"}),
				// The same layer twice, as builders make for steps that change nothing.
				makeTar(t), makeTar(t))
			n, err := s.NewSnapshot(t.Context(), "c1", ls, nil)
			if err != nil {
				t.Fatal(err)
			}
			f := mount(t, n, nil)
			var st unix.Stat_t
			if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&0o7777 != 0o750 || st.Uid != 7 || st.Gid != 8 {
				t.Errorf("the root has mode %o, owner %d:%d, %v", st.Mode, st.Uid, st.Gid, err)
			}
			if got := time.Unix(st.Mtim.Unix()); !got.Equal(testTime) {
				t.Errorf("the root's time is %v", got)
			}
			value := make([]byte, 10)
			if n, err := unix.Getxattr(under(f, "."), "trusted.test", value); err != nil || string(value[:n]) != "value" {
				t.Errorf("the root's attribute is %q, %v", value[:max(n, 0)], err)
			}
			want := map[string]string{"a": `d 755 ""`, "a/one": `f 644 "1"`, "a/three": `f 644 "3"`, "a/two": `f 644 "22"`}
			if got := listTree(t, under(f, "")); !maps.Equal(got, want) {
				t.Errorf("%v", got)
			}
			if err := os.WriteFile(under(f, "a/one"), []byte("changed"), 0o644); err != nil {
				t.Error(err)
			}
			f.Close()
			again, err := s.OpenSnapshot("c1")
			if err != nil {
				t.Fatal(err)
			}
			ro := mount(t, again, &MountOptions{ReadOnly: true})
			if data, err := os.ReadFile(under(ro, "a/one")); err != nil || string(data) != "changed" {
				t.Errorf("%q, %v", data, err)
			}
			if err := os.WriteFile(under(ro, "a/one"), nil, 0o644); !errors.Is(err, unix.EROFS) {
				t.Errorf("a read-only mount takes writes: %v", err)
			}
			ro.Close()
			if data, _ := os.ReadFile(layerDir(s, ls[0]) + "/a/one"); string(data) != "1" {
				t.Errorf("the layer was changed: %q", data)
			}
			if got := mountLines(); got != mounts {
				t.Errorf("the mount table gained an entry:\n%s", got)
			}
			if err := n.Remove(t.Context()); err != nil {
				t.Error(err)
			}
			if err := again.Remove(t.Context()); err != nil {
				t.Errorf("the second time: %v", err)
			}
			wantEmpty(t, s, "snapshots", "tmp", "locks")
		})
	}
}

func TestSnapshotOfManyLayers(t *testing.T) {
	testutil.RequireRoot(t)
	s := openTest(t, nil)
	var archives [][]byte
	for i := range 120 {
		archives = append(archives, makeTar(t, ent{name: "d/"}, ent{name: fmt.Sprintf("d/f%03d", i)}, ent{name: "top", data: fmt.Sprint(i)}))
	}
	ls := unpackAll(t, s, archives...)
	for name, way := range waysHere(t) {
		t.Run(name, func(t *testing.T) {
			withWay(s, way)
			n, err := s.NewSnapshot(t.Context(), "many", ls, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer n.Remove(t.Context())
			f, err := n.Mount(t.Context(), nil)
			if way == wayFDNames {
				if err != errTooLong && !errors.Is(err, errTooLong) {
					t.Errorf("120 layers fit 255 bytes? %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			ents, err := os.ReadDir(under(f, "d"))
			if err != nil || len(ents) != 120 {
				t.Errorf("%d files, %v", len(ents), err)
			}
			if data, err := os.ReadFile(under(f, "top")); err != nil || string(data) != "119" {
				t.Errorf("%q, %v", data, err)
			}
		})
	}
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

func TestSnapshotKinds(t *testing.T) {
	testutil.RequireRoot(t)
	t.Run("of no layers", func(t *testing.T) {
		s := openTest(t, nil)
		n, err := s.NewSnapshot(t.Context(), "scratch", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		f := mount(t, n, nil)
		if err := os.WriteFile(under(f, "x"), nil, 0o644); err != nil {
			t.Error(err)
		}
		f.Close()
		f = mount(t, n, &MountOptions{ReadOnly: true})
		if _, err := os.Stat(under(f, "x")); err != nil {
			t.Error(err)
		}
	})
	t.Run("volatile, mounted again and again", func(t *testing.T) {
		s := openTest(t, nil)
		n, err := s.NewSnapshot(t.Context(), "v", unpackAll(t, s, makeTar(t, ent{name: "f"})), &SnapshotOptions{Volatile: true})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			f := mount(t, n, nil)
			if err := os.Mkdir(under(f, fmt.Sprint(i)), 0o700); err != nil {
				t.Error(err)
			}
			f.Close()
		}
		if err := n.Remove(t.Context()); err != nil {
			t.Error(err)
		}
		wantEmpty(t, s, "snapshots")
	})
	t.Run("with a container's leavings", func(t *testing.T) {
		s := openTest(t, nil)
		n, err := s.NewSnapshot(t.Context(), "full", unpackAll(t, s, makeTar(t, ent{name: "d/"}, ent{name: "d/f"})), nil)
		if err != nil {
			t.Fatal(err)
		}
		f := mount(t, n, nil)
		write(t, under(f, "a/b/c/d"), "x")
		if err := os.RemoveAll(under(f, "d")); err != nil {
			t.Error(err)
		}
		f.Close()
		if err := s.RemoveSnapshot(t.Context(), "full"); err != nil {
			t.Error(err)
		}
		wantEmpty(t, s, "snapshots")
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
	t.Run("opened by another process", func(t *testing.T) {
		s := openTest(t, nil)
		ls := unpackAll(t, s, makeTar(t, ent{name: "./", mode: 0o711}, ent{name: "f"}))
		if _, err := s.NewSnapshot(t.Context(), "x", ls, nil); err != nil {
			t.Fatal(err)
		}
		s2, err := OpenStore(s.Dir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s2.Close()
		n, err := s2.OpenSnapshot("x")
		if err != nil {
			t.Fatal(err)
		}
		f := mount(t, n, nil)
		if _, err := os.Stat(under(f, "f")); err != nil {
			t.Error(err)
		}
	})
	t.Run("errors", func(t *testing.T) {
		s := openTest(t, nil)
		if _, err := s.NewSnapshot(t.Context(), "x", nil, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := s.NewSnapshot(t.Context(), "x", nil, nil); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%v", err)
		}
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
		ls := unpackAll(t, s, makeTar(t, ent{name: "f"}))
		n, err := s.NewSnapshot(t.Context(), "z", ls, nil)
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

// The copy driver shows what overlay shows.
func TestCopyDriver(t *testing.T) {
	testutil.RequireRoot(t)
	s := openTest(t, &StoreOptions{Driver: "copy"})
	archives := [][]byte{
		makeTar(t, ent{name: "./", mode: 0o711, pax: map[string]string{"SCHILY.xattr.trusted.test": "x"}}, ent{name: "a/"}, ent{name: "a/x", data: "old"}, ent{name: "a/y", data: "y"}, ent{name: "b/"}, ent{name: "b/hidden"}, ent{name: "c"}, ent{name: "gone"},
			ent{name: "h1", data: "linked", mode: 0o4755, uid: 3}, ent{name: "h2", kind: '1', link: "h1"}, ent{name: "dev", kind: '3', maj: 1, min: 3, pax: map[string]string{"SCHILY.xattr.trusted.test": "n"}}, ent{name: "l", kind: '2', link: "a/x", pax: map[string]string{"SCHILY.xattr.trusted.test": "l"}}),
		makeTar(t, ent{name: "a/", mode: 0o700}, ent{name: "a/x", data: "new"}, ent{name: "b/"}, ent{name: "b/" + whOpaque}, ent{name: "b/seen", data: "s"}, ent{name: "c/"}, ent{name: "c/in"}, ent{name: ".wh.gone"}),
	}
	n, err := s.NewSnapshot(t.Context(), "copy", unpackAll(t, s, archives...), nil)
	if err != nil {
		t.Fatal(err)
	}
	f := mount(t, n, nil)
	o := openTest(t, nil)
	on, err := o.NewSnapshot(t.Context(), "overlay", unpackAll(t, o, archives...), nil)
	if err != nil {
		t.Fatal(err)
	}
	of := mount(t, on, nil)
	compare(t, scan(t, under(of, "")), scan(t, under(f, "")))
	if err := os.WriteFile(under(f, "a/x"), []byte("mine"), 0o600); err != nil {
		t.Error(err)
	}
	f.Close()
	ro := mount(t, n, &MountOptions{ReadOnly: true})
	if err := os.WriteFile(under(ro, "a/x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("%v", err)
	}
	ro.Close()
	if err := n.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	wantEmpty(t, s, "snapshots")
}
