package netdrv

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Types of userdata, which the kernel keeps and gives back: comments, as nft(8) shows them, and our own.
const (
	udComment    userdata.Type = 0 // of tables, chains, rules and elements
	udSetComment               = userdata.NFTNL_UDATA_SET_COMMENT
	udHash       userdata.Type = 0xc0 // of tables: a hash of all that is in it but elements
	udText       userdata.Type = 0xc1 // of rules: the rule as nft(8) writes it
	udNote       userdata.Type = 0xc2 // of tables: what their maker has to know again
	udMax                      = 256  // bytes altogether, NFT_USERDATA_MAXLEN
)

// nfType is a type of what sets have, as nft(8) numbers them.
type nfType struct {
	name string
	id   uint32
	size int
}

var (
	typeIP4     = nfType{"ipv4_addr", 7, 4}
	typeIP6     = nfType{"ipv6_addr", 8, 16}
	typeEther   = nfType{"ether_addr", 9, 6}
	typeProto   = nfType{"inet_proto", 12, 1}
	typeService = nfType{"inet_service", 13, 2}
	typeIfname  = nfType{"ifname", 41, 16}
)

// tableSpec is a table with all that is in it.
type tableSpec struct {
	family uint8
	name   string
	reason string
	flags  uint32
	note   []byte // is kept with the table
	sets   []*setSpec
	chains []*chainSpec
}

// setSpec is a set or, with data, a map.
type setSpec struct {
	name      string
	key, data []nfType
	reason    string
	elements  []nfElement // that are there from the start
}

// nfElement is an element of a set or a map.
type nfElement struct {
	key, data []byte
	reason    string
}

// chainSpec is a chain; a base chain where kind is not empty.
type chainSpec struct {
	name     string
	kind     string // "filter", "nat"
	hook     uint32
	priority int32
	reason   string
	rules    []*ruleSpec
}

type ruleSpec struct {
	clauses []clause
	reason  string
}

func (t *tableSpec) set(name, reason string, key, data []nfType) *setSpec {
	s := &setSpec{name: name, key: key, data: data, reason: reason}
	t.sets = append(t.sets, s)
	return s
}

func (t *tableSpec) chain(name, reason string) *chainSpec {
	c := &chainSpec{name: name, reason: reason}
	t.chains = append(t.chains, c)
	return c
}

func (t *tableSpec) baseChain(name, kind string, hook uint32, priority int32, reason string) *chainSpec {
	c := t.chain(name, reason)
	c.kind, c.hook, c.priority = kind, hook, priority
	return c
}

func (c *chainSpec) rule(reason string, clauses ...clause) {
	c.rules = append(c.rules, &ruleSpec{clauses, reason})
}

func (r *ruleSpec) String() string {
	texts := make([]string, len(r.clauses))
	for i, c := range r.clauses {
		texts[i] = c.text
	}
	return strings.Join(texts, " ")
}

var familyNames = map[uint8]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_BRIDGE: "bridge"}

var inetHooks = []string{"prerouting", "input", "forward", "output", "postrouting"} // those of bridges have the same numbers

// String writes the table as nft(8) does.
func (t *tableSpec) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s %s { # %s\n", familyNames[t.family], t.name, t.reason)
	if t.flags&nftTableOwner != 0 {
		b.WriteString("\tflags owner\n")
	}
	for _, s := range t.sets {
		word, data := "set", ""
		if s.data != nil {
			word, data = "map", " : "+typeNames(s.data)
		}
		fmt.Fprintf(&b, "\t%s %s { type %s%s } # %s\n", word, s.name, typeNames(s.key), data, s.reason)
	}
	for _, c := range t.chains {
		fmt.Fprintf(&b, "\tchain %s { # %s\n", c.name, c.reason)
		if c.kind != "" {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.kind, inetHooks[c.hook], c.priority)
		}
		for _, r := range c.rules {
			fmt.Fprintf(&b, "\t\t%s # %s\n", r, r.reason)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

func typeNames(types []nfType) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = t.name
	}
	return strings.Join(names, " . ")
}

