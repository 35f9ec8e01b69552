package layerfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/hostile"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// outcome puts an error of unpacking into a class. What is in none has no type.
func outcome(err error) (hostile.Outcome, string) {
	var le *LimitError
	var ee *EntryError
	var errno unix.Errno
	switch {
	case err == nil:
		return hostile.Harmless, ""
	case errors.As(err, &le):
		return hostile.Limited, le.Limit
	case errors.Is(err, ErrCorrupt):
		return hostile.Corrupt, ""
	case errors.Is(err, ErrInvalidArchive):
		return hostile.Invalid, ""
	case errors.As(err, &ee) && errors.As(err, &errno):
		return hostile.Refused, ""
	}
	return "an untyped error", ""
}

func wantOutcome(t testing.TB, err error, want hostile.Outcome, limit string) {
	t.Helper()
	got, by := outcome(err)
	if want == hostile.HarmlessOrRefused && (got == hostile.Harmless || got == hostile.Refused) {
		return
	}
	if got != want || by != limit {
		t.Errorf("it is %s %s, and must be %s %s: %v", got, by, want, limit, err)
	}
}

// unpackPath is a way by which an archive becomes files.
type unpackPath struct {
	name   string
	driver string
	// base is unpacked below.
	base []byte
	// spec describes the archive to the store.
	spec func(t *testing.T, s *Store, archive []byte) LayerSpec
}

func unpackPaths(t *testing.T, outside string) []unpackPath {
	fetched := func(compress func(testing.TB, []byte) []byte) func(*testing.T, *Store, []byte) LayerSpec {
		return func(t *testing.T, _ *Store, archive []byte) LayerSpec { return specOf(archive, compress(t, archive)) }
	}
	plain := fetched(func(_ testing.TB, b []byte) []byte { return b })
	stored := func(t *testing.T, s *Store, archive []byte) LayerSpec {
		spec := specOf(archive, archive)
		if err := s.WriteBlob(t.Context(), spec.Descriptor, bytes.NewReader(archive)); err != nil {
			t.Fatal(err)
		}
		spec.Open = nil
		return spec
	}
	// Below lies much of what the archives look for, so that they meet it in place of nothing.
	base := hostile.Tar(
		hostile.Entry{Name: "d/"}, hostile.Entry{Name: "d/e/"}, hostile.Entry{Name: "f", Data: "below"}, hostile.Entry{Name: "victim", Type: '2', Link: outside + "/victim"},
		hostile.Entry{Name: "x", Data: "below"}, hostile.Entry{Name: "o", Type: '2', Link: outside}, hostile.Entry{Name: "n/", Mode: 0o700},
		hostile.Entry{Name: strings.TrimPrefix(outside, "/"), Type: '2', Link: "/"},
	)
	return []unpackPath{
		{"fetched", "", nil, plain},
		{"fetched as gzip", "", nil, fetched(gz)},
		{"fetched as zstd", "", nil, fetched(zst)},
		{"stored", "", nil, stored},
		{"on another layer", "", base, plain},
		{"copied", "copy", nil, plain},
		{"copied, on another layer", "copy", base, plain},
	}
}

// TestHostileArchives: every archive, by every way, ends as it must, and what it made can be mounted and removed. Nothing
// outside changes.
func TestHostileArchives(t *testing.T) {
	testutil.RequireRoot(t)
	canary := hostile.NewCanary(t)
	archives := hostile.Archives(canary.Dir)
	for _, way := range unpackPaths(t, canary.Dir) {
		t.Run(way.name, func(t *testing.T) {
			s := openTest(t, &StoreOptions{Driver: way.driver})
			if way.name != "fetched" { // one way is tried on the disk, the others where syncing costs nothing
				s = openTestIn(t, tmpfs(t), &StoreOptions{Driver: way.driver})
			}
			var below []LayerSpec
			if way.base != nil {
				below = append(below, specOf(way.base, way.base))
			}
			peak := peakMemory(func() {
				for _, a := range archives {
					t.Run(a.Name, func(t *testing.T) {
						unpackHostile(t, s, way, below, a)
						canary.Check(t)
					})
				}
			})
			t.Logf("the heap was at most %d MB", peak>>20)
			if peak > 256<<20 {
				t.Errorf("the heap grew to %d MB", peak>>20)
			}
		})
	}
}

