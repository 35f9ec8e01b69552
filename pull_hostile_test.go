package coracle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle/internal/registrytest"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// TestPullLies: more registries that lie; see TestPullFaults.
func TestPullLies(t *testing.T) {
	testutil.NotInVM(t, "it depends on no kernel, and is done outside, ten times as fast")
	notExist, late := fs.ErrNotExist, os.ErrDeadlineExceeded
	tests := []pullFault{
		{"manifest compressed unasked", "/manifests/", registrytest.Gzipped, ErrCorrupt, "manifest", 0},
		{"manifest of a gigabyte, compressed", "/manifests/", registrytest.GzipBomb(1000), ErrCorrupt, "manifest", 0},
		{"config of a gigabyte, compressed", "config", registrytest.GzipBomb(1000), ErrCorrupt, "config", 0},
		{"layer compressed once more", "layer", registrytest.Gzipped, ErrCorrupt, "layer", 0},
		{"layer of a gigabyte, compressed", "layer", registrytest.GzipBomb(1000), ErrCorrupt, "layer", 0},
		{"manifest longer than it is", "/manifests/", registrytest.Longer, ErrCorrupt, "manifest", 0},
		{"config longer than it is", "config", registrytest.Longer, ErrCorrupt, "config", 0},
		{"config short", "config", registrytest.ShortWithoutLength, ErrCorrupt, "config", 0},
		{"config truncated", "config", registrytest.Truncated, nil, "config", 0},
		{"config trickles", "config", registrytest.SlowLoris(20 * time.Millisecond), late, "config", 0},
		{"config hangs", "config", registrytest.Hang, late, "config", 0},
		{"layer longer than it is", "layer", registrytest.Longer, ErrCorrupt, "layer", 0},
		{"only the end of a manifest", "/manifests/", registrytest.Partial, nil, "manifest", 206},
		{"only the end of a config", "config", registrytest.Partial, nil, "config", 206},
		{"only the end of a layer", "layer", registrytest.Partial, nil, "layer", 206},
		{"no content", "layer", registrytest.Status(204, ""), nil, "layer", 204},
		{"headers of two megabytes", "/manifests/", registrytest.HugeHeader(2 << 20), nil, "manifest", 0},
		{"headers of a layer of two megabytes", "layer", registrytest.HugeHeader(2 << 20), nil, "layer", 0},
		{"header trickles", "/manifests/", registrytest.HeaderTrickles(20 * time.Millisecond), late, "manifest", 0},
		{"header of a layer trickles", "layer", registrytest.HeaderTrickles(20 * time.Millisecond), late, "layer", 0},
		{"informational answers for ever", "/manifests/", registrytest.Informational, nil, "manifest", 0},
		{"digest of another content", "/manifests/", registrytest.ContentDigest(string(digest.FromString("other"))), ErrCorrupt, "manifest", 0},
		{"error without end", "/manifests/", registrytest.ErrorEndless(500), nil, "manifest", 0},
		{"error of a layer without end", "layer", registrytest.ErrorEndless(404), nil, "layer", 0},
		{"manifest redirects to a file", "/manifests/", registrytest.RedirectURL("file:///etc/passwd"), errors.ErrUnsupported, "manifest", 0},
		{"layer redirects to a file", "layer", registrytest.RedirectURL("file:///etc/passwd"), errors.ErrUnsupported, "layer", 0},
		{"layer redirects to ftp", "layer", registrytest.RedirectURL("ftp://127.0.0.1/x"), errors.ErrUnsupported, "layer", 0},
		{"layer redirects to nowhere", "layer", registrytest.RedirectURL(""), nil, "layer", 307},
		{"layer redirects to no URL", "layer", registrytest.RedirectURL("http://[::1]:namedport\x7f/"), nil, "layer", 0},
		{"layer redirects to clear text elsewhere", "layer", registrytest.RedirectURL("http://cdn.example/x"), fs.ErrPermission, "layer", 0},
		{"busy, and does not say for how long", "/manifests/", registrytest.Status(429, ""), nil, "manifest", 429},
		{"overloaded, and does not say for how long", "layer", registrytest.Status(503, ""), nil, "layer", 503},
		{"busy until a day that is none", "/manifests/", registrytest.Status(429, "Fri, 99 Foo 2026"), nil, "manifest", 429},
		{"asks for a login that leads nowhere", "/manifests/", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://127.0.0.1:1/token",service="x"`)
			w.WriteHeader(401)
		}, fs.ErrPermission, "manifest", 401},
		{"gone", "layer", registrytest.Status(410, ""), nil, "layer", 410},
		{"all redirected to a missing one", "/v2/", registrytest.Status(404, ""), notExist, "registry", 404},
	}
	for _, tt := range tests {
		t.Run(tt.name, tt.run)
	}
}

