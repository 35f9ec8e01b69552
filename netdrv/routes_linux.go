package netdrv

import (
	"bufio"
	"encoding/binary"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// HostRoutes returns the address ranges that the host uses: those that its routes (of all tables, but default routes) lead to, those
// of its addresses, and its resolvers' addresses. A new network may overlap none of them.
func HostRoutes() ([]netip.Prefix, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	seen := map[netip.Prefix]bool{}
	var used []netip.Prefix
	add := func(p netip.Prefix) {
		if a := p.Addr(); p.IsValid() && p.Bits() > 0 && !seen[p] && !a.IsMulticast() && !a.IsLinkLocalUnicast() {
			seen[p] = true
			used = append(used, p)
		}
	}
	routes, err := c.routes()
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		add(r.to)
	}
	addresses, err := c.addresses(0)
	if err != nil {
		return nil, kernelError("list the host's addresses", "", err)
	}
	for _, a := range addresses {
		add(a.Masked())
	}
	// systemd-resolved's own file has the real ones when /etc/resolv.conf leads to its stub.
	for _, file := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		for _, a := range resolvers(file) {
			add(netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return used, nil
}

// resolvers reads the name servers' addresses of a file.
func resolvers(file string) []netip.Addr {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	var list []netip.Addr
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) >= 2 && fields[0] == "nameserver" {
			if a, err := netip.ParseAddr(fields[1]); err == nil {
				list = append(list, a.WithZone("").Unmap())
			}
		}
	}
	return list
}

// A route leads to addresses by an interface; of several ways the first is told.
type route struct {
	to    netip.Prefix
	index int
	kind  uint8 // RTN_UNICAST
}

// routes lists those of all tables, both families.
func (c *conn) routes() ([]route, error) {
	var list []route
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		m := nl.NewRtMsg()
		m.RtMsg = unix.RtMsg{Family: family} // what is set would be a filter
		answers, err := c.dump(unix.RTM_GETROUTE, m)
		if err != nil {
			return nil, kernelError("list the host's routes", "", err)
		}
		for _, b := range answers {
			if r, ok := parseRoute(b); ok {
				list = append(list, r)
			}
		}
	}
	return list, nil
}

func parseRoute(b []byte) (route, bool) {
	if len(b) < unix.SizeofRtMsg {
		return route{}, false
	}
	to := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		to = netip.IPv6Unspecified()
	}
	r := route{kind: b[7]}
	attrs, err := nl.ParseRouteAttr(b[unix.SizeofRtMsg:])
	if err != nil {
		return r, false
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			if dst, ok := netip.AddrFromSlice(a.Value); ok {
				to = dst
			}
		case unix.RTA_OIF:
			r.index = int(binary.NativeEndian.Uint32(a.Value))
		case unix.RTA_MULTIPATH: // struct rtnexthop: length, flags, hops, interface
			if len(a.Value) >= unix.SizeofRtNexthop {
				r.index = int(binary.NativeEndian.Uint32(a.Value[4:]))
			}
		}
	}
	r.to = netip.PrefixFrom(to, int(b[1]))
	return r, r.to.IsValid()
}

// uplinks are the interfaces that default routes lead to.
func (c *conn) uplinks() []int {
	routes, err := c.routes()
	if err != nil {
		return nil
	}
	var list []int
	for _, r := range routes {
		if r.to.Bits() == 0 && r.kind == unix.RTN_UNICAST && r.index != 0 {
			list = append(list, r.index)
		}
	}
	return list
}
