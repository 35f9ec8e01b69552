package dns

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	rcodeServerFailure = dnsmessage.RCodeServerFailure
	rcodeBadVersion    = dnsmessage.RCode(16) // RFC 6891

	typeIXFR = dnsmessage.Type(251)

	headerLength = 12
	optLength    = 11    // of an OPT record without options
	minUDP       = 512   // what every client can receive by UDP, in bytes
	maxUDP       = 4096  // what is sent by UDP to a client that takes it
	maxTCP       = 65535 // what fits into a frame
	// maxUpstreamUDP is what upstreams may send by UDP: no more than what passes any network in one piece.
	maxUpstreamUDP = 1232
)

// A query is what a client asks.
type query struct {
	header   dnsmessage.Header
	question dnsmessage.Question
	asked    bool // there is a question
	tcp      bool

	edns    bool
	size    int  // what the client receives by UDP, in bytes
	do      bool // it wants to see signatures
	version uint8
}

// parseQuery reads a query. What is no query at all gives nil; the code says what is wrong with one.
func parseQuery(msg []byte, tcp bool) (*query, dnsmessage.RCode) {
	if len(msg) < headerLength {
		return nil, 0
	}
	var p dnsmessage.Parser
	q := &query{tcp: tcp, size: minUDP}
	var err error
	if q.header, err = p.Start(msg); err != nil || q.header.Response {
		return nil, 0
	}
	if q.header.OpCode != 0 {
		return q, dnsmessage.RCodeNotImplemented
	}
	questions, answers, authorities := binary.BigEndian.Uint16(msg[4:]), binary.BigEndian.Uint16(msg[6:]), binary.BigEndian.Uint16(msg[8:])
	if questions != 1 {
		return q, dnsmessage.RCodeFormatError
	}
	if q.question, err = p.Question(); err != nil {
		return q, dnsmessage.RCodeFormatError
	}
	q.asked = true
	if q.question.Type == typeIXFR || q.question.Type == dnsmessage.TypeAXFR {
		return q, dnsmessage.RCodeRefused // IXFR has an authority: the next rule would say that it is malformed
	}
	if answers != 0 || authorities != 0 || p.SkipAllQuestions() != nil || p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, dnsmessage.RCodeFormatError
	}
	for {
		h, err := p.AdditionalHeader()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil {
			return q, dnsmessage.RCodeFormatError
		}
		if h.Type == dnsmessage.TypeOPT {
			if q.edns || h.Name.Length != 1 {
				return q, dnsmessage.RCodeFormatError
			}
			q.edns, q.size, q.do, q.version = true, max(int(h.Class), minUDP), h.DNSSECAllowed(), uint8(h.TTL>>16)
			// DNSSECAllowed looks at the version too.
			q.do = q.do || h.TTL&(1<<15) != 0
		}
		if p.SkipAdditional() != nil {
			return q, dnsmessage.RCodeFormatError
		}
	}
	switch {
	case q.version != 0:
		return q, rcodeBadVersion
	case q.question.Class != dnsmessage.ClassINET:
		return q, dnsmessage.RCodeRefused
	}
	return q, dnsmessage.RCodeSuccess
}

// limit is how long an answer may be, in bytes.
func (q *query) limit() int {
	if q.tcp {
		return maxTCP
	}
	return min(q.size, maxUDP)
}

// A record is one of an answer, about the name of the question.
type record struct {
	addr netip.Addr // or
	name dnsmessage.Name
}

// failure is an answer without records. Nil if there can be none.
func (q *query) failure(code dnsmessage.RCode) []byte { return q.reply(code, false, nil) }

