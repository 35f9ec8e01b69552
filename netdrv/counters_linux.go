package netdrv

import (
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// counters are those of an interface, as it sees them.
func (c *conn) counters(name string) (Counters, error) {
	link, err := c.linkBy(0, attr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if err != nil {
		return Counters{}, kernelError("count what went through", name, err)
	}
	s := link.Attrs().Statistics
	if s == nil {
		return Counters{}, nil
	}
	return Counters{RxBytes: s.RxBytes, RxPackets: s.RxPackets, RxErrors: s.RxErrors, RxDropped: s.RxDropped,
		TxBytes: s.TxBytes, TxPackets: s.TxPackets, TxErrors: s.TxErrors, TxDropped: s.TxDropped}, nil
}
