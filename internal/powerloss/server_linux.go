package powerloss

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// serverEnv makes the test binary the server of a disk; its value is the disk's size and its file's name.
const serverEnv = "CORACLE_POWERLOSS_SERVER"

// Descriptors of the server.
const (
	serverControl = 3 // socket to the test
	serverLog     = 4 // memfd
)

// Main is the server where the test binary was started as one, and returns at once otherwise. Call it first in TestMain.
func Main() {
	value := os.Getenv(serverEnv)
	if value == "" {
		return
	}
	if err := serve(value); err != nil {
		fmt.Fprintln(os.Stderr, "powerloss: the disk's server:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve mounts the filesystem, hands the mount to the test and answers both the kernel and the test until the test
// closes its end. It never touches the mount itself: it would wait for its own answer.
func serve(value string) error {
	var (
		size int64
		name string
	)
	if _, err := fmt.Sscan(value, &size, &name); err != nil {
		return err
	}
	rec, err := newRecorder(size, serverLog)
	if err != nil {
		return err
	}
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/fuse: %w", err)
	}
	mount, err := mountDetached("fuse", "source=powerloss", fmt.Sprintf("fd=%d", fuse), "rootmode=40000", "user_id=0", "group_id=0")
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(serverControl, []byte("ok"), unix.UnixRights(mount), nil, 0); err != nil {
		return fmt.Errorf("send the mount: %w", err)
	}
	unix.Close(mount)
	served := make(chan error, 1)
	go func() { served <- serveFUSE(fuse, name, rec) }()
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := unix.Read(serverControl, buf)
			if err == unix.EINTR {
				continue
			}
			if n <= 0 || err != nil {
				served <- nil // the test is done, or dead
				return
			}
			if err = rec.mark(buf[:n]); err == nil {
				_, err = unix.Write(serverControl, []byte("ok"))
			}
			if err != nil {
				served <- err
				return
			}
		}
	}()
	return <-served
}

// server is the running server as the test sees it.
type server struct {
	control int
	mount   int
	log     int
	stop    chan struct{}
	stopped chan error
}

func startServer(size int64, name string) (_ *server, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &server{control: -1, mount: -1, log: -1, stop: make(chan struct{}), stopped: make(chan error, 1)}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.log, err = unix.MemfdCreate("powerloss-log", unix.MFD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	s.control = pair[0]
	theirs := os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	logFD, err := unix.FcntlInt(uintptr(s.log), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	logFile := os.NewFile(uintptr(logFD), "log")
	defer logFile.Close()

	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", serverEnv, size, name))
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs, logFile}
	// The signal comes when the thread ends that started the server: this one does nothing else, and so is never stuck
	// in the disk when the test is killed.
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := cmd.Start()
		started <- err
		if err != nil {
			s.stopped <- nil
			return
		}
		<-s.stop
		s.stopped <- cmd.Wait()
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start the disk's server: %w", err)
	}
	theirs.Close()
	buf, oob := make([]byte, 16), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(s.control, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		return nil, fmt.Errorf("the disk's server did not start: %w", errors.Join(err, unix.ECONNRESET))
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("the disk's server sent no mount: %w", errors.Join(err, unix.EBADMSG))
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return nil, err
	}
	s.mount = fds[0]
	return s, nil
}

// mark appends a mark to the log, after all writes and flushes that were answered before.
func (s *server) mark(name string) error {
	if _, err := unix.Write(s.control, []byte(name)); err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	var buf [16]byte
	for {
		n, err := unix.Read(s.control, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("mark: the disk's server is gone: %w", errors.Join(err, unix.ECONNRESET))
		}
		return nil
	}
}

// close ends the server. Nothing may use the disk any more.
func (s *server) close() error {
	for _, fd := range []*int{&s.mount, &s.control, &s.log} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
	select {
	case <-s.stop:
		return nil
	default:
		close(s.stop)
		return <-s.stopped
	}
}

// logged is the size of the log.
func (s *server) logged() int64 {
	var st unix.Stat_t
	if err := unix.Fstat(s.log, &st); err != nil {
		return 0
	}
	return st.Size
}
