package netdrv

import (
	"github.com/vishvananda/netlink/nl"
)

// macvlanModes are those of enum macvlan_mode.
var macvlanModes = map[string]uint32{"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}

// openMacvlan opens the driver of interfaces that have hardware addresses of their own on the parent's network: each container
// is a machine there, with an address of that network. In mode bridge, the usual one, containers reach each other directly; in
// vepa the switch beyond sends their frames back; in private they do not reach each other; in passthru one container has the parent for itself.
func openMacvlan(config Config) (Driver, error) {
	return openParent(&parentDriver{kind: "macvlan", kernel: "CONFIG_MACVLAN", hasMAC: true, settle: func(n *Network, data *nl.RtAttr) (bool, error) {
		usual := "bridge"
		if n.Isolated {
			usual = "private"
		}
		mode, err := chooseMode(n, []string{"bridge", "private", "vepa", "passthru"}, usual)
		if err == nil && n.Isolated && (mode == "bridge" || mode == "vepa") {
			err = invalid("Network.Options[mode]", mode, "in an isolated network it is private")
		}
		data.AddRtAttr(nl.IFLA_MACVLAN_MODE, nl.Uint32Attr(macvlanModes[mode]))
		return false, err
	}}, config)
}
