package netdrv

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A wire is a packet socket on an interface of a namespace: what goes through it is no kernel's, but what the test makes.
type wire struct {
	fd, index int
}

func newWire(t testing.TB, ns *Namespace, name string) *wire {
	t.Helper()
	w := &wire{}
	check(t, ns.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		w.index = link.Attrs().Index
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1)
		unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000})
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: w.index})
	}))
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (w *wire) send(t testing.TB, frame []byte) {
	t.Helper()
	proto := binary.BigEndian.Uint16(frame[12:])
	check(t, unix.Sendto(w.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: w.index, Protocol: htons(proto)}))
}

// sees reports whether a frame that ends with a mark arrives, within a time.
func (w *wire) sees(mark []byte, within time.Duration) bool {
	b := make([]byte, 2048)
	for end := time.Now().Add(within); time.Now().Before(end); {
		n, from, err := unix.Recvfrom(w.fd, b, 0)
		if err != nil {
			continue
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if bytes.Contains(b[:n], mark) {
			return true
		}
	}
	return false
}

func frame(to, from string, kind uint16, payload []byte) []byte {
	a, _ := net.ParseMAC(to)
	b, _ := net.ParseMAC(from)
	return append(binary.BigEndian.AppendUint16(append(append([]byte{}, a...), b...), kind), payload...)
}

func ip4Packet(from, to string, protocol byte, payload []byte) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	copy(h[12:], netip.MustParseAddr(from).AsSlice())
	copy(h[16:], netip.MustParseAddr(to).AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, payload...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func udpDatagram(from, to uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}

func ip6Packet(from, to string, next byte, payload []byte) []byte {
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, next, 255
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], netip.MustParseAddr(from).AsSlice())
	copy(h[24:], netip.MustParseAddr(to).AsSlice())
	return append(h, payload...)
}

// icmp6Message is a message with a target address, if it has one.
func icmp6Message(kind byte, target string, payload []byte) []byte {
	b := []byte{kind, 0, 0, 0, 0, 0, 0, 0}
	if target != "" {
		b = append(b, netip.MustParseAddr(target).AsSlice()...)
	}
	return append(b, payload...)
}

func arpMessage(operation uint16, mac, ip, target string, payload []byte) []byte {
	b := []byte{0, 1, 8, 0, 6, 4}
	b = binary.BigEndian.AppendUint16(b, operation)
	m, _ := net.ParseMAC(mac)
	b = append(append(b, m...), netip.MustParseAddr(ip).AsSlice()...)
	return append(append(append(b, make([]byte, 6)...), netip.MustParseAddr(target).AsSlice()...), payload...)
}

