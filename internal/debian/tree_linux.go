package debian

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Extract unpacks layers, lowest first, into the directory root with GNU tar, removing before each what its whiteouts
// remove: what a tree made of these layers has to look like. It needs root.
func Extract(ctx context.Context, root string, layers []string) error {
	for _, layer := range layers {
		if err := applyWhiteouts(root, layer); err != nil {
			return fmt.Errorf("apply the whiteouts of %s: %w", layer, err)
		}
		if _, err := command(ctx, "", "tar", "--extract", "--file", layer, "--directory", root, "--numeric-owner",
			"--same-owner", "--preserve-permissions", "--xattrs", "--xattrs-include=*", "--delay-directory-restore",
			"--exclude=.wh.*"); err != nil {
			return err
		}
	}
	return nil
}

func applyWhiteouts(root, layer string) error {
	f, err := os.Open(layer)
	if err != nil {
		return err
	}
	defer f.Close()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		dir, base := filepath.Split(filepath.Clean(h.Name))
		hidden, ok := strings.CutPrefix(base, ".wh.")
		switch {
		case base == ".wh..wh..opq":
			entries, err := os.ReadDir(filepath.Join(root, dir))
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
				return err
			}
			for _, e := range entries {
				if err := os.RemoveAll(filepath.Join(root, dir, e.Name())); err != nil {
					return err
				}
			}
		case ok:
			if err := os.RemoveAll(filepath.Join(root, dir, hidden)); err != nil {
				return err
			}
		default:
			// Where an entry and what it replaces are not both directories, the old one goes as a whole.
			old, err := os.Lstat(filepath.Join(root, dir, base))
			if err == nil && old.IsDir() != (h.Typeflag == tar.TypeDir) {
				err = os.RemoveAll(filepath.Join(root, dir, base))
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
				return err
			}
		}
	}
}

// List describes every entry of a tree, one line each, sorted by path: type and mode, owner, device, size, links,
// modification time, target, extended attributes, the first path of a hard-linked file, and the SHA-256 of its data.
// The size and number of links of directories depend on the filesystem and are left out, as are trusted.overlay.*
// attributes.
func List(root string) ([]string, error) {
	root += "/." // a link in /proc/self/fd is followed
	var lines []string
	first := make(map[[2]uint64]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", path, err)
		}
		line := fmt.Sprintf("%q mode=%07o owner=%d:%d mtime=%d.%09d", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		kind := st.Mode & unix.S_IFMT
		if kind != unix.S_IFDIR {
			line += fmt.Sprintf(" size=%d links=%d", st.Size, st.Nlink)
		}
		if kind == unix.S_IFCHR || kind == unix.S_IFBLK {
			line += fmt.Sprintf(" device=%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		attributes, err := xattrs(path)
		if err != nil {
			return err
		}
		line += attributes
		if kind == unix.S_IFLNK {
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" -> %q", target)
		}
		inode := [2]uint64{st.Dev, st.Ino}
		if other, ok := first[inode]; ok {
			line += fmt.Sprintf(" same as %q", other)
		} else {
			if st.Nlink > 1 && kind != unix.S_IFDIR {
				first[inode] = rel
			}
			if kind == unix.S_IFREG {
				sum, err := sumFile(path)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" sha256=%x", sum)
			}
		}
		lines = append(lines, line)
		return nil
	})
	return lines, err
}

func xattrs(path string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return "", fmt.Errorf("list the attributes of %s: %w", path, err)
	}
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		if strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			return "", fmt.Errorf("read %s of %s: %w", name, path, err)
		}
		fmt.Fprintf(&b, " %s=%q", name, buf[:n])
	}
	return b.String(), nil
}

func sumFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), err
}
