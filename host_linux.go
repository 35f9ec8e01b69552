package coracle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func signalNumber(name string) syscall.Signal { return unix.SignalNum(name) }

// bootID changes with every boot of the host.
var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})

// processIdentity returns what tells the process with this pid from all later ones.
func processIdentity(pid int) (boot string, startTime uint64) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", 0
	}
	defer f.Close()
	var b [1024]byte
	n, err := io.ReadFull(f, b[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", 0
	}
	// The name in parentheses may contain anything; field 22 is the start time, and state, after the name, is field 3.
	text := string(b[:n])
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 {
		return "", 0
	}
	startTime, _ = strconv.ParseUint(fields[19], 10, 64)
	return bootID(), startTime
}

// hostProcess is the first process of a container that another program runs.
type hostProcess struct{ fd *os.File }

// openProcess opens the process that a state names. The error matches os.ErrProcessDone if it has ended.
func openProcess(st *containerState) (*hostProcess, error) {
	if st.PID <= 0 || st.BootID == "" || st.BootID != bootID() {
		return nil, os.ErrProcessDone
	}
	fd, err := unix.PidfdOpen(st.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.EINVAL) { // before Linux 5.10
		fd, err = unix.PidfdOpen(st.PID, 0)
	}
	if errors.Is(err, unix.ESRCH) {
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", st.PID, err)
	}
	p := &hostProcess{os.NewFile(uintptr(fd), "pidfd")}
	// Only now is it certain that the number does not pass to another process while it is looked at.
	if _, start := processIdentity(st.PID); start != st.StartTime {
		p.close()
		return nil, os.ErrProcessDone
	}
	return p, nil
}

func (p *hostProcess) close() { p.fd.Close() }

// openRoot opens the root directory that the process with this pid, which it is, has: the container's.
func (p *hostProcess) openRoot(pid int) (*os.File, error) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	// As long as the process is there, the number is its own.
	if gone := p.signal(0); gone != nil {
		if err == nil {
			unix.Close(fd)
		}
		return nil, gone
	}
	if err != nil {
		return nil, fmt.Errorf("open the container's root: %w", err)
	}
	return os.NewFile(uintptr(fd), "root"), nil
}

// ended says whether the process has ended, or does so within the time. Unlike signal it knows of one that nobody has
// waited for yet.
func (p *hostProcess) ended(within time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(p.fd.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(within.Milliseconds()))
	return err == nil && n > 0
}

// file is the pidfd.
func (p *hostProcess) file() *os.File { return p.fd }

func (p *hostProcess) signal(sig syscall.Signal) error {
	err := unix.PidfdSendSignal(int(p.fd.Fd()), sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// wait waits for the end of the process.
func (p *hostProcess) wait(ctx context.Context) error {
	fd := int(p.fd.Fd())
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 20)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for a process: %w", err)
		case n > 0:
			return nil
		}
	}
}

// deviceNode describes a device node of the host.
func deviceNode(path string) (kind string, major, minor int64, mode os.FileMode, uid, gid uint32, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", 0, 0, 0, 0, 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	default:
		return "", 0, 0, 0, 0, 0, fmt.Errorf("%w: it is no device node", ErrInvalid)
	}
	return kind, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), os.FileMode(st.Mode & 0o777), st.Uid, st.Gid, nil
}

// setNoDev makes the device nodes of a detached mount useless.
func setNoDev(root *os.File) error {
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(int(root.Fd()), "", unix.AT_EMPTY_PATH, attr); err != nil {
		return fmt.Errorf("make the root filesystem's device nodes useless: %w", err)
	}
	return nil
}
