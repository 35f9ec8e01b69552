package netdrv

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// TestBridge: two containers reach each other and the host by both families, at once.
func TestBridge(t *testing.T) {
	for _, c := range []struct {
		name    string
		subnets []string
	}{
		{"IPv4", []string{"10.99.7.0/24"}},
		{"IPv6", []string{"fd00:99::/64"}},
		{"both", []string{"10.99.7.0/24", "fd00:99::/64"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			onHost(t, func(host *Namespace) {
				n := newNetwork(t, "bridge", c.subnets...)
				d := up(t, n)
				begun := time.Now()
				ep1, ep2 := endpoint(n, 2), endpoint(n, 3)
				ns1, ns2 := container(t, d, n, ep1), container(t, d, n, ep2)
				t.Logf("connected two in %v", time.Since(begun))
				for i, s := range n.Subnets {
					seen, took, err := reach(ns1, ns2, ep2.Addresses[i].Addr(), strings.Repeat("x", 100_000))
					if err != nil || seen != ep1.Addresses[i].Addr() {
						t.Errorf("container to container, %v: %v, seen as %v", s.Prefix, err, seen)
					}
					if took > 200*time.Millisecond {
						t.Errorf("the first connection took %v", took)
					}
					if _, _, err := reach(ns1, host, s.Gateway, "to the host"); err != nil {
						t.Errorf("container to host, %v: %v", s.Prefix, err)
					}
					if _, _, err := reach(host, ns1, ep1.Addresses[i].Addr(), "from the host"); err != nil {
						t.Errorf("host to container, %v: %v", s.Prefix, err)
					}
					t.Logf("%v: first connection in %v", s.Prefix, took)
				}
				if got := sysctl(t, ns1, "ipv6/conf/eth0/disable_ipv6") == "1"; got != (c.name == "IPv4") {
					t.Errorf("IPv6 is off: %v", got)
				}
				count, err := d.Counters(background, n, ep1, nil)
				check(t, err)
				if count.TxBytes < 100_000 || count.RxBytes < 100_000 || count.TxPackets == 0 || count.RxPackets == 0 {
					t.Errorf("counters %+v", count)
				}
				check(t, d.Disconnect(background, n, ep1, ns1))
				check(t, d.Disconnect(background, n, ep1, ns1))
				if got := interfaces(t, ns1); !slices.Equal(got, []string{"lo"}) {
					t.Errorf("a disconnected container has %q", got)
				}
				check(t, ns2.Close())
				check(t, d.Forget(background, n, []*Endpoint{ep1, ep2}))
				check(t, d.Down(background, n))
				check(t, d.Down(background, n))
				eventually(t, "the host has its interfaces alone", func() bool { return slices.Equal(interfaces(t, host), []string{"lo"}) })
			})
		})
	}
}

// TestBridgeSettings are what the bridge and both ends have to be like.
func TestBridgeSettings(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := newNetwork(t, "bridge", "10.99.7.0/24", "fd00:99::/64")
		n.MTU = 1400
		d := up(t, n)
		ep := endpoint(n, 2)
		ep.MTU = 1300
		ns := container(t, d, n, ep)
		br, err := host.route.link(n.Interface())
		check(t, err)
		if a := br.Attrs(); a.MTU != 1400 || a.Alias != "coracle:"+n.ID+":"+n.Root || a.Flags&net.FlagUp == 0 || a.HardwareAddr[0] != 2 {
			t.Errorf("bridge %+v", a)
		}
		end, err := host.route.link(ep.HostInterface)
		check(t, err)
		if a := end.Attrs(); a.MTU != 1300 || a.MasterIndex != br.Attrs().Index || a.Flags&net.FlagUp == 0 {
			t.Errorf("host end %+v", a)
		}
		eth, err := ns.route.link("eth0")
		check(t, err)
		if a := eth.Attrs(); a.MTU != 1300 || !slices.Equal(a.HardwareAddr, ep.MAC) || a.Flags&net.FlagUp == 0 {
			t.Errorf("container end %+v", a)
		}
		for name, want := range map[string]string{
			"ipv4/conf/" + n.Interface() + "/route_localnet": "1", "ipv6/conf/" + n.Interface() + "/accept_ra": "0",
			"ipv6/conf/" + n.Interface() + "/accept_dad": "0", "ipv6/conf/" + n.Interface() + "/disable_ipv6": "0",
		} {
			if got := sysctl(t, host, name); got != want {
				t.Errorf("%s = %s, want %s", name, got, want)
			}
		}
		for name, want := range map[string]string{"ipv6/conf/eth0/accept_ra": "0", "ipv6/conf/eth0/accept_dad": "0", "ipv6/conf/default/accept_dad": "1"} {
			if got := sysctl(t, ns, name); got != want {
				t.Errorf("in the container %s = %s, want %s", name, got, want)
			}
		}
		addresses, err := ns.route.addresses(eth.Attrs().Index)
		check(t, err)
		for _, a := range ep.Addresses {
			if !slices.Contains(addresses, a) {
				t.Errorf("the container has %v, not %v", addresses, a)
			}
		}
		big := endpoint(n, 3)
		big.MTU = 1500
		var invalid *InvalidError
		if err := d.Connect(background, n, big, namespace(t)); !errors.As(err, &invalid) {
			t.Errorf("an endpoint with a larger MTU than its network: %v", err)
		}
	})
}

