package coracle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/internal/filelock"
	"github.com/coracle-dev/coracle/netdrv/dns"
)

// networkFiles writes /etc/hosts, /etc/hostname and /etc/resolv.conf of the container and returns their mounts.
func (e *Engine) networkFiles(st *containerState, hostname string, net *connected) ([]specs.Mount, error) {
	dir := e.containerDir(st.ID)
	var hosts, resolv string
	var err error
	if net != nil && net.of != "" { // of another container, as its network
		hosts, resolv, err = e.filesOf(net.of)
	} else {
		if hosts, err = e.hostsFile(st, hostname, net.connections()); err == nil {
			resolv, err = resolvConf(&st.Spec, net)
		}
	}
	if err != nil {
		return nil, err
	}
	var mounts []specs.Mount
	for _, f := range []struct{ name, content string }{{"hosts", hosts}, {"hostname", hostname + "\n"}, {"resolv.conf", resolv}} {
		file := path.Join(dir, f.name)
		if err := os.WriteFile(file, []byte(f.content), 0o644); err != nil {
			return nil, err
		}
		mounts = append(mounts, specs.Mount{Destination: "/etc/" + f.name, Type: "bind", Source: file, Options: []string{"bind", "rprivate"}})
	}
	return mounts, nil
}

// filesOf reads what another container has.
func (e *Engine) filesOf(id string) (hosts, resolv string, err error) {
	for name, content := range map[string]*string{"hosts": &hosts, "resolv.conf": &resolv} {
		b, err := os.ReadFile(filepath.Join(e.containerDir(id), name))
		if err != nil {
			return "", "", err
		}
		*content = string(b)
	}
	return hosts, resolv, nil
}