// TestPullLiesInBoundedMemory: none of those that send much makes the heap grow with it.
func TestPullLiesInBoundedMemory(t *testing.T) {
	testutil.NotInVM(t, "it depends on no kernel, and is done outside, ten times as fast")
	for name, fault := range map[string]func(http.ResponseWriter, *http.Request, http.Handler){
		"endless": registrytest.Endless, "gigabytes, compressed": registrytest.GzipBomb(2000), "an error without end": registrytest.ErrorEndless(500),
		"headers without end": registrytest.HugeHeader(9 << 20),
	} {
		for _, path := range []string{"/manifests/", "/blobs/", "/token"} {
			t.Run(name+" "+path, func(t *testing.T) {
				reg := newRegistry(t)
				reg.Push("app", "v1", registrytest.RandomImage(31, 1, 1000))
				reg.RequireToken("", "", "", "")
				reg.Inject(path, -1, fault)
				// A transport that takes compression off by itself, which the engine's own does not.
				tr := new(http.Transport)
				t.Cleanup(tr.CloseIdleConnections)
				e := newImageEngine(t, RegistryConfig{IdleTimeout: 2 * time.Second, Transport: tr})
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				_, err := e.Pull(t.Context(), reg.Host+"/app:v1", nil)
				runtime.ReadMemStats(&after)
				// A header of nine megabytes is within the bounds of the caller's own transport, and harmless where it fits.
				if err == nil && !strings.HasPrefix(name, "headers") {
					t.Error("it was pulled")
				}
				// What the registry of the test allocates counts too.
				if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 400 {
					t.Errorf("%d MB were allocated", n)
				}
				checkStore(t, e)
			})
		}
	}
}

// TestPullTrickles: token servers that are slow, and those that redirect to other schemes.
func TestPullTrickles(t *testing.T) {
	for name, fault := range map[string]func(http.ResponseWriter, *http.Request, http.Handler){
		"trickles": registrytest.SlowLoris(20 * time.Millisecond), "header trickles": registrytest.HeaderTrickles(20 * time.Millisecond),
		"hangs half-way": registrytest.HangBody, "informational": registrytest.Informational, "redirects to a file": registrytest.RedirectURL("file:///etc/passwd"),
		"compressed": registrytest.GzipBomb(100), "error without end": registrytest.ErrorEndless(403), "header of two megabytes": registrytest.HugeHeader(2 << 20),
		"token with a line break": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			fmt.Fprint(w, `{"token":"a\r\nX-Evil: 1"}`)
		},
		"token of a megabyte": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			fmt.Fprintf(w, `{"token":"%s"}`, strings.Repeat("t", 1<<20))
		},
	} {
		t.Run(name, func(t *testing.T) {
			noLeftGoroutines(t)
			reg := newRegistry(t)
			reg.Push("app", "v1", registrytest.RandomImage(73, 1, 100))
			reg.RequireToken("user", "s3cret", "", "")
			reg.Inject("/token", -1, func(w http.ResponseWriter, req *http.Request, _ http.Handler) {
				fault(w, req, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					fmt.Fprintf(w, `{"token":"%s"}`, strings.Repeat("t", 1000))
				}))
			})
			e := newImageEngine(t, RegistryConfig{IdleTimeout: 300 * time.Millisecond})
			began := time.Now()
			_, err := e.Pull(t.Context(), reg.Host+"/app:v1", &PullOptions{Credentials: &Credentials{Username: "user", Password: "s3cret"}})
			var pe *PullError
			if !errors.As(err, &pe) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("got %v", err)
			}
			t.Log(err)
			if d := time.Since(began); d > 20*time.Second {
				t.Errorf("it took %v", d)
			}
			checkUntouched(t, e)
		})
	}
}

