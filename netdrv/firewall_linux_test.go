package netdrv

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses of the outside, a namespace beside the one that plays the host.
const (
	hostOutside4 = "192.0.2.1"
	hostOutside6 = "2001:db8:9::1"
	outside4     = "192.0.2.2"
	outside6     = "2001:db8:9::2"
)

// newOutside connects the host, in whose namespace the caller is, with a namespace that is no container.
func newOutside(t testing.TB, host *Namespace) *Namespace {
	t.Helper()
	outside := namespace(t)
	connectOutside(t, outside, "up0", hostOutside4+"/24", hostOutside6+"/64", outside4+"/24", outside6+"/64")
	return outside
}

func connectOutside(t testing.TB, outside *Namespace, name string, addresses ...string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(outside.File().Fd())}
	check(t, netlink.LinkAdd(veth))
	here := func(name string, addresses []string) {
		link, err := netlink.LinkByName(name)
		check(t, err)
		os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0)
		for _, a := range addresses {
			addr, err := netlink.ParseAddr(a)
			check(t, err)
			check(t, netlink.AddrAdd(link, addr))
		}
		check(t, netlink.LinkSetUp(link))
	}
	half := len(addresses) / 2
	here(name, addresses[:half])
	check(t, outside.Do(func() error { here("eth0", addresses[half:]); return nil }))
	awaitCarrier(t, name) // IPv6 begins only when the kernel has noticed, some time in the next second
	check(t, outside.Do(func() error { awaitCarrier(t, "eth0"); return nil }))
}

func awaitCarrier(t testing.TB, name string) {
	t.Helper()
	eventually(t, name+" is up", func() bool {
		link, err := netlink.LinkByName(name)
		return err == nil && link.Attrs().OperState == netlink.OperUp
	})
}

// addRoute adds a route in the calling thread's namespace.
func addRoute(t testing.TB, to, via string) {
	t.Helper()
	dst, err := netlink.ParseIPNet(to)
	check(t, err)
	check(t, netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)}))
}

// serve answers in a namespace, at an address and a port, with the address that it was asked from and a name.
func serve(t testing.TB, ns *Namespace, network, at, name string) {
	t.Helper()
	var c io.Closer
	check(t, ns.Do(func() error {
		if network == "udp" {
			p, err := net.ListenPacket(network, at)
			if err != nil {
				return err
			}
			c = p
			go func() {
				b := make([]byte, 100)
				for {
					_, from, err := p.ReadFrom(b)
					if err != nil {
						return
					}
					p.WriteTo(fmt.Appendf(nil, "%s %s\n", from, name), from)
				}
			}()
			return nil
		}
		l, err := net.Listen(network, at)
		if err != nil {
			return err
		}
		c = l
		go func() {
			for {
				s, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(s, "%s %s\n", s.RemoteAddr(), name)
				s.Close()
			}
		}()
		return nil
	}))
	t.Cleanup(func() { c.Close() })
}

// ask asks what serve serves, from a namespace, and returns whom the server saw, and its name.
func ask(from *Namespace, network, to string) (seen netip.Addr, name string, err error) {
	err = from.Do(func() error {
		c, err := net.DialTimeout(network, to, time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Second))
		if network == "udp" {
			fmt.Fprint(c, "?")
		}
		var s string
		if _, err := fmt.Fscanln(bufio.NewReader(c), &s, &name); err != nil {
			return err
		}
		ap, err := netip.ParseAddrPort(s)
		seen = ap.Addr()
		return err
	})
	return seen, name, err
}

// wantSeen fails where the server is not reached, or has not seen the address.
func wantSeen(t testing.TB, what string, from *Namespace, network, to, want string) {
	t.Helper()
	seen, _, err := ask(from, network, to)
	if err != nil {
		t.Errorf("%s: %s %s is not reached: %v", what, network, to, err)
	} else if seen.String() != want {
		t.Errorf("%s: %s %s saw %s, want %s", what, network, to, seen, want)
	}
}

