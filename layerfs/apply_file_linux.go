package layerfs

import (
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What is no directory: files, links and nodes are written and finished one after another.

// create calls f, and again after removing what a former entry of the same name left.
func create(pfd int, name string, f func() error) error {
	err := f()
	if err == unix.EEXIST {
		if err := unix.Unlinkat(pfd, name, 0); err != nil {
			return err
		}
		err = f()
	}
	return err
}

func (a *applier) file(pfd int, name string, e *tarEntry) error {
	fd := -1
	err := create(pfd, name, func() (err error) {
		fd, err = openatRetry(pfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, e.mode)
		return err
	})
	if err != nil {
		return err
	}
	err = a.content(fd, e)
	if err == nil {
		err = a.attributes(fd, e)
	}
	// Network and quota file systems report at close.
	if cerr := unix.Close(fd); err == nil && cerr != unix.EINTR {
		err = cerr
	}
	return err
}

func (a *applier) content(fd int, e *tarEntry) error {
	if a.written += e.stored; a.written > a.limits.Bytes {
		return &LimitError{Limit: "Bytes", Max: a.limits.Bytes}
	}
	if !e.isSparse {
		for {
			b, err := a.tr.data()
			if err == io.EOF {
				return nil
			}
			if err == nil {
				err = writeAll(fd, b)
			}
			if err != nil {
				return err
			}
		}
	}
	segs := e.sparse
	var done int64 // of the first segment
	for {
		b, err := a.tr.data()
		if err == io.EOF {
			return truncate(fd, e.size)
		}
		if err != nil {
			return err
		}
		for len(b) > 0 {
			for segs[0].n == done { // the sums were checked: there is one left
				segs, done = segs[1:], 0
			}
			n := min(segs[0].n-done, int64(len(b)))
			if err := pwriteAll(fd, b[:n], segs[0].off+done); err != nil {
				return err
			}
			b, done = b[n:], done+n
		}
	}
}

func truncate(fd int, size int64) error {
	for {
		if err := unix.Ftruncate(fd, size); err != unix.EINTR {
			return err
		}
	}
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil && err != unix.EINTR {
			return err
		}
		b = b[max(n, 0):]
	}
	return nil
}

func pwriteAll(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err != nil && err != unix.EINTR {
			return err
		}
		b, off = b[max(n, 0):], off+int64(max(n, 0))
	}
	return nil
}

// attributes sets what open did not: the owner, then what changing the owner takes away, then the time.
func (a *applier) attributes(fd int, e *tarEntry) error {
	chown := e.uid != a.euid || e.gid != a.egid
	if chown {
		if err := unix.Fchown(fd, int(e.uid), int(e.gid)); err != nil {
			return ownerError(err)
		}
	}
	if a.fixModes || chown && e.mode&0o6000 != 0 || a.euid != 0 && e.mode&0o7000 != 0 {
		if err := unix.Fchmod(fd, e.mode); err != nil {
			return err
		}
	}
	for _, x := range e.xattrs {
		if err := a.setXattr(x, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) }); err != nil {
			return err
		}
	}
	return futimens(fd, e.mtime)
}

func ownerError(err error) error {
	if err == unix.EPERM {
		return &os.SyscallError{Syscall: "chown (needs root, or a user namespace that maps the owner)", Err: err}
	}
	return os.NewSyscallError("chown", err)
}

