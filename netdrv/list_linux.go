package netdrv

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// FirewallObjects lists what is ours in nf_tables, in the calling thread's network namespace, whichever program made it: tables that
// begin with "coracle-" and all that is in them, and our rules in others' tables. Sorted by table, in each the table itself first, then
// sets with their elements, then chains with their rules.
func FirewallObjects(ctx context.Context) ([]FirewallObject, error) {
	nf, err := openNF()
	if err != nil {
		return nil, err
	}
	defer nf.Close()
	tables, err := nf.tables()
	if err != nil {
		return nil, nfErr("list tables", err)
	}
	var all []FirewallObject
	for _, t := range tables {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !strings.HasPrefix(t.name, tablePrefix) {
			continue
		}
		family := cmp.Or(familyNames[t.family], strconv.Itoa(int(t.family)))
		in, err := nf.list(t, family)
		if errors.Is(err, unix.ENOENT) {
			continue // it has gone meanwhile, with the program that it was of
		}
		if err != nil {
			return nil, nfErr("list the table "+t.name, err)
		}
		all = append(all, FirewallObject{Family: family, Table: t.name, Kind: "table", Reason: t.comment()})
		all = append(all, in...)
	}
	for _, family := range []uint8{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		filter, err := nf.readFilter(family)
		if err != nil {
			return nil, nfErr("list the table filter", err)
		}
		for _, r := range filter.rules {
			if r.ours {
				all = append(all, FirewallObject{Family: familyNames[family], Table: "filter", Kind: "rule", Name: r.chain, Reason: r.comment})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b FirewallObject) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Family, b.Family))
	})
	return all, nil
}

// list lists what is in a table.
func (c *nfConn) list(t *nfTable, family string) (all []FirewallObject, err error) {
	object := func(kind, name, text, reason string) FirewallObject {
		return FirewallObject{Family: family, Table: t.name, Kind: kind, Name: name, Text: text, Reason: reason}
	}
	sets, err := c.sets(t)
	if err != nil {
		return nil, err
	}
	for _, s := range sets {
		kind := "set"
		if s.data != nil {
			kind = "map"
		}
		all = append(all, object(kind, s.name, "", s.reason))
		elements, err := c.elements(t.family, t.name, s)
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			text := keyText(s.key, e.key)
			if s.data != nil {
				text += " : " + keyText(s.data, e.data)
			}
			all = append(all, object("element", s.name, text, cmp.Or(e.reason, s.reason)))
		}
	}
	var chains, rules []FirewallObject
	err = c.ask(true, nfMessage{kind: unix.NFT_MSG_GETCHAIN, family: t.family}, func() { chains = nil }, func(m nfAnswer) {
		var table, name, reason string
		eachAttribute(m.data, func(kind uint16, v []byte) {
			switch kind {
			case unix.NFTA_CHAIN_TABLE:
				table = cString(v)
			case unix.NFTA_CHAIN_NAME:
				name = cString(v)
			case nftaChainUserdata:
				reason, _ = udString(v, udComment)
			}
		})
		if table == t.name {
			chains = append(chains, object("chain", name, "", reason))
		}
	})
	if err != nil {
		return nil, err
	}
	var a attributes
	a.str(unix.NFTA_RULE_TABLE, t.name)
	err = c.ask(true, nfMessage{kind: unix.NFT_MSG_GETRULE, family: t.family, attrs: a}, func() { rules = nil }, func(m nfAnswer) {
		var chain, text, reason string
		eachAttribute(m.data, func(kind uint16, v []byte) {
			switch kind {
			case unix.NFTA_RULE_CHAIN:
				chain = cString(v)
			case unix.NFTA_RULE_USERDATA:
				reason, _ = udString(v, udComment)
				text, _ = udString(v, udText)
			}
		})
		rules = append(rules, object("rule", chain, text, reason))
	})
	for _, c := range chains {
		all = append(all, c)
		for _, r := range rules {
			if r.Name == c.Name {
				all = append(all, r)
			}
		}
	}
	return all, err
}

// sets lists the sets and maps of a table, without elements.
func (c *nfConn) sets(t *nfTable) ([]*setSpec, error) {
	var sets []*setSpec
	var a attributes
	a.str(unix.NFTA_SET_TABLE, t.name)
	err := c.ask(true, nfMessage{kind: unix.NFT_MSG_GETSET, family: t.family, attrs: a}, func() { sets = nil }, func(m nfAnswer) {
		s := &setSpec{}
		eachAttribute(m.data, func(kind uint16, v []byte) {
			switch kind {
			case unix.NFTA_SET_NAME:
				s.name = cString(v)
			case unix.NFTA_SET_KEY_TYPE:
				s.key = splitTypes(be32(v))
			case unix.NFTA_SET_DATA_TYPE:
				s.data = splitTypes(be32(v))
			case unix.NFTA_SET_USERDATA:
				s.reason, _ = udString(v, udSetComment)
			}
		})
		sets = append(sets, s)
	})
	return sets, err
}

// splitTypes is the reverse of joinTypes.
func splitTypes(id uint32) (types []nfType) {
	for ; id != 0; id >>= 6 {
		found := nfType{name: "?", size: 4}
		for _, t := range []nfType{typeIP4, typeIP6, typeEther, typeProto, typeService, typeIfname} {
			if t.id == id&0x3f {
				found = t
			}
		}
		types = append([]nfType{found}, types...)
	}
	return types
}

// keyText writes a key or value of a set as nft(8) does.
func keyText(types []nfType, b []byte) string {
	var parts []string
	for _, t := range types {
		if len(b) < t.size {
			break
		}
		v := b[:t.size]
		b = b[min(len(b), 4*int(registers(t.size))):]
		switch t.name {
		case "ipv4_addr", "ipv6_addr":
			a, _ := netip.AddrFromSlice(v)
			parts = append(parts, a.String())
		case "ether_addr":
			parts = append(parts, net.HardwareAddr(v).String())
		case "inet_service":
			parts = append(parts, strconv.Itoa(int(binary.BigEndian.Uint16(v))))
		case "inet_proto":
			name := strconv.Itoa(int(v[0]))
			for p, n := range protocols {
				if n == v[0] {
					name = p
				}
			}
			parts = append(parts, name)
		case "ifname":
			parts = append(parts, string(bytes.TrimRight(v, "\x00")))
		default:
			parts = append(parts, fmt.Sprintf("%x", v))
		}
	}
	return strings.Join(parts, " . ")
}

// HostChanges lists the settings of the host, which is the calling thread's network namespace, that were changed for containers and
// are to be changed back. What belongs to our own interfaces, and goes with them, is not listed.
func HostChanges(ctx context.Context) ([]HostChange, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	nf, err := openNF()
	if err != nil {
		return nil, err
	}
	defer nf.Close()
	return hostChanges(nf)
}
