package coracle

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle/internal/registrytest"
)

func TestParseManifestMediaType(t *testing.T) {
	m, _ := registrytest.RandomImage(1, 1, 10).Manifest()
	document := func(mediaType string) []byte {
		m.MediaType = mediaType
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	const oci = ocispec.MediaTypeImageManifest
	tests := []struct {
		header, document string
		ok               bool
	}{
		{oci, oci, true}, {oci, "", true}, {"", oci, true}, {oci + "; charset=utf-8", oci, true}, {dockerManifest, dockerManifest, true},
		{"application/json", oci, true}, {"text/plain; charset=utf-8", oci, true}, {"application/octet-stream", dockerManifest, true},
		{"", "", false}, {"application/json", "", false}, {oci, dockerManifest, false}, {dockerManifest, oci, false},
		{oci, ocispec.MediaTypeImageIndex, false}, {ocispec.MediaTypeImageIndex, "", false}, {"text/html", "", false}, {"///", oci, false},
		{dockerManifest1, "", false}, {dockerManifest1Signed, dockerManifest1Signed, false}, {"", "application/vnd.unheard.of+json", false},
	}
	for _, tt := range tests {
		doc, err := parseManifest(tt.header, document(tt.document))
		if (err == nil) != tt.ok || tt.ok && (doc.Manifest == nil || doc.Index != nil) {
			t.Errorf("header %q, document %q: %v", tt.header, tt.document, err)
		}
	}
}

func TestParseManifestBounds(t *testing.T) {
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(""), Size: 1}
	m, _ := registrytest.RandomImage(1, 0, 10).Manifest()
	for n, ok := range map[int]bool{0: true, maxImageLayers: true, maxImageLayers + 1: false} {
		m.Layers = make([]ocispec.Descriptor, n)
		for i := range m.Layers {
			m.Layers[i] = layer
		}
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseManifest(m.MediaType, data); (err == nil) != ok {
			t.Errorf("%d layers: %v", n, err)
		}
	}
	if _, err := parseManifest(m.MediaType, []byte(strings.Repeat(" ", maxManifest)+"{}")); !errors.Is(err, ErrInvalid) {
		t.Errorf("too large: %v", err)
	}
}

func TestParseConfig(t *testing.T) {
	m, good := registrytest.RandomImage(1, 1, 10).Manifest()
	if _, err := parseConfig(good, &m); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]string{
		"no JSON": "x", "no object": "[]", "no rootfs": "{}", "too large": strings.Repeat(" ", maxManifest) + string(good),
		"other type of rootfs": `{"rootfs":{"type":"layers+base","diff_ids":["` + someDigest + `"]}}`,
		"no digest":            `{"rootfs":{"type":"layers","diff_ids":["../x"]}}`,
		"other algorithm":      `{"rootfs":{"type":"layers","diff_ids":["` + string(digest.SHA512.FromString("")) + `"]}}`,
		"too many":             `{"rootfs":{"type":"layers","diff_ids":["` + someDigest + `","` + someDigest + `"]}}`,
	} {
		if _, err := parseConfig([]byte(bad), &m); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCompatible(t *testing.T) {
	for in, want := range map[string]string{
		"amd64":        "linux/amd64 linux/386",
		"amd64/v1":     "linux/amd64 linux/386",
		"amd64/v3":     "linux/amd64/v3 linux/amd64/v2 linux/amd64 linux/386",
		"386":          "linux/386",
		"arm64":        "linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
		"arm/v7":       "linux/arm/v7 linux/arm/v6 linux/arm/v5",
		"arm":          "linux/arm/v7 linux/arm/v6 linux/arm/v5",
		"arm/v5":       "linux/arm/v5",
		"riscv64":      "linux/riscv64",
		"amd64/v99999": "linux/amd64/v99999 linux/386",
		"arm/x":        "linux/arm/vx",
	} {
		if strings.Contains(in, "/") {
			in = "linux/" + in
		}
		p, err := parsePlatform(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		var got []string
		for _, c := range compatible(p) {
			got = append(got, platformString(c))
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: got %s, want %s", in, s, want)
		}
	}
}

// TestChoosePlatformUnnamed: an entry without platform is taken where nothing better is there.
func TestChoosePlatformUnnamed(t *testing.T) {
	unnamed := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("a")}
	artifact := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("b"), ArtifactType: "application/x"}
	named := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("c"), Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	want, err := parsePlatform("linux/amd64")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		list []ocispec.Descriptor
		want digest.Digest
	}{{[]ocispec.Descriptor{artifact, unnamed}, unnamed.Digest}, {[]ocispec.Descriptor{unnamed, named}, named.Digest}, {[]ocispec.Descriptor{named, unnamed}, named.Digest}} {
		got, err := choosePlatform(&ocispec.Index{Manifests: tt.list}, want)
		if err != nil || got.Digest != tt.want {
			t.Errorf("%v: %v, %v", tt.list, got.Digest, err)
		}
	}
	if _, err := choosePlatform(&ocispec.Index{Manifests: []ocispec.Descriptor{artifact}}, want); err == nil {
		t.Error("an artifact was taken for an image")
	}
}

// FuzzManifest feeds foreign bytes to everything that reads manifests, indexes and configurations. Whatever is accepted
// keeps the promises that the rest relies on.
func FuzzManifest(f *testing.F) {
	img := registrytest.RandomImage(1, 2, 10)
	m, config := img.Manifest()
	manifest, err := json.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":7,"platform":{"os":"linux","architecture":"arm","variant":"v6"}}]}`, m.MediaType, digest.FromBytes(manifest))
	f.Add(m.MediaType, manifest, config)
	f.Add("", manifest, []byte(`{"rootfs":{"type":"layers","diff_ids":["sha256:x"]}}`))
	f.Add(ocispec.MediaTypeImageIndex, []byte(index), []byte(`{}`))
	f.Add(dockerManifestList, []byte(index), []byte(`null`))
	f.Add(dockerManifest, []byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.docker.container.image.v1+json"},"layers":[null]}`), []byte(`[]`))
	f.Fuzz(func(t *testing.T, contentType string, data, config []byte) {
		doc, err := parseManifest(contentType, data)
		if err != nil {
			return
		}
		if (doc.Manifest == nil) == (doc.Index == nil) {
			t.Fatal("neither or both")
		}
		if doc.Index != nil {
			for _, p := range []string{"", "arm/v7", "linux/arm/v7", "amd64"} {
				if want, err := parsePlatform(p); err == nil {
					if d, err := choosePlatform(doc.Index, want); err == nil && (d.Digest.Validate() != nil || d.Size < 0 || d.Size > maxManifest) {
						t.Fatalf("chose %+v", d)
					}
				}
			}
			return
		}
		for _, d := range append(doc.Manifest.Layers, doc.Manifest.Config) {
			if d.Digest.Validate() != nil || d.Digest.Algorithm() != digest.SHA256 || d.Size < 0 {
				t.Fatalf("accepted %+v", d)
			}
		}
		c, err := parseConfig(config, doc.Manifest)
		if err == nil {
			if len(c.RootFS.DiffIDs) != len(doc.Manifest.Layers) {
				t.Fatal("diff_ids and layers differ in number")
			}
			_ = runsOn(c, ocispec.Platform{OS: "linux", Architecture: "amd64"})
		}
	})
}
