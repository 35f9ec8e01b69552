package layerfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Whether what is stored is still what it was: blobs against their digests, layers against what their blobs unpack to.

// VerifyBlob reads a blob and checks it. ErrCorrupt: it is damaged; fs.ErrNotExist: it is not there.
func (s *Store) VerifyBlob(ctx context.Context, desc ocispec.Descriptor) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	f, err := s.openBlob(desc.Digest)
	if err != nil {
		return err
	}
	defer f.Close()
	v := newVerifier(desc)
	buf := make([]byte, 256<<10)
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := f.Read(buf)
		if n > 0 {
			if _, err := v.Write(buf[:n]); err != nil {
				return fmt.Errorf("layerfs: verify: %w", err)
			}
		}
		if err == io.EOF {
			break
		}
		if errors.Is(err, unix.EIO) {
			return fmt.Errorf("layerfs: verify blob %s: %w: %w", desc.Digest, ErrCorrupt, err)
		}
		if err != nil {
			return fmt.Errorf("layerfs: verify blob %s: %w", desc.Digest, err)
		}
	}
	if err := v.check(); err != nil {
		return fmt.Errorf("layerfs: verify: %w", err)
	}
	return nil
}

// VerifyLayer unpacks the layer's stored blob once more, into a temporary directory, and compares what comes out with
// the layer as it is: types, modes, owners, times, extended attributes, links and content. spec is that of Unpack, with
// Parents where the layer has any; Open is not used. ErrCorrupt: the layer is damaged, and the error says where.
// fs.ErrNotExist: layer or blob is not there; a layer without its blob cannot be verified. A damaged blob is
// ErrCorrupt too, so verify blobs first.
func (s *Store) VerifyLayer(ctx context.Context, spec LayerSpec) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if err := s.verifyLayer(ctx, spec); err != nil {
		return fmt.Errorf("layerfs: verify layer %s: %w", spec.DiffID, err)
	}
	return nil
}

func (s *Store) verifyLayer(ctx context.Context, spec LayerSpec) error {
	spec.Open, spec.Progress = nil, nil
	if _, err := blobName(spec.DiffID); err != nil {
		return err
	}
	chainID := chainOf(spec.Parents, spec.DiffID)
	l, ok := s.findLayer(spec.DiffID, chainID)
	if !ok {
		return fs.ErrNotExist
	}
	rec, err := s.readLayer(l.Key)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: it has no record", ErrCorrupt)
		}
		return err
	}
	blob, err := s.openBlob(spec.Descriptor.Digest)
	if err != nil {
		return err
	}
	defer blob.Close()
	t, err := s.newTemp()
	if err != nil {
		return err
	}
	defer t.remove()
	if err := unix.Mkdirat(t.fd, "fs", 0o700); err != nil {
		return err
	}
	root, err := openBeneath(t.fd, "fs", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	u := &unpacking{s: s, spec: &spec, chainID: chainID, parents: func(context.Context) ([]Layer, error) { return spec.Parents, nil }}
	a, err := u.pipeline(ctx, blob, true, root)
	if err != nil {
		return err
	}
	damaged := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
	}
	if a.dependent() != (l.Key[0] == 'c') || rec.Entries != a.tr.entries || rec.Bytes != a.written || (rec.Root != nil) != a.tree.explicit {
		return damaged("its record is of another layer")
	}
	c := &treeComparer{ctx: ctx, damaged: damaged, links: [2]map[inode]string{{}, {}}}
	want, err := openDir(t.fd, "fs")
	if err != nil {
		return err
	}
	defer unix.Close(want)
	got, err := openBeneath(s.layersFD, l.Key+"/fs", unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) {
		return damaged("it has no files")
	}
	if err != nil {
		return err
	}
	defer unix.Close(got)
	return c.dir(want, got, ".", a.tree)
}

// treeComparer compares a directory that has just been unpacked with one that should be the same.
type treeComparer struct {
	ctx     context.Context
	damaged func(format string, args ...any) error
	links   [2]map[inode]string // first names of files that have more, in each tree
	bufs    [2][]byte
}

