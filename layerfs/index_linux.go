package layerfs

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/lockorder"
)

func (s *Store) readIndex() (ocispec.Index, error) {
	data, err := readFileAt(s.rootFD, "index.json", maxIndex)
	if err != nil {
		return ocispec.Index{}, err
	}
	return parseIndex(data)
}

// changeIndex replaces index.json under its lock. A change that returns false writes nothing.
func (s *Store) changeIndex(ctx context.Context, change func(*ocispec.Index) bool) error {
	l, err := lockFile(ctx, lockorder.Index, s.locksFD, "index", false)
	if err != nil {
		return err
	}
	defer l.release()
	idx, err := s.readIndex()
	if err != nil {
		return err
	}
	if !change(&idx) {
		return nil
	}
	data, err := json.Marshal(idx)
	if err != nil {
		return err
	}
	return writeFileAt(s.rootFD, "index.json", data, true)
}

// Tag gives a manifest or index, whose blob should be in the store, a name; it is taken from what had it before. The
// annotations org.opencontainers.image.ref.name and io.containerd.image.name both hold the whole name. What loses its
// last name stays in the index without one. When Tag returns the name is durable, and so are all blobs and layers that
// were complete before.
func (s *Store) Tag(ctx context.Context, ref string, desc ocispec.Descriptor) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if ref == "" {
		return fmt.Errorf("layerfs: tag %s: the reference is empty: %w", desc.Digest, fs.ErrInvalid)
	}
	if _, err := blobName(desc.Digest); err != nil {
		return fmt.Errorf("layerfs: tag %q: %w", ref, err)
	}
	err := s.syncNames()
	if err == nil {
		crashpoint.At("tag: names of blobs and layers synced")
		err = s.changeIndex(ctx, func(idx *ocispec.Index) bool { setRef(idx, ref, desc); return true })
	}
	if err != nil {
		return fmt.Errorf("layerfs: tag %q: %w", ref, err)
	}
	return nil
}

// syncNames makes the names of finished blobs and layers durable. A layer is synced before it is renamed, but not its new
// name.
func (s *Store) syncNames() error {
	for _, d := range []struct {
		fd   int
		name string
	}{{s.blobsFD, "blobs/sha256"}, {s.layersFD, "layers"}} {
		if err := syncDir(d.fd); err != nil {
			return fmt.Errorf("sync %s: %w", d.name, err)
		}
	}
	return nil
}

// Untag removes a name; the blobs stay, and so does the entry of the index, without a name, where it had but this one.
// A name that is not there is fs.ErrNotExist.
func (s *Store) Untag(ctx context.Context, ref string) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	found := false
	err := s.changeIndex(ctx, func(idx *ocispec.Index) bool { found = dropRef(idx, ref); return found })
	if err == nil && !found {
		err = fs.ErrNotExist
	}
	if err != nil {
		return fmt.Errorf("layerfs: untag %q: %w", ref, err)
	}
	return nil
}

// Resolve returns what a name stands for, or fs.ErrNotExist.
func (s *Store) Resolve(ref string) (ocispec.Descriptor, error) {
	refs, err := s.List()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	for _, r := range refs {
		if r.Name == ref {
			return r.Descriptor, nil
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("layerfs: reference %q: %w", ref, fs.ErrNotExist)
}

// Manifests returns all entries of the index, in its order, those without a name too.
func (s *Store) Manifests() ([]ocispec.Descriptor, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	idx, err := s.readIndex()
	if err != nil {
		return nil, fmt.Errorf("layerfs: list manifests: %w", err)
	}
	return idx.Manifests, nil
}

// List returns all names of the index, in its order. Entries without a name are left out.
func (s *Store) List() ([]Reference, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	idx, err := s.readIndex()
	if err != nil {
		return nil, fmt.Errorf("layerfs: list references: %w", err)
	}
	var refs []Reference
	for _, m := range idx.Manifests {
		if n := refName(m); n != "" {
			refs = append(refs, Reference{Name: n, Descriptor: m})
		}
	}
	return refs, nil
}
