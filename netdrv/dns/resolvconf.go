package dns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// Resolv is what a resolv.conf says. See resolv.conf(5).
type Resolv struct {
	// Servers are the name servers, in their order, with port 53.
	Servers []netip.AddrPort
	// Search are the domains that are tried after a name without enough dots.
	Search []string
	// Options are the resolver's options, such as "ndots:2".
	Options []string
}

// What a resolv.conf may have. A C library reads three servers.
const (
	maxResolvConf = 64 << 10 // bytes
	maxServers    = 16
	maxSearch     = 64
	maxOptions    = 64
)

// ErrTooLarge: a resolv.conf is longer than 64 kB.
var ErrTooLarge = errors.New("larger than any resolv.conf is")

// ParseResolvConf reads a resolv.conf. What makes no sense in it is passed over, as a C library does; of servers, domains
// and options the first 16, 64 and 64 count. The error matches ErrTooLarge, or is the reader's.
func ParseResolvConf(r io.Reader) (Resolv, error) {
	limited := &io.LimitedReader{R: r, N: maxResolvConf + 1}
	lines := bufio.NewScanner(limited)
	lines.Buffer(nil, maxResolvConf+2)
	var c Resolv
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if i := slices.IndexFunc(fields, func(f string) bool { return f[0] == '#' || f[0] == ';' }); i >= 0 {
			fields = fields[:i]
		}
		if len(fields) < 2 {
			continue
		}
		switch values := fields[1:]; fields[0] {
		case "nameserver":
			addr, err := netip.ParseAddr(values[0])
			if server := netip.AddrPortFrom(addr.Unmap(), 53); err == nil && len(c.Servers) < maxServers && !slices.Contains(c.Servers, server) {
				c.Servers = append(c.Servers, server)
			}
		case "domain", "search": // the last one counts
			if fields[0] == "domain" {
				values = values[:1]
			}
			c.Search = slices.Clone(values[:min(len(values), maxSearch)])
		case "options":
			c.Options = append(c.Options, values[:min(len(values), maxOptions-len(c.Options))]...)
		}
	}
	if limited.N == 0 {
		return Resolv{}, fmt.Errorf("%w: %d bytes", ErrTooLarge, maxResolvConf)
	}
	return c, lines.Err()
}

// ReadResolvConf is ParseResolvConf of a file.
func ReadResolvConf(path string) (Resolv, error) {
	f, err := os.Open(path)
	if err != nil {
		return Resolv{}, err
	}
	defer f.Close()
	c, err := ParseResolvConf(f)
	if err != nil {
		return Resolv{}, fmt.Errorf("read %s: %w", path, err)
	}
	return c, nil
}

// String is the text of a resolv.conf. Ports other than 53 have no place in it: such a server is left out.
func (c Resolv) String() string {
	var b strings.Builder
	for _, s := range c.Servers {
		if s.Port() == 53 {
			fmt.Fprintf(&b, "nameserver %s\n", s.Addr())
		}
	}
	if len(c.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.Search, " "))
	}
	if len(c.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.Options, " "))
	}
	return b.String()
}

const (
	hostResolvConf = "/etc/resolv.conf"
	// systemdResolvConf has the servers that systemd-resolved asks, where the other file has systemd-resolved.
	systemdResolvConf = "/run/systemd/resolve/resolv.conf"
)

// HostResolvers returns what /etc/resolv.conf says, for who asks from the host's network namespace: a server on the
// host's loopback, such as systemd-resolved on 127.0.0.53, knows more than those behind it. A file that does not exist says
// nothing.
func HostResolvers() (Resolv, error) { return readExisting(hostResolvConf) }

// ContainerResolvers returns what /etc/resolv.conf says, for who asks from another network namespace, where the host's
// loopback cannot be reached: without the servers there and those whose address has a zone, which is an interface of
// the host. Where nothing but systemd-resolved is left out, the servers that it asks take its place. There may be none.
func ContainerResolvers() (Resolv, error) {
	return containerResolvers(hostResolvConf, systemdResolvConf)
}

func containerResolvers(host, systemd string) (Resolv, error) {
	c, err := readExisting(host)
	if err != nil {
		return Resolv{}, err
	}
	loopback := len(c.Servers) > 0
	for _, s := range c.Servers {
		loopback = loopback && s.Addr().IsLoopback()
	}
	if loopback {
		behind, err := readExisting(systemd)
		if err != nil {
			return Resolv{}, err
		}
		if len(behind.Servers) > 0 {
			c = behind
		}
	}
	c.Servers = slices.DeleteFunc(c.Servers, func(s netip.AddrPort) bool {
		a := s.Addr()
		return a.IsLoopback() || a.IsUnspecified() || a.Zone() != "" || a.Is6() && a.IsLinkLocalUnicast()
	})
	return c, nil
}

func readExisting(path string) (Resolv, error) {
	c, err := ReadResolvConf(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Resolv{}, nil
	}
	return c, err
}
