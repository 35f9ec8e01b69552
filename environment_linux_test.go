package coracle_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// placeEnv makes the test binary a program in a place with something missing.
const placeEnv = "CORACLE_TEST_PLACE"

// places are programs that run in mount and pid namespaces of their own, in a root that has the image "tool". They
// change the place and return what they find wrong.
var places = map[string]func(ctx context.Context, root string) error{
	"memfd": func(ctx context.Context, root string) error {
		if err := os.WriteFile("/proc/sys/vm/memfd_noexec", []byte("2"), 0); err != nil {
			return err
		}
		if fd, err := unix.MemfdCreate("x", unix.MFD_EXEC); err == nil {
			unix.Close(fd)
			return errors.New("executable memory is not forbidden")
		}
		// In its place, a file in the run directory.
		run := filepath.Join(root, "run")
		if err := runTool(ctx, coracle.Config{Root: root, Run: run}, coracle.ContainerSpec{}); err != nil {
			return fmt.Errorf("with a run directory: %w", err)
		}
		if left, _ := filepath.Glob(run + "/plans/*"); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		if err := unix.Mount("tmpfs", run, "tmpfs", unix.MS_NOEXEC, ""); err != nil {
			return err
		}
		err := runTool(ctx, coracle.Config{Root: root, Run: run}, coracle.ContainerSpec{})
		if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "vm.memfd_noexec") {
			return fmt.Errorf("with a run directory mounted noexec: %w", err)
		}
		return nil
	},
	"read-only cgroups": func(ctx context.Context, root string) error {
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(mounts)) {
			if f := strings.Fields(line); f[2] == "cgroup" || f[2] == "cgroup2" {
				if err := unix.Mount("", f[1], "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
					return err
				}
			}
		}
		return withoutCgroups(ctx, root)
	},
	"version 1 alone": frozenInVersion1,
	"no cgroups": func(ctx context.Context, root string) error {
		if err := unix.Mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, ""); err != nil {
			return err
		}
		return withoutCgroups(ctx, root)
	},
}

func withoutCgroups(ctx context.Context, root string) error {
	if err := runTool(ctx, coracle.Config{Root: root}, coracle.ContainerSpec{}); err != nil {
		return fmt.Errorf("without limits: %w", err)
	}
	// Nobody filters devices here: the container must not be able to make any, and those of its image must not work.
	if err := runTool(ctx, coracle.Config{Root: root}, coracle.ContainerSpec{Args: []string{"no-devices"}}); err != nil {
		return fmt.Errorf("devices without a filter: %w", err)
	}
	err := runTool(ctx, coracle.Config{Root: root}, coracle.ContainerSpec{Limits: cgroup.Limits{Memory: 64 << 20}})
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "memory") {
		return fmt.Errorf("with a limit: %w", err)
	}
	return nil
}

