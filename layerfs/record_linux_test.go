package layerfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/hostile"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// Published flaws of other container software that concern unpacking, by name. The whole corpus is in hostile_linux_test.go.

func mustUnpack(t testing.TB, s *Store, archive []byte) Layer {
	t.Helper()
	l, err := s.Unpack(t.Context(), specOf(archive, archive))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestCVE_2021_29136_RootIsNeverReplaced(t *testing.T) {
	s := openTest(t, nil)
	canary := hostile.NewCanary(t)
	for _, name := range []string{".", "./", "/", "./.", "//", "./././"} {
		for _, kind := range []byte{tar.TypeSymlink, tar.TypeLink, tar.TypeReg, tar.TypeFifo} {
			archive := hostile.Cat(hostile.Header(name, kind, 0, func(b []byte) { copy(b[157:257], canary.Dir) }), makeTar(t, own(ent{name: "evil", data: "x"})...))
			if _, err := s.Unpack(t.Context(), specOf(archive, archive)); !errors.Is(err, ErrInvalidArchive) {
				t.Errorf("%q of type %c: %v", name, kind, err)
			}
		}
	}
	canary.Check(t)
	wantEmpty(t, s, "layers", "tmp")
}

func TestCVE_2021_32760_MetadataStaysInside(t *testing.T) {
	s := openTest(t, nil)
	canary := hostile.NewCanary(t)
	mustUnpack(t, s, makeTar(t, own(ent{name: "l", kind: tar.TypeSymlink, link: canary.Dir + "/victim", mode: 0o777, time: time.Unix(5, 0)},
		ent{name: "h", kind: tar.TypeLink, link: "l", mode: 0o777, time: time.Unix(5, 0)},
		ent{name: "o", kind: tar.TypeSymlink, link: canary.Dir, mode: 0o777})...))
	canary.Check(t)
}

// Whoever can race the unpacking by swapping directories in the layer reaches nothing: directories are held by
// descriptor and opened without following links.
func TestCVE_2025_47290_SwapWhileUnpacking(t *testing.T) {
	s := openTest(t, nil)
	canary := hostile.NewCanary(t)
	var ents []ent
	for i := range 300 {
		ents = append(ents, ent{name: fmt.Sprintf("d%d/", i%20), mode: 0o777}, ent{name: fmt.Sprintf("d%d/victim", i%20), data: "overwritten", mode: 0o777},
			ent{name: fmt.Sprintf("d%d/.wh.link", i%20)}, ent{name: fmt.Sprintf("d%d/hard", i%20), kind: tar.TypeLink, link: fmt.Sprintf("d%d/victim", i%20)})
	}
	archive := makeTar(t, own(ents...)...)
	stop, done := make(chan struct{}), make(chan struct{})
	swaps, followed := 0, 0
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			temps, _ := filepath.Glob(s.Dir() + "/tmp/*/layer/fs")
			for _, t := range temps {
				// Of a fixed set of names, or removing them would never end.
				d := fmt.Sprintf("%s/d%d", t, i%20)
				if os.Rename(d, d+"-away") == nil && os.Symlink(canary.Dir, d) == nil {
					swaps++
				}
			}
		}
	}()
	for range 50 {
		l, err := s.Unpack(t.Context(), specOf(archive, archive))
		if err == nil {
			_ = s.RemoveLayer(t.Context(), l.Key)
			continue
		}
		if got, _ := outcome(err); got == "an untyped error" && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOTDIR) {
			t.Error(err)
		}
		followed++
	}
	close(stop)
	<-done
	canary.Check(t)
	t.Logf("%d swaps, %d of 50 layers failed by them", swaps, followed)
	if swaps == 0 {
		t.Error("nothing was swapped")
	}
	// What could not be removed meanwhile goes with the next open.
	again, err := OpenStore(s.Dir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	wantEmpty(t, again, "tmp", "locks", "layers")
	canary.Check(t)
}

