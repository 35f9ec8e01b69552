package netdrv

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func builtinDriver(name string) OpenDriver {
	switch name {
	case "bridge":
		return openBridge
	case "macvlan":
		return openMacvlan
	case "ipvlan":
		return openIPvlan
	}
	return nil
}

// A firewall is what the bridge driver asks of the tables. All of it is idempotent.
type firewall interface {
	firewallUp(ctx context.Context, n *Network) error
	firewallDown(ctx context.Context, n *Network) error
	guardSources(ctx context.Context, n *Network, eps []*Endpoint) error
	forgetSources(ctx context.Context, n *Network, eps []*Endpoint) error
	part(ctx context.Context, n *Network, pairs [][2]*Endpoint) error
	heal(ctx context.Context, n *Network, pairs [][2]*Endpoint) error // those that forgetSources forgets are healed by that
	forwardingUp(ctx context.Context, n *Network) error               // not for internal networks
	forwardingDown(ctx context.Context, n *Network) error             // after the bridge is gone
	Close() error
}

// bridgeOptions are the driver's own: spoofcheck is the firewall's.
var bridgeOptions = []string{"spoofcheck"}

// A bridgeDriver works in the namespace that it was opened in, whatever thread calls it.
type bridgeDriver struct {
	log      *slog.Logger
	route    *conn
	sysctls  *sysctls
	firewall firewall
}

func openBridge(config Config) (Driver, error) {
	d := &bridgeDriver{log: config.Logger}
	var err error
	if d.route, err = dial(); err == nil {
		if d.sysctls, err = openSysctls(); err == nil {
			d.firewall, err = openFirewall(config)
		}
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Close implements Driver.
func (d *bridgeDriver) Close() error {
	d.route.Close()
	d.sysctls.Close()
	if d.firewall != nil {
		return d.firewall.Close()
	}
	return nil
}

func checkBridge(n *Network) error {
	if err := n.check(bridgeOptions...); err != nil {
		return err
	}
	for _, s := range n.Subnets {
		if !s.Gateway.IsValid() {
			return invalid("Network.Subnets", s.Prefix, "a bridge has an address of its own: the Gateway")
		}
	}
	return nil
}

// Up implements Driver.
func (d *bridgeDriver) Up(ctx context.Context, n *Network) error {
	if err := checkBridge(n); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	link, err := d.route.link(n.Interface())
	made := false
	switch {
	case errors.Is(err, unix.ENODEV):
		d.removeStrays(ctx)
		made = true
		link, err = d.makeBridge(n)
	case err == nil:
		err = isOurs(link, n)
	default:
		err = kernelError("find", n.Interface(), err)
	}
	if err != nil {
		return err
	}
	if err := d.repair(ctx, n, link); err != nil {
		if made {
			_, gone := d.route.removeLink(n.Interface())
			return errors.Join(err, gone, d.firewall.firewallDown(ctx, n))
		}
		return err
	}
	if made {
		d.log.Info("made a bridge", "network", n.Name, "interface", n.Interface())
	}
	return nil
}

// alias says whose a bridge is. The kernel takes 255 bytes: of a root whose path does not fit only the id is said, and it is
// never taken for one that is gone.
func alias(n *Network) string {
	a := "coracle:" + n.ID + ":" + n.Root
	if len(a) > 255 {
		return "coracle:" + n.ID + ":"
	}
	return a
}

// isOurs reports an interface that has a network's name but is not its bridge.
func isOurs(link netlink.Link, n *Network) error {
	a := link.Attrs()
	if link.Type() != "bridge" || a.Alias != "" && !strings.HasPrefix(a.Alias, "coracle:"+n.ID+":") {
		return &Error{Op: "use as the bridge of network " + n.Name, Interface: a.Name, Err: unix.EEXIST,
			Fix: fmt.Sprintf("somebody has a %s of this name with the alias %q: remove it, or make another network", link.Type(), a.Alias)}
	}
	return nil
}

// makeBridge makes a bridge that is down. Its hardware address is made of the id: one that the kernel chose would change with the ports.
func (d *bridgeDriver) makeBridge(n *Network) (netlink.Link, error) {
	mtu := n.MTU
	if mtu == 0 {
		mtu = d.uplinkMTU(n)
	}
	sum := sha256.Sum256([]byte(n.ID))
	mac := net.HardwareAddr(append([]byte{0x02}, sum[:5]...))
	info := attr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	// Only a change makes the MTU one that the bridge keeps, instead of the least of its ports: it is made with another. Both are one
	// system call, so that there is no bridge without an alias, whoever is killed when.
	name := attr(unix.IFLA_IFNAME, nl.ZeroTerminated(n.Interface()))
	err := d.route.do(
		request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0), name, attr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu^1))), attr(unix.IFLA_ADDRESS, mac), info),
		request(unix.RTM_NEWLINK, 0, ifinfo(0, 0), name, attr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))), attr(unix.IFLA_IFALIAS, []byte(alias(n)))))
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, &UnsupportedError{Feature: "a network of driver bridge", Kernel: "CONFIG_BRIDGE", Fix: "load the module bridge", Err: err}
	case err != nil:
		return nil, kernelError("make the bridge", n.Interface(), err)
	}
	link, err := d.route.link(n.Interface())
	if err != nil {
		return nil, kernelError("find the bridge", n.Interface(), err)
	}
	return link, nil
}

