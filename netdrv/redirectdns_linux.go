package netdrv

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// dnsAddress is where a container asks for names. The server is there too, on other ports, so that the container's own server
// can have port 53.
var dnsAddress = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// dnsTable is the table in a container's namespace.
func dnsTable(udpPort, tcpPort uint16) *tableSpec {
	t := &tableSpec{family: unix.NFPROTO_IPV4, name: tablePrefix + "dns", reason: "where questions about names go"}
	c := t.baseChain("output", "nat", unix.NF_INET_LOCAL_OUT, -100, "what the container sends")
	for _, p := range []struct {
		protocol value
		port     uint16
	}{{udp, udpPort}, {tcp, tcpPort}} {
		if p.port != 0 {
			c.rule("to the server, which is on another port", is(ip4Dest, address(dnsAddress)), is(l4proto, p.protocol), is(destPort, number(53)), dnatTo(netip.AddrPortFrom(dnsAddress, p.port)))
		}
	}
	return t
}

// RedirectDNS sends what programs in a namespace send to port 53 of 127.0.0.11 to other ports there. A second call replaces the first;
// port 0 is not redirected to.
func RedirectDNS(ns *Namespace, udpPort, tcpPort uint16) error {
	return ns.Do(func() error {
		nf, err := ns.netfilter()
		if err != nil {
			return err
		}
		messages, err := dnsTable(udpPort, tcpPort).replace()
		if err == nil {
			err = nf.batch(0, messages...)
		}
		return nfErr("redirect questions about names", err)
	})
}
