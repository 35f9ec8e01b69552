package coracle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/hostile"
	"github.com/coracle-dev/coracle/internal/registrytest"
	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/layerfs"
)

// CVE-2025-11395 and its like: archives that reach for the files of the host, by the whole way from a registry, and by
// unpacking their blobs again. How each must end is in package layerfs too; here it is an error of this package.
func TestCVE_2025_11395_HostileImages(t *testing.T) {
	testutil.NotInVM(t, "it depends on no kernel, and is done outside, ten times as fast")
	testutil.RequireRoot(t)
	canary := hostile.NewCanary(t)
	reg := newRegistry(t)
	e := newImageEngine(t, RegistryConfig{})
	types := []string{ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd, ocispec.MediaTypeImageLayer}
	for i, a := range hostile.Archives(canary.Dir) {
		t.Run(a.Name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			name := fmt.Sprintf("%s/app:v%d", reg.Host, i)
			layer := registrytest.NewLayer(types[i%len(types)], a.Bytes())
			reg.Push("app", fmt.Sprint("v", i), registrytest.NewImage(layer))
			img, err := e.Pull(ctx, name, nil)
			canary.Check(t)
			checkStore(t, e)
			if err != nil {
				var op *OpError
				var limit *layerfs.LimitError
				var entry *layerfs.EntryError
				if !errors.As(err, &op) || op.Op != "pull" || op.Name != name {
					t.Errorf("%v", err)
				}
				if a.Want == hostile.Limited != errors.As(err, &limit) || limit != nil && limit.Limit != a.Limit ||
					a.Want != hostile.Limited && !errors.Is(err, layerfs.ErrInvalidArchive) && !errors.As(err, &entry) {
					t.Errorf("it must be %s %s: %v", a.Want, a.Limit, err)
				}
				if _, err := e.Image(ctx, name); !errors.Is(err, fs.ErrNotExist) || e.store.HasBlob(layer.Digest) {
					t.Errorf("it was stored as good: %v", err)
				}
				return
			}
			if a.Want != hostile.Harmless && a.Want != hostile.HarmlessOrRefused {
				t.Errorf("it was pulled, and must be %s", a.Want)
			}
			// Once more from the blob.
			layers, err := img.layers(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.store.RemoveLayer(ctx, layers[0].Key); err != nil {
				t.Error(err)
			}
			if _, err := img.layers(ctx); err != nil {
				t.Errorf("from its blob: %v", err)
			}
			canary.Check(t)
			if err := e.store.RemoveLayer(ctx, layers[0].Key); err != nil {
				t.Error(err)
			}
		})
	}
	left, err := e.store.LayerKeys()
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestHostileStackImages: images of two layers, of which one attacks through the other.
func TestHostileStackImages(t *testing.T) {
	testutil.RequireRoot(t)
	canary := hostile.NewCanary(t)
	reg := newRegistry(t)
	for i, s := range hostile.Stacks(canary.Dir) {
		t.Run(s.Name, func(t *testing.T) {
			e := newImageEngine(t, RegistryConfig{})
			tag := fmt.Sprint("v", i)
			reg.Push("app", tag, registrytest.NewImage(registrytest.NewLayer(ocispec.MediaTypeImageLayerGzip, s.Layers[0]), registrytest.NewLayer(ocispec.MediaTypeImageLayerZstd, s.Layers[1])))
			img, err := e.Pull(t.Context(), reg.Host+"/app:"+tag, nil)
			canary.Check(t)
			if err != nil {
				checkUntouched(t, e)
				return
			}
			root, remove, err := e.MountImage(t.Context(), img)
			if err != nil {
				t.Fatal(err)
			}
			root.Close()
			if err := remove(); err != nil {
				t.Error(err)
			}
			canary.Check(t)
		})
	}
}

// TestUnpackLimitsReachLayers: every limit of Config is that of the layers, and the error says so through all that
// wraps it.
func TestUnpackLimitsReachLayers(t *testing.T) {
	testutil.RequireRoot(t)
	file := func(n int) []byte {
		return hostile.Tar(hostile.Entry{Name: "d/d/f", Data: strings.Repeat("x", n)}, hostile.Entry{Name: "g"})
	}
	tests := map[string]struct {
		limits layerfs.Limits
		layer  registrytest.Layer
	}{
		"Blob":      {layerfs.Limits{Blob: 10}, registrytest.NewLayer(ocispec.MediaTypeImageLayerGzip, file(1))},
		"Bytes":     {layerfs.Limits{Bytes: 99}, registrytest.NewLayer(ocispec.MediaTypeImageLayerGzip, file(100))},
		"FileBytes": {layerfs.Limits{FileBytes: 99}, registrytest.NewLayer(ocispec.MediaTypeImageLayerGzip, file(100))},
		"Entries":   {layerfs.Limits{Entries: 1}, registrytest.NewLayer(ocispec.MediaTypeImageLayerGzip, file(1))},
		"Depth":     {layerfs.Limits{Depth: 2}, registrytest.NewLayer(ocispec.MediaTypeImageLayerGzip, file(1))},
		"Header":    {layerfs.Limits{Header: 10}, registrytest.NewLayer(ocispec.MediaTypeImageLayerGzip, hostile.Cat(hostile.Extended("comment", "longer than this"), file(1)))},
		"Window":    {layerfs.Limits{Window: 1 << 20}, rawLayer(file(1), hostile.WindowFrame(21, file(1)))},
	}
	if !testutil.Short() {
		// The gigabyte that is free comes out before the ratio counts.
		blob := hostile.ZstdZeros(1100 << 20)
		layer := rawLayer(nil, blob.Data)
		layer.DiffID = digest.Digest(blob.DiffID)
		tests["Ratio"] = struct {
			limits layerfs.Limits
			layer  registrytest.Layer
		}{layerfs.Limits{Ratio: 1000}, layer}
	}
	for field := range reflect.TypeFor[layerfs.Limits]().Fields() {
		tt, ok := tests[field.Name]
		if !ok {
			if field.Name != "Ratio" {
				t.Errorf("no test of %s", field.Name)
			}
			continue
		}
		t.Run(field.Name, func(t *testing.T) {
			reg := newRegistry(t)
			reg.Push("app", "v1", registrytest.NewImage(tt.layer))
			e, err := Open(t.Context(), Config{Root: t.TempDir(), UnpackLimits: tt.limits, Registry: RegistryConfig{Keychain: anonymous}})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			_, err = e.Pull(t.Context(), reg.Host+"/app:v1", nil)
			var op *OpError
			var limit *layerfs.LimitError
			if !errors.As(err, &op) || !errors.As(err, &limit) || limit.Limit != field.Name || limit.Max != reflect.ValueOf(tt.limits).FieldByIndex(field.Index).Int() {
				t.Errorf("%v", err)
			}
			checkUntouched(t, e)
		})
	}
}

func rawLayer(archive, blob []byte) registrytest.Layer {
	return registrytest.Layer{Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerZstd, Digest: digest.FromBytes(blob), Size: int64(len(blob))},
		Data: blob, DiffID: digest.FromBytes(archive)}
}

