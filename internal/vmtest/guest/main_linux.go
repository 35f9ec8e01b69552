// Guest is the first process of the virtual machine that vmtest boots. It runs twice: as /init of the initial ramdisk
// it loads the kernel modules and changes to the disk, stays there as process 1 and reaps; started by itself with the
// argument "run" it runs the test binaries of /vmtest/plan.json.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/vmtest/guestplan"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "run" {
		if err := runTests("/vmtest/plan.json"); err != nil {
			fmt.Println("guest:", err)
			os.Exit(1)
		}
		return
	}
	verdict := "pass"
	if err := initMain(); err != nil {
		fmt.Println("guest:", err)
		verdict = "fail"
	}
	fmt.Println(guestplan.Marker, commandLine(guestplan.Nonce), verdict)
	if commandLine(guestplan.Boot) == "1" {
		err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		fmt.Println("guest: reset:", err)
		os.Exit(1)
	}
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Println("guest: power off:", err)
	os.Exit(1) // the kernel panics, and qemu ends
}

// commandLine returns a value of the kernel's command line.
func commandLine(name string) string {
	cmdline, _ := os.ReadFile("/proc/cmdline")
	for _, word := range strings.Fields(string(cmdline)) {
		if value, ok := strings.CutPrefix(word, name+"="); ok {
			return value
		}
	}
	return ""
}

func initMain() error {
	if os.Getpid() != 1 {
		return errors.New("not process 1: vmtest boots this program")
	}
	if err := mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	if err := mount("dev", "/dev", "devtmpfs", 0, ""); err != nil {
		return err
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if err := changeRoot("/dev/vda", "/root"); err != nil {
		return err
	}
	if err := setUp(); err != nil {
		return err
	}
	status, err := runAndReap("/vmtest/guest", "run")
	if err != nil {
		return err
	}
	if status != 0 {
		return fmt.Errorf("the tests ended with status %#x", int(status))
	}
	return nil
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype, target, err)
	}
	return nil
}

func loadModules(dir string) error {
	files, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return err
	}
	for _, file := range files {
		f, err := os.Open(filepath.Join(dir, file.Name()))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", file.Name(), err)
		}
	}
	return nil
}

// changeRoot makes the disk the root. The ramdisk's own root cannot be pivoted away from (pivot_root(2)), so the disk
// is moved over it; containers then pivot on the disk as on any machine.
func changeRoot(disk, target string) error {
	if err := mount(disk, target, "ext4", 0, ""); err != nil {
		return err
	}
	for _, dir := range []string{"/dev", "/proc"} {
		if err := unix.Mount(dir, target+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	if err := os.RemoveAll("/modules"); err != nil {
		return err
	}
	if err := os.Chdir(target); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the disk to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}

// setUp brings the machine to what systemd would leave: file systems, names, loopback, shared mount propagation.
func setUp() error {
	if err := ownRoot("/"); err != nil {
		return err
	}
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}{
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"securityfs", "/sys/kernel/security", "securityfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "nsdelegate,memory_recursiveprot"},
		{"bpf", "/sys/fs/bpf", "bpf", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=700"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=620,ptmxmode=000,gid=5"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, ""},
		{"mqueue", "/dev/mqueue", "mqueue", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	} {
		if m.fstype == "cgroup2" || m.fstype == "securityfs" || m.fstype == "bpf" {
			// Their directories are the kernel's: they are there or the kernel lacks the feature.
			if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
				return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
			}
			continue
		}
		if err := mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share the mounts: %w", err)
	}
	if err := unix.Sethostname([]byte("vmtest")); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := linkUp("lo"); err != nil {
		return err
	}
	if err := raiseFileLimit(); err != nil {
		return err
	}
	// A session of its own below the root, as logins have: the root group's special rights must not hide mistakes.
	if err := os.Mkdir("/sys/fs/cgroup/session", 0o755); err != nil {
		return err
	}
	return installApplets("/bin/busybox")
}

// ownRoot gives everything to root where the disk was made by an ordinary user.
func ownRoot(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat("/vmtest/plan.json", &st); err != nil || st.Uid == 0 {
		return err
	}
	return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == "/proc" || path == "/dev" {
			return filepath.SkipDir
		}
		return os.Lchown(path, 0, 0)
	})
}

func linkUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// raiseFileLimit sets systemd's limits of open files.
func raiseFileLimit() error {
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1024, Max: 524288}); err != nil {
		return fmt.Errorf("set the limit of open files: %w", err)
	}
	return nil
}

// runAndReap runs a program in the session's cgroup and waits for it, reaping every orphan meanwhile.
func runAndReap(argv ...string) (unix.WaitStatus, error) {
	group, err := os.Open("/sys/fs/cgroup/session")
	if err != nil {
		return 0, err
	}
	defer group.Close()
	p, err := os.StartProcess(argv[0], argv, &os.ProcAttr{
		Dir: "/root",
		Env: []string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"HOME=/root", "USER=root", "TERM=dumb", "TMPDIR=/var/tmp",
		},
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &unix.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())},
	})
	if err != nil {
		return 0, err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case pid == p.Pid:
			return status, nil
		}
	}
}

// installApplets links every applet of busybox into /bin, and those that belong there into /sbin.
func installApplets(busybox string) error {
	names, err := appletNames(busybox)
	if err != nil {
		return err
	}
	if !slices.Contains(names, "sh") {
		return fmt.Errorf("%s has no sh among %d applets", busybox, len(names))
	}
	for _, name := range names {
		if err := os.Symlink(busybox, "/bin/"+name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}
