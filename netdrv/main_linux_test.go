package netdrv

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// sleeperEnv makes the test binary a process that waits for the end of its input.
const sleeperEnv = "CORACLE_NETDRV_SLEEPER"

func TestMain(m *testing.M) {
	if os.Getenv(sleeperEnv) != "" {
		io.Copy(io.Discard, os.Stdin)
		return
	}
	flag.Parse()
	if skip := flag.Lookup("test.skip"); os.Geteuid() != 0 && skip != nil && skip.Value.String() == "" {
		fmt.Println("examples that make networks are skipped: they need root")
		flag.Set("test.skip", "^Example(|Driver|Endpoint|Namespace|Counters|Faults|BusyError|InvalidError)$")
	}
	code := testutil.LeakCheck(m)
	if left := leftovers(); len(left) > 0 {
		fmt.Fprintln(os.Stderr, "left behind:", left)
		code = 1
	}
	os.Exit(code)
}

// leftovers are threads in other namespaces: each test's interfaces went with the namespace that was its host.
func leftovers() []string {
	var left []string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if left = strayThreads(); left == nil {
			break
		}
	}
	return left
}

// strayThreads are those of this process that are not in the main thread's network namespace.
func strayThreads() []string {
	own, _ := os.Readlink("/proc/self/ns/net")
	tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
	var stray []string
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns != own {
			stray = append(stray, task+" is in "+ns)
		}
	}
	return stray
}

var background = context.Background()

// onHost runs a test's body in a network namespace that plays the host. What it makes there goes with it.
func onHost(t testing.TB, body func(host *Namespace)) {
	t.Helper()
	testutil.RequireRoot(t)
	host, err := NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if err := host.Do(func() error { body(host); return nil }); err != nil && !t.Failed() && !t.Skipped() {
		t.Fatal(err)
	}
}

// random returns hexadecimal digits.
func random(digits int) string {
	b := make([]byte, digits/2)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// newNetwork is a network of a root that exists, with these subnets. The gateway is the first address.
func newNetwork(t testing.TB, driver string, subnets ...string) *Network {
	n := &Network{ID: random(64), Name: t.Name(), Driver: driver, Root: t.TempDir()}
	for _, s := range subnets {
		p := netip.MustParsePrefix(s)
		n.Subnets = append(n.Subnets, Subnet{Prefix: p, Gateway: p.Addr().Next()})
	}
	return n
}

// endpoint is one with the number-th address of each subnet.
func endpoint(n *Network, number int) *Endpoint {
	ep := &Endpoint{ID: random(64), Interface: "eth0", HostInterface: vethPrefix + random(10), MAC: net.HardwareAddr{2, 0, 0, 0, byte(number >> 8), byte(number)}}
	for _, s := range n.Subnets {
		a := s.Prefix.Addr()
		for range number {
			a = a.Next()
		}
		ep.Addresses = append(ep.Addresses, netip.PrefixFrom(a, s.Prefix.Bits()))
		if n.Internal {
			continue
		}
		if a.Is4() {
			ep.Gateway4 = s.Gateway
		} else {
			ep.Gateway6 = s.Gateway
		}
	}
	return ep
}

// open opens a driver in the calling thread's namespace.
func open(t testing.TB, name string) Driver {
	t.Helper()
	d, err := Open(name, Config{Root: t.TempDir(), Run: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// up opens the bridge driver and makes a network.
func up(t testing.TB, n *Network) Driver {
	t.Helper()
	d := open(t, n.Driver)
	check(t, d.Up(background, n))
	return d
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// container is a namespace that is connected.
func container(t testing.TB, d Driver, n *Network, ep *Endpoint) *Namespace {
	t.Helper()
	ns := namespace(t)
	check(t, d.Connect(background, n, ep, ns))
	return ns
}

func namespace(t testing.TB) *Namespace {
	t.Helper()
	ns, err := NewNamespace()
	check(t, err)
	t.Cleanup(func() { ns.Close() })
	return ns
}

// reach sends a message from one namespace to an address of another, which sends it back. It returns how long that took, and
// whom the other side saw.
func reach(from, to *Namespace, address netip.Addr, message string) (seen netip.Addr, took time.Duration, err error) {
	var l net.Listener
	if err := to.Do(func() (err error) { l, err = net.Listen("tcp", netip.AddrPortFrom(address, 0).String()); return }); err != nil {
		return seen, 0, err
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		a, _ := netip.ParseAddrPort(c.RemoteAddr().String())
		fmt.Fprintf(c, "%s\n", a.Addr())
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			c.Write(b[:n])
		}
	}()
	err = from.Do(func() error {
		begun := time.Now()
		c, err := net.DialTimeout("tcp", l.Addr().String(), 10*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		took = time.Since(begun)
		c.SetDeadline(time.Now().Add(5 * time.Second))
		var peer string
		if _, err := fmt.Fscanln(c, &peer); err != nil {
			return err
		}
		seen, _ = netip.ParseAddr(peer)
		go c.Write([]byte(message))
		back := make([]byte, 0, len(message))
		b := make([]byte, 4096)
		for len(back) < len(message) {
			n, err := c.Read(b)
			if err != nil {
				return err
			}
			back = append(back, b[:n]...)
		}
		if string(back) != message {
			return errors.New("what came back is not what was sent")
		}
		return nil
	})
	return seen, took, err
}

// unreachable checks that one namespace does not reach an address of another.
func unreachable(t testing.TB, from, to *Namespace, address netip.Addr) {
	t.Helper()
	check(t, to.Do(func() error {
		l, err := net.Listen("tcp", netip.AddrPortFrom(address, 0).String())
		if err != nil {
			return err
		}
		defer l.Close()
		return from.Do(func() error {
			if c, err := net.DialTimeout("tcp", l.Addr().String(), 300*time.Millisecond); err == nil {
				c.Close()
				t.Errorf("%v is reached", address)
			}
			return nil
		})
	}))
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it did not come to pass that %s", what)
		}
	}
}

// interfaces lists the names of those that a namespace has.
func interfaces(t testing.TB, ns *Namespace) []string {
	t.Helper()
	links, err := ns.route.links("", 0)
	check(t, err)
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return names
}

// sysctl reads a setting of a namespace.
func sysctl(t testing.TB, ns *Namespace, name string) string {
	t.Helper()
	v, err := ns.sysctls.read(name)
	check(t, err)
	return v
}
