package netdrv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// spoofTable is the table that keeps containers from sending with others' addresses. It looks at frames where they come
// from the host's end of a container's interface, before the bridge learns anything from them.
func spoofTable(n *Network) *tableSpec {
	t := &tableSpec{family: unix.NFPROTO_BRIDGE, name: tableName(n), reason: "whose addresses containers of network " + clip(n.Name, 60) + " have"}
	t.set("ports", "host's ends of the containers' interfaces", []nfType{typeIfname}, nil)
	t.set("macs", "hardware addresses by host's end", []nfType{typeIfname, typeEther}, nil)
	t.set("sources4", "IPv4 addresses by host's end and hardware address", []nfType{typeIfname, typeEther, typeIP4}, nil)
	t.set("sources6", "IPv6 addresses by host's end and hardware address", []nfType{typeIfname, typeEther, typeIP6}, nil)
	t.set("loops", "host's ends, each with itself", []nfType{typeIfname, typeIfname}, nil)

	pre := t.baseChain("prerouting", "filter", unix.NF_INET_PRE_ROUTING, -300, "frames, before the bridge sees them")
	pre.rule("from a container of the network", in("ports", iifname), goTo("check"))

	input := t.baseChain("input", "filter", unix.NF_INET_LOCAL_IN, -300, "frames to the host")
	input.rule("what is meant for the next switch is not for the host (LACP, 802.1X); it passes prerouting by",
		is(etherDest, linkLocal), in("ports", iifname), drop)

	forward := t.baseChain("forward", "filter", unix.NF_INET_FORWARD, -300, "frames from port to port")
	forward.rule("ports are in hairpin mode for published ports, not for broadcasts to come back",
		is(etherDest, group), in("loops", iifname, oifname), drop)

	check := t.chain("check", "what containers may send")
	check.rule("ARP", is(etherType, etherARP), goTo("arp"))
	check.rule("IPv4", is(etherType, etherIP), goTo("ip4"))
	check.rule("IPv6", is(etherType, etherIP6), goTo("ip6"))
	check.rule("nothing else: no tags of VLANs, no spanning tree", drop)

	arp := t.chain("arp", "who has which IPv4 address")
	arp.rule("not Ethernet and IPv4", not(arpHeader, arpForIP4), drop)
	arp.rule("about its own address", in("sources4", iifname, arpMAC, arpIP), in("macs", iifname, etherSource), accept)
	arp.rule("a probe: who sends it has no address yet (RFC 5227, section 2.1.1)",
		is(arpOperation, arpRequest), is(arpIP, address(netip.IPv4Unspecified())), in("macs", iifname, arpMAC), in("macs", iifname, etherSource), accept)
	arp.rule("somebody else's", drop)

	ip4 := t.chain("ip4", "IPv4 packets")
	ip4.rule("answers of a DHCP server", is(l4proto, udp), is(sourcePort, number(67)), is(destPort, number(68)), drop)
	ip4.rule("from its own address", in("sources4", iifname, etherSource, ip4Source), accept)
	ip4.rule("from somebody else's", drop)

	ip6 := t.chain("ip6", "IPv6 packets")
	ip6.rule("what says who and where routers and neighbours are", is(l4proto, icmp6), goTo("icmp6"))
	ip6.rule("answers of a DHCP server", is(l4proto, udp), is(sourcePort, number(547)), is(destPort, number(546)), drop)
	// l4proto has no value, and the rule does not match, where the headers cannot be followed to their end.
	ip6.rule("from its own address, with headers that can be followed", not(l4proto, icmp6), in("sources6", iifname, etherSource, ip6Source), accept)
	ip6.rule("from somebody else's", drop)

	icmp := t.chain("icmp6", "ICMPv6 packets")
	icmp.rule("no container is a router", is(icmp6Type, ndRouterAdvertisement), drop)
	icmp.rule("nor tells others of one", is(icmp6Type, ndRedirect), drop)
	icmp.rule("about its own address", is(icmp6Type, ndNeighbourAdvertisement), in("sources6", iifname, etherSource, icmp6Target),
		in("sources6", iifname, etherSource, ip6Source), accept)
	icmp.rule("about somebody else's", is(icmp6Type, ndNeighbourAdvertisement), drop)
	icmp.rule("looking for duplicates of its address (RFC 4862, section 5.4.2)", is(icmp6Type, ndNeighbourSolicitation),
		is(ip6Source, address(netip.IPv6Unspecified())), in("macs", iifname, etherSource), accept)
	icmp.rule("from its own address", in("sources6", iifname, etherSource, ip6Source), accept)
	icmp.rule("from somebody else's", drop)
	return t
}

