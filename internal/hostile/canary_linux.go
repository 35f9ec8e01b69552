package hostile

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Canary is a tree outside of everything that is unpacked. Not even its times of change may move.
type Canary struct {
	// Dir is its absolute path. It holds a file victim, and more.
	Dir    string
	before map[string]string
}

// NewCanary makes one.
func NewCanary(t testing.TB) *Canary {
	t.Helper()
	c := &Canary{Dir: filepath.Join(t.TempDir(), "outside")}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.MkdirAll(c.Dir+"/sub/d", 0o755))
	for name, mode := range map[string]fs.FileMode{"victim": 0o600, "sub/file": 0o644, "sub/d/secret": 0o400} {
		check(os.WriteFile(filepath.Join(c.Dir, name), []byte("original"), mode))
	}
	check(os.Symlink("victim", c.Dir+"/link"))
	check(os.Link(c.Dir+"/victim", c.Dir+"/sub/hard"))
	check(unix.Mkfifo(c.Dir+"/fifo", 0o600))
	if err := unix.Setxattr(c.Dir+"/victim", "user.canary", []byte("sings"), 0); err != nil && err != unix.ENOTSUP {
		t.Fatal(err)
	}
	var err error
	c.before, err = c.scan()
	check(err)
	return c
}

// Changed says what has changed, or nothing.
func (c *Canary) Changed() []string {
	after, err := c.scan()
	if err != nil {
		return []string{err.Error()}
	}
	var list []string
	for p, was := range c.before {
		if is, ok := after[p]; !ok {
			list = append(list, p+" is gone")
		} else if is != was {
			list = append(list, fmt.Sprintf("%s was %s and is %s", p, was, is))
		}
	}
	for p, is := range after {
		if _, ok := c.before[p]; !ok {
			list = append(list, fmt.Sprintf("%s is new: %s", p, is))
		}
	}
	return list
}

// Check fails the test if the tree has changed.
func (c *Canary) Check(t testing.TB) {
	t.Helper()
	for _, what := range c.Changed() {
		t.Errorf("outside: %s", what)
	}
}

// scan describes each file. The time of change (ctime) moves with every attribute, content and link, and nobody can set
// it back; the time of access is left out, as this very function moves it.
func (c *Canary) scan() (map[string]string, error) {
	files := make(map[string]string)
	err := filepath.WalkDir(filepath.Dir(c.Dir), func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: p, Err: err}
		}
		text := fmt.Sprintf("inode %d, mode %o, owner %d:%d, %d links, %d bytes, modified %d, changed %d", st.Ino, st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(", content %q", data)
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			text += ", leads to " + target
		}
		buf := make([]byte, 1<<10)
		if n, err := unix.Llistxattr(p, buf); err == nil {
			text += fmt.Sprintf(", attributes %q", buf[:n])
		}
		files[p] = text
		return nil
	})
	return files, err
}
