package coracle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
)

// A Port publishes a port of the container on the host.
type Port struct {
	// Container is the port in the container, 1 to 65535.
	Container uint16
	// Protocol is "tcp", "udp" or "sctp". Empty means "tcp".
	Protocol string `json:",omitempty"`
	// Host is the port on the host. Zero means one that is free: see Container.Addr.
	Host uint16 `json:",omitempty"`
	// HostAddr is the address of the host that the port is published on. The zero Addr means 127.0.0.1, so that only the
	// host itself reaches it; 0.0.0.0 means all IPv4 addresses, and :: all IPv6 addresses.
	HostAddr netip.Addr `json:",omitzero"`
	// Count is how many ports follow each other, in the container and, unless Host is zero, on the host. Zero means one.
	Count uint16 `json:",omitempty"`
}

// A PublishedPort is a port of a running container on the host.
type PublishedPort struct {
	Container uint16
	Protocol  string
	Host      netip.AddrPort // 0.0.0.0 and :: mean all addresses
}

// String gives "127.0.0.1:8080->80/tcp".
func (p PublishedPort) String() string {
	return fmt.Sprintf("%v->%d/%s", p.Host, p.Container, p.Protocol)
}

func (p *Port) protocol() string { return cmp.Or(p.Protocol, "tcp") }

func (p *Port) hostAddr() netip.Addr {
	if p.HostAddr.IsValid() {
		return p.HostAddr.Unmap()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

func (p *Port) validate() error {
	n := int(max(p.Count, 1))
	switch {
	case p.Container == 0:
		return fmt.Errorf("the port 0 of a container is none")
	case !slices.Contains([]string{"tcp", "udp", "sctp"}, p.protocol()):
		return fmt.Errorf("the protocol %q is none of tcp, udp and sctp", p.Protocol)
	case int(p.Container)+n-1 > 65535 || p.Host != 0 && int(p.Host)+n-1 > 65535:
		return fmt.Errorf("%d ports from %d or %d: the last is 65535", n, p.Container, p.Host)
	case p.HostAddr.Zone() != "" || p.HostAddr.IsMulticast():
		return fmt.Errorf("the address %v is not one that a port can be published on", p.HostAddr)
	case p.hostAddr().Is6() && p.hostAddr().IsLoopback():
		return fmt.Errorf("the address ::1: the kernel forwards nothing from there: use 127.0.0.1")
	}
	return nil
}

// expand returns the single ports.
func (p *Port) expand() []PublishedPort {
	var list []PublishedPort
	for i := range max(p.Count, 1) {
		one := PublishedPort{Container: p.Container + i, Protocol: p.protocol(), Host: netip.AddrPortFrom(p.hostAddr(), 0)}
		if p.Host != 0 {
			one.Host = netip.AddrPortFrom(p.hostAddr(), p.Host+i)
		}
		list = append(list, one)
	}
	return list
}

// holdPorts binds a socket to each port, which keeps it from everybody else while the container runs, and settles those
// that are to be free ones. Nothing ever arrives there: the kernel forwards it to the container before.
func holdPorts(ports []Port) (held []*os.File, published []PublishedPort, err error) {
	defer func() {
		if err != nil {
			closeAll(held)
		}
	}()
	for i := range ports {
		for _, p := range ports[i].expand() {
			f, at, err := holdPort(p.Protocol, p.Host)
			if err != nil {
				return held, nil, fmt.Errorf("publish port %v: %w", p, err)
			}
			if f != nil {
				held = append(held, f)
			}
			p.Host = at
			published = append(published, p)
		}
	}
	return held, published, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Addr returns the address on the host that a port of the running container is published on, "127.0.0.1:32768" for
// example, with 127.0.0.1 or ::1 in place of all addresses. The network is "tcp", "udp" or "sctp"; empty means "tcp".
//
// The error matches ErrNotRunning if it is not running, and ErrInvalid if the port is not published.
func (c *Container) Addr(ctx context.Context, network string, port uint16) (netip.AddrPort, error) {
	addr, err := c.addr(cmp.Or(network, "tcp"), port)
	return addr, c.fail("find the address of", err)
}

func (c *Container) addr(network string, port uint16) (netip.AddrPort, error) {
	st, err := c.current()
	if err != nil {
		return netip.AddrPort{}, err
	}
	if st.Status != StatusRunning {
		return netip.AddrPort{}, ErrNotRunning
	}
	endpoints, err := c.eng.endpointsOf(st.ID)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for _, ep := range endpoints {
		for _, p := range ep.state.Ports {
			if p.Container != port || p.Protocol != network {
				continue
			}
			switch a := p.Host.Addr(); {
			case a == netip.IPv4Unspecified():
				return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.Host.Port()), nil
			case a == netip.IPv6Unspecified():
				return netip.AddrPortFrom(netip.IPv6Loopback(), p.Host.Port()), nil
			}
			return p.Host, nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("%w: the port %d/%s is not published: add it to the Ports of its spec", ErrInvalid, port, network)
}

// errPortInUse says that somebody else has the port.
func errPortInUse(err error) error {
	return fmt.Errorf("%w: another program, or another container, has it: %w", ErrInUse, err)
}

var errNoProtocol = errors.New("the kernel has no such sockets")
