package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMachine checks that the virtual machine is what the tests in it rely on. Elsewhere there is nothing to test.
func TestMachine(t *testing.T) {
	if os.Getenv("CORACLE_TEST_VM") == "" {
		t.Skip("not in the virtual machine")
	}
	t.Run("cgroup v2 alone", func(t *testing.T) {
		var st unix.Statfs_t
		if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			t.Fatalf("/sys/fs/cgroup has type %#x, %v", st.Type, err)
		}
		controllers := strings.Fields(read(t, "/sys/fs/cgroup/cgroup.controllers"))
		for _, want := range []string{"cpu", "cpuset", "io", "memory", "pids"} {
			if !strings.Contains(strings.Join(controllers, " "), want) {
				t.Errorf("no controller %s among %q", want, controllers)
			}
		}
		if got := read(t, "/proc/self/cgroup"); got != "0::/session\n" {
			t.Errorf("/proc/self/cgroup is %q", got)
		}
	})
	t.Run("AppArmor", func(t *testing.T) {
		if got := read(t, "/sys/kernel/security/lsm"); !strings.Contains(got, "apparmor") {
			t.Errorf("security modules: %s", got)
		}
	})
	t.Run("disk", func(t *testing.T) {
		var st unix.Statfs_t
		if err := unix.Statfs(t.TempDir(), &st); err != nil || st.Type != unix.EXT4_SUPER_MAGIC {
			t.Fatalf("temporary directories have type %#x, %v", st.Type, err)
		}
	})
	t.Run("pivot_root and overlay", func(t *testing.T) {
		// What a container does: an overlay as its root, and the old root away.
		dir := t.TempDir()
		for _, sub := range []string{"lower/bin", "lower/proc", "upper", "work", "root"} {
			if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		script := `set -e
			cp /bin/busybox lower/bin/busybox
			mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay root
			cd root
			/bin/busybox mkdir old
			/bin/busybox pivot_root . old
			/bin/busybox umount -l /old
			/bin/busybox ls /`
		cmd := exec.Command("/bin/busybox", "unshare", "-m", "/bin/busybox", "sh", "-c", script)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if got := strings.Fields(string(out)); err != nil || strings.Join(got, " ") != "bin old proc" {
			t.Fatalf("%v: %s", err, out)
		}
	})
	t.Run("testdata", func(t *testing.T) {
		if _, err := os.Stat("../guestplan/guestplan.go"); err != nil {
			t.Fatal(err)
		}
	})
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
