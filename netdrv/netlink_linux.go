package netdrv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A conn is a socket of NETLINK_ROUTE. It belongs to the namespace of the thread that made it, whoever uses it. Of the library's
// handle it differs in three things: several requests go in one system call, the kernel's words are in the errors, and the
// buffers for answers are used again.
type conn struct {
	mu  sync.Mutex
	fd  int // -1: closed
	seq uint32
}

// answerBuffers are of a size that no answer exceeds: the kernel sends lists in parts of 32 KiB at most.
var answerBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// dial makes a socket in the calling thread's namespace.
func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err == nil {
		if err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return nil, kernelError("open a netlink socket", "", os.NewSyscallError("socket", err))
	}
	// What the kernel does not know, it does not do: words in errors (4.12), errors without the request (4.2), filters that count (4.20).
	for _, option := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK} {
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1)
	}
	return &conn{fd: fd}, nil
}

func (c *conn) Close() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// request begins a request. Without flags it changes something.
func request(kind, flags int, data ...nl.NetlinkRequestData) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	r.Data = data
	return r
}

// do sends requests at once and returns the first error. Those that follow a refused one are carried out all the same.
func (c *conn) do(requests ...*nl.NetlinkRequest) error {
	_, err := c.exchange(requests...)
	return err
}

// get sends one request for one thing.
func (c *conn) get(r *nl.NetlinkRequest) ([]byte, error) {
	answers, err := c.exchange(r)
	if err == nil && len(answers) == 0 {
		err = unix.ENODEV
	}
	if err != nil {
		return nil, err
	}
	return answers[0], nil
}

// dump sends one request for a list, again until no other program changed it while the kernel told it.
func (c *conn) dump(kind int, data ...nl.NetlinkRequestData) ([][]byte, error) {
	return again(func() ([][]byte, error) {
		r := nl.NewNetlinkRequest(kind, unix.NLM_F_DUMP)
		r.Data = data
		return c.exchange(r)
	})
}

// exchange sends requests and collects what they are answered with.
func (c *conn) exchange(requests ...*nl.NetlinkRequest) (answers [][]byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil, os.ErrClosed
	}
	if len(requests) == 0 {
		return nil, nil
	}
	var message []byte
	first := c.seq + 1
	for _, r := range requests {
		c.seq++
		r.Seq = c.seq
		message = append(message, r.Serialize()...)
	}
	for {
		sendErr := unix.Sendto(c.fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if sendErr == nil {
			break
		}
		if sendErr != unix.EINTR {
			return nil, os.NewSyscallError("sendto", sendErr)
		}
	}
	buffer := answerBuffers.Get().(*[64 << 10]byte)
	defer answerBuffers.Put(buffer)
	interrupted := false
	for left := len(requests); left > 0; {
		n, _, recvErr := unix.Recvfrom(c.fd, buffer[:], 0)
		if recvErr == unix.EINTR {
			continue
		}
		if recvErr != nil {
			return nil, os.NewSyscallError("recvfrom", recvErr)
		}
		for b := buffer[:n]; len(b) >= unix.SizeofNlMsghdr; {
			length := int(binary.NativeEndian.Uint32(b))
			kind, flags, seq := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:])
			if length < unix.SizeofNlMsghdr || length > len(b) {
				return nil, errors.New("the kernel sent a netlink message of an impossible length")
			}
			body := b[unix.SizeofNlMsghdr:length]
			b = b[min((length+3)&^3, len(b)):]
			if seq-first >= uint32(len(requests)) {
				continue // an answer to somebody who did not wait for it
			}
			interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
			switch kind {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				left--
				if e := refusal(body, flags); e != nil && err == nil {
					err = e
				}
			default:
				answers = append(answers, bytes.Clone(body))
			}
		}
	}
	if err == nil && interrupted {
		err = netlink.ErrDumpInterrupted
	}
	return answers, err
}

// refusal reads an acknowledgement: an errno, and the kernel's words if there are any (struct nlmsgerr).
func refusal(body []byte, flags uint16) error {
	if len(body) < 4 {
		return nil
	}
	errno := -int32(binary.NativeEndian.Uint32(body))
	if errno == 0 {
		return nil
	}
	if flags&unix.NLM_F_ACK_TLVS != 0 && len(body) > 4+unix.SizeofNlMsghdr {
		for attrs := body[4+unix.SizeofNlMsghdr:]; len(attrs) >= 4; {
			n, kind := int(binary.NativeEndian.Uint16(attrs)), binary.NativeEndian.Uint16(attrs[2:])
			if n < 4 || n > len(attrs) {
				break
			}
			if kind == unix.NLMSGERR_ATTR_MSG {
				return fmt.Errorf("%w: %s", unix.Errno(errno), unix.ByteSliceToString(attrs[4:n]))
			}
			attrs = attrs[min((n+3)&^3, len(attrs)):]
		}
	}
	return unix.Errno(errno)
}

// again asks until no other program changed the answer while the kernel gave it.
func again[T any](ask func() (T, error)) (T, error) {
	for tries := 0; ; tries++ {
		v, err := ask()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || tries == 50 {
			return v, err
		}
	}
}

// attr is an attribute of a request.
func attr(kind int, data []byte) *nl.RtAttr { return nl.NewRtAttr(kind, data) }

// ifinfo is the header of a request about an interface.
func ifinfo(index int, flags uint32) *nl.IfInfomsg {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index, m.Flags, m.Change = int32(index), flags, flags
	return m
}

// skipStats is RTEXT_FILTER_SKIP_STATS: half of what there is to say of an interface is how many packets it has seen.
const skipStats = 1 << 3

// link finds an interface by name. An error for one that does not exist matches unix.ENODEV.
func (c *conn) link(name string) (netlink.Link, error) {
	return c.linkBy(0, attr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)), attr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
}

