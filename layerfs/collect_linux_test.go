package layerfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// keepNothing is a mark that knows no images.
func keepNothing(*Collection) error { return nil }

func collect(t testing.TB, s *Store, mark func(*Collection) error) *Collected {
	t.Helper()
	got, err := s.Collect(t.Context(), mark)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestCollect(t *testing.T) {
	testutil.RequireRoot(t)
	s := openTest(t, nil)
	ctx := t.Context()
	archives := make([][]byte, 5)
	specs := make([]LayerSpec, 5)
	layers := make([]Layer, 5)
	for i := range archives {
		archives[i] = makeTar(t, ent{name: "d/"}, ent{name: fmt.Sprintf("d/f%d", i), data: strings.Repeat("x", 1000*i+1)})
		specs[i] = specOf(archives[i], gz(t, archives[i]))
		var err error
		if layers[i], err = s.Unpack(ctx, specs[i]); err != nil {
			t.Fatal(err)
		}
	}
	// 0 is used by a snapshot, 1 leased, 2 marked by its diffID, 3 by its key, 4 by nobody.
	snap, err := s.NewSnapshot(ctx, "one", layers[:1], nil)
	if err != nil {
		t.Fatal(err)
	}
	forgotten, err := s.NewSnapshot(ctx, "two", layers[4:], nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := forgotten.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	lease, err := s.Lease(ctx, []digest.Digest{specs[1].Descriptor.Digest}, []digest.Digest{layers[1].DiffID})
	if err != nil {
		t.Fatal(err)
	}
	got := collect(t, s, func(c *Collection) error {
		c.KeepBlob(specs[2].Descriptor.Digest)
		c.KeepLayer(layers[3])
		return c.KeepLayers([]digest.Digest{layers[2].DiffID})
	})
	if !slices.Equal(got.Layers, []string{layers[4].Key}) {
		t.Errorf("layers taken: %v", got.Layers)
	}
	if len(got.Blobs) != 3 || slices.Contains(got.Blobs, specs[1].Descriptor.Digest) || slices.Contains(got.Blobs, specs[2].Descriptor.Digest) {
		t.Errorf("blobs taken: %v", got.Blobs)
	}
	if want := int64(4001) + specs[0].Descriptor.Size + specs[3].Descriptor.Size + specs[4].Descriptor.Size; got.Bytes != want {
		t.Errorf("%d bytes taken, want %d", got.Bytes, want)
	}
	for i, l := range layers {
		if _, err := s.Layers([]digest.Digest{l.DiffID}); (err == nil) != (i != 4) {
			t.Errorf("layer %d: %v", i, err)
		}
	}
	if names, _ := readNames(s.stacksFD); len(names) != 1 {
		t.Errorf("stacks: %v", names)
	}
	mount(t, snap, nil).Close()

	// The stack of a layer that is unpacked again after it was collected is made anew.
	if layers[4], err = s.Unpack(ctx, specs[4]); err != nil {
		t.Fatal(err)
	}
	again, err := s.NewSnapshot(ctx, "three", layers[4:], nil)
	if err != nil {
		t.Fatal(err)
	}
	mount(t, again, nil).Close()

	lease.Release()
	lease.Release()
	if err := errors.Join(snap.Remove(ctx), again.Remove(ctx)); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, s, keepNothing); len(got.Layers) != 5 {
		t.Errorf("with nothing in use: %v", got.Layers)
	}
	s.waitTrash()
	wantEmpty(t, s, "layers", "blobs/sha256", "stacks", "leases", "damaged", "locks")

	wrong := errors.New("wrong")
	if _, err := s.Unpack(ctx, specs[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Collect(ctx, func(*Collection) error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("an error of mark: %v", err)
	}
	if _, err := s.Layers([]digest.Digest{layers[0].DiffID}); err != nil {
		t.Errorf("after an error of mark: %v", err)
	}
}

// TestHold: a collection waits for those who hold the store, and others wait for it, but no stream of holds keeps a
// collection out for ever.
func TestHold(t *testing.T) {
	testutil.RequireRoot(t)
	s := openTest(t, nil)
	ctx := t.Context()
	h, err := s.Hold(ctx)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	collected := make(chan error, 1)
	go func() { // another goroutine than the one that holds the store, as the order of locks wants it
		_, err := s.Collect(short, keepNothing)
		collected <- err
	}()
	if err := <-collected; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a collection while the store is held: %v", err)
	}
	h.Release()
	h.Release()
	_, err = s.Collect(ctx, func(*Collection) error {
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		held := make(chan error, 1)
		go func() {
			h, err := s.Hold(short)
			if err == nil {
				h.Release()
			}
			held <- err
		}()
		if err := <-held; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a hold while a collection is under way: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	stop, ended := make(chan struct{}), make(chan struct{})
	for range 4 {
		go func() {
			defer func() { ended <- struct{}{} }()
			for {
				select {
				case <-stop:
					return
				default:
				}
				h, err := s.Hold(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Millisecond)
				h.Release()
			}
		}()
	}
	for range 20 {
		collect(t, s, keepNothing)
	}
	close(stop)
	for range 4 {
		<-ended
	}
}

// TestLeaseOfTheDead: a lease ends with the process that holds it.
func TestLeaseOfTheDead(t *testing.T) {
	testutil.RequireRoot(t)
	s := openTest(t, nil)
	archive := makeTar(t, ent{name: "f"})
	l := mustUnpack(t, s, archive)
	cmd := exec.Command("/proc/self/exe", s.Dir(), string(l.DiffID))
	cmd.Env = append(os.Environ(), childEnv+"=lease")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var line [8]byte
	if n, err := out.Read(line[:]); err != nil || string(line[:n]) != "leased\n" {
		t.Fatalf("%q, %v", line[:n], err)
	}
	if got := collect(t, s, keepNothing); len(got.Layers) != 0 {
		t.Errorf("a leased layer was taken")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if got := collect(t, s, keepNothing); len(got.Layers) != 1 {
		t.Errorf("the layer was not taken after the lease's process was killed")
	}
	wantEmpty(t, s, "leases")
}

func childLease(s *Store, args []string) error {
	if _, err := s.Lease(context.Background(), nil, []digest.Digest{digest.Digest(args[0])}); err != nil {
		return err
	}
	fmt.Println("leased")
	select {}
}

// TestUntagged: what loses its last name stays in the index, once, until it is removed.
func TestUntagged(t *testing.T) {
	s := openTest(t, nil)
	ctx := t.Context()
	a := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("a"), Size: 1, Annotations: map[string]string{"k": "v"}}
	b := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("b"), Size: 1}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Tag(ctx, "one", a))
	must(s.Tag(ctx, "two", a))
	if err := s.Untag(ctx, "two", b.Digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a name of another manifest: %v", err)
	}
	must(s.Untag(ctx, "two", a.Digest))
	entries := func() (list []string) {
		t.Helper()
		refs, err := s.List()
		must(err)
		for _, r := range refs {
			list = append(list, r.Descriptor.Digest.Encoded()[:4]+r.Name+r.Descriptor.Annotations["k"])
		}
		return list
	}
	wantEntries := func(want ...string) {
		t.Helper()
		if got := entries(); !slices.Equal(got, want) {
			t.Errorf("entries %q, want %q", got, want)
		}
	}
	da, db := a.Digest.Encoded()[:4], b.Digest.Encoded()[:4]
	wantEntries(da + "onev")
	must(s.Tag(ctx, "one", b))
	wantEntries(da+"v", db+"one")
	must(s.Untag(ctx, "one", ""))
	wantEntries(da+"v", db)
	if _, err := s.Resolve(""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the empty name: %v", err)
	}
	must(s.Tag(ctx, "again", a))
	wantEntries(db, da+"againv")
	_, err := s.Collect(ctx, func(c *Collection) error {
		return c.RemoveManifests(func(d ocispec.Descriptor) bool { return refName(d) == "" })
	})
	must(err)
	wantEntries(da + "againv")
}

// TestMigration opens a store as version 1 left it.
func TestMigration(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	open := func() *Store {
		t.Helper()
		s, err := OpenStore(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	l := mustUnpack(t, s, makeTar(t, ent{name: "f", data: "kept"}))
	if _, err := s.NewSnapshot(t.Context(), "old", []Layer{l}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// What version 2 added.
	for _, name := range []string{"leases", "damaged", turnFile, collectionFile} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, flavour := range []string{"trusted", "user"} {
		write(t, filepath.Join(dir, "format"), `{"version":1,"xattrs":"`+flavour+`"}`)
		s = open()
		var f storeFormat
		data, err := os.ReadFile(filepath.Join(dir, "format"))
		if err != nil || json.Unmarshal(data, &f) != nil || f != (storeFormat{Version: 2, Xattrs: flavour}) {
			t.Errorf("format %s, %v", data, err)
		}
		n, err := s.OpenSnapshot("old")
		if err != nil {
			t.Fatal(err)
		}
		root := mount(t, n, nil)
		if data, err := os.ReadFile(under(root, "f")); err != nil || string(data) != "kept" {
			t.Errorf("%q, %v", data, err)
		}
		root.Close()
		if got := collect(t, s, keepNothing); len(got.Layers) != 0 {
			t.Errorf("taken: %v", got.Layers)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "format"), `{"version":3,"xattrs":"trusted"}`)
	if _, err := OpenStore(dir, nil); !errors.Is(err, ErrFormat) {
		t.Errorf("a store of a later version: %v", err)
	}
}

func TestVerifyLayer(t *testing.T) {
	testutil.RequireRoot(t)
	ctx := t.Context()
	base := makeTar(t, ent{name: "lib/", uid: 7}, ent{name: "lib/x", data: "lower"}, ent{name: "s", kind: '2', link: "lib"})
	archive := makeTar(t, ent{name: "./", mode: 0o711}, ent{name: "d/", mode: 0o750}, ent{name: "d/f", data: strings.Repeat("data", 100_000), pax: map[string]string{"SCHILY.xattr.user.k": "v"}},
		ent{name: "d/g", kind: '1', link: "d/f"}, ent{name: "d/h", data: "own"}, ent{name: "l", kind: '2', link: "d/f"}, ent{name: "p", kind: '6'}, ent{name: "c", kind: '3', maj: 1, min: 3},
		ent{name: ".wh.gone"}, ent{name: "o/"}, ent{name: "o/.wh..wh..opq"})
	dependent := makeTar(t, ent{name: "lib/y", data: "upper"}, ent{name: "s/z", data: "through a link"}, ent{name: "lib/x2", kind: '1', link: "lib/x"})
	for name, damage := range map[string]func(dir string) error{
		"nothing": nil,
		"content": func(d string) error {
			f, err := os.OpenFile(d+"/d/f", os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("DATA"), 200_000)
			return errors.Join(err, f.Close(), setTime(d+"/d/f"))
		},
		"one byte fewer":      func(d string) error { return errors.Join(os.Truncate(d+"/d/h", 2), setTime(d+"/d/h")) },
		"mode":                func(d string) error { return os.Chmod(d+"/d", 0o755) },
		"root's mode":         func(d string) error { return os.Chmod(d, 0o755) },
		"owner":               func(d string) error { return os.Lchown(d+"/l", 1, 0) },
		"time":                func(d string) error { return os.Chtimes(d+"/d/h", testTime, testTime.Add(1)) },
		"time of a directory": func(d string) error { return os.Chtimes(d+"/d", testTime, testTime.Add(time.Hour)) },
		"attribute":           func(d string) error { return unix.Setxattr(d+"/d/f", "user.k", []byte("w"), 0) },
		"new attribute":       func(d string) error { return unix.Setxattr(d+"/d/h", "user.k", []byte("w"), 0) },
		"opaque lost":         func(d string) error { return unix.Removexattr(d+"/o", "trusted.overlay.opaque") },
		"redirect":            func(d string) error { return unix.Setxattr(d+"/d", "trusted.overlay.redirect", []byte("/etc"), 0) },
		"whiteout lost":       func(d string) error { return os.Remove(d + "/gone") },
		"file lost":           func(d string) error { return os.Remove(d + "/d/h") },
		"file too many":       func(d string) error { return os.WriteFile(d+"/d/zzz", nil, 0o644) },
		"link elsewhere": func(d string) error {
			return errors.Join(os.Remove(d+"/l"), os.Symlink("/etc", d+"/l"), lsetTime(d+"/l"))
		},
		"another type": func(d string) error {
			return errors.Join(os.Remove(d+"/p"), os.WriteFile(d+"/p", nil, 0o644), setTime(d+"/p"))
		},
		"another device": func(d string) error {
			return errors.Join(os.Remove(d+"/c"), unix.Mknod(d+"/c", unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))), setTime(d+"/c"))
		},
		"hard link broken": func(d string) error {
			return errors.Join(os.Remove(d+"/d/g"), exec.Command("cp", "-a", d+"/d/f", d+"/d/g").Run(), setTime(d+"/d"))
		},
		"hard link too many": func(d string) error {
			return errors.Join(os.Remove(d+"/d/h"), os.Link(d+"/d/f", d+"/d/h"), setTime(d+"/d"))
		},
		"no files":  func(d string) error { return os.RemoveAll(d) },
		"no record": func(d string) error { return os.Remove(filepath.Dir(d) + "/layer.json") },
		"record of zeros": func(d string) error {
			return os.WriteFile(filepath.Dir(d)+"/layer.json", make([]byte, 100), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openTest(t, nil)
			spec := specOf(archive, gz(t, archive))
			l, err := s.Unpack(ctx, spec)
			if err != nil {
				t.Fatal(err)
			}
			if damage != nil {
				if err := damage(layerDir(s, l)); err != nil {
					t.Fatal(err)
				}
			}
			err = s.VerifyLayer(ctx, spec)
			if damage == nil {
				if err != nil {
					t.Error(err)
				}
			} else if !errors.Is(err, ErrCorrupt) {
				t.Errorf("the damage is not seen: %v", err)
			}
			wantEmpty(t, s, "tmp", "locks")
			if damage != nil {
				// Set aside, the layer is made again, and what ran on the old one keeps it until it ends.
				n, snapErr := s.NewSnapshot(ctx, "user", []Layer{l}, nil)
				if err := s.SetAside(l); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Layers([]digest.Digest{l.DiffID}); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("a layer that was set aside is found: %v", err)
				}
				if snapErr == nil {
					if _, err := n.Mount(ctx, nil); err == nil {
						t.Error("a layer that was set aside is mounted")
					}
					collect(t, s, func(c *Collection) error { c.KeepBlob(spec.Descriptor.Digest); return nil })
					if names, _ := readNames(s.damagedFD); len(names) != 1 {
						t.Errorf("damaged while a snapshot is made of it: %v", names)
					}
				}
				if _, err := s.Unpack(ctx, LayerSpec{Descriptor: spec.Descriptor, DiffID: spec.DiffID}); err != nil {
					t.Fatal(err)
				}
				if err := s.VerifyLayer(ctx, spec); err != nil {
					t.Errorf("made again: %v", err)
				}
				if snapErr == nil {
					mount(t, n, nil).Close()
					if err := n.Remove(ctx); err != nil {
						t.Fatal(err)
					}
				}
				s.waitTrash()
				collect(t, s, keepNothing)
				wantEmpty(t, s, "damaged", "layers")
			}
		})
	}
	t.Run("dependent", func(t *testing.T) {
		s := openTest(t, nil)
		lower, upper := specOf(base, gz(t, base)), specOf(dependent, zst(t, dependent))
		ls, err := s.UnpackAll(ctx, []LayerSpec{lower, upper}, nil)
		if err != nil {
			t.Fatal(err)
		}
		upper.Parents = ls[:1]
		if err := errors.Join(s.VerifyLayer(ctx, lower), s.VerifyLayer(ctx, upper)); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(layerDir(s, ls[1])+"/lib/x2", []byte("other"), 0); err != nil {
			t.Fatal(err)
		}
		if err := s.VerifyLayer(ctx, upper); !errors.Is(err, ErrCorrupt) {
			t.Errorf("the damage is not seen: %v", err)
		}
	})
	t.Run("blob", func(t *testing.T) {
		s := openTest(t, nil)
		spec := specOf(archive, gz(t, archive))
		if _, err := s.Unpack(ctx, spec); err != nil {
			t.Fatal(err)
		}
		if err := s.VerifyBlob(ctx, spec.Descriptor); err != nil {
			t.Error(err)
		}
		path := s.Dir() + "/blobs/sha256/" + spec.Descriptor.Digest.Encoded()
		if err := os.Truncate(path, spec.Descriptor.Size-1); err != nil {
			t.Fatal(err)
		}
		if err := s.VerifyBlob(ctx, spec.Descriptor); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut: %v", err)
		}
		if err := s.SetBlobAside(spec.Descriptor.Digest); err != nil {
			t.Fatal(err)
		}
		if err := s.VerifyBlob(ctx, spec.Descriptor); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("gone: %v", err)
		}
		if err := s.VerifyLayer(ctx, spec); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a layer without its blob: %v", err)
		}
		collect(t, s, func(c *Collection) error { return c.KeepLayers([]digest.Digest{spec.DiffID}) })
		wantEmpty(t, s, "damaged")
	})
}

