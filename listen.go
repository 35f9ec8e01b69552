package coracle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Listen listens inside the container's network namespace, whoever runs the container: its processes reach what the
// program serves there, on the container's own 127.0.0.1 for example, and nobody else does. It has the shape of
// net.ListenConfig.Listen.
//
// The networks are "tcp", "tcp4", "tcp6", "unix" and "unixpacket". A host is an IP address of the container, "localhost",
// which stands for 127.0.0.1 (for "tcp6" ::1), or nothing: all addresses, which for "tcp" are those of both families. Port 0
// is one that is free. A unix address that begins with "@" is in the abstract namespace, which belongs to the network
// namespace; any other is a path in the container, never one of the host. Its directory exists, the last element is at most
// 105 bytes long and does not exist; every process of the container may connect to it, and it is removed when the listener
// is closed, but not if the program is killed.
//
// The listener ends with the container: it is closed when its first process has ended or the engine is closed, and Accept
// returns an error that matches net.ErrClosed and ErrNotRunning or ErrClosed. Connections do not end: each of them, as of
// those that DialContext makes, keeps the container's network namespace until it is closed.
//
// The listener has the method SetDeadline of *net.TCPListener too.
//
// The error matches ErrNotRunning if the container is not running, ErrInvalid if network or address make no sense,
// errors.ErrUnsupported for a host name, fs.ErrNotExist if a path has no directory, that of ctx if it is done first, and
// otherwise the errno of the kernel: syscall.EADDRINUSE, or syscall.EADDRNOTAVAIL if the container does not have the address.
func (c *Container) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	l, err := c.listen(ctx, network, address)
	if err != nil {
		return nil, c.fail("listen in", err)
	}
	return l, nil
}

// ListenPacket is Listen for the networks "udp", "udp4", "udp6" and "unixgram". What ReadFrom and WriteTo return after the
// container's end is what Accept returns. Datagrams that were not read by then are lost.
//
// The connection has the methods SetReadBuffer, SetWriteBuffer and SyscallConn of *net.UDPConn too.
func (c *Container) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	l, err := c.listenPacket(ctx, network, address)
	if err != nil {
		return nil, c.fail("listen in", err)
	}
	return l, nil
}

func (c *Container) listen(ctx context.Context, network, address string) (net.Listener, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix", "unixpacket":
	default:
		return nil, fmt.Errorf("%w: %w", ErrInvalid, net.UnknownNetworkError(network))
	}
	l := &listener{}
	err := c.bind(ctx, network, address, &l.lifetime, func(f *os.File) (_ io.Closer, err error) {
		l.Listener, err = net.FileListener(f)
		return l.Listener, err
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (c *Container) listenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	switch network {
	case "udp", "udp4", "udp6", "unixgram":
	default:
		return nil, fmt.Errorf("%w: %w", ErrInvalid, net.UnknownNetworkError(network))
	}
	p := &packetConn{}
	err := c.bind(ctx, network, address, &p.lifetime, func(f *os.File) (_ io.Closer, err error) {
		p.PacketConn, err = net.FilePacketConn(f)
		return p.PacketConn, err
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// A boundSocket is one that has its address. For a path there are an address and a function that removes what is there.
type boundSocket struct {
	file    *os.File
	address net.Addr // nil: the one that the kernel tells
	remove  func()
}

// bind makes a socket in the container and begins its life. Adopt makes what the program gets, of a duplicate.
func (c *Container) bind(ctx context.Context, network, address string, l *lifetime, adopt func(*os.File) (io.Closer, error)) error {
	ctx, done, err := c.eng.begin(ctx)
	if err != nil {
		return err
	}
	defer done() // from then on Close finds it
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	a, err := parseListenAddress(ctx, network, address)
	if err != nil {
		return err
	}
	process, st, err := c.openFirst()
	if err != nil {
		return err
	}
	bound, err := c.eng.sockets.listen(ctx, process, st.PID, a)
	if err != nil {
		if process.ended(0) {
			err = fmt.Errorf("%w: it has just ended: %w", ErrNotRunning, err)
		}
		process.close()
		return err
	}
	socket, err := adopt(bound.file)
	bound.file.Close()
	if err != nil {
		bound.remove()
		process.close()
		return err
	}
	watching, stop := context.WithCancel(context.Background())
	l.container, l.socket, l.bound, l.stop, l.watched = c, socket, bound, stop, make(chan struct{})
	c.eng.listeners.add(l) // from now on others may end it
	go func() {
		defer close(l.watched)
		defer process.close()
		err := process.wait(watching)
		if err == nil {
			err = ErrNotRunning
		}
		l.end(err)
	}()
	return nil
}

// A lifetime ends a socket with the container: it would keep the network namespace, and with it the container's
// interfaces and addresses.
type lifetime struct {
	container *Container
	socket    io.Closer
	bound     *boundSocket
	stop      context.CancelFunc
	watched   chan struct{} // closed when the watcher has ended

	once   sync.Once
	mu     sync.Mutex
	reason error // why it was closed, if the program did not
}

// end closes the socket for a reason; nil is the program's wish. It reports whether it was the first to do so.
func (l *lifetime) end(reason error) (first bool, err error) {
	l.once.Do(func() {
		l.mu.Lock()
		l.reason = reason
		l.mu.Unlock()
		l.bound.remove()
		first, err = true, l.socket.Close()
		l.container.eng.listeners.remove(l)
		l.stop()
	})
	return first, err
}

// close is the program's Close. It is no error that the container's end came before.
func (l *lifetime) close() error {
	first, err := l.end(nil)
	<-l.watched
	if first || l.why() != nil {
		return err
	}
	return l.container.fail("stop listening in", net.ErrClosed)
}

func (l *lifetime) why() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reason
}

// explain says of an error of the socket that the container's end is its reason.
func (l *lifetime) explain(err error) error {
	if reason := l.why(); err != nil && reason != nil && errors.Is(err, net.ErrClosed) {
		return l.container.fail("listen in", fmt.Errorf("%w: %w", reason, err))
	}
	return err
}

// addr is the address that the program has given for a path, and otherwise the one that the kernel tells.
func (l *lifetime) addr(told net.Addr) net.Addr {
	if l.bound.address != nil {
		return l.bound.address
	}
	return told
}

// listener is what Listen returns.
type listener struct {
	net.Listener
	lifetime lifetime
}

func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return conn, l.lifetime.explain(err)
}

// SetDeadline is what *net.TCPListener and *net.UnixListener have beside the methods of net.Listener.
func (l *listener) SetDeadline(t time.Time) error {
	return l.Listener.(interface{ SetDeadline(time.Time) error }).SetDeadline(t)
}

func (l *listener) Close() error   { return l.lifetime.close() }
func (l *listener) Addr() net.Addr { return l.lifetime.addr(l.Listener.Addr()) }

// packetConn is what ListenPacket returns.
type packetConn struct {
	net.PacketConn
	lifetime lifetime
}

func (p *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := p.PacketConn.ReadFrom(b)
	return n, from, p.lifetime.explain(err)
}

func (p *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	n, err := p.PacketConn.WriteTo(b, to)
	return n, p.lifetime.explain(err)
}

func (p *packetConn) Close() error        { return p.lifetime.close() }
func (p *packetConn) LocalAddr() net.Addr { return p.lifetime.addr(p.PacketConn.LocalAddr()) }

// socketOptions are what *net.UDPConn and *net.UnixConn have beside the methods of net.PacketConn.
type socketOptions interface {
	SetReadBuffer(bytes int) error
	SetWriteBuffer(bytes int) error
	SyscallConn() (syscall.RawConn, error)
}

func (p *packetConn) SetReadBuffer(bytes int) error {
	return p.PacketConn.(socketOptions).SetReadBuffer(bytes)
}

func (p *packetConn) SetWriteBuffer(bytes int) error {
	return p.PacketConn.(socketOptions).SetWriteBuffer(bytes)
}

func (p *packetConn) SyscallConn() (syscall.RawConn, error) {
	return p.PacketConn.(socketOptions).SyscallConn()
}

// listeners are those that an engine has open.
type listeners struct {
	mu   sync.Mutex
	open map[*lifetime]struct{}
}

func (ls *listeners) add(l *lifetime) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.open == nil {
		ls.open = make(map[*lifetime]struct{})
	}
	ls.open[l] = struct{}{}
}

func (ls *listeners) remove(l *lifetime) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	delete(ls.open, l)
}

