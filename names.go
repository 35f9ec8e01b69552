package coracle

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// The names of a network are directories, networks/<id>/names/<name>, with a symbolic link for each endpoint that has the
// name; the link's target is "ADDRESS4,ADDRESS6", either of which may be empty. So a look-up is a few system calls, sees
// what any program has changed, and nothing is ever stale.

// maxLabel is DNS's bound for a label, RFC 1035 section 2.3.4; longer container names are found by their id only.
const maxLabel = 63

func validDNSName(name string) bool {
	return name != "" && len(name) <= maxLabel && name[0] != '.' && !strings.ContainsAny(name, "/\x00 \n\t")
}

func (e *Engine) nameDir(networkID, name string) string {
	return filepath.Join(e.networkDir(networkID), "names", name)
}

// addNames makes the names of an endpoint lead to it.
func (e *Engine) addNames(networkID string, ep *endpointState) error {
	v4, v6 := ep.addresses()
	target := ","
	if v4.IsValid() {
		target = v4.String() + target
	}
	if v6.IsValid() {
		target += v6.String()
	}
	for _, name := range ep.Names {
		if !validDNSName(name) {
			continue
		}
		dir := e.nameDir(networkID, name)
		for try := 0; ; try++ {
			err := os.MkdirAll(dir, 0o700)
			if err == nil {
				err = os.Symlink(target, filepath.Join(dir, ep.ID))
			}
			if err == nil || errors.Is(err, fs.ErrExist) {
				break
			}
			if !errors.Is(err, fs.ErrNotExist) || try > 100 { // else the last one who had the name was just removing it
				return err
			}
		}
	}
	return nil
}

// removeNames makes them lead nowhere.
func (e *Engine) removeNames(networkID string, ep *endpointState) {
	for _, name := range ep.Names {
		if validDNSName(name) {
			dir := e.nameDir(networkID, name)
			os.Remove(filepath.Join(dir, ep.ID))
			os.Remove(dir) // fails while others have the name
		}
	}
}

// lookUp returns the addresses of all endpoints that have the name, in no particular order.
func (e *Engine) lookUp(networkID, name string) (v4, v6 []netip.Addr, found bool) {
	name = strings.ToLower(name)
	if !validDNSName(name) {
		return nil, nil, false
	}
	dir := e.nameDir(networkID, name)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, false
	}
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if err != nil {
			continue // just removed
		}
		found = true
		a, b, _ := strings.Cut(target, ",")
		if addr, err := netip.ParseAddr(a); err == nil {
			v4 = append(v4, addr)
		}
		if addr, err := netip.ParseAddr(b); err == nil {
			v6 = append(v6, addr)
		}
	}
	return v4, v6, found
}

// nameAt returns the name of the container that has the address in the network.
func (e *Engine) nameAt(networkID string, addr netip.Addr) (string, bool) {
	id, err := os.Readlink(e.addressFile(networkID, addr))
	if err != nil {
		return "", false
	}
	ep, err := e.readEndpoint(networkID, id)
	if err != nil || ep.over || !ep.Connected {
		return "", false
	}
	return ep.ContainerName, true
}

// A zone is what a container can resolve: the names of its networks, in the order in which it is connected to them, each
// also as "name.network".
type zone struct {
	eng      *Engine
	networks func() []namedNetwork
}

type namedNetwork struct{ id, name string }

// private reports whether an address is of one of the networks of a container.
func (e *Engine) private(id string) func(netip.Addr) bool {
	return func(a netip.Addr) bool {
		for _, n := range e.resolvable(id) {
			st, err := e.readNetwork(n.id)
			if err != nil {
				continue
			}
			for _, s := range st.Subnets {
				if s.Prefix.Contains(a.Unmap()) {
					return true
				}
			}
		}
		return false
	}
}

// Addresses implements dns.Zone.
func (z *zone) Addresses(name string) (v4, v6 []netip.Addr, found bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	for _, n := range z.networks() {
		for _, candidate := range []string{name, strings.TrimSuffix(name, "."+strings.ToLower(n.name))} {
			if a, b, ok := z.eng.lookUp(n.id, candidate); ok {
				return a, b, true
			}
			if candidate == name && !strings.HasSuffix(name, "."+strings.ToLower(n.name)) {
				break
			}
		}
	}
	return nil, nil, false
}

// Name implements dns.Zone.
func (z *zone) Name(addr netip.Addr) (string, bool) {
	for _, n := range z.networks() {
		if name, ok := z.eng.nameAt(n.id, addr.Unmap()); ok {
			return name + "." + n.name, true
		}
	}
	return "", false
}
