package layerfs

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

func TestUnpackEqualsGNUTar(t *testing.T) {
	testutil.RequireRoot(t)
	tarBin, err := exec.LookPath("tar")
	if err != nil {
		testutil.Skip(t, "tar is not installed")
	}
	tree := t.TempDir()
	if err := os.Chmod(tree, 0o751); err != nil {
		t.Fatal(err)
	}
	nastyTree(t, tree)
	for _, c := range []struct {
		name string
		args []string
	}{
		{"pax sparse 1.0", []string{"--format=posix", "--sparse", "--sparse-version=1.0", "--xattrs", "--xattrs-include=*", "--acls"}},
		{"pax sparse 0.1", []string{"--format=posix", "--sparse", "--sparse-version=0.1", "--xattrs", "--xattrs-include=*", "--acls"}},
		{"pax sparse 0.0", []string{"--format=posix", "--sparse", "--sparse-version=0.0", "--xattrs", "--xattrs-include=*"}},
		{"pax not sparse", []string{"--format=posix", "--xattrs", "--xattrs-include=*"}},
		{"gnu", []string{"--format=gnu", "--sparse"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "layer.tar")
			tarArgs := append([]string{"-C", tree, "-cf", file}, append(c.args, ".")...)
			if out, err := exec.Command(tarBin, tarArgs...).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			want := t.TempDir()
			x := []string{"-C", want, "-xpf", file, "--numeric-owner", "--same-owner", "--delay-directory-restore", "--xattrs", "--xattrs-include=*"}
			if slices.Contains(c.args, "--acls") {
				x = append(x, "--acls")
			}
			if out, err := exec.Command(tarBin, x...).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			archive, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := openTest(t, nil)
			l, err := s.Unpack(t.Context(), specOf(archive, zst(t, archive)))
			if err != nil {
				t.Fatal(err)
			}
			w, g := scan(t, want), scan(t, layerDir(s, l))
			if !slices.Contains(c.args, "--acls") {
				// GNU tar wrote the ACLs as ordinary attributes or not at all: both did the same with them.
				t.Log("without --acls")
			}
			compare(t, w, g)
			if len(g) < 35 {
				t.Errorf("only %d files", len(g))
			}
		})
	}
}

func TestCompression(t *testing.T) {
	archive := makeTar(t, own(ent{name: "dir/"}, ent{name: "dir/file", data: strings.Repeat("content ", 1<<17)})...)
	half := len(archive) / 2
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0}, "abc"...)
	bigWindow := func() []byte {
		var buf bytes.Buffer
		w, err := zstd.NewWriter(&buf, zstd.WithWindowSize(256<<20), zstd.WithSingleSegment(false))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(archive)
		_ = w.Flush()
		_ = w.Close()
		return buf.Bytes()
	}()
	var le *LimitError
	for _, c := range []struct {
		name string
		blob []byte
		want func(error) bool
	}{
		{"plain", archive, nil},
		{"gzip", gz(t, archive), nil},
		{"gzip of several members", append(gz(t, archive[:half]), gz(t, archive[half:])...), nil},
		{"zstd", zst(t, archive), nil},
		{"zstd of several frames", append(append(zst(t, archive[:half]), skippable...), zst(t, archive[half:])...), nil},
		{"zstd behind a skippable frame", append(slices.Clone(skippable), zst(t, archive)...), nil},
		{"zstd with a window above the limit", bigWindow, func(err error) bool { return errors.As(err, &le) && le.Limit == "Window" && le.Max > 0 }},
		{"gzip cut off", gz(t, archive)[:300], func(err error) bool { return errors.Is(err, ErrCorrupt) }},
		{"gzip with garbage behind", append(gz(t, archive), "garbage!"...), func(err error) bool { return errors.Is(err, ErrCorrupt) }},
		{"zstd cut off", zst(t, archive)[:100], func(err error) bool { return errors.Is(err, ErrCorrupt) }},
		{"no archive", []byte("<html>404</html>"), func(err error) bool { return errors.Is(err, ErrInvalidArchive) }},
		{"nothing", nil, func(err error) bool { return errors.Is(err, ErrCorrupt) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openTest(t, nil)
			l, err := s.Unpack(t.Context(), specOf(archive, c.blob))
			if c.want != nil {
				if err == nil || !c.want(err) {
					t.Errorf("%v", err)
				}
				wantEmpty(t, s, "layers", "blobs/sha256", "tmp", "locks")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if data, err := os.ReadFile(layerDir(s, l) + "/dir/file"); err != nil || len(data) != 1<<20 {
				t.Errorf("%d bytes, %v", len(data), err)
			}
		})
	}
}

