package powerloss

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// mountDetached mounts a filesystem nowhere: the mount is the descriptor. Options are "key=value" or "key".
func mountDetached(fstype string, options ...string) (int, error) {
	fail := func(step string, err error) (int, error) {
		return -1, fmt.Errorf("mount %s (%s): %s: %w", fstype, strings.Join(options, ","), step, err)
	}
	fsfd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail("fsopen", err)
	}
	defer unix.Close(fsfd)
	for _, o := range options {
		key, value, ok := strings.Cut(o, "=")
		if ok {
			err = unix.FsconfigSetString(fsfd, key, value)
		} else {
			err = unix.FsconfigSetFlag(fsfd, key)
		}
		if err != nil {
			return fail(o, err)
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return fail("create", err)
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fail("fsmount", err)
	}
	return fd, nil
}

// mount is a mounted filesystem.
type mount struct {
	fd   int
	path string // good for this process and those it starts as root
	dir  string // that it is attached to, or empty
}

// inTable attaches mounts to a directory. A mount that is in no table goes with its last descriptor, however the test
// ends, but overlayfs takes its layers from one only since Linux 6.15 (clone_private_mount).
var inTable = kernelBefore(6, 15)

// mount mounts the filesystem on the device.
func (l *loop) mount(fstype string) (*mount, error) {
	fd, err := mountDetached(fstype, append([]string{"source=" + l.path()}, filesystems[fstype].options...)...)
	if err != nil {
		return nil, err
	}
	m := &mount{fd: fd, path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)}
	if !inTable {
		return m, nil
	}
	if m.dir, err = os.MkdirTemp("", "powerloss-"); err == nil {
		if err = unix.MoveMount(fd, "", unix.AT_FDCWD, m.dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err == nil {
			m.path = m.dir
			return m, nil
		}
	}
	m.close()
	return nil, fmt.Errorf("attach %s: %w", fstype, err)
}

// close ends this use of the filesystem. It may be called on nil, and more than once.
func (m *mount) close() {
	if m == nil || m.fd < 0 {
		return
	}
	if m.dir != "" {
		_ = unix.Unmount(m.dir, unix.MNT_DETACH)
		os.Remove(m.dir)
	}
	unix.Close(m.fd)
	m.fd = -1
}

func kernelBefore(major, minor int) bool {
	var u unix.Utsname
	var a, b int
	if err := unix.Uname(&u); err != nil {
		return true
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b); err != nil {
		return true
	}
	return a < major || a == major && b < minor
}