// TestBridgeRepair: Up makes right what somebody did to a bridge, and touches nothing that is right.
func TestBridgeRepair(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := newNetwork(t, "bridge", "10.99.7.0/24", "fd00:99::/64")
		n.MTU = 1450
		d := up(t, n)
		index := func() int {
			l, err := host.route.link(n.Interface())
			check(t, err)
			return l.Attrs().Index
		}
		first := index()
		for _, c := range []struct {
			name   string
			damage func() error
		}{
			{"nothing", func() error { return nil }},
			{"off", func() error {
				m := ifinfo(first, 0)
				m.Change = unix.IFF_UP
				return host.route.do(request(unix.RTM_NEWLINK, 0, m))
			}},
			{"no address", func() error {
				r := addAddress(first, netip.MustParsePrefix("10.99.7.1/24"))
				r.Type, r.Flags = unix.RTM_DELADDR, unix.NLM_F_REQUEST|unix.NLM_F_ACK
				return host.route.do(r)
			}},
			{"no alias", func() error {
				return host.route.do(request(unix.RTM_NEWLINK, 0, ifinfo(first, 0), attr(unix.IFLA_IFALIAS, []byte{0})))
			}},
			{"another MTU", func() error {
				return host.route.do(request(unix.RTM_NEWLINK, 0, ifinfo(first, 0), attr(unix.IFLA_MTU, []byte{0, 5, 0, 0})))
			}},
			{"settings", func() error { return host.sysctls.write("ipv4/conf/"+n.Interface()+"/route_localnet", "0") }},
			{"gone", func() error { _, err := host.route.removeLink(n.Interface()); return err }},
		} {
			check(t, c.damage())
			check(t, d.Up(background, n))
			l, err := host.route.link(n.Interface())
			check(t, err)
			a := l.Attrs()
			addresses, err := host.route.addresses(a.Index)
			check(t, err)
			if a.MTU != 1450 || a.Alias != alias(n) || a.Flags&net.FlagUp == 0 || !slices.Contains(addresses, netip.MustParsePrefix("10.99.7.1/24")) ||
				!slices.Contains(addresses, netip.MustParsePrefix("fd00:99::1/64")) || sysctl(t, host, "ipv4/conf/"+n.Interface()+"/route_localnet") != "1" {
				t.Errorf("%s: %+v %v", c.name, a, addresses)
			}
			if (index() != first) != (c.name == "gone") {
				t.Errorf("%s: another bridge", c.name)
			}
			ep := endpoint(n, 5)
			ns := container(t, d, n, ep)
			if _, _, err := reach(ns, host, n.Subnets[0].Gateway, "after repair"); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			check(t, d.Disconnect(background, n, ep, ns))
		}
	})
}