// dir compares two directories and all below them. node is what the archive says of the directory, nil where it says
// nothing.
func (c *treeComparer) dir(want, got int, path string, node *dirNode) error {
	if err := context.Cause(c.ctx); err != nil {
		return err
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(want, &a), unix.Fstat(got, &b)); err != nil {
		return err
	}
	// A directory that the archive only implies is as old as its unpacking.
	if err := c.attributes(want, got, &a, &b, path, node != nil && !node.mtime.IsZero()); err != nil {
		return err
	}
	wantNames, err := readNames(want)
	if err != nil {
		return err
	}
	gotNames, err := readNames(got)
	if err != nil {
		return c.damaged("read directory %q: %v", path, err)
	}
	slices.Sort(wantNames)
	slices.Sort(gotNames)
	for i, n := range wantNames {
		if i >= len(gotNames) || gotNames[i] != n {
			return c.damaged("the directory %q does not have what its archive has: %q", path, n)
		}
	}
	if len(gotNames) > len(wantNames) {
		return c.damaged("the directory %q has what its archive does not have: %q", path, gotNames[len(wantNames)])
	}
	for _, n := range wantNames {
		var kid *dirNode
		if node != nil {
			kid = node.kids[n]
		}
		if err := c.entry(want, got, n, join(strings.TrimPrefix(path, "."), n), kid); err != nil {
			return err
		}
	}
	return nil
}

func (c *treeComparer) entry(want, got int, name, path string, node *dirNode) error {
	var a, b unix.Stat_t
	if err := unix.Fstatat(want, name, &a, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := unix.Fstatat(got, name, &b, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return c.damaged("%q: %v", path, err)
	}
	if a.Mode&unix.S_IFMT != b.Mode&unix.S_IFMT {
		return c.damaged("%q is of another type", path)
	}
	flags := uint64(unix.O_PATH)
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		flags = unix.O_RDONLY | unix.O_DIRECTORY
	case unix.S_IFREG:
		flags = unix.O_RDONLY | unix.O_NONBLOCK
	}
	wfd, err := openBeneath(want, name, flags)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(wfd)
	gfd, err := openBeneath(got, name, flags)
	if err != nil {
		return c.damaged("open %q: %v", path, err)
	}
	defer unix.Close(gfd)
	if a.Mode&unix.S_IFMT == unix.S_IFDIR {
		return c.dir(wfd, gfd, path, node)
	}
	// Two names of one file in one tree must be two names of one file in the other.
	first, seen := c.links[0][inode{a.Dev, a.Ino}]
	if other, otherSeen := c.links[1][inode{b.Dev, b.Ino}]; seen != otherSeen || first != other {
		return c.damaged("%q is linked to %q, and should be to %q", path, other, first)
	}
	if seen {
		return nil
	}
	if a.Nlink > 1 || b.Nlink > 1 {
		c.links[0][inode{a.Dev, a.Ino}], c.links[1][inode{b.Dev, b.Ino}] = path, path
	}
	// A whiteout is as old as its unpacking, too.
	if err := c.attributes(wfd, gfd, &a, &b, path, !isWhiteout(&a)); err != nil {
		return err
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.content(wfd, gfd, a.Size, path)
	case unix.S_IFLNK:
		w, err := readlinkAt(want, name)
		if err != nil {
			return err
		}
		if g, err := readlinkAt(got, name); err != nil || g != w {
			return c.damaged("%q leads to %q instead of %q", path, g, w)
		}
	}
	return nil
}

func (c *treeComparer) attributes(want, got int, a, b *unix.Stat_t, path string, times bool) error {
	switch {
	case a.Mode != b.Mode:
		return c.damaged("%q has the mode %#o instead of %#o", path, b.Mode, a.Mode)
	case a.Uid != b.Uid || a.Gid != b.Gid:
		return c.damaged("%q belongs to %d:%d instead of %d:%d", path, b.Uid, b.Gid, a.Uid, a.Gid)
	case a.Rdev != b.Rdev:
		return c.damaged("%q is another device", path)
	case a.Mode&unix.S_IFMT != unix.S_IFDIR && a.Size != b.Size:
		return c.damaged("%q has %d bytes instead of %d", path, b.Size, a.Size)
	case times && a.Mtim != b.Mtim:
		return c.damaged("%q is of another time", path)
	}
	w, err := allXattrs(want)
	if err != nil {
		return err
	}
	g, err := allXattrs(got)
	if err != nil {
		return c.damaged("extended attributes of %q: %v", path, err)
	}
	if !slices.Equal(w, g) {
		return c.damaged("%q has other extended attributes", path)
	}
	return nil
}

