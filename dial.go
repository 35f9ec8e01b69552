package coracle

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/coracle-dev/coracle/internal/firstprocess"
)

// DialContext connects to an address inside the container's network namespace, whoever runs the container: to what a
// process of it listens on, on its own 127.0.0.1 for example, without a published port. It has the shape of
// net.Dialer.DialContext and fits into an http.Transport and most drivers of databases.
//
// The networks are "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6", "unix", "unixgram" and "unixpacket". A host is an IP
// address, where "localhost" or nothing stands for 127.0.0.1 and then ::1; other names are not resolved at present. The
// zone of an IPv6 address is an interface of the container. A unix address that begins with "@" is in the abstract
// namespace, which belongs to the network namespace; any other is a path in the container, never one of the host.
//
// Only the socket is made in the container's namespace: no other goroutine ever runs there. The connection does not end
// with the container's process, as what that has sent is still to be read, but nobody answers any more. Close it then: as
// long as it is open, it keeps the network namespace and its interfaces and addresses.
//
// The error matches ErrNotRunning if the container is not running, ErrInvalid if network or address make no sense,
// errors.ErrUnsupported for a host name, that of ctx if it is done first, and otherwise the errno of the kernel:
// syscall.ECONNREFUSED if nobody listens.
func (c *Container) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := c.dial(ctx, network, address)
	if err != nil {
		return nil, c.fail("dial in", err)
	}
	return conn, nil
}

// Dial is DialContext without an end but that of the kernel's patience, which may be minutes.
func (c *Container) Dial(network, address string) (net.Conn, error) {
	return c.DialContext(context.Background(), network, address)
}

func (c *Container) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	addresses, err := parseDialAddress(ctx, network, address)
	if err != nil {
		return nil, err
	}
	process, st, err := c.openFirst()
	if err != nil {
		return nil, err
	}
	defer process.close()
	var first error
	for _, a := range addresses {
		conn, err := c.eng.sockets.dial(ctx, process, st.PID, a)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	if process.ended(0) {
		return nil, fmt.Errorf("%w: it has just ended: %w", ErrNotRunning, first)
	}
	return nil, first
}

// openFirst opens the first process of the container that runs. The caller closes it.
func (c *Container) openFirst() (*hostProcess, *containerState, error) {
	st, err := c.current()
	if err != nil {
		return nil, nil, err
	}
	if st.Status != StatusRunning {
		return nil, nil, ErrNotRunning
	}
	p, err := openProcess(st.PID, st.BootID, st.StartTime)
	if err == nil && p.ended(0) {
		p.close()
		err = os.ErrProcessDone
	}
	if err != nil {
		return nil, nil, notRunningIfDone(err)
	}
	return p, st, nil
}

// notRunningIfDone says of a container what the error of its process says.
func notRunningIfDone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return ErrNotRunning
	}
	return err
}

func init() {
	firstprocess.Open = func(container any) (*os.File, error) {
		c := container.(*Container)
		p, st, err := c.openFirst()
		if err != nil {
			return nil, err
		}
		defer p.close()
		dir, err := p.openDir(st.PID)
		return dir, notRunningIfDone(err)
	}
}

// A dialAddress is an address that a socket can be connected to.
type dialAddress struct {
	network string         // one of DialContext's
	ip      netip.AddrPort // or
	path    string         // of a unix socket
}

// Network and String make it a net.Addr.
func (a dialAddress) Network() string { return a.network }

func (a dialAddress) String() string {
	if a.ip.IsValid() {
		return a.ip.String()
	}
	return a.path
}

// maxUnixPath is the room for an abstract name in a sockaddr_un, the zero byte in front of it left out.
const maxUnixPath = 107

// parseDialAddress returns the addresses to try, in their order.
func parseDialAddress(ctx context.Context, network, address string) ([]dialAddress, error) {
	switch network {
	case "unix", "unixgram", "unixpacket":
		abstract := strings.HasPrefix(address, "@")
		if address == "" || strings.ContainsRune(address, 0) || abstract && (len(address) == 1 || len(address) > maxUnixPath+1) {
			return nil, fmt.Errorf("%w: %q is no address of a unix socket", ErrInvalid, address)
		}
		return []dialAddress{{network: network, path: address}}, nil
	case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6":
	default:
		return nil, fmt.Errorf("%w: %w", ErrInvalid, net.UnknownNetworkError(network))
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	port, err := net.DefaultResolver.LookupPort(ctx, network, service)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	candidates := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	if host != "" && host != "localhost" {
		ip, err := netip.ParseAddr(host)
		if err != nil {
			return nil, &UnsupportedError{Feature: fmt.Sprintf("resolving %q in a container", host), Fix: "dial an IP address or localhost"}
		}
		candidates = []netip.Addr{ip.Unmap()}
	}
	var list []dialAddress
	for _, ip := range candidates {
		if strings.HasSuffix(network, "4") && !ip.Is4() || strings.HasSuffix(network, "6") && !ip.Is6() {
			continue
		}
		list = append(list, dialAddress{network: network, ip: netip.AddrPortFrom(ip, uint16(port))})
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: %s is no address of %s", ErrInvalid, host, network)
	}
	return list, nil
}
