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

// PeerExec reports what "crun exec" or "runc exec" takes to run a program in a running container of a bundle, standard
// streams on /dev/null, until it has ended. It skips without root or the peer.
func PeerExec(b *testing.B, peer, bundle, id string, program ...string) {
	b.Helper()
	require(b)
	path, err := exec.LookPath(peer)
	if err != nil {
		testutil.Skip(b, "needs "+peer)
	}
	stderr, err := os.Create(filepath.Join(b.TempDir(), "stderr"))
	if err != nil {
		b.Fatal(err)
	}
	defer stderr.Close()
	root := b.TempDir()
	command := func(args ...string) error {
		cmd := exec.Command(path, append([]string{"--root", root}, args...)...)
		cmd.Stderr = stderr
		return cmd.Run()
	}
	var times []time.Duration
	err = inHierarchies(func() (err error) {
		if err := command("run", "--detach", "--bundle", bundle, id); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, command("delete", "--force", id)) }()
		args := append([]string{"exec", id}, program...)
		if err := command(args...); err != nil {
			return err
		}
		times, err = each(b.N, 0, func() error { return command(args...) })
		return err
	})
	if err != nil {
		text, _ := os.ReadFile(stderr.Name())
		b.Fatalf("%s exec: %v\n%s", peer, err, text)
	}
	report(b, times)
}

// inHierarchies runs f on a thread whose processes see cgroups that crun accepts: crun refuses a hybrid machine where
// the v2 hierarchy holds a controller, as it does while coracle's containers use it. So there the v2 hierarchy is left
// out, which saves the peers a group, in a mount namespace that ends with the thread.
func inHierarchies(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		err := hideUnified()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func hideUnified() error {
	const cgroups = "/sys/fs/cgroup"
	data, err := os.ReadFile(cgroups + "/unified/cgroup.controllers")
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(strings.Fields(string(data))) == 0 {
		return nil // not hybrid, or without a controller
	} else if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Unmount(cgroups+"/unified", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s/unified: %w", cgroups, err)
	}
	return nil
}
