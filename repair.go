package coracle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// RepairOptions are the settings of one Repair; nil means the defaults.
type RepairOptions struct {
	// Remove removes what cannot be repaired: images that no registry gives again, containers whose record or root
	// filesystem is lost. Without it they stay, and are reported.
	Remove bool
	// Credentials are used in place of the keychain's; see [PullOptions].
	Credentials *Credentials
	// PlainHTTP allows the registries to be spoken to without TLS.
	PlainHTTP bool
}

// A RepairReport says what was damaged and what became of it.
type RepairReport struct {
	// Repaired is what is whole again; Removed what is gone since it could not be repaired and Remove was set.
	Repaired, Removed []*Damage
	// Failed is what is still damaged, with the reasons in Err.
	Failed []*Damage
}

// Repair does what [Engine.Check] does and mends what that finds: layers are unpacked again from their blobs, blobs
// are pulled again by the digests of their images, whatever their names stand for today, and what belongs to nothing
// is removed. Containers that are running go on meanwhile. What cannot be repaired is in the report; the error is an
// [*OpError] where the check could not be done.
func (e *Engine) Repair(ctx context.Context, opts *RepairOptions) (*RepairReport, error) {
	if opts == nil {
		opts = &RepairOptions{}
	}
	r := &repairer{eng: e, opts: opts, images: make(map[digest.Digest]error), tried: make(map[string]bool)}
	// A layer can be compared only when its blob is good: what is mended may show more damage. Each round mends something,
	// or is the last one.
	for again := true; again; {
		checked, err := e.Check(ctx)
		if err != nil {
			return nil, err
		}
		again = false
		for _, d := range checked.Damage {
			if err := ctx.Err(); err != nil {
				return nil, &OpError{Op: "repair", Kind: "engine", Name: e.root, Err: context.Cause(ctx)}
			}
			if key := string(d.Kind) + " " + d.Name; !r.tried[key] {
				r.tried[key] = true
				again = r.damage(ctx, d) || again
			}
		}
		clear(r.images)
	}
	// What was set aside is not needed any more, and neither is what the images that are gone had.
	if _, err := e.collect(ctx, func(*collection) error { return nil }); err != nil {
		return nil, &OpError{Op: "repair", Kind: "engine", Name: e.root, Err: err}
	}
	return &r.report, nil
}

type repairer struct {
	eng    *Engine
	opts   *RepairOptions
	report RepairReport
	images map[digest.Digest]error // those that were tried in this round
	tried  map[string]bool         // kinds and names
}

// damage mends one thing and says whether it did.
func (r *repairer) damage(ctx context.Context, d *Damage) bool {
	var err error
	switch {
	case d.fix != nil:
		err = d.fix(ctx)
	case d.Kind == DamagedContainer:
		err = errors.New("what it was is not known any more")
	default:
		err = r.imagesOf(ctx, d)
	}
	if err == nil {
		r.report.Repaired = append(r.report.Repaired, d)
		return true
	}
	if r.opts.Remove && ctx.Err() == nil {
		removeErr := r.remove(ctx, d)
		if removeErr == nil {
			r.report.Removed = append(r.report.Removed, d)
			return true
		}
		err = errors.Join(err, removeErr)
	}
	d.Err = fmt.Errorf("%w; repair: %w", d.Err, err)
	r.report.Failed = append(r.report.Failed, d)
	return false
}

// imagesOf makes the images whole that need the damaged thing.
func (r *repairer) imagesOf(ctx context.Context, d *Damage) error {
	refs, err := r.eng.store.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, ref := range refs {
		desc := ref.Descriptor
		if !slices.Contains(d.Images, ref.Name) && !slices.Contains(d.Images, string(desc.Digest)) {
			continue
		}
		if _, tried := r.images[desc.Digest]; !tried {
			r.images[desc.Digest] = r.image(ctx, desc, refNames(refs, desc.Digest, ""))
		}
		errs = append(errs, r.images[desc.Digest])
	}
	return errors.Join(errs...)
}

// image makes an image whole: from its own blobs if they are all here, else from its registry.
func (r *repairer) image(ctx context.Context, desc ocispec.Descriptor, names []string) error {
	e := r.eng
	e.forgetImage(desc.Digest)
	if img, err := e.loadImage(ctx, desc, names); err == nil {
		err := img.unpackHere(ctx)
		if err == nil || !absent(err) {
			return err
		}
	}
	var errs []error
	for _, name := range names {
		err := r.pull(ctx, name, desc)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return fmt.Errorf("the image has no name by which a registry could be asked: %w", fs.ErrNotExist)
	}
	return errors.Join(errs...)
}

// unpackHere makes sure that every blob of the image is here and every layer unpacked.
func (i *Image) unpackHere(ctx context.Context) error {
	store := i.eng.store
	for _, l := range i.manifest.Layers {
		if !store.HasBlob(l.Digest) {
			return fmt.Errorf("blob %s: %w", l.Digest, fs.ErrNotExist)
		}
	}
	lease, err := i.lease(ctx)
	if err != nil {
		return err
	}
	defer lease.Release()
	_, err = store.UnpackAll(ctx, i.layerSpecs(nil), nil)
	return err
}

