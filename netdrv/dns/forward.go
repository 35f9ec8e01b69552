package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// An upstream is who is asked for what the zone does not know.
type upstream struct {
	addr   netip.AddrPort
	failed atomic.Int64 // when it last did not answer, in nanoseconds since 1970
}

// avoided is for how long an upstream that did not answer is asked after those that did.
const avoided = 10 * time.Second

// byMerit returns the upstreams in the order in which to ask.
func (s *Server) byMerit() []*upstream {
	since := time.Now().Add(-avoided).UnixNano()
	list := slices.Clone(s.upstreams)
	slices.SortStableFunc(list, func(a, b *upstream) int {
		switch af, bf := a.failed.Load() > since, b.failed.Load() > since; {
		case af && !bf:
			return 1
		case bf && !af:
			return -1
		}
		return 0
	})
	return list
}

// forward asks the upstreams and returns the answer for the client.
func (s *Server) forward(q *query) []byte {
	ctx, cancel := context.WithTimeout(s.closing, 2*s.limits.Timeout)
	defer cancel()
	var refusal []byte
	for _, u := range s.byMerit() {
		msg, code, err := s.ask(ctx, u, q)
		if err != nil {
			if s.closing.Err() != nil {
				break
			}
			if ctx.Err() == nil {
				u.failed.Store(time.Now().UnixNano())
			}
			s.log.Debug("ask an upstream", "upstream", u.addr, "name", q.question.Name.String(), "error", err)
			continue
		}
		switch code {
		case dnsmessage.RCodeServerFailure, dnsmessage.RCodeRefused, dnsmessage.RCodeNotImplemented, dnsmessage.RCodeFormatError:
			if refusal == nil {
				refusal = msg
			}
			continue
		}
		return q.passed(msg)
	}
	if refusal != nil {
		return q.passed(refusal)
	}
	return q.failure(rcodeServerFailure)
}

// ask asks one upstream, and again by TCP if the answer is too long for UDP and not for the client.
func (s *Server) ask(ctx context.Context, u *upstream, q *query) ([]byte, dnsmessage.RCode, error) {
	ctx, cancel := context.WithTimeout(ctx, s.limits.Timeout)
	defer cancel()
	msg, h, err := exchange(ctx, "udp", u.addr, q)
	if err == nil && h.Truncated && q.tcp {
		msg, h, err = exchange(ctx, "tcp", u.addr, q)
	}
	return msg, h.RCode, err
}

// buffers are for answers by UDP. One is longer than what upstreams were told to send.
var buffers = sync.Pool{New: func() any { return new([maxUDP]byte) }}

// exchange sends the query and waits for its answer, whatever else may come before. The kernel chooses the source port
// at random and drops what does not come from the address.
func exchange(ctx context.Context, network string, to netip.AddrPort, q *query) ([]byte, dnsmessage.Header, error) {
	none := dnsmessage.Header{}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, to.String())
	if err != nil {
		return nil, none, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var random [2]byte
	rand.Read(random[:])
	id := binary.BigEndian.Uint16(random[:])
	msg, err := q.upstreamQuery(id)
	if err != nil {
		return nil, none, err
	}
	if network == "tcp" {
		if err := writeFramed(conn, msg); err != nil {
			return nil, none, err
		}
		for {
			msg, err := readFramed(conn, maxTCP)
			if err != nil {
				return nil, none, err
			}
			if h, ok := q.answeredBy(msg, id); ok {
				return msg, h, nil
			}
		}
	}
	if _, err := conn.Write(msg); err != nil {
		return nil, none, err
	}
	buf := buffers.Get().(*[maxUDP]byte)
	defer buffers.Put(buf)
	for {
		n, err := conn.Read(buf[:])
		if err != nil {
			return nil, none, err
		}
		if h, ok := q.answeredBy(buf[:n], id); ok {
			return slices.Clone(buf[:n]), h, nil
		}
	}
}
