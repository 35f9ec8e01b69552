package coracle_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// onNetworks are attachments to networks by name.
func onNetworks(names ...string) []coracle.Attachment {
	list := make([]coracle.Attachment, len(names))
	for i, name := range names {
		list[i].Network = name
	}
	return list
}

func createNetwork(t testing.TB, eng *coracle.Engine, spec coracle.NetworkSpec) *coracle.Network {
	t.Helper()
	n, err := eng.CreateNetwork(t.Context(), &spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Remove(context.Background()); err != nil && !errors.Is(err, coracle.ErrClosed) {
			t.Error(err)
		}
	})
	return n
}

// inContainer runs a command of the tool in a container of its own and returns what it prints.
func inContainer(t testing.TB, eng *coracle.Engine, spec coracle.ContainerSpec, args ...string) (string, error) {
	t.Helper()
	var stderr bytes.Buffer
	spec.Image, spec.Args, spec.Stderr = "tool", args, &stderr
	out, err := eng.Output(t.Context(), &spec)
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return strings.TrimSpace(string(out)), err
}

// execIn runs a command of the tool in a container that runs.
func execIn(t testing.TB, c *coracle.Container, args ...string) (string, error) {
	t.Helper()
	cmd := c.Command("/tool", args...)
	out, err := cmd.CombinedOutput(t.Context())
	return strings.TrimSpace(string(out)), err
}

func wantOutput(t testing.TB, what, got string, err error, want string) {
	t.Helper()
	if err != nil || got != want {
		t.Errorf("%s: %q, %v, want %q", what, got, err, want)
	}
}

// addressOf is the container's address in a network.
func addressOf(t testing.TB, c *coracle.Container, network string) netip.Addr {
	t.Helper()
	for _, ep := range inspect(t, c).Networks {
		if ep.Network == network {
			return ep.Addresses[0].Addr()
		}
	}
	t.Fatalf("not connected to %s", network)
	return netip.Addr{}
}

// TestNetwork: containers of a network find each other by name and reach each other, those of others do not.
func TestNetwork(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	createNetwork(t, eng, coracle.NetworkSpec{Name: "app", IPv6: true})
	createNetwork(t, eng, coracle.NetworkSpec{Name: "other"})
	web := serving(t, eng, coracle.ContainerSpec{Name: "Web", Networks: []coracle.Attachment{{Network: "app", Aliases: []string{"www"}}}}, "tcp", "0.0.0.0:80")
	addr := addressOf(t, web, "app").String()
	for _, name := range []string{"web", "WEB", "www", "web.app", web.ID()[:12], addr} {
		out, err := inContainer(t, eng, coracle.ContainerSpec{Networks: onNetworks("app")}, "dial", "tcp4", name+":80")
		wantOutput(t, name, out, err, "hello from "+addr+":80")
	}
	out, err := inContainer(t, eng, coracle.ContainerSpec{Networks: onNetworks("app")}, "lookup-addr", addr)
	wantOutput(t, "reverse", out, err, "Web.app.")
	if out, err := inContainer(t, eng, coracle.ContainerSpec{Networks: onNetworks("other")}, "lookup", "web"); err == nil {
		t.Errorf("another network resolves the name: %s", out)
	}
	if out, err := inContainer(t, eng, coracle.ContainerSpec{Networks: onNetworks("other")}, "dial", "tcp", addr+":80"); err == nil {
		t.Errorf("another network is not isolated: %s", out)
	}
	// Both.
	out, err = inContainer(t, eng, coracle.ContainerSpec{Networks: onNetworks("other", "app")}, "dial", "tcp4", "web:80")
	wantOutput(t, "both", out, err, "hello from "+addr+":80")
	// From the host, and into it.
	conn, err := net.DialTimeout("tcp", addr+":80", 5*time.Second)
	if err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	info := inspect(t, web)
	if len(info.Networks) != 1 || len(info.Networks[0].Addresses) != 2 || info.Networks[0].Interface != "eth0" || info.Networks[0].MAC == "" {
		t.Errorf("inspect: %+v", info.Networks)
	}
}