// wantNothing fails where the server is reached.
func wantNothing(t testing.TB, what string, from *Namespace, network, to string) {
	t.Helper()
	if seen, name, err := ask(from, network, to); err == nil {
		t.Errorf("%s: %s %s is reached: %s saw %s", what, network, to, name, seen)
	}
}

// run runs a program in the calling thread's namespace.
func run(t testing.TB, words ...string) string {
	t.Helper()
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", words, err, out)
	}
	return string(out)
}

// dual is a network of both families, the number-th of a test.
func dual(t testing.TB, number int) *Network {
	return newNetwork(t, "bridge", fmt.Sprintf("10.88.%d.0/24", number), fmt.Sprintf("fd00:%x::/64", number))
}

func publisher(t testing.TB, name string) *Publisher {
	t.Helper()
	p, err := NewPublisher(name)
	check(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

func port(protocol, host string, hostPort uint16, to string, toPort uint16) Port {
	p := Port{Protocol: protocol, HostPort: hostPort, Addr: netip.MustParseAddr(to), Port: toPort}
	if host != "" {
		p.HostAddr = netip.MustParseAddr(host)
	}
	return p
}

func TestFirewallOutside(t *testing.T) {
	for _, bridged := range []bool{true, false} {
		t.Run(fmt.Sprintf("br_netfilter=%v", bridged), func(t *testing.T) { testFirewallOutside(t, bridged) })
	}
}

// setBridgeNetfilter sets whether frames that are bridged pass the chains for what is routed.
func setBridgeNetfilter(t testing.TB, on bool) {
	t.Helper()
	for _, s := range []string{"iptables", "ip6tables"} {
		v := "0"
		if on {
			v = "1"
		}
		if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+s, []byte(v), 0); err != nil && on {
			t.Skip("the kernel has no br_netfilter, or it is not loaded")
		}
	}
}

func testFirewallOutside(t *testing.T, bridged bool) {
	onHost(t, func(host *Namespace) {
		setBridgeNetfilter(t, bridged)
		outside := newOutside(t, host)
		n := dual(t, 1)
		d := up(t, n)
		ep := endpoint(n, 2)
		c := container(t, d, n, ep)
		serve(t, outside, "tcp", "[::]:80", "outside")
		serve(t, c, "tcp", "[::]:80", "c")
		check(t, outside.Do(func() error {
			addRoute(t, "10.88.1.0/24", hostOutside4)
			addRoute(t, "fd00:1::/64", hostOutside6)
			return nil
		}))
		wantSeen(t, "masqueraded", c, "tcp", outside4+":80", hostOutside4)
		wantSeen(t, "masqueraded", c, "tcp", "["+outside6+"]:80", hostOutside6)
		wantSeen(t, "from the host", host, "tcp", "10.88.1.2:80", "10.88.1.1")
		wantNothing(t, "direct routing from outside", outside, "tcp", "10.88.1.2:80")
		wantNothing(t, "direct routing from outside", outside, "tcp", "[fd00:1::2]:80")

		p := publisher(t, "test")
		check(t, p.Publish(background, []Port{
			port("tcp", "", 8080, "10.88.1.2", 80),
			port("tcp", "", 8080, "fd00:1::2", 80),
			port("udp", hostOutside4, 53, "10.88.1.2", 5353),
			port("tcp", "127.0.0.1", 8081, "10.88.1.2", 80),
			port("sctp", "", 8080, "10.88.1.2", 80),
		}))
		serve(t, c, "udp", "[::]:5353", "c")
		wantSeen(t, "published, source kept", outside, "tcp", hostOutside4+":8080", outside4)
		wantSeen(t, "published, source kept", outside, "tcp", "["+hostOutside6+"]:8080", outside6)
		wantSeen(t, "published udp", outside, "udp", hostOutside4+":53", outside4)
		wantSeen(t, "at the host's address from the host", host, "tcp", hostOutside4+":8080", hostOutside4)
		wantSeen(t, "at 127.0.0.1 from the host", host, "tcp", "127.0.0.1:8080", "10.88.1.1")
		wantSeen(t, "at 127.0.0.1 only, from the host", host, "tcp", "127.0.0.1:8081", "10.88.1.1")
		wantNothing(t, "at 127.0.0.1 only", outside, "tcp", hostOutside4+":8081")
		wantNothing(t, "at one address only", host, "udp", "127.0.0.1:53")
		wantSeen(t, "hairpin", c, "tcp", hostOutside4+":8080", "10.88.1.1")
		wantSeen(t, "hairpin", c, "tcp", "["+hostOutside6+"]:8080", "fd00:1::1")
		wantSeen(t, "hairpin at the gateway", c, "tcp", "10.88.1.1:8080", "10.88.1.1")

		// Somebody outside sends to the host's 127.0.0.1 (CVE-2020-8558, and the same of Docker).
		check(t, outside.Do(func() error {
			link, err := netlink.LinkByName("eth0")
			check(t, err)
			for _, s := range []string{"all", "eth0"} {
				check(t, os.WriteFile("/proc/sys/net/ipv4/conf/"+s+"/route_localnet", []byte("1"), 0))
			}
			lo, err := netlink.LinkByName("lo")
			check(t, err)
			a, _ := netlink.ParseAddr("127.0.0.1/8")
			check(t, netlink.AddrDel(lo, a))
			dst, _ := netlink.ParseIPNet("127.0.0.0/8")
			check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: net.ParseIP(hostOutside4), Src: net.ParseIP(outside4)}))
			return nil
		}))
		wantNothing(t, "127.0.0.1 from outside", outside, "tcp", "127.0.0.1:8081")
	})
}

