package netdrv_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/netip"
	"os"

	"github.com/coracle-dev/coracle/netdrv"
)

// sandbox runs an example in a network namespace, so that it leaves nothing on the host.
func sandbox(example func(ctx context.Context)) {
	host, err := netdrv.NewNamespace()
	if err != nil {
		log.Fatal(err)
	}
	defer host.Close()
	if err := host.Do(func() error { example(context.Background()); return nil }); err != nil {
		log.Fatal(err)
	}
}

func newID() string {
	b := make([]byte, 32)
	rand.Read(b)
	return hex.EncodeToString(b)
}

var exampleNetwork = &netdrv.Network{
	ID: newID(), Name: "shop", Driver: "bridge", Root: "/var/lib/coracle",
	Subnets: []netdrv.Subnet{{Prefix: netip.MustParsePrefix("10.88.0.0/24"), Gateway: netip.MustParseAddr("10.88.0.1")}},
}

// newEndpoint is one with the number-th address of the example network.
func newEndpoint(number byte) *netdrv.Endpoint {
	return &netdrv.Endpoint{
		ID: newID(), Interface: "eth0", HostInterface: "corv" + newID()[:10],
		MAC:       net.HardwareAddr{2, 0, 0, 0, 0, number},
		Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 88, 0, number}), 24)},
		Gateway4:  netip.MustParseAddr("10.88.0.1"),
	}
}

func openBridge() netdrv.Driver {
	driver, err := netdrv.Open("bridge", netdrv.Config{Root: "/var/lib/coracle", Run: "/run/coracle"})
	if err != nil {
		log.Fatal(err)
	}
	return driver
}

// Two namespaces are connected to a bridge, and one calls the other.
func Example() {
	sandbox(func(ctx context.Context) {
		driver := openBridge()
		defer driver.Close()
		if err := driver.Up(ctx, exampleNetwork); err != nil {
			log.Fatal(err)
		}
		defer driver.Down(ctx, exampleNetwork)

		connect := func(number byte) *netdrv.Namespace {
			ns, err := netdrv.NewNamespace()
			if err == nil {
				err = driver.Connect(ctx, exampleNetwork, newEndpoint(number), ns)
			}
			if err != nil {
				log.Fatal(err)
			}
			return ns
		}
		server, client := connect(2), connect(3)
		defer server.Close()
		defer client.Close()

		var listener net.Listener
		if err := server.Do(func() (err error) { listener, err = net.Listen("tcp", "10.88.0.2:80"); return err }); err != nil {
			log.Fatal(err)
		}
		go func() { // the socket stays inside, whoever uses it
			if c, err := listener.Accept(); err == nil {
				fmt.Fprint(c, "hello, ", c.RemoteAddr().(*net.TCPAddr).IP)
				c.Close()
			}
		}()
		client.Do(func() error {
			c, err := net.Dial("tcp", "10.88.0.2:80")
			if err != nil {
				return err
			}
			defer c.Close()
			b, err := io.ReadAll(c)
			fmt.Println(string(b))
			return err
		})
		listener.Close()
	})
	// Output: hello, 10.88.0.3
}

func ExampleDriver() {
	sandbox(func(ctx context.Context) {
		driver := openBridge()
		defer driver.Close()
		endpoint := newEndpoint(2)

		// Up is cheap where the network is up; it repairs what somebody did to it.
		fmt.Println(driver.Up(ctx, exampleNetwork))
		ns, _ := netdrv.NewNamespace()
		fmt.Println(driver.Connect(ctx, exampleNetwork, endpoint, ns))

		// The container has ended: the kernel takes its interface, the driver what is left of it elsewhere.
		ns.Close()
		fmt.Println(driver.Forget(ctx, exampleNetwork, []*netdrv.Endpoint{endpoint}))
		fmt.Println(driver.Down(ctx, exampleNetwork))
	})
	// Output:
	// <nil>
	// <nil>
	// <nil>
	// <nil>
}