// imageWith serves an image whose manifest and config are edited as text.
func imageWith(reg *registrytest.Registry, manifest, config func(string) string) {
	img := registrytest.NewImage(registrytest.RandomLayer(1, ocispec.MediaTypeImageLayerGzip, 100))
	reg.Push("app", "", img)
	m, raw := img.Manifest()
	if config != nil {
		raw = []byte(config(string(raw)))
		m.Config.Digest, m.Config.Size = digest.FromBytes(raw), int64(len(raw))
		reg.PutBlob(raw)
	}
	data, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	if manifest != nil {
		data = []byte(manifest(string(data)))
	}
	reg.PutManifest("app", "v1", m.MediaType, data)
}

// A document that says two things is two images under one digest: one that is looked over, and one that runs.
func TestCVE_2021_41190_OneDocumentOneMeaning(t *testing.T) {
	replace := func(old, new string) func(string) string {
		return func(s string) string {
			if !strings.Contains(s, old) {
				panic(old)
			}
			return strings.Replace(s, old, new, 1)
		}
	}
	for _, tt := range []struct {
		name             string
		manifest, config func(string) string
		ok               bool
	}{
		{"as it is", nil, nil, true},
		{"layers twice", replace(`"layers":`, `"layers":[],"layers":`), nil, false},
		{"Layers and layers", replace(`"layers":`, `"Layers":[],"layers":`), nil, false},
		{"layers and LAYERS", replace(`"layers":[`, `"LAYERS":[],"layers":[`), nil, false},
		{"Layers alone", replace(`"layers":`, `"Layers":`), nil, false},
		{"layerſ, which folds to layers", replace(`"layers":`, `"layerſ":[],"layers":`), nil, false},
		{"config twice", replace(`"config":`, `"config":{},"config":`), nil, false},
		{"Config and config", replace(`"config":`, `"Config":{},"config":`), nil, false},
		{"mediaType twice", replace(`"mediaType":`, `"mediaType":"x","mediaType":`), nil, false},
		{"MediaType and mediaType", replace(`"mediaType":`, `"MediaType":"x","mediaType":`), nil, false},
		{"digest twice in a layer", replace(`"layers":[{`, `"layers":[{"digest":"`+someDigest+`",`), nil, false},
		{"Digest and digest in a layer", replace(`"layers":[{`, `"layers":[{"Digest":"`+someDigest+`",`), nil, false},
		{"manifest that is an index too", replace(`"layers":`, `"manifests":[],"layers":`), nil, false},
		{"manifest that is an Index too", replace(`"layers":`, `"Manifests":[],"layers":`), nil, false},
		{"manifest of schema 1 too", replace(`"layers":`, `"fsLayers":[],"layers":`), nil, false},
		{"unknown key", replace(`"layers":`, `"x-unknown":{"a":1,"A":2},"layers":`), nil, true},
		{"annotations in two cases", replace(`"layers":`, `"annotations":{"a":"1","A":"2","config":"x","Config":"y"},"layers":`), nil, true},
		{"the same annotation twice", replace(`"layers":`, `"annotations":{"a":"1","a":"2"},"layers":`), nil, false},
		{"two documents", func(s string) string { return s + s }, nil, false},
		{"rootfs twice", nil, replace(`"rootfs":`, `"rootfs":{"type":"layers","diff_ids":["`+someDigest+`"]},"rootfs":`), false},
		{"RootFS and rootfs", nil, replace(`"rootfs":`, `"RootFS":{"type":"layers","diff_ids":["`+someDigest+`"]},"rootfs":`), false},
		{"config of the config twice", nil, replace(`"rootfs":`, `"config":{"User":"1"},"Config":{"User":"0"},"rootfs":`), false},
		{"user and User", nil, replace(`"config":{}`, `"config":{"User":"1","user":"0"}`), false},
		{"labels in two cases", nil, replace(`"config":{}`, `"config":{"Labels":{"a":"1","A":"2","user":"x","User":"y"},"Volumes":{"/a":{},"/A":{}}}`), true},
		{"Docker's other keys", nil, replace(`"config":{}`, `"config":{"Image":"x"},"container_config":{"Labels":{"a":"1","A":"2"}},"docker_version":"1"`), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg := newRegistry(t)
			imageWith(reg, tt.manifest, tt.config)
			e := newImageEngine(t, RegistryConfig{})
			_, err := e.Pull(t.Context(), reg.Host+"/app:v1", nil)
			if tt.ok != (err == nil) || err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v", err)
			}
			if err != nil {
				checkUntouched(t, e)
			}
		})
	}
}

