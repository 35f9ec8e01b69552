package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

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
	for _, program := range []string{"mkfs.ext4", "mount", "umount"} {
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
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", d.file},
		{"mount", "-o", "loop", d.file, d.dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%q: %w\n%s", args, err, out)
		}
	}
	d.mounted = true
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
	if out, err := exec.Command("umount", "--recursive", d.dir).CombinedOutput(); err != nil {
		return fmt.Errorf("umount %s: %w\n%s", d.dir, err, out)
	}
	d.mounted = false
	return nil
}
