package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

const (
	typeA, typeAAAA, typePTR, typeTXT, typeMX, typeALL, typeHTTPS = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypePTR, dnsmessage.TypeTXT, dnsmessage.TypeMX, dnsmessage.TypeALL, dnsmessage.Type(65)
)

// TestAnswers asks a server whose upstream answers everything with "outside", by UDP and by TCP.
func TestAnswers(t *testing.T) {
	long := strings.Repeat(strings.Repeat("x", 61)+".", 4)
	tests := []struct {
		query message
		want  string // with upstreams
		alone string // without, if it differs
	}{
		{message{name: "db", typ: typeA}, "NOERROR aa 172.20.0.2", ""},
		{message{name: "DB", typ: typeA}, "NOERROR aa 172.20.0.2", ""},
		{message{name: "db", typ: typeAAAA}, "NOERROR aa fd00::2", ""},
		{message{name: "db", typ: typeALL}, "NOERROR aa 172.20.0.2 fd00::2", ""},
		{message{name: "Db.Boats", typ: typeA}, "NOERROR aa 172.20.0.2", ""},
		{message{name: "db.boats", typ: typeAAAA}, "NOERROR aa", ""},
		{message{name: "v6_only", typ: typeA}, "NOERROR aa", ""},
		{message{name: "v6_only", typ: typeAAAA}, "NOERROR aa fd00::9", ""},
		{message{name: "new", typ: typeA}, "NOERROR aa", ""},
		{message{name: "db", typ: typeMX}, "NOERROR aa", ""},
		{message{name: "db", typ: typeHTTPS}, "NOERROR aa", ""},
		{message{name: "db", typ: typePTR}, "NOERROR aa", ""},
		{message{name: "localhost", typ: typeA}, "NOERROR aa 127.0.0.1", ""},
		{message{name: "a.localhost", typ: typeAAAA}, "NOERROR aa ::1", ""},

		{message{name: "2.0.20.172.in-addr.arpa", typ: typePTR}, "NOERROR aa db.", ""},
		{message{name: "3.0.20.172.In-Addr.ARPA", typ: typePTR}, "NOERROR aa web.", ""},
		{message{name: "3.0.20.172.in-addr.arpa", typ: typeA}, "NOERROR aa", ""},
		{message{name: "9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa", typ: typePTR}, "NOERROR aa v6_only.", ""},
		{message{name: "9.9.20.172.in-addr.arpa", typ: typePTR}, "NXDOMAIN aa", ""},
		{message{name: "9.9.20.172.in-addr.arpa", typ: typeA}, "NXDOMAIN aa", ""},
		{message{name: "8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.D.F.ip6.arpa", typ: typePTR}, "NXDOMAIN aa", ""},
		{message{name: "1.0.0.127.in-addr.arpa", typ: typePTR}, "NOERROR aa localhost.", ""},
		{message{name: "1.0.0.10.in-addr.arpa", typ: typePTR}, "NOERROR outside", "NXDOMAIN aa"},
		{message{name: "0.20.172.in-addr.arpa", typ: typePTR}, "NOERROR outside", "NXDOMAIN aa"},
		{message{name: "02.0.20.172.in-addr.arpa", typ: typePTR}, "NOERROR outside", "NXDOMAIN aa"},
		{message{name: "1.2.0.20.172.in-addr.arpa", typ: typePTR}, "NOERROR outside", "NXDOMAIN aa"},
		{message{name: "256.0.20.172.in-addr.arpa", typ: typePTR}, "NOERROR outside", "NXDOMAIN aa"},
		{message{name: "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.g.ip6.arpa", typ: typePTR}, "NOERROR outside", "NXDOMAIN aa"},

		{message{name: "example.org", typ: typeTXT}, "NOERROR outside", "NXDOMAIN aa"},
		{message{name: "db.example.org", typ: typeA}, "NOERROR outside", "NXDOMAIN aa"},
		{message{name: "unknown", typ: typeA}, "NOERROR outside", "NXDOMAIN aa"},
		{message{name: ".", typ: dnsmessage.TypeNS}, "NOERROR outside", "NXDOMAIN aa"},
		{message{name: "d\x00b", typ: typeA}, "NOERROR outside", "NXDOMAIN aa"},
		{message{name: "a/b", typ: typeA}, "NOERROR outside", "NXDOMAIN aa"},
		{message{name: long, typ: typeA}, "NOERROR outside", "NXDOMAIN aa"},

		{message{name: "db", typ: typeA, size: 1232}, "NOERROR aa 172.20.0.2 edns", ""},
		{message{name: "db", typ: typeA, size: 1232, do: true}, "NOERROR aa 172.20.0.2 edns do", ""},
		{message{name: "db", typ: typeA, size: 1}, "NOERROR aa 172.20.0.2 edns", ""},
		{message{name: "db", typ: typeA, size: 1232, version: 1}, "BADVERS edns", ""},

		{message{name: "db", typ: typeA, class: dnsmessage.ClassCHAOS}, "REFUSED", ""},
		{message{name: "version.bind", typ: typeTXT, class: dnsmessage.ClassCHAOS}, "REFUSED", ""},
		{message{name: "db", typ: typeA, class: dnsmessage.ClassANY}, "REFUSED", ""},
		{message{name: "example.org", typ: dnsmessage.TypeAXFR}, "REFUSED", ""},
		{message{name: "example.org", typ: typeIXFR}, "REFUSED", ""},
		{message{name: "db", typ: typeA, opcode: 1}, "NOTIMP", ""},
		{message{name: "db", typ: typeA, opcode: 5}, "NOTIMP", ""},
	}
	up, _ := fake(t, func(msg []byte, _ string) []byte { return respond(msg, 0, "outside") })
	_, forwarding := serve(t, Config{Zone: boats, Private: private, Upstreams: []netip.AddrPort{up}})
	_, alone := serve(t, Config{Zone: boats, Private: private})
	for i, test := range tests {
		if test.alone == "" {
			test.alone = test.want
		}
		test.query.id = uint16(i * 1001)
		msg := test.query.pack(t)
		for _, network := range []string{"udp", "tcp"} {
			m, got := ask(t, forwarding, network, msg)
			if got != test.want {
				t.Errorf("%s %+v: %s, want %s", network, test.query, got, test.want)
			}
			if _, got := ask(t, alone, network, msg); got != test.alone {
				t.Errorf("%s %+v without upstreams: %s, want %s", network, test.query, got, test.alone)
			}
			if test.query.opcode == 0 && (len(m.Questions) != 1 || m.Questions[0].Name.String() != strings.TrimSuffix(test.query.name, ".")+".") || !m.RecursionDesired {
				t.Errorf("%+v: the answer has %+v %+v", test.query, m.Header, m.Questions)
			}
			for _, a := range m.Answers {
				if a.Header.TTL != 0 && !strings.Contains(got, "outside") {
					t.Errorf("%+v: an answer that lives %d s", test.query, a.Header.TTL)
				}
			}
		}
	}
}

