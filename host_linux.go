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
	_, startTime = processStat(pid)
	if startTime == 0 {
		return "", 0
	}
	return bootID(), startTime
}

// processLives reports whether the process that processIdentity has described runs. One that has ended and is still to
// be reaped does not.
func processLives(pid int, boot string, start uint64) bool {
	if boot == "" || boot != bootID() {
		return false
	}
	state, now := processStat(pid)
	return now == start && state != 'Z' && state != 'X'
}

// processStat returns the state and the start time of a process, or zeros.
func processStat(pid int) (state byte, startTime uint64) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	var b [1024]byte
	n, err := io.ReadFull(f, b[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, 0
	}
	// The name in parentheses may contain anything; field 22 is the start time, and state, after the name, is field 3.
	text := string(b[:n])
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 {
		return 0, 0
	}
	startTime, _ = strconv.ParseUint(fields[19], 10, 64)
	return fields[0][0], startTime
}

// hostProcess is the first process of a container that another program runs.
type hostProcess struct{ fd *os.File }

// openProcess opens the process that processIdentity has described. The error matches os.ErrProcessDone if it has ended.
func openProcess(pid int, boot string, start uint64) (*hostProcess, error) {
	if pid <= 0 || boot == "" || boot != bootID() {
		return nil, os.ErrProcessDone
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.EINVAL) { // before Linux 5.10
		fd, err = unix.PidfdOpen(pid, 0)
	}
	if errors.Is(err, unix.ESRCH) {
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	unix.SetNonblock(fd, true)
	p := &hostProcess{os.NewFile(uintptr(fd), "pidfd")} // not blocking, so the runtime's poller waits for it
	// Only now is it certain that the number does not pass to another process while it is looked at.
	if _, now := processIdentity(pid); now != start {
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

// openDir opens the directory that the process with this pid, which it is, has in /proc.
func (p *hostProcess) openDir(pid int) (*os.File, error) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	// As long as the process is there, the number is its own.
	if gone := p.signal(0); gone != nil {
		if err == nil {
			unix.Close(fd)
		}
		return nil, gone
	}
	if err != nil {
		return nil, fmt.Errorf("open the process's directory: %w", err)
	}
	return os.NewFile(uintptr(fd), "proc"), nil
}

// ended says whether the process has ended, or does so within the time. Unlike signal it knows of one that nobody has
// waited for yet.
func (p *hostProcess) ended(within time.Duration) bool {
	over := false
	p.control(func(fd int) { over, _ = readable(fd, within) })
	return over
}

// file is the pidfd.
func (p *hostProcess) file() *os.File { return p.fd }

func (p *hostProcess) signal(sig syscall.Signal) error {
	var sent error
	if err := p.control(func(fd int) { sent = unix.PidfdSendSignal(fd, sig, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(sent, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return sent
}

// control calls f with the descriptor. File.Fd would make it a blocking one.
func (p *hostProcess) control(f func(fd int)) error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { f(int(fd)) })
}

// readable reports whether a pidfd is, or becomes so in time: its process has ended then.
func readable(fd int, within time.Duration) (bool, error) {
	for end := time.Now().Add(within); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(within.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return n > 0, err
		}
		within = max(time.Until(end), 0)
	}
}

// wait waits for the end of the process. It costs no thread: the runtime's poller waits.
func (p *hostProcess) wait(ctx context.Context) error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { p.fd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	ended := false
	var polled error
	err = raw.Read(func(fd uintptr) bool {
		ended, polled = readable(int(fd), 0)
		return ended || polled != nil
	})
	switch {
	case ended:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("wait for a process: %w", errors.Join(err, polled))
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

// openIn opens a file below a directory of procfs.
func openIn(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
