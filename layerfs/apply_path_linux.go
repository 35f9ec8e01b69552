package layerfs

import (
	"errors"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How the path of an entry is resolved: by this layer first, then by the layers below, and never by the kernel.

var errSkip = errors.New("skip this entry")

// split returns the components of a path. ".." is refused: no layer needs it, and readers disagree on what it means
// behind a link.
func (a *applier) split(name string) ([]string, error) {
	var comps []string
	for c := range strings.SplitSeq(name, "/") {
		switch c {
		case "", ".":
			continue
		case "..":
			return nil, invalidf("'..' in a path")
		}
		if len(comps) == a.limits.Depth {
			return nil, &LimitError{Limit: "Depth", Max: int64(a.limits.Depth)}
		}
		comps = append(comps, c)
	}
	return comps, nil
}

// locate finds, or makes, the directory an entry lies in.
func (a *applier) locate(name string) (*dirNode, string, error) {
	// Most entries lie beside the one before.
	if i := strings.LastIndexByte(name, '/'); i > 0 && a.lastDir != nil && !a.lastDir.gone && name[:i] == a.lastPath {
		if base := name[i+1:]; base != "" && base != "." && base != ".." {
			return a.lastDir, base, nil
		}
	}
	comps, err := a.split(name)
	if err != nil || len(comps) == 0 {
		return nil, "", err
	}
	last := len(comps) - 1
	for i, c := range comps {
		if strings.HasPrefix(c, ".wh..wh.") && (i < last || c != whOpaque) {
			return nil, "", errSkip // book-keeping of aufs
		}
		if i < last && strings.HasPrefix(c, ".wh.") {
			return nil, "", invalidf("a path through a whiteout")
		}
	}
	dir, err := a.walk(comps[:last])
	if err != nil {
		return nil, "", err
	}
	for d := dir; d != nil && !d.used; d = d.parent {
		d.used = true
	}
	// A path through a link may lead elsewhere the next time; one through directories does while they exist.
	if i := strings.LastIndexByte(name, '/'); i > 0 && name[i+1:] == comps[last] && !a.passedLink {
		a.lastPath, a.lastDir = strings.Clone(name[:i]), dir
	}
	return dir, comps[last], nil
}

const whOpaque = ".wh..wh..opq"

// walk resolves the directories of a path as the image's own root would, making those that are missing. What this layer
// does not settle is looked up in the layers below.
func (a *applier) walk(comps []string) (*dirNode, error) {
	cur := a.tree
	rest := comps
	links := 0
	a.passedLink = false
	for steps := 0; len(rest) > 0; steps++ {
		if steps > 4*a.limits.Depth {
			return nil, &LimitError{Limit: "Depth", Max: int64(a.limits.Depth)}
		}
		c := rest[0]
		rest = rest[1:]
		switch c { // only in the targets of links
		case "", ".":
			continue
		case "..":
			if cur.parent != nil {
				cur = cur.parent
			}
			continue
		}
		if kid := cur.kids[c]; kid != nil {
			cur = kid
			continue
		}
		pfd, err := a.fd(cur)
		if err != nil {
			return nil, err
		}
		target, next, err := a.step(cur, pfd, c)
		if err != nil {
			return nil, err
		}
		if next != nil {
			cur = next
			continue
		}
		a.passedLink = true
		if links++; links > 40 {
			return nil, unix.ELOOP
		}
		if strings.HasPrefix(target, "/") {
			cur = a.tree
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return cur, nil
}

// step passes one component that is no directory of this layer yet: it returns the directory made for it, or the
// target of the symbolic link it is.
func (a *applier) step(cur *dirNode, pfd int, c string) (target string, next *dirNode, err error) {
	var st unix.Stat_t
	switch err := unix.Fstatat(pfd, c, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK:
		target, err := readlinkAt(pfd, c)
		return target, nil, err
	case err == nil && isWhiteout(&st):
		// Deleted below and needed here: an empty directory that hides the old one.
		if err := unix.Unlinkat(pfd, c, 0); err != nil {
			return "", nil, err
		}
		d, err := a.newDir(cur, pfd, c)
		if err == nil {
			d.opaque = true
		}
		return "", d, err
	case err == nil:
		return "", nil, unix.ENOTDIR
	case err != unix.ENOENT:
		return "", nil, err
	}
	if cur.hidesLower() {
		d, err := a.newDir(cur, pfd, c)
		return "", d, err
	}
	if err := a.needLowers(); err != nil {
		return "", nil, err
	}
	low, err := a.view.find(join(cur.path(), c))
	if err != nil {
		return "", nil, err
	}
	if low == nil {
		d, err := a.newDir(cur, pfd, c)
		return "", d, err
	}
	defer low.close()
	switch low.st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := low.readlink()
		return target, nil, err
	case unix.S_IFDIR:
		d, err := a.newDir(cur, pfd, c)
		if err != nil {
			return "", nil, err
		}
		d.mode, d.uid, d.gid = low.st.Mode&0o7777, low.st.Uid, low.st.Gid
		d.mtime = time.Unix(low.st.Mtim.Unix())
		xattrs, err := low.xattrs()
		if err == nil {
			err = a.keepXattrs(d, xattrs)
		}
		return "", d, err
	}
	return "", nil, unix.ENOTDIR
}

func (a *applier) needLowers() error {
	if a.view != nil {
		return nil
	}
	v, err := a.lowers()
	if err == nil {
		v.ctx = a.ctx
	}
	a.view = v
	return err
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// openBeneath opens a path below a directory, following no link of any kind.
func openBeneath(at int, path string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	for range 1000 {
		fd, err := unix.Openat2(at, path, &how)
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

func readlinkAt(at int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(at, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
