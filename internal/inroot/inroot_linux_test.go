package inroot_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/inroot"
)

// testRoot makes a root filesystem full of traps, and a directory outside it.
func testRoot(t *testing.T) (fd int, root, outside string) {
	t.Helper()
	base := t.TempDir()
	root, outside = base+"/root", base+"/outside"
	for _, d := range []string{root + "/etc", root + "/real", outside} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for f, data := range map[string]string{root + "/etc/passwd": "root:x:0:0", root + "/real/file": "inside", outside + "/secret": "secret", root + "/big": strings.Repeat("x", 1000)} {
		if err := os.WriteFile(f, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"absolute": "/real/file", "up": "../../outside/secret", "out": outside + "/secret", "outdir": outside, "linkdir": "/real",
		"loop": "loop", "dangling": "/nowhere", "magic": "/proc/self/root" + outside + "/secret",
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(root+"/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(fd)
		if data, err := os.ReadFile(outside + "/secret"); err != nil || string(data) != "secret" {
			t.Errorf("the file outside is now %q, %v", data, err)
		}
		if ents, _ := os.ReadDir(outside); len(ents) != 1 {
			t.Errorf("outside: %v", ents)
		}
	})
	return fd, root, outside
}

func TestCVE_2024_9676_ReadFile(t *testing.T) {
	fd, _, _ := testRoot(t)
	for path, want := range map[string]string{"/etc/passwd": "root:x:0:0", "etc/passwd": "root:x:0:0", "absolute": "inside", "linkdir/file": "inside", "../../etc/passwd": "root:x:0:0"} {
		if data, err := inroot.ReadFile(fd, path, 100); err != nil || string(data) != want {
			t.Errorf("%s: %q, %v", path, data, err)
		}
	}
	for _, path := range []string{"up", "out", "dangling", "magic", "outdir/secret", "nothing"} {
		if data, err := inroot.ReadFile(fd, path, 100); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %q, %v", path, data, err)
		}
	}
	if _, err := inroot.ReadFile(fd, "loop", 100); !errors.Is(err, unix.ELOOP) {
		t.Errorf("%v", err)
	}
	var nr *inroot.NotRegularError
	for _, path := range []string{"fifo", "etc", "/"} {
		if _, err := inroot.ReadFile(fd, path, 100); !errors.As(err, &nr) {
			t.Errorf("%s: %v", path, err)
		}
	}
	var tl *inroot.TooLargeError
	if _, err := inroot.ReadFile(fd, "big", 999); !errors.As(err, &tl) || tl.Max != 999 {
		t.Errorf("%v", err)
	}
	if data, err := inroot.ReadFile(fd, "big", 1000); err != nil || len(data) != 1000 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

func TestWriteFile(t *testing.T) {
	fd, root, _ := testRoot(t)
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	if err := inroot.WriteFile(fd, "/etc/hosts", []byte("127.0.0.1"), 0o644, -1, -1); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(root + "/etc/hosts"); err != nil || st.Mode() != 0o644 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	// Longer content is cut, the mode stays.
	if err := inroot.WriteFile(fd, "/big", []byte("short"), 0o600, -1, -1); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(root + "/big"); string(data) != "short" {
		t.Errorf("%q", data)
	}
	if st, _ := os.Stat(root + "/big"); st.Mode() != 0o644 {
		t.Errorf("%v", st.Mode())
	}
	if err := inroot.WriteFile(fd, "absolute", []byte("new"), 0o600, -1, -1); err != nil {
		t.Error(err)
	}
	if data, _ := os.ReadFile(root + "/real/file"); string(data) != "new" {
		t.Errorf("%q", data)
	}
	for _, path := range []string{"up", "out", "magic", "outdir/secret", "outdir/new", "fifo", "etc", "missing/dir"} {
		if err := inroot.WriteFile(fd, path, []byte("overwritten"), 0o600, -1, -1); err == nil {
			t.Errorf("%s was written", path)
		}
	}
}

func TestCVE_2021_41089_MkdirAll(t *testing.T) {
	fd, root, _ := testRoot(t)
	for _, path := range []string{"/a/b/c", "linkdir/sub/dir", "/", ".", "etc", "../x/../y"} {
		if err := inroot.MkdirAll(fd, path, 0o750, -1, -1); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, p := range []string{"a/b/c", "real/sub/dir", "y"} {
		if st, err := os.Stat(filepath.Join(root, p)); err != nil || st.Mode().Perm() != 0o750 {
			t.Errorf("%s: %v", p, err)
		}
	}
	if st, _ := os.Stat(root + "/etc"); st.Mode().Perm() != 0o755 {
		t.Errorf("the mode of a directory that existed was changed: %v", st.Mode())
	}
	for _, path := range []string{"outdir/new", "dangling/new", "loop/new", "etc/passwd/new", "fifo"} {
		if err := inroot.MkdirAll(fd, path, 0o755, -1, -1); err == nil {
			t.Errorf("%s was made", path)
		}
	}
}

// While a container swaps a directory for a link, whatever is written stays inside.
func TestCVE_2024_45310_RacingSwap(t *testing.T) {
	fd, root, outside := testRoot(t)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.Rename(root+"/swap", root+"/away")
			_ = os.Symlink(outside, root+"/swap")
			_ = os.Remove(root + "/swap")
			_ = os.Rename(root+"/away", root+"/swap")
		}
	}()
	for range 3000 {
		_ = inroot.MkdirAll(fd, "/swap/new", 0o755, -1, -1)
		_ = inroot.WriteFile(fd, "/swap/secret", []byte("overwritten"), 0o600, -1, -1)
		if data, err := inroot.ReadFile(fd, "/swap/secret", 100); err == nil && string(data) == "secret" {
			t.Error("a file outside was read")
		}
	}
	close(stop)
	<-done
}
