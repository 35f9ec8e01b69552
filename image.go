package coracle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle/layerfs"
)

// pullState is what an engine remembers of images.
type pullState struct {
	images struct {
		sync.Mutex
		parsed map[digest.Digest]*parsedImage // by manifest
	}
}

// maxParsed bounds the memory of parsed manifests; an engine that uses more images reads them again.
const maxParsed = 64

// parsedImage is what a manifest and its config say. It never changes, as both are named by their content.
type parsedImage struct {
	manifest  ocispec.Manifest
	config    ocispec.Image
	rawConfig []byte
}

// ImageConfig is how a container of an image runs: Entrypoint, Cmd, Env, WorkingDir, User, Labels, ExposedPorts,
// StopSignal and so on (OCI image specification, "Image Configuration").
type ImageConfig = ocispec.ImageConfig

// An Image is a handle on an image of the store. What it says was true when it was made: content never changes, but
// names may move on.
type Image struct {
	eng  *Engine
	refs []string
	desc ocispec.Descriptor
	*parsedImage
}

// Ref returns the image's name: the one that it was asked for by, or else the first of [Image.Refs]. It is empty where
// the image has none.
func (i *Image) Ref() string {
	if len(i.refs) == 0 {
		return ""
	}
	return i.refs[0]
}

// Refs returns the names of the image in full, such as "docker.io/library/alpine:latest".
func (i *Image) Refs() []string { return slices.Clone(i.refs) }

// ID returns the digest of the image's configuration, which Docker calls the image's id.
func (i *Image) ID() digest.Digest { return i.manifest.Config.Digest }

// Digest returns the digest of the image's manifest; "name@digest" pulls this very image.
func (i *Image) Digest() digest.Digest { return i.desc.Digest }

// Config returns the image's configuration (OCI image specification, "Image Configuration"). The caller may change it.
func (i *Image) Config() ocispec.Image {
	var c ocispec.Image
	if err := json.Unmarshal(i.rawConfig, &c); err != nil {
		return i.config // not possible: it was read from the same bytes before
	}
	return c
}

// Platform returns what the image runs on, such as "linux/amd64".
func (i *Image) Platform() string {
	p := i.config.Platform
	if p.OS == "" && p.Architecture == "" && i.desc.Platform != nil {
		p = *i.desc.Platform
	}
	return platformString(p)
}

// Created returns when the image was made, or the zero time where it does not say.
func (i *Image) Created() time.Time {
	if i.config.Created == nil {
		return time.Time{}
	}
	return *i.config.Created
}

// Size returns the bytes of the image in its registry: manifest, configuration and compressed layers.
func (i *Image) Size() int64 {
	n := i.desc.Size + i.manifest.Config.Size
	for _, l := range i.manifest.Layers {
		n += l.Size
	}
	return n
}

// Layers returns the digests of the uncompressed layers, lowest first (the diff_ids of the specification).
func (i *Image) Layers() []digest.Digest { return slices.Clone(i.config.RootFS.DiffIDs) }

// layerSpecs says what the layers of the image are.
func (i *Image) layerSpecs(fetch func(context.Context, ocispec.Descriptor) (io.ReadCloser, error)) []layerfs.LayerSpec {
	return layerSpecs(&i.manifest, &i.config, fetch)
}

// lease keeps all that the image consists of.
func (i *Image) lease(ctx context.Context) (*layerfs.Lease, error) {
	return leaseImage(ctx, i.eng.store, i.desc.Digest, &i.manifest, &i.config)
}

// Image finds an image of the store by its name ("alpine", "quay.io/team/app:v2"), its id, a prefix of its id that no
// other image has, or "name@digest". It asks no registry. The error is an [*OpError] that matches fs.ErrNotExist where
// there is no such image, and [ErrInvalid] where the text is no reference or the prefix is not unique.
func (e *Engine) Image(ctx context.Context, refOrID string) (*Image, error) {
	err := e.use()
	if err == nil {
		var img *Image
		if img, err = e.findImage(ctx, refOrID); err == nil {
			return img, nil
		}
	}
	return nil, imageError("find", refOrID, err)
}

// Images returns the images of the store, each once, by name; first those that have none, since another image has
// taken their last name or [Image.Untag] has. Entries that other tools made and that are no images, or whose files are
// missing, are left out and logged.
func (e *Engine) Images(ctx context.Context) ([]*Image, error) {
	err := e.use()
	if err == nil {
		var list []*Image
		if list, err = e.listImages(ctx); err == nil {
			return list, nil
		}
	}
	return nil, imageError("list", "", err)
}

