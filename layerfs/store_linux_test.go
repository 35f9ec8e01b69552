package layerfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/lockorder"
	"github.com/coracle-dev/coracle/internal/powerloss"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// childEnv makes the test binary another process that uses a store.
const childEnv = "LAYERFS_TEST_CHILD"

func TestMain(m *testing.M) {
	powerloss.Main()
	if mode := os.Getenv(childEnv); mode != "" {
		if err := child(mode, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	if skip := flag.Lookup("test.skip"); os.Geteuid() != 0 && skip != nil && skip.Value.String() == "" {
		fmt.Println("examples that mount are skipped: they need root")
		flag.Set("test.skip", "^Example(Snapshot|MountOptions|SnapshotOptions|Hold)$")
	}
	skipInVM()
	lockorder.Enforce(func(violation string) { panic(violation) })
	code := testutil.LeakCheck(m)
	os.Exit(code)
}

func openTest(t testing.TB, opts *StoreOptions) *Store {
	t.Helper()
	return openTestIn(t, t.TempDir(), opts)
}

func openTestIn(t testing.TB, dir string, opts *StoreOptions) *Store {
	t.Helper()
	s, err := OpenStore(filepath.Join(dir, "store"), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// wantEmpty fails unless the store has no layers, no blobs, and nothing temporary.
func wantEmpty(t testing.TB, s *Store, dirs ...string) {
	t.Helper()
	s.waitTrash()
	for _, d := range dirs {
		ents, err := os.ReadDir(filepath.Join(s.Dir(), d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range ents {
			if s.trash.dir != nil && d == "tmp" && e.Name() == s.trash.dir.name {
				if rest, err := readNames(s.trash.dir.fd); err == nil && len(rest) == s.trash.nSpares {
					continue
				}
			}
			t.Errorf("%s/%s was left behind", d, e.Name())
		}
	}
}

func TestOpenStore(t *testing.T) {
	t.Run("is an OCI layout that nobody else can enter", func(t *testing.T) {
		s := openTest(t, nil)
		for _, f := range []string{"oci-layout", "index.json", "format", "blobs/sha256", "layers", "snapshots", "tmp"} {
			if _, err := os.Stat(filepath.Join(s.Dir(), f)); err != nil {
				t.Error(err)
			}
		}
		st, err := os.Stat(s.Dir())
		if err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("mode %v, %v", st.Mode(), err)
		}
	})
	t.Run("closes a directory that others can enter", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		s, err := OpenStore(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if st, _ := os.Stat(dir); st.Mode().Perm() != 0o700 {
			t.Errorf("mode %v", st.Mode())
		}
	})
	t.Run("adopts another tool's layout", func(t *testing.T) {
		dir := t.TempDir()
		man := []byte("{}")
		d := digest.FromBytes(man)
		write(t, dir+"/oci-layout", `{"imageLayoutVersion": "1.0.0"}`)
		write(t, dir+"/blobs/sha256/"+d.Encoded(), string(man))
		write(t, dir+"/index.json", fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%s","size":2,"annotations":{"org.opencontainers.image.ref.name":"v1"}}]}`, d))
		s, err := OpenStore(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if desc, err := s.Resolve("v1"); err != nil || desc.Digest != d || !s.HasBlob(d) {
			t.Errorf("%v, %v", desc, err)
		}
	})
	t.Run("refuses a stranger's directory", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir+"/thesis.tex", "")
		if _, err := OpenStore(dir, nil); !errors.Is(err, ErrFormat) {
			t.Errorf("%v", err)
		}
	})
	for name, format := range map[string]string{"newer": `{"version":99,"xattrs":"trusted"}`, "garbage": "\x00\x01", "flavour": `{"version":1,"xattrs":"x"}`, "endless": strings.Repeat(" ", 1<<20)} {
		t.Run("refuses a format that is "+name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "s")
			s, err := OpenStore(dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
			write(t, dir+"/format", format)
			if _, err := OpenStore(dir, nil); err == nil {
				t.Error("it was opened")
			}
		})
	}
	t.Run("sweeps what the dead left, not what the living use", func(t *testing.T) {
		s := openTest(t, nil)
		write(t, s.Dir()+"/tmp/dead/layer/fs/file", "x")
		write(t, s.Dir()+"/locks/dead", "")
		alive, err := s.newTemp()
		if err != nil {
			t.Fatal(err)
		}
		defer alive.remove()
		s2, err := OpenStore(s.Dir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s2.Close()
		ents, _ := os.ReadDir(s.Dir() + "/tmp")
		if len(ents) != 1 || ents[0].Name() != alive.name {
			t.Errorf("tmp: %v", ents)
		}
		wantEmpty(t, s, "locks")
	})
	t.Run("sixteen at once", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "s")
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				s, err := OpenStore(dir, nil)
				if err != nil {
					t.Error(err)
					return
				}
				s.Close()
			})
		}
		wg.Wait()
	})
	t.Run("closed", func(t *testing.T) {
		s := openTest(t, nil)
		s.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := s.List(); !errors.Is(err, ErrClosed) {
			t.Errorf("%v", err)
		}
		if _, err := s.NewSnapshot(t.Context(), "x", nil, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("%v", err)
		}
	})
	t.Run("unknown driver", func(t *testing.T) {
		if _, err := OpenStore(t.TempDir(), &StoreOptions{Driver: "zfs"}); err == nil {
			t.Error("it was opened")
		}
	})
}