// TestMalformed sends what no client should.
func TestMalformed(t *testing.T) {
	query := message{name: "db", typ: typeA, id: 7}.pack(t)
	edit := func(f func(b []byte) []byte) []byte { return f(slices.Clone(query)) }
	edns := message{name: "db", typ: typeA, size: 1232}.pack(t)
	for name, test := range map[string]struct {
		msg  []byte
		want string // empty: no answer
	}{
		"nothing":            {nil, ""},
		"short":              {query[:11], ""},
		"a response":         {edit(func(b []byte) []byte { b[2] |= 0x80; return b }), ""},
		"header only":        {edit(func(b []byte) []byte { b[5] = 0; return b[:12] }), "FORMERR"},
		"question cut":       {query[:len(query)-1], "FORMERR"},
		"two questions":      {edit(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), "FORMERR"},
		"with an answer":     {edit(func(b []byte) []byte { b[7] = 1; return b }), "FORMERR"},
		"with an authority":  {edit(func(b []byte) []byte { b[9] = 1; return b }), "FORMERR"},
		"additional missing": {edit(func(b []byte) []byte { b[11] = 1; return b }), "FORMERR"},
		"many additionals":   {edit(func(b []byte) []byte { b[10], b[11] = 255, 255; return b }), "FORMERR"},
		"a dot in a label":   {edit(func(b []byte) []byte { b[13] = '.'; return b }), "FORMERR"},
		"pointer to itself":  {append(slices.Clone(query[:12]), 0xc0, 12, 0, 1, 0, 1), "FORMERR"},
		"pointer beyond":     {append(slices.Clone(query[:12]), 0xff, 0xff, 0, 1, 0, 1), "FORMERR"},
		"reserved label":     {append(slices.Clone(query[:12]), 0x80, 0, 0, 1, 0, 1), "FORMERR"},
		"two OPTs":           {append(append(slices.Clone(edns[:11]), 2), append(slices.Clone(edns[12:]), edns[len(query):]...)...), "FORMERR edns"},
		"OPT with a name":    {append(slices.Clone(edns[:len(query)]), append([]byte{1, 'x'}, edns[len(query):]...)...), "FORMERR"},
		"trailing bytes":     {append(slices.Clone(query), "garbage"...), "NOERROR aa 172.20.0.2"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(Config{Zone: boats})
			defer s.Close()
			for _, tcp := range []bool{false, true} {
				answer, _ := s.answer(test.msg, tcp)
				if test.want == "" {
					if answer != nil {
						t.Errorf("got %x", answer)
					}
					continue
				}
				if m, got := read(t, answer); got != test.want || m.ID != id(test.msg) {
					t.Errorf("got %s with id %d", got, m.ID)
				}
			}
		})
	}
}

