package layerfs

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/crashpoint"
)

// trash removes snapshots behind the caller's back: deleting five directories costs a disk filesystem more than
// everything else in a container's life. A removed snapshot is renamed into a temporary directory of this process, and
// is gone at that moment; a goroutine, which ends when there is nothing left to do, empties that directory. When the
// process dies the next open of the store sweeps it as it does any other.
//
// Making directories is what costs most after that, so a program that starts one container of an image after another
// gets the directory of a removed snapshot again, as a spare. What was written is gone by then and upper is a new
// directory: only the snapshot's own directory, its link to the layers and overlayfs's work directory stay.
type trash struct {
	mu      sync.Mutex
	idle    *sync.Cond
	dir     *tempDir
	n       int
	queue   []string
	running bool
	closing bool
	// spares are names in dir of emptied snapshots, by the target of their link; nSpares is how many there are.
	spares  map[string][]string
	nSpares int
}

const (
	// maxTrash is how many snapshots may wait; beyond it Remove helps.
	maxTrash = 256
	// maxSpares is how many emptied snapshots are kept for all images.
	maxSpares = 16
)

// recycler is a driver that can make the directory of a removed snapshot what Prepare had made of it.
type recycler interface {
	recycle(s *SnapshotDir) error
}

// takeSpare turns an emptied snapshot of the same layers into a new one. One that exists is fs.ErrExist.
func (s *Store) takeSpare(target, id string) (bool, error) {
	t := &s.trash
	t.mu.Lock()
	defer t.mu.Unlock()
	spares := t.spares[target]
	if len(spares) == 0 {
		return false, nil
	}
	last := spares[len(spares)-1]
	err := unix.Renameat2(t.dir.fd, last, s.snapsFD, id, unix.RENAME_NOREPLACE)
	crashpoint.At("snapshot: spare taken")
	if err == unix.EEXIST {
		return false, &fs.PathError{Op: "rename", Path: "snapshots/" + id, Err: err}
	}
	if t.nSpares--; len(spares) == 1 {
		delete(t.spares, target)
	} else {
		t.spares[target] = spares[:len(spares)-1]
	}
	// A filesystem without NOREPLACE: the spare goes when the store is closed.
	return err == nil, nil
}

// keepSpare makes a spare of a removed snapshot, if one is likely to be wanted.
func (s *Store) keepSpare(name, target string, st *stack) bool {
	t := &s.trash
	r, ok := s.driver.(recycler)
	if !ok || st == nil || st.uses.Load() < 2 {
		return false
	}
	t.mu.Lock()
	full := t.nSpares >= maxSpares || t.closing
	t.mu.Unlock()
	if full {
		return false
	}
	dir, err := openatRetry(t.dir.fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(dir)
	err = r.recycle(&SnapshotDir{Dir: dir, Path: t.dir.path() + "/" + name, Root: st.Root, UserXattrs: s.userXattrs, Volatile: target[0] == 'v'})
	if err != nil {
		return false // it is deleted, and whoever does that says what is wrong
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing {
		return false
	}
	if t.spares == nil {
		t.spares = make(map[string][]string)
	}
	t.spares[target] = append(t.spares[target], name)
	t.nSpares++
	return true
}

// discard takes a snapshot out of sight. A missing one is fs.ErrNotExist.
func (s *Store) discard(id string) error {
	t := &s.trash
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.idle == nil {
		t.idle = sync.NewCond(&t.mu)
	}
	if t.dir == nil {
		dir, err := s.newTemp()
		if err != nil {
			return err
		}
		t.dir = dir
	}
	t.n++
	name := strconv.Itoa(t.n)
	if err := unix.Renameat(s.snapsFD, id, t.dir.fd, name); err != nil {
		return &fs.PathError{Op: "rename", Path: "snapshots/" + id, Err: err}
	}
	crashpoint.At("trash: snapshot out of sight")
	t.queue = append(t.queue, name)
	if !t.running {
		t.running = true
		go s.emptyTrash()
	}
	for len(t.queue) > maxTrash {
		t.idle.Wait()
	}
	return nil
}

func (s *Store) emptyTrash() {
	t := &s.trash
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.queue) > 0 {
		name := t.queue[0]
		t.queue = t.queue[1:]
		t.mu.Unlock()
		if err := s.emptyOne(name); err != nil {
			s.log.Warn("removing a snapshot's files: the next open tries again", "error", err)
		}
		t.mu.Lock()
		t.idle.Broadcast()
	}
	t.running = false
	t.idle.Broadcast()
}

// emptyOne deletes a snapshot's files, and the rest of it unless that can be used again.
func (s *Store) emptyOne(name string) error {
	at := s.trash.dir.fd
	target, _ := readlinkAt(at, name+"/"+stackLink)
	if kind, stackID, _ := strings.Cut(target, ":"); kind == "v" || kind == "s" {
		s.stacksMu.Lock()
		st := s.stacks[stackID]
		s.stacksMu.Unlock()
		if s.keepSpare(name, target, st) {
			crashpoint.At("trash: snapshot kept as a spare")
			return nil
		}
	}
	dir, err := openatRetry(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		_ = unix.Unlinkat(dir, stackLink, 0)
		err = s.driver.Remove(context.Background(), &SnapshotDir{Dir: dir, Path: s.trash.dir.path() + "/" + name,
			UserXattrs: s.userXattrs, Volatile: len(target) > 0 && target[0] == 'v'})
		unix.Close(dir)
	}
	err = errors.Join(err, removeTree(at, name))
	crashpoint.At("trash: snapshot gone")
	return err
}

// waitTrash returns when all that was discarded is gone.
func (s *Store) waitTrash() {
	t := &s.trash
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.running {
		t.idle.Wait()
	}
}

// closeTrash is called when no other call is in progress.
func (s *Store) closeTrash() {
	s.trash.mu.Lock()
	s.trash.closing = true
	s.trash.mu.Unlock()
	s.waitTrash()
	if s.trash.dir != nil {
		s.trash.dir.remove()
		s.trash.dir = nil
	}
}