func write(t testing.TB, path, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestBlobs(t *testing.T) {
	s := openTest(t, nil)
	ctx := t.Context()
	data := bytes.Repeat([]byte("coracle "), 100_000)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	bad := []struct {
		name string
		desc ocispec.Descriptor
		want error
	}{
		{"too short", ocispec.Descriptor{Digest: desc.Digest, Size: desc.Size + 1}, ErrCorrupt},
		{"too long", ocispec.Descriptor{Digest: desc.Digest, Size: desc.Size - 1}, ErrCorrupt},
		{"wrong digest", ocispec.Descriptor{Digest: digest.FromString("x"), Size: desc.Size}, ErrCorrupt},
		{"digest that is a path", ocispec.Descriptor{Digest: "sha256:../../../../../../../../../../../../../../../../etc/passwd", Size: desc.Size}, digest.ErrDigestInvalidLength},
		{"no digest", ocispec.Descriptor{Size: desc.Size}, digest.ErrDigestInvalidFormat},
		{"algorithm we do not keep", ocispec.Descriptor{Digest: digest.SHA512.FromBytes(data), Size: desc.Size}, errors.ErrUnsupported},
	}
	for _, c := range bad {
		t.Run(c.name, func(t *testing.T) {
			if err := s.WriteBlob(ctx, c.desc, bytes.NewReader(data)); !errors.Is(err, c.want) {
				t.Errorf("%v", err)
			}
			wantEmpty(t, s, "blobs/sha256", "tmp")
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		if err := s.WriteBlob(ctx, desc, bytes.NewReader(data)); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		wantEmpty(t, s, "blobs/sha256", "tmp")
	})
	if _, err := s.OpenBlob(desc.Digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := s.WriteBlob(ctx, desc, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteBlob(ctx, desc, nil); err != nil {
		t.Errorf("the second time nothing is read: %v", err)
	}
	if got, err := s.ReadBlob(ctx, desc, 1<<20); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := s.ReadBlob(ctx, desc, 100); err == nil {
		t.Error("a blob above the bound was read")
	}
	if all, err := s.Blobs(); err != nil || !slices.Equal(all, []digest.Digest{desc.Digest}) {
		t.Errorf("%v, %v", all, err)
	}
	write(t, s.Dir()+"/blobs/sha256/"+desc.Digest.Encoded(), string(data[:len(data)-1])+"X")
	if _, err := s.ReadBlob(ctx, desc, 1<<20); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a damaged blob: %v", err)
	}
	if err := s.RemoveBlob(desc.Digest); err != nil || s.HasBlob(desc.Digest) {
		t.Errorf("%v", err)
	}
	if err := s.RemoveBlob(desc.Digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestReferences(t *testing.T) {
	s := openTest(t, nil)
	ctx := t.Context()
	a := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("a"), Size: 1, Annotations: map[string]string{"keep": "me"}}
	b := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("b"), Size: 1}
	const ref = "docker.io/library/alpine:3.22"
	if _, err := s.Resolve(ref); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	for _, err := range []error{s.Tag(ctx, ref, a), s.Tag(ctx, "other:1", a), s.Tag(ctx, ref, b)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if d, err := s.Resolve(ref); err != nil || d.Digest != b.Digest {
		t.Errorf("%v, %v", d, err)
	}
	if d, err := s.Resolve("other:1"); err != nil || d.Digest != a.Digest || d.Annotations["keep"] != "me" || d.Annotations[ocispec.AnnotationRefName] != "other:1" {
		t.Errorf("%v, %v", d, err)
	}
	if len(a.Annotations) != 1 {
		t.Errorf("the caller's descriptor was changed: %v", a.Annotations)
	}
	if refs, err := s.List(); err != nil || len(refs) != 2 {
		t.Errorf("%v, %v", refs, err)
	}
	if err := s.Untag(ctx, ref, ""); err != nil {
		t.Error(err)
	}
	if err := s.Untag(ctx, ref, ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := s.Tag(ctx, "", a); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("%v", err)
	}

	// Nothing is lost between processes and goroutines.
	var wg sync.WaitGroup
	for p := range 4 {
		wg.Go(func() { runChild(t, "tag", s.Dir(), fmt.Sprint(p)) })
		wg.Go(func() {
			for i := range 10 {
				if err := s.Tag(ctx, fmt.Sprintf("own%d:%d", p, i), a); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	refs, err := s.List()
	refs = slices.DeleteFunc(refs, func(r Reference) bool { return r.Name == "" }) // they lost theirs above
	if err != nil || len(refs) != 1+4*20 {
		t.Errorf("%d references, %v", len(refs), err)
	}
	wantEmpty(t, s, "locks")
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	l, err := lockFile(context.Background(), lockorder.Index, s.locksFD, "index", false)
	if err != nil {
		t.Fatal(err)
	}
	defer l.release()
	if err := s.Tag(ctx, "late", a); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for a lock ignores the context: %v", err)
	}
}

func TestSkopeoReadsTheStore(t *testing.T) {
	testutil.NotInVM(t, "there is no skopeo")
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		testutil.Skip(t, "skopeo is not installed")
	}
	s := openTest(t, nil)
	ctx := t.Context()
	archive := makeTar(t, ent{name: "hello", data: "world"})
	layer := gz(t, archive)
	put := func(mt string, data []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mt, Digest: digest.FromBytes(data), Size: int64(len(data))}
		if err := s.WriteBlob(ctx, d, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	config, _ := json.Marshal(ocispec.Image{Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(archive)}}})
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: put(ocispec.MediaTypeImageConfig, config), Layers: []ocispec.Descriptor{put(ocispec.MediaTypeImageLayerGzip, layer)}}
	m.SchemaVersion = 2
	man, _ := json.Marshal(m)
	const ref = "registry.example:5000/team/app:1.0"
	if err := s.Tag(ctx, ref, put(ocispec.MediaTypeImageManifest, man)); err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	if msg, err := exec.Command(skopeo, "copy", "--insecure-policy", "oci:"+s.Dir()+":"+ref, "dir:"+out).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, msg)
	}
	if got, err := os.ReadFile(filepath.Join(out, digest.FromBytes(layer).Encoded())); err != nil || !bytes.Equal(got, layer) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// child is what the test binary does as another process.
func child(mode string, args []string) error {
	s, err := OpenStore(args[0], nil)
	if err != nil {
		return err
	}
	defer s.Close()
	switch mode {
	case "tag":
		for i := range 10 {
			d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("c"), Size: 1}
			if err := s.Tag(context.Background(), fmt.Sprintf("child%s:%d", args[1], i), d); err != nil {
				return err
			}
		}
		return nil
	case "unpack":
		return childUnpack(s, args[1:])
	case "lease":
		return childLease(s, args[1:])
	case "collect":
		crashpoint.Observe(func(step string) {
			if step == args[1] {
				_ = unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			}
		})
		_, err := s.Collect(context.Background(), keepNothing)
		return err
	}
	return fmt.Errorf("mode %q", mode)
}

func runChild(t testing.TB, mode string, args ...string) string {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), childEnv+"="+mode)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("child %s: %v\n%s", mode, err, out)
	}
	return string(out)
}

func TestRemoveTree(t *testing.T) {
	dir := t.TempDir()
	fd, err := openDir(unix.AT_FDCWD, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	outside := filepath.Join(dir, "outside")
	write(t, outside+"/keep", "x")
	// Deeper than removeDepth, than PATH_MAX, and wide at the end.
	cur, err := unix.Openat(fd, ".", unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1500 {
		name := "deep"
		if i == 0 {
			name = "top"
		}
		if err := unix.Mkdirat(cur, name, 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(cur, name, unix.O_PATH, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(cur)
		cur = next
		_ = unix.Symlinkat(outside, cur, "link")
	}
	for i := range 3000 {
		if err := unix.Mknodat(cur, fmt.Sprintf("some-long-file-name-%d", i), unix.S_IFREG|0o600, 0); err != nil {
			t.Fatal(err)
		}
	}
	unix.Close(cur)
	for range 2 { // the second finds nothing
		if err := removeTree(fd, "top"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(dir + "/top"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(outside + "/keep"); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
}