// uplinkMTU is the least of the interfaces that default routes lead to, and 1500 at most: what is larger would be sent in
// pieces, or lost where nobody says so.
func (d *bridgeDriver) uplinkMTU(n *Network) int {
	mtu := 1500
	if n.Internal {
		return mtu
	}
	for _, index := range d.route.uplinks() {
		if link, err := d.route.linkBy(index); err == nil && link.Attrs().MTU >= 1280 {
			mtu = min(mtu, link.Attrs().MTU)
		}
	}
	return mtu
}

// repair makes of a bridge what it has to be. Where all is right it only asks.
func (d *bridgeDriver) repair(ctx context.Context, n *Network, link netlink.Link) error {
	name, a := n.Interface(), link.Attrs()
	if err := d.settleBridge(n, name, a.Flags&net.FlagUp != 0); err != nil {
		return err
	}
	have, err := d.route.addresses(a.Index)
	if err != nil {
		return kernelError("list the addresses of", name, err)
	}
	var requests []*nl.NetlinkRequest
	for _, s := range n.Subnets {
		if p := netip.PrefixFrom(s.Gateway, s.Prefix.Bits()); !slices.Contains(have, p) {
			requests = append(requests, addAddress(a.Index, p))
		}
	}
	if change := bridgeChanges(n, a); change != nil {
		requests = append(requests, change)
	}
	if err := d.route.do(requests...); err != nil {
		return kernelError("give an address to the bridge", name, err)
	}
	if err := d.firewall.firewallUp(ctx, n); err != nil {
		return err
	}
	if n.subnet(true) != nil && !n.Internal {
		// Only now that the tables keep containers from the host's 127.0.0.0/8 may packets of that range be routed here.
		if err := d.sysctls.set("ipv4/conf/"+name+"/route_localnet", "1"); err != nil {
			return err
		}
	}
	if !n.Internal {
		if err := d.firewall.forwardingUp(ctx, n); err != nil {
			return err
		}
	}
	if a.Flags&net.FlagUp == 0 {
		if err := d.route.do(request(unix.RTM_NEWLINK, 0, ifinfo(a.Index, unix.IFF_UP))); err != nil {
			return kernelError("switch on the bridge", name, err)
		}
	}
	return nil
}

// settleBridge sets how the host itself uses the bridge. The host is the router and listens to no other; nobody else has its address.
func (d *bridgeDriver) settleBridge(n *Network, name string, up bool) error {
	if d.sysctls.v6 == nil {
		if n.subnet(false) != nil {
			return &UnsupportedError{Feature: "an IPv6 network", Kernel: "CONFIG_IPV6 (not booted with ipv6.disable=1)"}
		}
		return nil
	}
	in := "ipv6/conf/" + name + "/"
	if n.subnet(false) == nil {
		return d.sysctls.set(in+"disable_ipv6", "1") // its link-local address would make the host's services reachable
	}
	for _, s := range []string{"disable_ipv6", "accept_dad", "accept_ra"} {
		if err := d.sysctls.set(in+s, "0"); err != nil {
			return err
		}
	}
	return nil
}

