package netdrvtest

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/coracle-dev/coracle/netdrv"
)

// A world is a host with a network.
type world struct {
	*testing.T
	o       *Options
	host    *netdrv.Namespace
	driver  netdrv.Driver
	network *netdrv.Network
	mu      sync.Mutex
	spaces  []*netdrv.Namespace
}

// A container is a namespace that is connected.
type container struct {
	*netdrv.Endpoint
	ns *netdrv.Namespace
}

func (w *world) end() {
	for _, ns := range w.spaces {
		ns.Close()
	}
	if w.driver != nil {
		w.driver.Close()
	}
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func random(digits int) string {
	b := make([]byte, digits/2)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func (w *world) newNetwork() *netdrv.Network {
	n := &netdrv.Network{ID: random(64), Name: "test", Driver: w.o.Driver, Root: w.TempDir(), Options: w.o.Options}
	subnets := w.o.Subnets
	if subnets == nil {
		subnets = []netip.Prefix{netip.MustParsePrefix("10.99.77.0/24"), netip.MustParsePrefix("fd00:99:77::/64")}
	}
	for _, p := range subnets {
		n.Subnets = append(n.Subnets, netdrv.Subnet{Prefix: p, Gateway: p.Addr().Next()})
	}
	return n
}

// endpoint is one with the number-th address of each subnet.
func (w *world) endpoint(number int) *netdrv.Endpoint {
	ep := &netdrv.Endpoint{ID: random(64), Interface: "eth0", MAC: net.HardwareAddr{2, 0, 0, 7, 7, byte(number)}}
	if w.o.HostEnd {
		ep.HostInterface = "corv" + random(10)
	}
	for _, s := range w.network.Subnets {
		a := s.Prefix.Addr()
		for range number {
			a = a.Next()
		}
		ep.Addresses = append(ep.Addresses, netip.PrefixFrom(a, s.Prefix.Bits()))
		if a.Is4() {
			ep.Gateway4 = s.Gateway
		} else {
			ep.Gateway6 = s.Gateway
		}
	}
	return ep
}

func (w *world) namespace() *netdrv.Namespace {
	w.Helper()
	ns, err := netdrv.NewNamespace()
	w.must(err)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spaces = append(w.spaces, ns)
	return ns
}

func (w *world) connect(number int) *container {
	w.Helper()
	c := &container{w.endpoint(number), w.namespace()}
	w.must(w.driver.Connect(background, w.network, c.Endpoint, c.ns))
	return c
}

// interfaces lists the names of those that a namespace has.
func (w *world) interfaces(ns *netdrv.Namespace) []string {
	w.Helper()
	var names []string
	w.must(ns.Do(func() error {
		list, err := net.Interfaces()
		for _, i := range list {
			names = append(names, i.Name)
		}
		return err
	}))
	slices.Sort(names)
	return names
}

func (w *world) want(ns *netdrv.Namespace, names ...string) {
	w.Helper()
	slices.Sort(names)
	if got := w.interfaces(ns); !slices.Equal(got, names) {
		w.Errorf("there are the interfaces %q, want %q", got, names)
	}
}

func (w *world) eventually(what string, cond func() bool) {
	w.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("it did not come to pass that %s", what)
		}
	}
}

// reach sends 100 kB from one namespace to an address of another and back. It returns whom the other one saw.
func (w *world) reach(from, to *netdrv.Namespace, address netip.Addr) (seen netip.Addr, err error) {
	var l net.Listener
	if err := to.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(address, 0).String())
		return err
	}); err != nil {
		return seen, err
	}
	answered := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			seen = c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			_, err = io.CopyN(struct{ io.Writer }{c}, c, 100_000) // no splice: the runtime keeps its pipes
		}
		answered <- err
	}()
	asked := from.Do(func() error {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 10*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		go c.Write(make([]byte, 100_000))
		n, err := io.Copy(io.Discard, io.LimitReader(c, 100_000))
		if err == nil && n != 100_000 {
			err = fmt.Errorf("%d bytes came back", n)
		}
		return err
	})
	l.Close()
	return seen, errors.Join(asked, <-answered)
}
