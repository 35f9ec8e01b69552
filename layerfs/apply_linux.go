package layerfs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// applier writes the entries of one archive into one directory.
//
// Every call names a single component relative to a descriptor of its directory, and those descriptors come from
// openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS; so nothing outside the directory can be reached, whatever the
// archive holds. Symbolic links on the way of an entry are resolved here (walk), in the root of the image.
type applier struct {
	tree       *dirNode
	tr         *tarReader
	limits     *Limits
	log        *slog.Logger
	userXattrs bool
	euid, egid uint32
	// fixModes is set where the umask could not be cleared.
	fixModes bool

	// lowers waits for the layers below and opens them. It is called at most once, when the layer turns out to depend
	// on them.
	lowers func() (*lowerView, error)
	view   *lowerView

	written  int64
	dirs     int64
	lastPath string
	lastDir  *dirNode
	open     []*dirNode // with a descriptor
	tick     uint64
}

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
	// explicit: the archive has an entry for it.
	explicit bool
	gone     bool
}

func newApplier(rootFD int, src chunkSource, limits *Limits, userXattrs bool, log *slog.Logger) *applier {
	return &applier{
		tree:   &dirNode{fd: rootFD, mode: 0o755},
		tr:     &tarReader{src: src, limits: limits},
		limits: limits, log: log, userXattrs: userXattrs,
		euid: uint32(os.Geteuid()), egid: uint32(os.Getegid()),
	}
}

// dependent reports whether the layer's content came out as it did because of the layers below.
func (a *applier) dependent() bool { return a.view != nil }

// run applies the whole archive. It must be called on a thread of its own (onOwnThread), whose umask it clears.
func (a *applier) run(ctx context.Context) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		a.fixModes = true // forbidden by a seccomp filter: every mode is set once more
	} else {
		unix.Umask(0)
	}
	defer func() {
		for _, d := range a.open {
			unix.Close(d.fd)
			d.fd = -1
		}
	}()
	for n := 0; ; n++ {
		if n&63 == 0 {
			if err := context.Cause(ctx); err != nil {
				return err
			}
		}
		e, err := a.tr.entry()
		if err == io.EOF {
			return a.finish(a.tree)
		}
		if err != nil {
			return err
		}
		if err := a.entry(e); err != nil {
			return err
		}
	}
}

func (a *applier) entry(e *tarEntry) error {
	dir, base, err := a.locate(e.name)
	if err == errSkip {
		return nil
	}
	if err != nil {
		return entryError("resolve", e.name, err)
	}
	if base == "" {
		// The root itself. A link or file in its place would take the whole layer elsewhere (CVE-2021-29136).
		if e.kind != tarDir {
			return entryError("create", e.name, invalidf("the root of a layer can only be a directory"))
		}
		a.setDir(a.tree, e)
		return nil
	}
	pfd, err := a.fd(dir)
	if err != nil {
		return entryError("open directory of", e.name, err)
	}
	if strings.HasPrefix(base, ".wh.") {
		return entryError("white out", e.name, a.whiteout(dir, pfd, base))
	}
	if e.kind == tarDir {
		return entryError("make directory", e.name, a.mkdir(dir, pfd, base, e))
	}
	if old := dir.kids[base]; old != nil {
		if err := a.removeDir(pfd, old); err != nil {
			return entryError("replace", e.name, err)
		}
	}
	switch e.kind {
	case tarReg:
		return entryError("write", e.name, a.file(pfd, base, e))
	case tarLink:
		return entryError("link", e.name, a.link(dir, pfd, base, e))
	case tarSymlink:
		return entryError("symlink", e.name, a.symlink(pfd, base, e))
	default:
		return entryError("make node", e.name, a.node(pfd, base, e))
	}
}

// entryError adds the entry to an error, unless it has one.
func entryError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	var le *LimitError
	if errors.As(err, &le) {
		if le.Entry == "" {
			le.Entry = name
		}
		return err
	}
	return &EntryError{Op: op, Entry: name, Err: err}
}

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
	if i := strings.LastIndexByte(name, '/'); i > 0 && name[i+1:] == comps[last] {
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
		d.xattrs, err = low.xattrs()
		return "", d, err
	}
	return "", nil, unix.ENOTDIR
}

func (a *applier) needLowers() error {
	if a.view != nil {
		return nil
	}
	v, err := a.lowers()
	a.view = v
	return err
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
	d := &dirNode{name: name, parent: parent, fd: -1, depth: parent.depth + 1, mode: 0o755, uid: a.euid, gid: a.egid}
	if parent.kids == nil {
		parent.kids = make(map[string]*dirNode)
	}
	parent.kids[name] = d
	return d, nil
}

func (a *applier) setDir(d *dirNode, e *tarEntry) {
	d.mode, d.uid, d.gid, d.mtime, d.xattrs, d.explicit = e.mode, e.uid, e.gid, e.mtime, e.xattrs, true
}

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
	a.setDir(d, e)
	return nil
}

// whiteout hides a name of the layers below. What this very layer has under that name stays (OCI image layer
// specification, "Whiteouts"): a directory then hides what is below it.
func (a *applier) whiteout(dir *dirNode, pfd int, base string) error {
	if base == whOpaque {
		dir.opaque = true
		return nil
	}
	name := base[len(".wh."):]
	if name == "" || name == "." || name == ".." {
		return invalidf("whiteout of nothing")
	}
	if kid := dir.kids[name]; kid != nil {
		kid.opaque = true
		return nil
	}
	err := unix.Mknodat(pfd, name, unix.S_IFCHR, 0)
	if err == unix.EEXIST {
		return nil
	}
	if err == nil {
		dir.whiteouts = append(dir.whiteouts, name)
	}
	return err
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

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
func (a *applier) link(dir *dirNode, pfd int, name string, e *tarEntry) error {
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
	// Opening the target's directory may have closed ours.
	if pfd, err = a.fd(dir); err != nil {
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
		if e.link, err = low.readlink(); err != nil {
			return err
		}
		return a.symlink(dfd, name, e)
	case unix.S_IFDIR:
		return invalidf("hard link to a directory")
	}
	if err := unix.Mknodat(dfd, name, low.st.Mode, int(low.st.Rdev)); err != nil {
		return err
	}
	return a.specialAttributes(dfd, name, e)
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

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
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
