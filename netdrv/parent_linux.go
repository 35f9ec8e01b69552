package netdrv

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A parentDriver gives containers interfaces on top of one that the host has: the network is the one which that is in. There
// is nothing of the network's own on the host. The kernel keeps such interfaces from talking to the parent's own addresses, which means to
// the host.
type parentDriver struct {
	kind   string // "macvlan"
	kernel string // what a kernel that has it was configured with
	log    *slog.Logger
	route  *conn
	// settle reads the network's options: what is said of each interface, and whether default routes have no gateway.
	settle func(n *Network, data *nl.RtAttr) (deviceRoute bool, err error)
	hasMAC bool
}

func openParent(d *parentDriver, config Config) (Driver, error) {
	d.log = config.Logger
	var err error
	if d.route, err = dial(); err != nil {
		return nil, err
	}
	return d, nil
}

// Close implements Driver.
func (d *parentDriver) Close() error {
	d.route.Close()
	return nil
}

// check checks a network and returns what is said to the kernel of each interface of it.
func (d *parentDriver) check(n *Network) (info *nl.RtAttr, deviceRoute bool, err error) {
	if err := n.check("parent", "mode"); err != nil {
		return nil, false, err
	}
	if n.Internal {
		return nil, false, &UnsupportedError{Feature: "an internal network of driver " + d.kind, Fix: "use the driver bridge: here the parent's network is what it is"}
	}
	info = attr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(d.kind))
	deviceRoute, err = d.settle(n, info.AddRtAttr(nl.IFLA_INFO_DATA, nil))
	return info, deviceRoute, err
}

// parent finds the interface that a network is on.
func (d *parentDriver) parent(n *Network) (netlink.Link, error) {
	name := n.Options["parent"]
	if !validInterface(name) {
		return nil, invalid("Network.Options[parent]", name, "the option names an interface of the host, as eth0")
	}
	link, err := d.route.link(name)
	if errors.Is(err, unix.ENODEV) {
		return nil, &Error{Op: "find the parent of network " + n.Name, Interface: name, Err: err, Fix: "the option parent names an interface of the host"}
	}
	if err != nil {
		return nil, kernelError("find the parent of network "+n.Name, name, err)
	}
	return link, nil
}

// Up implements Driver: it only says what would keep Connect from working.
func (d *parentDriver) Up(ctx context.Context, n *Network) error {
	info, _, err := d.check(n)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	parent, err := d.parent(n)
	if err != nil {
		return err
	}
	if parent.Attrs().Flags&net.FlagUp == 0 {
		d.log.Warn("the parent of a network is off: its containers reach nobody until it is on", "network", n.Name, "parent", parent.Attrs().Name)
	}
	// A kernel that knows the kind of interface refuses one without a parent for that (EINVAL); nothing is made either way.
	err = d.route.do(request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0), attr(unix.IFLA_IFNAME, nl.ZeroTerminated(n.Interface())), info))
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return d.unsupported(err)
	case errors.Is(err, unix.EPERM):
		return kernelError("make interfaces of kind "+d.kind, "", err)
	}
	return nil
}

func (d *parentDriver) unsupported(err error) error {
	return &UnsupportedError{Feature: "a network of driver " + d.kind, Kernel: d.kernel, Fix: "load the module " + d.kind + ", or use the driver bridge", Err: err}
}

// Down implements Driver.
func (d *parentDriver) Down(ctx context.Context, n *Network) error {
	_, _, err := d.check(n)
	return err
}

// Connect implements Driver.
func (d *parentDriver) Connect(ctx context.Context, n *Network, ep *Endpoint, ns *Namespace) error {
	info, deviceRoute, err := d.check(n)
	if err == nil {
		err = ep.check()
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	parent, err := d.parent(n)
	if err != nil {
		return err
	}
	data := []nl.NetlinkRequestData{ifinfo(0, 0), attr(unix.IFLA_IFNAME, nl.ZeroTerminated(ep.Interface)),
		attr(unix.IFLA_LINK, nl.Uint32Attr(uint32(parent.Attrs().Index))), info}
	if d.hasMAC {
		data = append(data, attr(unix.IFLA_ADDRESS, ep.MAC))
	}
	if mtu := ep.MTU; mtu != 0 || n.MTU != 0 {
		if mtu == 0 {
			mtu = n.MTU
		}
		if mtu > parent.Attrs().MTU {
			return invalid("Endpoint.MTU", mtu, fmt.Sprintf("it is larger than that of %s, which is %d", parent.Attrs().Name, parent.Attrs().MTU))
		}
		data = append(data, attr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	}
	err = descriptor(ns.file, func(fd uintptr) error {
		to := attr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(fd)))
		return d.route.do(request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, append(data, to)...))
	})
	on := parent.Attrs().Name
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return d.unsupported(err)
	case errors.Is(err, unix.EEXIST):
		return &Error{Op: "make in the container", Interface: ep.Interface, Err: err, Fix: "it has an interface of that name, or it is connected already"}
	case errors.Is(err, unix.EBUSY):
		return &Error{Op: fmt.Sprintf("make a %s on", d.kind), Interface: on, Err: err,
			Fix: "the interface is the parent of another kind of interfaces, a port of a bridge or bond, or a passthru parent that is taken: name another parent"}
	case err != nil:
		return kernelError(fmt.Sprintf("make a %s on", d.kind), on, err)
	}
	index, err := ns.configure(ep, deviceRoute)
	if err == nil {
		if d.hasMAC {
			ns.announce(ctx, index, ep)
		}
		return nil
	}
	if errors.Is(err, unix.ENETDOWN) {
		err = &Error{Op: "switch on " + ep.Interface + " in the container, on", Interface: on, Err: err, Fix: "the parent is off: switch it on"}
	}
	if _, gone := ns.route.removeLink(ep.Interface); gone != nil {
		err = errors.Join(err, kernelError("remove again", ep.Interface, gone))
	}
	return err
}

// find finds an endpoint's interface, and none that the container made in its place.
func (d *parentDriver) find(n *Network, ep *Endpoint, ns *Namespace) error {
	if _, _, err := d.check(n); err != nil {
		return err
	}
	if err := ep.check(); err != nil {
		return err
	}
	link, err := ns.route.link(ep.Interface)
	if err == nil && link.Type() != d.kind {
		err = unix.ENODEV
	}
	return err
}

// Disconnect implements Driver.
func (d *parentDriver) Disconnect(ctx context.Context, n *Network, ep *Endpoint, ns *Namespace) error {
	err := d.find(n, ep, ns)
	if err == nil {
		_, err = ns.route.removeLink(ep.Interface)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return kernelError("remove from the container", ep.Interface, err)
	}
	return nil
}

// Forget implements Driver: there is nothing outside of the container.
func (d *parentDriver) Forget(ctx context.Context, n *Network, eps []*Endpoint) error {
	_, _, err := d.check(n)
	return err
}

// Counters implements Driver.
func (d *parentDriver) Counters(ctx context.Context, n *Network, ep *Endpoint, ns *Namespace) (Counters, error) {
	if err := d.find(n, ep, ns); err != nil {
		return Counters{}, kernelError("count what went through", ep.Interface, err)
	}
	return ns.route.counters(ep.Interface)
}

// chooseMode finds the mode that a network asks for: of an isolated network the one that isolates.
func chooseMode(n *Network, modes []string, usual string) (string, error) {
	mode := n.Options["mode"]
	if mode == "" {
		mode = usual
	}
	if !slices.Contains(modes, mode) {
		return "", invalid("Network.Options[mode]", mode, fmt.Sprintf("the driver %s has %q", n.Driver, modes))
	}
	return mode, nil
}