// pull fetches what is missing of an image from the registry of one of its names.
func (r *repairer) pull(ctx context.Context, name string, desc ocispec.Descriptor) error {
	e := r.eng
	ref, err := ParseReference(name)
	if err != nil {
		return err
	}
	ref.Tag, ref.Digest = "", desc.Digest
	want, err := parsePlatform(desc.Annotations[pulledForAnnotation])
	if err != nil {
		return err
	}
	opts := &PullOptions{Credentials: r.opts.Credentials, PlainHTTP: r.opts.PlainHTTP}
	client, err := newRegistryClient(ctx, ref, e.config.Registry, opts)
	if err != nil {
		return err
	}
	defer client.close()
	return e.refetch(ctx, client, ref, desc, want)
}

// refetch brings the parts of an image back that are missing, under the names that it has.
func (e *Engine) refetch(ctx context.Context, client *registryClient, ref Reference, desc ocispec.Descriptor, want ocispec.Platform) error {
	doc, data, got, err := client.imageManifest(ctx, ref, want)
	if err != nil {
		return err
	}
	if got.Digest != desc.Digest {
		return client.failed(ctx, "manifest", desc.Digest, fmt.Errorf("it is an index now: %w", ErrCorrupt))
	}
	rawConfig, err := client.config(ctx, doc.Manifest.Config)
	if err != nil {
		return err
	}
	config, err := parseConfig(rawConfig, doc.Manifest)
	if err != nil {
		return client.failed(ctx, "config", doc.Manifest.Config.Digest, err)
	}
	lease, err := leaseImage(ctx, e.store, desc.Digest, doc.Manifest, config)
	if err != nil {
		return err
	}
	defer lease.Release()
	if _, err := e.store.UnpackAll(ctx, layerSpecs(doc.Manifest, config, client.layer), nil); err != nil {
		return err
	}
	return errors.Join(e.writeBlob(ctx, doc.Manifest.Config, rawConfig), e.writeBlob(ctx, desc, data))
}

// forgetImage makes the engine read a manifest and its config again.
func (e *Engine) forgetImage(d digest.Digest) {
	e.images.Lock()
	defer e.images.Unlock()
	delete(e.images.parsed, d)
}

// repairSnapshot writes the list of a snapshot's layers again from the container's record. Whether the layers
// themselves can be had is the affair of their images.
func (e *Engine) repairSnapshot(ctx context.Context, id string) error {
	st, err := e.readState(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	if err := e.store.VerifySnapshot(id); err == nil {
		return nil
	}
	// An image that is here may have what is missing.
	images, err := e.listImages(ctx)
	if err != nil {
		return err
	}
	for _, img := range images {
		if img.ID() == st.ImageID {
			if err := img.unpackHere(ctx); err != nil && !absent(err) {
				return err
			}
		}
	}
	if err := e.store.RepairSnapshot(id, st.Layers); err != nil {
		return err
	}
	return e.store.VerifySnapshot(id)
}

// remove removes what is damaged for good.
func (r *repairer) remove(ctx context.Context, d *Damage) error {
	e := r.eng
	switch d.Kind {
	case DamagedContainer, DamagedSnapshot:
		return e.removeDamaged(ctx, d.Name)
	case DamagedImage, DamagedBlob, DamagedLayer:
		_, err := e.collect(ctx, func(c *collection) error {
			refs, err := c.store.List()
			if err != nil {
				return err
			}
			return c.store.RemoveManifests(func(m ocispec.Descriptor) bool {
				return slices.ContainsFunc(imageNames(refs, m.Digest), func(n string) bool { return slices.Contains(d.Images, n) }) &&
					r.images[m.Digest] != nil
			})
		})
		return err
	}
	return errors.New("it cannot be removed")
}

// removeDamaged removes a container of which not even the record may be readable.
func (e *Engine) removeDamaged(ctx context.Context, id string) error {
	st, err := e.readState(id)
	if err == nil {
		c := &Container{eng: e, id: id, name: st.Name}
		if e.ownerAlive(st.Owner) {
			return fmt.Errorf("%w: a program that is running owns it", ErrInUse)
		}
		return c.remove(ctx, &RemoveOptions{Force: true})
	}
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Lstat(e.containerDir(id)); errors.Is(statErr, fs.ErrNotExist) {
			return e.store.RemoveSnapshot(ctx, id)
		}
	}
	// Its name is swept, as it leads nowhere then.
	if err := e.discard(ctx, &containerState{ID: id}); err != nil {
		return err
	}
	entries, err := os.ReadDir(e.namesDir())
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if e.nameOf(entry.Name()) == id {
			if err := e.removeName(entry.Name(), id); err != nil {
				return err
			}
		}
	}
	return nil
}

// rebuildIndex makes a new index of all manifests in the store. The names are lost.
func (e *Engine) rebuildIndex(ctx context.Context) error {
	blobs, _, err := e.store.Sizes()
	if err != nil {
		return err
	}
	var found []ocispec.Descriptor
	for d, size := range blobs {
		if size > maxManifest {
			continue
		}
		desc := ocispec.Descriptor{Digest: d, Size: size}
		data, err := e.store.ReadBlob(ctx, desc, maxManifest)
		if err != nil || !bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
			continue
		}
		if doc, err := parseManifest("", data); err == nil && doc.Manifest != nil {
			desc.MediaType = doc.MediaType
			found = append(found, desc)
		}
	}
	slices.SortFunc(found, func(a, b ocispec.Descriptor) int { return bytes.Compare([]byte(a.Digest), []byte(b.Digest)) })
	return e.store.ReplaceIndex(ctx, found)
}
