//go:build !linux

package layerfs

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Store is an image store on disk. Its methods may be called from many goroutines.
type Store struct{}

// Snapshot is a root filesystem made of layers and a private directory.
type Snapshot struct{}

func builtinDriver(string) OpenDriver { return nil }

// OpenStore opens the store in dir, making it where it does not exist.
func OpenStore(dir string, opts *StoreOptions) (*Store, error) { return nil, errors.ErrUnsupported }

// Close frees what the store holds.
func (s *Store) Close() error { return nil }

// Dir returns the absolute path of the store.
func (s *Store) Dir() string { return "" }

// WriteBlob stores a blob.
func (s *Store) WriteBlob(ctx context.Context, desc ocispec.Descriptor, r io.Reader) error {
	return errors.ErrUnsupported
}

// OpenBlob opens a blob for reading.
func (s *Store) OpenBlob(d digest.Digest) (*os.File, error) { return nil, errors.ErrUnsupported }

// HasBlob reports whether the store has a blob.
func (s *Store) HasBlob(d digest.Digest) bool { return false }

// RemoveBlob removes a blob.
func (s *Store) RemoveBlob(d digest.Digest) error { return errors.ErrUnsupported }

// Blobs lists the digests of the blobs.
func (s *Store) Blobs() ([]digest.Digest, error) { return nil, errors.ErrUnsupported }

// ReadBlob reads a small blob.
func (s *Store) ReadBlob(ctx context.Context, desc ocispec.Descriptor, max int64) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// Tag names a manifest.
func (s *Store) Tag(ctx context.Context, ref string, desc ocispec.Descriptor) error {
	return errors.ErrUnsupported
}

// Resolve finds what a name stands for.
func (s *Store) Resolve(ref string) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, errors.ErrUnsupported
}

// Untag removes a name.
func (s *Store) Untag(ctx context.Context, ref string, d digest.Digest) error {
	return errors.ErrUnsupported
}

// List returns all entries of the index.
func (s *Store) List() ([]Reference, error) { return nil, errors.ErrUnsupported }

// Unpack makes a layer.
func (s *Store) Unpack(ctx context.Context, spec LayerSpec) (Layer, error) {
	return Layer{}, errors.ErrUnsupported
}

// UnpackAll makes all layers of an image.
func (s *Store) UnpackAll(ctx context.Context, specs []LayerSpec, opts *UnpackOptions) ([]Layer, error) {
	return nil, errors.ErrUnsupported
}

// Layers finds the unpacked layers of an image.
func (s *Store) Layers(diffIDs []digest.Digest) ([]Layer, error) { return nil, errors.ErrUnsupported }

// LayerKeys lists the unpacked layers.
func (s *Store) LayerKeys() ([]string, error) { return nil, errors.ErrUnsupported }

// RemoveLayer removes an unpacked layer.
func (s *Store) RemoveLayer(ctx context.Context, key string) error { return errors.ErrUnsupported }

// NewSnapshot makes a snapshot.
func (s *Store) NewSnapshot(ctx context.Context, id string, layers []Layer, opts *SnapshotOptions) (*Snapshot, error) {
	return nil, errors.ErrUnsupported
}

// OpenSnapshot finds a snapshot.
func (s *Store) OpenSnapshot(id string) (*Snapshot, error) { return nil, errors.ErrUnsupported }

// Snapshots lists the ids of all snapshots.
func (s *Store) Snapshots() ([]string, error) { return nil, errors.ErrUnsupported }

// RemoveSnapshot removes a snapshot by id.
func (s *Store) RemoveSnapshot(ctx context.Context, id string) error { return errors.ErrUnsupported }

// ID returns the id.
func (s *Snapshot) ID() string { return "" }

// Mount mounts the snapshot.
func (s *Snapshot) Mount(ctx context.Context, opts *MountOptions) (*os.File, error) {
	return nil, errors.ErrUnsupported
}

// Remove removes the snapshot.
func (s *Snapshot) Remove(ctx context.Context) error { return errors.ErrUnsupported }

// LockManifest lets one caller at a time work on an image.
func (s *Store) LockManifest(ctx context.Context, d digest.Digest) (unlock func(), err error) {
	return nil, errors.ErrUnsupported
}

// Hold keeps Collect out of a store for a moment.
type Hold struct{}

// Hold keeps collections out.
func (s *Store) Hold(ctx context.Context) (*Hold, error) { return nil, errors.ErrUnsupported }

// Release lets collections in again.
func (h *Hold) Release() {}

// Lease keeps blobs and layers from Collect.
type Lease struct{}

// Lease makes a lease.
func (s *Store) Lease(ctx context.Context, blobs, diffIDs []digest.Digest) (*Lease, error) {
	return nil, errors.ErrUnsupported
}

// Release ends the lease.
func (l *Lease) Release() {}

// Collection is a store while what nobody uses is taken away.
type Collection struct{}

// List returns all entries of the index.
func (c *Collection) List() ([]Reference, error) { return nil, errors.ErrUnsupported }

// RemoveManifests removes entries of the index.
func (c *Collection) RemoveManifests(remove func(ocispec.Descriptor) bool) error {
	return errors.ErrUnsupported
}

// KeepBlob keeps a blob.
func (c *Collection) KeepBlob(d digest.Digest) {}

// KeepLayers keeps the layers of an image.
func (c *Collection) KeepLayers(diffIDs []digest.Digest) error { return errors.ErrUnsupported }

// KeepLayer keeps one layer.
func (c *Collection) KeepLayer(l Layer) {}

// Collect takes away what nobody uses.
func (s *Store) Collect(ctx context.Context, mark func(*Collection) error) (*Collected, error) {
	return nil, errors.ErrUnsupported
}

// SetAside takes a damaged layer out of use.
func (s *Store) SetAside(l Layer) error { return errors.ErrUnsupported }

// SetBlobAside takes a damaged blob out of use.
func (s *Store) SetBlobAside(d digest.Digest) error { return errors.ErrUnsupported }

// VerifyBlob reads a blob and checks it.
func (s *Store) VerifyBlob(ctx context.Context, desc ocispec.Descriptor) error {
	return errors.ErrUnsupported
}

// VerifyLayer compares a layer with what its blob unpacks to.
func (s *Store) VerifyLayer(ctx context.Context, spec LayerSpec) error { return errors.ErrUnsupported }

// VerifySnapshot checks that a snapshot is whole.
func (s *Store) VerifySnapshot(id string) error { return errors.ErrUnsupported }

// VerifyLayerRecord checks what can be checked of a layer without its blob.
func (s *Store) VerifyLayerRecord(key string) error { return errors.ErrUnsupported }

// FindLayers returns those layers of an image that are unpacked.
func (s *Store) FindLayers(diffIDs []digest.Digest) []Layer { return nil }

// Sizes returns the sizes of blobs and layers.
func (s *Store) Sizes() (blobs map[digest.Digest]int64, layers map[string]int64, err error) {
	return nil, nil, errors.ErrUnsupported
}

// SnapshotUsage returns the bytes of a snapshot's own files.
func (s *Store) SnapshotUsage(ctx context.Context, id string) (int64, error) {
	return 0, errors.ErrUnsupported
}

// ReplaceIndex makes a new index.
func (s *Store) ReplaceIndex(ctx context.Context, manifests []ocispec.Descriptor) error {
	return errors.ErrUnsupported
}

// RepairSnapshot writes a snapshot's list of layers again.
func (s *Store) RepairSnapshot(id string, layers []Layer) error { return errors.ErrUnsupported }
