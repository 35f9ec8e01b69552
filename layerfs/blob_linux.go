package layerfs

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"

	"crypto/sha256"
	"encoding/hex"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/crashpoint"
)

// blobName checks a digest and returns its file name under blobs/sha256. Nothing but 64 hex digits is ever used as a
// name.
func blobName(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w", string(d), err)
	}
	if d.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("digest %s: algorithm %s: %w", d, d.Algorithm(), errors.ErrUnsupported)
	}
	return d.Encoded(), nil
}

// verifier hashes and counts what passes through it.
type verifier struct {
	h    hash.Hash
	n    int64
	desc ocispec.Descriptor
}

func newVerifier(desc ocispec.Descriptor) *verifier {
	return &verifier{h: sha256.New(), desc: desc}
}

func (v *verifier) Write(p []byte) (int, error) {
	v.n += int64(len(p))
	if v.n > v.desc.Size {
		return 0, fmt.Errorf("blob %s is longer than its %d bytes: %w", v.desc.Digest, v.desc.Size, ErrCorrupt)
	}
	return v.h.Write(p)
}

func (v *verifier) check() error {
	if v.n != v.desc.Size {
		return fmt.Errorf("blob %s ends after %d of its %d bytes: %w", v.desc.Digest, v.n, v.desc.Size, ErrCorrupt)
	}
	if got := hex.EncodeToString(v.h.Sum(nil)); got != v.desc.Digest.Encoded() {
		return fmt.Errorf("blob %s has the digest sha256:%s: %w", v.desc.Digest, got, ErrCorrupt)
	}
	return nil
}

// WriteBlob stores the blob that desc describes, of which only Digest and Size are used. What is longer, shorter or
// has another digest is ErrCorrupt, and nothing is stored. Where the blob exists already r is not read. The blob is
// durable when WriteBlob returns.
func (s *Store) WriteBlob(ctx context.Context, desc ocispec.Descriptor, r io.Reader) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	name, err := blobName(desc.Digest)
	if err != nil {
		return fmt.Errorf("layerfs: write blob: %w", err)
	}
	if s.blobSize(name) == desc.Size {
		// Whoever brought it, an unpacked layer or another process, may not have synced its name yet.
		if err := syncDir(s.blobsFD); err != nil {
			return fmt.Errorf("layerfs: write blob %s: sync: %w", desc.Digest, err)
		}
		return nil
	}
	if err := s.writeBlob(ctx, name, desc, r); err != nil {
		return fmt.Errorf("layerfs: write blob %s: %w", desc.Digest, err)
	}
	return nil
}

func (s *Store) writeBlob(ctx context.Context, name string, desc ocispec.Descriptor, r io.Reader) error {
	t, err := s.newTemp()
	if err != nil {
		return err
	}
	defer t.remove()
	f, err := createFile(t.fd, "blob")
	if err != nil {
		return err
	}
	defer f.Close()
	v := newVerifier(desc)
	buf := make([]byte, min(max(desc.Size, 512), 256<<10))
	var idle idleReads
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := idle.check(r.Read(buf))
		if n > 0 {
			if _, err := v.Write(buf[:n]); err != nil {
				return err
			}
			if _, err := f.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := v.check(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	crashpoint.At("blob: written")
	if err := unix.Renameat(t.fd, "blob", s.blobsFD, name); err != nil {
		return fmt.Errorf("rename: %w", err)
	}
	crashpoint.At("blob: in sight")
	return syncDir(s.blobsFD)
}

func createFile(at int, name string) (*os.File, error) {
	fd, err := openatRetry(at, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// blobSize is -1 where there is no such blob.
func (s *Store) blobSize(name string) int64 {
	var st unix.Stat_t
	if err := unix.Fstatat(s.blobsFD, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return -1
	}
	return st.Size
}

// OpenBlob opens a blob for reading; a missing one is fs.ErrNotExist. It was verified when it was stored.
func (s *Store) OpenBlob(d digest.Digest) (*os.File, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	return s.openBlob(d)
}

func (s *Store) openBlob(d digest.Digest) (*os.File, error) {
	name, err := blobName(d)
	if err != nil {
		return nil, fmt.Errorf("layerfs: open blob: %w", err)
	}
	fd, err := openatRetry(s.blobsFD, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("layerfs: open blob: %w", &fs.PathError{Op: "open", Path: "blobs/sha256/" + name, Err: err})
	}
	return os.NewFile(uintptr(fd), s.dir+"/blobs/sha256/"+name), nil
}

// HasBlob reports whether the store has a blob.
func (s *Store) HasBlob(d digest.Digest) bool {
	if s.enter() != nil {
		return false
	}
	defer s.leave()
	name, err := blobName(d)
	return err == nil && s.blobSize(name) >= 0
}

// RemoveBlob removes a blob. Readers that have it open keep it. A missing one is fs.ErrNotExist.
func (s *Store) RemoveBlob(d digest.Digest) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	name, err := blobName(d)
	if err != nil {
		return fmt.Errorf("layerfs: remove blob: %w", err)
	}
	if err := unix.Unlinkat(s.blobsFD, name, 0); err != nil {
		return fmt.Errorf("layerfs: remove blob %s: %w", d, err)
	}
	return nil
}

// Blobs returns the digests of all blobs, in no order.
func (s *Store) Blobs() ([]digest.Digest, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	names, err := readNames(s.blobsFD)
	if err != nil {
		return nil, fmt.Errorf("layerfs: list blobs: %w", err)
	}
	var ds []digest.Digest
	for _, n := range names {
		if d := digest.NewDigestFromEncoded(digest.SHA256, n); d.Validate() == nil {
			ds = append(ds, d)
		}
	}
	return ds, nil
}

// ReadBlob reads a blob of at most max bytes into memory and verifies it again. What is larger is refused by
// desc.Size, before it is read; what differs from its digest is ErrCorrupt; what is missing is fs.ErrNotExist.
func (s *Store) ReadBlob(ctx context.Context, desc ocispec.Descriptor, max int64) ([]byte, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if desc.Size < 0 || desc.Size > max {
		return nil, fmt.Errorf("layerfs: read blob %s: its %d bytes are more than the %d allowed", desc.Digest, desc.Size, max)
	}
	f, err := s.openBlob(desc.Digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, desc.Size+1)
	n, err := io.ReadFull(f, data)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return nil, fmt.Errorf("layerfs: read blob %s: %w", desc.Digest, err)
	}
	v := newVerifier(desc)
	if _, err = v.Write(data[:n]); err == nil {
		err = v.check()
	}
	if err != nil {
		return nil, fmt.Errorf("layerfs: read blob: %w", err)
	}
	return data[:n:n], nil
}