// specialAttributes does the same for what cannot be opened: links, nodes and fifos, through their directory, where
// nobody else can put anything in their place.
func (a *applier) specialAttributes(pfd int, name string, e *tarEntry) error {
	if e.uid != a.euid || e.gid != a.egid {
		if err := unix.Fchownat(pfd, name, int(e.uid), int(e.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return ownerError(err)
		}
	}
	if e.kind != tarSymlink && (a.fixModes || e.mode&0o6000 != 0) {
		if err := unix.Fchmodat(pfd, name, e.mode, 0); err != nil {
			return err
		}
	}
	if len(e.xattrs) > 0 && !a.fixModes {
		// There is no setxattrat before Linux 6.13; this thread's working directory is its own.
		if err := unix.Fchdir(pfd); err != nil {
			return err
		}
		for _, x := range e.xattrs {
			if err := a.setXattr(x, func(n string, v []byte) error { return unix.Lsetxattr("./"+name, n, v, 0) }); err != nil {
				return err
			}
		}
	}
	ts, err := unix.TimeToTimespec(e.mtime)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(pfd, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// setXattr sets an extended attribute, unless a layer has no business with it.
func (a *applier) setXattr(x tarXattr, set func(string, []byte) error) error {
	if !xattrBelongs(x.name) {
		return nil
	}
	err := set(x.name, []byte(x.value))
	switch {
	case err == nil:
		return nil
	case x.name == "security.capability" && err != unix.ENOTSUP:
	case err == unix.ENOTSUP, err == unix.EPERM && (strings.HasPrefix(x.name, "user.") || a.euid != 0):
		// A file system without it, or a user attribute on something else than a file or directory.
		a.log.Debug("extended attribute is left out", "name", x.name, "error", err)
		return nil
	}
	return &os.SyscallError{Syscall: "setxattr " + x.name, Err: err}
}

func (a *applier) symlink(pfd int, name string, e *tarEntry) error {
	if e.link == "" {
		return invalidf("symbolic link without a target")
	}
	if err := create(pfd, name, func() error { return unix.Symlinkat(e.link, pfd, name) }); err != nil {
		return err
	}
	return a.specialAttributes(pfd, name, e)
}

func (a *applier) node(pfd int, name string, e *tarEntry) error {
	mode := e.mode
	switch e.kind {
	case tarChar:
		mode |= unix.S_IFCHR
	case tarBlockDev:
		mode |= unix.S_IFBLK
	case tarFifo:
		mode |= unix.S_IFIFO
	}
	dev := unix.Mkdev(e.major, e.minor)
	if err := create(pfd, name, func() error { return unix.Mknodat(pfd, name, mode, int(dev)) }); err != nil {
		return os.NewSyscallError("mknod", err)
	}
	return a.specialAttributes(pfd, name, e)
}

// link makes a hard link. A target in the layers below is copied into this one first, as both names must be one file.
func (a *applier) link(dir *dirNode, name string, e *tarEntry) error {
	comps, err := a.split(e.link)
	if err != nil {
		return err
	}
	if len(comps) == 0 {
		return invalidf("hard link to the root")
	}
	tdir, err := a.walk(comps[:len(comps)-1])
	if err != nil {
		return err
	}
	tname := comps[len(comps)-1]
	if tdir.kids[tname] != nil {
		return invalidf("hard link to the directory %q", e.link)
	}
	tfd, err := a.fd(tdir)
	if err != nil {
		return err
	}
	// Now, as opening the target's directory may close ours.
	pfd, err := a.fd(dir)
	if err != nil {
		return err
	}
	var target, st unix.Stat_t
	err = unix.Fstatat(tfd, tname, &target, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && isWhiteout(&target) {
		return invalidf("hard link to %q, which is deleted", e.link)
	}
	if err == unix.ENOENT {
		if err := a.copyUp(tdir, tfd, tname); err != nil {
			return err
		}
		if tdir != dir || tname != name {
			if tdir.brought == nil {
				tdir.brought = make(map[string]bool)
			}
			tdir.brought[tname] = true
		}
		if pfd, err = a.fd(dir); err == nil {
			tfd, err = a.fd(tdir)
		}
		if err == nil {
			err = unix.Fstatat(tfd, tname, &target, unix.AT_SYMLINK_NOFOLLOW)
		}
	}
	if err != nil {
		return err
	}
	// Only now: with it gone the target could turn up in the layers below.
	if old := dir.kids[name]; old != nil {
		for d := tdir; d != nil; d = d.parent {
			if d == old {
				return invalidf("hard link to what it replaces")
			}
		}
		if err := a.removeDir(pfd, old); err != nil {
			return err
		}
	}
	err = unix.Linkat(tfd, tname, pfd, name, 0)
	if err != unix.EEXIST {
		return err
	}
	if err := unix.Fstatat(pfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Ino == target.Ino && st.Dev == target.Dev {
		return nil
	}
	if err := unix.Unlinkat(pfd, name, 0); err != nil {
		return err
	}
	return unix.Linkat(tfd, tname, pfd, name, 0)
}

// copyUp brings a file of the layers below into this one.
func (a *applier) copyUp(dir *dirNode, dfd int, name string) error {
	if dir.hidesLower() {
		return invalidf("hard link to nothing")
	}
	if err := a.needLowers(); err != nil {
		return err
	}
	low, err := a.view.find(join(dir.path(), name))
	if err != nil {
		return err
	}
	if low == nil {
		return invalidf("hard link to nothing")
	}
	defer low.close()
	e := &tarEntry{mode: low.st.Mode & 0o7777, uid: low.st.Uid, gid: low.st.Gid, mtime: time.Unix(low.st.Mtim.Unix()), size: low.st.Size}
	switch low.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if a.written += low.st.Blocks * 512; a.written > a.limits.Bytes {
			return &LimitError{Limit: "Bytes", Max: a.limits.Bytes}
		}
		if e.xattrs, err = low.xattrs(); err != nil {
			return err
		}
		src, err := low.reopen(unix.O_RDONLY)
		if err != nil {
			return err
		}
		defer unix.Close(src)
		fd, err := openatRetry(dfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, e.mode)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := copyContent(fd, src, e.size); err != nil {
			return err
		}
		return a.attributes(fd, e)
	case unix.S_IFLNK:
		e.kind = tarSymlink
		if e.xattrs, err = a.lowerXattrs(low); err != nil {
			return err
		}
		if e.link, err = low.readlink(); err != nil {
			return err
		}
		return a.symlink(dfd, name, e)
	case unix.S_IFDIR:
		return invalidf("hard link to a directory")
	}
	if e.xattrs, err = a.lowerXattrs(low); err != nil {
		return err
	}
	if err := unix.Mknodat(dfd, name, low.st.Mode, int(low.st.Rdev)); err != nil {
		return err
	}
	return a.specialAttributes(dfd, name, e)
}

// lowerXattrs reads the extended attributes of a link or node. It changes the thread's working directory, and leaves them
// out where that is not its own.
func (a *applier) lowerXattrs(low *lowerFile) ([]tarXattr, error) {
	if a.fixModes {
		return nil, nil
	}
	if err := unix.Fchdir(low.at); err != nil {
		return nil, err
	}
	return listXattrsOf(linkXattrs("./" + low.path))
}