// own gives entries to the user who runs the test, so that no privilege is needed.
func own(ents ...ent) []ent {
	for i := range ents {
		ents[i].uid, ents[i].gid = os.Geteuid(), os.Getegid()
	}
	return ents
}

func TestUnpackFailures(t *testing.T) {
	archive := makeTar(t, own(ent{name: "d/"}, ent{name: "d/f", data: strings.Repeat("x", 100_000)})...)
	good := gz(t, archive)
	altered := bytes.Clone(good)
	altered[len(altered)/2] ^= 0x40
	reader := func(r io.Reader) func(context.Context) (io.ReadCloser, error) {
		return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(r), nil }
	}
	dies := errors.New("connection reset by the registry")
	for _, c := range []struct {
		name string
		edit func(*LayerSpec)
		want error
	}{
		{"altered blob", func(l *LayerSpec) { l.Open = reader(bytes.NewReader(altered)) }, ErrCorrupt},
		{"truncated blob", func(l *LayerSpec) { l.Open = reader(bytes.NewReader(good[:len(good)-9])) }, ErrCorrupt},
		{"endless blob", func(l *LayerSpec) { l.Open = reader(io.MultiReader(bytes.NewReader(good), zeros{})) }, ErrCorrupt},
		{"wrong diffID", func(l *LayerSpec) { l.DiffID = digest.FromString("other") }, ErrCorrupt},
		{"another good blob", func(l *LayerSpec) { l.Open = reader(bytes.NewReader(gz(t, makeTar(t)))) }, ErrCorrupt},
		{"registry that dies half-way", func(l *LayerSpec) {
			l.Open = reader(io.MultiReader(bytes.NewReader(good[:len(good)/2]), &failing{dies}))
		}, dies},
		{"registry that cannot be reached", func(l *LayerSpec) {
			l.Open = func(context.Context) (io.ReadCloser, error) { return nil, dies }
		}, dies},
		{"no source and no blob", func(l *LayerSpec) { l.Open = nil }, os.ErrNotExist},
		{"digest that is none", func(l *LayerSpec) { l.DiffID = "sha256:../../x" }, digest.ErrDigestInvalidLength},
		{"negative size", func(l *LayerSpec) { l.Descriptor.Size = -1 }, os.ErrInvalid},
		{"encrypted", func(l *LayerSpec) { l.Descriptor.MediaType += "+encrypted" }, errors.ErrUnsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openTest(t, nil)
			spec := specOf(archive, good)
			c.edit(&spec)
			if _, err := s.Unpack(t.Context(), spec); !errors.Is(err, c.want) {
				t.Errorf("%v", err)
			}
			wantEmpty(t, s, "layers", "blobs/sha256", "tmp", "locks")
		})
	}
	t.Run("a source that hangs", func(t *testing.T) {
		s := openTest(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		spec := specOf(archive, good)
		r, w := io.Pipe()
		go func() { _, _ = w.Write(good[:100]); cancel() }()
		spec.Open = func(context.Context) (io.ReadCloser, error) { return r, nil }
		if _, err := s.Unpack(ctx, spec); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		wantEmpty(t, s, "layers", "blobs/sha256", "tmp", "locks")
	})
	t.Run("a stored blob that rotted is fetched again", func(t *testing.T) {
		s := openTest(t, nil)
		spec := specOf(archive, good)
		name := s.Dir() + "/blobs/sha256/" + spec.Descriptor.Digest.Encoded()
		write(t, name, string(altered))
		if _, err := s.Unpack(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(name); err != nil || !bytes.Equal(data, good) {
			t.Errorf("%v", err)
		}
	})
	t.Run("a stored blob is not fetched", func(t *testing.T) {
		s := openTest(t, nil)
		spec := specOf(archive, good)
		if err := s.WriteBlob(t.Context(), spec.Descriptor, bytes.NewReader(good)); err != nil {
			t.Fatal(err)
		}
		spec.Open = nil
		if _, err := s.Unpack(t.Context(), spec); err != nil {
			t.Error(err)
		}
	})
	t.Run("progress", func(t *testing.T) {
		s := openTest(t, nil)
		spec := specOf(archive, good)
		var last atomic.Int64
		spec.Progress = func(n int64) { last.Store(n) }
		for range 2 {
			last.Store(0)
			if _, err := s.Unpack(t.Context(), spec); err != nil || last.Load() != int64(len(good)) {
				t.Errorf("%d of %d, %v", last.Load(), len(good), err)
			}
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

func TestFullDisk(t *testing.T) {
	testutil.RequireRoot(t)
	files := []ent{{name: "d/"}}
	for i := range 40 {
		data := make([]byte, 100_000)
		_, _ = rand.Read(data)
		files = append(files, ent{name: fmt.Sprintf("d/f%d", i), data: string(data)})
	}
	archive := makeTar(t, files...)
	// A tmpfs of 5 MB, in a mount namespace that ends with its thread.
	dir := t.TempDir()
	onOwnThread(func() {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fs)
		_ = unix.FsconfigSetString(fs, "size", "5m")
		if err := unix.FsconfigCreate(fs); err != nil {
			t.Error(err)
			return
		}
		m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(m)
		if err := unix.MoveMount(m, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			t.Error(err)
			return
		}
		s, err := OpenStore(dir+"/store", nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer s.Close()
		// The blob alone fits, the files beside it do not.
		if _, err := s.Unpack(context.Background(), specOf(archive, archive)); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v", err)
		}
		wantEmpty(t, s, "layers", "blobs/sha256", "tmp", "locks")
		small := makeTar(t, ent{name: "small", data: "fits"})
		if _, err := s.Unpack(context.Background(), specOf(small, gz(t, small))); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

func childUnpack(s *Store, args []string) error {
	archive, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	spec := specOf(archive, archive)
	spec.Open = countingOpen(args[0], args[1])
	_, err = s.Unpack(context.Background(), spec)
	return err
}

// countingOpen appends a byte to the file counter for each call.
func countingOpen(blob, counter string) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) {
		f, err := os.OpenFile(counter, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		_, _ = f.WriteString("x")
		_ = f.Close()
		return os.Open(blob)
	}
}

func TestConcurrentUnpackDoesItOnce(t *testing.T) {
	s := openTest(t, nil)
	dir := t.TempDir()
	ents := []ent{{name: "d/"}}
	for i := range 500 {
		ents = append(ents, ent{name: fmt.Sprintf("d/file%d", i), data: strings.Repeat("x", i)})
	}
	archive := makeTar(t, own(ents...)...)
	write(t, dir+"/blob", string(archive))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			spec := specOf(archive, archive)
			spec.Open = countingOpen(dir+"/blob", dir+"/count")
			if _, err := s.Unpack(t.Context(), spec); err != nil {
				t.Error(err)
			}
		})
	}
	for range 4 {
		wg.Go(func() { runChild(t, "unpack", s.Dir(), dir+"/blob", dir+"/count") })
	}
	wg.Wait()
	if n, err := os.ReadFile(dir + "/count"); err != nil || len(n) != 1 {
		t.Errorf("the blob was fetched %d times, %v", len(n), err)
	}
	wantEmpty(t, s, "tmp", "locks")
}

// Two images, of which each has as its base what the other has on top, and all layers depend on what is below.
func TestUnpackOfCrossedImagesEnds(t *testing.T) {
	s := openTest(t, nil)
	a := makeTar(t, own(ent{name: "x/a", data: "a"})...)
	b := makeTar(t, own(ent{name: "x/b", data: "b"})...)
	slow := func(archive []byte) LayerSpec {
		spec := specOf(archive, archive)
		spec.Open = func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(iotestOneByte{bytes.NewReader(archive)}), nil
		}
		return spec
	}
	var wg sync.WaitGroup
	for _, specs := range [][]LayerSpec{{slow(a), slow(b)}, {slow(b), slow(a)}} {
		wg.Go(func() {
			ls, err := s.UnpackAll(t.Context(), specs, nil)
			if err != nil {
				t.Error(err)
				return
			}
			for _, l := range ls {
				if l.Key[0] != 'c' {
					t.Errorf("%v is not keyed by chain", l)
				}
			}
		})
	}
	wg.Wait()
	if keys, err := s.LayerKeys(); err != nil || len(keys) != 4 {
		t.Errorf("%v, %v", keys, err)
	}
}

type iotestOneByte struct{ r io.Reader }

func (o iotestOneByte) Read(p []byte) (int, error) { return o.r.Read(p[:1]) }

func TestLayersAndRemoveLayer(t *testing.T) {
	s := openTest(t, nil)
	a := makeTar(t, own(ent{name: "x/"})...)
	b := makeTar(t, own(ent{name: "x/y/z", data: "1"})...)
	ids := []digest.Digest{digest.FromBytes(a), digest.FromBytes(b)}
	if _, err := s.Layers(ids); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	ls, err := s.UnpackAll(t.Context(), []LayerSpec{specOf(a, a), specOf(b, b)}, &UnpackOptions{Parallelism: 1})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Layers(ids); err != nil || !slices.Equal(got, ls) {
		t.Errorf("%v, %v", got, err)
	}
	if err := s.RemoveLayer(t.Context(), ls[1].Key); err != nil {
		t.Error(err)
	}
	if err := s.RemoveLayer(t.Context(), ls[1].Key); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := s.RemoveLayer(t.Context(), "../blobs"); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if _, err := s.Layers(ids); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	wantEmpty(t, s, "tmp")
}
