package layerfs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// visible returns the part of a stack, lowest first, that shows: the layers above the topmost one whose root is opaque,
// and that one. Overlayfs heeds the mark on every directory but the roots of layers.
func (s *Store) visible(keys []string) ([]string, error) {
	for i := len(keys) - 1; i > 0; i-- {
		fd, err := openBeneath(s.layersFD, keys[i]+"/fs", unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return nil, fmt.Errorf("open layer %s: %w", keys[i], err)
		}
		opaque := isOpaque(fd, s.userXattrs)
		unix.Close(fd)
		if opaque {
			return keys[i:], nil
		}
	}
	return keys, nil
}

// isOpaque reports whether a directory hides what the layers below have in it.
func isOpaque(fd int, userXattrs bool) bool {
	var val [2]byte
	n, err := unix.Fgetxattr(fd, opaqueXattr(userXattrs), val[:])
	return err == nil && n == 1 && val[0] == 'y'
}

// lowerView looks names up in a stack of layers as overlayfs would.
type lowerView struct {
	fds        []int // topmost first
	userXattrs bool
	ctx        context.Context
}

func (v *lowerView) close() {
	for _, fd := range v.fds {
		unix.Close(fd)
	}
}

// lowerFile is something found in a layer.
type lowerFile struct {
	fd   int // O_PATH
	at   int // the layer
	path string
	st   unix.Stat_t
}

func (f *lowerFile) close() { unix.Close(f.fd) }

// find looks up a path whose directories are directories in the merged view. It returns nil for what is not there.
func (v *lowerView) find(path string) (*lowerFile, error) {
	for _, at := range v.fds {
		// A thousand layers with deep directories make this slow, and an entry may come here forty times by way of links.
		if err := context.Cause(v.ctx); err != nil {
			return nil, err
		}
		fd, err := openBeneath(at, path, unix.O_PATH)
		switch err {
		case nil:
			f := &lowerFile{fd: fd, at: at, path: path}
			if err := unix.Fstat(fd, &f.st); err != nil {
				f.close()
				return nil, err
			}
			if isWhiteout(&f.st) {
				f.close()
				return nil, nil
			}
			return f, nil
		case unix.ENOENT:
			if hides, err := v.opaqueAbove(at, path); hides || err != nil {
				return nil, err
			}
		case unix.ENOTDIR, unix.ELOOP:
			return nil, nil // a file, whiteout or link of this layer is in the way of all below
		default:
			return nil, err
		}
	}
	return nil, nil
}

// opaqueAbove reports whether a directory on the way to path, as far as this layer has it, hides the layers below.
func (v *lowerView) opaqueAbove(at int, path string) (bool, error) {
	dir, err := openBeneath(at, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	for err == nil {
		c, rest, more := strings.Cut(path, "/")
		if opaque := isOpaque(dir, v.userXattrs); opaque || !more {
			unix.Close(dir)
			return opaque, nil
		}
		path = rest
		var sub int
		sub, err = openBeneath(dir, c, unix.O_RDONLY|unix.O_DIRECTORY)
		unix.Close(dir)
		dir = sub
	}
	if err == unix.ENOENT {
		return false, nil
	}
	return false, err
}

func (f *lowerFile) readlink() (string, error) { return readlinkAt(f.fd, "") }

// reopen opens the file for real; layers do not change, so the path is still the same file.
func (f *lowerFile) reopen(flags uint64) (int, error) { return openBeneath(f.at, f.path, flags) }

// xattrs returns the extended attributes but overlay's own, of a file or directory.
func (f *lowerFile) xattrs() ([]tarXattr, error) {
	fd, err := f.reopen(unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return listXattrs(fd)
}

// xattrSource is something to read extended attributes from.
type xattrSource struct {
	list func([]byte) (int, error)
	get  func(name string, value []byte) (int, error)
}

func fdXattrs(fd int) xattrSource {
	return xattrSource{
		func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(name string, value []byte) (int, error) { return unix.Fgetxattr(fd, name, value) },
	}
}

// linkXattrs reads those of a link itself, by a path relative to the thread's working directory.
func linkXattrs(path string) xattrSource {
	return xattrSource{
		func(b []byte) (int, error) { return unix.Llistxattr(path, b) },
		func(name string, value []byte) (int, error) { return unix.Lgetxattr(path, name, value) },
	}
}

func listXattrs(fd int) ([]tarXattr, error) { return listXattrsOf(fdXattrs(fd)) }

func listXattrsOf(f xattrSource) ([]tarXattr, error) {
	n, err := f.list(nil)
	if err == unix.ENOTSUP || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make([]byte, n)
	if n, err = f.list(names); err != nil {
		return nil, err
	}
	var xs []tarXattr
	for name := range bytes.SplitSeq(bytes.TrimSuffix(names[:n], []byte{0}), []byte{0}) {
		k := string(name)
		if !xattrBelongs(k) {
			continue
		}
		size, err := f.get(k, nil)
		if err != nil {
			return nil, err
		}
		value := make([]byte, size)
		if size, err = f.get(k, value); err != nil {
			return nil, err
		}
		xs = append(xs, tarXattr{k, string(value[:size])})
	}
	return xs, nil
}

// copyContent copies a file's data and keeps its holes: by reflink where the file system can, else inside the kernel.
func copyContent(dst, src int, size int64) error {
	if unix.IoctlFileClone(dst, src) == nil {
		return nil
	}
	if err := truncate(dst, size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		start, err := unix.Seek(src, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil // nothing but a hole is left
		}
		if err != nil {
			start = off
		}
		end, err := unix.Seek(src, start, unix.SEEK_HOLE)
		if err != nil {
			end = size
		}
		if err := copySegment(dst, src, start, end); err != nil {
			return err
		}
		off = end
	}
	return nil
}

func copySegment(dst, src int, start, end int64) error {
	for start < end {
		r, w := start, start
		n, err := unix.CopyFileRange(src, &r, dst, &w, int(min(end-start, 1<<30)), 0)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EXDEV || err == unix.EINVAL || err == unix.ENOSYS || err == unix.EOPNOTSUPP {
			return copyBytes(dst, src, start, end)
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		start += int64(n)
	}
	return nil
}

func copyBytes(dst, src int, start, end int64) error {
	buf := make([]byte, 128<<10)
	for start < end {
		n, err := unix.Pread(src, buf[:min(end-start, int64(len(buf)))], start)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		if err := pwriteAll(dst, buf[:n], start); err != nil {
			return err
		}
		start += int64(n)
	}
	return nil
}

// futimens sets the time of an open file; x/sys has only the variant with a path.
func futimens(fd int, t time.Time) error {
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return err
	}
	times := [2]unix.Timespec{ts, ts}
	if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
