package netdrvtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/netdrv"
)

var background = context.Background()

// Run tests a driver.
func Run(t *testing.T, open netdrv.OpenDriver, o *Options) {
	t.Helper()
	testutil.RequireRoot(t)
	if o == nil {
		o = &Options{}
	}
	for _, test := range []struct {
		name string
		run  func(w *world)
	}{
		{"Reach", testReach},
		{"Interface", testInterface},
		{"Twice", testTwice},
		{"Undo", testUndo},
		{"Canceled", testCanceled},
		{"ManyAtOnce", testManyAtOnce},
		{"Gone", testGone},
		{"Busy", testBusy},
		{"Invalid", testInvalid},
		{"Closed", testClosed},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := resources()
			inWorld(t, open, o, test.run)
			// The kernel takes namespaces apart, and the runtime ends threads, a moment later.
			var left string
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				if left = resources().since(before); left == "" {
					return
				}
			}
			t.Error(left)
		})
	}
}

// held is what the process has of which a driver may lose some.
type held struct {
	descriptors int
	strays      []string // threads in other network namespaces
}

func resources() held {
	var h held
	fds, _ := os.ReadDir("/proc/self/fd")
	h.descriptors = len(fds)
	own, _ := os.Readlink("/proc/self/ns/net")
	tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns != own {
			h.strays = append(h.strays, task)
		}
	}
	return h
}

func (h held) since(before held) string {
	if h.descriptors > before.descriptors {
		return fmt.Sprintf("there are %d descriptors, before there were %d", h.descriptors, before.descriptors)
	}
	if len(h.strays) > 0 {
		return fmt.Sprintf("threads are in other network namespaces: %q", h.strays)
	}
	return ""
}

// inWorld runs a test on a thread in a namespace of its own, with the network up.
func inWorld(t *testing.T, open netdrv.OpenDriver, o *Options, run func(w *world)) {
	host, err := netdrv.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	err = host.Do(func() error {
		w := &world{T: t, o: o, host: host}
		defer w.end()
		if o.Prepare != nil {
			o.Prepare(t)
		}
		d, err := open(netdrv.Config{Root: t.TempDir(), Run: t.TempDir()})
		if errors.Is(err, errors.ErrUnsupported) {
			testutil.KernelLacks(t, err.Error())
		}
		w.must(err)
		w.driver = d
		w.network = w.newNetwork()
		if err := d.Up(background, w.network); errors.Is(err, errors.ErrUnsupported) {
			testutil.KernelLacks(t, err.Error())
		} else {
			w.must(err)
		}
		run(w)
		return nil
	})
	if err != nil && !t.Failed() && !t.Skipped() {
		t.Error(err)
	}
}

// testReach: containers reach each other by all their addresses, and the counters count it.
func testReach(w *world) {
	a, b := w.connect(2), w.connect(3)
	for i, address := range b.Addresses {
		seen, err := w.reach(a.ns, b.ns, address.Addr())
		if err != nil || seen != a.Addresses[i].Addr() {
			w.Errorf("%v to %v: %v, seen as %v", a.Addresses[i], address, err, seen)
		}
	}
	if w.o.ReachHost {
		for _, s := range w.network.Subnets {
			if _, err := w.reach(a.ns, w.host, s.Gateway); err != nil {
				w.Errorf("to the gateway %v: %v", s.Gateway, err)
			}
		}
	}
	c, err := w.driver.Counters(background, w.network, a.Endpoint, a.ns)
	w.must(err)
	if c.TxBytes < 1000 || c.RxBytes < 1000 || c.TxPackets < 5 || c.RxPackets < 5 {
		w.Errorf("counters %+v", c)
	}
}