// oddFS is a file system whose directories list what no file system may have.
type oddFS struct {
	fstest.MapFS
	names []string
	mode  fs.FileMode
}

func (o oddFS) ReadDir(name string) ([]fs.DirEntry, error) {
	if name != "." {
		return o.MapFS.ReadDir("d")
	}
	var list []fs.DirEntry
	for _, n := range o.names {
		list = append(list, oddEntry{n, o.mode})
	}
	return list, nil
}

func (o oddFS) Open(name string) (fs.File, error) {
	if name == "." || o.mode.IsDir() {
		return o.MapFS.Open("d")
	}
	return o.MapFS.Open("d/f")
}

type oddEntry struct {
	name string
	mode fs.FileMode
}

func (o oddEntry) Name() string               { return o.name }
func (o oddEntry) IsDir() bool                { return o.mode.IsDir() }
func (o oddEntry) Type() fs.FileMode          { return o.mode.Type() }
func (o oddEntry) Info() (fs.FileInfo, error) { return oddInfo{o}, nil }

type oddInfo struct{ oddEntry }

func (oddInfo) Size() int64         { return 1 }
func (o oddInfo) Mode() fs.FileMode { return o.mode }
func (oddInfo) ModTime() time.Time  { return time.Time{} }
func (oddInfo) Sys() any            { return nil }