// hostsFile is /etc/hosts. A detached container, whose name server would end with this program, finds others by it; see
// refreshHosts.
func (e *Engine) hostsFile(st *containerState, hostname string, list []connection) (string, error) {
	s := &st.Spec
	var b strings.Builder
	if mode, _ := s.networkMode(); mode == NetworkHost {
		content, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		b.Write(content)
		if n := len(content); n > 0 && content[n-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
		if hostname != "" && len(list) == 0 {
			// Without an address of its own the container finds itself on its loopback interface.
			fmt.Fprintf(&b, "127.0.1.1\t%s\n", hostname)
		}
		for _, one := range list {
			for _, p := range one.state.Endpoint.Addresses {
				if hostname != "" {
					fmt.Fprintf(&b, "%v\t%s\n", p.Addr(), hostname)
				}
			}
		}
	}
	for _, h := range s.ExtraHosts {
		name, addr, ok := strings.Cut(h, ":")
		if !ok || name == "" || addr == "" || strings.ContainsAny(h, "\n \t#") {
			return "", fmt.Errorf("%w: ExtraHosts: %q is not \"name:address\"", ErrInvalid, h)
		}
		if addr == "host-gateway" {
			i := slices.IndexFunc(list, func(one connection) bool { return one.network.gateway(true).IsValid() })
			if i < 0 {
				return "", fmt.Errorf("%w: ExtraHosts: %q: the container is on no network with a gateway", ErrInvalid, h)
			}
			addr = list[i].network.gateway(true).String()
		}
		fmt.Fprintf(&b, "%s\t%s\n", addr, name)
	}
	if !s.Detached {
		return b.String(), nil
	}
	for _, one := range list {
		if one.network.Name == NetworkBridge {
			continue
		}
		others, err := e.endpoints(one.network.ID)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		slices.SortFunc(others, func(x, y *endpointState) int { return strings.Compare(x.ID, y.ID) })
		for _, ep := range others {
			if ep.Container == st.ID || !ep.Connected || ep.over || len(ep.Names) == 0 {
				continue
			}
			for _, p := range ep.Endpoint.Addresses {
				fmt.Fprintf(&b, "%v\t%s\n", p.Addr(), strings.Join(ep.Names, " "))
			}
		}
	}
	return b.String(), nil
}

// followersDir is where the detached containers of a network are, which have the names of others in their hosts files:
// symbolic links from endpoint to container.
func (e *Engine) followersDir(networkID string) string {
	return filepath.Join(e.networkDir(networkID), "followers")
}

// addFollower notes that the container of an endpoint reads names from its hosts file.
func (e *Engine) addFollower(networkID string, ep *endpointState) error {
	if !ep.Detached {
		return nil
	}
	if err := os.MkdirAll(e.followersDir(networkID), 0o700); err != nil {
		return err
	}
	return os.Symlink(ep.Container, filepath.Join(e.followersDir(networkID), ep.ID))
}

func (e *Engine) removeFollower(networkID string, ep *endpointState) {
	if ep.Detached {
		os.Remove(filepath.Join(e.followersDir(networkID), ep.ID))
	}
}

// refreshHosts writes the hosts files of the detached containers of a network again, after one has come or gone. They are
// written in place: the container has the file mounted.
func (e *Engine) refreshHosts(ctx context.Context, networkID string) {
	entries, err := os.ReadDir(e.followersDir(networkID))
	if err != nil {
		return // none
	}
	for _, entry := range entries {
		id, err := os.Readlink(filepath.Join(e.followersDir(networkID), entry.Name()))
		if err != nil || !validID(id) {
			continue
		}
		if err := e.rewriteHosts(ctx, id); err != nil && !errors.Is(err, fs.ErrNotExist) {
			e.log.Warn("write the hosts file of a container again", "id", id, "error", err)
		}
	}
}

// rewriteWait bounds the wait for others who write the same file.
const rewriteWait = 5 * time.Second

func (e *Engine) rewriteHosts(ctx context.Context, id string) error {
	f, err := os.OpenFile(filepath.Join(e.containerDir(id), "hosts"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(ctx, rewriteWait)
	defer cancel()
	if err := filelock.Lock(ctx, f); err != nil { // what is read after this is newer than what others have written
		return err
	}
	st, err := e.readState(id)
	if err != nil {
		return err
	}
	list, err := e.endpointsOf(id)
	if err != nil {
		return err
	}
	hostname, err := os.ReadFile(filepath.Join(e.containerDir(id), "hostname"))
	if err != nil {
		return err
	}
	text, err := e.hostsFile(st, strings.TrimSpace(string(hostname)), list)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(text)))
}

// resolvConf is /etc/resolv.conf: the container's own name server, or those of the host that it can reach.
func resolvConf(s *ContainerSpec, net *connected) (string, error) {
	var b strings.Builder
	line := func(keyword string, values ...string) error {
		for _, v := range values {
			if v == "" || strings.ContainsAny(v, "\n \t") {
				return fmt.Errorf("%w: DNS: %q does not belong in resolv.conf", ErrInvalid, v)
			}
		}
		if len(values) > 0 {
			fmt.Fprintf(&b, "%s %s\n", keyword, strings.Join(values, " "))
		}
		return nil
	}
	serving := net != nil && net.resolver != nil
	if !serving && (net == nil || len(net.list) == 0) && s.DNS == nil && s.DNSSearch == nil && s.DNSOptions == nil {
		content, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		return string(content), nil
	}
	host, err := dns.ContainerResolvers()
	if err != nil {
		return "", err
	}
	servers, search, options := s.DNS, s.DNSSearch, s.DNSOptions
	switch {
	case serving:
		servers = []string{resolverAddr}
	case servers == nil && net != nil && len(net.list) > 0:
		for _, a := range host.Servers {
			servers = append(servers, a.Addr().String())
		}
	}
	if search == nil && net != nil {
		search = host.Search
	}
	if options == nil && net != nil {
		options = host.Options
	}
	for _, server := range servers {
		if err := line("nameserver", server); err != nil {
			return "", err
		}
	}
	if err := errors.Join(line("search", search...), line("options", options...)); err != nil {
		return "", err
	}
	return b.String(), nil
}

// upstreamsOf are the servers that are asked for what no container is called.
func upstreamsOf(s *ContainerSpec) ([]netip.AddrPort, error) {
	if s.DNS == nil {
		host, err := dns.HostResolvers()
		return host.Servers, err
	}
	var list []netip.AddrPort
	for _, server := range s.DNS {
		a, err := netip.ParseAddr(server)
		if err != nil {
			return nil, fmt.Errorf("%w: DNS: %q is no address", ErrInvalid, server)
		}
		list = append(list, netip.AddrPortFrom(a, 53))
	}
	return list, nil
}
