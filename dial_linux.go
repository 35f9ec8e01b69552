package coracle

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/inroot"
)

// sockets makes an engine's sockets in network namespaces of containers: one at a time, which takes some microseconds,
// so that a thousand who dial do not make a thousand threads.
type sockets struct{ mu sync.Mutex }

// make calls create on a thread that has the network namespace of a process, and returns the socket that it made.
func (s *sockets) make(process *hostProcess, create func() (int, error)) (int, error) {
	type made struct {
		fd  int
		err error
	}
	result := make(chan made, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	onDoomedThread(func() {
		var m made
		entered := process.control(func(pidfd int) {
			if m.err = os.NewSyscallError("setns", unix.Setns(pidfd, unix.CLONE_NEWNET)); m.err == nil {
				m.fd, m.err = create()
			}
		})
		m.err = errors.Join(entered, m.err)
		result <- m
	})
	m := <-result
	if errors.Is(m.err, unix.ESRCH) {
		m.err = os.ErrProcessDone
	}
	return m.fd, m.err
}

// onDoomedThread calls f on a thread that runs nothing else before its end and nothing at all after: the goroutine ends
// without unlocking it, and the runtime destroys it. The main thread alone is never destroyed but kept for ever, so f is
// not called there.
func onDoomedThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		done := make(chan struct{})
		onDoomedThread(func() { // while this goroutine has the main thread, another one is not given it
			defer close(done)
			f()
		})
		<-done
		runtime.UnlockOSThread()
	}()
}

// dial connects to an address as seen by a process.
func (s *sockets) dial(ctx context.Context, process *hostProcess, pid int, a dialAddress) (net.Conn, error) {
	conn, err := s.connect(ctx, process, pid, a)
	if err != nil {
		return nil, notRunningIfDone(&net.OpError{Op: "dial", Net: a.network, Addr: a, Err: err})
	}
	return conn, nil
}

// socketKinds are families and types by network; of tcp and udp the family is that of the address.
var socketKinds = map[string]struct{ family, kind int }{
	"tcp": {0, unix.SOCK_STREAM}, "udp": {0, unix.SOCK_DGRAM},
	"unix": {unix.AF_UNIX, unix.SOCK_STREAM}, "unixgram": {unix.AF_UNIX, unix.SOCK_DGRAM}, "unixpacket": {unix.AF_UNIX, unix.SOCK_SEQPACKET},
}

func (s *sockets) connect(ctx context.Context, process *hostProcess, pid int, a dialAddress) (net.Conn, error) {
	kind := socketKinds[strings.TrimRight(a.network, "46")]
	switch {
	case kind.family != 0:
	case a.ip.Addr().Is4():
		kind.family = unix.AF_INET
	default:
		kind.family = unix.AF_INET6
	}
	var to unix.Sockaddr
	if a.path != "" && a.path[0] != '@' {
		// The descriptor is the name: the kernel follows it to the socket that it is of, and to nothing else.
		f, err := openSocket(ctx, process, pid, a.path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		to = &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))}
	}
	fd, err := s.make(process, func() (int, error) {
		fd, err := unix.Socket(kind.family, kind.kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, os.NewSyscallError("socket", err)
		}
		if to == nil {
			if to, err = a.sockaddr(fd); err != nil {
				unix.Close(fd)
				return -1, err
			}
		}
		return fd, nil
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "socket") // not blocking, so the runtime's poller waits for it
	defer f.Close()
	if err := connect(ctx, f, to); err != nil {
		return nil, err
	}
	return net.FileConn(f) // has a duplicate
}

// sockaddr is the address for the kernel. The socket is one of the namespace that a zone is looked up in.
func (a dialAddress) sockaddr(fd int) (unix.Sockaddr, error) {
	ip, port := a.ip.Addr(), int(a.ip.Port())
	switch {
	case a.path != "":
		return &unix.SockaddrUnix{Name: a.path}, nil
	case ip.Is4():
		return &unix.SockaddrInet4{Port: port, Addr: ip.As4()}, nil
	case ip.Zone() == "":
		return &unix.SockaddrInet6{Port: port, Addr: ip.As16()}, nil
	}
	if n, err := strconv.ParseUint(ip.Zone(), 10, 32); err == nil {
		return &unix.SockaddrInet6{Port: port, Addr: ip.As16(), ZoneId: uint32(n)}, nil
	}
	ifr, err := unix.NewIfreq(ip.Zone())
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr)
	}
	if err != nil {
		return nil, fmt.Errorf("find the interface %q: %w", ip.Zone(), err)
	}
	return &unix.SockaddrInet6{Port: port, Addr: ip.As16(), ZoneId: ifr.Uint32()}, nil
}

// connect connects a socket that does not block.
func connect(ctx context.Context, f *os.File, to unix.Sockaddr) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	begun := false
	var failed error
	err = raw.Write(func(fd uintptr) (done bool) {
		if !begun {
			begun = true
			switch err := unix.Connect(int(fd), to); err {
			case unix.EINPROGRESS, unix.EALREADY, unix.EINTR:
				return false
			case nil, unix.EISCONN:
				return true
			default:
				failed = err
				return true
			}
		}
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			failed = err
		case errno != 0 && errno != int(unix.EISCONN):
			failed = unix.Errno(errno)
		default:
			// The poller may have woken for what it knew before. Who has no peer is not connected.
			_, err := unix.Getpeername(int(fd))
			return err == nil
		}
		return true
	})
	switch {
	case failed != nil:
		return os.NewSyscallError("connect", failed)
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("wait for the connection: %w", err)
	}
	return nil
}

// openSocket finds a socket by its path in the root directory of a process. The way may lead through filesystems that a
// process of the container serves, or does not: nothing but the context bounds the wait.
func openSocket(ctx context.Context, process *hostProcess, pid int, path string) (*os.File, error) {
	root, err := process.openRoot(pid)
	if err != nil {
		return nil, err
	}
	type found struct {
		f   *os.File
		err error
	}
	result := make(chan found)
	go func() {
		defer root.Close()
		var o found
		o.f, o.err = inroot.OpenPath(int(root.Fd()), path)
		if o.err == nil {
			if info, err := o.f.Stat(); err == nil && info.Mode()&os.ModeSocket == 0 {
				o.f.Close()
				o.f, o.err = nil, &os.PathError{Op: "connect to", Path: path, Err: unix.ENOTSOCK}
			}
		}
		select {
		case result <- o:
		case <-ctx.Done():
			o.f.Close()
		}
	}()
	select {
	case o := <-result:
		return o.f, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
