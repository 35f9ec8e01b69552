package netdrv

import (
	"context"
	"encoding/hex"
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sweepDelay is how long flows wait to be forgotten together with others: the kernel looks through all that it knows for them.
const sweepDelay = 50 * time.Millisecond

// Ports that go in one batch.
const publishBatch = 20000

// A Publisher sends what arrives at ports of the host to containers. Its ports are elements of maps in a table that belongs
// to its socket: when the last descriptor of the socket is closed, by whatever end of the processes that have one, the
// kernel removes the table. No two Publishers can have one port only if somebody else sees to it, as by a bound socket: of two tables
// with the same port, one is used.
//
// Its methods are for many goroutines. Two processes that have the socket must not use it at the same time.
type Publisher struct {
	table *tableSpec
	nf    *nfConn
	flows *flowSweeper

	working sync.Mutex // held by who makes flows forgotten; taken before mu
	mu      sync.Mutex
	stale   map[hostPort]Port // not in the maps any more, with flows that may be known
	begun   []Port            // new in the maps, with flows from before that may be known
	timer   *time.Timer       // runs while there is any of these
	swept   chan struct{}     // is closed when these are forgotten
	closed  bool
	failed  error // of what was done in the background, for Flush
}

// hostPort is a set and a key in it.
type hostPort struct{ set, key string }

// publishTable is the table of a Publisher.
func publishTable(name string) *tableSpec {
	t := &tableSpec{family: unix.NFPROTO_INET, name: tablePrefix + name, flags: nftTableOwner, reason: "published ports; goes with the process that holds its socket"}
	to4, to6 := []nfType{typeIP4, typeService}, []nfType{typeIP6, typeService}
	t.set("addr4", "ports of one address of the host", []nfType{typeIP4, typeProto, typeService}, to4)
	t.set("any4", "ports of all addresses of the host", []nfType{typeProto, typeService}, to4)
	t.set("addr6", "ports of one address of the host", []nfType{typeIP6, typeProto, typeService}, to6)
	t.set("any6", "ports of all addresses of the host", []nfType{typeProto, typeService}, to6)

	pre := t.baseChain("prerouting", "nat", unix.NF_INET_PRE_ROUTING, -100, "what arrives from others")
	pre.rule("nobody else reaches what is published at the host's own 127.0.0.0/8", is(nfproto, ipv4), is(ip4Dest, prefix(loopback4)), accept)
	pre.rule("to the host", is(fibType, local), goTo("publish"))
	out := t.baseChain("output", "nat", unix.NF_INET_LOCAL_OUT, -100, "what the host itself sends")
	out.rule("an answer to ::1 could not be routed: it has to be served by a program", is(nfproto, ipv6), is(ip6Dest, address(netip.IPv6Loopback())), accept)
	out.rule("to the host", is(fibType, local), goTo("publish"))

	publish := t.chain("publish", "to containers")
	publish.rule("", is(nfproto, ipv4), dnatMap(unix.NFPROTO_IPV4, "addr4", ip4Dest, l4proto, destPort))
	publish.rule("", is(nfproto, ipv4), dnatMap(unix.NFPROTO_IPV4, "any4", l4proto, destPort))
	publish.rule("", is(nfproto, ipv6), dnatMap(unix.NFPROTO_IPV6, "addr6", ip6Dest, l4proto, destPort))
	publish.rule("", is(nfproto, ipv6), dnatMap(unix.NFPROTO_IPV6, "any6", l4proto, destPort))
	for _, r := range publish.rules {
		r.reason = "the container's address and port are the element's"
	}
	return t
}

// NewPublisher makes the table coracle-<name> in the calling thread's network namespace. The name is 1 to 100 of a-z, 0-9, -, _ and .,
// is not that of another table of ours, and not 12 hexadecimal digits, as those of networks are. If there is a table of that name the error matches
// fs.ErrExist. It needs Linux 5.12.
func NewPublisher(name string) (*Publisher, error) {
	if err := checkPublisherName(name); err != nil {
		return nil, err
	}
	nf, err := openNF()
	if err != nil {
		return nil, err
	}
	p, err := newPublisher(name, nf)
	if err != nil {
		return nil, err
	}
	messages, err := p.table.create()
	if err == nil {
		messages[0].flags |= unix.NLM_F_EXCL
		err = nf.batch(0, messages...)
	}
	if err == nil {
		return p, nil
	}
	op := "make the table " + p.table.name
	if have, failed := nf.table(p.table.family, p.table.name); failed == nil && have != nil {
		err = &Error{Op: op, Err: unix.EEXIST, Fix: "another process has it, or left it: take another name"}
	} else if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		err = &UnsupportedError{Feature: "publishing ports", Kernel: "CONFIG_NF_TABLES_INET, and tables that belong to sockets (5.12)", Err: err}
	} else {
		err = nfErr(op, err)
	}
	return nil, errors.Join(err, p.free())
}

