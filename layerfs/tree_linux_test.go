package layerfs

import (
	"crypto/rand"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// fileInfo is all of a file that a layer keeps.
type fileInfo struct {
	mode     uint32
	uid, gid uint32
	rdev     uint64
	mtime    string
	size     int64
	link     string
	sum      string
	xattrs   string
	// same is the first path with the same inode.
	same   string
	sparse bool
}

// scan lists a tree entry by entry. skipTimes names what has no time of its own.
func scan(t testing.TB, root string) map[string]fileInfo {
	t.Helper()
	out := map[string]fileInfo{}
	inodes := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: rel, Err: err}
		}
		f := fileInfo{mode: st.Mode, uid: st.Uid, gid: st.Gid, mtime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			f.size, f.sum = st.Size, digest.FromBytes(data).Encoded()
			f.sparse = st.Size > 1<<20 && st.Blocks*512 < st.Size/2
		case unix.S_IFLNK:
			f.link, _ = os.Readlink(p)
		case unix.S_IFCHR, unix.S_IFBLK:
			f.rdev = st.Rdev
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if first, ok := inodes[st.Ino]; ok {
				f.same = first
			} else {
				inodes[st.Ino] = rel
				f.same = rel
			}
		}
		buf := make([]byte, 64<<10)
		if n, err := unix.Llistxattr(p, buf); err == nil {
			names := strings.Split(strings.Trim(string(buf[:n]), "\x00"), "\x00")
			slices.Sort(names)
			for _, name := range names {
				if name == "" {
					continue
				}
				val := make([]byte, 64<<10)
				n, err := unix.Lgetxattr(p, name, val)
				if err != nil {
					return err
				}
				f.xattrs += fmt.Sprintf("%s=%x;", name, val[:n])
			}
		}
		out[rel] = f
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func compare(t testing.TB, want, got map[string]fileInfo) {
	t.Helper()
	for _, p := range slices.Sorted(maps.Keys(want)) {
		g, ok := got[p]
		if !ok {
			t.Errorf("%s is missing", p)
		} else if g != want[p] {
			t.Errorf("%s:\n got %+v\nwant %+v", p, g, want[p])
		}
	}
	for _, p := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[p]; !ok {
			t.Errorf("%s should not be there", p)
		}
	}
}

func layerDir(s *Store, l Layer) string { return s.Dir() + "/layers/" + l.Key + "/fs" }

// nastyTree makes one of everything.
func nastyTree(t *testing.T, dir string) {
	t.Helper()
	sh := func(script string) {
		t.Helper()
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	sh(`umask 022
mkdir -p a/b/c empty 'odd name
with newline' sticky setgid closed
printf hello > a/b/c/file; ln a/b/c/file a/hardlink; ln a/b/c/file zz-link
ln -s ../../etc a/b/up; ln -s /etc/passwd abs; ln -s nowhere dangling; ln a/b/up a/uplink
: > zero; chmod 0 zero
printf x > suid; chown 1000:1001 suid; chmod 6755 suid
chmod 1777 sticky; chmod 2755 setgid; chown 5:6 setgid; printf y > setgid/inner; chmod 000 closed
mknod null c 1 3; mknod blk b 7 200; mkfifo fifo; chmod 600 fifo
mkdir -p closed/in; printf z > closed/in/f
chown -h 12:13 dangling
chown 4000000000:4000000001 zero`)
	long := strings.Repeat("n", 200)
	deep := dir
	for range 6 {
		deep += "/" + long
		if err := os.Mkdir(deep, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(deep+"/"+strings.Repeat("f", 255), []byte("deep"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(strings.Repeat("t/", 1500), dir+"/longlink"); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(dir + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if _, err := f.WriteAt([]byte("data"), int64(i)*1<<20+12345); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(40 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := os.WriteFile(dir+"/hole", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(dir+"/hole", 16<<20); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 3<<20)
	_, _ = rand.Read(big)
	if err := os.WriteFile(dir+"/big", big, 0o644); err != nil {
		t.Fatal(err)
	}
	// cap_net_bind_service+ep, revision 2
	caps := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	for _, x := range []struct {
		path, name string
		val        []byte
	}{{"big", "security.capability", caps}, {"big", "user.comment", []byte("bin\x00ary=\n")}, {"a", "user.dir", []byte("d")}, {"dangling", "trusted.link", []byte("l")}} {
		if err := unix.Lsetxattr(filepath.Join(dir, x.path), x.name, x.val, 0); err != nil {
			t.Fatal(err)
		}
	}
	acl := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 7, 0, 232, 3, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255}
	if err := unix.Setxattr(dir+"/a/b/c/file", "system.posix_acl_access", acl, 0); err != nil {
		t.Logf("no ACLs on this filesystem: %v", err)
	}
	if err := unix.Setxattr(dir+"/a/b", "system.posix_acl_default", acl, 0); err != nil {
		t.Logf("no ACLs on this filesystem: %v", err)
	}
	n := int64(0)
	err = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		n++
		ts := []unix.Timespec{{Sec: 1e9 + n*1000, Nsec: n * 1001}, {Sec: 1e9 + n*1000, Nsec: n * 1001}}
		if n%7 == 0 {
			ts[1].Sec = -n // before 1970
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
	})
	if err != nil {
		t.Fatal(err)
	}
}
