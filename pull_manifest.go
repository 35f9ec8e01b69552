package coracle

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types that the OCI image specification does not define (Docker Image Manifest V2, Schema 1 and 2).
const (
	dockerManifest        = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest1       = "application/vnd.docker.distribution.manifest.v1+json"
	dockerManifest1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	dockerConfigType      = "application/vnd.docker.container.image.v1+json"
	dockerLayer           = "application/vnd.docker.image.rootfs.diff.tar"
	dockerLayerGzip       = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	dockerLayerZstd       = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	dockerForeignLayer    = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	dockerForeignPlain    = "application/vnd.docker.image.rootfs.foreign.diff.tar"
)

const (
	// maxManifest is the largest manifest, index or config, in bytes, that is read. Registries accept no larger
	// manifests (OCI distribution specification, "Pushing Manifests").
	maxManifest = 4 << 20
	// maxImageLayers is far beyond what anyone makes; Docker stops at 127.
	maxImageLayers = 1000
	// maxIndexEntries bounds the choice of a platform.
	maxIndexEntries = 10000
)

// A MediaTypeError says that a manifest, config or layer is of a kind that coracle does not take, such as a manifest
// of Docker's first schema, a foreign layer, or something that is no image at all. It matches errors.ErrUnsupported.
type MediaTypeError struct {
	// Part is what has the type: "manifest", "config" or "layer".
	Part string
	// MediaType is the type as the registry gives it.
	MediaType string
	// Reason says why it is refused, or what to do.
	Reason string
}

// Error names part, type and reason.
func (e *MediaTypeError) Error() string {
	return fmt.Sprintf("%s of media type %s: %s", e.Part, quoteShort(e.MediaType), e.Reason)
}

// Is makes the error match errors.ErrUnsupported.
func (e *MediaTypeError) Is(target error) bool { return target == errors.ErrUnsupported }

// parsedManifest is a manifest or an index; exactly one of them is set.
type parsedManifest struct {
	MediaType string
	Manifest  *ocispec.Manifest
	Index     *ocispec.Index
}

