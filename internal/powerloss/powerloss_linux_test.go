package powerloss

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(testutil.LeakCheck(m))
}

// The filesystems of the tests, and their disks.
var disks = map[string]int64{"ext4": 64 << 20, "xfs": 320 << 20, "btrfs": 160 << 20}

// TestFlushesArrive: the rest is worth nothing unless an fsync of a file is a flush of the disk, with the data before it.
func TestFlushesArrive(t *testing.T) {
	for fstype, size := range disks {
		t.Run(fstype, func(t *testing.T) {
			d := New(t, size)
			dir := d.Mount(fstype)
			f, err := os.Create(filepath.Join(dir, "file"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for i := range 20 {
				data := bytes.Repeat([]byte(fmt.Sprintf("round %2d ", i)), 1000)
				if _, err := f.WriteAt(data, 0); err != nil {
					t.Fatal(err)
				}
				before := d.Stats()
				if err := f.Sync(); err != nil {
					t.Fatal(err)
				}
				after := d.Stats()
				if after.Flushes <= before.Flushes {
					t.Fatalf("fsync %d: %d flushes before and after", i, after.Flushes)
				}
				list, _, done := d.entries()
				written := false
				for _, e := range list {
					switch e.Kind {
					case recWrite:
						written = written || bytes.Contains(e.data, data[:4096])
					case recFlush:
						if written {
							i = -1 // flushed
						}
					}
				}
				done()
				if i != -1 {
					t.Fatalf("round %d: no flush follows the data", i)
				}
			}
			f.Close()
			d.Unmount()
		})
	}
}

// TestHarnessFails: what is not synced is lost or half there after some cut; what is synced never is.
func TestHarnessFails(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	replace := func(t *testing.T, dir, name string, sync bool) {
		t.Helper()
		f, err := os.Create(filepath.Join(dir, name+".new"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(content); err != nil {
			t.Fatal(err)
		}
		if sync {
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(filepath.Join(dir, name+".new"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if sync {
			syncDir(t, dir)
		}
	}
	for fstype, size := range disks {
		t.Run(fstype, func(t *testing.T) {
			d := New(t, size)
			dir := d.Mount(fstype)
			const rounds = 10
			for i := range rounds {
				replace(t, dir, fmt.Sprintf("unsynced%d", i), false)
				d.Mark(fmt.Sprintf("unsynced%d", i))
				replace(t, dir, fmt.Sprintf("synced%d", i), true)
				d.Mark(fmt.Sprintf("synced%d", i))
			}
			lost, half, cuts := 0, 0, 0
			for c := range d.Cuts(100, 1) {
				cuts++
				dir := c.Mount(t)
				for i := range rounds {
					for _, kind := range []string{"unsynced", "synced"} {
						name := fmt.Sprintf("%s%d", kind, i)
						got, err := os.ReadFile(filepath.Join(dir, name))
						whole := err == nil && bytes.Equal(got, content)
						switch {
						case err != nil && !os.IsNotExist(err):
							t.Errorf("%v: %v", c, err)
						case kind == "synced" && (err == nil || c.Marked(name)) && !whole:
							t.Errorf("%v: %s: %d bytes, %v", c, name, len(got), err)
						case kind == "unsynced" && err == nil && !whole:
							half++
						case kind == "unsynced" && err != nil && c.Marked(name):
							lost++
						}
					}
				}
			}
			t.Logf("unsynced: %d times lost, %d times half there, in %d cuts", lost, half, cuts)
			if lost == 0 && half == 0 {
				t.Error("nothing that was not synced was ever lost: this harness finds nothing")
			}
		})
	}
}

func syncDir(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestSameSeedSameCuts: a failure can be looked at again.
func TestSameSeedSameCuts(t *testing.T) {
	d := New(t, 16<<20)
	dir := d.Mount("ext4")
	for i := range 5 {
		name := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(name, bytes.Repeat([]byte{byte(i)}, 100_000), 0o600); err != nil {
			t.Fatal(err)
		}
		syncDir(t, dir)
	}
	sums := func() (list []string) {
		for c := range d.Cuts(20, 7) {
			data, err := unix.Mmap(c.image, 0, int(d.size), unix.PROT_READ, unix.MAP_SHARED)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, fmt.Sprintf("%v %x", c, sha256.Sum256(data)))
			unix.Munmap(data)
		}
		return list
	}
	a, b := sums(), sums()
	if len(a) != len(b) || len(a) == 0 {
		t.Fatalf("%d cuts, then %d", len(a), len(b))
	}
	distinct := make(map[string]bool)
	for i := range a {
		if a[i] != b[i] {
			t.Errorf("%s\n%s", a[i], b[i])
		}
		distinct[a[i]] = true
	}
	t.Logf("%d cuts, %d of them different", len(a), len(distinct))
}
