package powerloss

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// loop is a loop device that frees itself when its last user is gone.
type loop struct {
	fd      int
	number  int
	backing string // how the kernel calls its file
}

// attachLoop makes a loop device of an open file, whose name has backing in it.
func attachLoop(file int, backing string) (*loop, error) {
	ctl, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/loop-control: %w", err)
	}
	defer unix.Close(ctl)
	for range 100 {
		n, err := unix.IoctlRetInt(ctl, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		l := &loop{number: n, backing: backing}
		if l.fd, err = unix.Open(l.path(), unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return nil, fmt.Errorf("open %s: %w", l.path(), err)
		}
		err = unix.IoctlLoopConfigure(l.fd, &unix.LoopConfig{Fd: uint32(file), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO}})
		if err == nil {
			return l, nil
		}
		unix.Close(l.fd)
		if err != unix.EBUSY { // another program was faster
			return nil, fmt.Errorf("configure %s: %w", l.path(), err)
		}
	}
	return nil, fmt.Errorf("find a free loop device: %w", unix.EBUSY)
}

func (l *loop) path() string { return fmt.Sprintf("/dev/loop%d", l.number) }

// close gives up this use of the device; a mount keeps it.
func (l *loop) close() {
	if l.fd >= 0 {
		unix.Close(l.fd)
		l.fd = -1
	}
}

// wait returns when nobody uses the device any more and it has let go of its file.
func (l *loop) wait() error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(l.path()), "loop/backing_file"))
		if err != nil || !strings.Contains(string(b), l.backing) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is still in use: something on it is open", l.path())
		}
	}
}