func TestFirewallLoopbackOfTheHost(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := dual(t, 1)
		d := up(t, n)
		c := container(t, d, n, endpoint(n, 2))
		serve(t, host, "tcp", "127.0.0.1:80", "host")
		serve(t, host, "tcp", "[::1]:80", "host")
		p := publisher(t, "test")
		check(t, p.Publish(background, []Port{port("tcp", "127.0.0.1", 8081, "10.88.1.2", 80)}))
		serve(t, c, "tcp", "10.88.1.2:80", "c")
		check(t, c.Do(func() error { // a container with all it could have: it is root and sends to the host what is for 127.0.0.1
			for _, s := range []string{"all", "eth0"} {
				check(t, os.WriteFile("/proc/sys/net/ipv4/conf/"+s+"/route_localnet", []byte("1"), 0))
			}
			lo, err := netlink.LinkByName("lo")
			check(t, err)
			a, _ := netlink.ParseAddr("127.0.0.1/8")
			check(t, netlink.AddrDel(lo, a))
			link, err := netlink.LinkByName("eth0")
			check(t, err)
			dst, _ := netlink.ParseIPNet("127.0.0.0/8")
			check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: net.ParseIP("10.88.1.1"), Src: net.ParseIP("10.88.1.2")}))
			return nil
		}))
		wantNothing(t, "the host's 127.0.0.1", c, "tcp", "127.0.0.1:80")
		wantNothing(t, "what is published at the host's 127.0.0.1", c, "tcp", "127.0.0.1:8081")
		wantSeen(t, "the host itself", host, "tcp", "127.0.0.1:80", "127.0.0.1")
		wantSeen(t, "the host itself", host, "tcp", "127.0.0.1:8081", "10.88.1.1")
		// Without the rule it would be reached: the test tests something.
		f := d.(*bridgeDriver).firewall.(*nftFirewall)
		f.mu.Lock()
		clear(f.made) // or it would be there again soon
		f.mu.Unlock()
		check(t, removeTable(tableName(n)))
		wantSeen(t, "the host's 127.0.0.1, without our table", c, "tcp", "127.0.0.1:80", "10.88.1.2")
	})
}

