package netdrv

import (
	"bytes"
	"context"
	"slices"

	"golang.org/x/sys/unix"
)

// partedName is the name of the two tables that keep endpoints of a network from each other. They are there while any are parted.
func partedName(n *Network) string { return tablePrefix + "parted-" + n.ID[:min(len(n.ID), 12)] }

// partedTables are those tables: what goes from port to port is seen by the bridge, and what goes to a published port of the
// neighbour is routed.
func partedTables(n *Network) []*tableSpec {
	reason := "which containers of network " + clip(n.Name, 60) + " are kept from each other"
	bridge := &tableSpec{family: unix.NFPROTO_BRIDGE, name: partedName(n), reason: reason}
	bridge.set("parted", "host's ends of the interfaces of two containers", []nfType{typeIfname, typeIfname}, nil)
	forward := bridge.baseChain("forward", "filter", unix.NF_INET_FORWARD, -200, "frames from port to port")
	forward.rule("who has an address is still told", is(etherType, etherARP), accept)
	forward.rule("who has an address is still told", is(l4proto, icmp6), is(icmp6Type, ndNeighbourSolicitation), accept)
	forward.rule("who has an address is still told", is(l4proto, icmp6), is(icmp6Type, ndNeighbourAdvertisement), accept)
	forward.rule("they are parted", in("parted", iifname, oifname), drop)

	routed := &tableSpec{family: unix.NFPROTO_INET, name: partedName(n), reason: reason}
	routed.set("parted4", "addresses of two containers", []nfType{typeIP4, typeIP4}, nil)
	routed.set("parted6", "addresses of two containers", []nfType{typeIP6, typeIP6}, nil)
	forward = routed.baseChain("forward", "filter", unix.NF_INET_FORWARD, -10, "what is routed: to a published port of the other one")
	forward.rule("they are parted", is(nfproto, ipv4), in("parted4", ip4Source, ip4Dest), drop)
	forward.rule("they are parted", is(nfproto, ipv6), in("parted6", ip6Source, ip6Dest), drop)
	return []*tableSpec{bridge, routed}
}

// partedElements are the elements of pairs, by family of the table.
func partedElements(pairs [][2]*Endpoint) map[uint8][]sourceElement {
	elements := map[uint8][]sourceElement{}
	add := func(family uint8, set string, a, b []byte, why string) {
		for _, k := range [][]byte{key(a, b), key(b, a)} {
			elements[family] = append(elements[family], sourceElement{set, nfElement{key: k, reason: why}})
		}
	}
	for _, p := range pairs {
		a, b := p[0], p[1]
		why := "containers " + a.ID[:min(len(a.ID), 12)] + " and " + b.ID[:min(len(b.ID), 12)]
		add(unix.NFPROTO_BRIDGE, "parted", ifname(a.HostInterface), ifname(b.HostInterface), why)
		for _, x := range a.Addresses {
			for _, y := range b.Addresses {
				switch x, y := x.Addr(), y.Addr(); {
				case x.Is4() && y.Is4():
					add(unix.NFPROTO_INET, "parted4", x.AsSlice(), y.AsSlice(), why)
				case x.Is6() && y.Is6():
					add(unix.NFPROTO_INET, "parted6", x.AsSlice(), y.AsSlice(), why)
				}
			}
		}
	}
	return elements
}

func checkPairs(n *Network, pairs [][2]*Endpoint) error {
	for _, p := range pairs {
		for _, ep := range p {
			if err := checkPort(n, ep); err != nil {
				return err
			}
		}
		if p[0].HostInterface == p[1].HostInterface {
			return invalid("pairs", p[0].HostInterface, "nobody is kept from himself")
		}
	}
	return nil
}

// Partition implements Partitioner.
func (d *bridgeDriver) Partition(ctx context.Context, n *Network, pairs [][2]*Endpoint) error {
	if err := checkPairs(n, pairs); err != nil || len(pairs) == 0 {
		return err
	}
	return d.firewall.part(ctx, n, pairs)
}

// Heal implements Partitioner.
func (d *bridgeDriver) Heal(ctx context.Context, n *Network, pairs [][2]*Endpoint) error {
	if err := checkPairs(n, pairs); err != nil || len(pairs) == 0 {
		return err
	}
	return d.firewall.heal(ctx, n, pairs)
}

