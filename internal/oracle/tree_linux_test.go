package oracle

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
	"time"

	"golang.org/x/sys/unix"
)

// file is all that a tree says about one name.
type file struct {
	mode     uint32
	uid, gid uint32
	size     int64
	rdev     uint64
	link     string
	sum      string
	xattrs   []string
	mtime    time.Time
	inode    [2]uint64
	links    uint64
	blocks   int64
}

func (f file) isDir() bool { return f.mode&unix.S_IFMT == unix.S_IFDIR }

func (f file) String() string {
	s := fmt.Sprintf("mode %07o owner %d:%d mtime %d.%09d", f.mode, f.uid, f.gid, f.mtime.Unix(), f.mtime.Nanosecond())
	if !f.isDir() {
		s += fmt.Sprintf(" size %d", f.size)
	}
	if f.rdev != 0 {
		s += fmt.Sprintf(" device %d:%d", unix.Major(f.rdev), unix.Minor(f.rdev))
	}
	if f.link != "" {
		s += fmt.Sprintf(" -> %q", f.link)
	}
	if f.sum != "" {
		s += " " + f.sum[:8]
	}
	return s + " " + strings.Join(f.xattrs, " ")
}

// scan reads a tree, by paths relative to its root, "." for the root itself.
func scan(root string) (map[string]file, error) {
	root += "/." // a link in /proc/self/fd is followed
	tree := map[string]file{}
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
		f := file{mode: st.Mode, uid: st.Uid, gid: st.Gid, mtime: time.Unix(st.Mtim.Unix()), inode: [2]uint64{st.Dev, st.Ino}, links: st.Nlink, blocks: st.Blocks}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			f.size, f.sum = st.Size, fmt.Sprintf("%x", sha256.Sum256(data))
		case unix.S_IFLNK:
			f.size = st.Size
			if f.link, err = os.Readlink(p); err != nil {
				return err
			}
		case unix.S_IFCHR, unix.S_IFBLK:
			f.rdev = st.Rdev
		}
		if f.xattrs, err = xattrs(p); err != nil {
			return fmt.Errorf("attributes of %s: %w", rel, err)
		}
		tree[rel] = f
		return nil
	})
	return tree, err
}

func listXattrs(path string) ([]string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if err != nil || n == 0 {
		return nil, err
	}
	names := strings.Split(string(bytes.TrimSuffix(buf[:n], []byte{0})), "\x00")
	slices.Sort(names)
	return names, nil
}

func readXattrs(path string) (map[string]string, error) {
	names, err := listXattrs(path)
	values := map[string]string{}
	for _, name := range names {
		buf := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			return nil, err
		}
		values[name] = string(buf[:n])
	}
	return values, err
}

func xattrs(path string) ([]string, error) {
	values, err := readXattrs(path)
	var out []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		out = append(out, fmt.Sprintf("%s=%q", name, values[name]))
	}
	return out, err
}

// groups gives every name of a file that has several the least of them. Names that split says are different count as
// different files.
func groups(tree map[string]file, split func(path string) int) map[string]string {
	type id struct {
		inode [2]uint64
		part  int
	}
	first := map[id]string{}
	out := map[string]string{}
	paths := make([]string, 0, len(tree))
	for p := range tree {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		if f := tree[p]; !f.isDir() && f.links > 1 {
			k := id{f.inode, split(p)}
			if _, ok := first[k]; !ok {
				first[k] = p
			}
			out[p] = first[k]
		}
	}
	// A name alone is no group.
	count := map[string]int{}
	for _, f := range out {
		count[f]++
	}
	for p, f := range out {
		if count[f] == 1 {
			delete(out, p)
		}
	}
	return out
}