// removeTable removes an inet table of the calling thread's namespace.
func removeTable(name string) error {
	nf, err := openNF()
	if err != nil {
		return err
	}
	defer nf.Close()
	return nf.batch(0, (&tableSpec{family: 1, name: name}).remove()...)
}

func TestFirewallIsolation(t *testing.T) {
	onHost(t, func(host *Namespace) {
		setBridgeNetfilter(t, true)
		newOutside(t, host)
		one, two, inner, alone := dual(t, 1), dual(t, 2), dual(t, 3), dual(t, 4)
		inner.Internal, alone.Isolated = true, true
		d := up(t, one)
		for _, n := range []*Network{two, inner, alone} {
			check(t, d.Up(background, n))
		}
		a, b := container(t, d, one, endpoint(one, 2)), container(t, d, one, endpoint(one, 3))
		x := container(t, d, two, endpoint(two, 2))
		i := container(t, d, inner, endpoint(inner, 2))
		j := container(t, d, inner, endpoint(inner, 3))
		s, r := container(t, d, alone, endpoint(alone, 2)), container(t, d, alone, endpoint(alone, 3))
		for _, ns := range []*Namespace{a, b, x, i, j, s, r} {
			serve(t, ns, "tcp", "[::]:80", "container")
		}
		check(t, i.Do(func() error { addRoute(t, "0.0.0.0/0", "10.88.3.1"); return nil }))
		wantSeen(t, "neighbours", a, "tcp", "10.88.1.3:80", "10.88.1.2")
		wantSeen(t, "neighbours", a, "tcp", "[fd00:1::3]:80", "fd00:1::2")
		wantNothing(t, "another network", a, "tcp", "10.88.2.2:80")
		wantNothing(t, "another network", a, "tcp", "[fd00:2::2]:80")
		wantSeen(t, "neighbours of an internal network", i, "tcp", "10.88.3.3:80", "10.88.3.2")
		wantNothing(t, "from an internal network", i, "tcp", "10.88.1.2:80")
		wantNothing(t, "from an internal network to the outside", i, "tcp", outside4+":80")
		wantNothing(t, "to an internal network", a, "tcp", "10.88.3.2:80")
		wantNothing(t, "neighbours of an isolated network", s, "tcp", "10.88.4.3:80")

		p := publisher(t, "test")
		check(t, p.Publish(background, []Port{port("tcp", "", 8080, "10.88.2.2", 80), port("tcp", "", 8084, "10.88.4.3", 80), port("tcp", "", 8083, "10.88.3.2", 80)}))
		wantSeen(t, "published by another network", a, "tcp", "10.88.1.1:8080", "10.88.2.1")
		wantNothing(t, "published by a neighbour of an isolated network, with br_netfilter", s, "tcp", "10.88.4.1:8084")
		setBridgeNetfilter(t, false)
		wantSeen(t, "published by a neighbour of an isolated network", s, "tcp", "10.88.4.1:8084", "10.88.4.1")
		wantSeen(t, "published by an internal network, from the host", host, "tcp", "10.88.3.1:8083", "10.88.3.1")
		wantNothing(t, "published by an internal network, from another", a, "tcp", "10.88.1.1:8083")
	})
}

