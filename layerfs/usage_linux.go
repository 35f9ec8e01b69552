package layerfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Sizes returns the size of every blob, and by key that of the files of every unpacked layer, in bytes.
func (s *Store) Sizes() (blobs map[digest.Digest]int64, layers map[string]int64, err error) {
	if err := s.enter(); err != nil {
		return nil, nil, err
	}
	defer s.leave()
	names, err := readNames(s.blobsFD)
	if err != nil {
		return nil, nil, fmt.Errorf("layerfs: sizes of blobs: %w", err)
	}
	blobs = make(map[digest.Digest]int64, len(names))
	for _, n := range names {
		d := digest.NewDigestFromEncoded(digest.SHA256, n)
		if size := s.blobSize(n); size >= 0 && d.Validate() == nil {
			blobs[d] = size
		}
	}
	if names, err = readNames(s.layersFD); err != nil {
		return nil, nil, fmt.Errorf("layerfs: sizes of layers: %w", err)
	}
	layers = make(map[string]int64, len(names))
	for _, key := range names {
		if rec, err := s.readLayer(key); err == nil {
			layers[key] = rec.Bytes
		}
	}
	return blobs, layers, nil
}

// SnapshotUsage returns the bytes of the files in a snapshot's own directory: what was written into it, or a whole copy
// of the layers where the driver makes one. A file with several names counts once, a sparse one with what it holds. One
// that is not there is fs.ErrNotExist.
func (s *Store) SnapshotUsage(ctx context.Context, id string) (int64, error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.leave()
	if err := checkID(id); err != nil {
		return 0, fmt.Errorf("layerfs: usage of snapshot: %w", err)
	}
	n, err := treeBytes(ctx, s.snapsFD, id, 0, make(map[inode]bool))
	if err != nil {
		return 0, fmt.Errorf("layerfs: usage of snapshot %s: %w", id, err)
	}
	return n, nil
}

// usageDepth bounds the descriptors that counting holds: a container can make a tree of any depth.
const usageDepth = 256

// treeBytes adds up the regular files below a directory, which may be changing.
func treeBytes(ctx context.Context, at int, name string, depth int, seen map[inode]bool) (int64, error) {
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	fd, err := openBeneath(at, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return 0, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return 0, err
	}
	var total int64
	for _, n := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if err == unix.ENOENT {
				continue
			}
			return 0, &fs.PathError{Op: "stat", Path: n, Err: err}
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			id := inode{st.Dev, st.Ino}
			if st.Nlink > 1 && seen[id] {
				continue
			}
			if st.Nlink > 1 {
				seen[id] = true
			}
			total += min(st.Size, st.Blocks*512)
		case unix.S_IFDIR:
			if depth == usageDepth {
				continue
			}
			sub, err := treeBytes(ctx, fd, n, depth+1, seen)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return 0, err
			}
			total += sub
		}
	}
	return total, nil
}