func (e *Engine) findImage(ctx context.Context, name string) (*Image, error) {
	ref, refErr := ParseReference(name)
	refs, err := e.store.List()
	if err != nil {
		return nil, err
	}
	if refErr == nil {
		key := ref.key()
		for _, r := range refs {
			if r.Name == key {
				return e.loadImage(ctx, r.Descriptor, refNames(refs, r.Descriptor.Digest, key))
			}
		}
		if ref.Digest != "" {
			// The same image under another name of the same repository.
			for _, r := range refs { // one without a name may have been of any repository
				if r.Descriptor.Digest == ref.Digest && (strings.HasPrefix(r.Name, ref.Name()+":") || strings.HasPrefix(r.Name, ref.Name()+"@")) {
					return e.loadImage(ctx, r.Descriptor, refNames(refs, ref.Digest, r.Name))
				}
			}
		}
	}
	if id := strings.TrimPrefix(name, "sha256:"); isHex(id) && len(id) <= 64 {
		img, err := e.findID(ctx, refs, id)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return img, err
		}
		refErr = nil
	}
	if refErr != nil {
		return nil, refErr
	}
	return nil, fmt.Errorf("no such image here: %w", fs.ErrNotExist)
}

// findID finds an image by the beginning of its id.
func (e *Engine) findID(ctx context.Context, refs []layerfs.Reference, prefix string) (*Image, error) {
	var found *Image
	for _, r := range refs {
		if found != nil && found.desc.Digest == r.Descriptor.Digest {
			continue
		}
		img, err := e.loadImage(ctx, r.Descriptor, nil)
		if err != nil {
			continue // not an image, or a damaged one: it is not the one that is meant
		}
		if !strings.HasPrefix(img.ID().Encoded(), prefix) {
			continue
		}
		if found != nil && found.ID() != img.ID() {
			return nil, fmt.Errorf("%w: several images have ids that begin so: write more of it", ErrInvalid)
		}
		if found == nil {
			img.refs = refNames(refs, r.Descriptor.Digest, "")
			found = img
		}
	}
	if found == nil {
		return nil, fs.ErrNotExist
	}
	return found, nil
}

func (e *Engine) listImages(ctx context.Context) ([]*Image, error) {
	refs, err := e.store.List()
	if err != nil {
		return nil, err
	}
	var list []*Image
	seen := make(map[digest.Digest]bool)
	for _, r := range refs {
		if seen[r.Descriptor.Digest] {
			continue
		}
		seen[r.Descriptor.Digest] = true
		img, err := e.loadImage(ctx, r.Descriptor, refNames(refs, r.Descriptor.Digest, ""))
		if err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			e.log.Warn("an entry of the store's index is no usable image", "ref", r.Name, "error", err)
			continue
		}
		list = append(list, img)
	}
	slices.SortFunc(list, func(a, b *Image) int { return strings.Compare(a.Ref(), b.Ref()) })
	return list, nil
}

// refNames returns the names of a manifest, sorted but for one that comes first.
func refNames(refs []layerfs.Reference, d digest.Digest, first string) []string {
	var names []string
	for _, r := range refs {
		if r.Descriptor.Digest == d && r.Name != first && r.Name != "" {
			names = append(names, r.Name)
		}
	}
	slices.Sort(names)
	if first != "" {
		names = slices.Insert(names, 0, first)
	}
	return names
}

// loadImage reads an image's manifest and config from the store.
func (e *Engine) loadImage(ctx context.Context, desc ocispec.Descriptor, refs []string) (*Image, error) {
	e.images.Lock()
	p := e.images.parsed[desc.Digest]
	e.images.Unlock()
	if p == nil {
		data, err := e.store.ReadBlob(ctx, desc, maxManifest)
		if err != nil {
			return nil, err
		}
		doc, err := parseManifest(desc.MediaType, data)
		if err != nil {
			return nil, err
		}
		if doc.Manifest == nil {
			return nil, &MediaTypeError{Part: "manifest", MediaType: doc.MediaType, Reason: "an index of the store, made by another tool: pull the image"}
		}
		raw, err := e.store.ReadBlob(ctx, doc.Manifest.Config, maxManifest)
		if err != nil {
			return nil, err
		}
		config, err := parseConfig(raw, doc.Manifest)
		if err != nil {
			return nil, err
		}
		p = &parsedImage{manifest: *doc.Manifest, config: *config, rawConfig: raw}
		e.images.Lock()
		if e.images.parsed == nil || len(e.images.parsed) >= maxParsed {
			e.images.parsed = make(map[digest.Digest]*parsedImage)
		}
		e.images.parsed[desc.Digest] = p
		e.images.Unlock()
	}
	return &Image{eng: e, refs: refs, desc: desc, parsedImage: p}, nil
}

// writeBlob stores a small blob, and again where the stored one is damaged.
func (e *Engine) writeBlob(ctx context.Context, desc ocispec.Descriptor, data []byte) error {
	err := e.store.WriteBlob(ctx, desc, bytes.NewReader(data))
	if err != nil {
		return err
	}
	if _, err = e.store.ReadBlob(ctx, desc, maxManifest); err == nil || !errors.Is(err, layerfs.ErrCorrupt) {
		return err
	}
	if err := e.store.SetBlobAside(desc.Digest); err != nil {
		return err
	}
	return e.store.WriteBlob(ctx, desc, bytes.NewReader(data))
}
