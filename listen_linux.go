package coracle

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/inroot"
)

// backlog is more than a queue may be: the kernel makes it net.core.somaxconn of the namespace.
const backlog = 1<<16 - 1

// socketMode is the mode of a socket that has a path: connecting takes the right to write.
const socketMode = 0o666

// listen makes a socket that has an address as seen by a process, and listens if it is one of streams.
func (s *sockets) listen(ctx context.Context, process *hostProcess, pid int, a listenAddress) (*boundSocket, error) {
	b, err := s.bind(ctx, process, pid, a)
	if err != nil {
		return nil, notRunningIfDone(&net.OpError{Op: "listen", Net: a.network, Addr: a, Err: err})
	}
	return b, nil
}

func (s *sockets) bind(ctx context.Context, process *hostProcess, pid int, a listenAddress) (_ *boundSocket, err error) {
	kind := socketKinds[strings.TrimRight(a.network, "46")]
	switch {
	case kind.family != 0:
	case a.ip.Addr().Is4():
		kind.family = unix.AF_INET
	default:
		kind.family = unix.AF_INET6
	}
	hasPath := a.path != "" && a.path[0] != '@'
	fd, err := s.make(process, func() (int, error) {
		fd, err := unix.Socket(kind.family, kind.kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err == unix.EAFNOSUPPORT && a.both {
			kind.family, a.ip = unix.AF_INET, netip.AddrPortFrom(netip.IPv4Unspecified(), a.ip.Port())
			fd, err = unix.Socket(kind.family, kind.kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		}
		if err != nil {
			return -1, os.NewSyscallError("socket", err)
		}
		if err := setListenOptions(fd, kind.family, kind.kind, a.only6); err != nil {
			unix.Close(fd)
			return -1, err
		}
		if hasPath {
			return fd, nil
		}
		to, err := a.sockaddr(fd)
		if err == nil {
			err = os.NewSyscallError("bind", unix.Bind(fd, to))
		}
		if err == nil && kind.kind != unix.SOCK_DGRAM {
			err = os.NewSyscallError("listen", unix.Listen(fd, backlog))
		}
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
		return fd, nil
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "socket") // not blocking, so the runtime's poller waits for it
	if !hasPath {
		return &boundSocket{file: f, remove: func() {}}, nil
	}
	return bindPath(ctx, process, pid, f, kind.kind, a)
}

// setListenOptions sets what package net sets.
func setListenOptions(fd, family, kind int, only6 bool) error {
	set := func(level, option, value int) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, option, value))
	}
	if family == unix.AF_UNIX {
		return nil
	}
	if family == unix.AF_INET6 {
		value := 0
		if only6 {
			value = 1
		}
		if err := set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, value); err != nil {
			return err
		}
	}
	if kind == unix.SOCK_DGRAM {
		return set(unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	}
	return set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
}

// bindPath gives a socket a path in the root directory of a process. The directory is found as openSocket finds a socket;
// the name is made by a thread that has it as its working directory, and a name that is there, be it a link, is an error.
// Nothing but the context bounds the wait: a filesystem may be served by the container. Then the socket goes when the
// filesystem lets go of it.
func bindPath(ctx context.Context, process *hostProcess, pid int, f *os.File, kind int, a listenAddress) (*boundSocket, error) {
	root, err := process.openRoot(pid)
	if err != nil {
		f.Close()
		return nil, err
	}
	dir, name := splitPath(a.path)
	type result struct {
		dir  *os.File
		made unix.Stat_t
		err  error
	}
	results := make(chan result)
	onDoomedThread(func() {
		defer root.Close()
		var r result
		if r.dir, r.err = inroot.OpenPath(int(root.Fd()), dir); r.err == nil {
			r.made, r.err = bindIn(r.dir, name, f, kind)
			if r.err != nil {
				r.dir.Close()
			}
		}
		select {
		case results <- r:
		case <-ctx.Done():
			if r.err == nil {
				removeSocket(r.dir, name, r.made)
			}
			f.Close()
		}
	})
	select {
	case r := <-results:
		if r.err != nil {
			f.Close()
			return nil, r.err
		}
		address := &net.UnixAddr{Net: a.network, Name: path.Join("/", a.path)}
		return &boundSocket{file: f, address: address, remove: func() {
			removed := make(chan struct{})
			go func() {
				defer close(removed)
				removeSocket(r.dir, name, r.made)
			}()
			select {
			case <-removed:
			case <-time.After(removalPatience):
			}
		}}, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// bindIn binds the socket to a name in a directory. The calling thread ends soon: its working directory and its umask
// become others.
func bindIn(dir *os.File, name string, f *os.File, kind int) (made unix.Stat_t, err error) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return made, os.NewSyscallError("unshare", err)
	}
	if err := unix.Fchdir(int(dir.Fd())); err != nil {
		return made, &os.PathError{Op: "bind in", Path: dir.Name(), Err: err}
	}
	unix.Umask(0o777 &^ socketMode)
	relative := name
	if name[0] == '@' {
		relative = "./" + name // else it were an abstract one
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return made, err
	}
	controlled := raw.Control(func(fd uintptr) {
		if err = os.NewSyscallError("bind", unix.Bind(int(fd), &unix.SockaddrUnix{Name: relative})); err != nil {
			return
		}
		if err = os.NewSyscallError("stat", unix.Fstatat(int(dir.Fd()), name, &made, unix.AT_SYMLINK_NOFOLLOW)); err == nil && kind != unix.SOCK_DGRAM {
			err = os.NewSyscallError("listen", unix.Listen(int(fd), backlog))
		}
		if err != nil {
			unix.Unlinkat(int(dir.Fd()), name, 0)
		}
	})
	if controlled != nil {
		err = controlled
	}
	return made, err
}

// removeSocket removes what was made, unless something else has its name by now, and closes the directory.
func removeSocket(dir *os.File, name string, made unix.Stat_t) {
	defer dir.Close()
	var now unix.Stat_t
	if unix.Fstatat(int(dir.Fd()), name, &now, unix.AT_SYMLINK_NOFOLLOW) == nil && now.Dev == made.Dev && now.Ino == made.Ino {
		unix.Unlinkat(int(dir.Fd()), name, 0)
	}
}