// TestDefaultNetwork is what a container gets whose spec says nothing.
func TestDefaultNetwork(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	out, err := inContainer(t, eng, coracle.ContainerSpec{}, "interfaces")
	if err != nil || !strings.HasPrefix(out, "eth0 ") || !strings.Contains(out, " 02:42:") {
		t.Errorf("%q, %v", out, err)
	}
	n, err := eng.Network(t.Context(), coracle.NetworkBridge)
	if err != nil {
		t.Fatal(err)
	}
	info, err := n.Inspect(t.Context())
	if err != nil || len(info.Endpoints) != 0 || len(info.Subnets) != 1 {
		t.Errorf("%+v, %v", info, err)
	}
}

// TestPublish: ports on the host, free ones too.
func TestPublish(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	for _, isDetached := range []bool{false, true} {
		for _, network := range []string{"tcp", "udp"} {
			t.Run(fmt.Sprint(network, isDetached), func(t *testing.T) {
				c := serving(t, eng, coracle.ContainerSpec{Detached: isDetached, Ports: []coracle.Port{{Container: 80, Protocol: network}}}, network, "0.0.0.0:80")
				at, err := c.Addr(t.Context(), network, 80)
				if err != nil || !at.Addr().IsLoopback() || at.Port() == 0 {
					t.Fatal(at, err)
				}
				echoed(t, func() (net.Conn, error) { return net.Dial(network, at.String()) })
				// The port is held.
				spec := coracle.ContainerSpec{Image: "tool", Args: []string{"true"}, Ports: []coracle.Port{{Container: 80, Protocol: network, Host: at.Port()}}}
				if err := eng.Run(t.Context(), &spec); !errors.Is(err, coracle.ErrInUse) {
					t.Errorf("a port in use: %v", err)
				}
				if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the port is free again", func() bool {
					err := eng.Run(t.Context(), &spec)
					return err == nil
				})
			})
		}
	}
}

// TestPortIsFreeAgain: who has waited for the end of a container can have its port, and so can the container itself.
func TestPortIsFreeAgain(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	l.Close()
	for _, isDetached := range []bool{false, true} {
		spec := coracle.ContainerSpec{Detached: isDetached, Ports: []coracle.Port{{Container: 80, Host: uint16(addr.Port)}}}
		c := startTool(t, eng, spec, "sleep", "60000")
		for range 10 {
			if err := c.Restart(t.Context(), &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
				t.Fatalf("detached %v: %v", isDetached, err)
			}
		}
		if _, err := net.Listen("tcp4", addr.String()); err == nil {
			t.Error("somebody else has the port of a container that runs")
		}
		if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp4", addr.String())
		if err != nil {
			t.Fatalf("detached %v, after: %v", isDetached, err)
		}
		l.Close()
	}
}

// TestAddresses: static addresses, ranges, a subnet that is full, and what was freed.
func TestAddresses(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	prefix := netip.MustParsePrefix("10.213.7.0/29")
	createNetwork(t, eng, coracle.NetworkSpec{Name: "small", Subnets: []coracle.Subnet{{Prefix: prefix}}})
	fixed := coracle.ContainerSpec{Networks: []coracle.Attachment{{Network: "small", IPv4: netip.MustParseAddr("10.213.7.5"), MAC: "02:00:00:00:00:07", Interface: "lan0"}}}
	for range 3 { // at once again
		out, err := inContainer(t, eng, fixed, "interfaces")
		if fields := strings.Fields(out); err != nil || len(fields) != 4 || fields[0] != "lan0" || fields[2] != "02:00:00:00:00:07" || fields[3] != "[10.213.7.5/29]" {
			t.Errorf("static: %q, %v", out, err)
		}
	}
	var all []*coracle.Container
	seen := make(map[netip.Addr]bool)
	for range 5 {
		c := startTool(t, eng, coracle.ContainerSpec{Networks: onNetworks("small")}, "sleep", "60000")
		all = append(all, c)
		seen[addressOf(t, c, "small")] = true
	}
	if len(seen) != 5 {
		t.Errorf("%v", seen)
	}
	spec := coracle.ContainerSpec{Image: "tool", Args: []string{"true"}, Networks: onNetworks("small")}
	if err := eng.Run(t.Context(), &spec); !errors.Is(err, coracle.ErrInUse) {
		t.Errorf("a full subnet: %v", err)
	}
	fixed.Image, fixed.Args = "tool", []string{"true"}
	if err := eng.Run(t.Context(), &fixed); !errors.Is(err, coracle.ErrInUse) {
		t.Errorf("an address in use: %v", err)
	}
	n, err := eng.Network(t.Context(), "small")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Remove(t.Context()); !errors.Is(err, coracle.ErrInUse) {
		t.Errorf("remove a network in use: %v", err)
	}
	for _, c := range all {
		if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "addresses are free again", func() bool {
		err := eng.Run(t.Context(), &spec)
		return err == nil
	})
	if _, err := eng.CreateNetwork(t.Context(), &coracle.NetworkSpec{Name: "same", Subnets: []coracle.Subnet{{Prefix: netip.MustParsePrefix("10.213.0.0/16")}}}); !errors.Is(err, coracle.ErrInUse) {
		t.Errorf("a subnet that overlaps: %v", err)
	}
}

