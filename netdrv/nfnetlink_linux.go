package netdrv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What x/sys/unix has no names for, from linux/netfilter/nf_tables.h and nfnetlink.h.
const (
	nftaTableUserdata = 6  // since 5.10
	nftaTableOwner    = 7  // since 5.12
	nftaChainUserdata = 12 // since 5.10
	nftTableOwner     = 2  // NFT_TABLE_F_OWNER, since 5.12
	nfnlBatchGenID    = 1
)

// Limits of one batch. The kernel takes a batch as one message, which has to fit into the socket's send buffer.
const (
	nfBuffer   = 4 << 20 // bytes asked for; the kernel doubles it
	nfMaxBatch = 6 << 20
)

// nfConn is a lasting socket of NETLINK_NETFILTER, for many goroutines.
//
// We speak nf_tables' protocol ourselves, with the expressions of google/nftables: that package's own connection knows
// neither the owner flag nor comments of tables and chains, cannot say which message of a batch failed, and asks for
// an acknowledgement of each message, which overruns the socket at some hundred of them. Here only the last message is
// acknowledged. The kernel has answered when sendto returns, so what is not in the socket then will not come, and no
// error leaves a socket that has to be opened anew.
type nfConn struct {
	mu     sync.Mutex
	fd     int    // -1: closed
	seq    uint32 // of the last message sent
	buffer []byte
}

// openNF opens a socket in the network namespace of the calling thread, to which it belongs from then on.
func openNF() (*nfConn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, &UnsupportedError{Feature: "a firewall", Kernel: "CONFIG_NETFILTER_NETLINK and CONFIG_NF_TABLES", Err: os.NewSyscallError("socket", err)}
	} else if err != nil {
		return nil, kernelError("open a netfilter socket", "", os.NewSyscallError("socket", err))
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, kernelError("bind a netfilter socket", "", os.NewSyscallError("bind", err))
	}
	return adoptNF(fd), nil
}

// adoptNF takes over a socket that is bound.
func adoptNF(fd int) *nfConn {
	prepareNF(fd)
	return &nfConn{fd: fd, buffer: make([]byte, 64<<10)}
}

// prepareNF makes a socket's buffers large and its errors short. Who may not have larger buffers has smaller ones.
func prepareNF(fd int) {
	for _, o := range [][2]int{{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}, {unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], nfBuffer) != nil {
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], nfBuffer)
		}
	}
	unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
}

func (c *nfConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil
	}
	err := unix.Close(c.fd)
	c.fd = -1
	return err
}

// drain throws away what is in the socket.
func (c *nfConn) drain() {
	for {
		if _, _, err := unix.Recvfrom(c.fd, c.buffer, unix.MSG_DONTWAIT); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// nfMessage is one change or question of nf_tables.
type nfMessage struct {
	kind   uint8  // NFT_MSG_NEWTABLE and so on
	flags  uint16 // beside NLM_F_REQUEST
	family uint8
	attrs  attributes
	what   string // for errors: "the chain forward"
}

func (m *nfMessage) append(b []byte, seq uint32, flags uint16) []byte {
	return appendNF(b, unix.NFNL_SUBSYS_NFTABLES<<8|uint16(m.kind), m.flags|flags, seq, m.family, 0, m.attrs)
}

func appendNF(b []byte, kind, flags uint16, seq uint32, family uint8, resource uint16, attrs []byte) []byte {
	ne := binary.NativeEndian
	b = ne.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+4+len(attrs)))
	b = ne.AppendUint16(b, kind)
	b = ne.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = ne.AppendUint32(b, seq)
	b = ne.AppendUint32(b, 0) // our own port: the kernel knows it
	b = append(b, family, 0)  // struct nfgenmsg; version 0
	b = binary.BigEndian.AppendUint16(b, resource)
	return append(b, attrs...) // attributes are padded to four bytes
}

