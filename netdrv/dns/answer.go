package dns

import (
	"hash/fnv"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// answer answers a message that came from a client. If it is a query to be passed on, that is returned instead; if it is
// nothing to be answered, neither is.
func (s *Server) answer(msg []byte, tcp bool) ([]byte, *query) {
	q, code := parseQuery(msg, tcp)
	if q == nil {
		return nil, nil
	}
	if code != dnsmessage.RCodeSuccess {
		return q.failure(code), nil
	}
	records, known, ours := s.local(q)
	switch {
	case known:
		return q.reply(dnsmessage.RCodeSuccess, true, records), nil
	case ours || !s.forwards():
		return q.reply(dnsmessage.RCodeNameError, true, nil), nil
	}
	return nil, q
}

// local looks for what need not be asked of others. A name is ours if nobody else can know it.
func (s *Server) local(q *query) (records []record, known, ours bool) {
	name, valid := zoneName(q.question.Name.String())
	if !valid {
		return nil, false, false
	}
	typ := q.question.Type
	if addr, ok := reversed(name); ok {
		host, known := "", false
		if s.config.Zone != nil {
			host, known = s.config.Zone.Name(addr)
		}
		if !known && addr.IsLoopback() {
			host, known = "localhost", true
		}
		if known && (typ == dnsmessage.TypePTR || typ == dnsmessage.TypeALL) {
			target, err := dnsmessage.NewName(strings.TrimSuffix(host, ".") + ".")
			if err == nil && validTarget(target) {
				records = append(records, record{name: target})
			}
		}
		return records, known, s.config.Private != nil && s.config.Private(addr)
	}
	var v4, v6 []netip.Addr
	if s.config.Zone != nil {
		v4, v6, known = s.config.Zone.Addresses(name)
	}
	if !known && (name == "localhost" || strings.HasSuffix(name, ".localhost")) {
		v4, v6, known = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, []netip.Addr{netip.IPv6Loopback()}, true
	}
	if !known {
		return nil, false, false
	}
	turn := s.turn(name, typ)
	if typ == dnsmessage.TypeA || typ == dnsmessage.TypeALL {
		records = rotate(records, v4, turn)
	}
	if typ == dnsmessage.TypeAAAA || typ == dnsmessage.TypeALL {
		records = rotate(records, v6, turn)
	}
	return records, true, true
}

// turn counts the queries for a name and a type: clients that always ask for A and AAAA, or for one name after the other,
// are to get all addresses too. Few counters will do, as two names that share one are seldom asked for in turns.
func (s *Server) turn(name string, typ dnsmessage.Type) uint32 {
	h := fnv.New32a()
	h.Write([]byte(name))
	h.Write([]byte{byte(typ)})
	return s.turns[h.Sum32()%uint32(len(s.turns))].Add(1) - 1
}

// rotate appends the addresses, beginning with another one at each turn.
func rotate(records []record, addrs []netip.Addr, turn uint32) []record {
	for i := range addrs {
		// A zone is no business of the network's, and an IPv4 address in IPv6's clothes is one.
		records = append(records, record{addr: addrs[(uint64(turn)+uint64(i))%uint64(len(addrs))].Unmap().WithZone("")})
	}
	return records
}

// zoneName returns the name as a Zone is asked for it. It is not valid if a Zone is not to be asked.
func zoneName(name string) (string, bool) {
	name = strings.TrimSuffix(name, ".")
	if name == "" {
		return "", false
	}
	label := 0
	for i := range len(name) {
		switch c := name[i]; {
		case c == '.':
			if label == 0 {
				return "", false
			}
			label = 0
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			label++
		default:
			return "", false
		}
	}
	return strings.ToLower(name), label > 0
}

// validTarget says whether a name can be written: dnsmessage finds out only when it is too late for the rest.
func validTarget(name dnsmessage.Name) bool {
	if name.Length > 254 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(name.String(), "."), ".") {
		if label == "" || len(label) > 63 {
			return false
		}
	}
	return true
}

// reversed returns the address whose reverse name this is, in lower case (RFC 1035 section 3.5, RFC 3596 section 2.5).
func reversed(name string) (netip.Addr, bool) {
	if labels, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		var a [4]byte
		i := 3
		for label := range strings.SplitSeq(labels, ".") {
			n, err := strconv.ParseUint(label, 10, 8)
			if err != nil || i < 0 || len(label) > 1 && label[0] == '0' {
				return netip.Addr{}, false
			}
			a[i] = byte(n)
			i--
		}
		return netip.AddrFrom4(a), i == -1
	}
	labels, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(labels) != 63 {
		return netip.Addr{}, false
	}
	var a [16]byte
	for i := range 32 { // the last digit comes first
		n, err := strconv.ParseUint(labels[2*i:2*i+1], 16, 4)
		if err != nil || i < 31 && labels[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		a[15-i/2] |= byte(n) << (4 * (i % 2))
	}
	return netip.AddrFrom16(a), true
}