func (f *nftFirewall) part(ctx context.Context, n *Network, pairs [][2]*Endpoint) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	elements := partedElements(pairs)
	err := f.nf.retry(func(generation uint32) error {
		var messages []nfMessage
		for _, t := range partedTables(n) {
			have, err := f.nf.tableHash(t.family, t.name)
			if err != nil {
				return err
			}
			if !bytes.Equal(have, t.hash()) { // else its elements are kept
				for _, s := range t.sets {
					if s.elements, err = f.nf.elements(t.family, t.name, s); err != nil {
						return err
					}
				}
				if messages, err = t.appendReplaced(messages); err != nil {
					return err
				}
			}
			for _, e := range elements[t.family] {
				messages = append(messages, t.addElement(e.set, e.nfElement, 0, e.reason))
			}
		}
		return f.nf.batch(generation, messages...)
	})
	if err == nil {
		f.rememberParted(n, pairs)
	}
	return nfErr("part containers of network "+n.Name, err)
}

func (t *tableSpec) appendReplaced(messages []nfMessage) ([]nfMessage, error) {
	replaced, err := t.replace()
	return append(messages, replaced...), err
}

func (f *nftFirewall) heal(ctx context.Context, n *Network, pairs [][2]*Endpoint) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	over := map[string]bool{}
	for _, es := range partedElements(pairs) {
		for _, e := range es {
			over[e.set+string(e.key)] = true
		}
	}
	f.forgetParted(n, func(p [2]*Endpoint) bool {
		return slices.ContainsFunc(pairs, func(q [2]*Endpoint) bool { return samePair(p, q) })
	})
	return f.removeParted(n, func(set string, key []byte) bool { return over[set+string(key)] })
}

// healOf ends every partition that an endpoint has a part in.
func (f *nftFirewall) healOf(n *Network, eps []*Endpoint) error {
	var parts [][]byte
	for _, ep := range eps {
		parts = append(parts, ifname(ep.HostInterface))
		for _, p := range ep.Addresses {
			parts = append(parts, p.Addr().AsSlice())
		}
	}
	f.forgetParted(n, func(p [2]*Endpoint) bool {
		return slices.ContainsFunc(eps, func(ep *Endpoint) bool {
			return p[0].HostInterface == ep.HostInterface || p[1].HostInterface == ep.HostInterface
		})
	})
	return f.removeParted(n, func(_ string, key []byte) bool {
		half := len(key) / 2
		return slices.ContainsFunc(parts, func(part []byte) bool { return bytes.Equal(key[:half], part) || bytes.Equal(key[half:], part) })
	})
}

// removeParted removes the elements that are over, and the tables with the last of them.
func (f *nftFirewall) removeParted(n *Network, over func(set string, key []byte) bool) error {
	err := f.nf.retry(func(generation uint32) error {
		var messages []nfMessage
		for _, t := range partedTables(n) {
			have, err := f.nf.table(t.family, t.name)
			if err != nil {
				return err
			}
			if have == nil {
				continue
			}
			left := 0
			var gone []nfMessage
			for _, s := range t.sets {
				elements, err := f.nf.elements(t.family, t.name, s)
				if err != nil {
					return err
				}
				for _, e := range elements {
					if over(s.name, e.key) {
						gone = append(gone, t.removeElement(s.name, e.key, e.reason))
					} else {
						left++
					}
				}
			}
			if left == 0 {
				gone = t.remove()
			}
			messages = append(messages, gone...)
		}
		if len(messages) == 0 {
			return nil
		}
		return f.nf.batch(generation, messages...)
	})
	return nfErr("end partitions of network "+n.Name, err)
}

func samePair(p, q [2]*Endpoint) bool {
	return p[0].HostInterface == q[0].HostInterface && p[1].HostInterface == q[1].HostInterface ||
		p[0].HostInterface == q[1].HostInterface && p[1].HostInterface == q[0].HostInterface
}

func (f *nftFirewall) rememberParted(n *Network, pairs [][2]*Endpoint) {
	m := f.remember(n)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range pairs {
		if !slices.ContainsFunc(m.parted, func(q [2]*Endpoint) bool { return samePair(p, q) }) {
			m.parted = append(m.parted, p)
		}
	}
}

func (f *nftFirewall) forgetParted(n *Network, over func([2]*Endpoint) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.made[n.ID]; m != nil {
		m.parted = slices.DeleteFunc(m.parted, over)
	}
}
