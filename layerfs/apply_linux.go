package layerfs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"

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
	ctx    context.Context // of run

	written  int64
	dirs     int64
	kept     int64 // bytes of attributes in tree
	lastPath string
	lastDir  *dirNode
	// passedLink: the path that was walked last leads through a link.
	passedLink bool
	open       []*dirNode // with a descriptor
	tick       uint64
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
	a.ctx = ctx
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
	// The kernel lists at most so many bytes of names (XATTR_LIST_MAX in linux/limits.h), but some file systems take more:
	// nobody could copy such a file.
	names := 0
	for _, x := range e.xattrs {
		if names += len(x.name) + 1; names > 64<<10 {
			return entryError("set attributes of", e.name, unix.E2BIG)
		}
	}
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
		return entryError("create", e.name, a.setDir(a.tree, e))
	}
	pfd, err := a.fd(dir)
	if err != nil {
		return entryError("open directory of", e.name, err)
	}
	if strings.HasPrefix(base, ".wh.") {
		return entryError("white out", e.name, a.whiteout(dir, pfd, base))
	}
	delete(dir.brought, base)
	if e.kind == tarDir {
		return entryError("make directory", e.name, a.mkdir(dir, pfd, base, e))
	}
	if old := dir.kids[base]; old != nil && e.kind != tarLink {
		if err := a.removeDir(pfd, old); err != nil {
			return entryError("replace", e.name, err)
		}
	}
	switch e.kind {
	case tarReg:
		return entryError("write", e.name, a.file(pfd, base, e))
	case tarLink:
		return entryError("link", e.name, a.link(dir, base, e))
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