func TestSpoofedFrames(t *testing.T) {
	onHost(t, func(host *Namespace) {
		setBridgeNetfilter(t, false) // it would hold back fragments until it has all of a packet
		n := dual(t, 1)
		d := up(t, n)
		c, victim := container(t, d, n, endpoint(n, 2)), container(t, d, n, endpoint(n, 3))
		from, to := newWire(t, c, "eth0"), newWire(t, victim, "eth0")
		const (
			me, they, all, all6 = "02:00:00:00:00:02", "02:00:00:00:00:03", "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"
			my4, their4, gw4    = "10.88.1.2", "10.88.1.3", "10.88.1.1"
			my6, their6         = "fd00:1::2", "fd00:1::3"
			myLink, theirLink   = "fe80::ff:fe00:2", "fe80::ff:fe00:3"
			icmp                = 58
		)
		hop := func(next byte, payload []byte) []byte { // a hop-by-hop header before something
			return append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, payload...)
		}
		tagged := func(f []byte) []byte { // with the tag of VLAN 5
			return append(append(append([]byte{}, f[:12]...), 0x81, 0, 0, 5), f[12:]...)
		}
		for i, test := range []struct {
			name   string
			honest bool
			frame  func(mark []byte) []byte
		}{
			{"IPv4", true, func(m []byte) []byte {
				return frame(they, me, 0x800, ip4Packet(my4, their4, 17, udpDatagram(5, 9, m)))
			}},
			{"IPv4 with another's address", false, func(m []byte) []byte {
				return frame(they, me, 0x800, ip4Packet("10.88.1.9", their4, 17, udpDatagram(5, 9, m)))
			}},
			{"IPv4 with the gateway's address", false, func(m []byte) []byte {
				return frame(they, me, 0x800, ip4Packet(gw4, their4, 17, udpDatagram(5, 9, m)))
			}},
			{"IPv4 with the victim's own address", false, func(m []byte) []byte {
				return frame(they, me, 0x800, ip4Packet(their4, their4, 17, udpDatagram(5, 9, m)))
			}},
			{"IPv4 with another's hardware address", false, func(m []byte) []byte {
				return frame(they, "02:00:00:00:00:09", 0x800, ip4Packet(my4, their4, 17, udpDatagram(5, 9, m)))
			}},
			{"IPv4 of no address", false, func(m []byte) []byte {
				return frame(all, me, 0x800, ip4Packet("0.0.0.0", "255.255.255.255", 17, udpDatagram(68, 67, m)))
			}},
			{"an answer of a DHCP server", false, func(m []byte) []byte {
				return frame(all, me, 0x800, ip4Packet(my4, "255.255.255.255", 17, udpDatagram(67, 68, m)))
			}},
			{"an answer of a DHCPv6 server", false, func(m []byte) []byte {
				return frame(they, me, 0x86dd, ip6Packet(myLink, theirLink, 17, udpDatagram(547, 546, m)))
			}},
			{"IPv4 in a VLAN", false, func(m []byte) []byte {
				return tagged(frame(they, me, 0x800, ip4Packet(my4, their4, 17, udpDatagram(5, 9, m))))
			}},
			{"IPv4 in two VLANs", false, func(m []byte) []byte {
				return tagged(tagged(frame(they, me, 0x800, ip4Packet(my4, their4, 17, udpDatagram(5, 9, m)))))
			}},
			{"IPv6 in a VLAN", false, func(m []byte) []byte {
				return tagged(frame(all6, me, 0x86dd, ip6Packet(myLink, "ff02::1", icmp, icmp6Message(134, "", m))))
			}},
			{"another protocol", false, func(m []byte) []byte { return frame(they, me, 0x88b5, m) }},
			{"spanning tree", false, func(m []byte) []byte { return frame("01:80:c2:00:00:00", me, 38, m) }},
			{"PPPoE", false, func(m []byte) []byte { return frame(they, me, 0x8864, m) }},
			{"ARP, a question", true, func(m []byte) []byte { return frame(all, me, 0x806, arpMessage(1, me, my4, their4, m)) }},
			{"ARP, an answer", true, func(m []byte) []byte { return frame(they, me, 0x806, arpMessage(2, me, my4, their4, m)) }},
			{"ARP, a probe", true, func(m []byte) []byte { return frame(all, me, 0x806, arpMessage(1, me, "0.0.0.0", their4, m)) }},
			{"ARP, an answer of no address", false, func(m []byte) []byte { return frame(all, me, 0x806, arpMessage(2, me, "0.0.0.0", their4, m)) }},
			{"ARP, another's address", false, func(m []byte) []byte { return frame(they, me, 0x806, arpMessage(2, me, gw4, their4, m)) }},
			{"ARP, another's hardware address", false, func(m []byte) []byte { return frame(they, me, 0x806, arpMessage(2, they, my4, their4, m)) }},
			{"ARP, from another's hardware address", false, func(m []byte) []byte {
				return frame(they, "02:00:00:00:00:09", 0x806, arpMessage(2, me, my4, their4, m))
			}},
			{"ARP, of another kind of address", false, func(m []byte) []byte {
				a := arpMessage(2, me, my4, their4, m)
				a[5] = 16
				return frame(they, me, 0x806, a)
			}},
			{"IPv6", true, func(m []byte) []byte {
				return frame(they, me, 0x86dd, ip6Packet(my6, their6, 17, udpDatagram(5, 9, m)))
			}},
			{"IPv6, link-local", true, func(m []byte) []byte {
				return frame(they, me, 0x86dd, ip6Packet(myLink, theirLink, 17, udpDatagram(5, 9, m)))
			}},
			{"IPv6 with another's address", false, func(m []byte) []byte {
				return frame(they, me, 0x86dd, ip6Packet("fd00:1::9", their6, 17, udpDatagram(5, 9, m)))
			}},
			{"IPv6 of no address", false, func(m []byte) []byte {
				return frame(they, me, 0x86dd, ip6Packet("::", their6, 17, udpDatagram(5, 9, m)))
			}},
			{"IPv6 with headers that lead nowhere", false, func(m []byte) []byte {
				return frame(they, me, 0x86dd, ip6Packet(my6, their6, 0, append([]byte{60, 200, 1, 4, 0, 0, 0, 0}, m...)))
			}},
			{"an echo request", true, func(m []byte) []byte {
				return frame(they, me, 0x86dd, ip6Packet(my6, their6, icmp, icmp6Message(128, "", m)))
			}},
			{"an echo request behind a header", true, func(m []byte) []byte {
				return frame(they, me, 0x86dd, ip6Packet(my6, their6, 0, hop(icmp, icmp6Message(128, "", m))))
			}},
			{"a router advertisement", false, func(m []byte) []byte {
				return frame(all6, me, 0x86dd, ip6Packet(myLink, "ff02::1", icmp, icmp6Message(134, "", m)))
			}},
			{"a router advertisement behind a header", false, func(m []byte) []byte {
				return frame(all6, me, 0x86dd, ip6Packet(myLink, "ff02::1", 0, hop(icmp, icmp6Message(134, "", m))))
			}},
			{"a router advertisement in a first fragment", false, func(m []byte) []byte {
				return frame(all6, me, 0x86dd, ip6Packet(myLink, "ff02::1", 44, append([]byte{icmp, 0, 0, 1, 0, 0, 0, 7}, icmp6Message(134, "", m)...)))
			}},
			{"a redirect", false, func(m []byte) []byte {
				return frame(they, me, 0x86dd, ip6Packet(myLink, theirLink, icmp, icmp6Message(137, "fd00:1::1", m)))
			}},
			{"a neighbour advertisement", true, func(m []byte) []byte {
				return frame(they, me, 0x86dd, ip6Packet(my6, their6, icmp, icmp6Message(136, my6, m)))
			}},
			{"a neighbour advertisement of the gateway's address", false, func(m []byte) []byte {
				return frame(they, me, 0x86dd, ip6Packet(my6, their6, icmp, icmp6Message(136, "fd00:1::1", m)))
			}},
			{"a neighbour advertisement of another's address, behind a header", false, func(m []byte) []byte {
				return frame(they, me, 0x86dd, ip6Packet(my6, their6, 0, hop(icmp, icmp6Message(136, "fd00:1::1", m))))
			}},
			{"a neighbour solicitation", true, func(m []byte) []byte {
				return frame(they, me, 0x86dd, ip6Packet(my6, their6, icmp, icmp6Message(135, their6, m)))
			}},
			{"a neighbour solicitation of no address", true, func(m []byte) []byte {
				return frame(all6, me, 0x86dd, ip6Packet("::", "ff02::1", icmp, icmp6Message(135, my6, m)))
			}},
			{"a neighbour solicitation of no address with another's hardware address", false, func(m []byte) []byte {
				return frame(all6, "02:00:00:00:00:09", 0x86dd, ip6Packet("::", "ff02::1", icmp, icmp6Message(135, my6, m)))
			}},
			{"a neighbour solicitation with another's address", false, func(m []byte) []byte {
				return frame(they, me, 0x86dd, ip6Packet("fd00:1::1", their6, icmp, icmp6Message(135, their6, m)))
			}},
			{"an echo request in a later fragment", true, func(m []byte) []byte {
				return frame(they, me, 0x86dd, ip6Packet(my6, their6, 44, append([]byte{icmp, 0, 0, 0x40, 0, 0, 0, 8}, m...)))
			}},
		} {
			mark := fmt.Appendf(nil, "frame %02d of the test, that nobody else has;;", i)[:40]
			wait := 2 * time.Second
			from.send(t, test.frame(mark))
			if !test.honest { // frames keep their order: when this one has arrived, the other has not
				mark2 := fmt.Appendf(nil, "after %02d of the test, that nobody else has;;", i)[:40]
				from.send(t, frame(they, me, 0x800, ip4Packet(my4, their4, 17, udpDatagram(5, 9, mark2))))
				if !to.seesFirst(mark2, mark, wait) {
					t.Errorf("%s passes, or what is sent after it does not", test.name)
				}
			} else if !to.sees(mark, wait) {
				t.Errorf("%s does not pass", test.name)
			}
		}

		// Ports are in hairpin mode: a broadcast does not come back all the same.
		echo := []byte("a broadcast, that its sender does not want to see")
		from.send(t, frame(all, me, 0x800, ip4Packet(my4, "10.88.1.255", 17, udpDatagram(5, 9, echo))))
		from.send(t, frame(they, me, 0x800, ip4Packet(my4, their4, 17, udpDatagram(5, 9, []byte("after the broadcast, to the victim")))))
		if !to.sees(echo, 2*time.Second) || !to.sees([]byte("after the broadcast"), 2*time.Second) {
			t.Error("a broadcast does not arrive")
		}
		if from.sees(echo, 20*time.Millisecond) {
			t.Error("a broadcast comes back to its sender")
		}

		// What the bridge must not learn: the victim's hardware address at the sender's port.
		for last := range 16 {
			from.send(t, frame(fmt.Sprintf("01:80:c2:00:00:%02x", last), they, 0x88cc, make([]byte, 50)))
		}
		from.send(t, frame(all, they, 0x88b5, make([]byte, 50)))
		mark := []byte("after the frames that could teach the bridge")
		from.send(t, frame(they, me, 0x800, ip4Packet(my4, their4, 17, udpDatagram(5, 9, mark))))
		if !to.sees(mark, 2*time.Second) {
			t.Error("the bridge has learned from a frame that it should not have seen")
		}
	})
}

