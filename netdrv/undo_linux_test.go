package netdrv

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A recorder is a firewall that remembers, and fails where it is told to.
type recorder struct {
	mu     sync.Mutex
	calls  []string
	guards map[string]bool
	fail   string
}

var errRecorder = errors.New("the recorder was told to fail")

func (r *recorder) note(what string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, what)
	if r.fail == what {
		return errRecorder
	}
	return nil
}

func (r *recorder) firewallUp(context.Context, *Network) error   { return r.note("up") }
func (r *recorder) firewallDown(context.Context, *Network) error { return r.note("down") }
func (r *recorder) guardSources(_ context.Context, _ *Network, eps []*Endpoint) error {
	err := r.note("guard")
	for _, ep := range eps {
		if err == nil {
			r.guards[ep.HostInterface] = true
		}
	}
	return err
}
func (r *recorder) forgetSources(_ context.Context, _ *Network, eps []*Endpoint) error {
	for _, ep := range eps {
		delete(r.guards, ep.HostInterface)
	}
	return r.note("forget")
}
func (r *recorder) part(context.Context, *Network, [][2]*Endpoint) error { return r.note("part") }
func (r *recorder) heal(context.Context, *Network, [][2]*Endpoint) error { return r.note("heal") }
func (r *recorder) forwardingUp(context.Context, *Network) error         { return r.note("forwarding") }
func (r *recorder) forwardingDown(context.Context, *Network) error       { return r.note("no forwarding") }
func (r *recorder) Close() error                                         { return nil }

// withRecorder opens the bridge driver with a firewall that remembers.
func withRecorder(t *testing.T) (Driver, *recorder) {
	r := &recorder{guards: map[string]bool{}}
	d := open(t, "bridge")
	check(t, d.(*bridgeDriver).firewall.Close())
	d.(*bridgeDriver).firewall = r
	return d, r
}

// TestFirewallOrder: what the tables protect from is switched on after them and off before them.
func TestFirewallOrder(t *testing.T) {
	onHost(t, func(host *Namespace) {
		d, r := withRecorder(t)
		n := newNetwork(t, "bridge", "10.99.7.0/24")
		for _, fail := range []string{"up", "forwarding"} {
			r.fail, r.calls = fail, nil
			if err := d.Up(background, n); !errors.Is(err, errRecorder) {
				t.Errorf("%s: %v", fail, err)
			}
			if got := interfaces(t, host); !slices.Equal(got, []string{"lo"}) || !slices.Contains(r.calls, "down") {
				t.Errorf("where the firewall fails there are %q, after %q", got, r.calls)
			}
		}
		r.fail, r.calls = "", nil
		check(t, d.Up(background, n))
		// A bridge that is there stays where its firewall fails, and is not opened to 127.0.0.0/8.
		check(t, host.sysctls.write("ipv4/conf/"+n.Interface()+"/route_localnet", "0"))
		r.fail = "up"
		if err := d.Up(background, n); !errors.Is(err, errRecorder) {
			t.Error(err)
		}
		if got := sysctl(t, host, "ipv4/conf/"+n.Interface()+"/route_localnet"); got != "0" {
			t.Errorf("route_localnet is %s without a firewall", got)
		}
		r.fail, r.calls = "", nil
		check(t, d.Up(background, n))
		ep := endpoint(n, 2)
		ns := container(t, d, n, ep)
		check(t, d.Disconnect(background, n, ep, ns))
		check(t, d.Down(background, n))
		if got := strings.Join(r.calls, ", "); got != "up, forwarding, guard, forget, down, no forwarding" {
			t.Errorf("the firewall was called: %s", got)
		}
		internal := newNetwork(t, "bridge", "10.99.7.0/24")
		internal.Internal = true
		r.calls = nil
		check(t, d.Up(background, internal))
		check(t, d.Down(background, internal))
		if got := strings.Join(r.calls, ", "); got != "up, down" {
			t.Errorf("of an internal network: %s", got)
		}
	})
}

