package coracle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/coracle-dev/coracle/internal/registrytest"
	"github.com/coracle-dev/coracle/layerfs"
)

// anonymous keeps the tests away from the credentials of whoever runs them.
var anonymous = KeychainFunc(func(context.Context, Reference) (Credentials, error) { return Credentials{}, nil })

// newImageEngine is an engine that has images and nothing else.
func newImageEngine(t testing.TB, config RegistryConfig) *Engine {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("layerfs stores images on Linux only")
	}
	if config.Keychain == nil {
		config.Keychain = anonymous
	}
	store, err := layerfs.OpenStore(filepath.Join(t.TempDir(), "store"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return &Engine{config: Config{Registry: config}, log: slog.New(slog.DiscardHandler), store: store}
}

func newRegistry(t *testing.T) *registrytest.Registry {
	t.Helper()
	r := registrytest.New()
	t.Cleanup(r.Close)
	return r
}

// noLeftGoroutines fails if the test leaves a goroutine behind; it must be called before anything that starts one.
func noLeftGoroutines(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if err := goleak.Find(before); err != nil {
			t.Error(err)
		}
	})
}

// checkStore fails unless every blob has the content that its name says, and nothing is left in tmp.
func checkStore(t *testing.T, e *Engine) {
	t.Helper()
	blobs, err := e.store.Blobs()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range blobs {
		f, err := e.store.OpenBlob(d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := digest.FromReader(f)
		f.Close()
		if err != nil || got != d {
			t.Errorf("blob %s has the content of %s (%v)", d, got, err)
		}
	}
	left, err := os.ReadDir(filepath.Join(e.store.Dir(), "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range left {
		t.Errorf("left in tmp: %s", f.Name())
	}
}

// checkUntouched is checkStore after a pull that failed.
func checkUntouched(t *testing.T, e *Engine) {
	t.Helper()
	checkStore(t, e)
	refs, err := e.store.List()
	if err != nil {
		t.Fatal(err)
	}
	if len(refs) > 0 {
		t.Errorf("a failed pull left the names %v", refs)
	}
}

func TestPull(t *testing.T) {
	reg := newRegistry(t)
	for _, docker := range []bool{false, true} {
		t.Run(fmt.Sprintf("docker=%v", docker), func(t *testing.T) {
			noLeftGoroutines(t)
			e := newImageEngine(t, RegistryConfig{})
			src := registrytest.RandomImage(1, 4, 50_000)
			src.Docker = docker
			src.Config.Config.Cmd = []string{"/bin/true"}
			desc := reg.Push("team/app", "v1", src)
			img, err := e.Pull(t.Context(), reg.Host+"/team/app:v1", nil)
			if err != nil {
				t.Fatal(err)
			}
			m, rawConfig := src.Manifest()
			want := struct {
				ref, platform string
				id, digest    digest.Digest
				layers        int
			}{reg.Host + "/team/app:v1", "linux/" + runtime.GOARCH, digest.FromBytes(rawConfig), desc.Digest, 4}
			got := want
			got.ref, got.platform, got.id, got.digest, got.layers = img.Ref(), img.Platform(), img.ID(), img.Digest(), len(img.Layers())
			if got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
			size := desc.Size + m.Config.Size
			for _, l := range m.Layers {
				size += l.Size
			}
			if img.Size() != size {
				t.Errorf("size %d, want %d", img.Size(), size)
			}
			if c := img.Config(); len(c.Config.Cmd) != 1 || c.Config.Cmd[0] != "/bin/true" {
				t.Errorf("config %+v", c)
			}
			layers, err := img.layers(t.Context())
			if err != nil || len(layers) != 4 || layers[3].DiffID != src.Layers[3].DiffID {
				t.Errorf("layers %v, %v", layers, err)
			}
			for i, l := range layers {
				name := fmt.Sprintf("file-%d", 1000+i)
				if _, err := os.Stat(filepath.Join(e.store.Dir(), "layers", l.Key, "fs", name)); err != nil {
					t.Error(err)
				}
			}
			checkStore(t, e)
		})
	}
}

func TestPullAgainFetchesNothing(t *testing.T) {
	reg := newRegistry(t)
	e := newImageEngine(t, RegistryConfig{})
	reg.Push("app", "latest", registrytest.RandomImage(2, 3, 1000))
	ref := reg.Host + "/app"
	if _, err := e.Pull(t.Context(), ref, nil); err != nil {
		t.Fatal(err)
	}
	reg.Requests()
	if _, err := e.Pull(t.Context(), ref, nil); err != nil {
		t.Fatal(err)
	}
	if q := reg.Requests(); registrytest.Count(q, "/manifests/") != 1 || registrytest.Count(q, "/blobs/") > 1 {
		t.Errorf("the second pull asked for %v", q)
	}
	if _, err := e.Pull(t.Context(), ref, &PullOptions{Policy: PullMissing}); err != nil {
		t.Fatal(err)
	}
	if q := reg.Requests(); len(q) != 0 {
		t.Errorf("a pull of what is there asked for %v", q)
	}
}

func TestPullPolicy(t *testing.T) {
	reg := newRegistry(t)
	e := newImageEngine(t, RegistryConfig{})
	ref := reg.Host + "/app:v1"
	reg.Push("app", "v1", registrytest.RandomImage(3, 1, 1000))
	if _, err := e.Pull(t.Context(), ref, &PullOptions{Policy: PullNever}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("never: %v", err)
	}
	if q := reg.Requests(); len(q) != 0 {
		t.Errorf("never asked for %v", q)
	}
	first, err := e.Pull(t.Context(), ref, &PullOptions{Policy: PullMissing})
	if err != nil {
		t.Fatal(err)
	}
	reg.Push("app", "v1", registrytest.RandomImage(4, 1, 1000)) // the tag moves
	for policy, moved := range map[PullPolicy]bool{PullNever: false, PullMissing: false} {
		img, err := e.Pull(t.Context(), ref, &PullOptions{Policy: policy})
		if err != nil || (img.ID() != first.ID()) != moved {
			t.Errorf("%s: %v", policy, err)
		}
	}
	img, err := e.Pull(t.Context(), ref, nil)
	if err != nil || img.ID() == first.ID() {
		t.Errorf("always: %v, %v", img, err)
	}
	if _, err := e.Pull(t.Context(), ref, &PullOptions{Policy: "often"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("unknown policy: %v", err)
	}
	// By id it needs no registry.
	reg.Close()
	_, _, release, err := e.imageFor(t.Context(), &ContainerSpec{Image: img.ID().Encoded()[:12]})
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestPullByDigest(t *testing.T) {
	reg := newRegistry(t)
	e := newImageEngine(t, RegistryConfig{})
	desc := reg.Push("app", "", registrytest.RandomImage(5, 1, 1000))
	ref := reg.Host + "/app@" + string(desc.Digest)
	img, err := e.Pull(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	if img.Ref() != ref || img.Digest() != desc.Digest {
		t.Errorf("%s %s", img.Ref(), img.Digest())
	}
	if _, err := e.Image(t.Context(), reg.Host+"/app:whatever@"+string(desc.Digest)); err != nil {
		t.Error(err)
	}
}

func TestPullRepairsDamage(t *testing.T) {
	reg := newRegistry(t)
	e := newImageEngine(t, RegistryConfig{})
	reg.Push("app", "v1", registrytest.RandomImage(6, 1, 1000))
	img, err := e.Pull(t.Context(), reg.Host+"/app:v1", nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(e.store.Dir(), "blobs", "sha256", img.ID().Encoded())
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	again := &Engine{config: e.config, log: e.log, store: e.store} // one that has not read it before
	if _, err := again.Image(t.Context(), reg.Host+"/app:v1"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a damaged config: %v", err)
	}
	if _, err := again.Pull(t.Context(), reg.Host+"/app:v1", &PullOptions{Policy: PullMissing}); err != nil {
		t.Error(err)
	}
	checkStore(t, e)
}

// TestPullBringsBackLayers: what was unpacked is gone, and its blob is gone or damaged.
func TestPullBringsBackLayers(t *testing.T) {
	reg := newRegistry(t)
	e := newImageEngine(t, RegistryConfig{})
	src := registrytest.RandomImage(7, 2, 1000)
	reg.Push("app", "v1", src)
	blob := filepath.Join(e.store.Dir(), "blobs", "sha256", src.Layers[0].Digest.Encoded())
	for name, damage := range map[string]func() error{
		"gone":    func() error { return os.Remove(blob) },
		"damaged": func() error { return os.WriteFile(blob, make([]byte, src.Layers[0].Size), 0o600) },
	} {
		img, err := e.Pull(t.Context(), reg.Host+"/app:v1", nil)
		if err != nil {
			t.Fatal(err)
		}
		layers, err := img.layers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := e.store.RemoveLayer(t.Context(), layers[0].Key); err != nil {
			t.Fatal(err)
		}
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Pull(t.Context(), reg.Host+"/app:v1", &PullOptions{Policy: PullNever}); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s, never: %v", name, err)
		}
		if _, err := e.Pull(t.Context(), reg.Host+"/app:v1", &PullOptions{Policy: PullMissing}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		checkStore(t, e)
	}
}

// TestForeignIndexEntries: what other tools put into the store does not stand in the way.
func TestForeignIndexEntries(t *testing.T) {
	reg := newRegistry(t)
	e := newImageEngine(t, RegistryConfig{})
	reg.Push("app", "v1", registrytest.RandomImage(6, 1, 1000))
	if _, err := e.Pull(t.Context(), reg.Host+"/app:v1", nil); err != nil {
		t.Fatal(err)
	}
	index := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(index), Size: int64(len(index))}
	missing := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: someDigest, Size: 100}
	if err := e.store.WriteBlob(t.Context(), desc, bytes.NewReader(index)); err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]ocispec.Descriptor{"docker.io/library/index:latest": desc, "v1": desc, "docker.io/library/missing:latest": missing} {
		if err := e.store.Tag(t.Context(), name, d); err != nil {
			t.Fatal(err)
		}
	}
	list, err := e.Images(t.Context())
	if err != nil || len(list) != 1 || list[0].Ref() != reg.Host+"/app:v1" {
		t.Errorf("%v, %v", list, err)
	}
	var media *MediaTypeError
	if _, err := e.Image(t.Context(), "index"); !errors.As(err, &media) {
		t.Errorf("index: %v", err)
	}
	if _, err := e.Image(t.Context(), "missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := e.Image(t.Context(), string(list[0].ID())); err != nil {
		t.Error(err)
	}
}

// TestPullAtOnce: many that want the same image get one piece of work between them.
func TestPullAtOnce(t *testing.T) {
	noLeftGoroutines(t)
	reg := newRegistry(t)
	e := newImageEngine(t, RegistryConfig{})
	src := registrytest.RandomImage(8, 3, 50_000)
	reg.Push("app", "v1", src)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			img, err := e.Pull(t.Context(), reg.Host+"/app:v1", &PullOptions{Progress: func(Progress) {}})
			if err != nil {
				t.Error(err)
			} else if _, err := img.layers(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	requests := reg.Requests()
	for _, l := range src.Layers {
		if n := registrytest.Count(requests, string(l.Digest)); n > 1 {
			t.Errorf("layer %s was fetched %d times", l.Digest, n)
		}
	}
	checkStore(t, e)
}

// TestPullThroughGzip: a transport that adds and takes off gzip by itself changes no digest.
func TestPullThroughGzip(t *testing.T) {
	reg := newRegistry(t)
	reg.Push("app", "v1", registrytest.RandomImage(9, 1, 1000))
	reg.Inject("", -1, func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if strings.Contains(req.URL.Path, "/blobs/") && strings.Contains(req.Header.Get("Accept-Encoding"), "gzip") {
			w.Header().Set("Content-Encoding", "gzip")
		}
		next.ServeHTTP(w, req)
	})
	tr := new(http.Transport)
	t.Cleanup(tr.CloseIdleConnections)
	e := newImageEngine(t, RegistryConfig{Transport: tr})
	if _, err := e.Pull(t.Context(), reg.Host+"/app:v1", nil); err != nil {
		t.Error(err)
	}
}

func TestPullPlatform(t *testing.T) {
	reg := newRegistry(t)
	e := newImageEngine(t, RegistryConfig{})
	image := func(seed uint64, arch, variant string) ocispec.Descriptor {
		img := registrytest.RandomImage(seed, 1, 100)
		img.Config.Architecture, img.Config.Variant = arch, variant
		reg.Push("only", "", img)
		return reg.Push("multi", "", img)
	}
	attestation := image(10, "unknown", "")
	attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	windows := image(11, "amd64", "")
	windows.Platform.OS = "windows"
	amd, arm64, v6, v7 := image(12, "amd64", ""), image(13, "arm64", "v8"), image(14, "arm", "v6"), image(15, "arm", "v7")
	reg.PushIndex("multi", "v1", attestation, windows, v6, amd, v7, arm64)
	for platform, want := range map[string]ocispec.Descriptor{
		"linux/amd64": amd, "amd64": amd, "x86_64": amd, "linux/amd64/v3": amd, "linux/arm64": arm64, "linux/arm64/v8": arm64, "aarch64": arm64,
		"linux/arm": v7, "linux/arm/v7": v7, "linux/arm/v8": v7, "linux/arm/v6": v6,
	} {
		img, err := e.Pull(t.Context(), reg.Host+"/multi:v1", &PullOptions{Platform: platform})
		if err != nil {
			t.Errorf("%s: %v", platform, err)
		} else if img.Digest() != want.Digest {
			t.Errorf("%s: got %s", platform, img.Platform())
		}
	}
	for _, platform := range []string{"linux/s390x", "linux/arm/v5"} {
		_, err := e.Pull(t.Context(), reg.Host+"/multi:v1", &PullOptions{Platform: platform})
		var pe *PlatformError
		if !errors.As(err, &pe) || !errors.Is(err, fs.ErrNotExist) || !slices.Contains(pe.Have, "linux/arm64") || slices.Contains(pe.Have, "unknown/unknown") {
			t.Errorf("%s: %v", platform, err)
		}
	}
	for platform, want := range map[string]error{"windows/amd64": errors.ErrUnsupported, "a/b/c/d": ErrInvalid, "linux/": ErrInvalid, "/": ErrInvalid} {
		if _, err := e.Pull(t.Context(), reg.Host+"/multi:v1", &PullOptions{Platform: platform}); !errors.Is(err, want) {
			t.Errorf("%s: %v", platform, err)
		}
	}
	// One that is here for another platform is not the one that is wanted, though it may run there too.
	for _, platform := range []string{"linux/arm/v7", "linux/amd64", "linux/arm64/v8", "linux/arm/v6"} {
		img, err := e.Pull(t.Context(), reg.Host+"/multi:v1", &PullOptions{Platform: platform, Policy: PullMissing})
		if err != nil {
			t.Fatal(err)
		}
		if img.Platform() != strings.TrimSuffix(platform, "/v8") && img.Platform() != platform {
			t.Errorf("%s: got %v", platform, img.Platform())
		}
	}
	// But where it is all that there is for the platform, it is not asked for again.
	reg.PushIndex("only", "v1", v6)
	if _, err := e.Pull(t.Context(), reg.Host+"/only:v1", &PullOptions{Platform: "arm64"}); err != nil {
		t.Fatal(err)
	}
	reg.Requests()
	if _, err := e.Pull(t.Context(), reg.Host+"/only:v1", &PullOptions{Platform: "arm64", Policy: PullMissing}); err != nil {
		t.Fatal(err)
	}
	if q := reg.Requests(); len(q) != 0 {
		t.Errorf("asked for %v", q)
	}
	// A single image of a foreign platform is refused, unless asked for.
	foreign := registrytest.RandomImage(16, 1, 100)
	foreign.Config.Architecture = "riscv64"
	reg.Push("foreign", "v1", foreign)
	var pe *PlatformError
	if _, err := e.Pull(t.Context(), reg.Host+"/foreign:v1", nil); !errors.As(err, &pe) {
		t.Errorf("foreign: %v", err)
	}
	if _, err := e.Pull(t.Context(), reg.Host+"/foreign:v1", &PullOptions{Platform: "linux/riscv64"}); err != nil {
		t.Error(err)
	}
}

func TestPullProgress(t *testing.T) {
	reg := newRegistry(t)
	e := newImageEngine(t, RegistryConfig{Parallelism: 4})
	src := registrytest.RandomImage(20, 5, 300_000)
	reg.Push("app", "v1", src)
	var busy atomic.Bool
	var got []Progress
	_, err := e.Pull(t.Context(), reg.Host+"/app:v1", &PullOptions{Progress: func(p Progress) {
		if !busy.CompareAndSwap(false, true) {
			t.Error("two calls at once")
		}
		got = append(got, p)
		busy.Store(false)
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		var phases []ProgressPhase
		last := int64(-1)
		for _, p := range got {
			if p.Index != i {
				continue
			}
			if p.Digest != src.Layers[i].Digest || p.Total != src.Layers[i].Size || p.Layers != 5 || p.Current < last || p.Reference != reg.Host+"/app:v1" {
				t.Errorf("%+v after %d bytes", p, last)
			}
			last = p.Current
			if len(phases) == 0 || phases[len(phases)-1] != p.Phase {
				phases = append(phases, p.Phase)
			}
		}
		if last != src.Layers[i].Size || phases[0] != PhaseWaiting || phases[len(phases)-1] != PhaseDone {
			t.Errorf("layer %d: %v, ends at %d", i, phases, last)
		}
	}
	for _, p := range got[:5] {
		if p.Phase != PhaseWaiting {
			t.Errorf("%+v among the announcements", p)
		}
	}
}

// TestPullRefusesDocuments: what is well delivered and must not be taken.
func TestPullRefusesDocuments(t *testing.T) {
	layer := registrytest.RandomLayer(1, ocispec.MediaTypeImageLayerGzip, 100)
	var media *MediaTypeError
	isMedia := func(err error) bool { return errors.As(err, &media) && errors.Is(err, errors.ErrUnsupported) }
	is := func(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }
	withType := func(t string) func(reg *registrytest.Registry) {
		return func(reg *registrytest.Registry) {
			l := layer
			l.MediaType = t
			reg.Push("app", "v1", registrytest.NewImage(l))
		}
	}
	edit := func(change func(*ocispec.Manifest)) func(reg *registrytest.Registry) {
		return func(reg *registrytest.Registry) {
			img := registrytest.NewImage(layer)
			reg.Push("app", "", img)
			m, _ := img.Manifest()
			change(&m)
			data, _ := json.Marshal(m)
			reg.PutManifest("app", "v1", m.MediaType, data)
		}
	}
	tests := []struct {
		name  string
		serve func(reg *registrytest.Registry)
		ok    func(error) bool
	}{
		{"schema 1", func(reg *registrytest.Registry) {
			reg.PutManifest("app", "v1", "application/vnd.docker.distribution.manifest.v1+prettyjws", []byte(`{"schemaVersion":1,"name":"app","tag":"v1","fsLayers":[{"blobSum":"`+string(layer.Digest)+`"}]}`))
		}, isMedia},
		{"no JSON", func(reg *registrytest.Registry) {
			reg.PutManifest("app", "v1", ocispec.MediaTypeImageManifest, []byte("<html>"))
		}, is(ErrInvalid)},
		{"two things at once", func(reg *registrytest.Registry) {
			reg.PutManifest("app", "v1", ocispec.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}`))
		}, is(ErrInvalid)},
		{"manifest of 5 MB", func(reg *registrytest.Registry) {
			reg.PutManifest("app", "v1", ocispec.MediaTypeImageManifest, bytes.Repeat([]byte(" "), 5<<20))
		}, is(ErrInvalid)},
		{"config of 10 MB", func(reg *registrytest.Registry) {
			img := registrytest.NewImage(layer)
			img.Config.Author = strings.Repeat("x", 10<<20)
			reg.Push("app", "v1", img)
		}, is(ErrInvalid)},
		{"nested index", func(reg *registrytest.Registry) {
			inner := reg.PushIndex("app", "", reg.Push("app", "", registrytest.NewImage(layer)))
			inner.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
			reg.PushIndex("app", "v1", inner)
		}, isMedia},
		{"index that names itself otherwise", func(reg *registrytest.Registry) {
			d := reg.Push("app", "", registrytest.NewImage(layer))
			d.MediaType = registrytest.DockerManifest
			reg.PushIndex("app", "v1", d)
		}, is(ErrInvalid)},
		{"index with a wrong size", func(reg *registrytest.Registry) {
			d := reg.Push("app", "", registrytest.NewImage(layer))
			d.Size++
			reg.PushIndex("app", "v1", d)
		}, is(ErrCorrupt)},
		{"index of attestations only", func(reg *registrytest.Registry) {
			d := reg.Push("app", "", registrytest.NewImage(layer))
			d.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
			reg.PushIndex("app", "v1", d)
		}, is(fs.ErrNotExist)},
		{"artifact", edit(func(m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" }), isMedia},
		{"foreign layer", withType("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), isMedia},
		{"nondistributable layer", withType("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"), isMedia},
		{"encrypted layer", withType("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), isMedia},
		{"fewer diff_ids than layers", func(reg *registrytest.Registry) {
			img := registrytest.NewImage(layer)
			img.Config.RootFS.DiffIDs = nil
			reg.Push("app", "v1", img)
		}, is(ErrInvalid)},
		{"wrong diff_id", func(reg *registrytest.Registry) {
			img := registrytest.NewImage(layer)
			img.Config.RootFS.DiffIDs[0] = digest.FromString("other")
			reg.Push("app", "v1", img)
		}, is(ErrCorrupt)},
		{"layer size too small", edit(func(m *ocispec.Manifest) { m.Layers[0].Size-- }), is(ErrCorrupt)},
		{"layer size too large", edit(func(m *ocispec.Manifest) { m.Layers[0].Size++ }), is(ErrCorrupt)},
		{"layer size negative", edit(func(m *ocispec.Manifest) { m.Layers[0].Size = -1 }), is(ErrInvalid)},
		{"config size too small", edit(func(m *ocispec.Manifest) { m.Config.Size-- }), is(ErrCorrupt)},
		{"digest with a path", edit(func(m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:../../../../etc/passwd" }), is(ErrInvalid)},
		{"sha512", edit(func(m *ocispec.Manifest) { m.Layers[0].Digest = digest.SHA512.FromString("x") }), is(ErrInvalid)},
		{"schema version 3", edit(func(m *ocispec.Manifest) { m.SchemaVersion = 3 }), is(ErrInvalid)},
		{"layer that is no archive", func(reg *registrytest.Registry) {
			reg.Push("app", "v1", registrytest.NewImage(registrytest.NewLayer(ocispec.MediaTypeImageLayerGzip, bytes.Repeat([]byte("not a tar "), 1000))))
		}, is(layerfs.ErrInvalidArchive)},
		{"layer that is not compressed as it says", func(reg *registrytest.Registry) {
			data := []byte("\x1f\x8b\x08\x00 this is no gzip stream")
			l := registrytest.NewLayer(ocispec.MediaTypeImageLayer, data)
			l.MediaType = ocispec.MediaTypeImageLayerGzip
			reg.Push("app", "v1", registrytest.NewImage(l))
		}, func(err error) bool { return err != nil }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			noLeftGoroutines(t)
			reg := newRegistry(t)
			e := newImageEngine(t, RegistryConfig{})
			tt.serve(reg)
			_, err := e.Pull(t.Context(), reg.Host+"/app:v1", nil)
			t.Log(err)
			if !tt.ok(err) {
				t.Errorf("got %v", err)
			}
			if errors.As(err, &media) && (media.Part == "" || media.Error() == "") {
				t.Errorf("%+v", media)
			}
			checkUntouched(t, e)
		})
	}
}

func TestPullCancelled(t *testing.T) {
	noLeftGoroutines(t)
	reg := newRegistry(t)
	e := newImageEngine(t, RegistryConfig{})
	src := registrytest.RandomImage(50, 2, 10_000)
	reg.Push("app", "v1", src)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("changed my mind")
	reg.Inject(string(src.Layers[1].Digest), -1, func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		cancel(cause)
		registrytest.HangBody(w, req, next)
	})
	if _, err := e.Pull(ctx, reg.Host+"/app:v1", nil); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	checkUntouched(t, e)
}

func TestPullClosedEngine(t *testing.T) {
	e := newImageEngine(t, RegistryConfig{})
	e.closed = true
	if _, err := e.Pull(t.Context(), "localhost:1/app", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := e.Image(t.Context(), "app"); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := e.Images(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// BenchmarkImageFor is what the start of a container pays to find its image.
func BenchmarkImageFor(b *testing.B) {
	reg := registrytest.New()
	defer reg.Close()
	e := newImageEngine(b, RegistryConfig{})
	reg.Push("app", "v1", registrytest.RandomImage(1, 6, 1000))
	spec := &ContainerSpec{Image: reg.Host + "/app:v1"}
	for b.Loop() {
		_, _, release, err := e.imageFor(b.Context(), spec)
		if err != nil {
			b.Fatal(err)
		}
		release()
	}
}