// testInterface: the interface is what the endpoint says.
func testInterface(w *world) {
	ep := w.endpoint(2)
	ep.Interface, ep.MTU = "net-7", 1400
	c := &container{Endpoint: ep, ns: w.namespace()}
	w.must(w.driver.Connect(background, w.network, ep, c.ns))
	w.must(c.ns.Do(func() error {
		i, err := net.InterfaceByName("net-7")
		if err != nil {
			return err
		}
		if i.MTU != 1400 || i.Flags&net.FlagUp == 0 || !w.o.SharedMAC && !slices.Equal(i.HardwareAddr, ep.MAC) {
			w.Errorf("the interface is %+v, for %+v", i, ep)
		}
		addresses, err := i.Addrs()
		var have []netip.Prefix
		for _, a := range addresses {
			p, _ := netip.ParsePrefix(a.String())
			if !p.Addr().IsLinkLocalUnicast() {
				have = append(have, p)
			}
		}
		for _, a := range ep.Addresses {
			if !slices.Contains(have, a) || len(have) != len(ep.Addresses) {
				w.Errorf("the addresses are %v, for %v", have, ep.Addresses)
			}
		}
		return err
	}))
}

// testTwice: what is done twice is done once.
func testTwice(w *world) {
	w.must(w.driver.Up(background, w.network))
	c := w.connect(2)
	w.must(w.driver.Up(background, w.network))
	for range 2 {
		w.must(w.driver.Disconnect(background, w.network, c.Endpoint, c.ns))
		w.want(c.ns, "lo")
	}
	w.must(w.driver.Connect(background, w.network, c.Endpoint, c.ns))
	w.want(c.ns, c.Interface, "lo")
	w.must(w.driver.Disconnect(background, w.network, c.Endpoint, c.ns))
	never := w.endpoint(9)
	for range 2 {
		w.must(w.driver.Forget(background, w.network, []*netdrv.Endpoint{c.Endpoint, never}))
	}
	w.must(w.driver.Forget(background, w.network, nil))
	for range 2 {
		w.must(w.driver.Down(background, w.network))
	}
}

// testUndo: where Connect fails, nothing is left of what it had made.
func testUndo(w *world) {
	c := w.connect(2)
	before := w.interfaces(w.host)
	for what, change := range map[string]func(ep *netdrv.Endpoint){
		"an interface that is there":     func(ep *netdrv.Endpoint) {},
		"an address that is given twice": func(ep *netdrv.Endpoint) { ep.Interface = "eth1"; ep.Addresses = append(ep.Addresses, ep.Addresses[0]) },
		"a second default route": func(ep *netdrv.Endpoint) {
			ep.Interface = "eth1"
			for _, s := range w.network.Subnets {
				ep.Gateway4 = s.Gateway
			}
			if !ep.Gateway4.Is4() {
				ep.Gateway4, ep.Gateway6 = netip.Addr{}, ep.Gateway4
			}
		},
	} {
		ep := w.endpoint(3)
		ep.Gateway4, ep.Gateway6 = netip.Addr{}, netip.Addr{}
		change(ep)
		if what == "a second default route" && !c.Gateway4.IsValid() && !c.Gateway6.IsValid() {
			continue
		}
		if err := w.driver.Connect(background, w.network, ep, c.ns); !errors.Is(err, fs.ErrExist) {
			w.Errorf("%s: %v", what, err)
		}
		w.want(c.ns, c.Interface, "lo")
		w.want(w.host, before...)
	}
	other := w.connect(4)
	if _, err := w.reach(other.ns, c.ns, c.Addresses[0].Addr()); err != nil {
		w.Errorf("after that the first endpoint is not reached: %v", err)
	}
}

// testCanceled: a context that is over is an error before anything is made.
func testCanceled(w *world) {
	ctx, cancel := context.WithCancel(background)
	cancel()
	ns, before := w.namespace(), w.interfaces(w.host)
	if err := w.driver.Connect(ctx, w.network, w.endpoint(2), ns); !errors.Is(err, context.Canceled) {
		w.Errorf("Connect: %v", err)
	}
	if err := w.driver.Up(ctx, w.network); !errors.Is(err, context.Canceled) {
		w.Errorf("Up: %v", err)
	}
	w.want(ns, "lo")
	w.want(w.host, before...)
}

