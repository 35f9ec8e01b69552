package coracle_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// rebootEnv says which boot of the virtual machine this is: vmtest -reboot sets it.
const rebootEnv = "CORACLE_TEST_BOOT"

// TestReboot: detached containers and a machine that is reset while they run. Before the reset it starts them, after it
// looks at what is left.
//
//	go run ./internal/vmtest -reboot -run TestReboot .
func TestReboot(t *testing.T) {
	const root = "/var/lib/coracle-reboot"
	switch os.Getenv(rebootEnv) {
	case "1":
		testutil.RequireRoot(t)
		beforeReboot(t, root)
	case "2":
		testutil.RequireRoot(t)
		afterReboot(t, root)
	default:
		t.Skip("vmtest boots twice for this with -reboot")
	}
}

// beforeReboot leaves one container of each kind.
func beforeReboot(t *testing.T, root string) {
	eng, err := coracle.Open(t.Context(), coracle.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	toolImage(t, eng, nil)
	begin := func(name string, auto bool, args ...string) *coracle.Container {
		t.Helper()
		c, err := eng.Create(t.Context(), &coracle.ContainerSpec{Name: name, Image: "tool", Args: args, Detached: true, AutoRemove: auto})
		if err == nil {
			err = c.Start(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		if args[0] == "stubborn" {
			eventually(t, "it is ready", func() bool { return logged(t, c) == "ready\n" })
		}
		return c
	}
	done := begin("done", false, "exit", "7")
	if exit, err := done.Wait(t.Context()); err != nil || exit.Code != 7 {
		t.Fatalf("exit %v, %v", exit, err)
	}
	kept := begin("kept", false, "stubborn")
	if err := kept.Command(toolPath(t, kept), "write", "/file", "from before").Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	begin("auto", true, "stubborn")
	ended := begin("ended", false, "stubborn")
	info := inspect(t, ended)
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	// This one's end nobody notes but its keeper.
	if err := syscall.Kill(info.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its keeper has left", func() bool { return syscall.Kill(info.KeeperPID, 0) != nil })
	unix.Sync() // as a machine does every half minute
	if eng, err = coracle.Open(t.Context(), coracle.Config{Root: root}); err != nil {
		t.Fatal(err)
	}
	begin("late", false, "stubborn") // and of this one the disk may have anything
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
}

// toolPath is where the tool is in a container of its image.
func toolPath(t *testing.T, c *coracle.Container) string {
	t.Helper()
	return inspect(t, c).OCI.Process.Args[0]
}

func afterReboot(t *testing.T, root string) {
	eng, err := coracle.Open(t.Context(), coracle.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	if report, err := eng.Check(t.Context()); err != nil || len(report.Damage) > 0 {
		t.Errorf("damage: %v, %v", report, err)
	}
	find := func(name string) *coracle.Container {
		t.Helper()
		c, err := eng.Container(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	wait := func(c *coracle.Container) coracle.ExitStatus {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		exit, err := c.Wait(ctx)
		if err != nil {
			t.Errorf("wait for %s: %v", c.Name(), err)
		}
		return exit
	}
	kept := find("kept")
	if info := inspect(t, kept); info.Status != coracle.StatusExited || info.PID != 0 || info.Exit == nil || !info.Exit.Unknown || info.Exit.Code != -1 {
		t.Errorf("what ran when the machine was reset: %+v, %v", info, info.Exit)
	}
	if exit := wait(kept); !exit.Unknown {
		t.Errorf("what ran when the machine was reset ended with %v", exit)
	}
	if out := logged(t, kept); out != "ready\n" {
		t.Errorf("its log: %q", out)
	}
	if exit := wait(find("done")); exit.Code != 7 {
		t.Errorf("what had ended before: %v", exit)
	}
	if exit := wait(find("ended")); exit.Signal != syscall.SIGKILL || exit.Unknown {
		t.Errorf("what its keeper knew to have ended: %v", exit)
	}
	if _, err := eng.Container(t.Context(), "auto"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was to be removed at its end: %v", err)
	}
	if err := kept.Start(t.Context()); err != nil {
		t.Fatalf("start it again: %v", err)
	}
	eventually(t, "it is ready again", func() bool { return logged(t, kept) == "ready\nready\n" })
	if b, err := kept.Command(toolPath(t, kept), "cat", "/file").Output(t.Context()); err != nil || !strings.HasPrefix(string(b), "from before") {
		t.Errorf("its file: %q, %v", b, err)
	}
	list, err := eng.Containers(t.Context(), nil)
	if err != nil {
		t.Error(err)
	}
	for _, c := range list {
		if c.Name() == "late" { // if there is one, it is whole
			t.Log("the container that was not synced is there")
			if exit := wait(c); !exit.Unknown {
				t.Errorf("it ended with %v", exit)
			}
			if err := c.Start(t.Context()); err != nil {
				t.Errorf("start the one that was not synced: %v", err)
			}
		}
		if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
			t.Errorf("remove %s: %v", c.Name(), err)
		}
	}
	prefix := eng.GroupPrefix()
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, root, prefix)
}