// TestConnectUndo: wherever Connect fails, nothing is left: no interface on either side, no guard.
func TestConnectUndo(t *testing.T) {
	onHost(t, func(host *Namespace) {
		d, r := withRecorder(t)
		n := newNetwork(t, "bridge", "10.99.7.0/24", "fd00:99::/64")
		check(t, d.Up(background, n))
		isolated := newNetwork(t, "bridge", "10.99.8.0/24")
		isolated.Isolated = true
		check(t, d.Up(background, isolated))
		ep := endpoint(n, 2)
		ns := container(t, d, n, ep)
		before, guards := interfaces(t, host), maps.Clone(r.guards)
		for _, c := range []struct {
			name   string
			want   error
			change func(n *Network, ep *Endpoint)
		}{
			{"the firewall fails", errRecorder, func(*Network, *Endpoint) { r.fail = "guard" }},
			{"no bridge", unix.ENODEV, func(n *Network, ep *Endpoint) { n.ID = random(64) }},
			{"the container's name is taken", unix.EEXIST, func(n *Network, ep *Endpoint) { ep.Interface = "eth0" }},
			{"an address twice", unix.EEXIST, func(n *Network, ep *Endpoint) { ep.Addresses = append(ep.Addresses, ep.Addresses[1]) }},
			{"a second default route", unix.EEXIST, func(n *Network, ep *Endpoint) { ep.Gateway6 = n.Subnets[1].Gateway }},
			{"a gateway that is the container's own address", nil, func(n *Network, ep *Endpoint) { ep.Gateway4 = ep.Addresses[0].Addr() }},
			{"isolated, and an address twice", unix.EEXIST, func(n *Network, ep *Endpoint) { *n = *isolated; ep.Addresses = append(ep.Addresses, ep.Addresses[0]) }},
		} {
			n, other := *n, endpoint(n, 3)
			other.Interface, other.Gateway4, other.Gateway6 = "eth1", netip.Addr{}, netip.Addr{}
			c.change(&n, other)
			err := d.Connect(background, &n, other, ns)
			r.fail = ""
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%s: %v", c.name, err)
			}
			if got := interfaces(t, ns); !slices.Equal(got, []string{"eth0", "lo"}) {
				t.Errorf("%s: the container has %q", c.name, got)
			}
			if got := interfaces(t, host); !slices.Equal(got, before) {
				t.Errorf("%s: the host has %q, before %q", c.name, got, before)
			}
			if !maps.Equal(r.guards, guards) {
				t.Errorf("%s: the guards are %v, before %v", c.name, r.guards, guards)
			}
		}
		// The host's name is taken: the other endpoint keeps its interface, and its guard.
		same := endpoint(n, 4)
		same.HostInterface = ep.HostInterface
		if err := d.Connect(background, n, same, namespace(t)); !errors.Is(err, unix.EEXIST) {
			t.Errorf("a host end that is there: %v", err)
		}
		if err := d.Connect(background, n, ep, ns); !errors.Is(err, unix.EEXIST) {
			t.Errorf("connected twice: %v", err)
		}
		if !maps.Equal(r.guards, guards) {
			t.Errorf("the guards are %v, before %v", r.guards, guards)
		}
		if got := interfaces(t, host); !slices.Equal(got, before) {
			t.Errorf("the host has %q, before %q", got, before)
		}
		closed := namespace(t)
		closed.Close()
		if err := d.Connect(background, n, endpoint(n, 5), closed); err == nil {
			t.Error("connected into a namespace that was closed")
		}
		if got := interfaces(t, host); !slices.Equal(got, before) {
			t.Errorf("the host has %q, before %q", got, before)
		}
		if _, _, err := reach(ns, host, n.Subnets[0].Gateway, "after all that"); err != nil {
			t.Error(err)
		}
	})
}