// TestHostileFileSystems: an image from a file system whose names lead outside, or in circles.
func TestHostileFileSystems(t *testing.T) {
	testutil.RequireRoot(t)
	canary := hostile.NewCanary(t)
	out := strings.Repeat("../", 30) + strings.TrimPrefix(canary.Dir, "/")
	for _, name := range []string{"..", "../..", out + "/victim", out, canary.Dir + "/victim", "a/../../" + out, ".", "", "a/b", "a\x00b", "./x"} {
		for _, mode := range []fs.FileMode{0o777, fs.ModeDir | 0o777} {
			t.Run(fmt.Sprintf("%q %v", name, mode), func(t *testing.T) {
				e := newImageEngine(t, RegistryConfig{})
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				fsys := oddFS{fstest.MapFS{"d/f": {Data: []byte("x")}, "d": {Mode: fs.ModeDir | 0o755}}, []string{name}, mode}
				_, err := e.ImageFromFS(ctx, "x", fsys, nil)
				canary.Check(t)
				if err == nil || ctx.Err() != nil {
					t.Errorf("%v", err)
				}
				var op *OpError
				if !errors.As(err, &op) || !errors.Is(err, ErrInvalid) {
					t.Errorf("%v", err)
				}
				checkUntouched(t, e)
			})
		}
	}
	// Links may lead where they want: they are links of the image.
	e := newImageEngine(t, RegistryConfig{})
	img, err := e.ImageFromFS(t.Context(), "x", fstest.MapFS{"l": {Data: []byte(canary.Dir), Mode: fs.ModeSymlink | 0o777}, "up": {Data: []byte(out), Mode: fs.ModeSymlink | 0o777}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(filepath.Join(unpacked(t, img), "l")); err != nil || target != canary.Dir {
		t.Errorf("%q, %v", target, err)
	}
	canary.Check(t)
}

// A whole image of a thousand layers that repeat themselves costs what one of them costs.
func TestImageOfAThousandLayers(t *testing.T) {
	testutil.RequireRoot(t)
	n := maxImageLayers
	if testutil.Short() {
		n = 200
	}
	a, b := registrytest.RandomLayer(1, ocispec.MediaTypeImageLayerGzip, 1000), registrytest.RandomLayer(2, ocispec.MediaTypeImageLayer, 1000)
	layers := make([]registrytest.Layer, n)
	for i := range layers {
		layers[i] = a
		if i%2 == 1 {
			layers[i] = b
		}
	}
	reg := newRegistry(t)
	reg.Push("app", "v1", registrytest.NewImage(layers...))
	e := newImageEngine(t, RegistryConfig{})
	img, err := e.Pull(t.Context(), reg.Host+"/app:v1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := e.store.LayerKeys(); err != nil || len(keys) != 2 {
		t.Errorf("%v, %v", keys, err)
	}
	root, remove, err := e.MountImage(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	defer remove()
	var st unix.Stat_t
	if err := unix.Fstatat(int(root.Fd()), "file-1", &st, 0); err != nil {
		t.Error(err)
	}
	if n := registrytest.Count(reg.Requests(), "/blobs/"); n > 3 {
		t.Errorf("%d blobs were asked for", n)
	}
}
