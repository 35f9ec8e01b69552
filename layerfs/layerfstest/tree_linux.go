package layerfstest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// file is what a tree has under one name.
type file struct {
	mode     uint32
	uid, gid uint32
	rdev     uint64
	size     int64 // not of directories
	sum      string
	link     string
	xattrs   string
	mtime    time.Time
	same     string // the first name of a file that has several
	ctime    time.Time
	blocks   int64
}

func (f file) isDir() bool { return f.mode&unix.S_IFMT == unix.S_IFDIR }

func (f file) String() string {
	s := fmt.Sprintf("mode %07o owner %d:%d time %d.%09d", f.mode, f.uid, f.gid, f.mtime.Unix(), f.mtime.Nanosecond())
	switch f.mode & unix.S_IFMT {
	case unix.S_IFREG:
		s += fmt.Sprintf(" size %d sum %.8s", f.size, f.sum)
	case unix.S_IFLNK:
		s += fmt.Sprintf(" -> %q", f.link)
	case unix.S_IFCHR, unix.S_IFBLK:
		s += fmt.Sprintf(" device %d:%d", unix.Major(f.rdev), unix.Minor(f.rdev))
	}
	if f.same != "" {
		s += fmt.Sprintf(" same as %q", f.same)
	}
	return s + f.xattrs
}

// under is a path below an open directory.
func under(f *os.File, path string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), path)
}

// scan reads a tree, names relative to its root, which is ".".
func scan(t testing.TB, root string) map[string]file {
	t.Helper()
	root += "/." // a link in /proc/self/fd is followed
	tree := map[string]file{}
	first := map[[2]uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", rel, err)
		}
		f := file{mode: st.Mode, uid: st.Uid, gid: st.Gid, mtime: time.Unix(st.Mtim.Unix()), ctime: time.Unix(st.Ctim.Unix()), blocks: st.Blocks}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			f.size, f.sum = st.Size, fmt.Sprintf("%x", sha256.Sum256(data))
		case unix.S_IFLNK:
			if f.link, err = os.Readlink(p); err != nil {
				return err
			}
		case unix.S_IFCHR, unix.S_IFBLK:
			f.rdev = st.Rdev
		}
		if !f.isDir() && st.Nlink > 1 {
			id := [2]uint64{st.Dev, st.Ino}
			if first[id] == "" {
				first[id] = rel
			}
			f.same = first[id]
		}
		if f.xattrs, err = xattrs(p); err != nil {
			return fmt.Errorf("attributes of %s: %w", rel, err)
		}
		tree[rel] = f
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func xattrs(path string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err == unix.ENOTSUP {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var out strings.Builder
	names := strings.Split(string(bytes.TrimSuffix(buf[:n], []byte{0})), "\x00")
	slices.Sort(names)
	for _, name := range names {
		// Labels belong to the host, and xfs shows ACLs twice.
		if name == "" || name == "security.selinux" || strings.HasPrefix(name, "trusted.SGI_ACL_") {
			continue
		}
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		fmt.Fprintf(&out, " %s=%q", name, buf[:n])
	}
	return out.String(), nil
}

// compare fails the test where two trees differ, but for what ignore says.
func compare(t testing.TB, what string, want, got map[string]file) {
	t.Helper()
	names := maps.Clone(want)
	maps.Copy(names, got)
	for _, p := range slices.Sorted(maps.Keys(names)) {
		w, wok := want[p]
		g, gok := got[p]
		switch {
		case !wok:
			t.Errorf("%s: %q should not be there: %v", what, p, g)
		case !gok:
			t.Errorf("%s: %q is missing: %v", what, p, w)
		case w.String() != g.String():
			t.Errorf("%s: %q\n got %v\nwant %v", what, p, g, w)
		}
	}
}

// sameFiles fails the test unless nothing at all was done to a tree, which the times of change would show.
func sameFiles(t testing.TB, what string, before, after map[string]file) {
	t.Helper()
	compare(t, what, before, after)
	for p, b := range before {
		if a, ok := after[p]; ok && !a.ctime.Equal(b.ctime) {
			t.Errorf("%s: %q was changed at %v", what, p, a.ctime)
		}
	}
}
