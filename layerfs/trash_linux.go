package layerfs

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// trash removes snapshots behind the caller's back: deleting five directories costs a disk filesystem more than
// everything else in a container's life. A removed snapshot is renamed into a temporary directory of this process, and
// is gone at that moment; a goroutine, which ends when there is nothing left to do, empties that directory. When the
// process dies the next open of the store sweeps it as it does any other.
type trash struct {
	mu      sync.Mutex
	idle    *sync.Cond
	dir     *tempDir
	n       int
	queue   []string
	running bool
}

// maxTrash is how many snapshots may wait; beyond it Remove helps.
const maxTrash = 256

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
		if err := s.removeDiscarded(t.dir.fd, name); err != nil {
			s.log.Warn("removing a snapshot's files: the next open tries again", "error", err)
		}
		t.mu.Lock()
		t.idle.Broadcast()
	}
	t.running = false
	t.idle.Broadcast()
}

func (s *Store) removeDiscarded(at int, name string) error {
	dir, err := openatRetry(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		target, _ := readlinkAt(dir, stackLink)
		_ = unix.Unlinkat(dir, stackLink, 0)
		err = s.driver.Remove(context.Background(), &SnapshotDir{Dir: dir, Path: s.trash.dir.path() + "/" + name,
			UserXattrs: s.userXattrs, Volatile: len(target) > 0 && target[0] == 'v'})
		unix.Close(dir)
	}
	return errors.Join(err, removeTree(at, name))
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
	s.waitTrash()
	if s.trash.dir != nil {
		s.trash.dir.remove()
		s.trash.dir = nil
	}
}
