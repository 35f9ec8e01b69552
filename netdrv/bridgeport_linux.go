package netdrv

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// checkPort checks an endpoint of a bridge.
func checkPort(n *Network, ep *Endpoint) error {
	if err := checkBridge(n); err != nil {
		return err
	}
	if err := ep.check(); err != nil {
		return err
	}
	digits, ok := strings.CutPrefix(ep.HostInterface, vethPrefix)
	if _, err := hex.DecodeString(digits); !ok || err != nil || len(digits) != 10 {
		return invalid("Endpoint.HostInterface", ep.HostInterface, "the host's end is called "+vethPrefix+" and 10 hexadecimal digits")
	}
	return nil
}

// Connect implements Driver.
func (d *bridgeDriver) Connect(ctx context.Context, n *Network, ep *Endpoint, ns *Namespace) error {
	if err := checkPort(n, ep); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	bridge, err := d.route.link(n.Interface())
	if errors.Is(err, unix.ENODEV) {
		return &Error{Op: "find the bridge of network " + n.Name, Interface: n.Interface(), Err: err, Fix: "somebody removed it: Up makes it again"}
	}
	if err != nil {
		return kernelError("find the bridge of network "+n.Name, n.Interface(), err)
	}
	mtu := bridge.Attrs().MTU
	if ep.MTU > mtu {
		return invalid("Endpoint.MTU", ep.MTU, fmt.Sprintf("it is larger than the network's, which is %d", mtu))
	}
	if ep.MTU != 0 {
		mtu = ep.MTU
	}
	// What the container may send is known before there is anything to send through.
	if err := d.firewall.guardSources(ctx, n, []*Endpoint{ep}); err != nil {
		return err
	}
	made, err := d.plug(n, ep, ns, bridge, mtu)
	if err == nil {
		var index int
		if index, err = ns.configure(ep, false); err == nil {
			d.awaitCarrier(ctx, bridge, ep.HostInterface)
			ns.announce(ctx, index, ep)
			return nil
		}
	}
	if made {
		if _, gone := d.route.removeLink(ep.HostInterface); gone != nil {
			err = errors.Join(err, kernelError("remove again", ep.HostInterface, gone))
		}
	} else if _, there := d.route.link(ep.HostInterface); there == nil && errors.Is(err, unix.EEXIST) {
		return err // the endpoint is connected: the guard stays as long as what it guards
	}
	if forgotten := d.firewall.forgetSources(context.WithoutCancel(ctx), n, []*Endpoint{ep}); forgotten != nil {
		err = errors.Join(err, forgotten)
	}
	return err
}

// awaitCarrier waits until packets get through. That both ends are on the kernel tells bridge and queues a moment later (linkwatch, some
// 30 us): a first packet before that would be lost, and sent again after a second.
func (d *bridgeDriver) awaitCarrier(ctx context.Context, bridge netlink.Link, names ...string) {
	if bridge.Attrs().OperState != netlink.OperUp {
		names = append(names, bridge.Attrs().Name) // by its first port
	}
	for _, name := range names {
		soon(ctx, func() bool {
			link, err := d.route.link(name)
			return err != nil || link.Attrs().OperState == netlink.OperUp || link.Attrs().Flags&net.FlagUp == 0
		})
	}
}

// plug makes a pair of interfaces: the host's end a port of the bridge and on, the container's in its namespace and off.
func (d *bridgeDriver) plug(n *Network, ep *Endpoint, ns *Namespace, bridge netlink.Link, mtu int) (made bool, err error) {
	up := uint32(unix.IFF_UP)
	if n.Isolated {
		up = 0 // until it is isolated
	}
	info := attr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	peer := data.AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	err = descriptor(ns.file, func(fd uintptr) error {
		peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(ep.Interface))
		peer.AddRtAttr(unix.IFLA_ADDRESS, ep.MAC)
		peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu)))
		peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(fd)))
		return d.route.do(request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, up), attr(unix.IFLA_IFNAME, nl.ZeroTerminated(ep.HostInterface)),
			attr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))), attr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge.Attrs().Index))), info))
	})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, &UnsupportedError{Feature: "a network of driver bridge", Kernel: "CONFIG_VETH", Fix: "load the module veth", Err: err}
	case errors.Is(err, unix.EEXIST):
		return false, &Error{Op: fmt.Sprintf("make the pair %s and, in the container, %s", ep.HostInterface, ep.Interface), Err: err,
			Fix: "one of these is there already: the endpoint is connected, or another has its name"}
	case errors.Is(err, unix.EXFULL):
		return false, &Error{Op: "make another port of the bridge", Interface: n.Interface(), Err: err, Fix: "a bridge has 1023 ports: use another network"}
	case err != nil:
		return false, kernelError("make the pair of interfaces", ep.HostInterface, err)
	}
	// Where br_netfilter is, what a container sends to its own published port is not routed but bridged back to where it came from. Both
	// settings are of one request, by name, that is no second look for the interface.
	slave := attr(unix.IFLA_LINKINFO, nil)
	slave.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
	port := slave.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
	port.AddRtAttr(nl.IFLA_BRPORT_MODE, []byte{1})
	if n.Isolated {
		port.AddRtAttr(nl.IFLA_BRPORT_ISOLATED, []byte{1})
	}
	name := attr(unix.IFLA_IFNAME, nl.ZeroTerminated(ep.HostInterface))
	requests := []*nl.NetlinkRequest{request(unix.RTM_NEWLINK, 0, ifinfo(0, 0), name, slave)}
	if n.Isolated {
		requests = append(requests, request(unix.RTM_NEWLINK, 0, ifinfo(0, unix.IFF_UP), name))
	}
	err = d.route.do(requests...)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return true, &UnsupportedError{Feature: "an isolated network", Kernel: "isolated ports of bridges (4.18)", Err: err}
	}
	if err != nil {
		return true, kernelError("set up the port", ep.HostInterface, err)
	}
	return true, nil
}

// Disconnect implements Driver.
func (d *bridgeDriver) Disconnect(ctx context.Context, n *Network, ep *Endpoint, ns *Namespace) error {
	if err := checkPort(n, ep); err != nil {
		return err
	}
	if _, err := d.route.removeLink(ep.HostInterface); err != nil {
		return kernelError("remove", ep.HostInterface, err)
	}
	return d.firewall.forgetSources(ctx, n, []*Endpoint{ep})
}

// Forget implements Driver.
func (d *bridgeDriver) Forget(ctx context.Context, n *Network, eps []*Endpoint) error {
	if err := checkBridge(n); err != nil || len(eps) == 0 {
		return err
	}
	return d.firewall.forgetSources(ctx, n, eps)
}

// Counters implements Driver. It asks the host's end, which the container cannot touch: what that sends, the container receives.
func (d *bridgeDriver) Counters(ctx context.Context, n *Network, ep *Endpoint, ns *Namespace) (Counters, error) {
	if err := checkPort(n, ep); err != nil {
		return Counters{}, err
	}
	c, err := d.route.counters(ep.HostInterface)
	return Counters{RxBytes: c.TxBytes, RxPackets: c.TxPackets, RxErrors: c.TxErrors, RxDropped: c.TxDropped,
		TxBytes: c.RxBytes, TxPackets: c.RxPackets, TxErrors: c.RxErrors, TxDropped: c.RxDropped}, err
}