// parseManifest reads what a registry returned as a manifest. contentType is the header, which decides, and which the
// document must not contradict (CVE-2021-41190: one document taken for two things).
func parseManifest(contentType string, data []byte) (parsedManifest, error) {
	var doc parsedManifest
	invalid := func(format string, args ...any) (parsedManifest, error) {
		return parsedManifest{}, fmt.Errorf("manifest: %s: %w", fmt.Sprintf(format, args...), ErrInvalid)
	}
	if len(data) > maxManifest {
		return invalid("larger than %d bytes", maxManifest)
	}
	var head struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Layers        json.RawMessage `json:"layers"`
		Config        json.RawMessage `json:"config"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return invalid("not JSON of a manifest: %v", err)
	}
	if err := checkKeys(data, true); err != nil {
		return invalid("%v", err)
	}
	doc.MediaType = head.MediaType
	if contentType != "" {
		t, _, err := mime.ParseMediaType(contentType)
		if err != nil {
			return invalid("Content-Type %s", quoteShort(contentType))
		}
		switch {
		case t == "application/json" || t == "text/plain" || t == "application/octet-stream":
			// A file server that knows no better; the document must say it.
		case head.MediaType != "" && head.MediaType != t:
			return invalid("the registry says %s, the document %s", quoteShort(t), quoteShort(head.MediaType))
		default:
			doc.MediaType = t
		}
	}
	switch doc.MediaType {
	case ocispec.MediaTypeImageManifest, dockerManifest:
		if head.Manifests != nil || head.FSLayers != nil {
			return invalid("a manifest that is an index or an older manifest too")
		}
		doc.Manifest = new(ocispec.Manifest)
		if err := json.Unmarshal(data, doc.Manifest); err != nil {
			return invalid("%v", err)
		}
	case ocispec.MediaTypeImageIndex, dockerManifestList:
		if head.Layers != nil || head.Config != nil || head.FSLayers != nil {
			return invalid("an index that is a manifest too")
		}
		doc.Index = new(ocispec.Index)
		if err := json.Unmarshal(data, doc.Index); err != nil {
			return invalid("%v", err)
		}
	case dockerManifest1, dockerManifest1Signed:
		return parsedManifest{}, &MediaTypeError{Part: "manifest", MediaType: doc.MediaType, Reason: "manifests of Docker's schema 1 are obsolete: push the image again with a current tool"}
	case "":
		return parsedManifest{}, &MediaTypeError{Part: "manifest", Reason: "neither the registry nor the document says what it is"}
	default:
		return parsedManifest{}, &MediaTypeError{Part: "manifest", MediaType: doc.MediaType, Reason: "it is no image manifest and no index"}
	}
	if head.SchemaVersion != 2 {
		return invalid("schema version %d", head.SchemaVersion)
	}
	if doc.Index != nil {
		if len(doc.Index.Manifests) > maxIndexEntries {
			return invalid("an index of %d entries", len(doc.Index.Manifests))
		}
		for i, m := range doc.Index.Manifests {
			if err := checkDescriptor(m, maxManifest); err != nil {
				return invalid("entry %d of the index: %v", i, err)
			}
		}
		return doc, nil
	}
	return doc, checkManifest(doc.Manifest)
}

// checkManifest checks what a manifest points to.
func checkManifest(m *ocispec.Manifest) error {
	invalid := func(part string, err error) error {
		return fmt.Errorf("manifest: %s: %w: %w", part, err, ErrInvalid)
	}
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, dockerConfigType:
	default:
		return &MediaTypeError{Part: "config", MediaType: m.Config.MediaType, Reason: "this is no container image"}
	}
	if err := checkDescriptor(m.Config, maxManifest); err != nil {
		return invalid("config", err)
	}
	if len(m.Layers) > maxImageLayers {
		return invalid("layers", fmt.Errorf("%d of them are more than the %d allowed", len(m.Layers), maxImageLayers))
	}
	for i, l := range m.Layers {
		switch l.MediaType {
		case ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd, dockerLayer, dockerLayerGzip, dockerLayerZstd:
		case dockerForeignLayer, dockerForeignPlain, ocispec.MediaTypeImageLayerNonDistributable, ocispec.MediaTypeImageLayerNonDistributableGzip, ocispec.MediaTypeImageLayerNonDistributableZstd: //nolint:staticcheck // deprecated is why they are refused
			return &MediaTypeError{Part: "layer", MediaType: l.MediaType, Reason: "foreign layers are not in the registry: the image needs another system, or a copy that includes them"}
		default:
			return &MediaTypeError{Part: "layer", MediaType: l.MediaType, Reason: "it is no layer of files; encrypted layers are not supported"}
		}
		if err := checkDescriptor(l, -1); err != nil {
			return invalid(fmt.Sprintf("layer %d", i), err)
		}
	}
	return nil
}

// checkDescriptor checks digest and size; a negative max means any size.
func checkDescriptor(d ocispec.Descriptor, max int64) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %s: %w", quoteShort(string(d.Digest)), err)
	}
	if d.Digest.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %s: only sha256 is supported", quoteShort(string(d.Digest)))
	}
	if d.Size < 0 || max >= 0 && d.Size > max {
		return fmt.Errorf("%s: a size of %d bytes", d.Digest, d.Size)
	}
	return nil
}

// parseConfig reads an image's configuration and checks it against the manifest.
func parseConfig(data []byte, m *ocispec.Manifest) (*ocispec.Image, error) {
	var c ocispec.Image
	if len(data) > maxManifest {
		return nil, fmt.Errorf("config: larger than %d bytes: %w", maxManifest, ErrInvalid)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("config: %v: %w", err, ErrInvalid)
	}
	if err := checkKeys(data, false); err != nil {
		return nil, fmt.Errorf("config: %v: %w", err, ErrInvalid)
	}
	if c.RootFS.Type != "" && c.RootFS.Type != "layers" {
		return nil, fmt.Errorf("config: rootfs of type %s: %w", quoteShort(c.RootFS.Type), ErrInvalid)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("config: it has %d diff_ids, the manifest %d layers: %w", len(c.RootFS.DiffIDs), len(m.Layers), ErrInvalid)
	}
	for i, d := range c.RootFS.DiffIDs {
		if err := checkDescriptor(ocispec.Descriptor{Digest: d}, -1); err != nil {
			return nil, fmt.Errorf("config: diff_ids[%d]: %w: %w", i, err, ErrInvalid)
		}
	}
	return &c, nil
}
