package coracle_test

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/netdrv"
	"github.com/coracle-dev/coracle/nsexec"
)

// The containers in this file have the capabilities to send whatever they want, and do.

var hostileCaps = nsexec.Security{CapAdd: []string{"NET_RAW", "NET_ADMIN"}}

// Frames of Ethernet.

func etherFrame(to, from net.HardwareAddr, kind uint16, payload []byte) string {
	b := append(append([]byte{}, to...), from...)
	return hex.EncodeToString(append(binary.BigEndian.AppendUint16(b, kind), payload...))
}

func arpReply(mac net.HardwareAddr, ip, to netip.Addr) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, 2}, mac...)
	b = append(append(b, ip.AsSlice()...), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	return append(b, to.AsSlice()...)
}

func internetSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func udpPacket(from, to netip.AddrPort, text string) []byte {
	u := binary.BigEndian.AppendUint16(nil, from.Port())
	u = binary.BigEndian.AppendUint16(u, to.Port())
	u = append(binary.BigEndian.AppendUint16(u, uint16(8+len(text))), 0, 0) // without a sum
	u = append(u, text...)
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(u)))
	copy(h[12:], from.Addr().AsSlice())
	copy(h[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(h[10:], internetSum(h))
	return append(h, u...)
}

// icmp6Packet is a message to all nodes.
func icmp6Packet(from netip.Addr, message []byte) []byte {
	to := netip.MustParseAddr("ff02::1")
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, 58, 255
	binary.BigEndian.PutUint16(h[4:], uint16(len(message)))
	copy(h[8:], from.AsSlice())
	copy(h[24:], to.AsSlice())
	pseudo := append(append(append([]byte{}, h[8:40]...), 0, 0, 0, byte(len(message)), 0, 0, 0, 58), message...)
	binary.BigEndian.PutUint16(message[2:], internetSum(pseudo))
	return append(h, message...)
}

var (
	everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes  = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
)

func endpointOf(t *testing.T, c *coracle.Container, network string) (mac net.HardwareAddr, v4, v6 netip.Addr) {
	t.Helper()
	for _, ep := range inspect(t, c).Networks {
		if ep.Network != network {
			continue
		}
		mac, err := net.ParseMAC(ep.MAC)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ep.Addresses {
			if p.Addr().Is4() {
				v4 = p.Addr()
			} else {
				v6 = p.Addr()
			}
		}
		return mac, v4, v6
	}
	t.Fatalf("not connected to %s", network)
	return
}

// attacking starts a container with the tool and waits until it is at work.
func attacking(t *testing.T, eng *coracle.Engine, spec coracle.ContainerSpec, args ...string) *coracle.Container {
	t.Helper()
	out := &syncBuffer{}
	spec.Security, spec.Stdout, spec.Stderr = hostileCaps, out, out
	c := startTool(t, eng, spec, args...)
	eventually(t, "it is ready: "+args[0], func() bool {
		return strings.Contains(out.String(), "ready") || strings.Contains(out.String(), "listening")
	})
	return c
}

// TestHostileNetworkSpoofing: a container that says it is others, by MAC, ARP, IP, neighbour and router advertisements, does
// not come between them. Where nobody looks, it does.
func TestHostileNetworkSpoofing(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	for _, check := range []string{"on", "off"} {
		t.Run("spoofcheck "+check, func(t *testing.T) {
			name := "spoof-" + check
			createNetwork(t, eng, coracle.NetworkSpec{Name: name, IPv6: true, Options: map[string]string{"spoofcheck": check}})
			server := serving(t, eng, coracle.ContainerSpec{Networks: onNetworks(name)}, "tcp", "0.0.0.0:80")
			client := startTool(t, eng, coracle.ContainerSpec{Networks: onNetworks(name)}, "sleep", "600000")
			attacker := startTool(t, eng, coracle.ContainerSpec{Networks: onNetworks(name), Security: hostileCaps}, "sleep", "600000")
			mac, v4, v6 := endpointOf(t, server, name)
			clientMAC, client4, _ := endpointOf(t, client, name)
			own, _, _ := endpointOf(t, attacker, name)
			conn, err := client.Dial("tcp", v4.String()+":80")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			advertisement := append(append([]byte{134, 0, 0, 0, 64, 0, 0xff, 0xff}, make([]byte, 8)...), append([]byte{1, 1}, own...)...)
			// A router is known by its link-local address.
			router := netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: own[0] ^ 2, 9: own[1], 10: own[2], 11: 0xff, 12: 0xfe, 13: own[3], 14: own[4], 15: own[5]})
			neighbour := append(append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, v6.AsSlice()...), append([]byte{2, 1}, own...)...)
			frames := []string{
				etherFrame(clientMAC, own, 0x0806, arpReply(own, v4, client4)),                  // "I have the server's address"
				etherFrame(everybody, own, 0x0806, arpReply(own, v4, v4)),                       // and to all
				etherFrame(everybody, mac, 0x0806, arpReply(mac, v4, v4)),                       // with its MAC: the bridge learns
				etherFrame(everybody, clientMAC, 0x0806, arpReply(clientMAC, client4, client4)), // of the client too
				etherFrame(clientMAC, mac, 0x0800, udpPacket(netip.AddrPortFrom(v4, 80), netip.AddrPortFrom(client4, 80), "server")),
				etherFrame(clientMAC, own, 0x0800, udpPacket(netip.AddrPortFrom(v4, 80), netip.AddrPortFrom(client4, 80), "server")),
				etherFrame(allNodes, own, 0x86dd, icmp6Packet(router, advertisement)),
				etherFrame(allNodes, own, 0x86dd, icmp6Packet(v6, neighbour)),
			}
			done := make(chan error, 1)
			go func() {
				out, err := attacker.Command("/tool", append([]string{"frames", "eth0", "2500"}, frames...)...).CombinedOutput(t.Context())
				if err != nil {
					err = fmt.Errorf("%w: %s", err, out)
				}
				done <- err
			}()
			time.Sleep(300 * time.Millisecond)
			slow := 0
			for range 50 {
				start := time.Now()
				conn.SetDeadline(start.Add(time.Second))
				_, err := conn.Write([]byte("hello"))
				if err == nil {
					_, err = conn.Read(make([]byte, 64))
				}
				if err != nil || time.Since(start) > 150*time.Millisecond {
					slow++
				}
				if err != nil {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if check == "on" && slow > 2 { // the machine may be busy
				t.Errorf("%d exchanges were disturbed", slow)
			}
			if check == "off" && slow == 0 {
				t.Error("the attack does nothing where it could")
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if check == "off" {
				return
			}
			at := v4.String() + ":80"
			out, err := execIn(t, client, "dial", "tcp4", at)
			wantOutput(t, "a new connection", out, err, "hello from "+at)
			routes, err := client.Command("/tool", "cat", "/proc/net/ipv6_route").Output(t.Context())
			if err != nil || strings.Contains(string(routes), strings.ReplaceAll(router.StringExpanded(), ":", "")) {
				t.Errorf("routes after the advertisements: %s, %v", routes, err)
			}
		})
	}
}

// TestHostileNetworkLoopback: no frame reaches what listens on the host's 127.0.0.1, though ports are published there.
func TestHostileNetworkLoopback(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	createNetwork(t, eng, coracle.NetworkSpec{Name: "app"})
	listen := func(at string) (port uint16, got *atomic.Int32) {
		conn, err := net.ListenPacket("udp4", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		got = &atomic.Int32{}
		go func() {
			b := make([]byte, 100)
			for {
				n, _, err := conn.ReadFrom(b)
				if err != nil {
					return
				}
				if string(b[:n]) == "hostile" {
					got.Add(1)
				}
			}
		}()
		return conn.LocalAddr().(*net.UDPAddr).AddrPort().Port(), got
	}
	private, reached := listen("127.0.0.1:0")
	open, control := listen("0.0.0.0:0")
	service, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	// With a published port the kernel routes 127.0.0.0/8.
	serving(t, eng, coracle.ContainerSpec{Networks: onNetworks("app"), Ports: []coracle.Port{{Container: 80}}}, "tcp", "0.0.0.0:80")
	attacker := startTool(t, eng, coracle.ContainerSpec{Networks: onNetworks("app"), Security: hostileCaps}, "sleep", "600000")
	own, own4, _ := endpointOf(t, attacker, "app")
	n, err := eng.Network(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	info, err := n.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gateway := info.Subnets[0].Gateway
	bridge, err := net.InterfaceByName((&netdrv.Network{ID: info.ID}).Interface())
	if err != nil {
		t.Fatal(err)
	}
	local := netip.MustParseAddr("127.0.0.1")
	send := func(from, to netip.AddrPort) string {
		return etherFrame(bridge.HardwareAddr, own, 0x0800, udpPacket(from, to, "hostile"))
	}
	out, err := execIn(t, attacker, "frames", "eth0", "500",
		send(netip.AddrPortFrom(own4, 999), netip.AddrPortFrom(local, private)),
		send(netip.AddrPortFrom(local, 999), netip.AddrPortFrom(local, private)),
		send(netip.AddrPortFrom(own4, 999), netip.MustParseAddrPort("127.255.1.1:"+strconv.Itoa(int(private)))),
		send(netip.AddrPortFrom(own4, 999), netip.AddrPortFrom(gateway, private)),
		send(netip.AddrPortFrom(own4, 999), netip.AddrPortFrom(gateway, open)))
	if err != nil {
		t.Fatal(out, err)
	}
	if control.Load() == 0 {
		t.Error("not even what listens everywhere was reached: the frames are wrong")
	}
	if n := reached.Load(); n > 0 {
		t.Errorf("%d datagrams reached 127.0.0.1", n)
	}
	port := strconv.Itoa(service.Addr().(*net.TCPAddr).Port)
	for _, at := range []string{"127.0.0.1:" + port, gateway.String() + ":" + port} {
		if out, err := execIn(t, attacker, "dial", "tcp4", at); err == nil {
			t.Errorf("%s: %s", at, out)
		}
	}
}

// TestHostileNetworkOwnDNS: what a container serves on port 53 is its own, and its own name server works all the same.
func TestHostileNetworkOwnDNS(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	createNetwork(t, eng, coracle.NetworkSpec{Name: "app"})
	web := startTool(t, eng, coracle.ContainerSpec{Name: "web", Networks: onNetworks("app")}, "sleep", "600000")
	want := addressOf(t, web, "app").String()
	for _, at := range []string{"0.0.0.0:53", "127.0.0.1:53", "127.0.0.11:53"} {
		t.Run(at, func(t *testing.T) {
			c := attacking(t, eng, coracle.ContainerSpec{Networks: onNetworks("app")}, "dns", at, "192.0.2.53")
			out, err := execIn(t, c, "lookup", "web")
			wantOutput(t, "its resolution", out, err, want)
			if at != "127.0.0.11:53" {
				out, err = execIn(t, c, "lookup-at", "127.0.0.1:53", "anything")
				wantOutput(t, "its service", out, err, "192.0.2.53")
			}
			if at == "0.0.0.0:53" {
				out, err = execIn(t, web, "lookup-at", addressOf(t, c, "app").String()+":53", "anything")
				wantOutput(t, "its service to others", out, err, "192.0.2.53")
			}
			out, err = execIn(t, web, "lookup", "web")
			wantOutput(t, "another one's resolution", out, err, want)
		})
	}
}

// silent is a name server on this machine that counts what it is asked and never answers.
func silent(t *testing.T, at string) *atomic.Int32 {
	t.Helper()
	conn, err := net.ListenPacket("udp4", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	asked := &atomic.Int32{}
	go func() {
		for b := make([]byte, 1500); ; {
			if _, _, err := conn.ReadFrom(b); err != nil {
				return
			}
			asked.Add(1)
		}
	}()
	return asked
}

// TestHostileNetworkFloods: a container that asks its name server without end, or opens more connections than is decent, does
// not keep others from theirs.
func TestHostileNetworkFloods(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	createNetwork(t, eng, coracle.NetworkSpec{Name: "app"})
	asked := silent(t, "127.77.0.53:53")
	web := serving(t, eng, coracle.ContainerSpec{Name: "web", Networks: onNetworks("app"), Ports: []coracle.Port{{Container: 80}}}, "tcp", "0.0.0.0:80")
	client := startTool(t, eng, coracle.ContainerSpec{Networks: onNetworks("app")}, "sleep", "600000")
	at, err := web.Addr(t.Context(), "tcp", 80)
	if err != nil {
		t.Fatal(err)
	}
	well := func(what string) {
		t.Helper()
		for range 10 {
			start := time.Now()
			out, err := execIn(t, client, "lookup", "web")
			wantOutput(t, what, out, err, addressOf(t, web, "app").String())
			echoed(t, func() (net.Conn, error) { return net.DialTimeout("tcp", at.String(), 5*time.Second) }).Close()
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("%s: a look-up and a connection take %v", what, d)
			}
		}
	}
	spec := coracle.ContainerSpec{Networks: onNetworks("app"), DNS: []string{"127.77.0.53"}}
	attacking(t, eng, spec, "dns-flood", "127.0.0.11:53", "4000")
	attacking(t, eng, spec, "dns-flood", "127.0.0.11:53", "4000", "example")
	well("while the name server is flooded")
	if asked.Load() == 0 {
		t.Error("nothing was forwarded")
	}
	n, err := eng.Network(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	info, err := n.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := inContainer(t, eng, spec, "flows", info.Subnets[0].Gateway.String()+":9", "4000")
	wantOutput(t, "flows", out, err, "done")
	if b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count"); err == nil {
		t.Logf("%s connections are tracked", strings.TrimSpace(string(b)))
	}
	well("with many connections tracked")
}

// TestCVE_2024_29018_InternalNetworksAskNobody: what a container on internal networks only asks for leaves the host by no
// name server, neither from the start nor after it was taken out of others.
func TestCVE_2024_29018_InternalNetworksAskNobody(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	createNetwork(t, eng, coracle.NetworkSpec{Name: "inside", Internal: true})
	outside := createNetwork(t, eng, coracle.NetworkSpec{Name: "outside"})
	asked := silent(t, "127.77.0.54:53")
	for _, isDetached := range []bool{false, true} {
		c := startTool(t, eng, coracle.ContainerSpec{Detached: isDetached, Networks: onNetworks("inside"), DNS: []string{"127.77.0.54"}}, "sleep", "600000")
		if out, err := execIn(t, c, "lookup", "secret.example.com"); err == nil {
			t.Error(out)
		}
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("%d queries were passed on", n)
	}
	c := startTool(t, eng, coracle.ContainerSpec{Networks: onNetworks("outside", "inside"), DNS: []string{"127.77.0.54"}}, "sleep", "600000")
	execIn(t, c, "lookup", "public.example.com")
	if asked.Load() == 0 {
		t.Error("nothing is passed on from other networks: the test proves nothing")
	}
	if err := outside.Disconnect(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // what was asked before
	before := asked.Load()
	if out, err := execIn(t, c, "lookup", "secret.example.com"); err == nil {
		t.Error(out)
	}
	if n := asked.Load() - before; n > 0 {
		t.Errorf("%d queries were passed on after it was taken out", n)
	}
}