// OpenPublisher takes over a Publisher whose socket another process made and handed over; the caller may close the file after. If the
// table is gone the error matches fs.ErrNotExist.
func OpenPublisher(name string, socket *os.File) (*Publisher, error) {
	if err := checkPublisherName(name); err != nil {
		return nil, err
	}
	fd, err := dupFile(socket)
	if err != nil {
		return nil, err
	}
	p, err := newPublisher(name, adoptNF(fd))
	if err != nil {
		return nil, err
	}
	have, err := p.nf.table(p.table.family, p.table.name)
	if err == nil && have == nil {
		err = unix.ENOENT
	}
	if err != nil {
		return nil, errors.Join(nfErr("find the table "+p.table.name, err), p.free())
	}
	return p, nil
}

func newPublisher(name string, nf *nfConn) (*Publisher, error) {
	flows, err := newFlowSweeper()
	if err != nil {
		nf.Close()
		return nil, err
	}
	return &Publisher{table: publishTable(name), nf: nf, flows: flows, stale: map[hostPort]Port{}, swept: make(chan struct{})}, nil
}

func checkPublisherName(name string) error {
	ok := name != "" && len(name) <= 100 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
	_, err := hex.DecodeString(name)
	if !ok || len(name) == 12 && err == nil || name == "forward" || name == "dns" {
		return invalid("Publisher", name, "a name has only a-z, 0-9, -, _ and ., is not 12 hexadecimal digits, forward or dns")
	}
	return nil
}

