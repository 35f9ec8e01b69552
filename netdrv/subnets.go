package netdrv

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// A Pool is where subnets are chosen from.
type Pool struct {
	// Base is the range that is divided.
	Base netip.Prefix
	// Bits is the prefix length of each subnet: 24 makes 256 of a /16.
	Bits int
}

// ErrNoSubnet says that no pool has a subnet that nobody uses.
var ErrNoSubnet = errors.New("netdrv: no free subnet in the pools")

// ChooseSubnets returns the first subnet of the pools that overlaps nothing that is used, for each family that the pools
// have, IPv4 first. Its gateway is its first address. used are the host's ([HostRoutes]) and those of other networks.
// The error matches [ErrNoSubnet] where all are used.
func ChooseSubnets(pools []Pool, used []netip.Prefix) ([]Subnet, error) {
	ranges := merge(used)
	var chosen []Subnet
	for _, is4 := range []bool{true, false} {
		asked, found := false, false
		for _, p := range pools {
			if !p.Base.IsValid() || p.Bits < p.Base.Bits() || p.Bits > p.Base.Addr().BitLen() {
				return nil, invalid("Pool", fmt.Sprintf("%v in parts of /%d", p.Base, p.Bits), "it cannot be divided so")
			}
			if p.Base.Addr().Is4() != is4 || found {
				continue
			}
			asked = true
			var s netip.Prefix
			if s, found = firstFree(p, ranges); found {
				gateway := s.Addr()
				if s.Bits() < gateway.BitLen()-1 { // of two or of one, each is an address (RFC 3021)
					gateway = gateway.Next()
				}
				chosen = append(chosen, Subnet{Prefix: s, Gateway: gateway})
			}
		}
		if asked && !found {
			return nil, fmt.Errorf("%w: of %s all overlap what the host or its networks use (name another subnet, or remove networks)", ErrNoSubnet, describe(pools, is4))
		}
	}
	return chosen, nil
}

func describe(pools []Pool, is4 bool) string {
	s := ""
	for _, p := range pools {
		if p.Base.Addr().Is4() == is4 {
			s += fmt.Sprintf(" %v in parts of /%d", p.Base, p.Bits)
		}
	}
	return s[1:]
}

// addrRange is from first to last, both in it.
type addrRange struct{ first, last netip.Addr }

// merge sorts prefixes and joins those that overlap. Those of no bits, default routes, are left out: they say nothing of what is used.
func merge(used []netip.Prefix) []addrRange {
	var all []addrRange
	for _, p := range used {
		if p.IsValid() && p.Bits() > 0 {
			all = append(all, addrRange{p.Masked().Addr(), lastAddr(p)})
		}
	}
	slices.SortFunc(all, func(a, b addrRange) int { return a.first.Compare(b.first) })
	var merged []addrRange
	for _, r := range all {
		if n := len(merged); n > 0 && merged[n-1].first.Is4() == r.first.Is4() && !merged[n-1].last.Less(r.first) {
			if merged[n-1].last.Less(r.last) {
				merged[n-1].last = r.last
			}
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// firstFree walks over subnets and ranges in step: of a thousand used subnets each is looked at once.
func firstFree(p Pool, used []addrRange) (netip.Prefix, bool) {
	end := lastAddr(p.Base)
	candidate := netip.PrefixFrom(p.Base.Masked().Addr(), p.Bits)
	for i := 0; ; {
		last := lastAddr(candidate)
		for i < len(used) && (used[i].first.Is4() != p.Base.Addr().Is4() || used[i].last.Less(candidate.Addr())) {
			i++
		}
		if i == len(used) || last.Less(used[i].first) {
			return candidate, true
		}
		if last.Less(used[i].last) {
			last = used[i].last // the range covers more than this one
		}
		// The next that begins after last, on a boundary.
		next := lastAddr(netip.PrefixFrom(last, p.Bits)).Next()
		if !next.IsValid() || end.Less(next) {
			return netip.Prefix{}, false
		}
		candidate = netip.PrefixFrom(next, p.Bits)
	}
}

// lastAddr is the highest address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		if n := p.Bits() - 8*i; n <= 0 {
			b[i] = 0xff
		} else if n < 8 {
			b[i] |= 0xff >> n
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
