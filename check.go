package coracle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle/layerfs"
)

// DamageKind says what is damaged.
type DamageKind string

// The kinds of damage.
const (
	DamagedIndex     DamageKind = "index"     // the store's index.json, which has all names
	DamagedImage     DamageKind = "image"     // a manifest or config that is not what it should be, or one that is missing
	DamagedBlob      DamageKind = "blob"      // a layer's blob
	DamagedLayer     DamageKind = "layer"     // an unpacked layer
	DamagedSnapshot  DamageKind = "snapshot"  // a container's root filesystem, or one that is left over
	DamagedContainer DamageKind = "container" // a container's record
	DamagedName      DamageKind = "name"      // a container's name that leads nowhere
)

// A Damage is something in a root that is not as it should be. It is an error, which matches [ErrCorrupt] where the
// content is wrong and fs.ErrNotExist where it is missing.
type Damage struct {
	Kind DamageKind
	// Name is the digest of a blob or manifest, the diffID of a layer, the id of a container or snapshot, or a name.
	Name string
	// Images are the names of the images that need it, their digests where they have none; Containers those of the
	// containers that were made of it.
	Images, Containers []string
	// Err says what is wrong.
	Err error

	fix func(context.Context) error // nil where pulling the images is what helps
}

// Error names what is damaged, how, and what needs it.
func (d *Damage) Error() string {
	s := fmt.Sprintf("%s %s: %v", d.Kind, d.Name, d.Err)
	if len(d.Images) > 0 {
		s += fmt.Sprintf(" (of %s)", d.Images)
	}
	return s
}

// Unwrap returns Err.
func (d *Damage) Unwrap() error { return d.Err }

// A CheckReport says what was looked at, and what of it is damaged.
type CheckReport struct {
	// References, Blobs, Layers, Snapshots and Containers are how many of each were verified.
	References, Blobs, Layers, Snapshots, Containers int
	// Unverified are the keys of the layers that are whole as far as can be seen, but have no blob to be compared with:
	// containers still use them, and their image is gone.
	Unverified []string
	// Damage is what is wrong; empty if nothing is.
	Damage []*Damage
}

// Check reads the whole root and verifies it: every blob against its digest, every unpacked layer against what its blob
// unpacks to, every name, every container's record and snapshot. It takes as long as reading all of it, and unpacking
// it once more, one layer at a time, into temporary files. Others may use the root meanwhile; what comes and goes during
// the check may be left out.
//
// Damaged blobs and layers are set aside: they are not used any more, and are made or pulled again when they are wanted
// the next time, or by [Engine.Repair]. Containers that are running on a damaged layer keep it until they end; those that
// are not cannot be started before it has been made again.
//
// The error is an [*OpError] where the check could not be done. Damage is no error of Check.
func (e *Engine) Check(ctx context.Context) (*CheckReport, error) {
	err := e.use()
	if err == nil {
		c := &checker{eng: e, ctx: ctx, blobs: make(map[digest.Digest]error), layers: make(map[string]bool)}
		if err = c.run(); err == nil {
			return &c.report, nil
		}
	}
	return nil, &OpError{Op: "check", Kind: "engine", Name: e.root, Err: err}
}

type checker struct {
	eng    *Engine
	ctx    context.Context
	report CheckReport

	blobs  map[digest.Digest]error // those that were verified, with the outcome
	layers map[string]bool         // by key, whether it is good, of those that were verified
	users  map[string][]string     // names of containers, by key of their layers
}

func (c *checker) run() error {
	if err := c.containers(); err != nil {
		return err
	}
	refs, err := c.eng.store.List()
	if err != nil {
		c.add(&Damage{Kind: DamagedIndex, Name: "index.json", Err: corrupt(err), fix: c.eng.rebuildIndex})
	}
	seen := make(map[digest.Digest]bool)
	for _, r := range refs {
		c.report.References++
		if d := r.Descriptor.Digest; !seen[d] {
			seen[d] = true
			if err := c.image(r.Descriptor, imageNames(refs, d)); err != nil {
				return err
			}
		}
	}
	if err := c.rest(); err != nil {
		return err
	}
	return context.Cause(c.ctx)
}

// imageNames returns the names of a manifest, or its digest where it has none.
func imageNames(refs []layerfs.Reference, d digest.Digest) []string {
	if names := refNames(refs, d, ""); len(names) > 0 {
		return names
	}
	return []string{string(d)}
}