func ExampleNetwork() {
	n := &netdrv.Network{
		ID:      "4a6f1c9d2e00b7a85c3d1e9f8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b",
		Name:    "shop",
		Driver:  "bridge",
		Root:    "/var/lib/coracle",
		Subnets: []netdrv.Subnet{{Prefix: netip.MustParsePrefix("10.88.0.0/24"), Gateway: netip.MustParseAddr("10.88.0.1")}},
	}
	fmt.Println(n.Interface())
	// Output: cor-4a6f1c9d2e
}

func ExampleEndpoint() {
	sandbox(func(ctx context.Context) {
		driver := openBridge()
		defer driver.Close()
		_ = driver.Up(ctx, exampleNetwork)
		ns, _ := netdrv.NewNamespace()
		defer ns.Close()
		endpoint := &netdrv.Endpoint{
			ID: newID(), Interface: "lan0", HostInterface: "corv0123456789",
			MAC:       net.HardwareAddr{2, 0, 0, 0, 0, 9},
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.88.0.9/24")},
			MTU:       1400,
		}
		if err := driver.Connect(ctx, exampleNetwork, endpoint, ns); err != nil {
			log.Fatal(err)
		}
		ns.Do(func() error {
			i, err := net.InterfaceByName("lan0")
			fmt.Println(i.Name, i.HardwareAddr, i.MTU)
			return err
		})
	})
	// Output: lan0 02:00:00:00:00:09 1400
}

func ExampleNamespace() {
	ns, err := netdrv.NewNamespace()
	if err != nil {
		log.Fatal(err)
	}
	defer ns.Close()
	err = ns.Do(func() error {
		list, err := net.Interfaces()
		for _, i := range list {
			fmt.Println(i.Name)
		}
		return err
	})
	fmt.Println(err)
	// Output:
	// lo
	// <nil>
}

func ExampleCounters() {
	sandbox(func(ctx context.Context) {
		driver := openBridge()
		defer driver.Close()
		_ = driver.Up(ctx, exampleNetwork)
		endpoint := newEndpoint(2)
		ns, _ := netdrv.NewNamespace()
		defer ns.Close()
		_ = driver.Connect(ctx, exampleNetwork, endpoint, ns)
		c, err := driver.Counters(ctx, exampleNetwork, endpoint, ns)
		fmt.Println(c.TxDropped, c.RxErrors, err)
	})
	// Output: 0 0 <nil>
}

func ExampleOpen() {
	_, err := netdrv.Open("carrier-pigeon", netdrv.Config{})
	fmt.Println(errors.Is(err, errors.ErrUnsupported))
	fmt.Println(netdrv.Drivers())
	// Output:
	// true
	// [bridge ipvlan macvlan]
}

func ExampleConfig() {
	driver, err := netdrv.Open("macvlan", netdrv.Config{Root: "/var/lib/coracle", Run: "/run/coracle"})
	if err != nil {
		log.Fatal(err)
	}
	defer driver.Close()
	err = driver.Up(context.Background(), &netdrv.Network{ID: newID(), Name: "lan", Driver: "macvlan", Options: map[string]string{"parent": "no-such"}})
	fmt.Println(err)
	// Output: netdrv: find the parent of network lan no-such: no such device (the option parent names an interface of the host)
}

// A driver of one's own is registered where it can be opened by name.
func ExampleOpenDriver() {
	var open netdrv.OpenDriver = func(c netdrv.Config) (netdrv.Driver, error) {
		return nil, &netdrv.UnsupportedError{Feature: "a network of driver pigeon", Fix: "get pigeons"}
	}
	_, err := open(netdrv.Config{})
	fmt.Println(err)
	// Output: netdrv: a network of driver pigeon is not supported here (get pigeons)
}