// Whatever an archive breaks off in, the pull ends.
func TestCVE_2021_20291_EveryCutEnds(t *testing.T) {
	s := openTest(t, nil)
	archive := makeTar(t, own(ent{name: "d/"}, ent{name: "d/" + strings.Repeat("long", 60), data: strings.Repeat("x", 700)}, ent{name: "l", kind: tar.TypeSymlink, link: "d"},
		ent{name: "h", kind: tar.TypeLink, link: "l"}, ent{name: ".wh.gone"})...)
	step := 171
	if testutil.Short() {
		step = 1000
	}
	forms := map[string][]byte{"plain": archive, "gzip": gz(t, archive), "zstd": zst(t, archive)}
	for name, blob := range forms {
		for n := 0; n < len(blob); n += max(1, step*len(blob)/len(archive)) {
			cut := blob[:n]
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			for _, spec := range []LayerSpec{specOf(archive, cut), specOf(cut, cut)} {
				l, err := s.Unpack(ctx, spec)
				if err == nil {
					// An archive of its own is also one that ends between entries, or in zeros behind its end.
					if spec.DiffID == digest.FromBytes(archive) || n > 0 && (name != "plain" || n%512 != 0 && n < len(archive)-1024) {
						t.Errorf("%s of %d bytes was unpacked", name, n)
					}
					_ = s.RemoveLayer(ctx, l.Key)
					_ = s.RemoveBlob(spec.Descriptor.Digest)
				} else if got, _ := outcome(err); got != hostile.Invalid && got != hostile.Corrupt {
					t.Errorf("%s of %d bytes: %v", name, n, err)
				}
			}
			cancel()
		}
	}
	wantEmpty(t, s, "layers", "tmp", "locks", "blobs/sha256")
}

func TestCVE_2021_20291_BadArchiveEndsWithAnError(t *testing.T) {
	s := openTest(t, nil)
	good := makeTar(t, own(manyEnts(2000, func(i int) ent { return ent{name: fmt.Sprintf("f%d", i), data: strings.Repeat("x", 3000)} })...)...)
	bad := bytes.Clone(good)
	copy(bad[tarBlock*45:], "garbage in a header, with megabytes behind it")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for name, blob := range map[string][]byte{"plain": bad, "gzip": gz(t, bad), "zstd": zst(t, bad)} {
		if _, err := s.Unpack(ctx, specOf(bad, blob)); !errors.Is(err, ErrInvalidArchive) && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	wantEmpty(t, s, "layers", "tmp", "locks", "blobs/sha256")
}

// What a sparse map says costs nothing: neither memory, nor blocks, nor time.
func TestCVE_2025_58183_SparseMapsAreBounded(t *testing.T) {
	s := openTest(t, nil)
	var before, after runtime.MemStats
	n := 0
	runtime.ReadMemStats(&before)
	for _, a := range hostile.Archives(t.TempDir()) {
		if strings.Contains(a.Name, "sparse") && a.Want != hostile.Harmless {
			n++
			archive := a.Bytes()
			if _, err := s.Unpack(t.Context(), specOf(archive, archive)); err == nil {
				t.Errorf("%s was unpacked", a.Name)
			}
		}
	}
	runtime.ReadMemStats(&after)
	if n < 15 {
		t.Errorf("only %d archives", n)
	}
	// Each has the two megabytes of the ring of chunks, and its own bytes.
	if each := (after.TotalAlloc - before.TotalAlloc) / uint64(n); each > 16<<20 {
		t.Errorf("%d MB were allocated for each", each>>20)
	}
	// An honest hole of a terabyte costs nothing.
	archive := hostile.Cat(hostile.Extended("GNU.sparse.map", "1099511627770,5", "GNU.sparse.size", "1099511627775"),
		hostile.Header("hole", '0', 5, func(b []byte) {
			copy(b[108:], fmt.Sprintf("%07o\x00%07o\x00", os.Geteuid(), os.Getegid()))
		}), hostile.Padded("hello"), hostile.End)
	runtime.ReadMemStats(&before)
	l := mustUnpack(t, s, archive)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
		t.Errorf("%d MB were allocated for a hole", n>>20)
	}
	var st unix.Stat_t
	if err := unix.Lstat(layerDir(s, l)+"/hole", &st); err != nil || st.Size != 1<<40-1 || st.Blocks > 1000 {
		t.Errorf("%d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
}

// A setuid program of a layer is out of reach of the users of the host, while it is unpacked and after, whatever the
// modes in the archive and the umask are.
func TestCVE_2021_41103_SetuidFilesAreOutOfReach(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // the test's own directories must not be what keeps others out
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, driver := range []string{"overlay", "copy"} {
		s, err := OpenStore(filepath.Join(dir, driver), &StoreOptions{Driver: driver})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		l := mustUnpack(t, s, makeTar(t, ent{name: "./", mode: 0o777}, ent{name: "suid", data: "x", mode: 0o6777}))
		n, err := s.NewSnapshot(t.Context(), "x", []Layer{l}, nil)
		if err != nil {
			t.Fatal(err)
		}
		paths := []string{layerDir(s, l) + "/suid", layerDir(s, l), s.Dir() + "/snapshots/" + n.ID(), s.Dir() + "/blobs/sha256"}
		if driver == "copy" {
			paths = append(paths, s.Dir()+"/snapshots/x/root/suid")
		}
		for _, p := range paths {
			if _, err := os.Lstat(p); err != nil {
				t.Error(err)
			}
			if err := statAs(65534, p); err != unix.EACCES {
				t.Errorf("%s, as another user: %v", p, err)
			}
		}
		for _, d := range []string{"", "layers", "layers/" + l.Key, "snapshots", "snapshots/x", "stacks", "tmp", "blobs", "blobs/sha256", "locks", "empty"} {
			if st, err := os.Stat(filepath.Join(s.Dir(), d)); err != nil || st.Mode().Perm()&0o077 != 0 {
				t.Errorf("%q: %v, %v", d, st.Mode(), err)
			}
		}
	}
	if err := statAs(65534, dir); err != nil {
		t.Errorf("the test's directory is closed itself: %v", err)
	}
}

// statAs looks at a file with another user's rights.
func statAs(uid int, path string) (err error) {
	onOwnThread(func() {
		// Of this thread alone, which ends with the function.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			err = errno
			return
		}
		var st unix.Stat_t
		err = unix.Lstat(path, &st)
	})
	return err
}

// A layout of another tool is foreign too: what links in it point to is neither written nor cleaned up.
func TestCVE_2025_11395_LayoutOfLinks(t *testing.T) {
	canary := hostile.NewCanary(t)
	for _, name := range []string{"tmp", "locks", "layers", "snapshots", "stacks", "blobs", "blobs/sha256"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir+"/oci-layout", `{"imageLayoutVersion":"1.0.0"}`)
			write(t, dir+"/index.json", `{"schemaVersion":2,"manifests":[]}`)
			if err := os.MkdirAll(filepath.Dir(dir+"/"+name), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(canary.Dir, dir+"/"+name); err != nil {
				t.Fatal(err)
			}
			s, err := OpenStore(dir, nil)
			if err == nil {
				s.Close()
				t.Error("it was opened")
			}
			canary.Check(t)
		})
	}
}

