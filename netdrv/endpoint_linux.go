package netdrv

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// configure gives an interface that was just made in a namespace, and is down, its addresses and routes and switches it on. It
// returns the number of the interface.
func (ns *Namespace) configure(ep *Endpoint, deviceRoute bool) (index int, err error) {
	link, err := ns.route.link(ep.Interface)
	if err != nil {
		return 0, kernelError("find in the container", ep.Interface, err)
	}
	if err := ns.settle(ep); err != nil {
		return 0, err
	}
	index = link.Attrs().Index
	var requests []*nl.NetlinkRequest
	for _, a := range ep.Addresses {
		requests = append(requests, addAddress(index, a))
	}
	requests = append(requests, request(unix.RTM_NEWLINK, 0, ifinfo(index, unix.IFF_UP)))
	requests = append(requests, defaultRoutes(index, ep, deviceRoute, unix.NLM_F_EXCL)...)
	switch err := ns.route.do(requests...); {
	case errors.Is(err, unix.EEXIST):
		return 0, &Error{Op: "give addresses and routes to the container's", Interface: ep.Interface, Err: err,
			Fix: "a container has one default route of each family: leave Gateway4 and Gateway6 out and use SetGateway"}
	case err != nil:
		return 0, kernelError("give addresses and routes to the container's", ep.Interface, err)
	}
	return index, nil
}

// announce tells the neighbours whose the addresses are: they may remember who had them before, for up to a minute. An interface that is
// given its hardware address, even the one that it has, does so (arp_notify, ndisc_notify). This is a service: what does not
// work is found out by the neighbours themselves.
func (ns *Namespace) announce(ctx context.Context, index int, ep *Endpoint) {
	for _, a := range ep.Addresses {
		if a.Addr().Is6() {
			// The kernel listens for who asks after an address a moment after it is given, on a thread of its own.
			solicited := a.Addr().As16()
			copy(solicited[:], []byte{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff})
			soon(ctx, func() bool {
				joined, err := ns.route.joined(index, netip.AddrFrom16(solicited))
				return joined || err != nil
			})
		}
	}
	_ = ns.route.do(request(unix.RTM_NEWLINK, 0, ifinfo(index, 0), attr(unix.IFLA_ADDRESS, ep.MAC)))
}

// soon waits for what the kernel does within microseconds, and not for ever.
func soon(ctx context.Context, done func() bool) {
	for tries := range 100 {
		if done() || ctx.Err() != nil {
			return
		}
		if tries > 3 {
			// The runtime's own sleep is a millisecond at least where nothing else runs (epoll_wait).
			pause := unix.NsecToTimespec(int64(tries) * 20_000)
			_ = unix.Nanosleep(&pause, nil)
		}
	}
}

// settle sets what makes the interface use the addresses that it is given and no others.
func (ns *Namespace) settle(ep *Endpoint) error {
	in4, in6 := "ipv4/conf/"+ep.Interface+"/", "ipv6/conf/"+ep.Interface+"/"
	settings := [][2]string{{in4 + "arp_notify", "1"}}
	if ep.has6() {
		// Whoever chose the addresses knows that nobody else has them; router advertisements are no way to get others.
		settings = append(settings, [2]string{in6 + "disable_ipv6", "0"}, [2]string{in6 + "accept_dad", "0"}, [2]string{in6 + "accept_ra", "0"}, [2]string{in6 + "ndisc_notify", "1"})
	} else if ns.sysctls.v6 != nil {
		settings = append(settings, [2]string{in6 + "disable_ipv6", "1"}) // programs would try addresses that lead nowhere
	}
	for _, s := range settings {
		if err := ns.sysctls.write(s[0], s[1]); err != nil {
			if ep.has6() && errors.Is(err, fs.ErrNotExist) {
				return &UnsupportedError{Feature: "an IPv6 address", Kernel: "CONFIG_IPV6 (not booted with ipv6.disable=1)", Err: err}
			}
			return err
		}
	}
	return nil
}

// defaultRoutes are requests for those that an endpoint brings along.
func defaultRoutes(index int, ep *Endpoint, deviceRoute bool, flags int) []*nl.NetlinkRequest {
	var requests []*nl.NetlinkRequest
	for _, gateway := range []netip.Addr{ep.Gateway4, ep.Gateway6} {
		if !gateway.IsValid() {
			continue
		}
		onlink := !gateway.IsLinkLocalUnicast() && !slices.ContainsFunc(ep.Addresses, func(a netip.Prefix) bool { return a.Contains(gateway) })
		is4 := gateway.Is4()
		if deviceRoute {
			gateway, onlink = netip.Addr{}, false
		}
		requests = append(requests, defaultRoute(index, is4, gateway, onlink, flags))
	}
	return requests
}

// SetGateway makes an endpoint that is connected the one that has the container's default routes, in the families whose
// gateway it names: when the endpoint that had them was disconnected, or when one that is to have them came later.
func SetGateway(ns *Namespace, ep *Endpoint) error {
	if err := ep.check(); err != nil {
		return err
	}
	link, err := ns.route.link(ep.Interface)
	if err != nil {
		return kernelError("find in the container", ep.Interface, err)
	}
	err = ns.route.do(defaultRoutes(link.Attrs().Index, ep, link.Type() == "ipvlan" && isLayer3(link), unix.NLM_F_REPLACE)...)
	if err != nil {
		return kernelError("make the default route of the container's", ep.Interface, err)
	}
	return nil
}