func TestRoundRobin(t *testing.T) {
	_, addr := serve(t, Config{Zone: boats})
	seen := map[string]int{}
	for range 9 {
		_, got := ask(t, addr, "udp", message{name: "Web", typ: typeA}.pack(t))
		seen[got]++
		for range 2 { // as clients do
			ask(t, addr, "udp", message{name: "web", typ: typeAAAA}.pack(t))
		}
	}
	want := map[string]int{"NOERROR aa 172.20.0.3 172.20.0.4 172.20.0.5": 3, "NOERROR aa 172.20.0.4 172.20.0.5 172.20.0.3": 3, "NOERROR aa 172.20.0.5 172.20.0.3 172.20.0.4": 3}
	if fmt.Sprint(seen) != fmt.Sprint(want) {
		t.Errorf("answers %v", seen)
	}
}

// TestTruncation: what has no room in a packet comes by TCP, where all of it has.
func TestTruncation(t *testing.T) {
	many := []string{}
	for i := range 1000 {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, byte(i / 256), byte(i % 256)}).String(), fmt.Sprintf("fd00::%x", i+1))
	}
	_, addr := serve(t, Config{Zone: testZone{"many": many}})
	for _, size := range []int{0, 512, 1232, 4096, 65535} {
		query := message{name: "many", typ: typeA, size: size}.pack(t)
		conn, err := net.Dial("udp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.Write(query)
		buf := make([]byte, 65535)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		m, _ := read(t, buf[:n])
		limit := min(max(size, 512), 4096)
		if n > limit || n < limit-28 || !m.Truncated || len(m.Answers) == 0 {
			t.Errorf("size %d: %d bytes, %d answers, cut %t", size, n, len(m.Answers), m.Truncated)
		}
		m, _ = ask(t, addr, "tcp", query)
		if m.Truncated || len(m.Answers) != 1000 {
			t.Errorf("size %d by TCP: %d answers, cut %t", size, len(m.Answers), m.Truncated)
		}
	}
}

