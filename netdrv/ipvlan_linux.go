package netdrv

import (
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// ipvlanModes are those of enum ipvlan_mode.
var ipvlanModes = map[string]uint16{"l2": 0, "l3": 1, "l3s": 2}

// ipvlanPrivate is IPVLAN_F_PRIVATE: interfaces of one parent do not reach each other.
const ipvlanPrivate = 1

// openIPvlan opens the driver of interfaces that share the parent's hardware address, for networks that allow one to a port. In mode l2, the
// usual one, containers answer for their addresses themselves. In l3 and l3s the parent routes for them: there is no gateway and no
// broadcast, and others need routes to the containers by the host; l3s passes the host's connection tracking. All networks on one parent
// have one mode: the kernel gives the last one's to all.
func openIPvlan(config Config) (Driver, error) {
	return openParent(&parentDriver{kind: "ipvlan", kernel: "CONFIG_IPVLAN (3.19)", settle: func(n *Network, data *nl.RtAttr) (bool, error) {
		mode, err := chooseMode(n, []string{"l2", "l3", "l3s"}, "l2")
		data.AddRtAttr(nl.IFLA_IPVLAN_MODE, nl.Uint16Attr(ipvlanModes[mode]))
		if n.Isolated {
			data.AddRtAttr(nl.IFLA_IPVLAN_FLAG, nl.Uint16Attr(ipvlanPrivate))
		}
		return mode != "l2", err
	}}, config)
}

// isLayer3 reports an interface whose default route has no gateway.
func isLayer3(link netlink.Link) bool {
	l, ok := link.(*netlink.IPVlan)
	return ok && l.Mode != netlink.IPVLAN_MODE_L2
}
