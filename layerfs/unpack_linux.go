package layerfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/lockorder"
)

// layerRecord is layers/KEY/layer.json, beside the files in layers/KEY/fs.
type layerRecord struct {
	Version int `json:"version"`
	Layer
	// Parents are the keys of the layers below that this one was applied against, lowest first; empty where it is
	// independent.
	Parents []string `json:"parents,omitempty"`
	// Root says what the archive has for the root directory; nil where it says nothing.
	Root *RootAttr `json:"root,omitempty"`
	// Bytes of file content, and entries of the archive.
	Bytes   int64 `json:"bytes"`
	Entries int64 `json:"entries"`
}

func layerKey(prefix string, d digest.Digest) string { return prefix + d.Encoded() }

// chainOf returns the chainID of a layer upon its parents.
func chainOf(parents []Layer, diffID digest.Digest) digest.Digest {
	ids := make([]digest.Digest, 0, len(parents)+1)
	for _, p := range parents {
		ids = append(ids, p.DiffID)
	}
	return identity.ChainID(append(ids, diffID))
}

// findLayer looks for an unpacked layer.
func (s *Store) findLayer(diffID, chainID digest.Digest) (Layer, bool) {
	for _, key := range []string{layerKey("d-", diffID), layerKey("c-", chainID)} {
		if unix.Faccessat(s.layersFD, key, unix.F_OK, 0) == nil {
			return Layer{DiffID: diffID, ChainID: chainID, Key: key}, true
		}
	}
	return Layer{}, false
}

// Layers returns the layers of an image, whose config lists diffIDs, where all are unpacked; otherwise the error is
// fs.ErrNotExist.
func (s *Store) Layers(diffIDs []digest.Digest) ([]Layer, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	layers := make([]Layer, 0, len(diffIDs))
	for _, d := range diffIDs {
		if _, err := blobName(d); err != nil {
			return nil, fmt.Errorf("layerfs: find layers: %w", err)
		}
		l, ok := s.findLayer(d, NextChainID(layers, d))
		if !ok {
			return nil, fmt.Errorf("layerfs: layer %s is not unpacked: %w", d, fs.ErrNotExist)
		}
		layers = append(layers, l)
	}
	return layers, nil
}

// FindLayers returns those layers of an image that are unpacked, lowest first.
func (s *Store) FindLayers(diffIDs []digest.Digest) []Layer {
	if s.enter() != nil {
		return nil
	}
	defer s.leave()
	var below, found []Layer
	for _, d := range diffIDs {
		if _, err := blobName(d); err != nil {
			return found
		}
		l, ok := s.findLayer(d, NextChainID(below, d))
		if !ok {
			l = Layer{DiffID: d, ChainID: NextChainID(below, d)}
		} else {
			found = append(found, l)
		}
		below = append(below, l)
	}
	return found
}

// LayerKeys returns the keys of all unpacked layers, in no order.
func (s *Store) LayerKeys() ([]string, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	names, err := readNames(s.layersFD)
	if err != nil {
		return nil, fmt.Errorf("layerfs: list layers: %w", err)
	}
	return names, nil
}

// RemoveLayer removes an unpacked layer by key. It does not look for users of the layer: the caller knows which images
// and containers there are. A missing one is fs.ErrNotExist.
func (s *Store) RemoveLayer(ctx context.Context, key string) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if !validKey(key) {
		return fmt.Errorf("layerfs: remove layer %q: %w", key, fs.ErrInvalid)
	}
	t, err := s.newTemp()
	if err != nil {
		return fmt.Errorf("layerfs: remove layer %s: %w", key, err)
	}
	defer t.remove()
	if err := unix.Renameat(s.layersFD, key, t.fd, "layer"); err != nil {
		return fmt.Errorf("layerfs: remove layer %s: %w", key, err)
	}
	return nil
}

func validKey(key string) bool {
	if len(key) != 66 || key[0] != 'd' && key[0] != 'c' || key[1] != '-' {
		return false
	}
	return digest.NewDigestFromEncoded(digest.SHA256, key[2:]).Validate() == nil
}

func (s *Store) readLayer(key string) (layerRecord, error) {
	var rec layerRecord
	data, err := readFileAt(s.layersFD, key+"/layer.json", 1<<20)
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, fmt.Errorf("layer %s: %w: %w", key, ErrCorrupt, err)
	}
	if rec.Version != recordVersion || rec.Key != key {
		return rec, fmt.Errorf("layer %s: %w: record of %s, version %d", key, ErrCorrupt, rec.Key, rec.Version)
	}
	return rec, nil
}