// allXattrs lists every extended attribute of an open file, also one opened with O_PATH, sorted. What a security module
// of the host adds by itself does not count.
func allXattrs(fd int) ([]tarXattr, error) {
	path := fmt.Sprintf("/proc/self/fd/%d", fd)
	n, err := unix.Listxattr(path, nil)
	if err == unix.ENOTSUP || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make([]byte, n)
	if n, err = unix.Listxattr(path, names); err != nil {
		return nil, err
	}
	var xs []tarXattr
	for name := range bytes.SplitSeq(bytes.TrimSuffix(names[:n], []byte{0}), []byte{0}) {
		k := string(name)
		if !xattrBelongs(k) && !strings.Contains(k, ".overlay.") {
			continue
		}
		size, err := unix.Getxattr(path, k, nil)
		if err != nil {
			return nil, err
		}
		value := make([]byte, size)
		if size, err = unix.Getxattr(path, k, value); err != nil {
			return nil, err
		}
		xs = append(xs, tarXattr{k, string(value[:size])})
	}
	slices.SortFunc(xs, func(a, b tarXattr) int { return strings.Compare(a.name, b.name) })
	return xs, nil
}

func (c *treeComparer) content(want, got int, size int64, path string) error {
	if c.bufs[0] == nil {
		c.bufs = [2][]byte{make([]byte, 128<<10), make([]byte, 128<<10)}
	}
	for off := int64(0); off < size; {
		n := min(size-off, int64(len(c.bufs[0])))
		if err := preadFull(want, c.bufs[0][:n], off); err != nil {
			return &fs.PathError{Op: "read", Path: path, Err: err}
		}
		if err := preadFull(got, c.bufs[1][:n], off); err != nil {
			return c.damaged("read %q at %d: %v", path, off, err)
		}
		if !bytes.Equal(c.bufs[0][:n], c.bufs[1][:n]) {
			return c.damaged("the content of %q differs after byte %d", path, off)
		}
		off += n
		if err := context.Cause(c.ctx); err != nil {
			return err
		}
	}
	return nil
}

func preadFull(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("pread", err)
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// VerifySnapshot checks that a snapshot is whole and that all it is made of is there. What was written into it has no
// digest to compare with.
func (s *Store) VerifySnapshot(id string) error {
	n, err := s.OpenSnapshot(id)
	if err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	st, err := s.readStack(n.stack.id) // not what this process remembers
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: its list of layers is gone", ErrCorrupt)
	}
	if err != nil {
		return fmt.Errorf("layerfs: verify snapshot %s: %w", id, err)
	}
	for _, k := range st.Keys {
		if _, err := s.readLayer(k); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%w: its layer %s is gone", ErrCorrupt, k)
			}
			return fmt.Errorf("layerfs: verify snapshot %s: %w", id, err)
		}
	}
	return nil
}

// RepairSnapshot writes a snapshot's list of layers again, where it is lost or damaged. layers are those that the snapshot
// was made of; others are fs.ErrInvalid.
func (s *Store) RepairSnapshot(id string, layers []Layer) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	fail := func(err error) error { return fmt.Errorf("layerfs: repair snapshot %s: %w", id, err) }
	if err := checkID(id); err != nil {
		return fail(err)
	}
	target, err := readlinkAt(s.snapsFD, id+"/"+stackLink)
	if err != nil {
		return fail(err)
	}
	_, stackID, _ := strings.Cut(target, ":")
	if stackID != stackIDOf(layers) {
		return fail(fmt.Errorf("it was made of other layers: %w", fs.ErrInvalid))
	}
	if _, err := s.readStack(stackID); err == nil {
		return nil
	}
	s.stacksMu.Lock()
	defer s.stacksMu.Unlock()
	delete(s.stacks, stackID)
	if _, err := s.makeStack(stackID, layers); err != nil {
		return fail(err)
	}
	return nil
}

// VerifyLayerRecord checks what can be checked of a layer without its blob: that it is there as a whole.
func (s *Store) VerifyLayerRecord(key string) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if !validKey(key) {
		return fmt.Errorf("layerfs: verify layer %q: %w: no layer has such a name", key, ErrCorrupt)
	}
	_, err := s.readLayer(key)
	if err == nil {
		var st unix.Stat_t
		if err = unix.Fstatat(s.layersFD, key+"/fs", &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = unix.ENOTDIR
		}
	}
	if err != nil && !errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if err != nil {
		return fmt.Errorf("layerfs: verify layer %s: %w", key, err)
	}
	return nil
}