// testManyAtOnce: a driver is used by many goroutines, on any thread.
func testManyAtOnce(w *world) {
	before := w.interfaces(w.host)
	target := w.connect(2)
	containers, turns := 20, 3
	if testutil.Short() {
		containers, turns = 8, 1
	}
	var wait sync.WaitGroup
	for i := range containers {
		ep := w.endpoint(10 + i)
		wait.Go(func() {
			for range turns {
				ns, err := netdrv.NewNamespace()
				if err == nil {
					err = w.driver.Connect(background, w.network, ep, ns)
				}
				if err == nil {
					_, err = w.reach(ns, target.ns, target.Addresses[0].Addr())
				}
				if err == nil {
					_, err = w.driver.Counters(background, w.network, ep, ns)
				}
				if err == nil {
					err = w.driver.Disconnect(background, w.network, ep, ns)
				}
				if err != nil {
					w.Error(err)
				}
				if ns != nil {
					ns.Close()
				}
			}
		})
	}
	wait.Wait()
	w.must(w.driver.Disconnect(background, w.network, target.Endpoint, target.ns))
	w.want(w.host, before...)
}

// testGone: a namespace that ends takes its interface along, and another driver can do the rest.
func testGone(w *world) {
	before := w.interfaces(w.host)
	var eps []*netdrv.Endpoint
	for i := range 5 {
		c := w.connect(2 + i)
		eps = append(eps, c.Endpoint)
		c.ns.Close()
	}
	w.must(w.driver.Forget(background, w.network, eps))
	w.eventually("the interfaces are gone", func() bool { return slices.Equal(w.interfaces(w.host), before) })
	w.must(w.driver.Down(background, w.network))
}

// testBusy: Down refuses while a container is connected, if it says so.
func testBusy(w *world) {
	if !w.o.RefusesDown {
		w.Skip("it does not refuse")
	}
	c := w.connect(2)
	var busy *netdrv.BusyError
	if err := w.driver.Down(background, w.network); !errors.As(err, &busy) {
		w.Errorf("Down: %v", err)
	}
	w.must(w.driver.Disconnect(background, w.network, c.Endpoint, c.ns))
	w.must(w.driver.Down(background, w.network))
}

// testInvalid: what makes no sense is refused by all methods, with the name of the field.
func testInvalid(w *world) {
	ns := w.namespace()
	for field, change := range map[string]func(n *netdrv.Network, ep *netdrv.Endpoint){
		"Network.ID":         func(n *netdrv.Network, ep *netdrv.Endpoint) { n.ID = "../../etc" },
		"Network.Options":    func(n *netdrv.Network, ep *netdrv.Endpoint) { n.Options = map[string]string{"no-such-option": "1"} },
		"Network.MTU":        func(n *netdrv.Network, ep *netdrv.Endpoint) { n.MTU = 7 },
		"Endpoint.MAC":       func(n *netdrv.Network, ep *netdrv.Endpoint) { ep.MAC = nil },
		"Endpoint.Interface": func(n *netdrv.Network, ep *netdrv.Endpoint) { ep.Interface = "a/b" },
	} {
		n, ep := w.newNetwork(), w.endpoint(2)
		change(n, ep)
		var invalid *netdrv.InvalidError
		if err := w.driver.Connect(background, n, ep, ns); !errors.As(err, &invalid) || invalid.Field != field {
			w.Errorf("%s: Connect: %v", field, err)
		}
		if field[0] == 'N' {
			if err := w.driver.Up(background, n); !errors.As(err, &invalid) || invalid.Field != field {
				w.Errorf("%s: Up: %v", field, err)
			}
		}
	}
	w.want(ns, "lo")
}

// testClosed: a driver can be closed twice, networks stay.
func testClosed(w *world) {
	c := w.connect(2)
	w.must(w.driver.Close())
	w.must(w.driver.Close())
	w.want(c.ns, c.Interface, "lo")
	if err := w.driver.Connect(background, w.network, w.endpoint(3), w.namespace()); err == nil {
		w.Error("a driver that was closed connects")
	}
}