func dupFile(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var failed error
	if err = raw.Control(func(old uintptr) { fd, failed = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err == nil {
		err = os.NewSyscallError("fcntl", failed)
	}
	return fd, err
}

// Publish publishes ports, all or none. A port that is published by this Publisher is a [*PortError] that matches fs.ErrExist; if
// several are, the error is all of theirs, joined.
func (p *Publisher) Publish(ctx context.Context, ports []Port) error {
	elements := make([]nfElement, len(ports))
	hosts := make([]hostPort, len(ports))
	seen := make(map[hostPort]bool, len(ports))
	var errs []error
	for i, port := range ports {
		var err error
		hosts[i].set, elements[i], err = port.element()
		hosts[i].key = string(elements[i].key)
		if err == nil && seen[hosts[i]] {
			err = &PortError{Port: port, Err: unix.EEXIST}
		}
		seen[hosts[i]] = true
		if err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for done := 0; done < len(ports); {
		n := min(publishBatch, len(ports)-done)
		if err := p.publish(ports[done:done+n], hosts[done:done+n], elements[done:done+n]); err != nil {
			return errors.Join(err, p.unmap(ports[:done]))
		}
		done += n
	}
	return nil
}

// publish publishes what fits into a batch. The caller holds the lock.
func (p *Publisher) publish(ports []Port, hosts []hostPort, elements []nfElement) error {
	var messages []nfMessage
	for i, e := range elements {
		messages = append(messages, p.table.addElement(hosts[i].set, e, unix.NLM_F_EXCL, ""))
	}
	err := p.nf.batch(0, messages...)
	var failed nfErrors
	if errors.As(err, &failed) {
		var errs []error
		for _, e := range failed {
			if e.Index < 0 {
				return nfErr("publish ports", err)
			}
			errno := e.Errno
			if errno == unix.EBUSY { // it is there with another value
				errno = unix.EEXIST
			}
			errs = append(errs, &PortError{Port: ports[e.Index], Err: errno})
		}
		if len(errs) == 1 {
			return errs[0]
		}
		return errors.Join(errs...)
	} else if err != nil {
		return nfErr("publish ports", err)
	}
	var again []Port
	for i, h := range hosts {
		if old, ok := p.stale[h]; ok {
			again = append(again, old)
			delete(p.stale, h)
		}
		if ports[i].Protocol == "udp" {
			p.begun = append(p.begun, ports[i])
		}
	}
	if len(again) > 0 { // rare: the new container must not get what is meant for the old one, so it is waited for
		p.failed = errors.Join(p.failed, p.flows.sweep(again, nil))
	}
	p.later()
	return nil
}

// Withdraw takes ports back: when it returns nothing new is sent to the container. Within some 50 ms, together with others that are
// withdrawn meanwhile, the kernel is made to forget the flows through them; then the channel is closed, and the container's address can
// be another one's. What goes wrong with that, Flush says. Ports that are not published are no error. A port may be published again at
// once.
func (p *Publisher) Withdraw(ports []Port) (forgotten <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		over := make(chan struct{})
		close(over)
		return over, nil
	}
	swept := p.swept
	return swept, p.unmap(ports)
}

// unmap removes ports from the maps. The caller holds the lock.
func (p *Publisher) unmap(ports []Port) error {
	messages := make([]nfMessage, 0, len(ports))
	for _, port := range ports {
		set, e, err := port.element()
		if err != nil {
			continue // and so it was never published
		}
		messages = append(messages, p.table.removeElement(set, e.key, port.String()))
		p.stale[hostPort{set, string(e.key)}] = port
	}
	var errs []error
	for len(messages) > 0 {
		n := min(publishBatch, len(messages))
		errs = append(errs, nfErr("withdraw ports", p.nf.batchPresent(messages[:n])))
		messages = messages[n:]
	}
	p.later()
	return errors.Join(errs...)
}

// later sees to it that flows are forgotten. The caller holds the lock.
func (p *Publisher) later() {
	switch {
	case len(p.stale)+len(p.begun) == 0:
		if p.timer == nil {
			close(p.swept) // there is nothing to wait for
			p.swept = make(chan struct{})
		}
	case p.timer == nil:
		p.timer = time.AfterFunc(sweepDelay, p.sweep)
	}
}

// sweep makes the kernel forget flows. Nobody who publishes waits for that, as they may be many.
func (p *Publisher) sweep() {
	p.working.Lock()
	defer p.working.Unlock()
	p.mu.Lock()
	stale, begun, swept := slices.Collect(maps.Values(p.stale)), p.begun, p.swept
	clear(p.stale)
	p.begun, p.swept = nil, make(chan struct{})
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	closed := p.closed
	p.mu.Unlock()
	defer close(swept)
	if closed || len(stale)+len(begun) == 0 {
		return
	}
	if err := p.flows.sweep(stale, begun); err != nil {
		p.mu.Lock()
		p.failed = errors.Join(p.failed, err)
		p.mu.Unlock()
	}
}

// Flush makes the kernel forget at once what Withdraw and Publish have left for later, and returns what went wrong since the last Flush.
func (p *Publisher) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p.sweep()
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.failed
	p.failed = nil
	return err
}

// Socket returns a new descriptor of the socket that the table belongs to, for another process to hold. The caller closes it.
func (p *Publisher) Socket() (*os.File, error) {
	p.nf.mu.Lock()
	defer p.nf.mu.Unlock()
	if p.nf.fd < 0 {
		return nil, os.ErrClosed
	}
	fd, err := unix.FcntlInt(uintptr(p.nf.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), p.table.name), nil
}

// Close does what Withdraw left for later and closes the socket: if nobody else has it, nothing is published any more. A
// second call does nothing.
func (p *Publisher) Close() error {
	p.sweep()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	return p.free()
}

func (p *Publisher) free() error {
	p.flows.Close()
	return p.nf.Close()
}

// element is the port as an element of a set.
func (p Port) element() (set string, e nfElement, err error) {
	if err := p.check(); err != nil {
		return "", nfElement{}, err
	}
	proto := []byte{protocols[p.Protocol]}
	to := p.Addr.AsSlice()
	host := number(p.HostPort).data
	e.data = key(to, number(p.Port).data)
	version := "4"
	if p.Addr.Is6() {
		version = "6"
	}
	if !p.HostAddr.IsValid() || p.HostAddr.IsUnspecified() {
		e.key = key(proto, host)
		return "any" + version, e, nil
	}
	e.key = key(p.HostAddr.AsSlice(), proto, host)
	return "addr" + version, e, nil
}

var protocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// flowSweeper makes the kernel forget flows that would go on to where they went though the maps say otherwise: only the
// first packet of a flow is looked up.
type flowSweeper struct{ handle *netlink.Handle }

func newFlowSweeper() (*flowSweeper, error) {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, kernelError("open a netlink socket", "", err)
	}
	return &flowSweeper{h}, nil
}