// Wherever a digest stands, it is one before anything is named after it.
func TestCVE_2024_3727_DigestsAreDigests(t *testing.T) {
	hex := strings.Repeat("a", 64)
	bad := []digest.Digest{"", "sha256", "sha256:", "sha256:../../../../etc/passwd", digest.Digest("sha256:" + hex[:63]), digest.Digest("sha256:" + hex + "a"), digest.Digest("sha256:" + strings.ToUpper(hex)),
		digest.Digest("SHA256:" + hex), digest.Digest("sha256:" + hex[:63] + "g"), digest.Digest("sha256:" + hex[:63] + "/"), digest.Digest("sha256:" + hex + "\n"), digest.Digest("md5:" + hex[:32]),
		digest.SHA512.FromString("x"), digest.SHA384.FromString("x"), digest.Digest("sha256:" + hex + "/../x"), digest.Digest("../sha256:" + hex), digest.Digest("sha256+b64:" + hex)}
	m, rawConfig := registrytest.RandomImage(1, 1, 10).Manifest()
	for _, d := range bad {
		document := func(v any) []byte {
			data, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
		inLayer, inConfig := m, m
		inLayer.Layers = []ocispec.Descriptor{m.Layers[0]}
		inLayer.Layers[0].Digest = d
		inConfig.Config.Digest = d
		index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{{MediaType: m.MediaType, Digest: d}}}
		index.SchemaVersion = 2
		for place, err := range map[string]error{
			"layer":     second(parseManifest(m.MediaType, document(inLayer))),
			"config":    second(parseManifest(m.MediaType, document(inConfig))),
			"index":     second(parseManifest(index.MediaType, document(index))),
			"diff_ids":  second(parseConfig([]byte(strings.Replace(string(rawConfig), string(mustConfig(t, rawConfig).RootFS.DiffIDs[0]), strings.Trim(string(document(d)), `"`), 1)), &m)),
			"reference": second(ParseReference("app@" + string(d))),
		} {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%q as the digest of a %s: %v", d, place, err)
			}
		}
		e := newImageEngine(t, RegistryConfig{})
		desc := ocispec.Descriptor{Digest: d, Size: 1}
		if err := e.store.WriteBlob(t.Context(), desc, strings.NewReader("x")); err == nil {
			t.Errorf("a blob was written as %q", d)
		}
		if f, err := e.store.OpenBlob(d); err == nil {
			f.Close()
			t.Errorf("a blob was opened as %q", d)
		}
		if err := e.store.RemoveBlob(d); err == nil {
			t.Errorf("a blob was removed as %q", d)
		}
		if err := e.store.Tag(t.Context(), "x", desc); err == nil {
			t.Errorf("%q was tagged", d)
		}
		checkUntouched(t, e)
	}
}

func second[T any](_ T, err error) error { return err }