// Blobs of a layout that are something else than files.
func TestCVE_2025_11395_BlobsThatAreNoFiles(t *testing.T) {
	testutil.RequireRoot(t)
	canary := hostile.NewCanary(t)
	archive := makeTar(t, ent{name: "f", data: "x"})
	for name, put := range map[string]func(path string) error{
		"link to a file": func(p string) error { return os.Symlink(canary.Dir+"/victim", p) },
		"link to its like": func(p string) error {
			write(t, canary.Dir+"-archive", string(archive))
			return os.Symlink(canary.Dir+"-archive", p)
		},
		"fifo":           func(p string) error { return unix.Mkfifo(p, 0o600) },
		"directory":      func(p string) error { return os.Mkdir(p, 0o700) },
		"endless device": func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) },
	} {
		t.Run(name, func(t *testing.T) {
			s := openTest(t, nil)
			spec := specOf(archive, archive)
			if err := put(s.Dir() + "/blobs/sha256/" + spec.Descriptor.Digest.Encoded()); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			spec.Open = nil
			if _, err := s.Unpack(ctx, spec); err == nil || ctx.Err() != nil {
				t.Errorf("unpack: %v", err)
			}
			if _, err := s.ReadBlob(ctx, spec.Descriptor, 1<<20); err == nil || ctx.Err() != nil {
				t.Errorf("read: %v", err)
			}
			wantEmpty(t, s, "layers", "tmp", "locks")
		})
	}
	if got, err := os.ReadFile(canary.Dir + "/victim"); err != nil || string(got) != "original" {
		t.Errorf("%q, %v", got, err)
	}
}
