package layerfs

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// copyDriver copies the layers into snapshots/ID/root: for filesystems that overlay cannot write to, such as overlay
// itself inside a container. Where the filesystem shares extents (btrfs, xfs) a copy costs no space.
type copyDriver struct{}

func (copyDriver) Prepare(ctx context.Context, s *SnapshotDir) error {
	if err := unix.Mkdirat(s.Dir, "root", 0o700); err != nil {
		return fmt.Errorf("mkdir root: %w", err)
	}
	srcs := make([]int, 0, len(s.LayerPaths))
	defer func() {
		for _, fd := range srcs {
			unix.Close(fd)
		}
	}()
	for _, l := range s.LayerPaths {
		fd, err := openatRetry(unix.AT_FDCWD, l, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open layer", Path: l, Err: err}
		}
		srcs = append(srcs, fd)
	}
	var err error
	onOwnThread(func() {
		c := &layerCopier{ctx: ctx, userXattrs: s.UserXattrs}
		if unix.Unshare(unix.CLONE_FS) == nil {
			unix.Umask(0)
			c.ownDir = true
		}
		for i, src := range srcs {
			if err = c.layer(s.Dir, src); err != nil {
				err = fmt.Errorf("copy layer %s: %w", s.LayerPaths[i], err)
				return
			}
		}
		// A later layer whose archive does not mention the root must not change it.
		err = unix.Fchownat(s.Dir, "root", int(s.Root.UID), int(s.Root.GID), unix.AT_SYMLINK_NOFOLLOW)
		if err == nil || os.Geteuid() != 0 {
			err = unix.Fchmodat(s.Dir, "root", s.Root.Mode&0o7777, 0)
		}
		if err == nil {
			err = s.Root.finish(s.Dir, "root")
		}
	})
	return err
}

func (copyDriver) Mount(_ context.Context, s *SnapshotDir, o *MountOptions) (*os.File, error) {
	fd, err := unix.OpenTree(s.Dir, "root", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open_tree of the copied root (needs CAP_SYS_ADMIN): %w", err)
	}
	// Of its own, as the copy of a shared mount is shared with it: what a container mounts below its root would come up
	// in the host's mount table, at snapshots/ID/root.
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if o.ReadOnly {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mount_setattr of the copied root: %w", err)
	}
	return os.NewFile(uintptr(fd), "copy of layers"), nil
}

func (copyDriver) Remove(_ context.Context, s *SnapshotDir) error { return removeTree(s.Dir, "root") }

func (copyDriver) Close() error { return nil }

// layerCopier copies one layer over what those below left, as an overlay of them would show it.
type layerCopier struct {
	ctx        context.Context
	userXattrs bool
	links      map[inode]linkName
	// ownDir: the thread's working directory is its own.
	ownDir bool
}

type inode struct{ dev, ino uint64 }

// linkName is a copied file that has more names: relative to the new root.
type linkName struct{ path string }

func (c *layerCopier) layer(dir, src int) error {
	root, err := openBeneath(dir, "root", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	c.links = make(map[inode]linkName)
	return c.dir(root, src, root, "")
}

// dir copies the content of src, then its attributes, to dst.
func (c *layerCopier) dir(root, src, dst int, path string) error {
	if err := context.Cause(c.ctx); err != nil {
		return err
	}
	if isOpaque(src, c.userXattrs) {
		old, err := readNames(dst)
		if err != nil {
			return err
		}
		for _, name := range old {
			if err := removeTree(dst, name); err != nil {
				return err
			}
		}
	}
	names, err := readNames(src)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.entry(root, src, dst, name, join(path, name)); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	return copyAttributes(dst, src, &st)
}

func (c *layerCopier) entry(root, src, dst int, name, path string) error {
	var st, old unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	err := unix.Fstatat(dst, name, &old, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && (kind != unix.S_IFDIR || old.Mode&unix.S_IFMT != unix.S_IFDIR) {
		if err := removeTree(dst, name); err != nil {
			return err
		}
	}
	exists := err == nil && kind == unix.S_IFDIR && old.Mode&unix.S_IFMT == unix.S_IFDIR
	if isWhiteout(&st) {
		return nil
	}
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := c.links[id]; ok {
			return unix.Linkat(root, first.path, dst, name, 0)
		}
		c.links[id] = linkName{path}
	}
	switch kind {
	case unix.S_IFDIR:
		if !exists {
			if err := unix.Mkdirat(dst, name, 0o700); err != nil {
				return err
			}
		}
		in, err := openBeneath(src, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(in)
		out, err := openBeneath(dst, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(out)
		return c.dir(root, in, out, path)
	case unix.S_IFREG:
		in, err := openBeneath(src, name, unix.O_RDONLY)
		if err != nil {
			return err
		}
		defer unix.Close(in)
		out, err := openatRetry(dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		defer unix.Close(out)
		if err := copyContent(out, in, st.Size); err != nil {
			return err
		}
		return copyAttributes(out, in, &st)
	case unix.S_IFLNK:
		target, err := readlinkAt(src, name)
		if err != nil {
			return err
		}
		err = unix.Symlinkat(target, dst, name)
		if err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(dst, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
	}
	if err := unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if kind != unix.S_IFLNK {
		if err := unix.Fchmodat(dst, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	if c.ownDir {
		if err := copySpecialXattrs(dst, src, name); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(dst, name, []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// copySpecialXattrs copies the extended attributes of what cannot be opened: links, nodes and fifos. There are no calls
// for that by descriptor of the directory before Linux 6.13, so the working directory changes.
func copySpecialXattrs(dst, src int, name string) error {
	if err := unix.Fchdir(src); err != nil {
		return err
	}
	name = "./" + name
	xs, err := listXattrsOf(linkXattrs(name))
	if err != nil {
		return err
	}
	if err := unix.Fchdir(dst); err != nil {
		return err
	}
	// A node is born with what the default ACL of its directory says.
	if err := unix.Lremovexattr(name, "system.posix_acl_access"); err != nil && err != unix.ENODATA && err != unix.ENOTSUP {
		return fmt.Errorf("removexattr of %s: %w", name, err)
	}
	for _, x := range xs {
		if err := unix.Lsetxattr(name, x.name, []byte(x.value), 0); err != nil && err != unix.ENOTSUP {
			return fmt.Errorf("setxattr %s of %s: %w", x.name, name, err)
		}
	}
	return nil
}

// copyAttributes gives dst the owner, mode, extended attributes and time of src.
func copyAttributes(dst, src int, st *unix.Stat_t) error {
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
		return err
	}
	// A directory that exists has the attributes of a lower layer.
	old, err := listXattrs(dst)
	if err != nil {
		return err
	}
	for _, x := range old {
		if !strings.HasPrefix(x.name, "security.") {
			_ = unix.Fremovexattr(dst, x.name)
		}
	}
	xs, err := listXattrs(src)
	if err != nil {
		return err
	}
	for _, x := range xs {
		if err := unix.Fsetxattr(dst, x.name, []byte(x.value), 0); err != nil && err != unix.ENOTSUP {
			return fmt.Errorf("setxattr %s: %w", x.name, err)
		}
	}
	return futimens(dst, time.Unix(st.Mtim.Unix()))
}
