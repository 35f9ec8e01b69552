package layerfs

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

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
		err = s.changeIndex(ctx, func(idx *ocispec.Index) bool {
			was := slices.Clone(idx.Manifests)
			setRef(idx, ref, desc)
			return !slices.EqualFunc(was, idx.Manifests, func(a, b ocispec.Descriptor) bool { return reflect.DeepEqual(a, b) })
		})
	}
	if err == nil {
		err = syncDir(s.rootFD) // who wrote what was to be written may not have come to this
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
// A name that is not there is fs.ErrNotExist; so is one that stands for another manifest than d, unless d is empty.
func (s *Store) Untag(ctx context.Context, ref string, d digest.Digest) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	found := false
	err := s.changeIndex(ctx, func(idx *ocispec.Index) bool {
		if d == "" || slices.ContainsFunc(idx.Manifests, func(m ocispec.Descriptor) bool { return refName(m) == ref && m.Digest == d }) {
			found = ref != "" && dropRef(idx, ref)
		}
		return found
	})
	if err == nil && !found {
		err = fs.ErrNotExist
	}
	if err != nil {
		return fmt.Errorf("layerfs: untag %q: %w", ref, err)
	}
	return nil
}

// LockManifest lets one caller at a time, of all that have the store open, work on the image of a manifest, so that what
// several want is fetched once. The file of the lock goes with unlock.
func (s *Store) LockManifest(ctx context.Context, d digest.Digest) (unlock func(), err error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	name, err := blobName(d)
	if err != nil {
		return nil, fmt.Errorf("layerfs: lock manifest: %w", err)
	}
	l, err := lockFile(ctx, lockorder.Image, s.locksFD, "m-"+name, false)
	if err != nil {
		return nil, fmt.Errorf("layerfs: manifest %s: %w", d, err)
	}
	if err := s.enter(); err != nil { // Close waits for unlock, which needs the directory
		l.release()
		return nil, err
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			l.release()
			s.leave()
		})
	}, nil
}

// ReplaceIndex sets a damaged index.json aside and makes a new one of the given manifests.
func (s *Store) ReplaceIndex(ctx context.Context, manifests []ocispec.Descriptor) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	l, err := lockFile(ctx, lockorder.Index, s.locksFD, "index", false)
	if err != nil {
		return fmt.Errorf("layerfs: replace index: %w", err)
	}
	defer l.release()
	if _, err := s.readIndex(); err == nil {
		return nil // somebody else has done it
	}
	idx := newIndex()
	idx.Manifests = append(idx.Manifests, manifests...)
	data, err := json.Marshal(idx)
	if err == nil {
		// The damaged one may still tell a person what the names were. It is in its place until the new one is.
		err = unix.Linkat(s.rootFD, "index.json", s.damagedFD, "index.json."+randomName(), 0)
		if err == nil || err == unix.ENOENT {
			crashpoint.At("damaged: index kept")
			err = writeFileAt(s.rootFD, "index.json", data, true)
		}
	}
	if err != nil {
		return fmt.Errorf("layerfs: replace index: %w", err)
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
		if r.Name == ref && ref != "" {
			return r.Descriptor, nil
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("layerfs: reference %q: %w", ref, fs.ErrNotExist)
}

// List returns all entries of the index, in its order, those without a name too.
func (s *Store) List() ([]Reference, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	refs, err := s.list()
	if err != nil {
		return nil, fmt.Errorf("layerfs: list references: %w", err)
	}
	return refs, nil
}

func (s *Store) list() ([]Reference, error) {
	idx, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	refs := make([]Reference, len(idx.Manifests))
	for i, m := range idx.Manifests {
		refs[i] = Reference{Name: refName(m), Descriptor: m}
	}
	return refs, nil
}
