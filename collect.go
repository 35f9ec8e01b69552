package coracle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/layerfs"
)

// What of the store is needed: what the names and entries of its index stand for, what containers are made of, and what
// is being pulled (layerfs knows of the latter by itself).

// collection is a store while what nobody needs is taken away; everybody else is kept out.
type collection struct {
	eng   *Engine
	ctx   context.Context
	store *layerfs.Collection
	// users are the names of the containers that were made of an image, by its id.
	users map[digest.Digest][]string
}

// collect lets change take entries from the index, then takes away what nobody needs.
func (e *Engine) collect(ctx context.Context, change func(*collection) error) (*layerfs.Collected, error) {
	return e.store.Collect(ctx, func(s *layerfs.Collection) error {
		c := &collection{eng: e, ctx: ctx, store: s, users: make(map[digest.Digest][]string)}
		if err := c.markContainers(); err != nil {
			return err
		}
		if err := change(c); err != nil {
			return err
		}
		crashpoint.At("collect: index changed")
		return c.markImages()
	})
}

// markContainers keeps the layers of the containers, also of those whose snapshot is not made yet.
func (c *collection) markContainers() error {
	ids, err := c.eng.containerIDs()
	if err != nil {
		return err
	}
	for _, id := range ids {
		st, err := c.eng.readState(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			// Its snapshot keeps its layers.
			c.eng.log.Warn("a container's state cannot be read: see Engine.Check", "id", id, "error", err)
			continue
		}
		c.users[st.ImageID] = append(c.users[st.ImageID], st.Name)
		for _, l := range st.Layers {
			c.store.KeepLayer(l)
		}
	}
	return nil
}

// removeManifest takes the entries of a manifest from the index. The error matches fs.ErrNotExist if there are none.
func (c *collection) removeManifest(d digest.Digest) error {
	refs, err := c.store.List()
	if err != nil {
		return err
	}
	if !hasManifest(refs, d) {
		return fs.ErrNotExist
	}
	return c.store.RemoveManifests(func(m ocispec.Descriptor) bool { return m.Digest == d })
}

// hasManifest says whether the index has an entry for a manifest.
func hasManifest(refs []layerfs.Reference, d digest.Digest) bool {
	return slices.ContainsFunc(refs, func(r layerfs.Reference) bool { return r.Descriptor.Digest == d })
}

func (c *collection) markImages() error {
	refs, err := c.store.List()
	if err != nil {
		return err
	}
	seen := make(map[digest.Digest]bool)
	for _, r := range refs {
		if err := c.markManifest(r.Descriptor, seen, 0); err != nil {
			return err
		}
	}
	return nil
}

// looseManifest is what any manifest or index, also of an artifact, may point to.
type looseManifest struct {
	Manifests []ocispec.Descriptor `json:"manifests"`
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Blobs     []ocispec.Descriptor `json:"blobs"`
	Subject   *ocispec.Descriptor  `json:"subject"`
}

// maxNested is how deep an index may hold another: what is deeper no tool makes.
const maxNested = 8

// markManifest keeps a manifest and all it points to. Other tools write into the store too: more than images is kept.
func (c *collection) markManifest(desc ocispec.Descriptor, seen map[digest.Digest]bool, depth int) error {
	if seen[desc.Digest] || depth > maxNested {
		return nil
	}
	seen[desc.Digest] = true
	c.store.KeepBlob(desc.Digest)
	data, err := c.eng.store.ReadBlob(c.ctx, desc, maxManifest)
	if absent(err) || desc.Size > maxManifest {
		return nil // what it pointed to nobody can find
	}
	if err != nil {
		return err
	}
	var m looseManifest
	if json.Unmarshal(data, &m) != nil {
		return nil
	}
	for _, list := range [][]ocispec.Descriptor{m.Layers, m.Blobs} {
		for _, d := range list {
			c.store.KeepBlob(d.Digest)
		}
	}
	nested := m.Manifests
	if m.Subject != nil {
		nested = append(nested, *m.Subject)
	}
	for _, d := range nested {
		if err := c.markManifest(d, seen, depth+1); err != nil {
			return err
		}
	}
	if m.Config == nil {
		return nil
	}
	c.store.KeepBlob(m.Config.Digest)
	raw, err := c.eng.store.ReadBlob(c.ctx, *m.Config, maxManifest)
	if absent(err) || m.Config.Size > maxManifest {
		return nil
	}
	if err != nil {
		return err
	}
	var config ocispec.Image
	if json.Unmarshal(raw, &config) != nil {
		return nil
	}
	if err := c.store.KeepLayers(config.RootFS.DiffIDs); err != nil {
		c.eng.log.Warn("an image's config names impossible layers", "config", m.Config.Digest, "error", err)
	}
	return nil
}

// absent says whether an error means that a blob is not here, or not as it should be.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, layerfs.ErrCorrupt)
}

// collected makes the report of a removal.
func (r *PruneReport) collected(got *layerfs.Collected) {
	r.Layers, r.Blobs, r.Bytes = len(got.Layers), len(got.Blobs), got.Bytes
}

// PruneReport says what a pruning took away.
type PruneReport struct {
	// Images are the images that are gone: all names of each, or its digest where it had none.
	Images []string
	// Containers are the names of the containers that are gone.
	Containers []string
	// Layers and Blobs are how many unpacked layers and blobs went with them, or were left by pulls that did not come to
	// their end.
	Layers, Blobs int
	// Bytes is the size of those blobs, of the files of those layers, and of what those containers had written.
	Bytes int64
}

// String sums the report up in one line.
func (r *PruneReport) String() string {
	return fmt.Sprintf("%d images, %d containers, %d layers and %d blobs with %d bytes", len(r.Images), len(r.Containers), r.Layers, r.Blobs, r.Bytes)
}
