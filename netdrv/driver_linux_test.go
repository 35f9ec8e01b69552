package netdrv_test

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/coracle-dev/coracle/netdrv"
	"github.com/coracle-dev/coracle/netdrv/netdrvtest"
)

func opener(name string) netdrv.OpenDriver {
	return func(c netdrv.Config) (netdrv.Driver, error) { return netdrv.Open(name, c) }
}

// wire makes a parent for macvlan and ipvlan: one end of a pair, whose other end is the world.
func wire(t testing.TB) {
	v := netlink.NewVeth(netlink.LinkAttrs{Name: "up0", TxQLen: -1})
	v.PeerName = "world"
	if err := netlink.LinkAdd(v); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"up0", "world"} {
		if err := netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDrivers(t *testing.T) {
	v4, v6 := []netip.Prefix{netip.MustParsePrefix("10.99.77.0/24")}, []netip.Prefix{netip.MustParsePrefix("fd00:99:77::/64")}
	bridge := netdrvtest.Options{Driver: "bridge", HostEnd: true, ReachHost: true, RefusesDown: true}
	bridge4, bridge6 := bridge, bridge
	bridge4.Subnets, bridge6.Subnets = v4, v6
	for name, o := range map[string]*netdrvtest.Options{
		"bridge":     &bridge,
		"bridge4":    &bridge4,
		"bridge6":    &bridge6,
		"macvlan":    {Driver: "macvlan", Options: map[string]string{"parent": "up0"}, Prepare: wire},
		"ipvlan/l2":  {Driver: "ipvlan", Options: map[string]string{"parent": "up0"}, Prepare: wire, SharedMAC: true},
		"ipvlan/l3":  {Driver: "ipvlan", Options: map[string]string{"parent": "up0", "mode": "l3"}, Prepare: wire, SharedMAC: true},
		"ipvlan/l3s": {Driver: "ipvlan", Options: map[string]string{"parent": "up0", "mode": "l3s"}, Prepare: wire, SharedMAC: true},
	} {
		t.Run(name, func(t *testing.T) { netdrvtest.Run(t, opener(o.Driver), o) })
	}
}
