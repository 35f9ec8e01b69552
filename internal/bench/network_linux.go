package bench

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-dev/coracle/netdrv"
)

// A Path is a way from one network namespace to a port in another.
type Path struct {
	Name     string
	From, To *netdrv.Namespace
	Listen   string // in To
	Dial     string // from From
}

// Connects in a sample, and bytes that are sent in one.
const (
	pathConnects = 100
	pathBytes    = 64 << 20
)

// Paths measures how long a connection takes through each path and how much goes through it, in turns, and reports the medians and how
// many times the first path's each is.
func Paths(b *testing.B, paths ...*Path) {
	b.Helper()
	connects, rates := make([][]float64, len(paths)), make([][]float64, len(paths))
	for round := 0; b.Loop(); round++ {
		for i := range paths {
			p := (i + round) % len(paths) // nobody is always the first
			took, rate, err := paths[p].sample()
			if err != nil {
				b.Fatalf("%s: %v", paths[p].Name, err)
			}
			connects[p], rates[p] = append(connects[p], took), append(rates[p], rate)
		}
	}
	b.ReportMetric(0, "ns/op") // of all of it: it says nothing
	for i, p := range paths {
		b.ReportMetric(median(connects[i]), p.Name+"-connect-µs")
		b.ReportMetric(median(rates[i]), p.Name+"-MB/s")
		if i > 0 {
			b.ReportMetric(median(connects[i])/median(connects[0]), p.Name+"-connect-ratio")
			b.ReportMetric(median(rates[i])/median(rates[0]), p.Name+"-throughput-ratio")
		}
	}
}

// sample returns the median time of a connection, in µs, and what goes through one, in MB a second.
func (p *Path) sample() (connect, rate float64, err error) {
	var l net.Listener
	if err := p.To.Do(func() (err error) { l, err = net.Listen("tcp", p.Listen); return }); err != nil {
		return 0, 0, err
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if n, _ := io.Copy(io.Discard, c); n > 0 {
					c.Write([]byte{'.'})
				}
			}()
		}
	}()
	err = p.From.Do(func() error {
		var times []float64
		for range pathConnects {
			began := time.Now()
			c, err := net.DialTimeout("tcp", p.Dial, 5*time.Second)
			if err != nil {
				return err
			}
			times = append(times, float64(time.Since(began).Nanoseconds())/1000)
			c.Close()
		}
		connect = median(times)
		c, err := net.DialTimeout("tcp", p.Dial, 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		chunk := make([]byte, 256<<10)
		began := time.Now()
		for left := pathBytes; left > 0; left -= len(chunk) {
			if _, err := c.Write(chunk); err != nil {
				return err
			}
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		if _, err := c.Read(chunk[:1]); err != nil { // all has arrived
			return err
		}
		rate = pathBytes / 1e6 / time.Since(began).Seconds()
		return nil
	})
	return connect, rate, err
}

// RawBridge is a bridge that was made by hand: two namespaces on it, and somebody outside of the host that a port is forwarded for.
type RawBridge struct {
	Client, Server, Outside *netdrv.Namespace
}

// Addresses of a RawBridge, of the networks for documentation and benchmarks (RFC 5737, RFC 2544).
const (
	RawServer  = "198.18.7.2"
	rawClient  = "198.18.7.3"
	rawGateway = "198.18.7.1"
	RawHost    = "203.0.113.1" // the host's, as it is seen from outside
	rawOutside = "203.0.113.2"
)

// NewRawBridge makes one in the namespace of the host, until the benchmark ends. Port 7777 of the host is forwarded to port 7777 of the server.
func NewRawBridge(b *testing.B) *RawBridge {
	b.Helper()
	require(b)
	for _, program := range []string{"ip", "iptables"} {
		if _, err := exec.LookPath(program); err != nil {
			b.Skip("needs " + program)
		}
	}
	do := func(words string) {
		b.Helper()
		if out, err := run(strings.Fields(words)...); err != nil {
			b.Fatalf("%s: %v: %s", words, err, out)
		}
	}
	undo := func(words string) { b.Cleanup(func() { run(strings.Fields(words)...) }) }
	r := &RawBridge{}
	for _, ns := range []**netdrv.Namespace{&r.Client, &r.Server, &r.Outside} {
		n, err := netdrv.NewNamespace()
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { n.Close() })
		*ns = n
	}
	do("ip link add rawbr0 type bridge")
	undo("ip link del rawbr0")
	do("ip address add " + rawGateway + "/24 dev rawbr0")
	do("ip link set rawbr0 up")
	join := func(ns *netdrv.Namespace, name, address, gateway string) {
		b.Helper()
		do("ip link add " + name + " type veth peer name " + name + "p")
		undo("ip link del " + name)
		do(fmt.Sprintf("ip link set %sp netns /proc/%d/fd/%d", name, os.Getpid(), ns.File().Fd()))
		err := ns.Do(func() error { // a program that is started here is inside
			do("ip address add " + address + "/24 dev " + name + "p")
			do("ip link set " + name + "p up")
			do("ip route add default via " + gateway)
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		do("ip link set " + name + " up")
	}
	join(r.Server, "raws0", RawServer, rawGateway)
	join(r.Client, "rawc0", rawClient, rawGateway)
	join(r.Outside, "rawo0", rawOutside, RawHost)
	for _, port := range []string{"raws0", "rawc0"} {
		do("ip link set " + port + " master rawbr0")
	}
	do("ip address add " + RawHost + "/24 dev rawo0")
	for _, rule := range []string{
		"PREROUTING -d " + RawHost + " -p tcp --dport 7777 -j DNAT --to-destination " + RawServer + ":7777",
		"POSTROUTING -s " + RawServer + "/24 ! -o rawbr0 -j MASQUERADE",
	} {
		do("iptables -w -t nat -A " + rule)
		undo("iptables -w -t nat -D " + rule)
	}
	for _, rule := range []string{"FORWARD -i rawbr0 -j ACCEPT", "FORWARD -o rawbr0 -j ACCEPT"} { // where another firewall drops
		do("iptables -w -I " + rule)
		undo("iptables -w -D " + rule)
	}
	return r
}

// FirstAndLast returns the middle of the first and of the last n of some times, in µs.
func FirstAndLast(times []time.Duration, n int) (first, last float64) {
	micros := func(list []time.Duration) float64 {
		var v []float64
		for _, d := range list {
			v = append(v, float64(d.Nanoseconds())/1000)
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	return micros(times[:n]), micros(times[len(times)-n:])
}
