package layerfs

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The directories of a layer: they are made when something in them is, and get their attributes when all is written.

// maxDirFDs is how many directories an applier keeps open.
const maxDirFDs = 64

// dirNode is a directory of this layer. Mode, owner, time and attributes are set at the end, after the content.
type dirNode struct {
	name     string
	parent   *dirNode
	kids     map[string]*dirNode
	fd       int // O_PATH, or -1
	depth    int
	tick     uint64
	mode     uint32
	uid, gid uint32
	mtime    time.Time
	xattrs   []tarXattr
	opaque   bool
	// whiteouts are the names of those in it, or of what has replaced them since.
	whiteouts []string
	// brought are files of the layers below that are here for hard links to them and have no entry of their own.
	brought map[string]bool
	// explicit: the archive has an entry for it. used: it has one for something in it.
	explicit, used bool
	gone           bool
}

// newDir makes a directory with default attributes.
func (a *applier) newDir(parent *dirNode, pfd int, name string) (*dirNode, error) {
	if a.dirs++; a.dirs > max(a.limits.Entries/4, 1) {
		return nil, &LimitError{Limit: "Entries", Max: a.limits.Entries}
	}
	// By way of links a path can be made deeper than any single name of the archive is.
	if parent.depth >= a.limits.Depth {
		return nil, &LimitError{Limit: "Depth", Max: int64(a.limits.Depth)}
	}
	if err := unix.Mkdirat(pfd, name, 0o755); err != nil {
		return nil, err
	}
	// A name of an extended header is a piece of that header, which it would keep in memory.
	name = strings.Clone(name)
	d := &dirNode{name: name, parent: parent, fd: -1, depth: parent.depth + 1, mode: 0o755, uid: a.euid, gid: a.egid}
	if parent.kids == nil {
		parent.kids = make(map[string]*dirNode)
	}
	parent.kids[name] = d
	return d, nil
}

func (a *applier) setDir(d *dirNode, e *tarEntry) error {
	d.mode, d.uid, d.gid, d.mtime, d.explicit = e.mode, e.uid, e.gid, e.mtime, true
	return a.keepXattrs(d, e.xattrs)
}

// keepXattrs remembers the attributes of a directory until the end, when its content is written: a default ACL would be
// inherited by it. There may be a million directories, with a megabyte of attributes each.
func (a *applier) keepXattrs(d *dirNode, xattrs []tarXattr) error {
	for _, x := range d.xattrs {
		a.kept -= int64(len(x.name) + len(x.value))
	}
	d.xattrs = nil
	for _, x := range xattrs {
		if !xattrBelongs(x.name) {
			continue
		}
		if a.kept += int64(len(x.name) + len(x.value)); a.kept > keptHeaders*a.limits.Header {
			return &LimitError{Limit: "Header", Max: a.limits.Header}
		}
		d.xattrs = append(d.xattrs, tarXattr{strings.Clone(x.name), strings.Clone(x.value)})
	}
	return nil
}

// keptHeaders times Limits.Header is the most of attributes of directories that is remembered.
const keptHeaders = 64

func (a *applier) mkdir(parent *dirNode, pfd int, name string, e *tarEntry) error {
	d := parent.kids[name]
	if d == nil {
		var err error
		d, err = a.newDir(parent, pfd, name)
		if err == unix.EEXIST {
			// In the place of a file or whiteout of this layer: what the layers below have there must not show.
			if err = unix.Unlinkat(pfd, name, 0); err == nil {
				if d, err = a.newDir(parent, pfd, name); err == nil {
					d.opaque = true
				}
			}
		}
		if err != nil {
			return err
		}
	}
	return a.setDir(d, e)
}

