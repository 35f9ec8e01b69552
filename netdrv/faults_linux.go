package netdrv

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// SetFaults implements Faulter. What leaves the host's end goes to the container, what leaves the container's end comes from it.
func (d *bridgeDriver) SetFaults(ctx context.Context, n *Network, ep *Endpoint, ns *Namespace, f Faults) error {
	if err := checkPort(n, ep); err != nil {
		return err
	}
	if err := f.check(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	err := d.route.setFaults(ep.HostInterface, f)
	if err == nil {
		err = ns.route.setFaults(ep.Interface, f)
	}
	if err != nil {
		_ = d.route.setFaults(ep.HostInterface, Faults{}) // it may be gone
		_ = ns.route.setFaults(ep.Interface, Faults{})
	}
	return err
}

// setFaults replaces what an interface does with packets that it sends.
func (c *conn) setFaults(name string, f Faults) error {
	link, err := c.link(name)
	if err != nil {
		return kernelError("find", name, err)
	}
	m := &nl.TcMsg{Family: unix.AF_UNSPEC, Ifindex: int32(link.Attrs().Index), Parent: netlink.HANDLE_ROOT}
	if f == (Faults{}) {
		err := c.do(request(unix.RTM_DELQDISC, 0, m))
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			return nil // the kernel's own, which cannot be removed
		}
		if err != nil {
			return kernelError("take the faults off", name, err)
		}
		return nil
	}
	kind, options := "netem", netem(f, link.Attrs().MTU)
	err = c.do(faultRequest(m, kind, options))
	if noQdisc(err) && f.Loss == 0 && f.Latency == 0 {
		kind, options = "tbf", tbf(f.Rate, link.Attrs().MTU)
		err = c.do(faultRequest(m, kind, options))
	}
	switch {
	case noQdisc(err) && kind == "netem":
		return &UnsupportedError{Feature: "loss or latency", Kernel: "CONFIG_NET_SCH_NETEM", Fix: "load the module sch_netem", Err: err}
	case noQdisc(err):
		return &UnsupportedError{Feature: "a limited rate", Kernel: "CONFIG_NET_SCH_NETEM or CONFIG_NET_SCH_TBF", Fix: "load the module sch_tbf", Err: err}
	case err != nil:
		return kernelError("set faults with "+kind+" on", name, err)
	}
	return nil
}

// noQdisc reports that the kernel does not know a queueing discipline.
func noQdisc(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) }

func faultRequest(m *nl.TcMsg, kind string, options *nl.RtAttr) *nl.NetlinkRequest {
	return request(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m, attr(nl.TCA_KIND, nl.ZeroTerminated(kind)), options)
}

// Attributes of netem that the library has no names for: times in nanoseconds (4.16).
const (
	netemLatency64 = 10
	netemJitter64  = 11
)

// netem are the options of struct tc_netem_qopt and attributes after it.
func netem(f Faults, mtu int) *nl.RtAttr {
	q := nl.TcNetemQopt{Limit: 1000, Loss: uint32(math.Round(f.Loss * math.MaxUint32))}
	if f.Rate > 0 || f.Latency > 0 {
		// As many packets as are under way: what the rate lets through meanwhile or, without one, ten gigabits a second of
		// large packets, bounded.
		rate := f.Rate
		if rate == 0 {
			rate = 10e9
		}
		inFlight := float64(rate) / 8 / float64(mtu) * (f.Latency + f.Jitter).Seconds()
		q.Limit = uint32(min(max(inFlight, 1000), 1e6))
	}
	options := attr(nl.TCA_OPTIONS, q.Serialize())
	if f.Latency > 0 {
		options.AddRtAttr(netemLatency64, nl.Uint64Attr(uint64(f.Latency)))
		options.AddRtAttr(netemJitter64, nl.Uint64Attr(uint64(f.Jitter)))
	}
	if f.Rate > 0 {
		rate := nl.TcNetemRate{Rate: uint32(min(f.Rate/8, math.MaxUint32))}
		if f.Rate/8 > math.MaxUint32 {
			options.AddRtAttr(nl.TCA_NETEM_RATE64, nl.Uint64Attr(f.Rate/8))
		}
		options.AddRtAttr(nl.TCA_NETEM_RATE, rate.Serialize())
	}
	return options
}

// tbf are the options of a token bucket: 10 ms of the rate, and at least what the interface sends at once (segments of 64 KiB that are not cut
// into packets before).
func tbf(rate uint64, mtu int) *nl.RtAttr {
	bytes := max(rate/8, 1)
	burst := max(bytes/100, uint64(mtu)+14, 64<<10)
	options := attr(nl.TCA_OPTIONS, nil)
	q := nl.TcTbfQopt{Limit: uint32(min(burst*4+uint64(mtu)*100, math.MaxUint32)), Buffer: tbfTicks(burst, bytes)}
	q.Rate.Rate = uint32(min(bytes, math.MaxUint32))
	q.Rate.Linklayer = 1 // TC_LINKLAYER_ETHERNET: the kernel needs no table then
	options.AddRtAttr(nl.TCA_TBF_PARMS, q.Serialize())
	if bytes > math.MaxUint32 {
		options.AddRtAttr(nl.TCA_TBF_RATE64, nl.Uint64Attr(bytes))
	}
	b := make([]byte, 4)
	binary.NativeEndian.PutUint32(b, uint32(min(burst, math.MaxUint32)))
	options.AddRtAttr(tbfBurst, b)
	return options
}

// tbfBurst is TCA_TBF_BURST: bytes instead of ticks (3.14).
const tbfBurst = 6

// tbfTicks is how long a burst takes at the rate, in the kernel's ticks of 64 ns.
func tbfTicks(burst, rate uint64) uint32 {
	ns := float64(burst) / float64(rate) * float64(time.Second)
	return uint32(min(ns/64, math.MaxUint32))
}