// TestBridgeStrays: the bridges of roots that are gone go when another one is made.
func TestBridgeStrays(t *testing.T) {
	onHost(t, func(host *Namespace) {
		old, used, kept, long := newNetwork(t, "bridge", "10.99.1.0/24"), newNetwork(t, "bridge", "10.99.2.0/24"), newNetwork(t, "bridge", "10.99.3.0/24"), newNetwork(t, "bridge", "10.99.5.0/24")
		long.Root = "/" + strings.Repeat("long/", 60)
		d := up(t, old)
		for _, n := range []*Network{used, kept, long} {
			check(t, d.Up(background, n))
		}
		container(t, d, used, endpoint(used, 2))
		check(t, os.RemoveAll(old.Root))
		check(t, os.RemoveAll(used.Root))
		last := newNetwork(t, "bridge", "10.99.4.0/24")
		check(t, d.Up(background, last))
		want := []string{"lo", used.Interface(), kept.Interface(), long.Interface(), last.Interface()}
		got := slices.DeleteFunc(interfaces(t, host), func(s string) bool { return strings.HasPrefix(s, vethPrefix) })
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("there are %q, want %q", got, want)
		}
	})
}

// TestBridgeBusy: Down refuses where a container is connected, and not where its port is only not gone yet.
func TestBridgeBusy(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := newNetwork(t, "bridge", "10.99.7.0/24")
		d := up(t, n)
		ep := endpoint(n, 2)
		ns := container(t, d, n, ep)
		var busy *BusyError
		if err := d.Down(background, n); !errors.As(err, &busy) || !slices.Equal(busy.Ports, []string{ep.HostInterface}) {
			t.Fatalf("Down of a network that is used: %v", err)
		}
		if _, _, err := reach(ns, host, n.Subnets[0].Gateway, "still there"); err != nil {
			t.Fatal(err)
		}
		ns.Close()
		begun := time.Now()
		check(t, d.Down(background, n))
		t.Logf("Down of a network whose last container just ended took %v", time.Since(begun))
		check(t, d.Up(background, n))
		br, err := host.route.link(n.Interface())
		check(t, err)
		info := attr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
		check(t, host.route.do(request(unix.RTM_NEWLINK, unix.NLM_F_CREATE, ifinfo(0, 0), attr(unix.IFLA_IFNAME, nl.ZeroTerminated("theirs")),
			attr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(br.Attrs().Index))), info)))
		if err := d.Down(background, n); !errors.As(err, &busy) || !slices.Equal(busy.Ports, []string{"theirs"}) {
			t.Errorf("Down of a bridge that somebody else uses: %v", err)
		}
	})
}

// TestBridgeForeign: an interface that has a network's name and is not its bridge is left alone.
func TestBridgeForeign(t *testing.T) {
	onHost(t, func(host *Namespace) {
		mine, other := newNetwork(t, "bridge", "10.99.7.0/24"), newNetwork(t, "bridge", "10.99.7.0/24")
		other.ID = mine.ID[:10] + other.ID[10:]
		d := up(t, mine)
		for what, err := range map[string]error{"Up": d.Up(background, other), "Down": d.Down(background, other)} {
			if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), mine.Interface()) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

// TestBridgeIsolated: containers of an isolated network reach the host and not each other.
func TestBridgeIsolated(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := newNetwork(t, "bridge", "10.99.7.0/24", "fd00:99::/64")
		n.Isolated = true
		d := up(t, n)
		ep1, ep2 := endpoint(n, 2), endpoint(n, 3)
		ns1, ns2 := container(t, d, n, ep1), container(t, d, n, ep2)
		for i, s := range n.Subnets {
			if _, _, err := reach(ns1, host, s.Gateway, "host"); err != nil {
				t.Error(err)
			}
			unreachable(t, ns1, ns2, ep2.Addresses[i].Addr())
		}
	})
}