// TestGoResolver has the standard library's client ask.
func TestGoResolver(t *testing.T) {
	up, _ := fake(t, func(msg []byte, _ string) []byte { return respond(msg, dnsmessage.RCodeNameError) })
	_, addr := serve(t, Config{Zone: boats, Private: private, Upstreams: []netip.AddrPort{up}})
	for _, network := range []string{"udp", "tcp"} {
		r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, addr.String())
		}}
		addrs, err := r.LookupNetIP(t.Context(), "ip", "db.")
		slices.SortFunc(addrs, netip.Addr.Compare)
		if err != nil || fmt.Sprint(addrs) != "[172.20.0.2 fd00::2]" {
			t.Errorf("%s: %v, %v", network, addrs, err)
		}
		if addrs, err := r.LookupNetIP(t.Context(), "ip4", "web"); err != nil || len(addrs) != 3 {
			t.Errorf("%s: %v, %v", network, addrs, err)
		}
		if names, err := r.LookupAddr(t.Context(), "fd00::9"); err != nil || fmt.Sprint(names) != "[v6_only.]" {
			t.Errorf("%s: %v, %v", network, names, err)
		}
		var dnsErr *net.DNSError
		if _, err := r.LookupNetIP(t.Context(), "ip", "nobody."); !errors.As(err, &dnsErr) || !dnsErr.IsNotFound {
			t.Errorf("%s: %v", network, err)
		}
		if _, err := r.LookupNetIP(t.Context(), "ip6", "web."); !errors.As(err, &dnsErr) || !dnsErr.IsNotFound {
			t.Errorf("%s: %v", network, err)
		}
	}
}

// TestPipelining sends queries on one connection, where those that wait for upstreams do not hold up the others.
func TestPipelining(t *testing.T) {
	release := make(chan struct{})
	up, _ := fake(t, func(msg []byte, _ string) []byte {
		<-release
		return respond(msg, 0, "late")
	})
	_, addr := serve(t, Config{Zone: boats, Upstreams: []netip.AddrPort{up}, Limits: Limits{Timeout: 10 * time.Second}})
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var all []byte
	for i, name := range []string{"example.org", "db", "web"} {
		msg := message{name: name, typ: typeA, id: uint16(i)}.pack(t)
		all = append(binary.BigEndian.AppendUint16(all, uint16(len(msg))), msg...)
	}
	// In pieces that are no messages.
	for len(all) > 0 {
		n := min(5, len(all))
		if _, err := conn.Write(all[:n]); err != nil {
			t.Fatal(err)
		}
		all = all[n:]
	}
	conn.(*net.TCPConn).CloseWrite()
	for _, want := range []uint16{1, 2, 0} {
		msg, err := readFramed(conn, maxTCP)
		if err != nil || id(msg) != want {
			t.Fatalf("%x, %v, want the answer to %d", msg, err, want)
		}
		if want == 2 {
			close(release)
		}
	}
	if _, err := readFramed(conn, maxTCP); err != io.EOF {
		t.Errorf("after all answers: %v", err)
	}
}

// TestConnections: those too many, too slow or not speaking DNS are closed.
func TestConnections(t *testing.T) {
	_, addr := serve(t, Config{Zone: boats, Limits: Limits{Connections: 3, Idle: 300 * time.Millisecond}})
	closed := func(conn net.Conn) bool {
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err := conn.Read(make([]byte, 1))
		return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
	}
	var conns []net.Conn
	dial := func(send string) net.Conn {
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		io.WriteString(conn, send)
		return conn
	}
	for _, send := range []string{"", "\x00", "\x00\x20half"} {
		conns = append(conns, dial(send))
	}
	if !closed(dial("")) {
		t.Error("a fourth connection stays")
	}
	for i, conn := range conns {
		if !closed(conn) {
			t.Errorf("connection %d stays", i)
		}
	}
	for _, send := range []string{"\xff\xff", "\x00\x00", "\x00\x0cGET / HTTP/1", string([]byte{0, 12, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0})} {
		// HTTP's bytes are an opcode that nobody has: it gets an answer and then time.
		conn := dial(send)
		for !closed(conn) {
		}
	}
}

