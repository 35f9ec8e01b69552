package netdrv

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// readHost reads a setting of the calling thread's namespace.
func readHost(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/" + name)
	check(t, err)
	return strings.TrimSpace(string(b))
}

func writeHost(t testing.TB, name, value string) {
	t.Helper()
	check(t, os.WriteFile("/proc/sys/net/"+name, []byte(value), 0))
}

func TestForwardingStrangers(t *testing.T) {
	onHost(t, func(host *Namespace) {
		setBridgeNetfilter(t, true)
		writeHost(t, "ipv4/ip_forward", "0") // a new namespace has what the machine has
		one := newOutside(t, host)
		two, later := namespace(t), namespace(t)
		connectOutside(t, two, "up1", "198.51.100.1/24", "2001:db8:8::1/64", "198.51.100.2/24", "2001:db8:8::2/64")
		writeHost(t, "ipv4/conf/all/accept_redirects", "0")
		writeHost(t, "ipv6/conf/up0/accept_ra", "1")
		writeHost(t, "ipv6/conf/up1/accept_ra", "0")
		routes := func(ns *Namespace, via4, via6 string) {
			check(t, ns.Do(func() error { addRoute(t, "0.0.0.0/0", via4); addRoute(t, "::/0", via6); return nil }))
		}
		routes(one, hostOutside4, hostOutside6)
		routes(two, "198.51.100.1", "2001:db8:8::1")
		serve(t, two, "tcp", "[::]:80", "two")
		serve(t, one, "tcp", "[::]:80", "one")

		only4 := newNetwork(t, "bridge", "10.88.1.0/24")
		both := dual(t, 2)
		d := up(t, only4)
		if readHost(t, forwarding4) != "1" || readHost(t, forwarding6) != "0" {
			t.Error("a network of IPv4 switches on forwarding of IPv4, and not of IPv6")
		}
		check(t, d.Up(background, both))
		if readHost(t, forwarding6) != "1" || readHost(t, acceptRA("up0")) != "2" || readHost(t, acceptRA("up1")) != "0" {
			t.Error("forwarding of IPv6 is not on, or accept_ra is not 2 where it was 1")
		}
		c := container(t, d, both, endpoint(both, 2))
		wantSeen(t, "a container", c, "tcp", outside4+":80", hostOutside4)
		wantSeen(t, "a container", c, "tcp", "["+outside6+"]:80", hostOutside6)
		wantNothing(t, "one stranger from another", one, "tcp", "198.51.100.2:80")
		wantNothing(t, "one stranger from another", one, "tcp", "[2001:db8:8::2]:80")

		changes, err := HostChanges(background)
		check(t, err)
		var texts []string
		for _, c := range changes {
			texts = append(texts, c.Setting+" "+c.Was+" "+c.Is)
		}
		if want := []string{"net.ipv4.ip_forward 0 1", "net.ipv6.conf.all.forwarding 0 1", "net.ipv6.conf.up0.accept_ra 1 2"}; !slices.Equal(texts, want) {
			t.Errorf("changes %q, want %q", texts, want)
		}

		// Not before the last is gone.
		check(t, c.Close())
		check(t, d.Down(background, only4))
		if readHost(t, forwarding4) != "1" {
			t.Error("forwarding is off though a network is left")
		}
		// A killed program has switched on the half.
		writeHost(t, "ipv4/ip_forward", "0")
		check(t, d.Up(background, both))
		// What appeared later may be routed, and keeps all on.
		connectOutside(t, later, "up2", "203.0.113.1/24", "2001:db8:7::1/64", "203.0.113.2/24", "2001:db8:7::2/64")
		routes(later, "203.0.113.1", "2001:db8:7::1")
		serve(t, later, "tcp", "[::]:80", "later")
		wantSeen(t, "who came later", one, "tcp", "203.0.113.2:80", outside4)
		check(t, d.Down(background, both))
		if readHost(t, forwarding4) != "1" || readHost(t, forwarding6) != "1" {
			t.Error("forwarding is off though somebody may rely on it")
		}
		wantNothing(t, "one stranger from another", one, "tcp", "198.51.100.2:80")
		link, err := netlink.LinkByName("up2")
		check(t, err)
		check(t, netlink.LinkDel(link))
		check(t, d.Up(background, both))
		check(t, d.Down(background, both))
		for setting, want := range map[string]string{forwarding4: "0", forwarding6: "0", acceptRA("up0"): "1", acceptRA("up1"): "0", redirects4: "0"} {
			if have := readHost(t, setting); have != want {
				t.Errorf("after the last Down %s is %s, want %s", setting, have, want)
			}
		}
		objects, err := FirewallObjects(background)
		if err != nil || len(objects) > 0 {
			t.Errorf("left: %v, %v", objects, err)
		}
		if changes, err := HostChanges(background); err != nil || len(changes) > 0 {
			t.Errorf("changes left: %v, %v", changes, err)
		}
	})
}