func mustConfig(t *testing.T, raw []byte) ocispec.Image {
	var c ocispec.Image
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// Annotations and labels are text for people: none names a file, an image or a registry, and none changes how a container
// runs. URLs in descriptors are not asked, and data in them is not taken (OCI image specification, "Descriptors").
func TestCVE_2025_62725_AnnotationsAreNoPaths(t *testing.T) {
	elsewhere, reg := newRegistry(t), newRegistry(t)
	evil := filepath.Join(t.TempDir(), "evil")
	hostile := map[string]string{pulledForAnnotation: "linux/none"}
	for _, key := range []string{"org.opencontainers.image.title", "org.opencontainers.image.ref.name", "io.containerd.image.name", "com.docker.compose.file", "com.docker.compose.envfile",
		"com.docker.compose.extends", "org.opencontainers.image.base.name", "vnd.docker.reference.digest", "io.deis.oras.content.unpack", "org.cncf.model.filepath"} {
		hostile[key] = "../../../../../../../../../.." + evil
	}
	layer := registrytest.RandomLayer(1, ocispec.MediaTypeImageLayerGzip, 100)
	layer.Annotations, layer.URLs = hostile, []string{elsewhere.URL() + "/v2/app/blobs/" + string(layer.Digest), "file:///etc/passwd"}
	layer.Descriptor.Data = []byte("something else")
	img := registrytest.NewImage(layer)
	img.Config.Config.Labels = hostile
	reg.Push("app", "", img)
	m, _ := img.Manifest()
	m.Annotations, m.Config.Annotations = hostile, hostile
	m.Config.URLs, m.Config.Data = []string{elsewhere.URL() + "/config"}, []byte(`{"os":"linux"}`)
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	desc := reg.PutManifest("app", "", m.MediaType, data)
	desc.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	desc.Annotations, desc.URLs, desc.Data = hostile, []string{elsewhere.URL() + "/manifest"}, []byte("{}")
	reg.PushIndex("app", "v1", desc)

	e := newImageEngine(t, RegistryConfig{})
	pulled, err := e.Pull(t.Context(), reg.Host+"/app:v1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if q := elsewhere.Requests(); len(q) != 0 {
		t.Errorf("somebody else was asked: %v", q)
	}
	if _, err := os.Lstat(evil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", evil, err)
	}
	refs, err := e.store.List()
	if err != nil || len(refs) != 1 || refs[0].Name != reg.Host+"/app:v1" || refs[0].Descriptor.Annotations[pulledForAnnotation] == "linux/none" {
		t.Errorf("%v, %v", refs, err)
	}
	err = filepath.WalkDir(e.store.Dir(), func(path string, _ fs.DirEntry, err error) error {
		if strings.Contains(path[len(e.store.Dir()):], "evil") {
			t.Errorf("there is %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if pulled.Ref() != reg.Host+"/app:v1" {
		t.Errorf("it is called %s", pulled.Ref())
	}
	checkStore(t, e)
}

// With or without labels, those of runtimes and orchestrators among them, it is the same container.
func TestCVE_2026_53488_LabelsMakeTheSameContainer(t *testing.T) {
	e := newImageEngine(t, RegistryConfig{})
	hostile := map[string]string{"run.oci.hooks": "/bin/true", "io.kubernetes.cri-o.userns-mode": "host", "org.systemd.property.ExecStart": "'/bin/true'", "io.kubernetes.cri-o.Devices": "/dev/sda",
		"run.oci.keep_original_groups": "1", "io.podman.annotations.privileged": "TRUE", "com.docker.compose.project.config_files": "/etc/passwd", "nvidia.cdi.k8s.io/x": "all"}
	var plain ocispec.ImageConfig
	labelled := plain
	labelled.Labels = hostile
	for _, spec := range []*ContainerSpec{{Args: []string{"/x"}}, {Args: []string{"/x"}, Labels: hostile}} {
		with, err1 := spec.resolve(labelled, strings.Repeat("0", idLength))
		bare := *spec
		bare.Labels = nil
		without, err2 := bare.resolve(plain, strings.Repeat("0", idLength))
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		a, err1 := e.runtimeSpec(&containerState{Spec: *spec, Resolved: with})
		b, err2 := e.runtimeSpec(&containerState{Spec: bare, Resolved: without})
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		textA, _ := json.Marshal(a)
		textB, _ := json.Marshal(b)
		if string(textA) != string(textB) {
			t.Errorf("labels changed the container:\n%s\n%s", textA, textB)
		}
	}
}