// reply is the answer to the query. Records that have no room are left out, and the answer says that it was cut.
func (q *query) reply(code dnsmessage.RCode, authoritative bool, records []record) []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, minUDP), dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, Authoritative: authoritative, RecursionDesired: q.header.RecursionDesired,
		RecursionAvailable: true, CheckingDisabled: q.header.CheckingDisabled, RCode: code & 0xf,
	})
	if len(records) > 0 {
		b.EnableCompression() // each record then has two bytes for its name
	}
	room := q.limit() - headerLength
	if q.edns {
		room -= optLength
	}
	err := b.StartQuestions()
	if err == nil && q.asked {
		err = b.Question(q.question)
		room -= int(q.question.Name.Length) + 1 + 4
	}
	if err == nil {
		err = b.StartAnswers()
	}
	cut := false
	for _, r := range records {
		h := dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET}
		const fixed = 2 + 10 // name and header
		switch {
		case r.addr.Is4():
			if room -= fixed + 4; room >= 0 && err == nil {
				err = b.AResource(h, dnsmessage.AResource{A: r.addr.As4()})
			}
		case r.addr.IsValid():
			if room -= fixed + 16; room >= 0 && err == nil {
				err = b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: r.addr.As16()})
			}
		default:
			if room -= fixed + int(r.name.Length) + 1; room >= 0 && err == nil {
				err = b.PTRResource(h, dnsmessage.PTRResource{PTR: r.name})
			}
		}
		if room < 0 {
			cut = true
			break
		}
	}
	if err == nil && q.edns {
		if err = b.StartAdditionals(); err == nil {
			var h dnsmessage.ResourceHeader
			h.SetEDNS0(maxUDP, code, q.do)
			err = b.OPTResource(h, dnsmessage.OPTResource{})
		}
	}
	msg, finishErr := b.Finish()
	if err != nil || finishErr != nil {
		return nil // no name that was read is one that cannot be written
	}
	if cut {
		msg[2] |= 1 << 1 // TC
	}
	return msg
}

// upstreamQuery is the query as it is passed on, with another id.
func (q *query) upstreamQuery(id uint16) ([]byte, error) {
	b := dnsmessage.NewBuilder(make([]byte, 0, minUDP), dnsmessage.Header{
		ID: id, RecursionDesired: q.header.RecursionDesired, AuthenticData: q.header.AuthenticData, CheckingDisabled: q.header.CheckingDisabled,
	})
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if err := b.Question(q.question); err != nil {
		return nil, err
	}
	if q.edns {
		if err := b.StartAdditionals(); err != nil {
			return nil, err
		}
		var h dnsmessage.ResourceHeader
		h.SetEDNS0(min(q.size, maxUpstreamUDP), dnsmessage.RCodeSuccess, q.do)
		if err := b.OPTResource(h, dnsmessage.OPTResource{}); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

// answeredBy reports whether a message is the answer to the query with the id.
func (q *query) answeredBy(msg []byte, id uint16) (dnsmessage.Header, bool) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.ID != id || h.OpCode != q.header.OpCode {
		return h, false
	}
	questions := binary.BigEndian.Uint16(msg[4:])
	if questions == 0 && h.RCode != dnsmessage.RCodeSuccess && h.RCode != dnsmessage.RCodeNameError {
		return h, true // a server that could not read the question need not repeat it
	}
	if questions != 1 {
		return h, false
	}
	question, err := p.Question()
	if err != nil || question.Type != q.question.Type || question.Class != q.question.Class {
		return h, false
	}
	return h, sameName(&question.Name, &q.question.Name)
}

// sameName compares names as DNS does: the case of ASCII letters alone does not count.
func sameName(a, b *dnsmessage.Name) bool {
	lower := func(c byte) byte {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		return c
	}
	if a.Length != b.Length {
		return false
	}
	for i := range a.Length {
		if lower(a.Data[i]) != lower(b.Data[i]) {
			return false
		}
	}
	return true
}

// passed is an upstream's answer for the client.
func (q *query) passed(msg []byte) []byte {
	if len(msg) > q.limit() {
		// An upstream that sends more than it was told to.
		cut := q.reply(dnsmessage.RCodeSuccess, false, nil)
		if cut != nil {
			cut[2] |= 1 << 1
		}
		return cut
	}
	binary.BigEndian.PutUint16(msg, q.header.ID)
	return msg
}
