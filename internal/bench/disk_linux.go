package bench

import (
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

// A Disk gives each run of a benchmark that writes many files a filesystem of its own: ext4 looks for inodes that were
// not deleted lately, so that on one where as many files have just been removed unpacking is up to ten times slower.
type Disk struct {
	file, dir string
	mounted   bool
}

// NewDisk makes a disk of so many bytes in a file below [os.TempDir], removed when the benchmark ends. With TMPDIR on a
// tmpfs the figures are those of a disk that costs nothing. It skips without root or mkfs.ext4.
func NewDisk(t testing.TB, size int64) *Disk {
	t.Helper()
	require(t)
	for _, program := range []string{"mkfs.ext4", "losetup", "mount", "umount"} {
		if _, err := exec.LookPath(program); err != nil {
			testutil.Skip(t, "needs "+program)
		}
	}
	work := t.TempDir()
	d := &Disk{file: filepath.Join(work, "disk"), dir: filepath.Join(work, "mnt")}
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Written to, so that no run pays for the allocation of the file's own blocks.
	f, err := os.Create(d.file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zeros := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// Mount makes a new, empty ext4 and mounts it. It returns where.
func (d *Disk) Mount() (string, error) {
	if err := d.Unmount(); err != nil {
		return "", err
	}
	// Nothing is left for the kernel to initialise later, and no block of the file is given back.
	if _, err := run("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", d.file); err != nil {
		return "", err
	}
	// With direct I/O, as a disk has no second page cache.
	device, err := run("losetup", "--find", "--show", "--direct-io=on", d.file)
	if err != nil {
		if device, err = run("losetup", "--find", "--show", d.file); err != nil {
			return "", err
		}
	}
	device = strings.TrimSpace(device)
	_, err = run("mount", device, d.dir)
	d.mounted = err == nil
	// The device goes away with its last user.
	if _, detach := run("losetup", "--detach", device); err == nil {
		err = detach
	}
	if err != nil {
		return "", err
	}
	return d.dir, d.Sync()
}

// Sync writes out all that is not on the disk yet.
func (d *Disk) Sync() error {
	fd, err := unix.Open(d.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", d.dir, err)
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}

// Unmount ends what [Disk.Mount] began, with the mounts that a program left below it.
func (d *Disk) Unmount() error {
	if !d.mounted {
		return nil
	}
	if _, err := run("umount", "--recursive", d.dir); err != nil {
		return err
	}
	d.mounted = false
	// A mount namespace that was made meanwhile has a copy of the mount, and until it is gone another mount would show
	// the old filesystem.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		left, err := run("losetup", "--associated", d.file)
		if err != nil || left == "" {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("another process keeps the filesystem mounted: %s", left)
		}
	}
}

// run runs a program and returns its output; an error has all that it wrote.
func run(args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%q: %w\n%s%s", args, err, out, stderr.String())
	}
	return string(out), nil
}
