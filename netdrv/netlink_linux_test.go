package netdrv

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// TestAgain: an answer that was changed while it was given is asked for again.
func TestAgain(t *testing.T) {
	asked := 0
	v, err := again(func() (int, error) {
		if asked++; asked < 4 {
			return 0, netlink.ErrDumpInterrupted
		}
		return 7, nil
	})
	if v != 7 || err != nil || asked != 4 {
		t.Errorf("%d, %v after %d times", v, err, asked)
	}
	if _, err := again(func() (int, error) { return 0, netlink.ErrDumpInterrupted }); !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Errorf("where it never ends: %v", err)
	}
}

// TestChurn: lists are whole while interfaces come and go.
func TestChurn(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := newNetwork(t, "bridge", "10.99.7.0/24")
		d := up(t, n)
		kept := []*Endpoint{endpoint(n, 2), endpoint(n, 3)}
		for _, ep := range kept {
			container(t, d, n, ep)
		}
		br, err := host.route.link(n.Interface())
		check(t, err)
		stop := make(chan struct{})
		var churn sync.WaitGroup
		for i := range 2 {
			churn.Go(func() {
				ns, err := NewNamespace()
				if err != nil {
					t.Error(err)
					return
				}
				defer ns.Close()
				for {
					select {
					case <-stop:
						return
					default:
					}
					ep := endpoint(n, 10+i)
					if err := errors.Join(d.Connect(background, n, ep, ns), d.Disconnect(background, n, ep, ns)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for range 200 {
			ports, err := host.route.links("", br.Attrs().Index)
			if err != nil {
				t.Error(err)
				break
			}
			found := 0
			for _, p := range ports {
				for _, ep := range kept {
					if p.Attrs().Name == ep.HostInterface {
						found++
					}
				}
			}
			if found != 2 {
				t.Errorf("%d of two are in the list", found)
			}
			if _, err := HostRoutes(); err != nil {
				t.Error(err)
			}
		}
		close(stop)
		churn.Wait()
	})
}

// TestRefusal: the kernel's words are in the error, beside its number.
func TestRefusal(t *testing.T) {
	onHost(t, func(host *Namespace) {
		err := host.route.do(request(unix.RTM_NEWLINK, unix.NLM_F_CREATE, ifinfo(0, 0), attr(unix.IFLA_IFNAME, nl.ZeroTerminated("x")),
			attr(unix.IFLA_ADDRESS, []byte{1, 0, 0, 0, 0, 1}), kind("bridge")))
		if !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("a group's address for a bridge: %v", err)
		}
		err = host.route.do(request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0), attr(unix.IFLA_IFNAME, nl.ZeroTerminated("x")), kind("no-such-kind")))
		if !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "device type") {
			t.Errorf("an unknown kind: %v", err)
		}
		// Of several requests the first refusal is told, and the others are carried out.
		err = host.route.do(addAddress(1, netip.MustParsePrefix("10.1.1.1/32")), addAddress(1, netip.MustParsePrefix("10.1.1.1/32")), addAddress(1, netip.MustParsePrefix("10.1.1.2/32")))
		addresses, _ := host.route.addresses(1)
		if !errors.Is(err, unix.EEXIST) || len(addresses) != 4 {
			t.Errorf("%v, and then %v", err, addresses)
		}
	})
}

func kind(name string) *nl.RtAttr {
	info := attr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(name))
	return info
}

// TestMTU: what is as large as the MTU gets through, what is larger is refused by the container's own interface.
func TestMTU(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := newNetwork(t, "bridge", "10.99.7.0/24", "fd00:99::/64")
		n.MTU = 1340
		d := up(t, n)
		_, ep2, ns1, ns2 := pair(t, d, n)
		for _, a := range ep2.Addresses {
			header, level, option := 28, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
			if a.Addr().Is6() {
				header, level, option = 48, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
			}
			var server *net.UDPConn
			check(t, ns2.Do(func() (err error) {
				server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a.Addr(), 0)))
				return
			}))
			defer server.Close()
			check(t, ns1.Do(func() error {
				c, err := net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
				if err != nil {
					return err
				}
				defer c.Close()
				raw, _ := c.SyscallConn()
				raw.Control(func(fd uintptr) { check(t, unix.SetsockoptInt(int(fd), level, option, unix.IP_PMTUDISC_DO)) })
				if _, err := c.Write(make([]byte, n.MTU-header+1)); !errors.Is(err, unix.EMSGSIZE) {
					t.Errorf("%v: a packet of %d bytes: %v", a, n.MTU+1, err)
				}
				_, err = c.Write(make([]byte, n.MTU-header))
				return err
			}))
			b := make([]byte, 2000)
			if got, _, err := server.ReadFromUDP(b); err != nil || got != n.MTU-header {
				t.Errorf("%v: %d bytes came, %v", a, got, err)
			}
		}
	})
}