func unpackHostile(t *testing.T, s *Store, way unpackPath, below []LayerSpec, a hostile.Archive) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	spec := way.spec(t, s, a.Bytes())
	layers, err := s.UnpackAll(ctx, append(slices.Clone(below), spec), nil)
	// On another layer some find there what they need.
	if way.base == nil {
		wantOutcome(t, err, a.Want, a.Limit)
	} else if got, _ := outcome(err); got == "an untyped error" || got == hostile.Corrupt {
		t.Errorf("%s: %v", got, err)
	}
	if err == nil {
		top := layers[len(layers)-1]
		checkLayer(t, layerDir(s, top))
		for _, p := range a.Without {
			if _, err := os.Lstat(filepath.Join(layerDir(s, top), p)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is in the layer: %v", p, err)
			}
		}
		// What the layer does to its users: the driver that copies it, the mount, and the removal.
		n, err := s.NewSnapshot(ctx, "x", layers, nil)
		if err != nil {
			t.Errorf("snapshot: %v", err)
		} else if f, err := n.Mount(ctx, nil); err != nil {
			t.Errorf("mount: %v", err)
		} else {
			f.Close()
		}
		if err := s.RemoveSnapshot(ctx, "x"); err != nil {
			t.Errorf("remove the snapshot: %v", err)
		}
		for _, l := range layers {
			if err := s.RemoveLayer(ctx, l.Key); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("remove the layer: %v", err)
			}
		}
	}
	if way.name == "stored" {
		_ = s.RemoveBlob(spec.Descriptor.Digest)
	}
	if err != nil {
		// Of what failed nothing is left; the layer below was whole and may stay.
		if s.HasBlob(spec.Descriptor.Digest) {
			t.Error("its blob was stored as good")
		}
		keys, _ := s.LayerKeys()
		for _, key := range keys {
			if len(below) == 0 || !strings.HasSuffix(key, below[0].DiffID.Encoded()) {
				t.Errorf("the layer %s was left behind", key)
			}
		}
	}
	wantEmpty(t, s, "tmp", "locks", "snapshots")
}

// TestHostileStacks: layers that attack through those below them.
func TestHostileStacks(t *testing.T) {
	testutil.RequireRoot(t)
	canary := hostile.NewCanary(t)
	for _, driver := range []string{"overlay", "copy"} {
		for _, stack := range hostile.Stacks(canary.Dir) {
			t.Run(driver+" "+stack.Name, func(t *testing.T) {
				s := openTest(t, &StoreOptions{Driver: driver})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				specs := []LayerSpec{specOf(stack.Layers[0], stack.Layers[0]), specOf(stack.Layers[1], stack.Layers[1])}
				layers, err := s.UnpackAll(ctx, specs, nil)
				canary.Check(t)
				if err != nil {
					if got, _ := outcome(err); got != hostile.Invalid && got != hostile.Refused {
						t.Errorf("%s: %v", got, err)
					}
					wantEmpty(t, s, "tmp", "locks")
					return
				}
				checkLayer(t, layerDir(s, layers[1]))
				n, err := s.NewSnapshot(ctx, "x", layers, nil)
				if err != nil {
					t.Fatal(err)
				}
				mount(t, n, nil)
				canary.Check(t)
			})
		}
	}
}

// TestHostileStreams: compressed forms that lie, or that cost much and give little. Those of the second kind are bounded
// by the size of the blob.
func TestHostileStreams(t *testing.T) {
	archive := makeTar(t, own(ent{name: "dir/"}, ent{name: "dir/file", data: strings.Repeat("content ", 1<<15)})...)
	n := 1_000_000
	if testutil.Short() {
		n = 10_000
	}
	for _, c := range hostile.Streams(archive, n) {
		t.Run(c.Name, func(t *testing.T) {
			for _, stored := range []bool{false, true} {
				s := openTest(t, nil)
				spec := specOf(archive, c.Blob)
				if stored {
					if err := s.WriteBlob(t.Context(), spec.Descriptor, bytes.NewReader(c.Blob)); err != nil {
						t.Fatal(err)
					}
					spec.Open = nil
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				var err error
				peak := peakMemory(func() { _, err = s.Unpack(ctx, spec) })
				if stored && c.Want == hostile.Invalid {
					// What was stored under this digest is not the archive of the diffID.
					wantOutcome(t, err, hostile.Corrupt, "")
				} else {
					wantOutcome(t, err, c.Want, c.Limit)
				}
				if peak > 420<<20 {
					t.Errorf("the heap grew to %d MB", peak>>20)
				}
				wantEmpty(t, s, "tmp", "locks")
				if err != nil {
					wantEmpty(t, s, "layers")
				}
			}
		})
	}
}

// TestStreamOfNothingIsCancelled: a stream that gives nothing ends with its context, stored or not.
func TestStreamOfNothingIsCancelled(t *testing.T) {
	// Two hundred megabytes, seconds of work.
	blob := func() io.Reader { return &repeated{what: hostile.Member(nil, nil), times: 10_000_000} }
	d, err := digest.FromReader(blob())
	if err != nil {
		t.Fatal(err)
	}
	size, err := io.Copy(io.Discard, blob())
	if err != nil {
		t.Fatal(err)
	}
	s := openTest(t, nil)
	spec := LayerSpec{Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: size}, DiffID: digest.FromString("")}
	for _, stored := range []bool{true, false} {
		if stored {
			if err := s.WriteBlob(t.Context(), spec.Descriptor, blob()); err != nil {
				t.Fatal(err)
			}
		} else {
			_ = s.RemoveBlob(d)
			spec.Open = func(context.Context) (io.ReadCloser, error) { return io.NopCloser(blob()), nil }
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		began := time.Now()
		_, err := s.Unpack(ctx, spec)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("it went on for %v", d)
		}
		wantEmpty(t, s, "tmp", "locks", "layers")
	}
}

