package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// A Zone knows the names that a container is to see. It is asked again for each query, by several goroutines at once.
//
// The names it is asked for are in lower case and without a dot at the end. They consist of letters, digits, "-", "_" and
// dots, and no label of them is empty: they may be used as the name of a file. Queries for others are not asked of it.
type Zone interface {
	// Addresses returns the addresses of a name. Found without an address means that the name exists.
	Addresses(name string) (v4, v6 []netip.Addr, found bool)
	// Name returns the name of an address, without a dot at the end.
	Name(addr netip.Addr) (name string, found bool)
}

// Config says what a server answers. The zero Config answers for localhost only.
type Config struct {
	// Zone knows the names of the networks. Nil means none.
	Zone Zone
	// Private reports whether an address is one of those that the zone answers for, a subnet of the container's networks for
	// example: if the zone has no name of it, then nobody has, and nobody is asked. Nil means none.
	Private func(netip.Addr) bool
	// Upstreams are who is asked for everything else, in this order. Empty means that nobody is.
	Upstreams []netip.AddrPort
	// Forward reports whether they may be asked at this moment. Nil means always.
	Forward func() bool
	// Logger receives what is worth knowing and is no error. Nil discards.
	Logger *slog.Logger
	// Limits bound what clients can use. The zero value means the defaults.
	Limits Limits
}

// Limits bound what the clients of one server can make it use. A zero field means its default.
type Limits struct {
	// InFlight is how many queries wait for upstreams at once, each with a goroutine, a socket and some 10 kB of memory; up
	// to 64 kB more where an answer is that long. The default is 128.
	InFlight int
	// Connections is how many TCP connections are open at once; further ones are closed when they come. The default is 16.
	Connections int
	// Rate is how many queries are read per second, by UDP and TCP together. The default is 10,000; a negative value means
	// no limit.
	Rate int
	// Timeout is how long one upstream may take. After twice this time the client gets SERVFAIL, whoever is still to be
	// asked. The default is 2 seconds.
	Timeout time.Duration
	// Idle is how long a TCP connection may take for its next query, and the client to read an answer. The default is 10
	// seconds.
	Idle time.Duration
}

func (l Limits) withDefaults() Limits {
	set := func(value *int, otherwise int) {
		if *value == 0 {
			*value = otherwise
		}
	}
	set(&l.InFlight, 128)
	set(&l.Connections, 16)
	set(&l.Rate, 10_000)
	if l.Timeout <= 0 {
		l.Timeout = 2 * time.Second
	}
	if l.Idle <= 0 {
		l.Idle = 10 * time.Second
	}
	return l
}

// maxQuery is the longest query that is read, in bytes. A name has at most 255. A connection with a longer one is closed.
const maxQuery = 4096