// linkBy finds an interface by its number, or by attributes where that is 0.
func (c *conn) linkBy(index int, by ...nl.NetlinkRequestData) (netlink.Link, error) {
	b, err := c.get(request(unix.RTM_GETLINK, 0, append([]nl.NetlinkRequestData{ifinfo(index, 0)}, by...)...))
	if err != nil {
		return nil, err
	}
	return netlink.LinkDeserialize(nil, b)
}

// links lists interfaces of a kind ("": all), and if master is not 0 its ports only.
func (c *conn) links(kind string, master int) ([]netlink.Link, error) {
	data := []nl.NetlinkRequestData{ifinfo(0, 0), attr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats))}
	if master != 0 {
		data = append(data, attr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master))))
	}
	if kind != "" {
		info := attr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(kind))
		data = append(data, info)
	}
	answers, err := c.dump(unix.RTM_GETLINK, data...)
	if err != nil {
		return nil, err
	}
	var links []netlink.Link
	for _, b := range answers {
		l, err := netlink.LinkDeserialize(nil, b)
		if err != nil {
			return nil, err
		}
		// A kernel that does not filter tells of all.
		if (kind == "" || l.Type() == kind) && (master == 0 || l.Attrs().MasterIndex == master) {
			links = append(links, l)
		}
	}
	return links, nil
}

// removeLink removes an interface, and reports whether there was one.
func (c *conn) removeLink(name string) (bool, error) {
	err := c.do(request(unix.RTM_DELLINK, 0, ifinfo(0, 0), attr(unix.IFLA_IFNAME, nl.ZeroTerminated(name))))
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	return err == nil, err
}

// addAddress is a request to give an interface an address. IPv6 ones are used at once, without looking for duplicates.
func addAddress(index int, a netip.Prefix) *nl.NetlinkRequest {
	family := unix.AF_INET
	if a.Addr().Is6() {
		family = unix.AF_INET6
	}
	m := nl.NewIfAddrmsg(family)
	m.Index, m.Prefixlen = uint32(index), uint8(a.Bits())
	ip := a.Addr().AsSlice()
	r := request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, m, attr(unix.IFA_LOCAL, ip), attr(unix.IFA_ADDRESS, ip))
	if family == unix.AF_INET6 {
		m.Flags = unix.IFA_F_NODAD
	} else if a.Bits() < 31 {
		last := lastAddr(a)
		r.AddData(attr(unix.IFA_BROADCAST, last.AsSlice()))
	}
	return r
}

// addresses lists those of an interface, or of all where index is 0.
func (c *conn) addresses(index int) ([]netip.Prefix, error) {
	m := nl.NewIfAddrmsg(unix.AF_UNSPEC)
	m.Index = uint32(index)
	answers, err := c.dump(unix.RTM_GETADDR, m)
	if err != nil {
		return nil, err
	}
	var list []netip.Prefix
	for _, b := range answers {
		if len(b) < unix.SizeofIfAddrmsg || index != 0 && int(binary.NativeEndian.Uint32(b[4:])) != index {
			continue // a kernel that does not filter
		}
		attrs, err := nl.ParseRouteAttr(b[unix.SizeofIfAddrmsg:])
		if err != nil {
			return nil, err
		}
		var found, local netip.Addr
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.IFA_ADDRESS:
				found, _ = netip.AddrFromSlice(a.Value)
			case unix.IFA_LOCAL:
				local, _ = netip.AddrFromSlice(a.Value)
			}
		}
		if local.IsValid() {
			found = local // of an interface with a peer the address is the peer's
		}
		list = append(list, netip.PrefixFrom(found, int(b[1])))
	}
	return list, nil
}

// joined reports whether an interface is in an IPv6 multicast group.
func (c *conn) joined(index int, group netip.Addr) (bool, error) {
	m := nl.NewIfAddrmsg(unix.AF_INET6)
	answers, err := c.dump(unix.RTM_GETMULTICAST, m)
	if err != nil {
		return false, err
	}
	for _, b := range answers {
		if len(b) < unix.SizeofIfAddrmsg || int(binary.NativeEndian.Uint32(b[4:])) != index {
			continue
		}
		attrs, err := nl.ParseRouteAttr(b[unix.SizeofIfAddrmsg:])
		if err != nil {
			return false, err
		}
		for _, a := range attrs {
			if found, _ := netip.AddrFromSlice(a.Value); a.Attr.Type == unix.IFA_MULTICAST && found == group {
				return true, nil
			}
		}
	}
	return false, nil
}

// defaultRoute is a request to make the default route of a family: by a gateway, or without one out of the interface.
func defaultRoute(index int, is4 bool, gateway netip.Addr, onlink bool, flags int) *nl.NetlinkRequest {
	m := nl.NewRtMsg()
	m.Family, m.Table, m.Protocol = unix.AF_INET6, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT
	if is4 {
		m.Family = unix.AF_INET
	}
	m.Scope = unix.RT_SCOPE_UNIVERSE
	r := request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|flags, m)
	if gateway.IsValid() {
		r.AddData(attr(unix.RTA_GATEWAY, gateway.AsSlice()))
		if onlink {
			m.Flags |= unix.RTNH_F_ONLINK
		}
	} else if is4 {
		m.Scope = unix.RT_SCOPE_LINK
	}
	r.AddData(attr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	return r
}

// kernelError says what was tried on which interface, and what to do where that is known.
func kernelError(op, iface string, err error) error {
	e := &Error{Op: op, Interface: iface, Err: err}
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		e.Fix = "run as root, or with CAP_NET_ADMIN"
	case errors.Is(err, unix.ENFILE), errors.Is(err, unix.EMFILE):
		e.Fix = "raise the limit of open files"
	}
	return e
}