// hash identifies what the table is like, elements apart. Programs that would make it otherwise have another hash.
func (t *tableSpec) hash() []byte {
	h := sha256.Sum256(append([]byte(t.String()), t.note...))
	return h[:8]
}

// create makes the table with all that is in it.
func (t *tableSpec) create() ([]nfMessage, error) {
	ms := []nfMessage{{kind: unix.NFT_MSG_NEWTABLE, flags: unix.NLM_F_CREATE, family: t.family, what: "the table " + t.name, attrs: t.attrs()}}
	for i, s := range t.sets {
		ms = append(ms, nfMessage{kind: unix.NFT_MSG_NEWSET, flags: unix.NLM_F_CREATE, family: t.family,
			what: "the set " + s.name, attrs: s.attrs(t, uint32(i+1))})
		for _, e := range s.elements {
			ms = append(ms, t.addElement(s.name, e, 0, "the set "+s.name))
		}
	}
	for _, c := range t.chains {
		ms = append(ms, nfMessage{kind: unix.NFT_MSG_NEWCHAIN, flags: unix.NLM_F_CREATE, family: t.family,
			what: "the chain " + c.name, attrs: c.attrs(t)})
	}
	for _, c := range t.chains { // when all chains are there, since rules jump to them
		for _, r := range c.rules {
			m, err := r.message(t.family, t.name, c.name)
			if err != nil {
				return nil, err
			}
			ms = append(ms, m)
		}
	}
	return ms, nil
}

// replace makes the table, in place of one that has its name, if any.
func (t *tableSpec) replace() ([]nfMessage, error) {
	created, err := t.create()
	return append(t.remove(), created...), err
}

// remove removes the table; that there is none is no error.
func (t *tableSpec) remove() []nfMessage {
	var a attributes
	a.str(unix.NFTA_TABLE_NAME, t.name)
	what := "the table " + t.name
	return []nfMessage{ // NFT_MSG_DESTROYTABLE would do, but is of 6.3
		{kind: unix.NFT_MSG_NEWTABLE, flags: unix.NLM_F_CREATE, family: t.family, attrs: a, what: what},
		{kind: unix.NFT_MSG_DELTABLE, family: t.family, attrs: a, what: what},
	}
}

func (t *tableSpec) attrs() attributes {
	var a attributes
	a.str(unix.NFTA_TABLE_NAME, t.name)
	a.u32(unix.NFTA_TABLE_FLAGS, t.flags)
	ud := userdata.AppendString(nil, udComment, t.reason)
	ud = userdata.Append(ud, udHash, t.hash())
	if t.note != nil {
		ud = userdata.Append(ud, udNote, t.note)
	}
	a.bytes(nftaTableUserdata, ud)
	return a
}

func (s *setSpec) attrs(t *tableSpec, id uint32) attributes {
	var a attributes
	a.str(unix.NFTA_SET_TABLE, t.name)
	a.str(unix.NFTA_SET_NAME, s.name)
	a.u32(unix.NFTA_SET_ID, id)
	flags := uint32(0)
	if s.data != nil {
		flags = unix.NFT_SET_MAP
		kind, size := joinTypes(s.data)
		a.u32(unix.NFTA_SET_DATA_TYPE, kind)
		a.u32(unix.NFTA_SET_DATA_LEN, size)
	}
	kind, size := joinTypes(s.key)
	a.u32(unix.NFTA_SET_KEY_TYPE, kind)
	a.u32(unix.NFTA_SET_KEY_LEN, size)
	a.u32(unix.NFTA_SET_FLAGS, flags)
	var ud []byte
	if len(s.key) == 1 && s.key[0] == typeIfname {
		ud = userdata.Append(ud, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, native(1)) // so that nft(8) shows names
	}
	a.bytes(unix.NFTA_SET_USERDATA, userdata.AppendString(ud, udSetComment, s.reason))
	return a
}