// whiteout hides a name of the layers below. What this very layer has under that name stays (OCI image layer
// specification, "Whiteouts"): a directory then hides what is below it.
func (a *applier) whiteout(dir *dirNode, pfd int, base string) error {
	hidden := dir.hidesLower()
	if base == whOpaque {
		dir.opaque = true
		if hidden {
			return nil
		}
		return a.hideLower(dir)
	}
	name := base[len(".wh."):]
	if name == "" || name == "." || name == ".." {
		return invalidf("whiteout of nothing")
	}
	if kid := dir.kids[name]; kid != nil && (kid.explicit || kid.used) {
		hidden = hidden || kid.opaque
		kid.opaque = true
		kid.inheritNothing(a)
		if hidden {
			return nil
		}
		return a.hideLower(kid)
	} else if kid != nil {
		if err := a.removeDir(pfd, kid); err != nil {
			return err
		}
	}
	if dir.brought[name] {
		// The links to it stay.
		delete(dir.brought, name)
		if err := unix.Unlinkat(pfd, name, 0); err != nil {
			return err
		}
	}
	err := unix.Mknodat(pfd, name, unix.S_IFCHR, 0)
	if err == unix.EEXIST {
		return nil
	}
	if err == nil {
		dir.whiteouts = append(dir.whiteouts, strings.Clone(name))
	}
	return err
}

// inheritNothing takes from a directory without an entry the attributes that it has in the layers below.
func (d *dirNode) inheritNothing(a *applier) {
	if !d.explicit {
		d.mode, d.uid, d.gid, d.mtime, d.xattrs = 0o755, a.euid, a.egid, time.Time{}, nil
	}
}

