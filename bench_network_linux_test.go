package coracle_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/bench"
	"github.com/coracle-dev/coracle/netdrv"
)

// BenchmarkRunBridge is BenchmarkRun with the default network and a published port, beside the same without a network and
// docker run. "clean-ms" is how long after Remove has returned the kernel has removed the container's interface.
func BenchmarkRunBridge(b *testing.B) {
	eng := benchEngine(b)
	bridged := benchSpec(coracle.NetworkBridge)
	bridged.Ports = []coracle.Port{{Container: 80}}
	b.Run("none", func(b *testing.B) {
		bench.Each(b, 0, func() error { return life(b.Context(), eng, benchSpec(coracle.NetworkNone)) })
	})
	b.Run("bridge", func(b *testing.B) {
		bench.Each(b, 0, func() error { return life(b.Context(), eng, bridged) })
		start := time.Now()
		for vethsOnHost(b) > 0 {
			time.Sleep(time.Millisecond)
		}
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "clean-ms")
	})
	b.Run("docker", func(b *testing.B) { bench.DockerBridge(b, trueELF(b)) })
}

// BenchmarkNetwork sends through our bridge and through one that was made by hand: from container to container, and from outside of the
// host to a published port.
func BenchmarkNetwork(b *testing.B) {
	eng := benchEngine(b)
	pause := func(spec coracle.ContainerSpec) *coracle.Container {
		spec.Image, spec.Args = "true", []string{"/bin/pause"}
		c, err := eng.Create(b.Context(), &spec)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Remove(context.Background(), &coracle.RemoveOptions{Force: true}) })
		if err := c.Start(b.Context()); err != nil {
			b.Fatal(err)
		}
		return c
	}
	inside := func(c *coracle.Container) *netdrv.Namespace {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", inspect(b, c).PID))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		ns, err := netdrv.OpenNamespace(f)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { ns.Close() })
		return ns
	}
	server := pause(coracle.ContainerSpec{Ports: []coracle.Port{{Container: 7000, HostAddr: netip.IPv4Unspecified()}}})
	client := pause(coracle.ContainerSpec{})
	address := addressOf(b, server, coracle.NetworkBridge).String() + ":7000"
	at, err := server.Addr(b.Context(), "tcp", 7000)
	if err != nil {
		b.Fatal(err)
	}
	to := inside(server)
	from := inside(client)
	raw := bench.NewRawBridge(b) // after ours has made the host a router
	b.Run("container to container", func(b *testing.B) {
		bench.Paths(b,
			&bench.Path{Name: "raw", From: raw.Client, To: raw.Server, Listen: bench.RawServer + ":7777", Dial: bench.RawServer + ":7777"},
			&bench.Path{Name: "coracle", From: from, To: to, Listen: address, Dial: address})
	})
	b.Run("published port", func(b *testing.B) {
		bench.Paths(b,
			&bench.Path{Name: "raw", From: raw.Outside, To: raw.Server, Listen: bench.RawServer + ":7777", Dial: bench.RawHost + ":7777"},
			&bench.Path{Name: "coracle", From: raw.Outside, To: to, Listen: address, Dial: fmt.Sprintf("%s:%d", bench.RawHost, at.Port())})
	})
}

// BenchmarkPublish starts 250 containers with four published ports each, and looks whether each port leads to its container. "first-µs" and
// "last-µs" are what a start has cost among the first and the last twenty.
func BenchmarkPublish(b *testing.B) {
	eng := benchEngine(b)
	containers, ports := 250, 4
	if testing.Short() {
		containers = 50
	}
	var first, last []float64
	for b.Loop() {
		var list []*coracle.Container
		var times []time.Duration
		for range containers {
			spec := &coracle.ContainerSpec{Image: "true", Args: []string{"/bin/pause"}, Limits: benchLimits, Ports: []coracle.Port{{Container: 7000, Count: uint16(ports)}}}
			c, err := eng.Create(b.Context(), spec)
			if err != nil {
				b.Fatal(err)
			}
			list = append(list, c)
			began := time.Now()
			if err := c.Start(b.Context()); err != nil {
				b.Fatal(err)
			}
			times = append(times, time.Since(began))
		}
		f, l := bench.FirstAndLast(times, 20)
		first, last = append(first, f), append(last, l)
		for _, c := range list {
			for i := range ports {
				leadsTo(b, c, uint16(7000+i))
			}
		}
		for _, c := range list {
			if err := c.Remove(b.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(mean(first), "first-µs")
	b.ReportMetric(mean(last), "last-µs")
	b.ReportMetric(mean(last)/mean(first), "last/first")
}

// leadsTo expects a published port to lead to a port of its container.
func leadsTo(b *testing.B, c *coracle.Container, port uint16) {
	b.Helper()
	l, err := c.Listen(b.Context(), "tcp4", fmt.Sprint(":", port))
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	at, err := c.Addr(b.Context(), "tcp", port)
	if err != nil {
		b.Fatal(err)
	}
	conn, err := net.DialTimeout("tcp", at.String(), 5*time.Second)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	other, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	other.Close()
}

func mean(v []float64) (sum float64) {
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

// vethsOnHost counts the host's ends of containers' interfaces.
func vethsOnHost(t testing.TB) (n int) {
	list, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if strings.HasPrefix(i.Name, "corv") {
			n++
		}
	}
	return n
}