// TestNetworkErrors: every wrong call has its typed error.
func TestNetworkErrors(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	createNetwork(t, eng, coracle.NetworkSpec{Name: "net"})
	for name, spec := range map[string]coracle.NetworkSpec{
		"reserved": {Name: "host"}, "colon": {Name: "container:x"}, "slash": {Name: "a/b"}, "mtu": {MTU: 60},
		"masked": {Subnets: []coracle.Subnet{{Prefix: netip.MustParsePrefix("10.1.1.1/24")}}},
		"twice":  {Subnets: []coracle.Subnet{{Prefix: netip.MustParsePrefix("10.250.1.0/24")}, {Prefix: netip.MustParsePrefix("10.250.2.0/24")}}},
		"tiny":   {Subnets: []coracle.Subnet{{Prefix: netip.MustParsePrefix("10.250.1.0/31")}}},
		"loop":   {Subnets: []coracle.Subnet{{Prefix: netip.MustParsePrefix("127.1.0.0/16")}}},
		"gate":   {Subnets: []coracle.Subnet{{Prefix: netip.MustParsePrefix("10.250.1.0/24"), Gateway: netip.MustParseAddr("10.250.2.1")}}},
	} {
		if _, err := eng.CreateNetwork(t.Context(), &spec); !errors.Is(err, coracle.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := eng.CreateNetwork(t.Context(), &coracle.NetworkSpec{Name: "net"}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("the same name: %v", err)
	}
	if _, err := eng.CreateNetwork(t.Context(), &coracle.NetworkSpec{Driver: "weave"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("no such driver: %v", err)
	}
	if _, err := eng.Network(t.Context(), "nowhere"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such network: %v", err)
	}
	for name, test := range map[string]struct {
		spec coracle.ContainerSpec
		want error
	}{
		"unknown":       {coracle.ContainerSpec{Networks: onNetworks("nowhere")}, fs.ErrNotExist},
		"host and more": {coracle.ContainerSpec{Networks: onNetworks("host", "net")}, coracle.ErrInvalid},
		"more and none": {coracle.ContainerSpec{Networks: onNetworks("net", "none")}, coracle.ErrInvalid},
		"twice":         {coracle.ContainerSpec{Networks: onNetworks("net", "net")}, coracle.ErrInvalid},
		"host port":     {coracle.ContainerSpec{Networks: onNetworks("host"), Ports: []coracle.Port{{Container: 1}}}, coracle.ErrInvalid},
		"port 0":        {coracle.ContainerSpec{Ports: []coracle.Port{{}}}, coracle.ErrInvalid},
		"protocol":      {coracle.ContainerSpec{Ports: []coracle.Port{{Container: 1, Protocol: "icmp"}}}, coracle.ErrInvalid},
		"address":       {coracle.ContainerSpec{Networks: []coracle.Attachment{{Network: "net", IPv4: netip.MustParseAddr("192.0.2.1")}}}, coracle.ErrInvalid},
		"mac":           {coracle.ContainerSpec{Networks: []coracle.Attachment{{Network: "net", MAC: "01:00:00:00:00:00"}}}, coracle.ErrInvalid},
		"foreign addr":  {coracle.ContainerSpec{Ports: []coracle.Port{{Container: 1, HostAddr: netip.MustParseAddr("192.0.2.1")}}}, coracle.ErrInvalid},
		"no container":  {coracle.ContainerSpec{Networks: onNetworks("container:nobody")}, fs.ErrNotExist},
	} {
		test.spec.Image, test.spec.Args = "tool", []string{"true"}
		if err := eng.Run(t.Context(), &test.spec); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}

// TestConnect: a container that runs is connected and disconnected, by its own engine and by another one.
func TestConnect(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	late := createNetwork(t, eng, coracle.NetworkSpec{Name: "late"})
	for _, isDetached := range []bool{false, true} {
		t.Run(fmt.Sprint("detached ", isDetached), func(t *testing.T) {
			c := startTool(t, eng, coracle.ContainerSpec{Name: fmt.Sprint("c", isDetached), Detached: isDetached, Networks: onNetworks(coracle.NetworkBridge)}, "sleep", "600000")
			other := openAgain(t, eng.Root())
			n, err := other.Network(t.Context(), "late")
			if err != nil {
				t.Fatal(err)
			}
			seen, err := other.Container(t.Context(), c.ID())
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Disconnect(t.Context(), seen); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("disconnect before: %v", err)
			}
			if err := n.Connect(t.Context(), seen, &coracle.Attachment{Aliases: []string{"moved"}}); err != nil {
				t.Fatal(err)
			}
			if err := late.Connect(t.Context(), c, nil); !errors.Is(err, fs.ErrExist) {
				t.Errorf("connect twice: %v", err)
			}
			addr := addressOf(t, c, "late").String()
			out, err := execIn(t, c, "interfaces")
			if err != nil || !strings.Contains(out, "eth1 ") || !strings.Contains(out, addr) {
				t.Errorf("%q, %v", out, err)
			}
			out, err = inContainer(t, eng, coracle.ContainerSpec{Networks: onNetworks("late")}, "lookup", "moved")
			wantOutput(t, "the alias", out, err, addr)
			if err := n.Disconnect(t.Context(), seen); err != nil {
				t.Fatal(err)
			}
			if out, err = execIn(t, c, "interfaces"); err != nil || strings.Contains(out, "eth1") {
				t.Errorf("%q, %v", out, err)
			}
			if out, err := inContainer(t, eng, coracle.ContainerSpec{Networks: onNetworks("late")}, "lookup", "moved"); err == nil {
				t.Errorf("the alias after: %q", out)
			}
		})
	}
}

// TestSharedNetwork: a container in the network of another one, and in that of a file.
func TestSharedNetwork(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := serving(t, eng, coracle.ContainerSpec{Name: "first", Networks: onNetworks(coracle.NetworkBridge)}, "tcp", "127.0.0.1:99")
	out, err := inContainer(t, eng, coracle.ContainerSpec{Networks: onNetworks("container:first")}, "dial", "tcp", "127.0.0.1:99")
	wantOutput(t, "container", out, err, "hello from 127.0.0.1:99")
	out, err = inContainer(t, eng, coracle.ContainerSpec{Networks: onNetworks(fmt.Sprintf("ns:/proc/%d/ns/net", inspect(t, c).PID))}, "dial", "tcp", "127.0.0.1:99")
	wantOutput(t, "path", out, err, "hello from 127.0.0.1:99")
}

// TestDetachedNames: detached containers have names in their hosts files, current after others come and go.
func TestDetachedNames(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	createNetwork(t, eng, coracle.NetworkSpec{Name: "app"})
	one := startTool(t, eng, coracle.ContainerSpec{Name: "one", Detached: true, Networks: onNetworks("app")}, "sleep", "600000")
	two := startTool(t, eng, coracle.ContainerSpec{Name: "two", Detached: true, Networks: onNetworks("app")}, "sleep", "600000")
	for _, test := range []struct {
		in, of *coracle.Container
		name   string
	}{{one, two, "two"}, {two, one, "one"}} {
		out, err := execIn(t, test.in, "lookup", test.name)
		wantOutput(t, test.name, out, err, addressOf(t, test.of, "app").String())
	}
	if err := two.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the name goes", func() bool {
		_, err := execIn(t, one, "lookup", "two")
		return err != nil
	})
}

// TestNetworksLeaveNothing: no link, address or table is left when an engine closes, nor when it was killed.
func TestNetworksLeaveNothing(t *testing.T) {
	testutil.RequireRoot(t)
	root := t.TempDir()
	eng := openAgain(t, root)
	toolImage(t, eng, nil)
	if _, err := eng.CreateNetwork(t.Context(), &coracle.NetworkSpec{Name: "app"}); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := inContainer(t, eng, coracle.ContainerSpec{Networks: onNetworks("app", "bridge"), Ports: []coracle.Port{{Container: 1}}}, "true"); err != nil {
			t.Fatal(err)
		}
	}
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	checkNetworks(t, root)
}

