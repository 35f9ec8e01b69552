package layerfs

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/lockorder"
)

// What keeps Collect from taking away what somebody is about to use: a Hold for moments, a Lease for as long as a
// download takes.

// The two files of the collection lock are never removed. The first is a turnstile, so that a stream of holds does not
// keep a collection out for ever: who waits for the lock holds the turnstile.
const (
	turnFile       = ".turn"
	collectionFile = ".collection"
)

// Hold keeps [Store.Collect] out of a store until it is released, or its process ends. It is for moments: between
// looking something up and making it used. Nothing slow is to be done meanwhile.
type Hold struct {
	fd       int
	released func()
	once     sync.Once
}

// Hold waits until no collection is under way and keeps others out.
func (s *Store) Hold(ctx context.Context) (*Hold, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	h, err := s.hold(ctx, unix.LOCK_SH)
	if err != nil {
		return nil, fmt.Errorf("layerfs: hold store %s: %w", s.dir, err)
	}
	return h, nil
}

func (s *Store) hold(ctx context.Context, how int) (*Hold, error) {
	turn, err := s.flockFile(ctx, lockorder.Turn, turnFile, how)
	if err != nil {
		return nil, err
	}
	defer turn.Release()
	return s.flockFile(ctx, lockorder.Collection, collectionFile, how)
}

// flockFile locks a file of the store that is never removed.
func (s *Store) flockFile(ctx context.Context, rank lockorder.Rank, name string, how int) (*Hold, error) {
	fd, err := openatRetry(s.rootFD, name, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	err = poll(ctx, func() (bool, error) {
		err := flock(fd, how|unix.LOCK_NB)
		if err == unix.EWOULDBLOCK {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return &Hold{fd: fd, released: lockorder.Taken(rank, name)}, nil
}

// Release lets collections in again. It may be called more than once.
func (h *Hold) Release() {
	h.once.Do(func() {
		h.released()
		unix.Close(h.fd)
	})
}

// Lease keeps blobs and layers, also those that do not exist yet, from [Store.Collect] until it is released or its
// process ends. It is a file under leases that its maker holds locked.
type Lease struct {
	s    *Store
	name string
	fd   int
	once sync.Once
}

// leaseRecord is the content of the file.
type leaseRecord struct {
	Version int      `json:"version"`
	Blobs   []string `json:"blobs"`  // names under blobs/sha256
	Layers  []string `json:"layers"` // keys
}

// Lease makes a lease of blobs and of the layers of an image whose config lists diffIDs. What exists when Lease returns
// exists until the lease is released.
func (s *Store) Lease(ctx context.Context, blobs, diffIDs []digest.Digest) (*Lease, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	rec := leaseRecord{Version: recordVersion}
	for _, d := range blobs {
		name, err := blobName(d)
		if err != nil {
			return nil, fmt.Errorf("layerfs: lease: %w", err)
		}
		rec.Blobs = append(rec.Blobs, name)
	}
	keys, err := layerKeys(diffIDs)
	if err != nil {
		return nil, fmt.Errorf("layerfs: lease: %w", err)
	}
	rec.Layers = keys
	l, err := s.newLease(ctx, &rec)
	if err != nil {
		return nil, fmt.Errorf("layerfs: lease: %w", err)
	}
	return l, nil
}

// layerKeys returns all keys that the layers of an image may have.
func layerKeys(diffIDs []digest.Digest) ([]string, error) {
	var keys []string
	var below []Layer
	for _, d := range diffIDs {
		if _, err := blobName(d); err != nil {
			return nil, err
		}
		l := Layer{DiffID: d, ChainID: NextChainID(below, d)}
		below = append(below, l)
		keys = append(keys, layerKey("d-", d), layerKey("c-", l.ChainID))
	}
	return keys, nil
}

func (s *Store) newLease(ctx context.Context, rec *leaseRecord) (*Lease, error) {
	data, err := json.Marshal(rec)
	if err != nil {
		return nil, err
	}
	// While no collection is under way: the next one sees the lease as a whole.
	h, err := s.hold(ctx, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer h.Release()
	for {
		name := randomName()
		fd, err := openatRetry(s.leasesFD, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, &os.PathError{Op: "create", Path: "leases/" + name, Err: err}
		}
		l := &Lease{s: s, name: name, fd: fd}
		var st unix.Stat_t
		if flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil || unix.Fstat(fd, &st) != nil || st.Nlink == 0 {
			unix.Close(fd) // a sweeper took it for a dead one's
			continue
		}
		crashpoint.At("lease: made")
		if err := writeAll(fd, data); err != nil {
			l.Release()
			return nil, &os.PathError{Op: "write", Path: "leases/" + name, Err: err}
		}
		crashpoint.At("lease: written")
		return l, nil
	}
}

// Release ends the lease. It may be called more than once, and after the store was closed.
func (l *Lease) Release() {
	l.once.Do(func() {
		// By path: the store's descriptors may be closed.
		_ = os.Remove(l.s.dir + "/leases/" + l.name)
		unix.Close(l.fd)
		crashpoint.At("lease: released")
	})
}

// liveLeases reads the leases and removes those of the dead.
func (s *Store) liveLeases() ([]leaseRecord, error) {
	names, err := readNames(s.leasesFD)
	if err != nil {
		return nil, err
	}
	var live []leaseRecord
	for _, n := range names {
		l, err := tryLockFile(s.leasesFD, n, false)
		if err != nil {
			return nil, err
		}
		if l != nil {
			l.release() // and removes
			continue
		}
		var rec leaseRecord
		data, err := readFileAt(s.leasesFD, n, 64<<20)
		if err == nil && len(data) > 0 {
			err = json.Unmarshal(data, &rec)
		}
		if os.IsNotExist(err) {
			continue // released meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("lease %s: %w", n, err)
		}
		live = append(live, rec)
	}
	return live, nil
}
