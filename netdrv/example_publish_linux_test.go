package netdrv_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/netip"
	"os"

	"github.com/coracle-dev/coracle/netdrv"
)

func ExamplePort() {
	p := netdrv.Port{Protocol: "tcp", HostPort: 8080, Addr: netip.MustParseAddr("10.88.0.7"), Port: 80}
	fmt.Println(p)
	ports, err := p.Range(2)
	fmt.Println(ports[1], err)
	// Output:
	// tcp 0.0.0.0:8080 -> 10.88.0.7:80
	// tcp 0.0.0.0:8081 -> 10.88.0.7:81 <nil>
}

// The ports go with the program that owns the Publisher, however it ends.
func ExamplePublisher() {
	p, err := netdrv.NewPublisher("example")
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, os.ErrPermission) {
		fmt.Println("published")
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	defer p.Close()
	port := netdrv.Port{Protocol: "tcp", HostAddr: netip.MustParseAddr("127.0.0.1"), HostPort: 18080, Addr: netip.MustParseAddr("10.88.0.7"), Port: 80}
	if err := p.Publish(context.Background(), []netdrv.Port{port}); err != nil {
		log.Fatal(err)
	}
	fmt.Println("published")
	forgotten, err := p.Withdraw([]netdrv.Port{port})
	if err != nil {
		log.Fatal(err)
	}
	<-forgotten // now the address can be another container's
	// Output: published
}

func ExamplePortError() {
	err := error(&netdrv.PortError{Port: netdrv.Port{Protocol: "udp", HostPort: 53, Addr: netip.MustParseAddr("10.88.0.7"), Port: 53}, Err: os.ErrExist})
	var port *netdrv.PortError
	fmt.Println(errors.As(err, &port), port.Port.HostPort, errors.Is(err, os.ErrExist))
	// Output: true 53 true
}

func ExampleFirewallObject() {
	objects, err := netdrv.FirewallObjects(context.Background())
	if err != nil {
		fmt.Println(errors.Is(err, os.ErrPermission) || errors.Is(err, errors.ErrUnsupported))
		return
	}
	explained := true
	for _, o := range objects {
		explained = explained && (o.Reason != "" || o.Kind == "element")
	}
	fmt.Println(explained)
	// Output: true
}

func ExampleHostChange() {
	fmt.Printf("%+v\n", netdrv.HostChange{Setting: "net.ipv4.ip_forward", Was: "0", Is: "1", Reason: "containers reach the outside"})
	// Output: {Setting:net.ipv4.ip_forward Was:0 Is:1 Reason:containers reach the outside}
}
