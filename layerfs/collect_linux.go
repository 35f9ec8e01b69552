package layerfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/crashpoint"
)

// Collection is a store while what nobody uses is taken away. Nothing else takes anything into use meanwhile, so it is
// made for a few milliseconds: what is taken away is renamed, and deleted after the collection.
type Collection struct {
	s             *Store
	ctx           context.Context
	blobs, layers map[string]bool // names and keys to keep
}

// List returns all entries of the index, in its order, those without a name too.
func (c *Collection) List() ([]Reference, error) { return c.s.list() }

// RemoveManifests removes the entries of the index for which remove returns true.
func (c *Collection) RemoveManifests(remove func(ocispec.Descriptor) bool) error {
	return c.s.changeIndex(c.ctx, func(idx *ocispec.Index) bool { return removeEntries(idx, remove) })
}

// KeepBlob keeps a blob.
func (c *Collection) KeepBlob(d digest.Digest) {
	if name, err := blobName(d); err == nil {
		c.blobs[name] = true
	}
}

// KeepLayers keeps the layers of an image whose config lists diffIDs.
func (c *Collection) KeepLayers(diffIDs []digest.Digest) error {
	keys, err := layerKeys(diffIDs)
	for _, k := range keys {
		c.layers[k] = true
	}
	return err
}

// KeepLayer keeps one layer.
func (c *Collection) KeepLayer(l Layer) { c.layers[l.Key] = true }

// Collect takes away the blobs and layers that nobody uses: neither a snapshot, nor a [Lease], nor mark, which is called
// once, with everybody else kept out, and names what the entries of the index need. If mark returns an error nothing is
// taken away, and Collect returns that error. Entries of the index are not touched but by mark.
//
// Where the process is killed what is not yet gone is taken by the next collection, and what was renamed by the next
// OpenStore.
func (s *Store) Collect(ctx context.Context, mark func(*Collection) error) (*Collected, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	var markErr error
	got, err := s.collect(ctx, func(c *Collection) error {
		markErr = mark(c)
		return markErr
	})
	if err != nil && err != markErr {
		return nil, fmt.Errorf("layerfs: collect in store %s: %w", s.dir, err)
	}
	return got, err
}

func (s *Store) collect(ctx context.Context, mark func(*Collection) error) (*Collected, error) {
	t, err := s.newTemp()
	if err != nil {
		return nil, err
	}
	defer t.remove() // the slow part, with no lock held
	h, err := s.hold(ctx, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer h.Release()
	crashpoint.At("collect: locked")
	c := &Collection{s: s, ctx: ctx, blobs: make(map[string]bool), layers: make(map[string]bool)}
	leases, err := s.liveLeases()
	if err != nil {
		return nil, err
	}
	for _, l := range leases {
		for _, b := range l.Blobs {
			c.blobs[b] = true
		}
		for _, k := range l.Layers {
			c.layers[k] = true
		}
	}
	usedStacks, err := s.markSnapshots(c)
	if err != nil {
		return nil, err
	}
	inSnapshots := make(map[string]bool, len(c.layers))
	for k := range c.layers {
		inSnapshots[k] = true
	}
	if err := mark(c); err != nil {
		return nil, err
	}
	crashpoint.At("collect: marked")
	got := new(Collected)
	if err := s.collectStacks(t, c, usedStacks); err != nil {
		return nil, err
	}
	if err := s.collectLayers(t, c, got); err != nil {
		return nil, err
	}
	if err := s.collectBlobs(t, c, got); err != nil {
		return nil, err
	}
	return got, s.collectDamaged(t, inSnapshots)
}

// markSnapshots keeps the layers of all snapshots and returns the stacks they name.
func (s *Store) markSnapshots(c *Collection) (map[string]bool, error) {
	ids, err := readNames(s.snapsFD)
	if err != nil {
		return nil, err
	}
	stacks := make(map[string]bool)
	for _, id := range ids {
		target, err := readlinkAt(s.snapsFD, id+"/"+stackLink)
		if errors.Is(err, fs.ErrNotExist) {
			continue // half-made: its maker answers for the layers
		}
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", id, err)
		}
		if _, stackID, ok := strings.Cut(target, ":"); ok {
			stacks[stackID] = true
		}
	}
	for id := range stacks {
		st, err := s.readStack(id)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
			continue // Check reports it; the snapshot cannot be mounted any more
		}
		if err != nil {
			return nil, err
		}
		for _, k := range st.Keys {
			c.layers[k] = true
		}
	}
	return stacks, nil
}