// nfError is what the kernel said about one message of a batch.
type nfError struct {
	Index int // of the message; -1: about the batch as a whole
	What  string
	Errno unix.Errno
}

func (e *nfError) Error() string {
	if e.What == "" {
		return e.Errno.Error()
	}
	return e.What + ": " + e.Errno.Error()
}

func (e *nfError) Unwrap() error { return e.Errno }

// nfErrors are what the kernel said about a batch, none of which was done. The first is the cause.
type nfErrors []*nfError

func (e nfErrors) Error() string {
	if len(e) > 1 {
		return fmt.Sprintf("%v (and %d more)", e[0], len(e)-1)
	}
	return e[0].Error()
}

func (e nfErrors) Unwrap() error { return e[0] }

// errBatchTooLarge is no error of the kernel: it says EMSGSIZE too, but for what one cannot see.
var errBatchTooLarge = fmt.Errorf("more than %d bytes in one batch: %w", nfMaxBatch, unix.EMSGSIZE)

// batch makes changes, all or none. With a generation other than 0, none are made if anybody has changed anything since
// (ERESTART). An error that the kernel gave is of type nfErrors.
func (c *nfConn) batch(generation uint32, messages ...nfMessage) error {
	if len(messages) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return os.ErrClosed
	}
	var begin attributes
	if generation != 0 {
		begin.u32(nfnlBatchGenID, generation)
	}
	first := c.seq + 1
	b := appendNF(nil, unix.NFNL_MSG_BATCH_BEGIN, 0, first, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, begin)
	for i := range messages {
		flags := uint16(0)
		if i == len(messages)-1 {
			flags = unix.NLM_F_ACK
		}
		b = messages[i].append(b, first+1+uint32(i), flags)
	}
	last := first + uint32(len(messages))
	b = appendNF(b, unix.NFNL_MSG_BATCH_END, 0, last+1, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	c.seq = last + 1
	if len(b) > nfMaxBatch {
		return errBatchTooLarge
	}
	c.drain()
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	var failed nfErrors
	acknowledged := false
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buffer, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS): // more errors than fit: the first ones are there
			continue
		case errors.Is(err, unix.EAGAIN):
			switch {
			case len(failed) > 0:
				return failed
			case !acknowledged:
				return fmt.Errorf("netfilter did not answer: %w", unix.ENOBUFS)
			}
			return nil
		case err != nil:
			return os.NewSyscallError("recvfrom", err)
		}
		eachNF(c.buffer[:n], func(m nfAnswer) {
			if m.kind != unix.NLMSG_ERROR || len(m.data) < 4 {
				return
			}
			errno := unix.Errno(-int32(binary.NativeEndian.Uint32(m.data)))
			i := int(int32(m.seq - first - 1))
			if errno == 0 {
				acknowledged = acknowledged || m.seq == last
			} else if i >= 0 && i < len(messages) {
				failed = append(failed, &nfError{i, messages[i].what, errno})
			} else {
				failed = append(nfErrors{{Index: -1, Errno: errno}}, failed...)
			}
		})
	}
}

// nfAnswer is a message of the kernel.
type nfAnswer struct {
	kind   uint16
	flags  uint16
	seq    uint32
	family uint8
	data   []byte // of NLMSG_ERROR: all; of others: what follows struct nfgenmsg
}

// eachNF calls f for each message in what the kernel sent in one go.
func eachNF(b []byte, f func(nfAnswer)) {
	ne := binary.NativeEndian
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(ne.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return
		}
		m := nfAnswer{kind: ne.Uint16(b[4:]), flags: ne.Uint16(b[6:]), seq: ne.Uint32(b[8:]), data: b[unix.NLMSG_HDRLEN:size]}
		if m.kind >= unix.NLMSG_MIN_TYPE && len(m.data) >= 4 {
			m.family, m.data = m.data[0], m.data[4:]
		}
		f(m)
		b = b[min(len(b), (size+3)&^3):]
	}
}

