package netdrv

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// parentPair makes up0, which is a parent, and world, which is what it is connected to.
func parentPair(t testing.TB, host *Namespace) {
	info := attr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("world"))
	check(t, host.route.do(request(unix.RTM_NEWLINK, unix.NLM_F_CREATE, ifinfo(0, 0), attr(unix.IFLA_IFNAME, nl.ZeroTerminated("up0")), info)))
	for _, name := range []string{"up0", "world"} {
		check(t, host.route.do(request(unix.RTM_NEWLINK, 0, ifinfo(0, unix.IFF_UP), attr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))))
	}
}

// parentNetwork is one on up0, or a skip.
func parentNetwork(t *testing.T, driver, mode string) (Driver, *Network) {
	n := newNetwork(t, driver, "10.99.7.0/24", "fd00:99::/64")
	n.Options = map[string]string{"parent": "up0"}
	if mode != "" {
		n.Options["mode"] = mode
	}
	d := open(t, driver)
	if err := d.Up(background, n); errors.Is(err, errors.ErrUnsupported) {
		var u *UnsupportedError
		if !errors.As(err, &u) || u.Kernel == "" || u.Fix == "" || !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("%#v", err)
		}
		t.Skip(err)
	} else {
		check(t, err)
	}
	return d, n
}

// TestParentModes: who reaches whom.
func TestParentModes(t *testing.T) {
	for _, c := range []struct {
		driver, mode string
		isolated     bool
		reach        bool
	}{
		{"macvlan", "", false, true}, {"macvlan", "bridge", false, true}, {"macvlan", "private", false, false}, {"macvlan", "", true, false},
		{"macvlan", "vepa", false, false}, // there is no switch that sends back
		{"ipvlan", "", false, true}, {"ipvlan", "l2", true, false}, {"ipvlan", "l3", false, true}, {"ipvlan", "l3", true, false},
	} {
		name := c.driver + " " + c.mode
		if c.isolated {
			name += " isolated"
		}
		t.Run(name, func(t *testing.T) {
			onHost(t, func(host *Namespace) {
				parentPair(t, host)
				d, n := parentNetwork(t, c.driver, c.mode)
				n.Isolated = c.isolated
				check(t, d.Up(background, n))
				_, ep2, ns1, ns2 := pair(t, d, n)
				for _, a := range ep2.Addresses {
					if !c.reach {
						unreachable(t, ns1, ns2, a.Addr())
					} else if _, _, err := reach(ns1, ns2, a.Addr(), "x"); err != nil {
						t.Errorf("%v: %v", a, err)
					}
				}
			})
		})
	}
}

// TestParentWorld: a container is a machine in the parent's network.
func TestParentWorld(t *testing.T) {
	for _, c := range [][2]string{{"macvlan", ""}, {"macvlan", "passthru"}, {"ipvlan", "l2"}} {
		t.Run(strings.Join(c[:], " "), func(t *testing.T) {
			onHost(t, func(host *Namespace) {
				parentPair(t, host)
				d, n := parentNetwork(t, c[0], c[1])
				world, err := host.route.link("world")
				check(t, err)
				check(t, host.route.do(addAddress(world.Attrs().Index, netip.MustParsePrefix("10.99.7.1/24"))))
				ns := container(t, d, n, endpoint(n, 2))
				if _, _, err := reach(ns, host, n.Subnets[0].Gateway, "hello, world"); err != nil {
					t.Error(err)
				}
				if c[1] == "passthru" {
					other := namespace(t)
					if err := d.Connect(background, n, endpoint(n, 3), other); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EBUSY) {
						t.Errorf("a second container: %v", err)
					}
					if got := interfaces(t, other); !slices.Equal(got, []string{"lo"}) {
						t.Errorf("it has %q", got)
					}
				}
			})
		})
	}
}

// TestParentErrors: what cannot be is said in the user's words.
func TestParentErrors(t *testing.T) {
	onHost(t, func(host *Namespace) {
		parentPair(t, host)
		d, n := parentNetwork(t, "macvlan", "")
		for name, c := range map[string]struct {
			change func(n *Network)
			says   string
		}{
			"no parent":         {func(n *Network) { n.Options = nil }, "parent"},
			"a missing parent":  {func(n *Network) { n.Options = map[string]string{"parent": "up7"} }, "up7"},
			"a bad parent":      {func(n *Network) { n.Options = map[string]string{"parent": "../up0"} }, "../up0"},
			"an unknown mode":   {func(n *Network) { n.Options = map[string]string{"parent": "up0", "mode": "l2"} }, "vepa"},
			"an unknown option": {func(n *Network) { n.Options = map[string]string{"parent": "up0", "speed": "9"} }, "speed"},
			"internal":          {func(n *Network) { n.Internal = true }, "bridge"},
			"isolated":          {func(n *Network) { n.Isolated = true; n.Options = map[string]string{"parent": "up0", "mode": "bridge"} }, "private"},
		} {
			n := *n
			c.change(&n)
			for what, err := range map[string]error{"Up": d.Up(background, &n), "Connect": d.Connect(background, &n, endpoint(&n, 2), namespace(t))} {
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%s: %s: %v", name, what, err)
				}
			}
		}
		m := ifinfo(0, 0)
		m.Change = unix.IFF_UP
		check(t, host.route.do(request(unix.RTM_NEWLINK, 0, m, attr(unix.IFLA_IFNAME, nl.ZeroTerminated("up0")))))
		ns := namespace(t)
		err := d.Connect(background, n, endpoint(n, 2), ns)
		if err != nil && (!errors.Is(err, unix.ENETDOWN) || !strings.Contains(err.Error(), "up0")) { // kernels differ
			t.Errorf("on a parent that is off: %v", err)
		}
		check(t, d.Disconnect(background, n, endpoint(n, 2), ns))
		if got := interfaces(t, ns); !slices.Equal(got, []string{"lo"}) {
			t.Errorf("it has %q", got)
		}
		// What a container made in its interface's place is not touched.
		check(t, ns.Do(func() error {
			check(t, ns.route.do(request(unix.RTM_NEWLINK, unix.NLM_F_CREATE, ifinfo(0, 0), attr(unix.IFLA_IFNAME, nl.ZeroTerminated("eth0")), kind("bridge"))))
			check(t, d.Disconnect(background, n, endpoint(n, 2), ns))
			_, err := net.InterfaceByName("eth0")
			return err
		}))
	})
}