// add reports damage, at most one of a kind for each object.
func (c *checker) add(d *Damage) {
	for _, old := range c.report.Damage {
		if old.Kind == d.Kind && old.Name == d.Name {
			for _, name := range d.Images {
				if !slices.Contains(old.Images, name) {
					old.Images = append(old.Images, name)
				}
			}
			return
		}
	}
	c.report.Damage = append(c.report.Damage, d)
}

// corrupt makes an error match ErrCorrupt in the terms of this package.
func corrupt(err error) error {
	if errors.Is(err, ErrCorrupt) || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// isDamage tells damage from what keeps a check from being done. What cannot be read because the disk says so is damage.
func (c *checker) isDamage(err error) bool {
	return c.ctx.Err() == nil && (absent(err) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrInvalid) || errors.Is(err, errors.ErrUnsupported) ||
		errors.Is(err, layerfs.ErrInvalidArchive) || errors.Is(err, syscall.EIO))
}

// image verifies an entry of the index with all it needs.
func (c *checker) image(desc ocispec.Descriptor, names []string) error {
	e := c.eng
	damaged := func(d digest.Digest, err error) error {
		if !c.isDamage(err) {
			return err
		}
		c.add(&Damage{Kind: DamagedImage, Name: string(d), Images: names, Err: corrupt(err)})
		return nil
	}
	// What an image of the index has when a lease of it is made stays until that is released: what is missing then is
	// damage, whatever others remove and bring back meanwhile.
	keep := func(blobs, diffIDs []digest.Digest) (_ *layerfs.Lease, gone bool, err error) {
		lease, err := e.store.Lease(c.ctx, blobs, diffIDs)
		if err != nil {
			return nil, false, err
		}
		if gone, err = c.imageGone(desc.Digest); gone || err != nil {
			lease.Release()
		}
		return lease, gone, err
	}
	lease, gone, err := keep([]digest.Digest{desc.Digest}, nil)
	if gone || err != nil {
		return err
	}
	defer lease.Release()
	if err := c.blob(desc); err != nil {
		return damaged(desc.Digest, err)
	}
	data, err := e.store.ReadBlob(c.ctx, desc, maxManifest)
	if err != nil {
		return damaged(desc.Digest, err)
	}
	doc, err := parseManifest(desc.MediaType, data)
	if err != nil || doc.Manifest == nil {
		// What other tools put here: an artifact, or an index, of which any part may be missing.
		return nil
	}
	blobs := []digest.Digest{doc.Manifest.Config.Digest}
	for _, l := range doc.Manifest.Layers {
		blobs = append(blobs, l.Digest)
	}
	if lease, gone, err = keep(blobs, nil); gone || err != nil {
		return err
	}
	defer lease.Release()
	if err := c.blob(doc.Manifest.Config); err != nil {
		return damaged(doc.Manifest.Config.Digest, err)
	}
	raw, err := e.store.ReadBlob(c.ctx, doc.Manifest.Config, maxManifest)
	if err != nil {
		return damaged(doc.Manifest.Config.Digest, err)
	}
	config, err := parseConfig(raw, doc.Manifest)
	if err != nil {
		return damaged(doc.Manifest.Config.Digest, err)
	}
	if lease, gone, err = keep(nil, config.RootFS.DiffIDs); gone || err != nil {
		return err
	}
	defer lease.Release()
	return c.imageLayers(desc, doc.Manifest, config, names)
}

func (c *checker) imageLayers(desc ocispec.Descriptor, m *ocispec.Manifest, config *ocispec.Image, names []string) error {
	found := make(map[digest.Digest]layerfs.Layer) // by chainID; what is not unpacked is unpacked when it is wanted
	for _, l := range c.eng.store.FindLayers(config.RootFS.DiffIDs) {
		found[l.ChainID] = l
	}
	var parents []layerfs.Layer
	whole := true // all parents are there and undamaged: only then can what depends on them be compared
	for _, spec := range layerSpecs(m, config, nil) {
		blobErr := c.blob(spec.Descriptor)
		if blobErr != nil {
			if !c.isDamage(blobErr) {
				return blobErr
			}
			c.add(&Damage{Kind: DamagedBlob, Name: string(spec.Descriptor.Digest), Images: names, Err: corrupt(blobErr)})
		}
		chainID := layerfs.NextChainID(parents, spec.DiffID)
		l, unpacked := found[chainID]
		if !unpacked {
			l = layerfs.Layer{DiffID: spec.DiffID, ChainID: chainID}
		}
		spec.Parents = slices.Clone(parents)
		if unpacked && blobErr == nil && (whole || l.Independent()) {
			good, err := c.layer(l, spec, names)
			if err != nil {
				return err
			}
			whole = whole && good
		} else {
			whole = whole && unpacked && l.Independent()
		}
		parents = append(parents, l)
	}
	return nil
}