// seesFirst reports whether a mark arrives and another has not before.
func (w *wire) seesFirst(mark, not []byte, within time.Duration) bool {
	b := make([]byte, 2048)
	for end := time.Now().Add(within); time.Now().Before(end); {
		n, _, err := unix.Recvfrom(w.fd, b, 0)
		switch {
		case err != nil:
		case bytes.Contains(b[:n], not):
			return false
		case bytes.Contains(b[:n], mark):
			return true
		}
	}
	return false
}

func TestSpoofcheckOff(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := dual(t, 1)
		d := up(t, n)
		c, victim := container(t, d, n, endpoint(n, 2)), container(t, d, n, endpoint(n, 3))
		n.Options = map[string]string{"spoofcheck": "off"}
		check(t, d.Up(background, n))
		from, to := newWire(t, c, "eth0"), newWire(t, victim, "eth0")
		mark := []byte("from an address of nobody's at all")
		from.send(t, frame("02:00:00:00:00:03", "02:00:00:00:00:09", 0x800, ip4Packet("10.88.1.9", "10.88.1.3", 17, udpDatagram(5, 9, mark))))
		if !to.sees(mark, 2*time.Second) {
			t.Error("without the check a frame does not pass")
		}
		n.Options["spoofcheck"] = "on"
		check(t, d.Up(background, n))
		mark = []byte("from an address of nobody's, once more")
		from.send(t, frame("02:00:00:00:00:03", "02:00:00:00:00:09", 0x800, ip4Packet("10.88.1.9", "10.88.1.3", 17, udpDatagram(5, 9, mark))))
		if to.sees(mark, 50*time.Millisecond) {
			t.Error("when the check is on again a container that was connected before is not checked")
		}
		n.Options["spoofcheck"] = "maybe"
		if err := d.Up(background, n); err == nil {
			t.Error("spoofcheck: maybe is no error")
		}
	})
}
