package netdrv

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Everything of ours in nf_tables is in tables with names that begin so, and in what foreign_linux.go adds to others'.
const tablePrefix = "coracle-"

// nftFirewall is the firewall of the network namespace in which it was opened, for threads in any. What it makes stays when it is
// closed, and is found again by name.
type nftFirewall struct {
	log     *slog.Logger
	nf      *nfConn
	sysctls *sysctls
	route   *conn
	foreign *foreignRules
	close   sync.Once

	removing sync.Mutex // held while a network's tables are removed, or made again
	mu       sync.Mutex
	made     map[string]*madeTables // by id of network
	forward  *tableSpec             // as it was made or found last
}

// openFirewall makes the firewall of the calling thread's network namespace.
func openFirewall(config Config) (firewall, error) {
	log := config.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &nftFirewall{log: log, made: map[string]*madeTables{}}
	var err error
	if f.nf, err = openNF(); err == nil {
		if f.sysctls, err = openSysctls(); err == nil {
			if f.route, err = dial(); err == nil {
				f.foreign, err = watchForeign(config.Lock, log, f.restoreTables)
			}
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Close stops watching and closes the sockets. A second call does nothing.
func (f *nftFirewall) Close() error {
	f.close.Do(func() {
		if f.foreign != nil {
			f.foreign.Close()
		}
		f.route.Close()
		f.sysctls.Close()
		if f.nf != nil {
			f.nf.Close()
		}
	})
	return nil
}

// tableName is the name of a network's two tables.
func tableName(n *Network) string { return tablePrefix + n.ID[:min(len(n.ID), 12)] }

// networkTable is the table that says what is routed into and out of a network, and under which address.
func networkTable(n *Network) *tableSpec {
	bridge, ours := name(n.Interface()), name(bridgePrefix+"*")
	t := &tableSpec{family: unix.NFPROTO_INET, name: tableName(n), reason: "routing of network " + clip(n.Name, 60)}

	raw := t.baseChain("prerouting", "filter", unix.NF_INET_PRE_ROUTING, -300, "what comes from containers, before anything else")
	raw.rule("the host's own 127.0.0.0/8 is not for containers, though route_localnet is on",
		is(nfproto, ipv4), is(iifname, bridge), is(ip4Dest, prefix(loopback4)), drop)
	raw.rule("the host's own ::1 is not for containers",
		is(nfproto, ipv6), is(iifname, bridge), is(ip6Dest, address(netip.IPv6Loopback())), drop)

	forward := t.baseChain("forward", "filter", unix.NF_INET_FORWARD, 0, "what is routed, and with br_netfilter what is bridged")
	forward.rule("between its own containers", is(iifname, bridge), is(oifname, bridge), goTo("between"))
	forward.rule("to its containers", is(oifname, bridge), goTo("incoming"))
	forward.rule("from its containers", is(iifname, bridge), goTo("outgoing"))

	if n.Internal {
		t.note = noteInternal
	}
	between := t.chain("between", "from one container of the network to another")
	if n.Isolated {
		between.rule("answers", has(ctState, established), accept)
		between.rule("through a published port", has(ctStatus, dnat), accept)
		between.rule("the network is isolated", drop)
	} else {
		between.rule("containers of one network reach each other", accept)
	}

	incoming := t.chain("incoming", "from elsewhere to a container")
	outgoing := t.chain("outgoing", "from a container to elsewhere")
	if n.Internal {
		incoming.rule("the network is internal", drop)
		outgoing.rule("the network is internal", drop)
	} else {
		incoming.rule("answers", has(ctState, established), accept)
		incoming.rule("through a published port", has(ctStatus, dnat), accept)
		incoming.rule("nobody reaches a container by its own address from outside", drop)

		outgoing.rule("would leave with the container's own address: masquerading needs a connection", has(ctState, invalidState), drop)
		outgoing.rule("answers to another network of ours", is(oifname, ours), has(ctState, established), accept)
		outgoing.rule("through a published port of another network", is(oifname, ours), has(ctStatus, dnat), accept)
		outgoing.rule("networks do not reach each other", is(oifname, ours), drop)
		outgoing.rule("containers reach the outside", accept)
	}

	nat := t.baseChain("postrouting", "nat", unix.NF_INET_POST_ROUTING, 100, "under which address packets leave")
	for _, is4 := range []bool{true, false} {
		s := n.subnet(is4)
		if s == nil {
			continue
		}
		family, source, loopback := ipv4, ip4Source, loopback4
		if !is4 {
			family, source = ipv6, ip6Source
		}
		from := is(source, prefix(s.Prefix))
		if !n.Internal {
			nat.rule("containers have the host's address outside", is(nfproto, family), from, not(oifname, bridge), masquerade)
		}
		nat.rule("a container that reaches itself or a neighbour through a published port is answered through the host",
			is(nfproto, family), from, is(oifname, bridge), has(ctStatus, dnat), masquerade)
		if is4 {
			nat.rule("the host reaches published ports at 127.0.0.1, an address that no answer can be sent to",
				is(nfproto, ipv4), is(ip4Source, prefix(loopback)), is(oifname, bridge), masquerade)
		}
	}
	return t
}

// noteInternal is what the table of an internal network notes.
var noteInternal = []byte("internal")

var loopback4 = netip.MustParsePrefix("127.0.0.0/8")

// clip cuts off what is too long for a comment.
func clip(s string, size int) string {
	if len(s) > size {
		s = s[:size]
	}
	return string(bytes.ToValidUTF8([]byte(s), nil))
}

// networkTables are the tables of a network as they have to be.
func networkTables(n *Network) ([]*tableSpec, error) {
	if len(n.ID) < 12 {
		return nil, invalid("Network.ID", n.ID, "an id is 64 hexadecimal digits")
	}
	switch n.Options["spoofcheck"] {
	case "", "on":
		return []*tableSpec{networkTable(n), spoofTable(n)}, nil
	case "off":
		return []*tableSpec{networkTable(n)}, nil
	}
	return nil, invalid("Network.Options", n.Options["spoofcheck"], `spoofcheck is "on" or "off"`)
}

// firewallUp makes the tables of a network where they are not there, or not as they have to be: in one batch, so that there is
// no instant without them. What they have about endpoints stays.
func (f *nftFirewall) firewallUp(ctx context.Context, n *Network) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := f.rememberBridge(n); err != nil {
		return err
	}
	want, err := f.hashes(n)
	if err != nil {
		return err
	}
	op := "make the tables of network " + n.Name
	right, unguarded := true, false
	for family, hash := range want { // nil: there must be none
		have, err := f.nf.tableHash(family, tableName(n))
		if err != nil {
			return nfErr(op, err)
		}
		right = right && bytes.Equal(have, hash) && (have == nil) == (hash == nil)
		unguarded = unguarded || family == unix.NFPROTO_BRIDGE && have == nil && hash != nil
	}
	if right {
		return nil
	}
	if err := f.learnLess(n); err != nil {
		return err
	}
	err = f.nf.retry(func(generation uint32) error {
		tables, err := networkTables(n)
		if err != nil {
			return err
		}
		messages := (&tableSpec{family: unix.NFPROTO_BRIDGE, name: tableName(n)}).remove()
		for _, t := range tables {
			for _, s := range t.sets { // bridge only
				if s.elements, err = f.nf.elements(t.family, t.name, s); err != nil {
					return err
				}
			}
			ms, err := t.replace()
			if err != nil {
				return err
			}
			messages = append(messages, ms...)
		}
		return f.nf.batch(generation, messages...)
	})
	if eps := f.endpoints(n); err == nil && unguarded && len(eps) > 0 {
		return f.addSources(ctx, n, eps)
	}
	return nfErr(op, err)
}

// hashes are those that the tables of a network have to have, by family, and nil for one that must not be. The network is
// remembered: to tell what its tables are like takes longer than to ask whether they are there.
func (f *nftFirewall) hashes(n *Network) (map[uint8][]byte, error) {
	made := f.remember(n)
	f.mu.Lock()
	defer f.mu.Unlock()
	key := fmt.Sprintf("%q %v %t %t %q", n.Name, n.Subnets, n.Internal, n.Isolated, n.Options["spoofcheck"])
	if made.hashes == nil || made.key != key {
		tables, err := networkTables(n)
		if err != nil {
			return nil, err
		}
		made.key, made.hashes = key, map[uint8][]byte{unix.NFPROTO_INET: nil, unix.NFPROTO_BRIDGE: nil}
		for _, t := range tables {
			made.hashes[t.family] = t.hash()
		}
	}
	return made.hashes, nil
}

// iflaBridgeOptions is IFLA_BR_MULTI_BOOLOPT of linux/if_link.h, since 5.0: the bits to set and those that are meant. The bit is
// BR_BOOLOPT_NO_LL_LEARN.
const (
	iflaBridgeOptions = 46
	bridgeNoLLLearn   = 1
)

// learnLess keeps the bridge from learning hardware addresses from LLDP and the like, which pass all tables by.
func (f *nftFirewall) learnLess(n *Network) error {
	if n.Options["spoofcheck"] == "off" {
		return nil
	}
	info := attr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(iflaBridgeOptions, append(native(bridgeNoLLLearn), native(bridgeNoLLLearn)...))
	err := f.route.do(request(unix.RTM_NEWLINK, 0, ifinfo(0, 0), attr(unix.IFLA_IFNAME, nl.ZeroTerminated(n.Interface())), info))
	if errors.Is(err, unix.ENODEV) {
		return nil // it is made later, by somebody who calls firewallUp again
	} else if err != nil {
		return kernelError("keep the bridge from learning from LLDP", n.Interface(), err)
	}
	return nil
}

// firewallDown removes the tables of a network.
func (f *nftFirewall) firewallDown(ctx context.Context, n *Network) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.removing.Lock()
	defer f.removing.Unlock()
	f.mu.Lock()
	delete(f.made, n.ID)
	f.mu.Unlock()
	return f.removeTables(n)
}

func (f *nftFirewall) removeTables(n *Network) error {
	var messages []nfMessage
	for _, family := range []uint8{unix.NFPROTO_INET, unix.NFPROTO_BRIDGE} {
		have, err := f.nf.table(family, tableName(n))
		if err != nil {
			return nfErr("look for the tables of network "+n.Name, err)
		}
		if have != nil {
			messages = append(messages, (&tableSpec{family: family, name: tableName(n)}).remove()...)
		}
		if have, err = f.nf.table(family, partedName(n)); err != nil {
			return nfErr("look for the partitions of network "+n.Name, err)
		}
		if have != nil {
			messages = append(messages, (&tableSpec{family: family, name: partedName(n)}).remove()...)
		}
	}
	return nfErr("remove the tables of network "+n.Name, f.nf.batch(0, messages...))
}

// nfErr says what was tried, and what to do about it where that is known.
func nfErr(op string, err error) error {
	var failed *nfError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &failed) && (failed.Errno == unix.EOPNOTSUPP || failed.Errno == unix.EAFNOSUPPORT):
		return &UnsupportedError{Feature: "a firewall (" + failed.What + ")", Err: failed.Errno,
			Kernel: "CONFIG_NF_TABLES with CONFIG_NF_TABLES_INET and CONFIG_NF_TABLES_BRIDGE", Fix: "load the module nf_tables"}
	case errors.As(err, &failed) && failed.Errno == unix.ENOENT && len(failed.What) > 9 && failed.What[:9] == "the rule ":
		return &UnsupportedError{Feature: "a firewall (" + failed.What + ")", Err: failed.Errno,
			Kernel: "CONFIG_NFT_CT, _FIB_INET, _NAT, _MASQ", Fix: "load the modules nft_ct, nft_fib_inet, nft_nat, nft_masq and, where it is one, nft_meta_bridge"}
	}
	return kernelError(op, "", err)
}

