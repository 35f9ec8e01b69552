package layerfs_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/layerfs"
	"github.com/coracle-dev/coracle/layerfs/layerfstest"
)

// filesystem is one to try the store on, made in a file.
type filesystem struct {
	name     string
	mkfs     []string
	reflinks bool
}

var filesystems = []filesystem{
	{"tmpfs", nil, false},
	{"ext4", []string{"mkfs.ext4", "-q", "-F"}, false},
	{"xfs", []string{"mkfs.xfs", "-q", "-m", "reflink=1"}, true},
	{"btrfs", []string{"mkfs.btrfs", "-q"}, true},
}

// In the process of a filesystem's own: where it is to be mounted, and what is to be run there.
const (
	fsDirEnv  = "LAYERFS_TEST_FSDIR"
	fsBench   = "LAYERFS_TEST_FSBENCH"
	imageSize = 1 << 30
)

// child is this test binary in a mount namespace of its own, in which the filesystem will be mounted on a temporary
// directory; when the process ends, however it does, the mount and its loop device are gone.
func (f filesystem) child(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	testutil.RequireRoot(t)
	dir := t.TempDir()
	if f.mkfs != nil {
		testutil.NotInVM(t, "there is no "+f.mkfs[0])
		if _, err := exec.LookPath(f.mkfs[0]); err != nil {
			testutil.Skip(t, "needs "+f.mkfs[0]+", of the package e2fsprogs, xfsprogs or btrfs-progs")
		}
		if err := os.WriteFile(dir+"/image", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(dir+"/image", imageSize); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(f.mkfs[0], append(f.mkfs[1:], dir+"/image")...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", f.mkfs[0], err, out)
		}
	}
	if err := os.Mkdir(dir+"/mnt", 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], append(args, "-test.timeout=10m")...)
	cmd.Env = append(os.Environ(), fsDirEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// mount is called in the child.
func (f filesystem) mount(t testing.TB) string {
	t.Helper()
	dir := os.Getenv(fsDirEnv)
	// As the mounts of most hosts are: so that a mount which is not kept apart shows.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	mnt := dir + "/mnt"
	if f.mkfs == nil {
		if err := unix.Mount(f.name, mnt, f.name, 0, ""); err != nil {
			t.Fatal(err)
		}
	} else if out, err := exec.Command("mount", "-o", "loop", dir+"/image", mnt).CombinedOutput(); err != nil {
		if bytes.Contains(out, []byte("unknown filesystem type")) {
			testutil.Skip(t, "the kernel has no "+f.name)
		}
		t.Fatalf("mount: %v\n%s", err, out)
	}
	return mnt
}

// TestFilesystems runs the suite on every filesystem that people put a store on, and looks at what the copy driver does
// with reflinks there.
func TestFilesystems(t *testing.T) {
	for _, f := range filesystems {
		t.Run(f.name, func(t *testing.T) {
			if os.Getenv(fsDirEnv) == "" {
				if testutil.Short() && f.name == "ext4" {
					t.Skip("-short: TestDrivers is much the same")
				}
				out, err := f.child(t, "-test.run=^TestFilesystems$/^"+f.name+"$", "-test.v", fmt.Sprintf("-test.short=%v", testutil.Short())).CombinedOutput()
				if err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				for line := range strings.Lines(string(out)) {
					if strings.Contains(line, "reflinks:") {
						t.Log(strings.TrimSpace(line))
					}
				}
				return
			}
			dir := f.mount(t)
			t.Run("extents", func(t *testing.T) { testExtents(t, dir, f.reflinks) })
			for _, driver := range []string{"overlay", "copy"} {
				t.Run(driver, func(t *testing.T) {
					layerfstest.Run(t, layerfs.BuiltinDriver(driver), &layerfstest.Options{Dir: dir})
				})
			}
		})
	}
}

// testExtents copies a big file and finds out what that costs.
func testExtents(t *testing.T, dir string, shared bool) {
	const size = 32 << 20
	data := make([]byte, size)
	_, _ = rand.Read(data)
	if err := os.MkdirAll(dir+"/extents/layer/fs", 0o755); err != nil {
		t.Fatal(err)
	}
	layer := dir + "/extents/layer/fs"
	if err := os.WriteFile(layer+"/big", data, 0o644); err != nil {
		t.Fatal(err)
	}
	d, err := layerfs.BuiltinDriver("copy")(layerfs.DriverConfig{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	before := used(t, dir)
	const copies = 4
	for i := range copies {
		s := snapshotDir(t, fmt.Sprintf("%s/extents/%d", dir, i), layer)
		if err := d.Prepare(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	grown := used(t, dir) - before
	parts, sharedParts, err := extents(dir + "/extents/0/root/big")
	if err != nil && !errors.Is(err, unix.ENOTSUP) { // tmpfs
		t.Fatal(err)
	}
	t.Logf("reflinks: %d copies of %d MiB take %.1f MiB; %d of %d extents of a copy are shared", copies, size>>20, float64(grown)/(1<<20), sharedParts, parts)
	if shared && (grown > size/8 || parts == 0 || sharedParts != parts) {
		t.Error("the copies share nothing")
	}
	if !shared && (grown < copies*size || sharedParts > 0) {
		t.Error("the copies share something, or this measures nothing")
	}
	// What is written to a copy is in no other.
	if f, err := os.OpenFile(dir+"/extents/0/root/big", os.O_WRONLY, 0); err != nil {
		t.Error(err)
	} else if _, err := f.WriteAt([]byte("mine"), size/2); err != nil || f.Close() != nil {
		t.Error(err)
	}
	for _, p := range []string{layer + "/big", dir + "/extents/1/root/big"} {
		if got, err := os.ReadFile(p); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s was changed, %v", p, err)
		}
	}
	if err := os.RemoveAll(dir + "/extents"); err != nil {
		t.Error(err)
	}
}

func snapshotDir(t testing.TB, path string, layers ...string) *layerfs.SnapshotDir {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &layerfs.SnapshotDir{Dir: int(f.Fd()), Path: path, LayerPaths: layers, Root: layerfs.RootAttr{Mode: 0o755}}
}

// used is how many bytes of a filesystem are.
func used(t testing.TB, dir string) int64 {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := errors.Join(unix.Syncfs(int(f.Fd())), unix.Fstatfs(int(f.Fd()), &st)); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// extents asks FIEMAP (Documentation/filesystems/fiemap.rst) for a file's extents.
func extents(path string) (all, shared int, err error) {
	const (
		fsIocFiemap  = 0xc020660b
		flagSync     = 1
		extentShared = 0x2000
	)
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	var m struct {
		start, length                  uint64
		flags, mapped, count, reserved uint32
		extents                        [1000]struct {
			logical, physical, length uint64
			reserved64                [2]uint64
			flags                     uint32
			reserved                  [3]uint32
		}
	}
	m.length, m.flags, m.count = 1<<62, flagSync, uint32(len(m.extents))
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(&m))); errno != 0 {
		return 0, 0, errno
	}
	for _, e := range m.extents[:m.mapped] {
		if e.flags&extentShared != 0 {
			shared++
		}
	}
	return int(m.mapped), shared, nil
}

// BenchmarkCopyDriver is what it takes until a new root filesystem of 1,000 files of 16 kB and one of 64 MB can be
// written: copied with reflinks and without, by the driver and by cp, and as an overlay.
func BenchmarkCopyDriver(b *testing.B) {
	for _, f := range filesystems {
		if f.name == os.Getenv(fsBench) {
			b.Fatal("not in the child")
		}
		b.Run(f.name, func(b *testing.B) {
			cmd := f.child(b, "-test.run=^TestCopyDriverBenchmark$")
			cmd.Env = append(cmd.Env, fsBench+"="+f.name)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				b.Fatalf("%v\n%s%s", err, out, stderr.String())
			}
			var results []benchResult
			if err := json.NewDecoder(bytes.NewReader(out)).Decode(&results); err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
			for _, r := range results {
				b.Run(r.Name, func(b *testing.B) {
					for b.Loop() {
						// Measured by the child.
					}
					b.ReportMetric(r.NS, "ns/op")
				})
			}
		})
	}
}

type benchResult struct {
	Name string
	NS   float64
}

// TestCopyDriverBenchmark is the part of BenchmarkCopyDriver that runs where the filesystem is.
func TestCopyDriverBenchmark(t *testing.T) {
	var f filesystem
	for _, f = range filesystems {
		if f.name == os.Getenv(fsBench) {
			break
		}
	}
	if os.Getenv(fsBench) == "" {
		t.Skip("for BenchmarkCopyDriver only")
	}
	dir := f.mount(t)
	layer := dir + "/layer"
	if err := os.Mkdir(layer, 0o755); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64<<20)
	_, _ = rand.Read(data)
	err := os.WriteFile(layer+"/big", data, 0o644)
	for i := range 1000 {
		err = errors.Join(err, os.MkdirAll(fmt.Sprintf("%s/d%d", layer, i%50), 0o755), os.WriteFile(fmt.Sprintf("%s/d%d/f%d", layer, i%50, i), data[i*16<<10:][:16<<10], 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = used(t, dir) // writes all of it out
	n := 0
	driver := func(name string) func(path string) error {
		d, err := layerfs.BuiltinDriver(name)(layerfs.DriverConfig{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return func(path string) error {
			s := snapshotDir(t, path, layer)
			return d.Prepare(context.Background(), s)
		}
	}
	cp := func(reflink string) func(path string) error {
		return func(path string) error {
			out, err := exec.Command("cp", "-a", "--reflink="+reflink, layer, path).CombinedOutput()
			if err != nil {
				return fmt.Errorf("cp: %w: %s", err, out)
			}
			return nil
		}
	}
	var results []benchResult
	for _, c := range []struct {
		name string
		f    func(string) error
	}{{"overlay", driver("overlay")}, {"copy", driver("copy")}, {"cp-auto", cp("auto")}, {"cp-never", cp("never")}} {
		var total time.Duration
		const rounds = 5
		for range rounds {
			n++
			path := fmt.Sprintf("%s/c%d", dir, n)
			start := time.Now()
			if err := c.f(path); err != nil {
				t.Fatal(err)
			}
			total += time.Since(start)
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			_ = used(t, dir)
		}
		results = append(results, benchResult{c.name, float64(total.Nanoseconds()) / rounds})
	}
	if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
		t.Fatal(err)
	}
}