func TestForwarding(t *testing.T) {
	type answers = func(msg []byte, network string) []byte
	text := func(s string) answers { return func(msg []byte, _ string) []byte { return respond(msg, 0, s) } }
	code := func(c dnsmessage.RCode) answers { return func(msg []byte, _ string) []byte { return respond(msg, c) } }
	silent := func([]byte, string) []byte { return nil }
	changed := func(f func(b []byte)) answers {
		return func(msg []byte, network string) []byte {
			b := respond(msg, 0, "forged")
			f(b)
			return b
		}
	}
	other := func(msg []byte, _ string) []byte {
		b := respond(message{name: "other.org", typ: typeTXT, id: id(msg)}.pack(t), 0, "forged")
		return b
	}
	cut := func(msg []byte, network string) []byte {
		if network == "tcp" {
			return respond(msg, 0, "long")
		}
		b := respond(msg, 0)
		b[2] |= 2
		return b
	}
	big := func(msg []byte, network string) []byte {
		var texts []string
		for range 20 {
			texts = append(texts, strings.Repeat("x", 100))
		}
		return respond(msg, 0, texts...)
	}
	closedPort := func() netip.AddrPort {
		udp, tcp := listen(t)
		defer udp.Close()
		defer tcp.Close()
		return tcp.Addr().(*net.TCPAddr).AddrPort()
	}()
	for name, test := range map[string]struct {
		upstreams []answers // nil: nobody listens
		udp, tcp  string
	}{
		"first":               {[]answers{text("one"), text("two")}, "NOERROR one", ""},
		"first is silent":     {[]answers{silent, text("two")}, "NOERROR two", ""},
		"first is down":       {[]answers{nil, text("two")}, "NOERROR two", ""},
		"first fails":         {[]answers{code(2), text("two")}, "NOERROR two", ""},
		"first refuses":       {[]answers{code(5), code(4), text("three")}, "NOERROR three", ""},
		"none does better":    {[]answers{code(5), code(2), silent}, "REFUSED", ""},
		"no such name":        {[]answers{code(3), text("two")}, "NXDOMAIN", ""},
		"nobody answers":      {[]answers{silent, silent, silent}, "SERVFAIL", ""},
		"nobody is there":     {[]answers{nil, nil}, "SERVFAIL", ""},
		"another id":          {[]answers{changed(func(b []byte) { b[0]++ }), text("two")}, "NOERROR two", ""},
		"another question":    {[]answers{other, text("two")}, "NOERROR two", ""},
		"another type":        {[]answers{changed(func(b []byte) { b[12+13+1]++ }), text("two")}, "NOERROR two", ""},
		"a query":             {[]answers{changed(func(b []byte) { b[2] &^= 0x80 }), text("two")}, "NOERROR two", ""},
		"garbage":             {[]answers{func([]byte, string) []byte { return []byte("garbage") }, text("two")}, "NOERROR two", ""},
		"cut short":           {[]answers{cut, text("two")}, "NOERROR tc", "NOERROR long"},
		"longer than allowed": {[]answers{big}, "NOERROR tc", "NOERROR" + strings.Repeat(" "+strings.Repeat("x", 100), 20)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for network, want := range map[string]string{"udp": test.udp, "tcp": test.tcp} {
				var upstreams []netip.AddrPort
				for _, f := range test.upstreams {
					addr := closedPort
					if f != nil {
						addr, _ = fake(t, f)
					}
					upstreams = append(upstreams, addr)
				}
				_, addr := serve(t, Config{Zone: boats, Upstreams: upstreams, Limits: Limits{Timeout: 400 * time.Millisecond}})
				if want == "" {
					want = test.udp
				}
				if _, got := ask(t, addr, network, message{name: "Example.org", typ: typeTXT, id: 99}.pack(t)); got != want {
					t.Errorf("%s: %s, want %s", network, got, want)
				}
			}
		})
	}
}