// joinTypes is the type of types side by side: six bits for each, and its size.
func joinTypes(types []nfType) (id, size uint32) {
	if len(types) == 1 {
		return types[0].id, uint32(types[0].size)
	}
	for _, t := range types {
		id = id<<6 | t.id
		size += 4 * registers(t.size)
	}
	return id, size
}

func (c *chainSpec) attrs(t *tableSpec) attributes {
	var a attributes
	a.str(unix.NFTA_CHAIN_TABLE, t.name)
	a.str(unix.NFTA_CHAIN_NAME, c.name)
	if c.kind != "" {
		a.nest(unix.NFTA_CHAIN_HOOK, func(a *attributes) {
			a.u32(unix.NFTA_HOOK_HOOKNUM, c.hook)
			a.u32(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))
		})
		a.str(unix.NFTA_CHAIN_TYPE, c.kind)
		a.u32(unix.NFTA_CHAIN_POLICY, 1)
	}
	a.bytes(nftaChainUserdata, userdata.AppendString(nil, udComment, c.reason))
	return a
}

// message adds the rule at the end of a chain.
func (r *ruleSpec) message(family uint8, table, chain string) (nfMessage, error) {
	var a attributes
	a.str(unix.NFTA_RULE_TABLE, table)
	a.str(unix.NFTA_RULE_CHAIN, chain)
	var errs error
	a.nest(unix.NFTA_RULE_EXPRESSIONS, func(a *attributes) {
		for _, c := range r.clauses {
			for _, e := range c.exprs {
				b, err := expr.Marshal(family, e)
				errs = errors.Join(errs, err)
				a.bytes(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, b)
			}
		}
	})
	if errs != nil {
		return nfMessage{}, fmt.Errorf("netdrv: the rule %s: %w", r, errs)
	}
	ud := userdata.AppendString(nil, udComment, r.reason)
	if text := r.String(); text != "" && len(ud)+len(text)+3 <= udMax {
		ud = userdata.AppendString(ud, udText, text)
	}
	a.bytes(unix.NFTA_RULE_USERDATA, ud)
	return nfMessage{kind: unix.NFT_MSG_NEWRULE, flags: unix.NLM_F_CREATE | unix.NLM_F_APPEND, family: family,
		what: "the rule " + r.String(), attrs: a}, nil
}

// addElement adds an element. With NLM_F_EXCL one that is there is an error.
func (t *tableSpec) addElement(set string, e nfElement, flags uint16, what string) nfMessage {
	return nfMessage{kind: unix.NFT_MSG_NEWSETELEM, flags: unix.NLM_F_CREATE | flags, family: t.family, what: what, attrs: t.elementAttrs(set, e)}
}

// removeElement removes an element; that it is not there is an error.
func (t *tableSpec) removeElement(set string, key []byte, what string) nfMessage {
	return nfMessage{kind: unix.NFT_MSG_DELSETELEM, family: t.family, what: what, attrs: t.elementAttrs(set, nfElement{key: key})}
}

func (t *tableSpec) elementAttrs(set string, e nfElement) attributes {
	a := make(attributes, 0, 64+len(t.name)+len(set)+len(e.key)+len(e.data)+len(e.reason))
	a.str(unix.NFTA_SET_ELEM_LIST_TABLE, t.name)
	a.str(unix.NFTA_SET_ELEM_LIST_SET, set)
	a.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(a *attributes) {
		a.nest(unix.NFTA_LIST_ELEM, func(a *attributes) {
			a.nest(unix.NFTA_SET_ELEM_KEY, func(a *attributes) { a.bytes(unix.NFTA_DATA_VALUE, e.key) })
			if e.data != nil {
				a.nest(unix.NFTA_SET_ELEM_DATA, func(a *attributes) { a.bytes(unix.NFTA_DATA_VALUE, e.data) })
			}
			if e.reason != "" {
				a.bytes(unix.NFTA_SET_ELEM_USERDATA, userdata.AppendString(nil, udComment, e.reason))
			}
		})
	})
	return a
}