func setTime(path string) error { return os.Chtimes(path, testTime, testTime) }

func lsetTime(path string) error {
	ts := unix.NsecToTimespec(testTime.UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// TestVerifySnapshot: what a snapshot is made of has to be there.
func TestVerifySnapshot(t *testing.T) {
	testutil.RequireRoot(t)
	s := openTest(t, nil)
	ctx := t.Context()
	l := mustUnpack(t, s, makeTar(t, ent{name: "f"}))
	if _, err := s.NewSnapshot(ctx, "a", []Layer{l}, nil); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.VerifySnapshot("a"), s.VerifyLayerRecord(l.Key)); err != nil {
		t.Error(err)
	}
	if err := s.VerifySnapshot("none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a snapshot that is not there: %v", err)
	}
	if err := s.SetAside(l); err != nil {
		t.Fatal(err)
	}
	if err := s.VerifySnapshot("a"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("without its layer: %v", err)
	}
	if err := s.VerifyLayerRecord(l.Key); !errors.Is(err, ErrCorrupt) {
		t.Errorf("the record of a layer that is gone: %v", err)
	}
	names, err := readNames(s.stacksFD)
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	if err := os.WriteFile(s.Dir()+"/stacks/"+names[0], make([]byte, 10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.VerifySnapshot("a"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("with a damaged stack: %v", err)
	}
	// Neither damage keeps a collection from its work.
	collect(t, s, keepNothing)
	if err := s.RemoveSnapshot(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	collect(t, s, keepNothing)
	wantEmpty(t, s, "stacks", "layers", "damaged")
}

// TestKilledCollection: a collection that is killed leaves nothing that the next one or the next open does not take.
func TestKilledCollection(t *testing.T) {
	testutil.RequireRoot(t)
	for _, step := range []string{"collect: locked", "collect: marked", "collect: a layer is out of sight", "collect: a blob is out of sight"} {
		t.Run(step, func(t *testing.T) {
			s := openTest(t, nil)
			mustUnpack(t, s, makeTar(t, ent{name: "f", data: "x"}))
			cmd := exec.Command("/proc/self/exe", s.Dir(), step)
			cmd.Env = append(os.Environ(), childEnv+"=collect")
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("%v: %s", err, out)
			}
			collect(t, s, keepNothing)
			again, err := OpenStore(s.Dir(), nil)
			if err != nil {
				t.Fatal(err)
			}
			again.Close()
			wantEmpty(t, s, "tmp", "layers", "blobs/sha256", "locks")
		})
	}
}