// TestUpstreamQuery looks at what leaves: the question, the flags and the DO bit, with ids and ports that vary.
func TestUpstreamQuery(t *testing.T) {
	got := make(chan []byte, 1)
	up, _ := fake(t, func(msg []byte, _ string) []byte {
		got <- msg
		return respond(msg, 0, "x")
	})
	_, addr := serve(t, Config{Upstreams: []netip.AddrPort{up}})
	ids := map[uint16]bool{}
	for i, q := range []message{{name: "ExAmple.org", typ: typeTXT}, {name: "ExAmple.org", typ: typeTXT, size: 65535, do: true}, {name: "ExAmple.org", typ: typeTXT, size: 600}} {
		ask(t, addr, "udp", q.pack(t))
		var m dnsmessage.Message
		if err := m.Unpack(<-got); err != nil {
			t.Fatal(err)
		}
		ids[m.ID] = true
		if m.Questions[0].Name.String() != "ExAmple.org." || !m.RecursionDesired || m.Response {
			t.Errorf("passed on %+v", m)
		}
		if want := []int{0, 1232, 600}[i]; want == 0 && len(m.Additionals) != 0 || want != 0 && (len(m.Additionals) != 1 || int(m.Additionals[0].Header.Class) != want || m.Additionals[0].Header.DNSSECAllowed() != q.do || len(m.Additionals[0].Body.(*dnsmessage.OPTResource).Options) != 0) {
			t.Errorf("%+v was passed on with %+v", q, m.Additionals)
		}
	}
	if ids[0] && len(ids) == 1 {
		t.Error("the client's id was passed on")
	}
}

// TestAvoided: an upstream that did not answer is not waited for by each query.
func TestAvoided(t *testing.T) {
	first, asked := fake(t, func([]byte, string) []byte { return nil })
	second, _ := fake(t, func(msg []byte, _ string) []byte { return respond(msg, 0, "x") })
	_, addr := serve(t, Config{Upstreams: []netip.AddrPort{first, second}, Limits: Limits{Timeout: 200 * time.Millisecond}})
	for range 10 {
		if _, got := ask(t, addr, "udp", message{name: "example.org", typ: typeTXT}.pack(t)); got != "NOERROR x" {
			t.Error(got)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("a silent upstream was asked %d times", n)
	}
}

// TestFlood: clients that ask all they can for what nobody answers keep their server within its limits, and the clients of
// another server get their answers.
func TestFlood(t *testing.T) {
	silent, _ := fake(t, func([]byte, string) []byte { return nil })
	limits := Limits{InFlight: 20, Connections: 8, Rate: 5000, Timeout: 500 * time.Millisecond}
	s, addr := serve(t, Config{Zone: boats, Upstreams: []netip.AddrPort{silent}, Limits: limits})
	_, other := serve(t, Config{Zone: boats})
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() { // never reads
			conn, err := net.Dial("udp", addr.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			for n := 0; ctx.Err() == nil; n++ {
				conn.Write(message{name: fmt.Sprintf("a%d.b%d.example.org", i, n), typ: typeTXT, id: uint16(n)}.pack(t))
				if n%100 == 0 {
					time.Sleep(time.Millisecond) // the machine is not ours alone
				}
			}
		})
		clients.Go(func() {
			for ctx.Err() == nil {
				conn, err := net.Dial("tcp", addr.String())
				if err != nil {
					continue
				}
				msg := message{name: fmt.Sprintf("t%d.example.org", i), typ: typeTXT}.pack(t)
				for range 50 {
					if writeFramed(conn, msg) != nil {
						break
					}
				}
				time.Sleep(10 * time.Millisecond)
				conn.Close()
			}
		})
	}
	// The clients are eight goroutines. Of a query there may be two at the end of its time, and one goroutine may be about to
	// end when the next takes its place.
	most := goroutines + 8 + 2*limits.InFlight + 2*limits.Connections + 10
	answered := 0
	for ctx.Err() == nil {
		time.Sleep(50 * time.Millisecond)
		if n := runtime.NumGoroutine(); n > most {
			t.Fatalf("%d goroutines, at most %d were expected", n, most)
		}
		if _, got := ask(t, other, "udp", message{name: "db", typ: typeA}.pack(t)); got != "NOERROR aa 172.20.0.2" {
			t.Errorf("another container: %s", got)
		}
		answered++
	}
	clients.Wait()
	var after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	t.Logf("%d queries of another server were answered during the flood", answered)
	if _, got := ask(t, addr, "tcp", message{name: "db", typ: typeA}.pack(t)); got != "NOERROR aa 172.20.0.2" {
		t.Errorf("after the flood: %s", got)
	}
	s.Close()
}