// nfTable is a table as the kernel has it.
type nfTable struct {
	family   uint8
	name     string
	flags    uint32
	userdata []byte
	owned    bool // by a socket
}

func (t *nfTable) comment() string {
	s, _ := udString(t.userdata, udComment)
	return s
}

func parseTable(m nfAnswer) *nfTable {
	t := &nfTable{family: m.family}
	eachAttribute(m.data, func(kind uint16, v []byte) {
		switch kind {
		case unix.NFTA_TABLE_NAME:
			t.name = cString(v)
		case unix.NFTA_TABLE_FLAGS:
			t.flags = be32(v)
		case nftaTableOwner:
			t.owned = true
		case nftaTableUserdata:
			t.userdata = bytes.Clone(v)
		}
	})
	return t
}

// table finds a table; nil if there is none.
func (c *nfConn) table(family uint8, name string) (*nfTable, error) {
	var t *nfTable
	var a attributes
	a.str(unix.NFTA_TABLE_NAME, name)
	err := c.ask(false, nfMessage{kind: unix.NFT_MSG_GETTABLE, family: family, attrs: a, what: "the table " + name}, func() {}, func(m nfAnswer) { t = parseTable(m) })
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return t, err
}

// tables lists those of all families.
func (c *nfConn) tables() ([]*nfTable, error) {
	var ts []*nfTable
	err := c.ask(true, nfMessage{kind: unix.NFT_MSG_GETTABLE}, func() { ts = nil }, func(m nfAnswer) { ts = append(ts, parseTable(m)) })
	return ts, err
}

