package netdrv

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A rule is written as a list of clauses: what has to match, and a verdict. Each clause is at once what the kernel executes
// and how nft(8) writes it, so that what docs/network.md shows is what is sent.
//
//	rule("reason", is(iifname, name("eth0")), is(ip4Source, prefix(p)), drop)

// clause is a part of a rule.
type clause struct {
	text  string
	exprs []expr.Any
}

// operand is something of a packet that can be looked at.
type operand struct {
	text string
	size int // in bytes
	load func(register uint32) expr.Any
}

// value is what an operand is compared with.
type value struct {
	text string
	data []byte
	mask []byte // nil: all bits
}

// Registers of 32 bits, of which there are 16. (Those of 128 bits, 1 to 4, are the same memory.)
const register0 = unix.NFT_REG32_00

// registers is how many registers size bytes take.
func registers(size int) uint32 { return uint32(size+3) / 4 }

func metaOperand(text string, size int, key expr.MetaKey) operand {
	return operand{text, size, func(r uint32) expr.Any { return &expr.Meta{Key: key, Register: r} }}
}

func payloadOperand(text string, base expr.PayloadBase, offset, size int) operand {
	return operand{text, size, func(r uint32) expr.Any {
		return &expr.Payload{DestRegister: r, Base: base, Offset: uint32(offset), Len: uint32(size)}
	}}
}

var (
	iifname = metaOperand("iifname", 16, expr.MetaKeyIIFNAME)
	oifname = metaOperand("oifname", 16, expr.MetaKeyOIFNAME)
	nfproto = metaOperand("meta nfproto", 1, expr.MetaKeyNFPROTO)
	l4proto = metaOperand("meta l4proto", 1, expr.MetaKeyL4PROTO)

	ctState  = operand{"ct state", 4, func(r uint32) expr.Any { return &expr.Ct{Key: expr.CtKeySTATE, Register: r} }}
	ctStatus = operand{"ct status", 4, func(r uint32) expr.Any { return &expr.Ct{Key: expr.CtKeySTATUS, Register: r} }}
	fibType  = operand{"fib daddr type", 4, func(r uint32) expr.Any {
		return &expr.Fib{Register: r, ResultADDRTYPE: true, FlagDADDR: true}
	}}

	etherDest    = payloadOperand("ether daddr", expr.PayloadBaseLLHeader, 0, 6)
	etherSource  = payloadOperand("ether saddr", expr.PayloadBaseLLHeader, 6, 6)
	etherType    = payloadOperand("ether type", expr.PayloadBaseLLHeader, 12, 2) // that of a VLAN tag, where there is one
	arpHeader    = payloadOperand("@nh,0,48", expr.PayloadBaseNetworkHeader, 0, 6)
	arpOperation = payloadOperand("arp operation", expr.PayloadBaseNetworkHeader, 6, 2)
	arpMAC       = payloadOperand("arp saddr ether", expr.PayloadBaseNetworkHeader, 8, 6)
	arpIP        = payloadOperand("arp saddr ip", expr.PayloadBaseNetworkHeader, 14, 4)
	ip4Source    = payloadOperand("ip saddr", expr.PayloadBaseNetworkHeader, 12, 4)
	ip4Dest      = payloadOperand("ip daddr", expr.PayloadBaseNetworkHeader, 16, 4)
	ip6Source    = payloadOperand("ip6 saddr", expr.PayloadBaseNetworkHeader, 8, 16)
	ip6Dest      = payloadOperand("ip6 daddr", expr.PayloadBaseNetworkHeader, 24, 16)
	sourcePort   = payloadOperand("th sport", expr.PayloadBaseTransportHeader, 0, 2)
	destPort     = payloadOperand("th dport", expr.PayloadBaseTransportHeader, 2, 2)
	icmp6Type    = payloadOperand("icmpv6 type", expr.PayloadBaseTransportHeader, 0, 1)
	icmp6Target  = payloadOperand("icmpv6 taddr", expr.PayloadBaseTransportHeader, 8, 16)
)

// Values that have names.
var (
	ipv4       = value{text: "ipv4", data: []byte{unix.NFPROTO_IPV4}}
	ipv6       = value{text: "ipv6", data: []byte{unix.NFPROTO_IPV6}}
	tcp        = value{text: "tcp", data: []byte{unix.IPPROTO_TCP}}
	udp        = value{text: "udp", data: []byte{unix.IPPROTO_UDP}}
	icmp6      = value{text: "ipv6-icmp", data: []byte{unix.IPPROTO_ICMPV6}}
	local      = value{text: "local", data: native(unix.RTN_LOCAL)}
	etherARP   = value{text: "arp", data: []byte{0x08, 0x06}}
	etherIP    = value{text: "ip", data: []byte{0x08, 0x00}}
	etherIP6   = value{text: "ip6", data: []byte{0x86, 0xdd}}
	linkLocal  = value{text: "& ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00", data: []byte{1, 0x80, 0xc2, 0, 0, 0}, mask: []byte{255, 255, 255, 255, 255, 0xf0}}
	group      = value{text: "& 01:00:00:00:00:00 == 01:00:00:00:00:00", data: []byte{1, 0, 0, 0, 0, 0}, mask: []byte{1, 0, 0, 0, 0, 0}}
	arpForIP4  = value{text: "0x000108000604", data: []byte{0, 1, 8, 0, 6, 4}} // Ethernet, IPv4, 6 and 4 bytes
	arpRequest = value{text: "request", data: []byte{0, 1}}

	ndRouterAdvertisement    = value{text: "nd-router-advert", data: []byte{134}}
	ndNeighbourSolicitation  = value{text: "nd-neighbor-solicit", data: []byte{135}}
	ndNeighbourAdvertisement = value{text: "nd-neighbor-advert", data: []byte{136}}
	ndRedirect               = value{text: "nd-redirect", data: []byte{137}}

	invalidState = value{text: "invalid", data: native(expr.CtStateBitINVALID)}
	established  = value{text: "established,related", data: native(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)}
	dnat         = value{text: "dnat", data: native(1 << 5)} // IPS_DST_NAT of nf_conntrack_common.h
)

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func number(v uint16) value {
	return value{text: strconv.Itoa(int(v)), data: binary.BigEndian.AppendUint16(nil, v)}
}