// hideLower removes what a directory has of the layers below, which do not show in it any more: a whiteout means the same
// before and behind the entries of its own layer. What is there only because a hard link's target was goes; the link
// stays.
func (a *applier) hideLower(d *dirNode) error {
	for name := range d.brought {
		pfd, err := a.fd(d)
		if err == nil {
			err = unix.Unlinkat(pfd, name, 0)
		}
		if err != nil {
			return err
		}
	}
	d.brought = nil
	for _, k := range d.kids {
		if k.explicit || k.used {
			k.inheritNothing(a)
			if k.opaque {
				continue
			}
			if err := a.hideLower(k); err != nil {
				return err
			}
			continue
		}
		pfd, err := a.fd(d)
		if err == nil {
			err = a.removeDir(pfd, k)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// removeDir removes a directory that another entry replaces.
func (a *applier) removeDir(pfd int, d *dirNode) error {
	var drop func(*dirNode)
	drop = func(d *dirNode) {
		d.gone = true
		for _, k := range d.kids {
			drop(k)
		}
		a.closeDir(d)
	}
	drop(d)
	delete(d.parent.kids, d.name)
	return removeTree(pfd, d.name)
}

// finish sets the attributes of directories, deepest first, so that their own modes are in nobody's way.
func (a *applier) finish(d *dirNode) error {
	for _, k := range d.kids {
		if err := a.finish(k); err != nil {
			return err
		}
	}
	path := func() string { return "/" + d.path() }
	if d.parent == nil {
		if !d.explicit {
			d.mtime = time.Time{}
		}
		fd, err := openDir(d.fd, ".")
		if err == nil {
			err = a.finishOpen(fd, d)
			unix.Close(fd)
		}
		return entryError("set attributes of", path(), err)
	}
	pfd, err := a.fd(d.parent)
	if err != nil {
		return entryError("open directory of", path(), err)
	}
	if d.opaque || len(d.whiteouts) > 0 || len(d.xattrs) > 0 || d.mode != 0o755 || a.fixModes {
		fd, err := openatRetry(pfd, d.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			err = a.finishOpen(fd, d)
			unix.Close(fd)
		}
		if err != nil {
			return entryError("set attributes of", path(), err)
		}
	} else {
		if d.uid != a.euid || d.gid != a.egid {
			if err := unix.Fchownat(pfd, d.name, int(d.uid), int(d.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return entryError("set attributes of", path(), ownerError(err))
			}
		}
		if !d.mtime.IsZero() {
			ts, err := unix.TimeToTimespec(d.mtime)
			if err == nil {
				err = unix.UtimesNanoAt(pfd, d.name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
			}
			if err != nil {
				return entryError("set time of", path(), err)
			}
		}
	}
	a.closeDir(d)
	return nil
}

func (a *applier) finishOpen(fd int, d *dirNode) error {
	if d.uid != a.euid || d.gid != a.egid {
		// A root that the archive does not mention keeps the owner it was made with.
		if d.parent != nil || d.explicit {
			if err := unix.Fchown(fd, int(d.uid), int(d.gid)); err != nil {
				return ownerError(err)
			}
		}
	}
	for _, x := range d.xattrs {
		if err := a.setXattr(x, func(n string, v []byte) error { return unix.Fsetxattr(fd, n, v, 0) }); err != nil {
			return err
		}
	}
	if d.opaque {
		if err := unix.Fsetxattr(fd, opaqueXattr(a.userXattrs), []byte("y"), 0); err != nil {
			return os.NewSyscallError("setxattr "+opaqueXattr(a.userXattrs), err)
		}
	}
	if len(d.whiteouts) > 0 && d.hidesLower() {
		// With nothing below to hide they would show in listings themselves.
		for _, name := range d.whiteouts {
			var st unix.Stat_t
			if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && isWhiteout(&st) {
				if err := unix.Unlinkat(fd, name, 0); err != nil {
					return err
				}
			}
		}
	} else if len(d.whiteouts) > 0 {
		// Where no layer below has this directory overlayfs would list it as it is, whiteouts and all, unless it looks
		// like one that was copied up. An empty value says "from where is unknown".
		if err := unix.Fsetxattr(fd, overlayXattr(a.userXattrs, "origin"), nil, 0); err != nil {
			return os.NewSyscallError("setxattr "+overlayXattr(a.userXattrs, "origin"), err)
		}
	}
	hasACL := false
	for _, x := range d.xattrs {
		hasACL = hasACL || x.name == "system.posix_acl_access"
	}
	if !hasACL || d.mode&0o7000 != 0 {
		if err := unix.Fchmod(fd, d.mode); err != nil {
			return err
		}
	}
	if d.mtime.IsZero() {
		return nil
	}
	return futimens(fd, d.mtime)
}

func overlayXattr(user bool, name string) string {
	if user {
		return "user.overlay." + name
	}
	return "trusted.overlay." + name
}

func opaqueXattr(user bool) string { return overlayXattr(user, "opaque") }

// path is relative to the root of the layer, without a leading slash.
func (d *dirNode) path() string {
	if d.parent == nil {
		return ""
	}
	return join(d.parent.path(), d.name)
}

// hidesLower reports whether nothing of the layers below shows in the directory.
func (d *dirNode) hidesLower() bool {
	for ; d != nil; d = d.parent {
		if d.opaque {
			return true
		}
	}
	return false
}

// fd returns an O_PATH descriptor of a directory, good until the next but maxDirFDs-1 calls.
func (a *applier) fd(d *dirNode) (int, error) {
	a.tick++
	d.tick = a.tick
	if d.fd >= 0 {
		return d.fd, nil
	}
	// From the nearest open ancestor, in pieces that the kernel takes as one path.
	anc, length := d.parent, len(d.name)
	for anc.fd < 0 && length+len(anc.name) < 3000 {
		length += len(anc.name) + 1
		anc = anc.parent
	}
	if anc.fd < 0 {
		if _, err := a.fd(anc); err != nil {
			return -1, err
		}
	}
	var rel string
	for n := d; n != anc; n = n.parent {
		rel = strings.TrimSuffix(n.name+"/"+rel, "/")
	}
	fd, err := openBeneath(anc.fd, rel, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	if len(a.open) == maxDirFDs {
		oldest := a.open[0]
		for _, o := range a.open {
			if o.tick < oldest.tick {
				oldest = o
			}
		}
		a.closeDir(oldest)
	}
	d.fd = fd
	a.open = append(a.open, d)
	return fd, nil
}

func (a *applier) closeDir(d *dirNode) {
	if d.fd < 0 || d.parent == nil {
		return
	}
	unix.Close(d.fd)
	d.fd = -1
	for i, o := range a.open {
		if o == d {
			a.open[i] = a.open[len(a.open)-1]
			a.open = a.open[:len(a.open)-1]
			return
		}
	}
}