// imageGone says whether an image was removed meanwhile.
func (c *checker) imageGone(d digest.Digest) (bool, error) {
	refs, err := c.eng.store.List()
	return err == nil && !hasManifest(refs, d), err
}

// blob verifies a blob once. A damaged one is set aside.
func (c *checker) blob(desc ocispec.Descriptor) error {
	if err, done := c.blobs[desc.Digest]; done {
		return err
	}
	err := c.eng.store.VerifyBlob(c.ctx, desc)
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	// One that is missing may be there when another image asks for it.
	if err == nil || c.isDamage(err) && !errors.Is(err, fs.ErrNotExist) {
		c.report.Blobs++
		c.blobs[desc.Digest] = err
	}
	if err != nil && c.isDamage(err) && !errors.Is(err, fs.ErrNotExist) {
		if aside := c.eng.store.SetBlobAside(desc.Digest); aside != nil {
			return aside
		}
	}
	return err
}

// layer verifies an unpacked layer, once, and says whether it is good. A damaged one is set aside.
func (c *checker) layer(l layerfs.Layer, spec layerfs.LayerSpec, names []string) (good bool, err error) {
	if good, done := c.layers[l.Key]; done {
		return good, nil
	}
	err = c.eng.store.VerifyLayer(c.ctx, spec)
	if err != nil && !c.isDamage(err) {
		return false, err
	}
	c.layers[l.Key] = err == nil
	c.report.Layers++
	if err == nil {
		return true, nil
	}
	if err := c.eng.store.SetAside(l); err != nil {
		return false, err
	}
	c.add(&Damage{Kind: DamagedLayer, Name: string(l.DiffID), Images: names, Containers: c.users[l.Key], Err: corrupt(err)})
	return false, nil
}

// rest verifies what no image of the index needs: blobs and layers of failed pulls, and of containers whose image was
// removed.
func (c *checker) rest() error {
	blobs, layers, err := c.eng.store.Sizes()
	if err != nil {
		return err
	}
	for d, size := range blobs {
		if _, done := c.blobs[d]; done {
			continue
		}
		if err := c.blob(ocispec.Descriptor{Digest: d, Size: size}); err != nil {
			if !c.isDamage(err) {
				return err
			}
			if !errors.Is(err, fs.ErrNotExist) { // else it was removed meanwhile
				c.add(&Damage{Kind: DamagedBlob, Name: string(d), Err: corrupt(err), fix: nothingMore})
			}
		}
	}
	keys, err := c.eng.store.LayerKeys()
	if err != nil {
		return err
	}
	for _, key := range keys {
		if _, done := c.layers[key]; done {
			continue
		}
		err := c.eng.store.VerifyLayerRecord(key)
		if err == nil {
			if _, known := layers[key]; known {
				c.report.Layers++
				c.report.Unverified = append(c.report.Unverified, key)
			}
			continue
		}
		// Unless it was removed, and perhaps made again: once more, while nothing is removed.
		if err = c.again(key); err == nil {
			continue
		}
		if !c.isDamage(err) {
			return err
		}
		if aside := c.eng.store.SetAside(layerfs.Layer{Key: key}); aside != nil && !errors.Is(aside, fs.ErrInvalid) {
			return aside
		}
		c.add(&Damage{Kind: DamagedLayer, Name: key, Containers: c.users[key], Err: corrupt(err), fix: nothingMore})
	}
	slices.Sort(c.report.Unverified)
	return nil
}

// again verifies a layer that is there, while no collection is under way.
func (c *checker) again(key string) error {
	hold, err := c.eng.store.Hold(c.ctx)
	if err != nil {
		return err
	}
	defer hold.Release()
	keys, err := c.eng.store.LayerKeys()
	if err != nil || !slices.Contains(keys, key) {
		return err
	}
	return c.eng.store.VerifyLayerRecord(key)
}

// nothingMore is the repair of what is good riddance.
func nothingMore(context.Context) error { return nil }