// tableHash is the hash of what a table was made to be; nil if there is none, empty if it is not one of ours.
func (c *nfConn) tableHash(family uint8, name string) ([]byte, error) {
	t, err := c.table(family, name)
	if t == nil || err != nil {
		return nil, err
	}
	return append([]byte{}, udBytes(t.userdata, udHash)...), nil
}

// elements lists those of a set; none if there is no such set, or one of other types.
func (c *nfConn) elements(family uint8, table string, s *setSpec) ([]nfElement, error) {
	_, keySize := joinTypes(s.key)
	var found []nfElement
	var a attributes
	a.str(unix.NFTA_SET_ELEM_LIST_TABLE, table)
	a.str(unix.NFTA_SET_ELEM_LIST_SET, s.name)
	err := c.ask(true, nfMessage{kind: unix.NFT_MSG_GETSETELEM, family: family, attrs: a, what: "the set " + s.name}, func() { found = nil }, func(m nfAnswer) {
		eachAttribute(m.data, func(kind uint16, v []byte) {
			if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				return
			}
			eachAttribute(v, func(_ uint16, v []byte) {
				var e nfElement
				eachAttribute(v, func(kind uint16, v []byte) {
					switch kind {
					case unix.NFTA_SET_ELEM_KEY:
						eachAttribute(v, func(_ uint16, v []byte) { e.key = bytes.Clone(v) })
					case unix.NFTA_SET_ELEM_DATA:
						eachAttribute(v, func(_ uint16, v []byte) { e.data = bytes.Clone(v) })
					case unix.NFTA_SET_ELEM_USERDATA:
						e.reason, _ = udString(v, udComment)
					}
				})
				if len(e.key) == int(keySize) {
					found = append(found, e)
				}
			})
		})
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return found, err
}

// udBytes finds something in userdata, which others may have written.
func udBytes(ud []byte, kind userdata.Type) []byte {
	for len(ud) >= 2 && len(ud) >= 2+int(ud[1]) {
		v := ud[2 : 2+int(ud[1])]
		if userdata.Type(ud[0]) == kind {
			return v
		}
		ud = ud[2+len(v):]
	}
	return nil
}

func udString(ud []byte, kind userdata.Type) (string, bool) {
	v := udBytes(ud, kind)
	return cString(v), v != nil
}

func cString(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

func be32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// isNetworkTable reports whether a table has the name of a network's.
func isNetworkTable(name string) bool {
	if len(name) != len(tablePrefix)+12 || name[:len(tablePrefix)] != tablePrefix {
		return false
	}
	_, err := hex.DecodeString(name[len(tablePrefix):])
	return err == nil
}