// runTool runs the tool once in an engine of its own, and checks that nothing is left.
func runTool(ctx context.Context, config coracle.Config, spec coracle.ContainerSpec) (err error) {
	eng, err := coracle.Open(ctx, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	spec.Image = "tool"
	if spec.Args == nil {
		spec.Args = []string{"true"}
	}
	err = eng.Run(ctx, &spec)
	if list, listErr := eng.Containers(ctx, nil); listErr != nil || len(list) > 0 {
		err = errors.Join(err, fmt.Errorf("left: %v, %w", list, listErr))
	}
	return err
}

// placeMain is the program of a place.
func placeMain() {
	name, root, ok := strings.Cut(os.Getenv(placeEnv), ":")
	if !ok {
		return
	}
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err == nil {
		err = unix.Mount("proc", "/proc", "proc", 0, "")
	}
	if err == nil {
		err = places[name](context.Background(), root)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func TestPlaces(t *testing.T) {
	testutil.RequireRoot(t)
	for name := range places {
		t.Run(name, func(t *testing.T) {
			if _, err := os.Stat("/proc/sys/vm/memfd_noexec"); name == "memfd" && err != nil {
				t.Skip("this kernel cannot forbid executable memory: vm.memfd_noexec came with Linux 6.3")
			}
			root := t.TempDir()
			eng, err := coracle.Open(t.Context(), coracle.Config{Root: root})
			if err != nil {
				t.Fatal(err)
			}
			toolImage(t, eng, nil)
			prefix := eng.GroupPrefix()
			if err := eng.Close(); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), placeEnv+"="+name+":"+root)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			checkEmpty(t, root, prefix)
		})
	}
}

// TestFullDisk: a root on a full filesystem gives ENOSPC, and works again when there is room.
func TestFullDisk(t *testing.T) {
	testutil.RequireRoot(t)
	ctx, root := t.Context(), t.TempDir()
	if err := unix.Mount("coracle-test", root, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	}()
	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer eng.Close()
	toolImage(t, eng, nil)
	fill := filepath.Join(root, "fill")
	f, err := os.Create(fill)
	if err != nil {
		t.Fatal(err)
	}
	for block := bytes.Repeat([]byte("x"), 1<<16); err == nil; {
		_, err = f.Write(block)
	}
	f.Close()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	spec := &coracle.ContainerSpec{Image: "tool", Args: []string{"true"}}
	if err := eng.Run(ctx, spec); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
	if list, err := eng.Containers(ctx, nil); err != nil || len(list) > 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	if err := eng.Run(ctx, spec); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// TestDamagedState: a state file that is cut off or made by a later version is an error that names it, never a guess.
func TestDamagedState(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	other, err := coracle.Open(ctx, coracle.Config{Root: eng.Root()})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Name: "c", Image: "tool", Args: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(eng.Root(), "containers", c.ID(), "state.json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"cut off": good[:len(good)/2], "empty": nil, "later version": bytes.Replace(good, []byte(`"Version":1`), []byte(`"Version":99`), 1),
		"another container's": bytes.Replace(good, []byte(c.ID()), []byte(strings.Repeat("0", 64)), 1),
	} {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		var op *coracle.OpError
		if _, err := other.Container(ctx, "c"); !errors.As(err, &op) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(ctx, nil); err != nil {
		t.Error(err)
	}
}

// TestForeignRoot: a root of another host or of a later version is refused.
func TestForeignRoot(t *testing.T) {
	for name, record := range map[string]string{
		"another host": `{"Version":1,"Host":"another"}`, "later version": `{"Version":2,"Host":"x"}`, "damaged": `{`,
	} {
		root := t.TempDir()
		if err := os.WriteFile(filepath.Join(root, "engine.json"), []byte(record), 0o600); err != nil {
			t.Fatal(err)
		}
		var op *coracle.OpError
		if eng, err := coracle.Open(t.Context(), coracle.Config{Root: root}); !errors.As(err, &op) {
			t.Errorf("%s: %v", name, err)
			eng.Close()
		}
	}
}

// TestClosedEngine: every call on a closed engine says so.
func TestClosedEngine(t *testing.T) {
	ctx := t.Context()
	testutil.RequireRoot(t)
	eng, err := coracle.Open(ctx, coracle.Config{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	toolImage(t, eng, nil)
	kept, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"stubborn"}})
	if err != nil {
		t.Fatal(err)
	}
	ephemeral, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"stubborn"}, AutoRemove: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*coracle.Container{kept, ephemeral} {
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	if err := eng.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if exit, err := kept.Wait(ctx); err != nil || exit.Signal != syscall.SIGKILL {
		t.Errorf("attached container: %v, %v", exit, err)
	}
	_, createErr := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool"})
	_, findErr := eng.Container(ctx, "x")
	_, listErr := eng.Containers(ctx, nil)
	_, imageErr := eng.Image(ctx, "tool")
	for name, err := range map[string]error{
		"create": createErr, "find": findErr, "list": listErr, "image": imageErr, "start": kept.Start(ctx), "remove": kept.Remove(ctx, nil),
	} {
		if !errors.Is(err, coracle.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The next engine finds the container that is to be kept, stopped and nobody's.
	eng, err = coracle.Open(ctx, coracle.Config{Root: eng.Root()})
	if err != nil {
		t.Fatal(err)
	}
	defer eng.Close()
	list, err := eng.Containers(ctx, nil)
	if err != nil || len(list) != 1 || list[0].ID() != kept.ID() {
		t.Fatalf("containers: %v, %v", list, err)
	}
	if exit, err := list[0].Wait(ctx); err != nil || exit.Signal != syscall.SIGKILL {
		t.Errorf("its exit status: %v, %v", exit, err)
	}
	if err := list[0].Start(ctx); err != nil {
		t.Errorf("start it again: %v", err)
	}
	if err := list[0].Remove(ctx, &coracle.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
}

// TestCloseWhileBusy closes an engine while others use it: what they do either succeeds or says that the engine is
// closed, and nothing is left.
func TestCloseWhileBusy(t *testing.T) {
	testutil.RequireRoot(t)
	for round := range 5 {
		root := t.TempDir()
		eng, err := coracle.Open(t.Context(), coracle.Config{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		toolImage(t, eng, nil)
		prefix := eng.GroupPrefix()
		ended := make(chan error)
		for range 8 {
			go func() {
				for {
					if err := eng.Run(t.Context(), &coracle.ContainerSpec{Image: "tool", Args: []string{"sleep", "1"}}); err != nil {
						ended <- err
						return
					}
				}
			}()
		}
		time.Sleep(time.Duration(round) * 7 * time.Millisecond)
		if err := eng.Close(); err != nil {
			t.Error(err)
		}
		for range 8 {
			err := <-ended
			var exit *coracle.ExitError
			killed := errors.As(err, &exit) && exit.Signal == syscall.SIGKILL
			if !killed && !errors.Is(err, coracle.ErrClosed) && !errors.Is(err, context.Canceled) {
				t.Errorf("round %d: %v", round, err)
			}
		}
		checkEmpty(t, root, prefix)
	}
}