// TestInFlight: one query more than there is room for gets SERVFAIL at once, and names of the zone are answered.
func TestInFlight(t *testing.T) {
	silent, asked := fake(t, func([]byte, string) []byte { return nil })
	s, addr := serve(t, Config{Zone: boats, Upstreams: []netip.AddrPort{silent}, Limits: Limits{InFlight: 3, Timeout: time.Minute}})
	conn, err := net.Dial("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 3 {
		conn.Write(message{name: "example.org", typ: typeTXT, id: uint16(i)}.pack(t))
	}
	for deadline := time.Now().Add(10 * time.Second); asked.Load() < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the queries are not passed on")
		}
	}
	for _, network := range []string{"udp", "tcp"} {
		if _, got := ask(t, addr, network, message{name: "example.org", typ: typeTXT}.pack(t)); got != "SERVFAIL" {
			t.Errorf("%s: %s", network, got)
		}
		if _, got := ask(t, addr, network, message{name: "db", typ: typeA}.pack(t)); got != "NOERROR aa 172.20.0.2" {
			t.Errorf("%s: %s", network, got)
		}
	}
	// Close does not wait for the minute.
	begin := time.Now()
	s.Close()
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("Close took %v", took)
	}
}

// TestRate: reading is slowed down, and no query is lost that the kernel keeps.
func TestRate(t *testing.T) {
	p := pacer{rate: 1000}
	begin := time.Now()
	for range 300 {
		if !p.wait(t.Context()) {
			t.Fatal("given up")
		}
	}
	if took := time.Since(begin); took < 190*time.Millisecond {
		t.Errorf("300 events in %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	slow := pacer{rate: 0.001}
	slow.wait(t.Context())
	if slow.wait(ctx) {
		t.Error("waited beyond the end")
	}
}

func TestClose(t *testing.T) {
	up, _ := fake(t, func([]byte, string) []byte { return nil })
	before := goleak.IgnoreCurrent()
	for range 20 {
		udp, tcp := listen(t)
		s := Serve(udp, tcp, Config{Zone: boats, Upstreams: []netip.AddrPort{up}})
		addr := tcp.Addr().String()
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		writeFramed(conn, message{name: "example.org", typ: typeTXT}.pack(t))
		packet, err := net.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		packet.Write(message{name: "example.org", typ: typeTXT}.pack(t))
		var closers sync.WaitGroup
		for range 3 {
			closers.Go(func() { s.Close() })
		}
		closers.Wait()
		conn.Close()
		packet.Close()
		if again, err := net.Dial("tcp", addr); err == nil {
			again.Close()
			t.Error("it still listens")
		}
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
	Serve(nil, nil, Config{}).Close()
}

// BenchmarkLocal asks for a name of the zone, one query after the other, and from eight clients at once.
func BenchmarkLocal(b *testing.B) {
	_, addr := serve(b, Config{Zone: boats, Limits: Limits{Rate: -1}})
	msg := message{name: "db", typ: typeA}.pack(b)
	query := func(b *testing.B, conn net.Conn, buf []byte) {
		if _, err := conn.Write(msg); err != nil {
			b.Error(err)
		}
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Read(buf); err != nil {
			b.Error(err)
		}
	}
	dial := func(b *testing.B) net.Conn {
		conn, err := net.Dial("udp", addr.String())
		if err != nil {
			b.Fatal(err)
		}
		return conn
	}
	b.Run("one", func(b *testing.B) {
		conn, buf := dial(b), make([]byte, 512)
		defer conn.Close()
		for b.Loop() {
			query(b, conn, buf)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
	})
	b.Run("eight", func(b *testing.B) {
		b.SetParallelism(4)
		b.RunParallel(func(pb *testing.PB) {
			conn, buf := dial(b), make([]byte, 512)
			defer conn.Close()
			for pb.Next() {
				query(b, conn, buf)
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
	})
	b.Run("without sockets", func(b *testing.B) {
		s := newServer(Config{Zone: boats})
		defer s.Close()
		b.ReportAllocs()
		for b.Loop() {
			if answer, _ := s.answer(msg, false); answer == nil {
				b.Fatal("no answer")
			}
		}
	})
}