func TestForwardingThatWasOn(t *testing.T) {
	onHost(t, func(host *Namespace) {
		writeHost(t, "ipv4/ip_forward", "1")
		n := newNetwork(t, "bridge", "10.88.1.0/24")
		d := up(t, n)
		objects, err := FirewallObjects(background)
		check(t, err)
		if slices.ContainsFunc(objects, func(o FirewallObject) bool { return o.Table == forwardName }) {
			t.Error("there is a table for strangers where forwarding was on")
		}
		check(t, d.Down(background, n))
		if readHost(t, forwarding4) != "1" {
			t.Error("forwarding that was on is off")
		}
	})
}

// TestForwardingOfBridges: with br_netfilter, what a bridge of others carries is none of our business.
func TestForwardingOfBridges(t *testing.T) {
	onHost(t, func(host *Namespace) {
		setBridgeNetfilter(t, true)
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "virbr0"
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		check(t, netlink.LinkAdd(bridge))
		check(t, netlink.LinkSetUp(bridge))
		one, two := namespace(t), namespace(t)
		connectOutside(t, one, "vnet0", "192.0.2.2/24")
		connectOutside(t, two, "vnet1", "192.0.2.3/24")
		for _, name := range []string{"vnet0", "vnet1"} {
			link, err := netlink.LinkByName(name)
			check(t, err)
			check(t, netlink.LinkSetMaster(link, bridge))
		}
		serve(t, two, "tcp", ":80", "two")
		up(t, newNetwork(t, "bridge", "10.88.1.0/24"))
		wantSeen(t, "a virtual machine", one, "tcp", "192.0.2.3:80", "192.0.2.2")
	})
}

// iptables runs iptables in the calling thread's namespace.
func iptables(t testing.TB, program string, lines ...string) string {
	t.Helper()
	var out string
	for _, l := range lines {
		out = run(t, append([]string{program}, strings.Fields(l)...)...)
	}
	return out
}

func requireIptables(t testing.TB) {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.NotInVM(t, "iptables")
	if out, err := exec.Command("iptables", "--version").CombinedOutput(); err != nil || !strings.Contains(string(out), "nf_tables") {
		testutil.Skip(t, "needs iptables-nft: apt-get install iptables")
	}
}

func TestForeignForwardDrop(t *testing.T) {
	requireIptables(t)
	onHost(t, func(host *Namespace) {
		outside := newOutside(t, host)
		serve(t, outside, "tcp", "[::]:80", "outside")
		iptables(t, "iptables", "-P FORWARD DROP")
		iptables(t, "ip6tables", "-P FORWARD DROP")
		n := dual(t, 1)
		d := up(t, n)
		ep := endpoint(n, 2)
		c := container(t, d, n, ep)
		serve(t, c, "tcp", "[::]:80", "c")
		wantSeen(t, "though FORWARD drops", c, "tcp", outside4+":80", hostOutside4)
		wantSeen(t, "though FORWARD drops", c, "tcp", "["+outside6+"]:80", hostOutside6)
		p := publisher(t, "test")
		check(t, p.Publish(background, []Port{port("tcp", "", 8080, "10.88.1.2", 80)}))
		wantSeen(t, "though FORWARD drops", outside, "tcp", hostOutside4+":8080", outside4)
		const want = "-P FORWARD DROP\n" +
			"-A FORWARD -i cor-+ -m comment --comment \"coracle: from containers\" -j ACCEPT\n" +
			"-A FORWARD -o cor-+ -m comment --comment \"coracle: to containers\" -j ACCEPT\n"
		for _, program := range []string{"iptables", "ip6tables"} {
			if got := iptables(t, program, "-S FORWARD"); got != want {
				t.Errorf("%s -S FORWARD\n%swant\n%s", program, got, want)
			}
		}

		// Somebody empties the chain, as ufw does: the rules come back, once.
		iptables(t, "iptables", "-F FORWARD")
		eventually(t, "the rules come back", func() bool { return iptables(t, "iptables", "-S FORWARD") == want })

		// Docker starts.
		docker := func() {
			iptables(t, "iptables", "-N DOCKER", "-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-I FORWARD -j DOCKER-USER",
				"-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-A FORWARD -o docker0 -j DOCKER",
				"-A FORWARD -i docker0 -o docker0 -j ACCEPT", "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT")
		}
		docker()
		const wantUser = "-N DOCKER-USER\n" +
			"-A DOCKER-USER -i cor-+ -o docker0 -m comment --comment \"coracle: to docker0\" -j RETURN\n" +
			"-A DOCKER-USER -i cor-+ -m comment --comment \"coracle: from containers\" -j ACCEPT\n" +
			"-A DOCKER-USER -o cor-+ -m comment --comment \"coracle: to containers\" -j ACCEPT\n" +
			"-A DOCKER-USER -j RETURN\n"
		eventually(t, "the rules are in DOCKER-USER", func() bool { return iptables(t, "iptables", "-S DOCKER-USER") == wantUser })
		if got := iptables(t, "iptables", "-S FORWARD"); strings.Contains(got, "coracle") {
			t.Errorf("rules are left in FORWARD:\n%s", got)
		}
		wantSeen(t, "with Docker", c, "tcp", outside4+":80", hostOutside4)
		iptables(t, "iptables", "-F", "-X", "-P FORWARD ACCEPT", "-P FORWARD DROP")
		docker()
		eventually(t, "the rules are in DOCKER-USER again", func() bool { return iptables(t, "iptables", "-S DOCKER-USER") == wantUser })

		// A container of Docker's, which published nothing: what Docker drops stays dropped.
		theirs := namespace(t)
		connectOutside(t, theirs, "docker0", "172.17.0.1/16", "172.17.0.2/16")
		check(t, theirs.Do(func() error { addRoute(t, "0.0.0.0/0", "172.17.0.1"); return nil }))
		serve(t, theirs, "tcp", ":80", "docker")
		wantNothing(t, "a container of Docker's", c, "tcp", "172.17.0.2:80")
		wantNothing(t, "from a container of Docker's", theirs, "tcp", "10.88.1.2:80")
		wantSeen(t, "from a container of Docker's, published", theirs, "tcp", "172.17.0.1:8080", "172.17.0.2")

		// Many programs at once make no rule twice, and the last network takes them along.
		errs := make(chan error)
		for range 4 {
			go func() {
				errs <- host.Do(func() error {
					f, err := openFirewall(Config{})
					if err != nil {
						return err
					}
					defer f.Close()
					for range 10 {
						iptablesTry("iptables", "-D", "DOCKER-USER", "-o", "cor-+", "-m", "comment", "--comment", "coracle: to containers", "-j", "ACCEPT")
						if err := f.forwardingUp(context.Background(), n); err != nil {
							return err
						}
					}
					return nil
				})
			}()
		}
		for range 4 {
			check(t, <-errs)
		}
		eventually(t, "each rule is there once", func() bool { return iptables(t, "iptables", "-S DOCKER-USER") == wantUser })
		check(t, d.Disconnect(background, n, ep, c))
		check(t, d.Down(background, n))
		for _, program := range []string{"iptables", "ip6tables"} {
			if got := iptables(t, program, "-S"); strings.Contains(got, "coracle") {
				t.Errorf("left by the last Down:\n%s", got)
			}
		}
	})
}