// name is the name of an interface. One that ends with * stands for all that begin so.
func name(s string) value {
	if p, all := strings.CutSuffix(s, "*"); all {
		return value{text: `"` + s + `"`, data: []byte(p)}
	}
	return value{text: `"` + s + `"`, data: ifname(s)}
}

// ifname is a name of an interface as sets have it.
func ifname(s string) []byte {
	return append(append(make([]byte, 0, 16), s...), make([]byte, 16-len(s))...)
}

func address(a netip.Addr) value { return value{text: a.String(), data: a.AsSlice()} }

func prefix(p netip.Prefix) value {
	v := value{text: p.Masked().String(), data: p.Masked().Addr().AsSlice()}
	if p.IsSingleIP() {
		v.text = p.Addr().String()
		return v
	}
	v.mask = make([]byte, len(v.data))
	for i := range p.Bits() {
		v.mask[i/8] |= 0x80 >> (i % 8)
	}
	return v
}

// is matches where an operand has a value.
func is(o operand, v value) clause { return compare(o, expr.CmpOpEq, "", v) }

// not matches where an operand has none of the values.
func not(o operand, vs ...value) clause {
	c := compare(o, expr.CmpOpNeq, "!= ", vs...)
	if len(vs) > 1 {
		texts := make([]string, len(vs))
		for i, v := range vs {
			texts[i] = v.text
		}
		c.text = o.text + " != { " + strings.Join(texts, ", ") + " }"
	}
	return c
}

func compare(o operand, op expr.CmpOp, sign string, vs ...value) clause {
	c := clause{text: o.text + " " + sign + vs[0].text, exprs: []expr.Any{o.load(register0)}}
	for _, v := range vs {
		if v.mask != nil {
			c.exprs = append(c.exprs, &expr.Bitwise{SourceRegister: register0, DestRegister: register0, Len: uint32(len(v.data)),
				Mask: v.mask, Xor: make([]byte, len(v.data))})
		}
		c.exprs = append(c.exprs, &expr.Cmp{Op: op, Register: register0, Data: v.data})
	}
	return c
}

// has matches where an operand has any of the bits of a value.
func has(o operand, v value) clause {
	return clause{text: o.text + " " + v.text, exprs: []expr.Any{
		o.load(register0),
		&expr.Bitwise{SourceRegister: register0, DestRegister: register0, Len: 4, Mask: v.data, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register0, Data: make([]byte, 4)},
	}}
}

// load puts operands side by side into registers.
func load(os []operand) (text string, exprs []expr.Any) {
	r := uint32(register0)
	texts := make([]string, len(os))
	for i, o := range os {
		texts[i] = o.text
		exprs = append(exprs, o.load(r))
		r += registers(o.size)
	}
	return strings.Join(texts, " . "), exprs
}

// in matches where a set has the operands.
func in(set string, os ...operand) clause {
	text, exprs := load(os)
	return clause{text: text + " @" + set, exprs: append(exprs, &expr.Lookup{SourceRegister: register0, SetName: set})}
}

// dnatMap sends a packet to the address and port that a map has for the operands.
func dnatMap(family uint32, m string, os ...operand) clause {
	text, exprs := load(os)
	word, size := "ip", 4
	if family == unix.NFPROTO_IPV6 {
		word, size = "ip6", 16
	}
	return clause{text: "dnat " + word + " to " + text + " map @" + m, exprs: append(exprs,
		&expr.Lookup{SourceRegister: register0, DestRegister: register0, IsDestRegSet: true, SetName: m},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: register0, RegProtoMin: register0 + registers(size)})}
}

// dnatTo sends a packet to an address and a port.
func dnatTo(to netip.AddrPort) clause {
	family := uint32(unix.NFPROTO_IPV4)
	if to.Addr().Is6() {
		family = unix.NFPROTO_IPV6
	}
	a := to.Addr().AsSlice()
	return clause{text: "dnat to " + to.String(), exprs: []expr.Any{
		&expr.Immediate{Register: register0, Data: a},
		&expr.Immediate{Register: register0 + registers(len(a)), Data: number(to.Port()).data},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: register0, RegProtoMin: register0 + registers(len(a))},
	}}
}

// Verdicts.
var (
	accept     = clause{"accept", []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}}
	drop       = clause{"drop", []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}}
	masquerade = clause{"masquerade", []expr.Any{&expr.Masq{}}}
)

func goTo(chain string) clause {
	return clause{"goto " + chain, []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}}
}

// key puts values side by side as sets have them: each padded to four bytes.
func key(parts ...[]byte) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		b.Write(p)
		b.Write(make([]byte, -len(p)&3))
	}
	return b.Bytes()
}