// collectStacks takes the stacks that no snapshot names and that name a layer which goes.
func (s *Store) collectStacks(t *tempDir, c *Collection, used map[string]bool) error {
	ids, err := readNames(s.stacksFD)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if used[id] {
			continue
		}
		st, err := s.readStack(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		kept := err == nil
		if kept {
			for _, k := range st.Keys {
				kept = kept && c.layers[k]
			}
		}
		if !kept {
			if err := unix.Unlinkat(s.stacksFD, id, 0); err != nil && err != unix.ENOENT {
				return &fs.PathError{Op: "unlink", Path: "stacks/" + id, Err: err}
			}
			crashpoint.At("collect: a list of layers is gone")
		}
	}
	return nil
}

func (s *Store) collectLayers(t *tempDir, c *Collection, got *Collected) error {
	keys, err := readNames(s.layersFD)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if c.layers[key] {
			continue
		}
		rec, _ := s.readLayer(key) // for its size
		if err := unix.Renameat(s.layersFD, key, t.fd, key); err != nil && err != unix.ENOENT {
			return &fs.PathError{Op: "rename", Path: "layers/" + key, Err: err}
		}
		crashpoint.At("collect: a layer is out of sight")
		got.Layers = append(got.Layers, key)
		got.Bytes += rec.Bytes
	}
	return nil
}

func (s *Store) collectBlobs(t *tempDir, c *Collection, got *Collected) error {
	names, err := readNames(s.blobsFD)
	if err != nil {
		return err
	}
	for _, name := range names {
		if c.blobs[name] {
			continue
		}
		size := s.blobSize(name)
		if err := unix.Renameat(s.blobsFD, name, t.fd, "blob-"+name); err != nil && err != unix.ENOENT {
			return &fs.PathError{Op: "rename", Path: "blobs/sha256/" + name, Err: err}
		}
		crashpoint.At("collect: a blob is out of sight")
		got.Blobs = append(got.Blobs, digest.NewDigestFromEncoded(digest.SHA256, name))
		got.Bytes += max(size, 0)
	}
	return nil
}

// collectDamaged takes what was set aside, but for layers that snapshots are made of, as a container may be running on
// one and goes on until it ends, and for an old index, which is for a person to look at and remove.
func (s *Store) collectDamaged(t *tempDir, inSnapshots map[string]bool) error {
	names, err := readNames(s.damagedFD)
	if err != nil {
		return err
	}
	for _, name := range names {
		if key, _, _ := strings.Cut(name, "."); inSnapshots[key] || strings.HasPrefix(name, "index.json.") {
			continue
		}
		if err := unix.Renameat(s.damagedFD, name, t.fd, "damaged-"+name); err != nil && err != unix.ENOENT {
			return &fs.PathError{Op: "rename", Path: "damaged/" + name, Err: err}
		}
		crashpoint.At("collect: what was set aside is out of sight")
	}
	return nil
}

// SetAside takes a damaged layer or blob out of use: it is found no more, and made or fetched anew when it is wanted.
// Containers that run on the layer keep it until they end; the next [Store.Collect] after that deletes it. That it is
// gone already is no error.
func (s *Store) SetAside(l Layer) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if !validKey(l.Key) {
		return fmt.Errorf("layerfs: set layer %q aside: %w", l.Key, fs.ErrInvalid)
	}
	return s.setAside(s.layersFD, l.Key)
}

// SetBlobAside does the same for a blob.
func (s *Store) SetBlobAside(d digest.Digest) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	name, err := blobName(d)
	if err != nil {
		return fmt.Errorf("layerfs: set blob aside: %w", err)
	}
	return s.setAside(s.blobsFD, name)
}

func (s *Store) setAside(at int, name string) error {
	err := unix.Renameat(at, name, s.damagedFD, name+"."+randomName())
	if err != nil && err != unix.ENOENT {
		return fmt.Errorf("layerfs: set %s aside: %w", name, err)
	}
	crashpoint.At("damaged: set aside")
	return nil
}