func (s *flowSweeper) Close() { s.handle.Close() }

// sweep makes the kernel forget flows through ports that are withdrawn, and flows to the host itself at ports that have been
// published since: who keeps sending to a port of udp would never reach the container.
func (s *flowSweeper) sweep(withdrawn, published []Port) error {
	var errs []error
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		m := &flowMatcher{withdrawn: map[flowEnd][]Port{}, published: map[flowEnd][]Port{}}
		for _, p := range withdrawn {
			if p.Addr.Is4() == (family == unix.AF_INET) {
				end := flowEnd{protocols[p.Protocol], p.Addr, p.Port}
				if p.Protocol == "sctp" { // the library does not read ports of sctp
					end.port = 0
				}
				m.withdrawn[end] = append(m.withdrawn[end], p)
			}
		}
		for _, p := range published {
			if p.Addr.Is4() == (family == unix.AF_INET) {
				end := flowEnd{protocol: protocols[p.Protocol], port: p.HostPort}
				m.published[end] = append(m.published[end], p)
			}
		}
		if len(m.published) > 0 {
			addresses, err := s.handle.AddrList(nil, int(family))
			if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
				errs = append(errs, kernelError("list the host's addresses", "", err))
			}
			m.local = map[netip.Addr]bool{}
			for _, a := range addresses {
				m.local[unmapped(a.IP)] = true
			}
		}
		if len(m.withdrawn)+len(m.published) == 0 {
			continue
		}
		for tries := 0; ; tries++ {
			_, err := s.handle.ConntrackDeleteFilters(netlink.ConntrackTable, family, m)
			if err != nil && !(errors.Is(err, netlink.ErrDumpInterrupted) && tries < 5) {
				errs = append(errs, kernelError("forget flows through published ports", "", err))
			}
			if !errors.Is(err, netlink.ErrDumpInterrupted) || tries == 5 {
				break
			}
		}
	}
	return errors.Join(errs...)
}

// flowEnd is where a flow goes.
type flowEnd struct {
	protocol uint8
	addr     netip.Addr
	port     uint16
}

type flowMatcher struct {
	withdrawn map[flowEnd][]Port // by the container's end
	published map[flowEnd][]Port // by port of the host
	local     map[netip.Addr]bool
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (m *flowMatcher) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to, from := unmapped(flow.Forward.DstIP), unmapped(flow.Reverse.SrcIP)
	if to == from {
		for _, p := range m.published[flowEnd{protocol: flow.Forward.Protocol, port: flow.Forward.DstPort}] {
			if m.local[to] && p.at(to) {
				return true
			}
		}
		return false
	}
	for _, p := range m.withdrawn[flowEnd{flow.Forward.Protocol, from, flow.Reverse.SrcPort}] {
		if p.at(to) && (p.HostPort == flow.Forward.DstPort || flow.Forward.DstPort == 0) {
			return true
		}
	}
	return false
}

// at reports whether the port is published at an address of the host.
func (p Port) at(a netip.Addr) bool {
	return !p.HostAddr.IsValid() || p.HostAddr.IsUnspecified() || p.HostAddr == a
}

func unmapped(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a.Unmap()
}
