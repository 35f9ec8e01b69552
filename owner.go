package coracle

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/filelock"
)

// owner is one open engine among those that share a root: a file in the root's owners directory, locked for as long as
// the engine lives. What an engine makes carries the owner's id; once the lock is free, the engine is dead and what it
// left may be swept.
type owner struct {
	id   string
	file *os.File
}

// newOwner makes an owner. Between the making of its file and its locking, a sweeping engine may take it for dead and
// remove it: then the next try makes another.
func newOwner(dir string) (*owner, error) {
	for {
		id := newID(8)
		path := filepath.Join(dir, id)
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		crashpoint.At("owner: file made")
		locked, err := filelock.TryLock(f)
		if err != nil {
			f.Close()
			os.Remove(path)
			return nil, err
		}
		if locked && sameFile(path, f) {
			return &owner{id, f}, nil
		}
		f.Close()
	}
}

// sameFile reports whether the path still leads to the open file.
func sameFile(path string, f *os.File) bool {
	a, err := os.Lstat(path)
	if err != nil {
		return false
	}
	b, err := f.Stat()
	return err == nil && os.SameFile(a, b)
}

// close removes the owner's file: nothing of it is left to sweep.
func (o *owner) close() error {
	err := os.Remove(o.file.Name())
	crashpoint.At("owner: file gone")
	return errors.Join(err, o.file.Close())
}

// deadOwners locks and returns the owners in dir whose engines are gone. The caller sweeps what they left and then
// calls close on each; if it dies before, the next one finds them again.
func deadOwners(dir string) ([]*owner, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var dead []*owner
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return dead, err
		}
		// Shared: whoever asks at the same moment is not to take one of us for the owner.
		if locked, err := filelock.TryRLock(f); err == nil && locked && sameFile(path, f) {
			dead = append(dead, &owner{entry.Name(), f})
			continue
		}
		f.Close()
	}
	return dead, nil
}

// ownerAlive reports whether the engine with this owner id is open.
func (e *Engine) ownerAlive(id string) bool {
	if id == "" || strings.ContainsRune(id, '/') {
		return false
	}
	if id == e.owner.id {
		return true
	}
	f, err := os.Open(filepath.Join(e.ownersDir(), id))
	if err != nil {
		return false
	}
	defer f.Close()
	locked, err := filelock.TryRLock(f)
	return err != nil || !locked
}