// end closes those of a container that has ended, without waiting for their watchers to find out.
func (ls *listeners) end(id string) {
	for _, l := range ls.of(func(l *lifetime) bool { return l.container.id == id }) {
		l.end(ErrNotRunning)
	}
}

// close closes all, as the engine is closed.
func (ls *listeners) close() {
	for _, l := range ls.of(func(*lifetime) bool { return true }) {
		l.end(ErrClosed)
		<-l.watched
	}
}

func (ls *listeners) of(match func(*lifetime) bool) []*lifetime {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	var list []*lifetime
	for l := range ls.open {
		if match(l) {
			list = append(list, l)
		}
	}
	return list
}

// A listenAddress is an address that a socket can be bound to.
type listenAddress struct {
	dialAddress
	both  bool // all addresses of both families, if there are two
	only6 bool // and those of IPv4 are somebody else's
}

// parseListenAddress follows net.Listen.
func parseListenAddress(ctx context.Context, network, address string) (listenAddress, error) {
	if strings.HasPrefix(network, "unix") {
		list, err := parseDialAddress(ctx, network, address)
		if err != nil {
			return listenAddress{}, err
		}
		a := listenAddress{dialAddress: list[0]}
		if address[0] != '@' {
			if _, name := splitPath(address); name == "" || len(name) > maxSocketName {
				return listenAddress{}, fmt.Errorf("%w: %q has no last element that can be made", ErrInvalid, address)
			}
		}
		return a, nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return listenAddress{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	version := strings.TrimLeft(network, "tcpud")
	a := listenAddress{only6: version == "6"}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.Unmap().IsUnspecified() && version == "" {
		host = "::"
		if version == "4" {
			host = "0.0.0.0"
		}
		a.both = version == ""
		address = net.JoinHostPort(host, address[strings.LastIndexByte(address, ':')+1:])
	}
	list, err := parseDialAddress(ctx, network, address)
	a.dialAddress = append(list, dialAddress{})[0]
	return a, err
}

// maxSocketName leaves room for "./" in a sockaddr_un.
const maxSocketName = maxUnixPath - 2

// splitPath returns directory and name of a path in a container. The name is empty if it would be no new one.
func splitPath(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	dir, name = path[:i+1], path[i+1:]
	if name == "." || name == ".." {
		name = ""
	}
	return "/" + dir, name
}

// removalPatience is how long closing a socket waits until its path is removed: the filesystem may be one that nobody
// serves any more.
const removalPatience = time.Second
