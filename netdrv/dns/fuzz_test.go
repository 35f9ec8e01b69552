package dns

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// FuzzServer feeds foreign bytes to what reads queries, and to what reads answers of upstreams.
func FuzzServer(f *testing.F) {
	for i, q := range []message{{name: "db", typ: typeA}, {name: "WEB", typ: typeALL, size: 512, do: true}, {name: "2.0.20.172.in-addr.arpa", typ: typePTR}, {name: "example.org", typ: typeTXT, size: 4096}, {name: "x", typ: typeA, version: 1, size: 9}} {
		msg := q.pack(f)
		f.Add(msg, i%2 == 0)
		f.Add(respond(msg, 0, "text"), i%2 == 0)
	}
	alone := newServer(Config{Zone: boats, Private: private})
	f.Cleanup(func() { alone.Close() })
	forwarding := newServer(Config{Zone: boats, Private: private, Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}})
	f.Cleanup(func() { forwarding.Close() })
	f.Fuzz(func(t *testing.T, data []byte, tcp bool) {
		before := slices.Clone(data)
		answer, q := alone.answer(data, tcp)
		if q != nil {
			t.Fatal("a query without upstreams is to be passed on")
		}
		check := func(answer []byte) {
			if answer == nil {
				return
			}
			var m dnsmessage.Message
			if err := m.Unpack(answer); err != nil {
				t.Fatalf("%x is answered with %x: %v", data, answer, err)
			}
			if !m.Response || m.ID != id(data) || data[2]&0x80 != 0 {
				t.Fatalf("%x is answered with %+v", data, m)
			}
			if limit := maxUDP; !tcp && len(answer) > limit {
				t.Fatalf("%d bytes by UDP", len(answer))
			}
			if again, q := forwarding.answer(answer, tcp); again != nil || q != nil {
				t.Fatalf("the answer %x is answered", answer)
			}
		}
		check(answer)
		answer, q = forwarding.answer(data, tcp)
		check(answer)
		if q != nil {
			msg, err := q.upstreamQuery(4711)
			if err != nil {
				t.Fatalf("%x is not passed on: %v", data, err)
			}
			passed, code := parseQuery(msg, true)
			if passed == nil || code != dnsmessage.RCodeSuccess || !sameName(&passed.question.Name, &q.question.Name) || passed.do != q.do || passed.edns != q.edns {
				t.Fatalf("%x is passed on as %x", data, msg)
			}
			check(q.failure(rcodeServerFailure))
			// The same bytes as an upstream's answer, to the question that they have.
			data := slices.Clone(data)
			data[2] |= 0x80
			if _, ok := q.answeredBy(data, id(data)); ok {
				passed := q.passed(data)
				if len(passed) > q.limit() || id(passed) != id(before) {
					t.Fatalf("%x is passed on as %x", data, passed)
				}
			}
			if _, ok := q.answeredBy(data, id(data)+1); ok {
				t.Fatal("another id is accepted")
			}
		}
		if !bytes.Equal(data, before) {
			t.Fatal("the query was changed")
		}
		if asked, _ := parseQuery(message{name: "example.org", typ: typeTXT}.pack(t), tcp); len(data) > 1 {
			asked.answeredBy(data, id(data))
		}
	})
}

// FuzzParse feeds foreign bytes to what reads a resolv.conf.
func FuzzParse(f *testing.F) {
	f.Add([]byte("nameserver 10.0.0.1\nsearch a b\noptions ndots:2\n"))
	f.Add([]byte("nameserver fe80::1%eth0 # x\ndomain a\n;\n\x00\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseResolvConf(bytes.NewReader(data))
		if err != nil {
			return
		}
		if len(c.Servers) > maxServers || len(c.Search) > maxSearch || len(c.Options) > maxOptions {
			t.Fatalf("%d servers, %d domains, %d options", len(c.Servers), len(c.Search), len(c.Options))
		}
		for _, s := range c.Servers {
			if !s.IsValid() || s.Port() != 53 {
				t.Fatalf("the server %v", s)
			}
		}
		same(t, c)
	})
}
