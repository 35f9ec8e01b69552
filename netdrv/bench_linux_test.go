package netdrv

import (
	"net"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// BenchmarkConnect is what a container's network costs: a namespace, an interface in it with address and default route, and the namespace let
// go. "floor" is the same by hand with plain netlink requests, and without waiting until packets get through; "library" as one writes it with
// vishvananda/netlink. The figures "ns", "connect" and "close" are medians of the parts; "gone" is when the kernel has taken the interface
// away, measured from the end.
func BenchmarkConnect(b *testing.B) {
	for _, c := range []struct {
		name    string
		subnets []string
	}{{"IPv4", []string{"10.99.0.0/16"}}, {"both", []string{"10.99.0.0/16", "fd00:99::/64"}}} {
		b.Run("driver/"+c.name, func(b *testing.B) {
			onHost(b, func(host *Namespace) {
				n := newNetwork(b, "bridge", c.subnets...)
				d := up(b, n)
				measure(b, host, func(parts *[3][]time.Duration) string {
					ep := endpoint(n, 2)
					t0 := time.Now()
					ns, err := NewNamespace()
					check(b, err)
					t1 := time.Now()
					check(b, d.Connect(background, n, ep, ns))
					t2 := time.Now()
					ns.Close()
					note(parts, t0, t1, t2)
					return ep.HostInterface
				})
			})
		})
	}
	b.Run("floor", func(b *testing.B) {
		onHost(b, func(host *Namespace) {
			n := newNetwork(b, "bridge", "10.99.0.0/16")
			up(b, n)
			br, err := host.route.link(n.Interface())
			check(b, err)
			measure(b, host, func(parts *[3][]time.Duration) string {
				ep := endpoint(n, 2)
				t0 := time.Now()
				ns, err := NewNamespace()
				check(b, err)
				t1 := time.Now()
				info := attr(unix.IFLA_LINKINFO, nil)
				info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
				peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
				nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC) // IFF_UP here is ENOTCONN: the other end is not known yet
				peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("eth0"))
				peer.AddRtAttr(unix.IFLA_ADDRESS, ep.MAC)
				peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns.file.Fd())))
				check(b, host.route.do(request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, unix.IFF_UP),
					attr(unix.IFLA_IFNAME, nl.ZeroTerminated(ep.HostInterface)), attr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(br.Attrs().Index))), info)))
				check(b, ns.route.do(addAddress(2, ep.Addresses[0]), request(unix.RTM_NEWLINK, 0, ifinfo(2, unix.IFF_UP)), defaultRoute(2, true, ep.Gateway4, false, 0)))
				t2 := time.Now()
				ns.Close()
				note(parts, t0, t1, t2)
				return ep.HostInterface
			})
		})
	})
	b.Run("library", func(b *testing.B) {
		onHost(b, func(host *Namespace) {
			n := newNetwork(b, "bridge", "10.99.0.0/16")
			up(b, n)
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			check(b, err)
			defer h.Close()
			br, err := h.LinkByName(n.Interface())
			check(b, err)
			measure(b, host, func(parts *[3][]time.Duration) string {
				ep := endpoint(n, 2)
				t0 := time.Now()
				ns, err := NewNamespace()
				check(b, err)
				var inside *netlink.Handle
				check(b, ns.Do(func() (err error) { inside, err = netlink.NewHandle(unix.NETLINK_ROUTE); return }))
				t1 := time.Now()
				v := netlink.NewVeth(netlink.LinkAttrs{Name: ep.HostInterface, TxQLen: -1, MasterIndex: br.Attrs().Index, Flags: net.FlagUp})
				v.PeerName, v.PeerHardwareAddr, v.PeerNamespace = "eth0", ep.MAC, netlink.NsFd(ns.file.Fd())
				check(b, h.LinkAdd(v))
				l, err := inside.LinkByName("eth0")
				check(b, err)
				check(b, inside.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: ep.Addresses[0].Addr().AsSlice(), Mask: net.CIDRMask(16, 32)}}))
				check(b, inside.LinkSetUp(l))
				check(b, inside.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: ep.Gateway4.AsSlice()}))
				t2 := time.Now()
				inside.Close()
				ns.Close()
				note(parts, t0, t1, t2)
				return ep.HostInterface
			})
		})
	})
}

func note(parts *[3][]time.Duration, at ...time.Time) {
	at = append(at, time.Now())
	for i := range parts {
		parts[i] = append(parts[i], at[i+1].Sub(at[i]))
	}
}

// measure reports medians.
func measure(b *testing.B, host *Namespace, once func(parts *[3][]time.Duration) string) {
	var parts [3][]time.Duration
	var last string
	b.ReportAllocs()
	for b.Loop() {
		last = once(&parts)
	}
	begun := time.Now()
	eventually(b, "the last interface is gone", func() bool { _, err := host.route.link(last); return err != nil })
	b.ReportMetric(float64(time.Since(begun).Microseconds()), "gone-us")
	for i, name := range []string{"ns-us", "connect-us", "close-us"} {
		slices.Sort(parts[i])
		b.ReportMetric(float64(parts[i][len(parts[i])/2].Nanoseconds())/1000, name)
	}
}

// BenchmarkUp is what it costs to find that a network is as it has to be, which a start of a container asks.
func BenchmarkUp(b *testing.B) {
	onHost(b, func(host *Namespace) {
		n := newNetwork(b, "bridge", "10.99.0.0/16", "fd00:99::/64")
		d := up(b, n)
		for b.Loop() {
			check(b, d.Up(background, n))
		}
	})
}
