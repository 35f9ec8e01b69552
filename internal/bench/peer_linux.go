package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// Peer reports what "crun run" or "runc run" takes for a bundle (see [WriteBundle]), standard streams on /dev/null,
// until it has removed the container again. It skips without root or the program.
func Peer(b *testing.B, program, bundle, id string, gap time.Duration) {
	b.Helper()
	require(b)
	path, err := exec.LookPath(program)
	if err != nil {
		testutil.Skip(b, "needs "+program)
	}
	stderr, err := os.Create(filepath.Join(b.TempDir(), "stderr"))
	if err != nil {
		b.Fatal(err)
	}
	defer stderr.Close()
	root := b.TempDir()
	var times []time.Duration
	err = inHierarchies(func() error {
		var err error
		times, err = each(b.N, gap, func() error {
			cmd := exec.Command(path, "--root", root, "run", "--bundle", bundle, id)
			cmd.Stderr = stderr
			return cmd.Run()
		})
		return err
	})
	if err != nil {
		text, _ := os.ReadFile(stderr.Name())
		b.Fatalf("%s run: %v\n%s", program, err, text)
	}
	report(b, times)
}

// inHierarchies runs f on a thread whose processes see cgroups that crun accepts: crun refuses a hybrid machine where
// the v2 hierarchy holds a controller. There each such controller is mounted as a v1 hierarchy, in a mount namespace
// that ends with the thread, so that nothing of it can stay behind; the kernel then gives the controller back.
func inHierarchies(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		err := mountControllers()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func mountControllers() error {
	const cgroups = "/sys/fs/cgroup"
	data, err := os.ReadFile(cgroups + "/unified/cgroup.controllers")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // not hybrid
	} else if err != nil {
		return err
	}
	controllers := strings.Fields(string(data))
	if len(controllers) == 0 {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// A new directory in the machine's own /sys/fs/cgroup would be there for all, so the directory is made anew.
	fresh, err := os.MkdirTemp("", "coracle-cgroup-")
	if err != nil {
		return err
	}
	defer os.Remove(fresh)
	if err := unix.Mount("cgroup", fresh, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	entries, err := os.ReadDir(cgroups)
	if err != nil {
		return err
	}
	for _, e := range entries {
		from, to := filepath.Join(cgroups, e.Name()), filepath.Join(fresh, e.Name())
		if target, err := os.Readlink(from); err == nil {
			if err := os.Symlink(target, to); err != nil {
				return err
			}
			continue
		}
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", from, err)
		}
	}
	for _, name := range controllers {
		// A controller that is enabled for the groups of the unified hierarchy, as an engine has done, cannot move. Whether
		// this can be undone the mount tells.
		_ = os.WriteFile(cgroups+"/unified/cgroup.subtree_control", []byte("-"+name), 0)
		to := filepath.Join(fresh, name)
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		err := unix.Mount("cgroup", to, "cgroup", 0, name)
		for tries := 0; err == unix.EBUSY && tries < 60; tries++ { // the kernel disables it in its own time
			time.Sleep(50 * time.Millisecond)
			err = unix.Mount("cgroup", to, "cgroup", 0, name)
		}
		if err != nil {
			return fmt.Errorf("mount the %s hierarchy: %w", name, err)
		}
	}
	if err := unix.Mount(fresh, cgroups, "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the hierarchies to %s: %w", cgroups, err)
	}
	return nil
}
