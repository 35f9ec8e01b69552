package netdrv

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// TestHostRoutes: what the host's routes lead to, in any table, and its addresses are used.
func TestHostRoutes(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := newNetwork(t, "bridge", "10.99.7.0/24", "fd00:99::/64")
		up(t, n)
		br, err := host.route.link(n.Interface())
		check(t, err)
		index := br.Attrs().Index
		add := func(to string, table uint8, kind uint8) {
			p := netip.MustParsePrefix(to)
			m := nl.NewRtMsg()
			m.Family, m.Dst_len, m.Table, m.Type, m.Scope = unix.AF_INET, uint8(p.Bits()), table, kind, unix.RT_SCOPE_LINK
			r := request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, m, attr(unix.RTA_DST, p.Addr().AsSlice()))
			if kind == unix.RTN_UNICAST {
				r.AddData(attr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
			}
			check(t, host.route.do(r))
		}
		add("198.51.100.0/24", unix.RT_TABLE_MAIN, unix.RTN_UNICAST)
		add("203.0.113.0/25", 77, unix.RTN_UNICAST)
		add("192.0.2.0/24", unix.RT_TABLE_MAIN, unix.RTN_BLACKHOLE)
		check(t, host.route.do(defaultRoute(index, true, netip.MustParseAddr("10.99.7.254"), false, 0)))
		used, err := HostRoutes()
		check(t, err)
		for _, want := range prefixes("198.51.100.0/24", "203.0.113.0/25", "192.0.2.0/24", "10.99.7.0/24", "fd00:99::/64", "127.0.0.0/8") {
			if !slices.Contains(used, want) {
				t.Errorf("%v is not among %v", want, used)
			}
		}
		for _, p := range used {
			if p.Bits() == 0 || p.Addr().IsMulticast() {
				t.Errorf("%v is in use", p)
			}
		}
		// A network that says nothing of its MTU has that of the way out.
		check(t, host.route.do(request(unix.RTM_NEWLINK, 0, ifinfo(index, 0), attr(unix.IFLA_MTU, nl.Uint32Attr(1380)))))
		second := newNetwork(t, "bridge", "10.99.8.0/24")
		up(t, second)
		br, err = host.route.link(second.Interface())
		check(t, err)
		if br.Attrs().MTU != 1380 {
			t.Errorf("the MTU is %d, that of the way out is 1380", br.Attrs().MTU)
		}
	})
}

func TestResolvers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	check(t, os.WriteFile(file, []byte("# nameserver 9.9.9.9\nnameserver 192.0.2.53\n\tnameserver  fe80::1%eth0\nnameserver nonsense\noptions ndots:1\nnameserver"), 0o600))
	if got := resolvers(file); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("fe80::1")}) {
		t.Errorf("resolvers are %v", got)
	}
}