// TestForeignReport: what we cannot or may not change is said, once.
func TestForeignReport(t *testing.T) {
	onHost(t, func(host *Namespace) {
		nf, err := openNF()
		check(t, err)
		defer nf.Close()
		ms, err := (&tableSpec{family: unix.NFPROTO_INET, name: "firewalld", chains: []*chainSpec{
			{name: "filter_FORWARD", kind: "filter", hook: unix.NF_INET_FORWARD, priority: 10}}}).create()
		check(t, err)
		ms[1].attrs.u32(unix.NFTA_CHAIN_POLICY, 0) // the last one counts
		check(t, nf.batch(0, ms...))
		var log bytes.Buffer
		f, err := openFirewall(Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		check(t, err)
		defer f.Close()
		n := dual(t, 1)
		for range 3 {
			f.(*nftFirewall).foreign.present.Store(false)
			check(t, f.forwardingUp(background, n))
		}
		if n := strings.Count(log.String(), "inet firewalld"); n != 1 {
			t.Errorf("the chain that drops is told of %d times:\n%s", n, log.String())
		}
	})
}

func iptablesTry(words ...string) { exec.Command(words[0], words[1:]...).Run() }

func TestRedirectDNS(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := dual(t, 1)
		d := up(t, n)
		c, other := container(t, d, n, endpoint(n, 2)), container(t, d, n, endpoint(n, 3))
		serve(t, c, "udp", "127.0.0.11:4001", "udp")
		serve(t, c, "tcp", "127.0.0.11:4002", "tcp")
		serve(t, c, "udp", "10.88.1.2:53", "own")
		serve(t, c, "udp", "127.0.0.1:53", "own")
		check(t, RedirectDNS(c, 1, 2))
		check(t, RedirectDNS(c, 4001, 4002))
		for _, q := range []struct{ network, to, want string }{
			{"udp", "127.0.0.11:53", "udp"}, {"tcp", "127.0.0.11:53", "tcp"}, {"udp", "127.0.0.1:53", "own"}, {"udp", "10.88.1.2:53", "own"},
		} {
			if _, who, err := ask(c, q.network, q.to); who != q.want || err != nil {
				t.Errorf("%s %s: %q answers, %v; want %q", q.network, q.to, who, err, q.want)
			}
		}
		if _, who, err := ask(other, "udp", "10.88.1.2:53"); who != "own" {
			t.Errorf("a neighbour asks the container's own server: %q, %v", who, err)
		}
	})
}