// ask calls f for each answer to a question; a dump may have many. It asks again when somebody changed what is asked for
// meanwhile, after it has called reset.
func (c *nfConn) ask(dump bool, question nfMessage, reset func(), f func(nfAnswer)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for tries := 0; ; tries++ {
		reset()
		again, err := c.askOnce(dump, question, f)
		if err != nil || !again || tries == 50 {
			return err
		}
	}
}

func (c *nfConn) askOnce(dump bool, question nfMessage, f func(nfAnswer)) (again bool, err error) {
	if c.fd < 0 {
		return false, os.ErrClosed
	}
	c.drain() // what is left of an answer that was given up
	c.seq++
	flags := uint16(unix.NLM_F_ACK)
	if dump {
		flags = unix.NLM_F_DUMP
	}
	if err := unix.Sendto(c.fd, question.append(nil, c.seq, flags), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, os.NewSyscallError("sendto", err)
	}
	for done := false; !done; {
		n, _, err := unix.Recvfrom(c.fd, c.buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return false, os.NewSyscallError("recvfrom", err)
		}
		var failed error
		eachNF(c.buffer[:n], func(m nfAnswer) {
			if m.seq != c.seq {
				return
			}
			again = again || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.kind {
			case unix.NLMSG_DONE:
				done = true
			case unix.NLMSG_ERROR:
				done = true
				if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(m.data))); errno != 0 {
					failed = &nfError{Index: -1, What: question.what, Errno: errno}
				}
			default:
				f(m)
			}
		})
		if errors.Is(failed, unix.EINTR) { // a dump that was interrupted
			return true, nil
		} else if failed != nil {
			return false, failed
		}
	}
	return again, nil
}

// generation is the number of the present state of nf_tables.
func (c *nfConn) generation() (uint32, error) {
	var id uint32
	err := c.ask(false, nfMessage{kind: unix.NFT_MSG_GETGEN}, func() {}, func(m nfAnswer) {
		eachAttribute(m.data, func(kind uint16, v []byte) {
			if kind == unix.NFTA_GEN_ID && len(v) == 4 {
				id = binary.BigEndian.Uint32(v)
			}
		})
	})
	return id, err
}

// retry does what depends on what it has read until nobody has changed that meanwhile. change gets the generation to pass
// to batch.
func (c *nfConn) retry(change func(generation uint32) error) error {
	for tries := 0; ; tries++ {
		g, err := c.generation()
		if err != nil {
			return err
		}
		if err = change(g); !errors.Is(err, unix.ERESTART) || tries == 100 {
			return err
		}
		time.Sleep(time.Duration(min(tries, 20)) * time.Millisecond)
	}
}

// attributes are netlink attributes: type, length and value, padded to four bytes. Numbers of nf_tables are big-endian.
type attributes []byte

func (a *attributes) bytes(kind uint16, v []byte) {
	*a = binary.NativeEndian.AppendUint16(*a, uint16(4+len(v)))
	*a = binary.NativeEndian.AppendUint16(*a, kind)
	*a = append(*a, v...)
	*a = append(*a, make([]byte, -len(v)&3)...)
}

func (a *attributes) str(kind uint16, s string) { a.bytes(kind, append([]byte(s), 0)) }

func (a *attributes) u32(kind uint16, v uint32) {
	a.bytes(kind, binary.BigEndian.AppendUint32(nil, v))
}

func (a *attributes) u64(kind uint16, v uint64) {
	a.bytes(kind, binary.BigEndian.AppendUint64(nil, v))
}

func (a *attributes) nest(kind uint16, fill func(*attributes)) {
	at := len(*a)
	a.bytes(kind|unix.NLA_F_NESTED, nil)
	fill(a)
	binary.NativeEndian.PutUint16((*a)[at:], uint16(len(*a)-at))
}

// eachAttribute calls f for each attribute.
func eachAttribute(b []byte, f func(kind uint16, v []byte)) {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:size])
		b = b[min(len(b), (size+3)&^3):]
	}
}
