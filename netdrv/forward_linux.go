package netdrv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Where the host was no router, a network that is not internal makes it one: for containers. The table coracle-forward keeps
// it from being one for others: what was on the host when forwarding was switched on is not connected with each other. The
// table also notes what was switched on, so that whoever takes the last network away can undo it.

const forwardName = tablePrefix + "forward"

// What the table notes: one byte, bits of these.
const (
	switched4     = 1 << iota // net.ipv4.ip_forward was 0
	switched6                 // net.ipv6.conf.all.forwarding was 0
	hadNoRedirect             // net.ipv4.conf.all.accept_redirects was 0; the kernel sets it to 1 when forwarding is switched off
)

// forwardTable is the table as it has to be. Elements are keys of names of interfaces.
func forwardTable(note byte, strangers4, strangers6, bridges, uplinks []nfElement) *tableSpec {
	t := &tableSpec{family: unix.NFPROTO_INET, name: forwardName, note: []byte{note}, reason: "the host is a router for containers, not for others"}
	t.set("strangers4", "interfaces that were there when ip_forward was switched on", []nfType{typeIfname}, nil).elements = strangers4
	t.set("strangers6", "interfaces that were there when forwarding of IPv6 was switched on", []nfType{typeIfname}, nil).elements = strangers6
	t.set("bridges", "bridges: with br_netfilter, what they carry passes here", []nfType{typeIfname, typeIfname}, nil).elements = bridges
	t.set("uplinks", "interfaces whose accept_ra was 1 and is 2 now, so that they still learn routes", []nfType{typeIfname}, nil).elements = uplinks
	c := t.baseChain("forward", "filter", unix.NF_INET_FORWARD, 0, "what is routed")
	c.rule("is not routed but bridged", in("bridges", iifname, oifname), accept)
	if note&switched4 != 0 {
		c.rule("was not routed before", is(nfproto, ipv4), in("strangers4", iifname), in("strangers4", oifname), drop)
	}
	if note&switched6 != 0 {
		c.rule("was not routed before", is(nfproto, ipv6), in("strangers6", iifname), in("strangers6", oifname), drop)
	}
	return t
}

// isOurInterface reports whether a name is that of an interface of ours.
func isOurInterface(name string) bool {
	return strings.HasPrefix(name, bridgePrefix) || strings.HasPrefix(name, vethPrefix)
}

// links lists the interfaces of the namespace.
func (f *nftFirewall) links() ([]netlink.Link, error) {
	return f.route.links("", 0)
}