// Unpack makes a layer, or finds it. In one pass the blob is fetched into the store, verified, decompressed, verified
// against the diffID and applied. Callers that want the same layer at the same time, in this process or another, get one
// piece of work between them. After a power cut the layer is there as a whole or not at all.
func (s *Store) Unpack(ctx context.Context, spec LayerSpec) (Layer, error) {
	if err := s.enter(); err != nil {
		return Layer{}, err
	}
	defer s.leave()
	l, err := s.unpack(ctx, &spec, chainOf(spec.Parents, spec.DiffID), func(context.Context) ([]Layer, error) { return spec.Parents, nil }, nil)
	if err != nil {
		return Layer{}, fmt.Errorf("layerfs: unpack layer %s: %w", spec.DiffID, err)
	}
	return l, nil
}

// UnpackAll makes all layers of an image, lowest first in specs, several at once; Parents of the specs are not looked
// at. A layer that turns out to need those below it waits for them, while its download goes on. The first error ends
// all; layers that were complete by then stay.
func (s *Store) UnpackAll(ctx context.Context, specs []LayerSpec, opts *UnpackOptions) ([]Layer, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	parallel := 3
	if opts != nil && opts.Parallelism > 0 {
		parallel = opts.Parallelism
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	layers := make([]Layer, len(specs))
	chains := make([]digest.Digest, len(specs))
	done := make([]chan struct{}, len(specs))
	for i := range specs {
		done[i] = make(chan struct{})
		chains[i] = specs[i].DiffID
		if i > 0 {
			chains[i] = digest.FromString(string(chains[i-1]) + " " + string(specs[i].DiffID))
		}
	}
	parents := func(i int) func(context.Context) ([]Layer, error) {
		return func(ctx context.Context) ([]Layer, error) {
			for _, d := range done[:i] {
				select {
				case <-d:
				case <-ctx.Done():
					return nil, context.Cause(ctx)
				}
			}
			return layers[:i], nil
		}
	}
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	// Slots are taken lowest first: whatever a layer waits for has one already, so it cannot wait for ever.
	for i := range specs {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			// The next layer is worked on while the disk has to do with this one.
			free := sync.OnceFunc(func() { <-slots })
			defer free()
			l, err := s.unpack(ctx, &specs[i], chains[i], parents(i), free)
			if err != nil {
				cancel(fmt.Errorf("layerfs: unpack layer %d of %d, %s: %w", i+1, len(specs), specs[i].DiffID, err))
				return
			}
			layers[i] = l
			close(done[i])
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return layers, nil
}

// unpack holds the locks: that of the chain while anything happens, that of the diffID until the layer turns out to
// depend on its parents. Waiting for parents under a diffID lock could deadlock: an image may have as its base what
// another has on top.
func (s *Store) unpack(ctx context.Context, spec *LayerSpec, chainID digest.Digest, parents func(context.Context) ([]Layer, error), applied func()) (Layer, error) {
	if _, err := blobName(spec.DiffID); err != nil {
		return Layer{}, err
	}
	if _, err := blobName(spec.Descriptor.Digest); err != nil {
		return Layer{}, err
	}
	if spec.Descriptor.Size < 0 {
		return Layer{}, fmt.Errorf("size %d: %w", spec.Descriptor.Size, fs.ErrInvalid)
	}
	if spec.Descriptor.Size > s.limits.Blob {
		return Layer{}, &LimitError{Limit: "Blob", Max: s.limits.Blob}
	}
	if err := checkMediaType(spec.Descriptor.MediaType); err != nil {
		return Layer{}, err
	}
	finished := func(l Layer) (Layer, error) {
		if spec.Progress != nil {
			spec.Progress(spec.Descriptor.Size)
		}
		return l, nil
	}
	// The blob of a layer that is there may be gone: its image was removed while a container kept the layer.
	blobHere := func() bool { return spec.Open == nil || s.blobSize(spec.Descriptor.Digest.Encoded()) >= 0 }
	if l, ok := s.findLayer(spec.DiffID, chainID); ok && blobHere() {
		return finished(l)
	}
	chainLock, err := lockFile(ctx, lockorder.Chain, s.locksFD, layerKey("c-", chainID), false)
	if err != nil {
		return Layer{}, err
	}
	defer chainLock.release()
	diffLock, err := lockFile(ctx, lockorder.DiffID, s.locksFD, layerKey("d-", spec.DiffID), false)
	if err != nil {
		return Layer{}, err
	}
	defer diffLock.release()
	if l, ok := s.findLayer(spec.DiffID, chainID); ok {
		if !blobHere() {
			if err := s.fetchBlob(ctx, spec); err != nil {
				return Layer{}, err
			}
		}
		return finished(l)
	}
	u := &unpacking{s: s, spec: spec, chainID: chainID, parents: parents, diffLock: diffLock, applied: applied}
	l, stored, err := u.run(ctx)
	if err != nil && stored && errors.Is(err, ErrCorrupt) && spec.Open != nil && ctx.Err() == nil {
		// The blob has rotted since it was stored. A descriptor that lies would fail in the same way the second time.
		s.log.Warn("a stored blob is damaged and fetched again", "digest", spec.Descriptor.Digest, "error", err)
		if err = s.setAside(s.blobsFD, spec.Descriptor.Digest.Encoded()); err == nil {
			l, _, err = u.run(ctx)
		}
	}
	if err != nil {
		return Layer{}, err
	}
	return finished(l)
}

// fetchBlob stores the blob of a layer that is unpacked already: an image's blobs are all here, whoever reads the store.
func (s *Store) fetchBlob(ctx context.Context, spec *LayerSpec) error {
	rc, err := spec.Open(ctx)
	if err != nil {
		return fmt.Errorf("open blob %s: %w", spec.Descriptor.Digest, err)
	}
	defer rc.Close()
	return s.writeBlob(ctx, spec.Descriptor.Digest.Encoded(), spec.Descriptor, rc)
}

// checkMediaType refuses what is known not to be an archive of files; compression is recognised by content.
func checkMediaType(mt string) error {
	if strings.Contains(mt, "encrypted") || strings.HasSuffix(mt, "+json") || strings.HasSuffix(mt, "+xz") || strings.HasSuffix(mt, "+bzip2") {
		return fmt.Errorf("layer of media type %s: %w", mt, errors.ErrUnsupported)
	}
	return nil
}

type unpacking struct {
	s        *Store
	spec     *LayerSpec
	chainID  digest.Digest
	parents  func(context.Context) ([]Layer, error)
	diffLock *fileLock

	// applied, if not nil, is called when nothing but the disk is waited for any more.
	applied func()

	syncBegin uint64
	wrote     func(int64) // nil where nothing is going to be synced
	below     []Layer     // after lowers
}

// run makes the layer in a temporary directory and shows it. stored says that the blob came from the store.
func (u *unpacking) run(ctx context.Context) (l Layer, stored bool, err error) {
	s := u.s
	u.syncBegin, u.wrote = s.syncer.begin(), s.syncer.wrote
	t, err := s.newTemp()
	if err != nil {
		return Layer{}, false, err
	}
	defer t.remove()
	for _, d := range []string{"layer", "layer/fs"} {
		if err := unix.Mkdirat(t.fd, d, 0o700); err != nil {
			return Layer{}, false, fmt.Errorf("mkdir %s: %w", d, err)
		}
	}
	root, err := openBeneath(t.fd, "layer/fs", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return Layer{}, false, err
	}
	defer unix.Close(root)
	crashpoint.At("unpack: directory made")

	blob, err := s.openBlob(u.spec.Descriptor.Digest)
	stored = err == nil
	if errors.Is(err, fs.ErrNotExist) {
		if u.spec.Open == nil {
			return Layer{}, false, err
		}
		blob, err = createFile(t.fd, "blob")
	}
	if err != nil {
		return Layer{}, false, err
	}
	defer blob.Close()
	a, err := u.pipeline(ctx, blob, stored, root)
	if err != nil {
		return Layer{}, stored, err
	}
	crashpoint.At("unpack: archive applied")
	fetched := blob
	if stored {
		fetched = nil
	}
	if u.applied != nil {
		u.applied()
	}
	l, err = u.commit(t, a, fetched)
	return l, stored, err
}

// pipeline runs the four goroutines and returns when all have ended.
func (u *unpacking) pipeline(ctx context.Context, blob *os.File, stored bool, root int) (*applier, error) {
	s := u.s
	parent := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := newFollower(blob)
	w.wrote = u.wrote
	stop := context.AfterFunc(ctx, func() { w.finish(context.Cause(ctx)) })
	defer stop()

	var wg sync.WaitGroup
	fetchErr := make(chan error, 1)
	if stored {
		// What was verified when it was stored is not hashed again: the diffID is, which says more.
		st, err := blob.Stat()
		if err != nil {
			return nil, err
		}
		if st.Size() != u.spec.Descriptor.Size {
			return nil, fmt.Errorf("stored blob %s has %d bytes instead of %d: %w", u.spec.Descriptor.Digest, st.Size(), u.spec.Descriptor.Size, ErrCorrupt)
		}
		w.add(int(st.Size()))
		w.finish(nil)
		fetchErr <- nil
	} else {
		rc, err := u.spec.Open(ctx)
		if err != nil {
			return nil, fmt.Errorf("open blob %s: %w", u.spec.Descriptor.Digest, err)
		}
		var closeOnce sync.Once
		closeSource := func() { closeOnce.Do(func() { _ = rc.Close() }) }
		// A Read that hangs ends when its source is closed.
		stopClose := context.AfterFunc(ctx, closeSource)
		wg.Go(func() {
			defer closeSource()
			defer stopClose()
			err := fetch(ctx, rc, w, newVerifier(u.spec.Descriptor), u.spec.Progress)
			fetchErr <- err
		})
	}
	c := newChunks()
	wg.Go(func() { c.decompress(ctx, w, &s.limits) })
	var diff string
	wg.Go(func() { diff = c.hash() })

	a := newApplier(root, c, &s.limits, s.userXattrs, s.log)
	a.wrote = u.wrote
	a.lowers = func() (*lowerView, error) { return u.lowers(ctx) }
	var applyErr error
	onOwnThread(func() { applyErr = a.run(ctx) })
	if a.view != nil {
		defer a.view.close()
	}
	if applyErr == nil {
		applyErr = c.drain(&s.limits)
	}
	if applyErr != nil && (errors.Is(applyErr, ErrInvalidArchive) || errors.Is(applyErr, ErrCorrupt)) {
		// Rubbish: whether it is what the digest promised decides whose fault it is, and whether to fetch it again.
		if err := <-fetchErr; err != nil {
			applyErr = err
		}
		fetchErr <- nil
		if stored {
			_ = c.drain(&s.limits)
		}
	}
	cancel(applyErr)
	if applyErr == nil {
		stop()
	}
	wg.Wait()
	switch err := <-fetchErr; {
	case parent.Err() != nil:
		return nil, context.Cause(parent)
	case applyErr != nil:
		if stored && errors.Is(applyErr, ErrInvalidArchive) && "sha256:"+diff != string(u.spec.DiffID) {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, applyErr)
		}
		return nil, applyErr
	case err != nil:
		return nil, err
	}
	if "sha256:"+diff != string(u.spec.DiffID) {
		return nil, fmt.Errorf("the archive has the diffID sha256:%s: %w", diff, ErrCorrupt)
	}
	return a, nil
}

// lowers waits for the layers below, when the archive turns out to need them.
func (u *unpacking) lowers(ctx context.Context) (*lowerView, error) {
	u.diffLock.release() // nil where nothing is made
	below, err := u.parents(ctx)
	if err != nil {
		return nil, err
	}
	u.below = below
	v := &lowerView{userXattrs: u.s.userXattrs}
	for i := len(below) - 1; i >= 0; i-- {
		fd, err := openBeneath(u.s.layersFD, below[i].Key+"/fs", unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			v.close()
			return nil, fmt.Errorf("open parent layer %s: %w", below[i].Key, err)
		}
		v.fds = append(v.fds, fd)
	}
	return v, nil
}

// sync writes out all that a rename is going to show. blob is nil where the store had it.
func (u *unpacking) sync(t *tempDir, a *applier, blob *os.File) error {
	if a.tr.entries+a.dirs <= smallObjects && a.written+u.spec.Descriptor.Size <= smallBytes {
		err := syncSmall(t.fd, "layer", blob)
		if err == nil || errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return err
		}
		// A file that its owner may not open: only syncfs does not have to.
	}
	return u.s.syncer.sync(u.syncBegin)
}

