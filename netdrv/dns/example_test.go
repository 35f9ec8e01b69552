package dns_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/coracle-dev/coracle/netdrv/dns"
)

// hosts is a zone in memory.
type hosts map[string]netip.Addr

func (h hosts) Addresses(name string) (v4, v6 []netip.Addr, found bool) {
	addr, found := h[name]
	if found {
		v4 = []netip.Addr{addr}
	}
	return v4, nil, found
}

func (h hosts) Name(addr netip.Addr) (string, bool) {
	for name, a := range h {
		if a == addr {
			return name, true
		}
	}
	return "", false
}

// resolver asks the server at an address.
func resolver(addr net.Addr) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, addr.Network(), addr.String())
	}}
}

// A server without upstreams, as a container in an internal network has.
func ExampleServe() {
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := dns.Serve(udp, nil, dns.Config{Zone: hosts{"db": netip.MustParseAddr("172.20.0.2")}})
	defer server.Close()

	r := resolver(udp.LocalAddr())
	fmt.Println(r.LookupHost(context.Background(), "db."))
	fmt.Println(r.LookupAddr(context.Background(), "172.20.0.2"))
	_, err = r.LookupHost(context.Background(), "example.org.")
	var dnsErr *net.DNSError
	fmt.Println(errors.As(err, &dnsErr) && dnsErr.IsNotFound)
	// Output:
	// [172.20.0.2] <nil>
	// [db.] <nil>
	// true
}

func ExampleServer() {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	var server *dns.Server = dns.Serve(nil, tcp, dns.Config{})
	fmt.Println(resolver(tcp.Addr()).LookupNetIP(context.Background(), "ip4", "app.localhost."))
	fmt.Println(server.Close())
	// Output:
	// [127.0.0.1] <nil>
	// <nil>
}

func ExampleZone() {
	var zone dns.Zone = hosts{"db": netip.MustParseAddr("172.20.0.2")}
	fmt.Println(zone.Addresses("db"))
	fmt.Println(zone.Name(netip.MustParseAddr("172.20.0.3")))
	// Output:
	// [172.20.0.2] [] true
	//  false
}

// A server that passes on what it does not know to the host's own resolvers, and nothing about its own subnet.
func ExampleConfig() {
	resolvers, err := dns.HostResolvers()
	if err != nil {
		log.Fatal(err)
	}
	config := dns.Config{
		Zone:      hosts{"db": netip.MustParseAddr("172.20.0.2")},
		Private:   netip.MustParsePrefix("172.20.0.0/16").Contains,
		Upstreams: resolvers.Servers,
	}
	fmt.Println(config.Private(netip.MustParseAddr("172.20.7.7")))
	// Output: true
}

// A container that is not trusted much.
func ExampleLimits() {
	config := dns.Config{Limits: dns.Limits{InFlight: 8, Rate: 100, Timeout: time.Second}}
	server := dns.Serve(nil, nil, config)
	defer server.Close()
}

func ExampleResolv() {
	c, err := dns.ParseResolvConf(strings.NewReader("# made by hand\nnameserver 10.0.0.1\nsearch example.org\n"))
	if err != nil {
		log.Fatal(err)
	}
	c.Options = append(c.Options, "ndots:0")
	fmt.Print(c.Servers, "\n", c)
	// Output:
	// [10.0.0.1:53]
	// nameserver 10.0.0.1
	// search example.org
	// options ndots:0
}
