package coracle_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/netip"
	"strings"
	"time"

	"github.com/coracle-dev/coracle"
)

// Two containers on a network of their own, of which one has two names.
func ExampleNetwork() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	app, err := eng.CreateNetwork(ctx, &coracle.NetworkSpec{Name: "app"})
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range []string{"db", "web"} {
		c, err := eng.Create(ctx, &coracle.ContainerSpec{
			Name: name, Image: "pause", Networks: []coracle.Attachment{{Network: "app", Aliases: []string{name + "-primary"}}},
		})
		if err != nil {
			log.Fatal(err)
		}
		if err := c.Start(ctx); err != nil {
			log.Fatal(err)
		}
		defer c.Remove(ctx, &coracle.RemoveOptions{Force: true})
	}
	info, err := app.Inspect(ctx)
	if err != nil {
		log.Fatal(err)
	}
	err = app.Remove(ctx)
	fmt.Println(len(info.Endpoints), errors.Is(err, coracle.ErrInUse))
	// Output: 2 true
}

// A test cuts a program off from its database and sees whether it recovers.
func ExampleNetwork_Partition() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	app, err := eng.CreateNetwork(ctx, &coracle.NetworkSpec{Name: "app"})
	if err != nil {
		log.Fatal(err)
	}
	var containers []*coracle.Container
	for _, name := range []string{"db", "web"} {
		c, err := eng.Create(ctx, &coracle.ContainerSpec{Name: name, Image: "pause", Networks: []coracle.Attachment{{Network: "app"}}})
		if err != nil {
			log.Fatal(err)
		}
		if err := c.Start(ctx); err != nil {
			log.Fatal(err)
		}
		defer c.Remove(ctx, &coracle.RemoveOptions{Force: true})
		containers = append(containers, c)
	}
	db, web := containers[0], containers[1]
	l, err := db.Listen(ctx, "tcp", ":5432")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	info, err := db.Inspect(ctx)
	if err != nil {
		log.Fatal(err)
	}
	addr := netip.AddrPortFrom(info.Networks[0].Addresses[0].Addr(), 5432).String()
	reaches := func(patience time.Duration) bool {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		conn, err := web.DialContext(ctx, "tcp", addr)
		if err != nil {
			return false
		}
		conn.Close()
		return true
	}
	fmt.Println("whole:", reaches(10*time.Second))
	if err := app.Partition(ctx, []*coracle.Container{db}, []*coracle.Container{web}); err != nil {
		log.Fatal(err)
	}
	fmt.Println("parted:", reaches(100*time.Millisecond))
	if err := app.Heal(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("healed:", reaches(10*time.Second))
	// Output:
	// whole: true
	// parted: false
	// healed: true
}

func ExampleNetworkSpec() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	n, err := eng.CreateNetwork(ctx, &coracle.NetworkSpec{
		Name:     "private",
		Subnets:  []coracle.Subnet{{Prefix: netip.MustParsePrefix("10.213.9.0/24")}, {Prefix: netip.MustParsePrefix("fd63:6f72:6163:ffff::/64")}},
		Internal: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	info, err := n.Inspect(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range info.Subnets {
		fmt.Println(s.Prefix, s.Gateway)
	}
	// Output:
	// 10.213.9.0/24 10.213.9.1
	// fd63:6f72:6163:ffff::/64 fd63:6f72:6163:ffff::1
}

// A gateway and a range of addresses of one's own.
func ExampleSubnet() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	_, err := eng.CreateNetwork(ctx, &coracle.NetworkSpec{Name: "lan", Subnets: []coracle.Subnet{{
		Prefix: netip.MustParsePrefix("10.213.10.0/24"), Gateway: netip.MustParseAddr("10.213.10.254"), Range: netip.MustParsePrefix("10.213.10.128/25"),
	}}})
	if err != nil {
		log.Fatal(err)
	}
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "pause", Networks: []coracle.Attachment{{Network: "lan"}}})
	if err != nil {
		log.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		log.Fatal(err)
	}
	defer c.Remove(ctx, &coracle.RemoveOptions{Force: true})
	info, err := c.Inspect(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Networks[0].Addresses)
	// Output: [10.213.10.128/24]
}

func ExampleNetworkInfo() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	n, err := eng.CreateNetwork(ctx, &coracle.NetworkSpec{Name: "empty", Labels: map[string]string{"purpose": "show"}})
	if err != nil {
		log.Fatal(err)
	}
	info, err := n.Inspect(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Name, info.Spec.Labels, len(info.Endpoints))
	// Output: empty map[purpose:show] 0
}

func ExampleNetworkFilter() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	for _, name := range []string{"one", "two"} {
		if _, err := eng.CreateNetwork(ctx, &coracle.NetworkSpec{Name: name, Labels: map[string]string{"number": name}}); err != nil {
			log.Fatal(err)
		}
	}
	list, err := eng.Networks(ctx, &coracle.NetworkFilter{Labels: map[string]string{"number": "two"}})
	if err != nil {
		log.Fatal(err)
	}
	for _, n := range list {
		fmt.Println(n.Name())
	}
	// Output: two
}

func ExampleEndpointInfo() {
	ctx := context.Background()
	c, done := exampleRunning(ctx, coracle.ContainerSpec{Name: "one", Networks: []coracle.Attachment{{Network: coracle.NetworkBridge, MAC: "02:00:00:00:00:01"}}})
	defer done()
	info, err := c.Inspect(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, ep := range info.Networks {
		fmt.Println(ep.Network, ep.Interface, ep.MAC, len(ep.Addresses))
	}
	// Output: bridge eth0 02:00:00:00:00:01 1
}

// A port of the container on a free port of the host's 127.0.0.1.
func ExamplePort() {
	ctx := context.Background()
	c, done := exampleRunning(ctx, coracle.ContainerSpec{Ports: []coracle.Port{{Container: 80}}})
	defer done()
	at, err := c.Addr(ctx, "tcp", 80)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(at.Addr(), at.Port() > 0)
	// Output: 127.0.0.1 true
}

func ExamplePublishedPort() {
	ctx := context.Background()
	c, done := exampleRunning(ctx, coracle.ContainerSpec{Ports: []coracle.Port{{Container: 53, Protocol: "udp", Count: 2}}})
	defer done()
	info, err := c.Inspect(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range info.Ports {
		fmt.Println(p.Container, p.Protocol, p.Host.Addr())
	}
	// Output:
	// 53 udp 127.0.0.1
	// 54 udp 127.0.0.1
}

func ExampleNetworkGraph() {
	g := coracle.NetworkGraph{Name: "app", Driver: "bridge", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}}
	fmt.Print(g.DOT())
	// Output:
	// graph "app" {
	// 	"network app" [shape=box,label="app\nbridge\n10.0.0.0/24"];
	// }
}

func ExampleNetworkGraphNode() {
	b, err := json.Marshal(coracle.NetworkGraphNode{Name: "web", Interface: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}})
	fmt.Println(strings.Contains(string(b), `"addresses":["10.0.0.2/24"]`), err)
	// Output: true <nil>
}