func ExampleSubnet() {
	s := netdrv.Subnet{Prefix: netip.MustParsePrefix("fd00:88::/64"), Gateway: netip.MustParseAddr("fd00:88::1")}
	fmt.Println(s.Prefix.Contains(s.Gateway))
	// Output: true
}

// A new network gets what nobody uses.
func ExamplePool() {
	pools := []netdrv.Pool{{Base: netip.MustParsePrefix("10.88.0.0/16"), Bits: 24}}
	used := []netip.Prefix{netip.MustParsePrefix("10.88.0.0/23")} // from HostRoutes, and other networks
	subnets, err := netdrv.ChooseSubnets(pools, used)
	fmt.Println(subnets[0].Prefix, subnets[0].Gateway, err)
	// Output: 10.88.2.0/24 10.88.2.1 <nil>
}

func ExampleFaults() {
	sandbox(func(ctx context.Context) {
		driver := openBridge()
		defer driver.Close()
		_ = driver.Up(ctx, exampleNetwork)
		endpoint := newEndpoint(2)
		ns, _ := netdrv.NewNamespace()
		defer ns.Close()
		_ = driver.Connect(ctx, exampleNetwork, endpoint, ns)
		err := driver.(netdrv.Faulter).SetFaults(ctx, exampleNetwork, endpoint, ns, netdrv.Faults{Rate: 8_000_000}) // a megabyte in a second
		fmt.Println(err)
	})
	// Output: <nil>
}

// Not every driver can keep containers from each other.
func ExamplePartitioner() {
	driver, err := netdrv.Open("bridge", netdrv.Config{})
	if err != nil {
		fmt.Println(errors.Is(err, os.ErrPermission) || errors.Is(err, errors.ErrUnsupported))
		return
	}
	defer driver.Close()
	_, can := driver.(netdrv.Partitioner)
	fmt.Println(can)
	// Output: true
}

// Not every driver can make faults.
func ExampleFaulter() {
	driver, err := netdrv.Open("macvlan", netdrv.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer driver.Close()
	_, can := driver.(netdrv.Faulter)
	fmt.Println(can)
	// Output: false
}

func ExampleUnsupportedError() {
	err := error(&netdrv.UnsupportedError{Feature: "a network of driver ipvlan", Kernel: "CONFIG_IPVLAN (3.19)", Fix: "load the module ipvlan"})
	fmt.Println(errors.Is(err, errors.ErrUnsupported))
	fmt.Println(err)
	// Output:
	// true
	// netdrv: a network of driver ipvlan is not supported here: it needs a kernel with CONFIG_IPVLAN (3.19) (load the module ipvlan)
}

func ExampleError() {
	err := error(&netdrv.Error{Op: "make the bridge", Interface: "cor-4a6f1c9d2e", Err: os.ErrPermission, Fix: "run as root, or with CAP_NET_ADMIN"})
	fmt.Println(errors.Is(err, fs.ErrPermission))
	fmt.Println(err)
	// Output:
	// true
	// netdrv: make the bridge cor-4a6f1c9d2e: permission denied (run as root, or with CAP_NET_ADMIN)
}

func ExampleBusyError() {
	sandbox(func(ctx context.Context) {
		driver := openBridge()
		defer driver.Close()
		_ = driver.Up(ctx, exampleNetwork)
		ns, _ := netdrv.NewNamespace()
		defer ns.Close()
		_ = driver.Connect(ctx, exampleNetwork, newEndpoint(2), ns)
		var busy *netdrv.BusyError
		fmt.Println(errors.As(driver.Down(ctx, exampleNetwork), &busy), len(busy.Ports))
	})
	// Output: true 1
}

func ExampleInvalidError() {
	sandbox(func(ctx context.Context) {
		driver := openBridge()
		defer driver.Close()
		n := *exampleNetwork
		n.MTU = 7
		fmt.Println(driver.Up(ctx, &n))
	})
	// Output: netdrv: Network.MTU "7": an MTU is from 68 to 65535 bytes, or 0 for the driver's choice
}