// bridgeChanges is a request for what is not as it has to be of alias and MTU, or nil.
func bridgeChanges(n *Network, a *netlink.LinkAttrs) *nl.NetlinkRequest {
	r := request(unix.RTM_NEWLINK, 0, ifinfo(a.Index, 0))
	if a.Alias != alias(n) {
		r.AddData(attr(unix.IFLA_IFALIAS, []byte(alias(n))))
	}
	if n.MTU != 0 && a.MTU != n.MTU {
		r.AddData(attr(unix.IFLA_MTU, nl.Uint32Attr(uint32(n.MTU))))
	}
	if len(r.Data) == 1 {
		return nil
	}
	return r
}

// removeStrays takes away the bridges of roots that do not exist any more. One that has ports is used by somebody who sees
// another file system than this program, and stays.
func (d *bridgeDriver) removeStrays(ctx context.Context) {
	links, err := d.route.links("bridge", 0)
	if err != nil {
		d.log.Warn("cannot look for bridges that nobody owns", "error", err)
		return
	}
	for _, link := range links {
		a := link.Attrs()
		id, root, ok := strings.Cut(strings.TrimPrefix(a.Alias, "coracle:"), ":")
		stray := &Network{ID: id, Name: a.Name, Root: root}
		if !strings.HasPrefix(a.Alias, "coracle:") || !ok || !strings.HasPrefix(root, "/") || len(id) != 64 || a.Name != stray.Interface() {
			continue
		}
		if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if ports, err := d.usedPorts(a.Index); err != nil || len(ports) > 0 {
			continue
		}
		_, err := d.route.removeLink(a.Name)
		err = errors.Join(err, d.firewall.firewallDown(ctx, stray), d.firewall.forwardingDown(ctx, stray))
		d.log.Info("removed the bridge of a root that is gone", "interface", a.Name, "root", root, "error", err)
	}
}

// portPatience is how long a port may look used after its container has ended: a netlink socket that was closed keeps its namespace
// for an RCU grace period.
const portPatience = 300 * time.Millisecond

// Down implements Driver.
func (d *bridgeDriver) Down(ctx context.Context, n *Network) error {
	if err := checkBridge(n); err != nil {
		return err
	}
	link, err := d.route.link(n.Interface())
	switch {
	case errors.Is(err, unix.ENODEV):
		return d.tablesDown(ctx, n)
	case err != nil:
		return kernelError("find", n.Interface(), err)
	}
	if err := isOurs(link, n); err != nil {
		return err
	}
	for begun := time.Now(); ; {
		ports, err := d.usedPorts(link.Attrs().Index)
		if err != nil {
			return kernelError("list the ports of", n.Interface(), err)
		}
		if len(ports) == 0 {
			break
		}
		if time.Since(begun) > portPatience {
			return &BusyError{Network: n.Name, Interface: n.Interface(), Ports: ports}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	if _, err := d.route.removeLink(n.Interface()); err != nil {
		return kernelError("remove the bridge", n.Interface(), err)
	}
	return d.tablesDown(ctx, n)
}

func (d *bridgeDriver) tablesDown(ctx context.Context, n *Network) error {
	err := d.firewall.firewallDown(ctx, n)
	if !n.Internal {
		err = errors.Join(err, d.firewall.forwardingDown(ctx, n))
	}
	return err
}

// usedPorts are the names of a bridge's ports, but of those whose container has ended: they are there until the kernel has taken
// the namespace apart, 40 ms or, where it has much to do, seconds.
func (d *bridgeDriver) usedPorts(index int) ([]string, error) {
	ports, err := d.route.links("", index)
	if err != nil {
		return nil, err
	}
	var used []string
	for _, p := range ports {
		a := p.Attrs()
		if p.Type() == "veth" && strings.HasPrefix(a.Name, vethPrefix) && !d.namespaceLives(a.NetNsID) {
			continue
		}
		used = append(used, a.Name)
	}
	return used, nil
}

// namespaceLives reports whether a namespace has somebody left in it or holding it. The kernel looks into no other (since 4.16).
func (d *bridgeDriver) namespaceLives(id int) bool {
	if id < 0 {
		return false // it has taken the number away already
	}
	_, err := d.route.get(request(unix.RTM_GETLINK, 0, ifinfo(1, 0), attr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(id)))))
	return !errors.Is(err, unix.EINVAL)
}
