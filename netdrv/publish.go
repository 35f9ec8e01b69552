package netdrv

import (
	"net/netip"
	"strconv"
)

// A Port is a port of the host that leads to a container.
type Port struct {
	// Protocol is "tcp", "udp" or "sctp".
	Protocol string `json:"protocol"`
	// HostAddr is the host's address. Invalid or unspecified (0.0.0.0, ::): all addresses of the host that are of the family of Addr.
	HostAddr netip.Addr `json:"hostAddr,omitzero"`
	// HostPort is the host's port, 1 to 65535. Nobody chooses one for 0.
	HostPort uint16 `json:"hostPort"`
	// Addr is the container's address.
	Addr netip.Addr `json:"addr"`
	// Port is the container's port, 1 to 65535.
	Port uint16 `json:"port"`
}

// String writes the port as "tcp 0.0.0.0:8080 -> 10.88.0.7:80".
func (p Port) String() string {
	host := p.HostAddr
	if !host.IsValid() {
		host = netip.IPv4Unspecified()
		if p.Addr.Is6() {
			host = netip.IPv6Unspecified()
		}
	}
	return p.Protocol + " " + netip.AddrPortFrom(host, p.HostPort).String() + " -> " + netip.AddrPortFrom(p.Addr, p.Port).String()
}

// Range returns count ports that follow each other on both sides, the first of which is p: each is published on its own. A range
// that ends after 65535 is an [*InvalidError].
func (p Port) Range(count int) ([]Port, error) {
	if count < 1 || int(p.HostPort)+count-1 > 65535 || int(p.Port)+count-1 > 65535 {
		return nil, invalid("Port", p, "a range of "+strconv.Itoa(count)+" ports does not fit")
	}
	ports := make([]Port, count)
	for i := range ports {
		ports[i] = p
		ports[i].HostPort += uint16(i)
		ports[i].Port += uint16(i)
	}
	return ports, nil
}

// check finds what would make no sense on any machine.
func (p Port) check() error {
	switch {
	case p.Protocol != "tcp" && p.Protocol != "udp" && p.Protocol != "sctp":
		return invalid("Port.Protocol", p.Protocol, "it is tcp, udp or sctp")
	case p.HostPort == 0:
		return invalid("Port.HostPort", p, "it is from 1 to 65535")
	case p.Port == 0:
		return invalid("Port.Port", p, "it is from 1 to 65535")
	case !p.Addr.IsValid() || p.Addr.IsUnspecified() || p.Addr.Is4In6() || p.Addr.Zone() != "":
		return invalid("Port.Addr", p, "it is the address of a container")
	case p.HostAddr.IsValid() && !p.HostAddr.IsUnspecified() && (p.HostAddr.Is4() != p.Addr.Is4() || p.HostAddr.Is4In6() || p.HostAddr.Zone() != ""):
		return invalid("Port.HostAddr", p, "the host's address is of the same family as the container's, and has no zone")
	case p.HostAddr == netip.IPv6Loopback():
		return invalid("Port.HostAddr", p, "the kernel cannot send what is for ::1 elsewhere: a program has to serve it")
	}
	return nil
}

// A PortError says which port could not be published. It matches fs.ErrExist where the port is published already.
type PortError struct {
	Port Port
	Err  error
}

// Error names the port and the cause.
func (e *PortError) Error() string {
	return "netdrv: publish " + e.Port.String() + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *PortError) Unwrap() error { return e.Err }
