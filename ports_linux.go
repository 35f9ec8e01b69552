package coracle

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// holdPort binds a socket, and returns it with the address that it has. Where the kernel has no sockets of the protocol,
// nobody can take the port, and there is nothing to hold; a port has to be named then.
func holdPort(protocol string, at netip.AddrPort) (*os.File, netip.AddrPort, error) {
	kind, proto := unix.SOCK_STREAM, unix.IPPROTO_TCP
	switch protocol {
	case "udp":
		kind, proto = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	case "sctp":
		proto = unix.IPPROTO_SCTP
	}
	family := unix.AF_INET
	if at.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
	if errors.Is(err, unix.EPROTONOSUPPORT) && protocol == "sctp" && at.Port() != 0 {
		return nil, at, nil
	}
	if err != nil {
		return nil, at, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("port %v/%s", at, protocol))
	fail := func(err error) (*os.File, netip.AddrPort, error) {
		f.Close()
		return nil, at, err
	}
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(at.Port()), Addr: to4(at.Addr())}
	if family == unix.AF_INET6 {
		sa = &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fail(os.NewSyscallError("setsockopt", err))
		}
	}
	switch err := unix.Bind(fd, sa); {
	case errors.Is(err, unix.EADDRINUSE):
		return fail(errPortInUse(os.NewSyscallError("bind", err)))
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fail(fmt.Errorf("%w: the host does not have the address: %w", ErrInvalid, os.NewSyscallError("bind", err)))
	case err != nil:
		return fail(os.NewSyscallError("bind", err))
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return fail(os.NewSyscallError("getsockname", err))
	}
	switch b := bound.(type) {
	case *unix.SockaddrInet4:
		return f, netip.AddrPortFrom(at.Addr(), uint16(b.Port)), nil
	case *unix.SockaddrInet6:
		return f, netip.AddrPortFrom(at.Addr(), uint16(b.Port)), nil
	}
	return fail(errNoProtocol)
}

func to4(a netip.Addr) (b [4]byte) {
	if a.Is4() {
		b = a.As4()
	}
	return b
}
