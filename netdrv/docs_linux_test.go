package netdrv

import (
	"cmp"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var updateDocs = flag.Bool("update", false, "write docs/network.md anew")

// docNetwork is the network that docs/network.md shows.
func docNetwork() *Network {
	return &Network{ID: strings.Repeat("0123456789abcdef", 4), Name: "shop", Driver: "bridge", Subnets: []Subnet{
		{Prefix: netip.MustParsePrefix("10.88.1.0/24"), Gateway: netip.MustParseAddr("10.88.1.1")},
		{Prefix: netip.MustParsePrefix("fd00:1::/64"), Gateway: netip.MustParseAddr("fd00:1::1")},
	}}
}

// chainOf writes one chain of a table, as it differs from what was shown.
func chainOf(t *tableSpec, names ...string) string {
	var b strings.Builder
	for _, c := range t.chains {
		if slices.Contains(names, c.name) {
			b.WriteString((&tableSpec{family: t.family, name: t.name, reason: t.reason, chains: []*chainSpec{c}}).String())
		}
	}
	return b.String()
}

// docs/network.md says what is in nf_tables: what it shows is what is sent, and what the kernel lists.
func TestDocs(t *testing.T) {
	n := docNetwork()
	internal, isolated := docNetwork(), docNetwork()
	internal.Internal, isolated.Isolated = true, true
	filter := &filterTable{drops: true, chains: map[string]bool{"FORWARD": true, "DOCKER-USER": true}, rules: []filterRule{
		{chain: "FORWARD", target: "DOCKER-USER"}, {chain: "DOCKER-USER", bare: true, verdict: -5, handle: 1}, {chain: "FORWARD", target: "DOCKER", oifname: "docker0"}}}
	_, _, foreign := filter.place()
	var lines strings.Builder
	for _, r := range foreign {
		fmt.Fprintf(&lines, "%s\n", r.reason)
	}
	text := docsHead +
		"\n## A network\n\n" + docsNetwork + "\n```\n" + networkTable(n).String() + "```\n" +
		"\nOf an internal network these differ:\n\n```\n" + chainOf(networkTable(internal), "incoming", "outgoing", "postrouting") + "```\n" +
		"\nAnd of an isolated one:\n\n```\n" + chainOf(networkTable(isolated), "between") + "```\n" +
		"\n## Whose address is whose\n\n" + docsSpoof + "\n```\n" + spoofTable(n).String() + "```\n" +
		"\n## Published ports\n\n" + docsPublish + "\n```\n" + publishTable("engine").String() + "```\n" +
		"\n## Partitions\n\n" + docsParted + "\n```\n" + partedTables(n)[0].String() + partedTables(n)[1].String() + "```\n" +
		"\n## Forwarding\n\n" + docsForward + "\n```\n" + forwardTable(switched4|switched6, nil, nil, nil, nil).String() + "```\n" +
		"\n## Others' firewalls\n\n" + docsForeign +
		"\n## Names\n\n" + docsNames + "\n```\n" + dnsTable(41001, 41002).String() + "```\n" + docsTail
	path := filepath.Join("..", "docs", "network.md")
	if *updateDocs {
		check(t, os.WriteFile(path, []byte(text), 0o644))
	}
	have, err := os.ReadFile(path)
	check(t, err)
	if string(have) != text {
		t.Error("docs/network.md is not what the code says: run go test ./netdrv -run TestDocs -update")
	}
}

const docsHead = `# The firewall

This file is written by a test of package netdrv from the rules that are sent to the kernel, and CI compares it. No nft,
iptables or ip program is run; the rules are shown as nft(8) shows them.

All of ours is in tables whose names begin with ` + "`coracle-`" + `, but for the rules in others' firewalls below. ` + "`netdrv.FirewallObjects`" + `
lists what is there, each object with the reason that the comments here show; ` + "`netdrv.HostChanges`" + ` lists the settings of the
host that were changed. It works with Linux 5.14 and later.
`

const docsNetwork = `A network has a table in the family inet and one in the family bridge, both named by the first 12 digits of its id. They
are made whole, in one batch, when the network is first used, replaced in one batch where a program of another version would
make them otherwise (what they have about running containers stays), and removed whole. A hash in the table says whether it is
as it has to be.
`

const docsSpoof = `A container is root in its network namespace and can send any frame. What is not from its own addresses is dropped where
it comes from the host's end of its interface, before the bridge learns from it. An endpoint's elements are added before its
interface is made. The bridge also has the option no_linklocal_learn, since LLDP passes all tables by. A container that chooses
another link-local address than that of its hardware address (RFC 7217) cannot use it. The option spoofcheck=off of a network
leaves all this out.
`

const docsPublish = `A published port is an element of a map: the thousandth costs what the first did. An engine has one table, and a detached
container has one; each belongs to a socket (flags owner), and the kernel removes it when the last process that holds the
socket has ended, however it ended. Source addresses are kept. When a port is withdrawn the kernel is told to forget the flows
through it, so that they do not reach the next container that has the address.

With br_netfilter (` + "`net.bridge.bridge-nf-call-iptables=1`" + `) what a container sends to a published port of its own network is not
routed but bridged to its end. So ports of the bridge are in hairpin mode, but containers of an isolated network do not reach
each other through published ports there.

` + "`::1`" + ` cannot be published so: the kernel does not route it elsewhere.
`

const docsParted = `These two are there while containers of the network are kept from each other ([Network.Partition]): the first for what passes the
bridge, the second for what one sends to a published port of the other.
`

const docsForward = `Where the host is no router (net.ipv4.ip_forward or net.ipv6.conf.all.forwarding is 0), the first network that is not
internal makes it one. This table keeps it from being one for anybody else: interfaces that were there at that moment are not
connected with each other. accept_ra of interfaces where it was 1 becomes 2, without which the host would forget its own
route. All is logged, noted in the table, and undone when the last network is removed, unless an interface has appeared that
was not there: then somebody else may need it.
`

const docsForeign = `Where the chain FORWARD of iptables' table filter drops (Docker, ufw), an accepting rule of our own is no help. Then these
rules are put into DOCKER-USER, before its final RETURN, or where there is none at the top of FORWARD, for IPv4 and IPv6, as ` + "`iptables -S`" + ` shows them:

` + "```" + `
-A DOCKER-USER -i cor-+ -o docker0 -m comment --comment "coracle: to docker0" -j RETURN
-A DOCKER-USER -i cor-+ -m comment --comment "coracle: from containers" -j ACCEPT
-A DOCKER-USER -o cor-+ -m comment --comment "coracle: to containers" -j ACCEPT
` + "```" + `

The first, one for each bridge of Docker's, leaves to Docker who reaches its containers. The others open nothing: what the tables
above drop is dropped whatever others accept. While an engine is open it puts the rules back when somebody removes them, and its networks' tables
too (` + "`nft flush ruleset`" + `). The last network takes them along. The legacy iptables of old kernels and other
tables with a chain that drops what is forwarded (firewalld) are not changed but logged.
`

const docsNames = `In a container's own network namespace, questions about names go to another port, so that the container can have a server
of its own at port 53:
`

const docsTail = `
## What goes wrong

| symptom | look at |
|---|---|
| containers reach nobody outside | ` + "`HostChanges`" + `; warnings in the log about a firewall that drops; ` + "`iptables -S FORWARD`" + ` |
| a published port is not reached from the host at ::1 | it cannot be, see above |
| a container cannot use an address that it gave itself | it is not the endpoint's: spoofcheck |
| containers of an isolated network do not reach each other through published ports | br_netfilter, see above |
`

// TestListing: what the kernel lists is what was sent, with a reason for each object.
func TestListing(t *testing.T) {
	onHost(t, func(host *Namespace) {
		writeHost(t, "ipv4/ip_forward", "0") // a new namespace has what the machine has
		n := docNetwork()
		n.Root = t.TempDir()
		d := up(t, n)
		ep := endpoint(n, 2)
		container(t, d, n, ep)
		p := publisher(t, "engine")
		check(t, p.Publish(background, []Port{port("tcp", "", 80, "10.88.1.2", 80)}))
		objects, err := FirewallObjects(background)
		check(t, err)
		for _, spec := range []*tableSpec{networkTable(n), spoofTable(n), publishTable("engine"), forwardTable(switched4|switched6, nil, nil, nil, nil)} {
			family := familyNames[spec.family]
			want := []FirewallObject{{Family: family, Table: spec.name, Kind: "table", Reason: spec.reason}}
			for _, s := range spec.sets {
				kind := "set"
				if s.data != nil {
					kind = "map"
				}
				want = append(want, FirewallObject{Family: family, Table: spec.name, Kind: kind, Name: s.name, Reason: s.reason})
			}
			for _, c := range spec.chains {
				want = append(want, FirewallObject{Family: family, Table: spec.name, Kind: "chain", Name: c.name, Reason: c.reason})
				for _, r := range c.rules {
					o := FirewallObject{Family: family, Table: spec.name, Kind: "rule", Name: c.name, Text: r.String(), Reason: r.reason}
					if len(o.Text)+len(o.Reason)+6 > udMax {
						o.Text = ""
					}
					want = append(want, o)
				}
			}
			var have []FirewallObject
			for _, o := range objects {
				if o.Table == spec.name && o.Family == family && o.Kind != "element" {
					have = append(have, o)
				}
			}
			sorted := func(os []FirewallObject) []FirewallObject { // the kernel lists sets in an order of its own
				slices.SortStableFunc(os, func(a, b FirewallObject) int {
					rank := func(o FirewallObject) int {
						return slices.Index([]string{"table", "set", "map", "chain", "rule"}, o.Kind)
					}
					return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Name, b.Name))
				})
				return os
			}
			if !slices.Equal(sorted(have), sorted(want)) {
				t.Errorf("listed\n%v\nwant\n%v", have, want)
			}
		}
		for _, o := range objects {
			if o.Reason == "" {
				t.Errorf("no reason: %+v", o)
			}
			if o.Kind == "rule" && o.Text == "" {
				t.Logf("too long to be kept: the rule for %s", o.Reason)
			}
		}
	})
}
