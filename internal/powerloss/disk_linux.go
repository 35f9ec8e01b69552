package powerloss

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// Disk is a disk that remembers all that was ever written to it.
type Disk struct {
	t      testing.TB
	size   int64
	name   string
	server *server
	fstype string
	mount  *mount // of the filesystem on it
	loop   *loop
	begin  int64 // of the log, when the filesystem was mounted
}

var diskCount atomic.Int64

// New makes a disk of that many bytes; what nobody writes costs no memory. It skips the test where the machine has no
// FUSE or no loop devices, or the user may not use them. All of it is gone when the test has ended.
func New(t testing.TB, size int64) *Disk {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.NotInVM(t, "there is no mkfs")
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			testutil.Skip(t, "needs "+dev+": "+err.Error())
		}
		unix.Close(fd)
	}
	d := &Disk{t: t, size: size, name: fmt.Sprintf("powerloss-%d-%d", os.Getpid(), diskCount.Add(1))}
	var err error
	if d.server, err = startServer(size, d.name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Unmount()
		if err := d.server.close(); err != nil {
			t.Errorf("the disk's server: %v", err)
		}
	})
	return d
}

// filesystem is how one is made and mounted.
type filesystem struct {
	mkfs    []string
	size    int64 // the least
	options []string
}

// As small as each can be, and with nothing written in the background that the test has no part in.
var filesystems = map[string]filesystem{
	"ext4":  {[]string{"mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", "-N", "4096", "-I", "256", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"}, 16 << 20, nil},
	"xfs":   {[]string{"mkfs.xfs", "-q", "-f", "-K"}, 300 << 20, []string{"nouuid"}},
	"btrfs": {[]string{"mkfs.btrfs", "-q", "-f", "-K", "-m", "single", "-d", "single"}, 128 << 20, nil},
}

// Mount makes a filesystem on the disk and mounts it. The cuts begin here: what the directory does not show at this
// moment is the test's own doing. The path is good for this process and those it starts as root.
func (d *Disk) Mount(fstype string) (dir string) {
	d.t.Helper()
	kind, ok := filesystems[fstype]
	if !ok || d.fstype != "" {
		d.t.Fatalf("powerloss: mount %s: unknown, or mounted before", fstype)
	}
	mkfs, err := exec.LookPath(kind.mkfs[0])
	if err != nil {
		testutil.Skip(d.t, "needs "+err.Error())
	}
	if d.size < kind.size {
		d.t.Fatalf("powerloss: %s needs a disk of %d bytes", fstype, kind.size)
	}
	d.fstype = fstype
	file, err := unix.Openat(d.server.mount, d.name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		d.t.Fatalf("open the disk: %v", err)
	}
	defer unix.Close(file)
	if d.loop, err = attachLoop(file, d.name); err != nil {
		testutil.Skip(d.t, err.Error())
	}
	defer d.loop.close()
	if out, err := exec.Command(mkfs, append(kind.mkfs[1:len(kind.mkfs):len(kind.mkfs)], d.loop.path())...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v\n%s", mkfs, err, out)
	}
	if d.mount, err = d.loop.mount(fstype); err != nil {
		if errors.Is(err, unix.ENODEV) {
			testutil.Skip(d.t, "the kernel has no "+fstype)
		}
		d.t.Fatal(err)
	}
	// The state that mkfs and mount made is where the first cut starts from.
	root, err := os.Open(d.mount.path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer root.Close()
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		d.t.Fatalf("sync the new filesystem: %v", err)
	}
	d.begin = d.server.logged()
	return d.mount.path
}

// Mark records that something has happened: after any later cut it must still be so. It is for the moment right after
// the call that promised it returned.
func (d *Disk) Mark(name string) {
	d.t.Helper()
	if err := d.server.mark(name); err != nil {
		d.t.Fatal(err)
	}
}

// Unmount ends the recording. Everything on the disk must be closed. Further calls do nothing.
func (d *Disk) Unmount() {
	d.t.Helper()
	if d.mount == nil {
		return
	}
	d.mount.close()
	d.mount = nil
	if err := d.loop.wait(); err != nil {
		d.t.Errorf("unmount the disk: %v", err)
	}
}

// Stats are what a disk has seen since it was mounted.
type Stats struct {
	Writes, Flushes, Marks int
	Bytes                  int64 // written
}

// Stats counts what was recorded until now.
func (d *Disk) Stats() Stats {
	d.t.Helper()
	var s Stats
	list, _, done := d.entries()
	defer done()
	for _, e := range list {
		switch e.Kind {
		case recWrite, recZero:
			s.Writes++
			s.Bytes += e.Len
		case recFlush:
			s.Flushes++
		case recMark:
			s.Marks++
		}
	}
	return s
}

// entries returns the log from the moment of mounting on, and what came before. done frees its memory.
func (d *Disk) entries() (list, before []entry, done func()) {
	d.t.Helper()
	size := d.server.logged()
	log, err := unix.Mmap(d.server.log, 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		d.t.Fatalf("map the log: %v", err)
	}
	done = func() { unix.Munmap(log) }
	before, err = parseLog(log[:d.begin])
	if err == nil {
		list, err = parseLog(log[d.begin:])
	}
	if err != nil {
		done()
		d.t.Fatal(err)
	}
	return list, before, done
}
