package layerfs

import (
	"fmt"
	"io/fs"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/crashpoint"
)

// removeDepth is how many directories removeTree has open at once. What lies deeper is moved up first: containers can
// make trees deeper than any limit on descriptors.
const removeDepth = 64

// removeTree removes a directory and all below it, or a file, without ever following a link. What is missing is no
// error.
func removeTree(at int, name string) error {
	switch err := unix.Unlinkat(at, name, 0); err {
	case nil, unix.ENOENT:
		return nil
	case unix.EISDIR, unix.EPERM:
	default:
		return &fs.PathError{Op: "unlink", Path: name, Err: err}
	}
	err := unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
	if err == unix.ENOTEMPTY || err == unix.EEXIST || err == unix.EACCES {
		r := &remover{at: at}
		if r.top, err = openForRemoval(at, name); err != nil {
			return &fs.PathError{Op: "open", Path: name, Err: err}
		}
		defer unix.Close(r.top)
		r.buf = make([]byte, 32<<10)
		for again := true; again; {
			r.moved = false
			if err := r.empty(r.top, 0); err != nil {
				return err
			}
			again = r.moved
		}
		err = unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
	}
	if err != nil && err != unix.ENOENT {
		return &fs.PathError{Op: "rmdir", Path: name, Err: err}
	}
	return nil
}

type remover struct {
	at, top int
	n       int
	moved   bool
	buf     []byte
}

func openForRemoval(at int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := openatRetry(at, name, flags, 0)
	if err == unix.EACCES && unix.Fchmodat(at, name, 0o700, 0) == nil {
		fd, err = openatRetry(at, name, flags, 0)
	}
	return fd, err
}

// empty removes all that is in the directory fd.
func (r *remover) empty(fd, depth int) error {
	writable := false
	for {
		if _, err := unix.Seek(fd, 0, 0); err != nil {
			return err
		}
		removed := 0
		for {
			n, err := unix.Getdents(fd, r.buf)
			if err != nil {
				return fmt.Errorf("read directory: %w", err)
			}
			if n == 0 {
				break
			}
			// The names are copied: the buffer is used again below.
			_, _, names := unix.ParseDirent(r.buf[:n], -1, nil)
			for _, name := range names {
				err := r.one(fd, name, depth)
				if err == unix.EACCES && !writable {
					writable = true
					if unix.Fchmod(fd, 0o700) == nil {
						err = r.one(fd, name, depth)
					}
				}
				if err != nil && err != unix.ENOENT {
					return &fs.PathError{Op: "remove", Path: name, Err: err}
				}
				removed++
			}
		}
		// A directory that changes while it is read may have skipped entries.
		if removed == 0 {
			crashpoint.At("remove: directory emptied")
			return nil
		}
	}
}

func (r *remover) one(fd int, name string, depth int) error {
	err := unix.Unlinkat(fd, name, 0)
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	if err = unix.Unlinkat(fd, name, unix.AT_REMOVEDIR); err != unix.ENOTEMPTY && err != unix.EEXIST && err != unix.EACCES {
		return err
	}
	if depth >= removeDepth {
		for {
			r.n++
			err := unix.Renameat2(fd, name, r.top, ".coracle-removing-"+strconv.Itoa(r.n), unix.RENAME_NOREPLACE)
			if err == unix.EEXIST {
				continue
			}
			r.moved = true
			return err
		}
	}
	sub, err := openForRemoval(fd, name)
	if err != nil {
		return err
	}
	err = r.empty(sub, depth+1)
	unix.Close(sub)
	if err != nil {
		return err
	}
	return unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
}