// TestNetworkStats: what a container has sent and got is counted.
func TestNetworkStats(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := serving(t, eng, coracle.ContainerSpec{Ports: []coracle.Port{{Container: 80}}}, "tcp", "0.0.0.0:80")
	addr := addressOf(t, c, "bridge").String()
	echoed(t, func() (net.Conn, error) { return net.Dial("tcp", addr+":80") })
	s, err := c.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if eth := s.Networks["eth0"]; len(s.Networks) != 1 || eth.RxBytes < 100 || eth.TxBytes < 100 || eth.RxPackets < 3 || eth.RxErrors != 0 {
		t.Errorf("%+v", s.Networks)
	}
	quiet := startTool(t, eng, coracle.ContainerSpec{Networks: onNetworks("host")}, "sleep", "60000")
	if s, err := quiet.Stats(t.Context()); err != nil || s.Networks != nil {
		t.Errorf("of the host: %v, %v", s, err)
	}
}

// TestNetworkGraph: who is connected, as JSON and for Graphviz.
func TestNetworkGraph(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	n := createNetwork(t, eng, coracle.NetworkSpec{Name: "app", Subnets: []coracle.Subnet{{Prefix: netip.MustParsePrefix("10.213.8.0/24")}}})
	c := startTool(t, eng, coracle.ContainerSpec{Name: "web", Networks: onNetworks("app", "bridge"), Ports: []coracle.Port{{Container: 80}}}, "sleep", "60000")
	g, err := n.Graph(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at, err := c.Addr(t.Context(), "tcp", 80)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`graph "app" {
	"network app" [shape=box,label="app\nbridge\n10.213.8.0/24"];
	"%[1]s" [shape=ellipse,label="web"];
	"network app" -- "%[1]s" [label="10.213.8.2"];
	"host" -- "%[1]s" [style=dashed,label="%[2]v->80/tcp"];
	"network bridge" -- "%[1]s" [style=dotted];
	"host" [shape=box3d];
	"network bridge" [shape=box,style=dotted,label="bridge"];
}
`, c.ID(), at)
	if got := g.DOT(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	b, err := json.Marshal(g)
	var again coracle.NetworkGraph
	if err == nil {
		err = json.Unmarshal(b, &again)
	}
	if err != nil || !reflect.DeepEqual(&again, g) {
		t.Errorf("%s, %v", b, err)
	}
}

// TestManyBridgeRuns leaves the host as it was after many containers with a network and a published port, one after the other
// and at once. With CORACLE_BENCH_LARGE there are ten thousand.
func TestManyBridgeRuns(t *testing.T) {
	sequential, parallel := 100, 100
	switch {
	case os.Getenv("CORACLE_BENCH_LARGE") != "":
		sequential, parallel = 2000, 8000
	case testutil.Short() || testutil.RaceEnabled:
		sequential, parallel = 20, 20
	}
	testutil.RequireRoot(t)
	root := t.TempDir()
	eng := openAgain(t, root)
	files := fstest.MapFS{"bin/true": {Data: trueELF(t), Mode: 0o755}}
	if _, err := eng.ImageFromFS(t.Context(), "true", files, nil); err != nil {
		t.Fatal(err)
	}
	spec := benchSpec(coracle.NetworkBridge)
	spec.Ports = []coracle.Port{{Container: 80}}
	if err := life(t.Context(), eng, spec); err != nil { // what an engine opens once and keeps
		t.Fatal(err)
	}
	threads := func() int {
		list, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before, threadsBefore := testutil.Resources(), threads()
	for range sequential {
		if err := life(t.Context(), eng, spec); err != nil {
			t.Fatal(err)
		}
	}
	errs, slots := make(chan error), make(chan struct{}, 50)
	for range parallel {
		go func() {
			slots <- struct{}{}
			err := life(t.Context(), eng, spec)
			<-slots
			errs <- err
		}()
	}
	for range parallel {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	testutil.Settled(t, before)
	// The runtime keeps threads for those that were waited for; those in namespaces are gone.
	if now := threads(); now > threadsBefore+100 {
		t.Errorf("%d threads before, %d after", threadsBefore, now)
	}
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	checkNetworks(t, root)
}
