package oracle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	continuity "github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"
)

const opaque = ".wh..wh..opq"

// sequence extracts layers one after another into root with containerd.
//
// A layer without any of the cases that package oracle's documentation lists is one archive. One with them is handed over
// entry by entry, so that this code knows what the layer has made so far, by the real paths, and can do those steps
// itself.
type sequence struct {
	root  string
	layer int
	// tags is the layer that made a name of a file, or took it along to link to it.
	tags map[string]int

	// Of the present layer: what it has made, true for what it has an entry for, and the times of its directories.
	own      map[string]bool
	dirTimes map[string]time.Time

	// setgid: there may be a directory that gives its group to what is made in it.
	setgid bool

	// What happened, for whoever wants to know whether a test tests anything.
	through bool // a path led through a link
	stats   map[string]int
}

func newSequence(root string) *sequence {
	return &sequence{root: root, tags: map[string]int{}, stats: map[string]int{}}
}

// errRefused says that the layer makes no sense upon the layers below.
var errRefused = errors.New("refused")

func (s *sequence) apply(ctx context.Context, layer []entry) error {
	s.layer++
	s.own, s.dirTimes = map[string]bool{}, map[string]time.Time{}
	for _, e := range layer {
		s.setgid = s.setgid || e.kind == tar.TypeDir && e.mode&0o2000 != 0
	}
	if !s.setgid && !special(layer) && !s.special(layer) {
		s.stats["layers at once"]++
		for _, e := range layer {
			s.tags[path.Clean(e.name)] = s.layer
		}
		if _, err := archive.Apply(ctx, s.root, bytes.NewReader(archiveOf(layer...))); err != nil {
			return errors.Join(errRefused, err)
		}
		return nil
	}
	s.stats["layers by entries"]++
	for _, e := range layer {
		if err := s.entry(ctx, e); err != nil {
			return err
		}
	}
	for p, t := range s.dirTimes {
		ts, err := unix.TimeToTimespec(t)
		if err == nil {
			err = unix.UtimesNanoAt(unix.AT_FDCWD, s.path(p), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// special reports whether a layer by itself has hard links, or more than one entry for a name, or a whiteout for what it
// has itself.
func special(layer []entry) bool {
	names := map[string]bool{}
	for _, e := range layer {
		if e.kind == tar.TypeLink || e.kind == tar.TypeSymlink || names[e.name] {
			return true
		}
		names[e.name] = true
	}
	for _, e := range layer {
		if e.kind != tar.TypeDir {
			for n := range names {
				if strings.HasPrefix(n, e.name+"/") {
					return true // in the place of a directory
				}
			}
		}
		dir, base := path.Split(e.name)
		hidden, ok := strings.CutPrefix(base, ".wh.")
		if !ok {
			continue
		}
		hidden = dir + hidden
		if base == opaque {
			hidden = strings.TrimSuffix(dir, "/")
		}
		for n := range names {
			if n == hidden || hidden == "" || strings.HasPrefix(n, hidden+"/") {
				return true
			}
		}
	}
	return false
}

// special reports whether there are links in the tree, or directories with extended attributes that get an entry.
func (s *sequence) special(layer []entry) bool {
	for _, e := range layer {
		if _, through, err := s.resolve(e.name); through || err != nil {
			return true
		}
		if e.kind == tar.TypeDir {
			if names, err := listXattrs(s.path(e.name)); err == nil && len(names) > 0 {
				return true
			}
		}
	}
	return false
}

func (s *sequence) path(rel string) string { return filepath.Join(s.root, rel) }

// resolve follows the links in a path, the last component's too, as a process would whose root this is; what is missing
// counts as a directory.
func (s *sequence) resolve(p string) (real string, through bool, err error) {
	rest := strings.Split(p, "/")
	for links := 0; len(rest) > 0; {
		c := rest[0]
		rest = rest[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			if real = path.Dir(real); real == "." {
				real = ""
			}
			continue
		}
		next := path.Join(real, c)
		st, err := os.Lstat(s.path(next))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return "", through, err
		case st.Mode()&fs.ModeSymlink != 0:
			through = true
			if links++; links > 40 {
				return "", true, unix.ELOOP
			}
			target, err := os.Readlink(s.path(next))
			if err != nil {
				return "", true, err
			}
			if strings.HasPrefix(target, "/") {
				real = ""
			}
			rest = append(strings.Split(target, "/"), rest...)
			continue
		case !st.IsDir():
			return "", through, unix.ENOTDIR
		}
		real = next
	}
	return real, through, nil
}

// parent resolves the directory of an entry and notes which directories on the way are this layer's.
func (s *sequence) parent(name string) (string, error) {
	dir, _ := path.Split(name)
	real, through, err := s.resolve(dir)
	s.through = s.through || through
	if err != nil {
		return "", errors.Join(errRefused, err)
	}
	// Containerd's own opinion, which is what is used where no layer is special.
	theirs, err := continuity.RootPath(s.root, dir)
	if err != nil || theirs != s.path(real) {
		s.stats["paths that containerd resolves otherwise"]++
	}
	return real, nil
}

// make makes a directory that the layer has no entry for so far, with all above it.
func (s *sequence) make(dir string) error {
	if dir == "" || dir == "." {
		return nil
	}
	if _, err := os.Lstat(s.path(dir)); err == nil {
		return nil
	}
	if err := s.make(path.Dir(dir)); err != nil {
		return err
	}
	s.own[dir] = false
	return errors.Join(os.Mkdir(s.path(dir), 0o755), os.Chown(s.path(dir), 0, 0), os.Chmod(s.path(dir), 0o755))
}

func (s *sequence) entry(ctx context.Context, e entry) error {
	e.name = path.Clean(e.name)
	if e.name == "." {
		return nil
	}
	dir, err := s.parent(e.name)
	if err != nil {
		return err
	}
	base := path.Base(e.name)
	e.name = path.Join(dir, base)
	if err := s.make(dir); err != nil {
		return err
	}
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
		return s.whiteout(ctx, e, dir, hidden)
	}
	st, err := os.Lstat(s.path(e.name))
	exists := err == nil
	if e.kind == tar.TypeLink {
		target, err := s.parent(e.link)
		if err != nil {
			return err
		}
		if e.link = path.Join(target, path.Base(e.link)); e.link == e.name {
			// GNU tar, too, makes nothing of it. It has to be there.
			if !exists || st.IsDir() {
				return errRefused
			}
			s.tags[e.name] = s.layer
			s.own[e.name] = true
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(s.path(e.link), &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return errors.Join(errRefused, err)
		}
		e.mode, e.uid, e.gid, e.mtime, e.xattrs = int64(st.Mode&0o7777), int(st.Uid), int(st.Gid), time.Unix(st.Mtim.Unix()), nil
		if e.xattrs, err = readXattrs(s.path(e.link)); err != nil {
			return err
		}
		if exists && strings.HasPrefix(e.link, e.name+"/") {
			return errRefused // a link to what it replaces
		}
		s.tags[e.link] = s.layer
	}
	switch {
	case exists && st.IsDir() && e.kind == tar.TypeDir:
		names, err := listXattrs(s.path(e.name))
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := unix.Lremovexattr(s.path(e.name), n); err != nil {
				return err
			}
		}
	case exists:
		s.forget(e.name)
	}
	s.own[e.name] = true
	s.tags[e.name] = s.layer
	if e.kind == tar.TypeDir {
		s.dirTimes[e.name] = e.mtime
	}
	if _, err := archive.Apply(ctx, s.root, bytes.NewReader(archiveOf(e))); err != nil {
		return errors.Join(errRefused, err)
	}
	return nil
}

// forget removes what is known of a path and all below it.
func (s *sequence) forget(p string) {
	below := func(q string) bool { return q == p || strings.HasPrefix(q, p+"/") }
	maps.DeleteFunc(s.own, func(q string, _ bool) bool { return below(q) })
	maps.DeleteFunc(s.dirTimes, func(q string, _ time.Time) bool { return below(q) })
	maps.DeleteFunc(s.tags, func(q string, _ int) bool { return below(q) })
}

// owns reports whether the layer has made anything at a path or below.
func (s *sequence) owns(p string) bool {
	for q := range s.own {
		if q == p || p == "" || strings.HasPrefix(q, p+"/") {
			return true
		}
	}
	return false
}

func (s *sequence) whiteout(ctx context.Context, e entry, dir, hidden string) error {
	p := path.Join(dir, hidden)
	if e.name == path.Join(dir, opaque) {
		p = dir
	}
	// A directory is there where a whiteout lies in it, too.
	defer func() { s.own[e.name] = true }()
	if !s.owns(p) {
		_, err := archive.Apply(ctx, s.root, bytes.NewReader(archiveOf(e)))
		if err != nil {
			return errors.Join(errRefused, err)
		}
		return nil
	}
	s.stats["whiteouts of what the layer has too"]++
	if p != dir {
		return s.hide(p)
	}
	return s.hideChildren(dir)
}

// hide removes from a path what lower layers have there.
func (s *sequence) hide(p string) error {
	if !s.owns(p) {
		s.forget(p)
		return os.RemoveAll(s.path(p))
	}
	st, err := os.Lstat(s.path(p))
	if err != nil || !st.IsDir() {
		return err
	}
	if _, mine := s.own[p]; !mine {
		// The layer has something in a directory that it has no entry for, and which is deleted below.
		if err := s.reset(p); err != nil {
			return err
		}
	}
	return s.hideChildren(p)
}

func (s *sequence) hideChildren(p string) error {
	ents, err := os.ReadDir(s.path(p))
	if err != nil {
		return err
	}
	for _, e := range ents {
		if err := s.hide(path.Join(p, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// reset gives a directory the attributes of one that is made for what lies in it.
func (s *sequence) reset(p string) error {
	s.own[p] = false
	names, err := listXattrs(s.path(p))
	for _, n := range names {
		err = errors.Join(err, unix.Lremovexattr(s.path(p), n))
	}
	now := time.Now()
	return errors.Join(err, os.Chown(s.path(p), 0, 0), os.Chmod(s.path(p), 0o755), os.Chtimes(s.path(p), now, now))
}