// commit syncs and renames. The renames are not synced: a power cut may take them back, and the layer is fetched again.
func (u *unpacking) commit(t *tempDir, a *applier, blob *os.File) (Layer, error) {
	s := u.s
	rec := layerRecord{Version: recordVersion, Bytes: a.written, Entries: a.tr.entries,
		Layer: Layer{DiffID: u.spec.DiffID, ChainID: u.chainID, Key: layerKey("d-", u.spec.DiffID)}}
	if a.dependent() {
		rec.Key = layerKey("c-", u.chainID)
		for _, p := range u.below {
			rec.Parents = append(rec.Parents, p.Key)
		}
	}
	if a.tree.explicit {
		rec.Root = a.tree.rootAttr()
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return Layer{}, err
	}
	if err := writeFileAt(t.fd, "layer/layer.json", data, false); err != nil {
		return Layer{}, err
	}
	if err := u.sync(t, a, blob); err != nil {
		return Layer{}, fmt.Errorf("sync: %w", err)
	}
	crashpoint.At("unpack: layer synced")
	if blob != nil {
		if err := unix.Renameat(t.fd, "blob", s.blobsFD, u.spec.Descriptor.Digest.Encoded()); err != nil {
			return Layer{}, fmt.Errorf("store blob: %w", err)
		}
		crashpoint.At("unpack: blob in sight")
	}
	err = unix.Renameat(t.fd, "layer", s.layersFD, rec.Key)
	if err == unix.EEXIST || err == unix.ENOTEMPTY {
		err = nil // another chain with the same independent part was faster
	}
	if err != nil {
		return Layer{}, fmt.Errorf("store layer: %w", err)
	}
	crashpoint.At("unpack: layer in sight")
	return rec.Layer, nil
}