func TestFirewallUpReplaces(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := dual(t, 1)
		d := up(t, n)
		ep := endpoint(n, 2)
		container(t, d, n, ep)
		f := d.(*bridgeDriver).firewall.(*nftFirewall)
		elements := func() string {
			var lines []string
			for _, s := range spoofTable(n).sets {
				es, err := f.nf.elements(7, tableName(n), s)
				check(t, err)
				for _, e := range es {
					lines = append(lines, fmt.Sprintln(s.name, keyText(s.key, e.key), e.reason))
				}
			}
			slices.Sort(lines)
			return strings.Join(lines, "")
		}
		before := elements()
		if !strings.Contains(before, "10.88.1.2") || !strings.Contains(before, "fd00:1::2") {
			t.Fatalf("the endpoint's addresses are not there:\n%s", before)
		}
		generation := func() uint32 { g, err := f.nf.generation(); check(t, err); return g }
		g := generation()
		check(t, d.Up(background, n))
		if generation() != g {
			t.Error("an Up where all is right changed something")
		}
		n.Isolated = true // as another version of the program would have it
		check(t, f.firewallUp(background, n))
		if after := elements(); after != before {
			t.Errorf("elements before\n%s\nafter\n%s", before, after)
		}
		objects, err := FirewallObjects(background)
		check(t, err)
		if !bytes.Contains(fmt.Append(nil, objects), []byte("the network is isolated")) {
			t.Error("the table was not replaced")
		}

		// A table of somebody else's making, and half of ours.
		check(t, removeTable(tableName(n)))
		check(t, f.nf.batch(0, (&tableSpec{family: 1, name: tableName(n)}).remove()[0]))
		check(t, f.firewallUp(background, n))
		if have, err := f.nf.tableHash(1, tableName(n)); err != nil || !bytes.Equal(have, networkTable(n).hash()) {
			t.Errorf("hash %x, %v", have, err)
		}

		// Many at once, of two opinions.
		other := *n
		other.Isolated = false
		errs := make(chan error)
		for i := range 8 {
			go func() {
				var err error
				for range 20 {
					if i%2 == 0 {
						err = errors.Join(err, f.firewallUp(background, n))
					} else {
						err = errors.Join(err, f.firewallUp(background, &other))
					}
				}
				errs <- err
			}()
		}
		for range 8 {
			check(t, <-errs)
		}
		if after := elements(); after != before {
			t.Errorf("elements before\n%s\nafter\n%s", before, after)
		}

		check(t, d.Forget(background, n, []*Endpoint{ep}))
		check(t, d.Forget(background, n, []*Endpoint{ep, endpoint(n, 7)}))
		if after := elements(); after != "" {
			t.Errorf("left after Forget:\n%s", after)
		}
		check(t, f.firewallDown(background, n))
		check(t, f.firewallDown(background, n))
		check(t, d.Forget(background, n, []*Endpoint{ep}))
		if objects, err := FirewallObjects(background); err != nil || len(objects) > 0 && objects[0].Table == tableName(n) {
			t.Errorf("left after Down: %v, %v", objects, err)
		}
	})
}

// TestFirewallFlushed: somebody removes all tables, as a reload of the service nftables does.
func TestFirewallFlushed(t *testing.T) {
	onHost(t, func(host *Namespace) {
		outside := newOutside(t, host)
		serve(t, outside, "tcp", "[::]:80", "outside")
		n := dual(t, 1)
		d := up(t, n)
		c := container(t, d, n, endpoint(n, 2))
		p := publisher(t, "test")
		check(t, p.Publish(background, []Port{port("tcp", "", 8080, "10.88.1.2", 80)}))
		list := func() []string {
			objects, err := FirewallObjects(background)
			check(t, err)
			var all []string
			for _, o := range objects {
				all = append(all, fmt.Sprint(o))
			}
			slices.Sort(all)
			return all
		}
		before := list()
		nf, err := openNF()
		check(t, err)
		defer nf.Close()
		check(t, nf.batch(0, nfMessage{kind: unix.NFT_MSG_DELTABLE})) // of no family and no name: all
		if len(list()) > len(before)/2 {
			t.Error("nothing was removed")
		}
		eventually(t, "all tables are there again", func() bool { return slices.Equal(list(), before) })
		wantSeen(t, "masqueraded", c, "tcp", outside4+":80", hostOutside4)

		// Who removes a network is not contradicted.
		check(t, c.Close())
		check(t, p.Close())
		check(t, d.Down(background, n))
		time.Sleep(3 * foreignSettle)
		if left := list(); len(left) > 0 {
			t.Errorf("left after Down: %q", left)
		}
	})
}
