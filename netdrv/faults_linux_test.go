package netdrv

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is two containers in a network.
func pair(t *testing.T, d Driver, n *Network) (ep1, ep2 *Endpoint, ns1, ns2 *Namespace) {
	ep1, ep2 = endpoint(n, 2), endpoint(n, 3)
	return ep1, ep2, container(t, d, n, ep1), container(t, d, n, ep2)
}

// TestFaultsRate: every kernel has a way to limit the rate.
func TestFaultsRate(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := newNetwork(t, "bridge", "10.99.7.0/24")
		d := up(t, n)
		ep1, ep2, ns1, ns2 := pair(t, d, n)
		measure := func() time.Duration {
			begun := time.Now()
			_, _, err := reach(ns1, ns2, ep2.Addresses[0].Addr(), strings.Repeat("x", 500_000))
			check(t, err)
			return time.Since(begun)
		}
		free := measure()
		f := d.(Faulter)
		check(t, f.SetFaults(background, n, ep1, ns1, Faults{Rate: 8_000_000})) // 500 kB in half a second
		limited := measure()
		check(t, f.SetFaults(background, n, ep1, ns1, Faults{Rate: 80_000_000}))
		faster := measure()
		check(t, f.SetFaults(background, n, ep1, ns1, Faults{}))
		check(t, f.SetFaults(background, n, ep1, ns1, Faults{}))
		after := measure()
		t.Logf("500 kB there and back: free %v, with 8 Mbit/s %v, with 80 %v, free again %v", free, limited, faster, after)
		if limited < 250*time.Millisecond || limited > 5*time.Second || faster > limited || after > limited/2 {
			t.Error("that is not what the rates say")
		}
	})
}

// TestFaultsLatency: netem where the kernel has it, an error that says so elsewhere, and then no faults.
func TestFaultsLatency(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := newNetwork(t, "bridge", "10.99.7.0/24")
		d := up(t, n)
		ep1, ep2, ns1, ns2 := pair(t, d, n)
		f := d.(Faulter)
		check(t, f.SetFaults(background, n, ep1, ns1, Faults{Rate: 80_000_000}))
		err := f.SetFaults(background, n, ep1, ns1, Faults{Latency: 60 * time.Millisecond, Jitter: 5 * time.Millisecond})
		var unsupported *UnsupportedError
		if errors.Is(err, errors.ErrUnsupported) {
			if !errors.As(err, &unsupported) || unsupported.Kernel == "" || !errors.Is(err, unix.ENOENT) {
				t.Errorf("%#v", err)
			}
			t.Log(err)
			for _, at := range []struct {
				c    *conn
				name string
			}{{host.route, ep1.HostInterface}, {ns1.route, "eth0"}} {
				if l, err := at.c.link(at.name); err != nil || l.Attrs().TxQLen < 0 {
					t.Error(err)
				}
			}
		} else {
			check(t, err)
			_, took, err := reach(ns1, ns2, ep2.Addresses[0].Addr(), "x")
			check(t, err)
			if took < 110*time.Millisecond || took > 3*time.Second {
				t.Errorf("a connection with 60 ms each way took %v", took)
			}
			check(t, f.SetFaults(background, n, ep1, ns1, Faults{Loss: 1}))
			unreachable(t, ns1, ns2, ep2.Addresses[0].Addr())
			check(t, f.SetFaults(background, n, ep1, ns1, Faults{Loss: 0.05, Rate: 1e9}))
			if _, _, err := reach(ns1, ns2, ep2.Addresses[0].Addr(), strings.Repeat("x", 100_000)); err != nil {
				t.Errorf("with one packet in twenty lost: %v", err)
			}
		}
		check(t, f.SetFaults(background, n, ep1, ns1, Faults{}))
		if _, took, err := reach(ns1, ns2, ep2.Addresses[0].Addr(), "x"); err != nil || took > 100*time.Millisecond {
			t.Errorf("without faults: %v, %v", took, err)
		}
		for what, faults := range map[string]Faults{"loss": {Loss: 1.5}, "latency": {Latency: -1}, "jitter": {Jitter: 1}, "rate": {Rate: 1}} {
			var invalid *InvalidError
			if err := f.SetFaults(background, n, ep1, ns1, faults); !errors.As(err, &invalid) {
				t.Errorf("%s: %v", what, err)
			}
		}
		gone := *ep1
		gone.HostInterface = "corv0000000000"
		if err := f.SetFaults(background, n, &gone, ns1, Faults{Rate: 1e6}); !errors.Is(err, unix.ENODEV) {
			t.Errorf("of an endpoint that is not there: %v", err)
		}
	})
}