// sourceElement is one of an endpoint's elements.
type sourceElement struct {
	set string
	nfElement
}

// sources are an endpoint's elements.
func sources(ep *Endpoint) []sourceElement {
	port := ifname(ep.HostInterface)
	why := "container " + ep.ID[:min(len(ep.ID), 12)]
	es := []sourceElement{
		{"ports", nfElement{key: key(port), reason: why}},
		{"loops", nfElement{key: key(port, port), reason: why}},
		{"macs", nfElement{key: key(port, ep.MAC), reason: why}},
		{"sources6", nfElement{key: key(port, ep.MAC, linkLocalOf(ep.MAC).AsSlice()), reason: why}},
	}
	for _, p := range ep.Addresses {
		set := "sources4"
		if p.Addr().Is6() {
			set = "sources6"
		}
		if a := p.Addr(); a != linkLocalOf(ep.MAC) {
			es = append(es, sourceElement{set, nfElement{key: key(port, ep.MAC, a.AsSlice()), reason: why}})
		}
	}
	return es
}

// linkLocalOf is the address that an interface gives itself (RFC 4291, appendix A).
func linkLocalOf(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// Endpoints whose elements go in one batch.
const sourcesBatch = 500

// guardSources says which addresses endpoints may send from. Until then an interface is not checked, so it is done before there
// is one. What was said before stays.
func (f *nftFirewall) guardSources(ctx context.Context, n *Network, eps []*Endpoint) error {
	f.remember(n, eps...)
	err := f.addSources(ctx, n, eps)
	if errors.Is(err, unix.ENOENT) { // somebody removed the table
		f.log.Warn("somebody removed the tables of a network", "network", n.Name)
		if err = f.firewallUp(ctx, n); err == nil {
			err = f.addSources(ctx, n, eps)
		}
	}
	return err
}

func (f *nftFirewall) addSources(ctx context.Context, n *Network, eps []*Endpoint) error {
	return f.eachSources(ctx, n, eps, func(t *tableSpec, es []sourceElement) error {
		messages := make([]nfMessage, len(es))
		for i, e := range es {
			messages[i] = t.addElement(e.set, e.nfElement, 0, e.reason)
		}
		return nfErr("guard the addresses of containers of network "+n.Name, f.nf.batch(0, messages...))
	})
}

// forgetSources takes back what guardSources said. What is not there is no error.
func (f *nftFirewall) forgetSources(ctx context.Context, n *Network, eps []*Endpoint) error {
	op := "forget the addresses of containers of network " + n.Name
	f.forget(n, eps)
	if err := f.healOf(n, eps); err != nil {
		return err
	}
	return f.eachSources(ctx, n, eps, func(t *tableSpec, es []sourceElement) error {
		messages := make([]nfMessage, len(es))
		for i, e := range es {
			messages[i] = t.removeElement(e.set, e.key, e.reason)
		}
		return nfErr(op, f.nf.batchPresent(messages))
	})
}

// eachSources calls do for the elements of some endpoints at a time.
func (f *nftFirewall) eachSources(ctx context.Context, n *Network, eps []*Endpoint, do func(*tableSpec, []sourceElement) error) error {
	if n.Options["spoofcheck"] == "off" {
		return nil
	}
	t := &tableSpec{family: unix.NFPROTO_BRIDGE, name: tableName(n)}
	for len(eps) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		some := eps[:min(len(eps), sourcesBatch)]
		eps = eps[len(some):]
		var es []sourceElement
		for _, ep := range some {
			if len(ep.MAC) != 6 || ep.HostInterface == "" || len(ep.HostInterface) > 15 {
				return invalid("Endpoint", fmt.Sprintf("%s %s", ep.HostInterface, ep.MAC), "it has no host's end, or no hardware address")
			}
			es = append(es, sources(ep)...)
		}
		if err := do(t, es); err != nil {
			return err
		}
	}
	return nil
}

// batchPresent removes elements of which some may not be there: the kernel then names these and removes none.
func (c *nfConn) batchPresent(messages []nfMessage) error {
	for len(messages) > 0 {
		err := c.batch(0, messages...)
		var failed nfErrors
		if !errors.As(err, &failed) {
			return err
		}
		missing := map[int]bool{}
		for _, e := range failed {
			if e.Errno != unix.ENOENT || e.Index < 0 {
				return err
			}
			missing[e.Index] = true
		}
		present := messages[:0:0]
		for i, m := range messages {
			if !missing[i] {
				present = append(present, m)
			}
		}
		messages = present
	}
	return nil
}
