package powerloss

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// TestMountTable is the way for kernels whose overlayfs takes no layers from a detached mount.
func TestMountTable(t *testing.T) {
	defer func(was bool) { inTable = was }(inTable)
	inTable = true
	d := New(t, 16<<20)
	dir := d.Mount("ext4")
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	syncDir(t, dir)
	for c := range d.Cuts(3, 1) {
		if _, err := os.ReadDir(c.Mount(t)); err != nil {
			t.Errorf("%v: %v", c, err)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the mount's directory is left: %v", err)
	}
}

// TestKilled kills a test that is writing to its disk: nothing of it may stay, and nothing may hang.
func TestKilled(t *testing.T) {
	const env = "CORACLE_POWERLOSS_KILLED"
	if os.Getenv(env) != "" {
		d := New(t, 16<<20)
		dir := d.Mount("ext4")
		fmt.Printf("disk %s %s\n", d.name, d.loop.path())
		for {
			if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			syncDir(t, dir)
		}
	}
	testutil.RequireRoot(t)
	testutil.NotInVM(t, "there is no mkfs")
	for range 3 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilled$", "-test.count=1")
		cmd.Env = append(os.Environ(), env+"=1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		name, loopPath := "", ""
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if n, _ := fmt.Sscanf(lines.Text(), "disk %s %s", &name, &loopPath); n == 2 {
				break
			}
			if strings.Contains(lines.Text(), "SKIP") || lines.Text() == "PASS" {
				break
			}
		}
		time.Sleep(20 * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		if name == "" {
			testutil.Skip(t, "no disk can be made here")
		}
		for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			backing, _ := os.ReadFile(filepath.Join("/sys/block", filepath.Base(loopPath), "loop/backing_file"))
			servers := serversOf(name)
			if len(servers) == 0 && !strings.Contains(string(backing), name) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("left: servers %v, loop device %s of %q", servers, loopPath, backing)
			}
		}
	}
}

func serversOf(name string) (pids []string) {
	entries, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range entries {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), serverEnv+"=") && strings.Contains(string(b), name) {
			pids = append(pids, path)
		}
	}
	return pids
}