// TestBridgeTwoNetworks: a container in two networks has one default route, which can be moved.
func TestBridgeTwoNetworks(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n1, n2 := newNetwork(t, "bridge", "10.99.7.0/24", "fd00:99::/64"), newNetwork(t, "bridge", "10.99.8.0/24", "fd00:98::/64")
		d := up(t, n1)
		check(t, d.Up(background, n2))
		ep1, ep2 := endpoint(n1, 2), endpoint(n2, 2)
		ep2.Interface = "eth1"
		ns := container(t, d, n1, ep1)
		before := interfaces(t, host)
		// Two default routes are refused, and nothing is left of the try.
		err := d.Connect(background, n2, ep2, ns)
		if !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "SetGateway") {
			t.Fatalf("a second default route: %v", err)
		}
		if got := interfaces(t, ns); !slices.Equal(got, []string{"eth0", "lo"}) {
			t.Fatalf("the container has %q", got)
		}
		if got := interfaces(t, host); !slices.Equal(got, before) {
			t.Fatalf("the host has %q, before %q", got, before)
		}
		with := *ep2
		ep2.Gateway4, ep2.Gateway6 = netip.Addr{}, netip.Addr{}
		check(t, d.Connect(background, n2, ep2, ns))
		for _, n := range []*Network{n1, n2} {
			for _, s := range n.Subnets {
				if _, _, err := reach(ns, host, s.Gateway, "both"); err != nil {
					t.Errorf("%v: %v", s.Prefix, err)
				}
			}
		}
		defaults := func() (via []string) {
			routes, err := ns.route.routes()
			check(t, err)
			for _, r := range routes {
				if r.to.Bits() == 0 && r.kind == unix.RTN_UNICAST {
					links, err := ns.route.links("", 0)
					check(t, err)
					for _, l := range links {
						if l.Attrs().Index == r.index {
							via = append(via, l.Attrs().Name)
						}
					}
				}
			}
			return via
		}
		if got := defaults(); !slices.Equal(got, []string{"eth0", "eth0"}) {
			t.Errorf("default routes by %q", got)
		}
		check(t, SetGateway(ns, &with))
		if got := defaults(); !slices.Contains(got, "eth1") {
			t.Errorf("default routes by %q", got)
		}
		check(t, d.Disconnect(background, n1, ep1, ns))
		check(t, SetGateway(ns, &with))
		if got := defaults(); !slices.Equal(got, []string{"eth1", "eth1"}) {
			t.Errorf("default routes by %q", got)
		}
	})
}

// TestBridgeInternal: no default route, no route_localnet.
func TestBridgeInternal(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := newNetwork(t, "bridge", "10.99.7.0/24")
		n.Internal = true
		d := up(t, n)
		ep1, ep2 := endpoint(n, 2), endpoint(n, 3)
		ns1, ns2 := container(t, d, n, ep1), container(t, d, n, ep2)
		if _, _, err := reach(ns1, ns2, ep2.Addresses[0].Addr(), "inside"); err != nil {
			t.Error(err)
		}
		if got := sysctl(t, host, "ipv4/conf/"+n.Interface()+"/route_localnet"); got != "0" {
			t.Errorf("route_localnet is %s", got)
		}
		ns1.Do(func() error {
			if c, err := net.Dial("udp", "192.0.2.1:9"); err == nil || !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("there is a way out: %v", err)
				c.Close()
			}
			return nil
		})
	})
}

// TestBridgeAnnounces: who takes over an address is reached by those who knew its holder before.
func TestBridgeAnnounces(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := newNetwork(t, "bridge", "10.99.7.0/24", "fd00:99::/64")
		d := up(t, n)
		first := container(t, d, n, endpoint(n, 2))
		for i := range 6 {
			ep := endpoint(n, 3)
			ep.MAC = net.HardwareAddr{2, 0, 0, 0, 0x77, byte(i)}
			ns := container(t, d, n, ep)
			for j, s := range n.Subnets {
				for who, from := range map[string]*Namespace{"a container": first, "the host": host} {
					_, took, err := reach(from, ns, ep.Addresses[j].Addr(), "hello")
					if err != nil || took > 500*time.Millisecond {
						t.Errorf("holder %d in %v is reached by %s after %v: %v", i, s.Prefix, who, took, err)
					}
				}
			}
			check(t, d.Disconnect(background, n, ep, ns))
		}
	})
}
