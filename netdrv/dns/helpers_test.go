package dns

import (
	"encoding/binary"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testZone has addresses by name.
type testZone map[string][]string

func (z testZone) Addresses(name string) (v4, v6 []netip.Addr, found bool) {
	list, found := z[name]
	for _, text := range list {
		if a := netip.MustParseAddr(text); a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	return v4, v6, found
}

func (z testZone) Name(addr netip.Addr) (string, bool) {
	for _, name := range slices.Sorted(maps.Keys(z)) {
		if slices.Contains(z[name], addr.String()) {
			return name, true
		}
	}
	return "", false
}

var boats = testZone{
	"db":       {"172.20.0.2", "fd00::2"},
	"web":      {"172.20.0.3", "172.20.0.4", "172.20.0.5"},
	"db.boats": {"172.20.0.2"},
	"v6_only":  {"fd00::9"},
	"new":      {},
}

func private(a netip.Addr) bool {
	return netip.MustParsePrefix("172.20.0.0/16").Contains(a) || netip.MustParsePrefix("fd00::/64").Contains(a)
}

// serve starts a server on a UDP and a TCP socket of one address.
func serve(t testing.TB, config Config) (*Server, netip.AddrPort) {
	t.Helper()
	udp, tcp := listen(t)
	s := Serve(udp, tcp, config)
	t.Cleanup(func() { s.Close() })
	return s, tcp.Addr().(*net.TCPAddr).AddrPort()
}

func listen(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 { // the port may be in use by the other protocol
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		if err == nil {
			return udp, tcp
		}
		tcp.Close()
	}
	t.Fatal("no port is free for both protocols")
	return nil, nil
}

// fake starts an upstream that answers with what f returns for a message, or not if that is nil.
func fake(t testing.TB, f func(msg []byte, network string) []byte) (netip.AddrPort, *atomic.Int64) {
	t.Helper()
	udp, tcp := listen(t)
	asked := new(atomic.Int64)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65535)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			asked.Add(1)
			if answer := f(slices.Clone(buf[:n]), "udp"); answer != nil {
				udp.WriteTo(answer, from)
			}
		}
	}()
	doneTCP := make(chan struct{})
	go func() {
		defer close(doneTCP)
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			asked.Add(1)
			if msg, err := readFramed(conn, maxTCP); err == nil {
				if answer := f(slices.Clone(msg), "tcp"); answer != nil {
					writeFramed(conn, answer)
				}
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		udp.Close()
		tcp.Close()
		<-done
		<-doneTCP
	})
	return tcp.Addr().(*net.TCPAddr).AddrPort(), asked
}

// message makes a query as a client of that time would.
type message struct {
	name    string
	typ     dnsmessage.Type
	class   dnsmessage.Class // zero: IN
	opcode  dnsmessage.OpCode
	size    int // of EDNS, or zero: none
	version uint8
	do      bool
	id      uint16
}

func (m message) pack(t testing.TB) []byte {
	t.Helper()
	if m.class == 0 {
		m.class = dnsmessage.ClassINET
	}
	if !strings.HasSuffix(m.name, ".") {
		m.name += "."
	}
	msg := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: m.id, OpCode: m.opcode, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(m.name), Type: m.typ, Class: m.class}},
	}
	if m.size > 0 {
		var h dnsmessage.ResourceHeader
		h.SetEDNS0(m.size, 0, m.do)
		h.TTL |= uint32(m.version) << 16
		msg.Additionals = append(msg.Additionals, dnsmessage.Resource{Header: h, Body: &dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: 10, Data: []byte("a cookie")}}}})
	}
	b, err := msg.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// respond is a fake's answer: the query's header and question with these records.
func respond(msg []byte, code dnsmessage.RCode, texts ...string) []byte {
	var m dnsmessage.Message
	if m.Unpack(msg) != nil || m.Response {
		return nil
	}
	m.Response, m.RecursionAvailable, m.RCode, m.Additionals = true, true, code, nil
	for _, text := range texts {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Type: dnsmessage.TypeTXT, Class: dnsmessage.ClassINET, TTL: 60},
			Body:   &dnsmessage.TXTResource{TXT: []string{text}},
		})
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// ask sends a query by UDP or TCP and returns the answer, as text too.
func ask(t testing.TB, to netip.AddrPort, network string, msg []byte) (*dnsmessage.Message, string) {
	t.Helper()
	conn, err := net.Dial(network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 65535)
	var answer []byte
	if network == "tcp" {
		if err := writeFramed(conn, msg); err != nil {
			t.Fatal(err)
		}
		if answer, err = readFramed(conn, maxTCP); err != nil {
			t.Fatal(err)
		}
	} else {
		if _, err := conn.Write(msg); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		answer = buf[:n]
	}
	if !slices.Equal(answer[:2], msg[:2]) {
		t.Errorf("the id is %x, not %x", answer[:2], msg[:2])
	}
	return read(t, answer)
}

func read(t testing.TB, answer []byte) (*dnsmessage.Message, string) {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(answer); err != nil {
		t.Fatalf("%x: %v", answer, err)
	}
	if !m.Response {
		t.Error("an answer that is no response")
	}
	return &m, describe(&m)
}

// describe is an answer in one line: code, flags, records.
func describe(m *dnsmessage.Message) string {
	code := m.RCode
	words := []string{""}
	if m.Authoritative {
		words = append(words, "aa")
	}
	if m.Truncated {
		words = append(words, "tc")
	}
	for _, r := range m.Answers {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			words = append(words, netip.AddrFrom4(b.A).String())
		case *dnsmessage.AAAAResource:
			words = append(words, netip.AddrFrom16(b.AAAA).String())
		case *dnsmessage.PTRResource:
			words = append(words, b.PTR.String())
		case *dnsmessage.TXTResource:
			words = append(words, strings.Join(b.TXT, ""))
		default:
			words = append(words, r.Header.Type.String())
		}
	}
	for _, r := range m.Additionals {
		if r.Header.Type == dnsmessage.TypeOPT {
			code = r.Header.ExtendedRCode(m.RCode)
			words = append(words, "edns")
			if r.Header.DNSSECAllowed() {
				words = append(words, "do")
			}
		}
	}
	names := map[dnsmessage.RCode]string{0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED", 16: "BADVERS"}
	words[0] = names[code]
	return strings.Join(words, " ")
}

func id(msg []byte) uint16 { return binary.BigEndian.Uint16(msg) }