// repeated is the same bytes again and again.
type repeated struct {
	what  []byte
	times int
	rest  []byte
}

func (r *repeated) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if len(r.rest) == 0 {
			if r.times == 0 {
				break
			}
			r.times--
			r.rest = r.what
		}
		k := copy(p[n:], r.rest)
		r.rest = r.rest[k:]
		n += k
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// TestBombs: what is small and becomes large ends at the limit that is for it, with bounded memory.
func TestBombs(t *testing.T) {
	testutil.NotInVM(t, "it depends on no kernel, and is done outside, ten times as fast")
	testutil.RequireRoot(t)
	// Enough of each to exceed its limit well; the entries are large here and small there.
	bombs := hostile.Bombs(50_000)
	large, content := hostile.Bombs(1500), hostile.Bombs(100)
	for i, a := range bombs {
		if strings.Contains(a.Name, "large") {
			bombs[i] = large[i]
		} else if strings.Contains(a.Name, "content") {
			bombs[i] = content[i]
		}
	}
	for _, a := range bombs {
		t.Run(a.Name, func(t *testing.T) {
			limits := Limits{Entries: 20_000, Bytes: 32 << 20, Header: 1 << 20}
			if strings.Contains(a.Name, "large headers") {
				limits.Entries = 2400
			}
			blob := a.Gzip()
			s := openTest(t, &StoreOptions{Limits: limits})
			spec := LayerSpec{Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(blob.Data), Size: int64(len(blob.Data))},
				DiffID: digest.Digest(blob.DiffID), Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob.Data)), nil }}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			var err error
			began := time.Now()
			peak := peakMemory(func() { _, err = s.Unpack(ctx, spec) })
			t.Logf("%d MB from %d kB: %v, the heap was at most %d MB", blob.Size>>20, len(blob.Data)>>10, time.Since(began).Round(time.Millisecond), peak>>20)
			wantOutcome(t, err, a.Want, a.Limit)
			if peak > 200<<20 {
				t.Errorf("the heap grew to %d MB", peak>>20)
			}
			wantEmpty(t, s, "layers", "tmp", "locks", "blobs/sha256")
		})
	}
}

// TestAMillionEntries: what the default limits allow is a matter of time, not of memory.
func TestAMillionEntries(t *testing.T) {
	testutil.RequireRoot(t)
	n := 1_000_000
	if testutil.Short() {
		n = 50_000
	}
	for _, a := range hostile.Bombs(n) {
		if a.Name != "the same empty file" {
			continue
		}
		blob := a.Gzip()
		s := openTestIn(t, tmpfs(t), nil)
		spec := specOf(nil, blob.Data)
		spec.DiffID = digest.Digest(blob.DiffID)
		began := time.Now()
		peak := peakMemory(func() {
			if _, err := s.Unpack(t.Context(), spec); err != nil {
				t.Error(err)
			}
		})
		t.Logf("%d MB from %d kB: %v, the heap was at most %d MB", blob.Size>>20, len(blob.Data)>>10, time.Since(began).Round(time.Millisecond), peak>>20)
		if peak > 100<<20 {
			t.Errorf("the heap grew to %d MB", peak>>20)
		}
		return
	}
	t.Error("no such archive")
}

// peakMemory runs f and says how large the heap was at most meanwhile, with what the collector had not yet taken.
func peakMemory(f func()) uint64 {
	runtime.GC() // not what earlier tests left
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	var peak atomic.Uint64
	stop, stopped := make(chan struct{}), make(chan struct{})
	read := func() {
		metrics.Read(sample)
		peak.Store(max(peak.Load(), sample[0].Value.Uint64()))
	}
	go func() {
		defer close(stopped)
		for {
			read()
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	f()
	close(stop)
	<-stopped
	return peak.Load()
}

// tmpfs mounts a file system in memory for the test.
func tmpfs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// checkLayer looks for what no layer may have.
func checkLayer(t testing.TB, dir string) {
	t.Helper()
	for p, names := range overlayAttributes(t, dir) {
		for _, x := range names {
			switch x {
			case "trusted.overlay.opaque=y", "trusted.overlay.origin=", "user.overlay.opaque=y", "user.overlay.origin=":
			default:
				t.Errorf("%s has the attribute %s", p, x)
			}
		}
	}
}

// overlayAttributes lists them with their values. Content is not read: holes may be of terabytes.
func overlayAttributes(t testing.TB, dir string) map[string][]string {
	t.Helper()
	out := make(map[string][]string)
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		buf := make([]byte, 64<<10)
		n, err := unix.Llistxattr(p, buf)
		if err != nil {
			return nil // none at all here, or a path too long for the call
		}
		for name := range strings.SplitSeq(strings.Trim(string(buf[:n]), "\x00"), "\x00") {
			if strings.Contains(name, ".overlay.") {
				value := make([]byte, 1<<10)
				n, err := unix.Lgetxattr(p, name, value)
				if err != nil {
					return err
				}
				out[p] = append(out[p], name+"="+string(value[:n]))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