// A Server answers queries from the sockets that it was given until it is closed. See [Serve].
type Server struct {
	config    Config
	limits    Limits
	log       *slog.Logger
	udp       net.PacketConn
	tcp       net.Listener
	upstreams []*upstream

	turns [64]atomic.Uint32 // of the next answers, see turn
	slots chan struct{}     // one for each query that is passed on
	pace  pacer

	closing context.Context
	stop    context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

// Serve answers the queries that come to a socket and to a listener, which belong to the server from now on. Either may
// be nil.
func Serve(udp net.PacketConn, tcp net.Listener, config Config) *Server {
	s := newServer(config)
	s.udp, s.tcp = udp, tcp
	if udp != nil {
		s.running.Go(s.serveUDP)
	}
	if tcp != nil {
		s.running.Go(s.serveTCP)
	}
	return s
}

func newServer(config Config) *Server {
	s := &Server{config: config, limits: config.Limits.withDefaults(), log: config.Logger, conns: make(map[net.Conn]struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, addr := range config.Upstreams {
		s.upstreams = append(s.upstreams, &upstream{addr: addr})
	}
	s.slots = make(chan struct{}, max(s.limits.InFlight, 1))
	s.pace.rate = float64(s.limits.Rate)
	s.closing, s.stop = context.WithCancel(context.Background())
	return s
}

func (s *Server) forwards() bool {
	return len(s.upstreams) > 0 && (s.config.Forward == nil || s.config.Forward())
}

// Close closes the sockets and the connections, gives up the queries that wait for upstreams and waits for all goroutines
// of the server. A second call does nothing but wait. The error is nil.
func (s *Server) Close() error {
	s.stop()
	if s.udp != nil {
		s.udp.Close()
	}
	if s.tcp != nil {
		s.tcp.Close()
	}
	s.mu.Lock()
	s.closed = true
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

// serveUDP reads queries and answers those that need nobody else. One goroutine does, so that a flood keeps at most one
// processor busy.
func (s *Server) serveUDP() {
	buf := make([]byte, maxQuery)
	for s.pace.wait(s.closing) {
		n, from, err := s.udp.ReadFrom(buf)
		if err != nil {
			if !s.again("read a query", err) {
				return
			}
			continue
		}
		answer, q := s.answer(buf[:n], false)
		if q != nil {
			started := s.passOn(q, func(answer []byte) { s.writeTo(answer, from) })
			if started {
				continue
			}
			answer = q.failure(rcodeServerFailure)
		}
		if answer != nil {
			s.writeTo(answer, from)
		}
	}
}

func (s *Server) writeTo(answer []byte, to net.Addr) {
	if _, err := s.udp.WriteTo(answer, to); err != nil && s.closing.Err() == nil {
		s.log.Debug("answer a query", "client", to, "error", err)
	}
}

// again reports whether to go on after an error of a socket, and waits a little, as some errors last.
func (s *Server) again(what string, err error) bool {
	if s.closing.Err() != nil || errors.Is(err, net.ErrClosed) {
		return false
	}
	s.log.Warn(what, "error", err)
	return sleep(s.closing, 50*time.Millisecond)
}

func (s *Server) serveTCP() {
	for {
		conn, err := s.tcp.Accept()
		if err != nil {
			if !s.again("accept a connection", err) {
				return
			}
			continue
		}
		if !s.admit(conn) {
			conn.Close()
			continue
		}
		s.running.Go(func() {
			defer s.dismiss(conn)
			s.serveConn(conn)
		})
	}
}

func (s *Server) admit(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.conns) >= s.limits.Connections {
		return false
	}
	s.conns[conn] = struct{}{}
	return true
}

func (s *Server) dismiss(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

// serveConn answers the queries of a connection, which need not wait for each other's answers (RFC 7766).
func (s *Server) serveConn(conn net.Conn) {
	var writing sync.Mutex
	write := func(answer []byte) {
		writing.Lock()
		defer writing.Unlock()
		conn.SetWriteDeadline(time.Now().Add(s.limits.Idle))
		if err := writeFramed(conn, answer); err != nil {
			conn.Close() // a part of an answer may be on its way: no other can follow
		}
	}
	var waiting sync.WaitGroup
	defer waiting.Wait() // a client that has said all may still read
	for s.pace.wait(s.closing) {
		conn.SetReadDeadline(time.Now().Add(s.limits.Idle))
		msg, err := readFramed(conn, maxQuery)
		if err != nil {
			return
		}
		answer, q := s.answer(msg, true)
		if q != nil {
			waiting.Add(1)
			started := s.passOn(q, func(answer []byte) {
				defer waiting.Done()
				write(answer)
			})
			if started {
				continue
			}
			waiting.Done()
			answer = q.failure(rcodeServerFailure)
		}
		if answer == nil {
			return // what is no query on a connection is not worth keeping it
		}
		write(answer)
	}
}

// passOn asks the upstreams in a goroutine that calls answered exactly once, if there is room for another query.
func (s *Server) passOn(q *query, answered func(answer []byte)) (started bool) {
	select {
	case s.slots <- struct{}{}:
	default:
		return false
	}
	s.running.Go(func() {
		defer func() { <-s.slots }()
		answered(s.forward(q))
	})
	return true
}

var errTooLong = errors.New("the message is too long")

// readFramed reads a message of at most so many bytes, with its length before it (RFC 1035 section 4.2.2).
func readFramed(r io.Reader, most int) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > most {
		return nil, errTooLong
	}
	buf := make([]byte, n)
	_, err := io.ReadFull(r, buf)
	return buf, err
}

// writeFramed writes length and message at once: two packets would make some clients wait for each other's.
func writeFramed(w io.Writer, msg []byte) error {
	framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg)))
	_, err := w.Write(append(framed, msg...))
	return err
}

// A pacer lets through as many events in a second as rate says, and a tenth of a second's at once.
type pacer struct {
	rate float64 // negative: all

	mu     sync.Mutex
	tokens float64
	last   time.Time
}

// wait waits for the turn of the next event. It returns false if ctx is done.
func (p *pacer) wait(ctx context.Context) bool {
	if p.rate < 0 {
		return ctx.Err() == nil
	}
	p.mu.Lock()
	now := time.Now()
	burst := max(p.rate/10, 1)
	if p.last.IsZero() {
		p.tokens = burst
	} else {
		p.tokens = min(burst, p.tokens+p.rate*now.Sub(p.last).Seconds())
	}
	p.last = now
	p.tokens-- // who comes next waits for this one's turn to pass as well
	late := -p.tokens
	p.mu.Unlock()
	if late <= 0 {
		return ctx.Err() == nil
	}
	return sleep(ctx, time.Duration(late/p.rate*float64(time.Second)))
}

// sleep returns false if ctx is done before the time is over.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