// forwardingUp switches on what lets the packets of a network's containers out: routing, where it is off, and accepting rules
// in the chains of others that would drop them. The caller holds the lock of the host's networks.
func (f *nftFirewall) forwardingUp(ctx context.Context, n *Network) error {
	if n.Internal {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	need := byte(0)
	for _, bit := range []byte{switched4, switched6} {
		if n.subnet(bit == switched4) == nil {
			continue
		}
		on, err := f.forwarding(bit == switched4)
		if err != nil {
			return err
		}
		if !on {
			need |= bit
		}
	}
	if need != 0 {
		if err := f.switchOn(need); err != nil {
			return err
		}
	} else if err := f.rememberForward(); err != nil {
		return err
	}
	return f.foreign.need()
}

// netconf is the header of a question about settings of a family: struct netconfmsg, padded.
type netconf uint8

func (c netconf) Len() int          { return 4 }
func (c netconf) Serialize() []byte { return []byte{byte(c), 0, 0, 0} }

// Attributes of linux/netconf.h.
const (
	netconfIfindex    = 1
	netconfForwarding = 2
	netconfAll        = 0xffffffff // as an index: net.ipv4.conf.all
)

// forwarding reports whether a family is routed. Netlink tells it some ten times sooner than a file, which matters as each
// start of a container asks.
func (f *nftFirewall) forwarding(is4 bool) (on bool, err error) {
	family, setting := netconf(unix.AF_INET), forwarding4
	if !is4 {
		family, setting = unix.AF_INET6, forwarding6
	}
	answer, err := f.route.get(request(unix.RTM_GETNETCONF, 0, family, attr(netconfIfindex, native(netconfAll))))
	known := false
	if err == nil && len(answer) >= 4 {
		eachAttribute(answer[4:], func(kind uint16, v []byte) {
			if kind == netconfForwarding && len(v) == 4 {
				known, on = true, binary.NativeEndian.Uint32(v) != 0
			}
		})
	}
	if known {
		return on, nil
	}
	v, err := f.sysctls.read(setting)
	return v != "0", err
}

// rememberForward notes what is in the table, so that it can be made again.
func (f *nftFirewall) rememberForward() error {
	f.mu.Lock()
	known := f.forward != nil
	f.mu.Unlock()
	if known {
		return nil
	}
	table, err := f.nf.forwardTable()
	if err != nil {
		return nfErr("read the table "+forwardName, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forward = table
	return nil
}

const (
	forwarding4 = "ipv4/ip_forward"
	forwarding6 = "ipv6/conf/all/forwarding"
	redirects4  = "ipv4/conf/all/accept_redirects"
)

func (f *nftFirewall) switchOn(need byte) error {
	links, err := f.links()
	if err != nil {
		return kernelError("list the host's interfaces", "", err)
	}
	var strangers, bridges, uplinks []nfElement
	for _, l := range links {
		a := l.Attrs()
		if isOurInterface(a.Name) || a.Name == "lo" {
			continue
		}
		k := ifname(a.Name)
		strangers = append(strangers, nfElement{key: k})
		if l.Type() == "bridge" {
			bridges = append(bridges, nfElement{key: key(k, k)})
		}
		if need&switched6 == 0 {
			continue
		}
		ra, err := f.sysctls.read(acceptRA(a.Name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if ra == "1" {
			uplinks = append(uplinks, nfElement{key: k})
		}
	}
	old, err := f.nf.forwardTable()
	if err != nil {
		return nfErr("read the table "+forwardName, err)
	}
	note, strangers4, strangers6 := need, strangers, strangers
	if old != nil { // what was switched on before stays noted
		note |= old.note[0]
		if need&switched4 == 0 {
			strangers4 = old.elementsOf("strangers4")
		}
		if need&switched6 == 0 {
			strangers6 = old.elementsOf("strangers6")
		}
		bridges = unionOf(bridges, old.elementsOf("bridges"))
		uplinks = unionOf(uplinks, old.elementsOf("uplinks"))
	}
	if need&switched4 != 0 {
		if v, err := f.sysctls.read(redirects4); err == nil && v == "0" {
			note |= hadNoRedirect
		}
	}
	// The table first: there is no instant in which the host is a router for others, and a program that is killed
	// after has noted what it was about to do.
	table := forwardTable(note, strangers4, strangers6, bridges, uplinks)
	messages, err := table.replace()
	if err == nil {
		err = f.nf.batch(0, messages...)
	}
	if err != nil {
		return nfErr("make the table "+forwardName, err)
	}
	f.mu.Lock()
	f.forward = table
	f.mu.Unlock()
	err = f.writeForwarding(need, uplinks)
	if err != nil && old == nil {
		return errors.Join(err, nfErr("remove the table "+forwardName, f.nf.batch(0, table.remove()...)))
	}
	return err
}

func (f *nftFirewall) writeForwarding(need byte, uplinks []nfElement) error {
	if need&switched6 != 0 {
		// Before forwarding is switched on, as the kernel then forgets the routes that an interface has learned.
		for _, u := range uplinks {
			if err := f.sysctls.set(acceptRA(cString(u.key)), "2"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			f.log.Info("switched on", "setting", "net.ipv6.conf."+cString(u.key)+".accept_ra", "was", "1", "is", "2", "reason", "a router takes no routes from others otherwise")
		}
	}
	for bit, setting := range map[byte]string{switched4: forwarding4, switched6: forwarding6} {
		if need&bit == 0 {
			continue
		}
		if err := f.sysctls.write(setting, "1"); err != nil {
			return err
		}
		f.log.Info("switched on", "setting", sysctlName(setting), "was", "0", "is", "1", "reason", "containers reach the outside; the table "+forwardName+" keeps others from being routed")
	}
	return nil
}

func acceptRA(iface string) string { return "ipv6/conf/" + iface + "/accept_ra" }

func sysctlName(path string) string { return "net." + strings.ReplaceAll(path, "/", ".") }

// unionOf is what is in either.
func unionOf(a, b []nfElement) []nfElement {
	for _, e := range b {
		if !slices.ContainsFunc(a, func(o nfElement) bool { return string(o.key) == string(e.key) }) {
			a = append(a, e)
		}
	}
	return a
}

func (t *tableSpec) elementsOf(set string) []nfElement {
	for _, s := range t.sets {
		if s.name == set {
			return s.elements
		}
	}
	return nil
}

// forwardTable is the table as it is; nil if there is none of ours.
func (c *nfConn) forwardTable() (*tableSpec, error) {
	have, err := c.table(unix.NFPROTO_INET, forwardName)
	if have == nil || err != nil {
		return nil, err
	}
	note := udBytes(have.userdata, udNote)
	if len(note) != 1 {
		return nil, nil
	}
	t := forwardTable(note[0], nil, nil, nil, nil)
	for _, s := range t.sets {
		if s.elements, err = c.elements(t.family, t.name, s); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// forwardingDown undoes what forwardingUp did, when no network is left, unless interfaces of others have appeared that were not
// there when the host became a router: they may need it. The network's own tables and bridge are gone already. The caller
// holds the lock of the host's networks.
func (f *nftFirewall) forwardingDown(ctx context.Context, n *Network) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	last, err := f.noNetworks(n)
	if err != nil || !last {
		return err
	}
	if err := f.foreign.remove(); err != nil {
		return err
	}
	table, err := f.nf.forwardTable()
	if err != nil {
		return nfErr("read the table "+forwardName, err)
	}
	if table == nil {
		return nil
	}
	links, err := f.links()
	if err != nil {
		return kernelError("list the host's interfaces", "", err)
	}
	known := unionOf(table.elementsOf("strangers4"), table.elementsOf("strangers6"))
	for _, l := range links {
		name := l.Attrs().Name
		if !isOurInterface(name) && name != "lo" && len(unionOf(known, []nfElement{{key: ifname(name)}})) > len(known) {
			f.log.Info("forwarding stays on: others may need it", "interface", name)
			return nil
		}
	}
	return f.switchOff(table)
}

// noNetworks reports whether no network but n, which is being removed, is on the host.
func (f *nftFirewall) noNetworks(n *Network) (bool, error) {
	tables, err := f.nf.tables()
	if err != nil {
		return false, nfErr("list tables", err)
	}
	for _, t := range tables {
		if isNetworkTable(t.name) && t.name != tableName(n) {
			return false, nil
		}
	}
	links, err := f.links()
	if err != nil {
		return false, kernelError("list the host's interfaces", "", err)
	}
	return !slices.ContainsFunc(links, func(l netlink.Link) bool {
		return strings.HasPrefix(l.Attrs().Name, bridgePrefix) && l.Attrs().Name != n.Interface()
	}), nil
}

func (f *nftFirewall) switchOff(table *tableSpec) error {
	f.mu.Lock()
	f.forward = nil
	f.mu.Unlock()
	note := table.note[0]
	for bit, setting := range map[byte]string{switched4: forwarding4, switched6: forwarding6} {
		if note&bit == 0 {
			continue
		}
		if err := f.sysctls.set(setting, "0"); err != nil {
			return err
		}
		f.log.Info("switched off again", "setting", sysctlName(setting))
	}
	if note&hadNoRedirect != 0 {
		if err := f.sysctls.set(redirects4, "0"); err != nil {
			return err
		}
	}
	for _, u := range table.elementsOf("uplinks") {
		setting := acceptRA(cString(u.key))
		if v, err := f.sysctls.read(setting); err != nil || v != "2" {
			continue // the interface is gone, or somebody else has changed it
		}
		if err := f.sysctls.write(setting, "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		f.log.Info("changed back", "setting", sysctlName(setting), "is", "1")
	}
	return nfErr("remove the table "+forwardName, f.nf.batch(0, table.remove()...))
}

// hostChanges lists what was switched on, from the table's note.
func hostChanges(nf *nfConn) ([]HostChange, error) {
	table, err := nf.forwardTable()
	if err != nil || table == nil {
		return nil, nfErr("read the table "+forwardName, err)
	}
	var changes []HostChange
	for _, c := range []struct {
		bit     byte
		setting string
	}{{switched4, forwarding4}, {switched6, forwarding6}} {
		if table.note[0]&c.bit != 0 {
			changes = append(changes, HostChange{sysctlName(c.setting), "0", "1",
				fmt.Sprintf("containers reach the outside; the table inet %s keeps others from being routed", forwardName)})
		}
	}
	for _, u := range table.elementsOf("uplinks") {
		changes = append(changes, HostChange{sysctlName(acceptRA(cString(u.key))), "1", "2", "a router takes no routes from others otherwise"})
	}
	return changes, nil
}
