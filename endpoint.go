package coracle

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/filelock"
	"github.com/coracle-dev/coracle/internal/lockorder"
	"github.com/coracle-dev/coracle/internal/statefile"
	"github.com/coracle-dev/coracle/netdrv"
)

// endpointState is networks/<id>/endpoints/<eid>: one start of a container in one network. When the container has ended it
// is renamed to <eid>.over; it goes when the kernel has removed the interface, and its addresses with it.
type endpointState struct {
	Version       int
	ID            string // 10 hexadecimal digits
	Container     string // id
	ContainerName string // at that time
	Owner         string // the engine that made it
	Runs          string // the engine that an attached container ends with, if that is another one
	Detached      bool   // the container outlives the engine
	Connected     bool   // the interface is in the container
	Endpoint      netdrv.Endpoint
	Names         []string
	Aliases       []string
	Ports         []PublishedPort

	over bool // by its file's name
}

const (
	endpointIDLength = 10
	overSuffix       = ".over"
)

func (ep *endpointState) info(st *networkState) EndpointInfo {
	return EndpointInfo{
		Network: st.Name, NetworkID: st.ID, Container: ep.ContainerName, Interface: ep.Endpoint.Interface, HostInterface: ep.Endpoint.HostInterface,
		MAC: ep.Endpoint.MAC.String(), Addresses: ep.Endpoint.Addresses, Aliases: ep.Aliases,
	}
}

// addresses returns the endpoint's address of each family, or the zero Addr.
func (ep *endpointState) addresses() (v4, v6 netip.Addr) {
	for _, p := range ep.Endpoint.Addresses {
		if p.Addr().Is4() {
			v4 = p.Addr()
		} else {
			v6 = p.Addr()
		}
	}
	return v4, v6
}

// lockNetwork locks the network against everybody who makes an endpoint, brings it up or takes it down. The error matches
// fs.ErrNotExist if it was removed.
func (e *Engine) lockNetwork(ctx context.Context, id string) (*networkState, func(), error) {
	return e.lockNetworkAs(ctx, id, filelock.Lock)
}

func (e *Engine) lockNetworkAs(ctx context.Context, id string, how func(context.Context, *os.File) error) (*networkState, func(), error) {
	dir, err := os.Open(e.networkDir(id))
	if err != nil {
		return nil, nil, err
	}
	if err := how(ctx, dir); err != nil {
		dir.Close()
		return nil, nil, err
	}
	released := lockorder.Taken(lockorder.Network, id)
	unlock := func() {
		released()
		dir.Close()
	}
	st, err := e.readNetwork(id)
	if err == nil && !sameFile(e.networkDir(id), dir) {
		err = fs.ErrNotExist
	}
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return st, unlock, nil
}

// newEndpoint takes addresses for a container that is being started, or runs attached to the engine that is named, and notes
// all that has to be freed again.
func (e *Engine) newEndpoint(ctx context.Context, networkID string, c *containerState, runs string, a Attachment) (*endpointState, *networkState, error) {
	st, unlock, err := e.lockNetworkAs(ctx, networkID, filelock.RLock)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	ep := &endpointState{
		Version: stateVersion, ID: newID(endpointIDLength / 2), Container: c.ID, ContainerName: c.Name, Owner: e.owner.id, Runs: runs,
		Detached: c.Spec.Detached, Aliases: a.Aliases, Names: endpointNames(c, a),
	}
	ep.Endpoint = netdrv.Endpoint{ID: c.ID, HostInterface: "corv" + ep.ID, MTU: st.Spec.MTU}
	if ep.Endpoint.MAC, err = hardwareAddr(a.MAC, st, ep); err != nil {
		return nil, nil, err
	}
	if err := e.writeEndpoint(st.ID, ep); err != nil {
		return nil, nil, err
	}
	crashpoint.At("network: endpoint noted")
	if err := e.takeAddresses(ctx, st, ep, a); err != nil {
		return nil, nil, errors.Join(err, e.freeEndpoint(st.ID, ep))
	}
	ep.settleMAC()
	crashpoint.At("network: addresses taken")
	return ep, st, nil
}

// endpointNames are the names under which others on the network find the container, in lower case.
func endpointNames(c *containerState, a Attachment) []string {
	names := []string{strings.ToLower(c.Name), c.ID[:12]}
	names = append(names, a.Aliases...)
	if c.Spec.Hostname != "" {
		names = append(names, c.Spec.Hostname)
	}
	for i := range names {
		names[i] = strings.ToLower(names[i])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// takeAddresses takes an address of each subnet.
func (e *Engine) takeAddresses(ctx context.Context, st *networkState, ep *endpointState, a Attachment) error {
	if err := st.checkWanted(a); err != nil {
		return err
	}
	for _, s := range st.Subnets {
		wanted := a.IPv4
		if s.Prefix.Addr().Is6() {
			wanted = a.IPv6
		}
		var addr netip.Addr
		var err error
		if wanted.IsValid() {
			addr, err = wanted, e.takeWanted(ctx, st, s, ep, wanted)
		} else {
			addr, err = e.takeFree(st, s, ep)
		}
		if err != nil {
			return err
		}
		ep.Endpoint.Addresses = append(ep.Endpoint.Addresses, netip.PrefixFrom(addr, s.Prefix.Bits()))
	}
	return nil
}

// checkWanted looks whether the network has the addresses that are asked for.
func (st *networkState) checkWanted(a Attachment) error {
	for _, wanted := range []netip.Addr{a.IPv4, a.IPv6} {
		if wanted.IsValid() && !slices.ContainsFunc(st.Subnets, func(s Subnet) bool { return s.Prefix.Contains(wanted) }) {
			return fmt.Errorf("%w: the address %v is not in a subnet of the network %q", ErrInvalid, wanted, st.Name)
		}
	}
	return nil
}

func (e *Engine) addressFile(networkID string, addr netip.Addr) string {
	return filepath.Join(e.networkDir(networkID), "addresses", addr.String())
}

// takeWanted takes the address that the spec asks for. One that the container itself had until just now is waited for.
func (e *Engine) takeWanted(ctx context.Context, st *networkState, s Subnet, ep *endpointState, addr netip.Addr) error {
	if !usable(s.Prefix, addr) || addr == s.Gateway {
		return fmt.Errorf("%w: the address %v cannot be a container's in %v of the network %q", ErrInvalid, addr, s.Prefix, st.Name)
	}
	for {
		err := os.Symlink(ep.ID, e.addressFile(st.ID, addr))
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		id, err := os.Readlink(e.addressFile(st.ID, addr))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		switch holder, err := e.readEndpoint(st.ID, id); {
		case errors.Is(err, fs.ErrNotExist): // freed meanwhile, or forgotten by who was killed
			if err := e.freeAddress(st.ID, addr.String(), id); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		case !e.endpointOver(holder):
			return fmt.Errorf("%w: the address %v is the container %q's", ErrInUse, addr, holder.ContainerName)
		case !e.beingFreed(holder):
			if err := e.reclaim(ctx, st, holder); err != nil {
				return err
			}
			continue
		}
		if !sleep(ctx, 2*time.Millisecond) {
			return fmt.Errorf("wait for the address %v: %w", addr, context.Cause(ctx))
		}
	}
}

// maxAddressTries bounds the search for a free address in a huge subnet.
const maxAddressTries = 1 << 17

// takeFree takes an address that nobody has, beginning where the last search of this engine has ended.
func (e *Engine) takeFree(st *networkState, s Subnet, ep *endpointState) (netip.Addr, error) {
	within := s.Prefix
	if s.Range.IsValid() {
		within = s.Range
	}
	key := st.ID + s.Prefix.String()
	first := within.Addr()
	addr := e.nets.hint(key)
	if !within.Contains(addr) {
		addr = first
	}
	start, wrapped := addr, false
	for range maxAddressTries {
		if usable(s.Prefix, addr) && addr != s.Gateway {
			err := os.Symlink(ep.ID, e.addressFile(st.ID, addr))
			if err == nil {
				e.nets.setHint(key, addr.Next())
				return addr, nil
			}
			if !errors.Is(err, fs.ErrExist) {
				return netip.Addr{}, err
			}
		}
		if addr = addr.Next(); !within.Contains(addr) {
			addr, wrapped = first, true
		}
		if wrapped && addr == start {
			break
		}
	}
	return netip.Addr{}, fmt.Errorf("%w: no address of %v is free: connect fewer containers, or make a network with a larger subnet", ErrInUse, within)
}

// usable reports whether an address can be that of a host: neither the network's own nor the broadcast address.
func usable(p netip.Prefix, a netip.Addr) bool {
	if !p.Contains(a) || a == p.Masked().Addr() {
		return false
	}
	return !a.Is4() || p.Contains(a.Next()) // the last address of IPv4 is for all
}

// hardwareAddr is the MAC of the spec, or a random one where there is no IPv4; else settleMAC knows it later.
func hardwareAddr(wanted string, st *networkState, ep *endpointState) (net.HardwareAddr, error) {
	if wanted != "" {
		mac, err := net.ParseMAC(wanted)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 || slices.Max(mac) == 0 {
			return nil, fmt.Errorf("%w: %q is no MAC address of one interface", ErrInvalid, wanted)
		}
		return mac, nil
	}
	if st.gateway(true).IsValid() {
		return nil, nil
	}
	mac := net.HardwareAddr{0x02, 0x42, 0, 0, 0, 0}
	rand.Read(mac[1:])
	return mac, nil
}

// settleMAC makes a MAC of the IPv4 address, so that caches of those who have known the address stay right.
func (ep *endpointState) settleMAC() {
	if v4, _ := ep.addresses(); ep.Endpoint.MAC == nil && v4.IsValid() {
		a := v4.As4()
		ep.Endpoint.MAC = append(net.HardwareAddr{0x02, 0x42}, a[:]...)
	}
}

func (e *Engine) endpointsDir(networkID string) string {
	return filepath.Join(e.networkDir(networkID), "endpoints")
}

func (e *Engine) writeEndpoint(networkID string, ep *endpointState) error {
	return statefile.Write(e.endpointsDir(networkID), ep.ID, ep)
}

func (e *Engine) readEndpoint(networkID, id string) (*endpointState, error) {
	for _, suffix := range []string{"", overSuffix} {
		ep := &endpointState{}
		err := statefile.Read(e.endpointsDir(networkID), id+suffix, ep)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && (ep.Version != stateVersion || ep.ID != id) {
			err = fmt.Errorf("endpoint %s of network %s: %w", id, networkID, ErrCorrupt)
		}
		ep.over = suffix != ""
		return ep, err
	}
	return nil, fs.ErrNotExist
}

// endpoints lists the endpoints of a network, also those of containers that have ended.
func (e *Engine) endpoints(networkID string) ([]*endpointState, error) {
	entries, err := os.ReadDir(e.endpointsDir(networkID))
	if err != nil {
		return nil, err
	}
	var list []*endpointState
	for _, entry := range entries {
		id, _, _ := strings.Cut(entry.Name(), ".")
		if len(id) != endpointIDLength || strings.HasSuffix(entry.Name(), ".new") {
			continue
		}
		ep, err := e.readEndpoint(networkID, id)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, statefile.ErrTorn) { // by a power failure, which nobody who is connected has seen
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, ep)
	}
	return list, nil
}

// endpointOver reports whether the container of the endpoint has ended, or whoever was connecting it was killed before the
// interface was there.
func (e *Engine) endpointOver(ep *endpointState) bool {
	switch {
	case ep.over:
		return true
	case !ep.Connected:
		return !e.ownerAlive(ep.Owner)
	case !ep.Detached:
		return !e.ownerAlive(cmp.Or(ep.Runs, ep.Owner))
	case e.ownerAlive(ep.Owner):
		return false // perhaps it is being started
	}
	st, err := e.readState(ep.Container)
	if err != nil || !e.derived(st).kept() {
		return true
	}
	// Or it is of an earlier start, whose program was killed.
	r, err := e.endpointRefs(ep.Container)
	return err == nil && !slices.ContainsFunc(r.Endpoints, func(ref endpointRef) bool { return ref.Endpoint == ep.ID })
}

// beingFreed reports whether a program that lives may be freeing an endpoint that is over, and waits for the kernel.
func (e *Engine) beingFreed(ep *endpointState) bool {
	return linkExists(ep.Endpoint.HostInterface) && (e.ownerAlive(ep.Owner) || ep.Runs != "" && e.ownerAlive(ep.Runs))
}

// endEndpoint notes that the container has ended: its names lead nowhere from now on. It reports whether nobody has done so
// before.
func (e *Engine) endEndpoint(networkID string, ep *endpointState) (first bool, err error) {
	e.removeNames(networkID, ep)
	e.removeFollower(networkID, ep)
	file := filepath.Join(e.endpointsDir(networkID), ep.ID)
	if err = os.Rename(file, file+overSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	ep.over = true
	return err == nil, nil
}

// freeEndpoint frees what the endpoint has: names, addresses and, last, its record.
func (e *Engine) freeEndpoint(networkID string, ep *endpointState) error {
	e.removeNames(networkID, ep)
	e.removeFollower(networkID, ep)
	for _, p := range ep.Endpoint.Addresses {
		if err := e.freeAddress(networkID, p.Addr().String(), ep.ID); err != nil {
			return err
		}
	}
	crashpoint.At("network: addresses freed")
	for _, suffix := range []string{".new", "", overSuffix} {
		if err := os.Remove(filepath.Join(e.endpointsDir(networkID), ep.ID+suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (e *Engine) freeAddress(networkID, addr, endpointID string) error {
	file := filepath.Join(e.networkDir(networkID), "addresses", addr)
	if id, err := os.Readlink(file); err != nil || id != endpointID {
		return nil
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sweepEndpoints frees the endpoints of a network whose programs were killed, and those that wait for the kernel. It
// returns how many there are left. The network is locked: nobody begins an endpoint meanwhile.
func (e *Engine) sweepEndpoints(ctx context.Context, st *networkState) (left int, err error) {
	endpoints, err := e.endpoints(st.ID)
	if err != nil {
		return 0, err
	}
	os.Remove(filepath.Join(e.networkDir(st.ID), "network.json.new")) // nobody is writing it
	for _, ep := range endpoints {
		if !e.endpointOver(ep) || e.beingFreed(ep) {
			left++
			continue
		}
		if err := e.reclaim(ctx, st, ep); err != nil {
			return left, err
		}
	}
	return left, errors.Join(e.sweepOrphanedEndpoints(st.ID), e.sweepParted(st.ID))
}

// sweepOrphanedEndpoints removes what belongs to no endpoint: of a program that was killed while it wrote a record, or before
// that freed what was noted nowhere else, and what a power failure has torn. The network is locked.
func (e *Engine) sweepOrphanedEndpoints(networkID string) error {
	dir := e.networkDir(networkID)
	endpoints, err := e.endpoints(networkID)
	if err != nil {
		return err
	}
	orphan := func(id string) bool {
		return !slices.ContainsFunc(endpoints, func(ep *endpointState) bool { return ep.ID == id })
	}
	remove := func(path string) error {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	each := func(dir string, do func(path string) error) error {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, entry := range entries {
			if err := do(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
		return nil
	}
	byName := func(path string) error {
		if id, _, _ := strings.Cut(filepath.Base(path), "."); orphan(id) {
			return remove(path)
		}
		return nil
	}
	return errors.Join(
		each(e.endpointsDir(networkID), byName),
		each(filepath.Join(dir, "followers"), byName),
		each(filepath.Join(dir, "addresses"), func(path string) error {
			if id, err := os.Readlink(path); err == nil && orphan(id) {
				return remove(path)
			}
			return nil
		}),
		each(filepath.Join(dir, "names"), func(name string) error {
			err := each(name, byName)
			os.Remove(name) // fails while somebody has it
			return err
		}),
	)
}

// reclaim frees the endpoint of a container that is gone, with what the driver has of it, when the kernel has removed its
// interface.
func (e *Engine) reclaim(ctx context.Context, st *networkState, ep *endpointState) error {
	e.completeEndpoint(st, ep)
	if !ep.over {
		e.endEndpoints([]connection{{st, ep}})
	}
	driver, err := e.nets.driver(e, st.driver())
	if err != nil {
		return err
	}
	network := st.network(e.root)
	if ep.Connected || !linkExists(ep.Endpoint.HostInterface) {
		err = awaitLinkGone(ctx, ep.Endpoint.HostInterface)
	} else {
		err = errLinkStays // whoever was connecting a container that runs was killed
	}
	if errors.Is(err, errLinkStays) && ep.Endpoint.MAC != nil {
		// Who has the namespace, another container for example that shares it, goes on without the interface.
		err = driver.Disconnect(ctx, network, &ep.Endpoint, nil)
	}
	if err != nil {
		return err
	}
	if ep.Endpoint.MAC != nil {
		if err := driver.Forget(ctx, network, []*netdrv.Endpoint{&ep.Endpoint}); err != nil {
			return err
		}
	}
	return e.freeEndpoint(st.ID, ep)
}

// completeEndpoint finds the addresses of an endpoint whose program was killed before it had written them into the record.
func (e *Engine) completeEndpoint(st *networkState, ep *endpointState) {
	if ep.Connected || len(ep.Endpoint.Addresses) > 0 {
		return
	}
	ep.Endpoint.Interface = cmp.Or(ep.Endpoint.Interface, "eth0") // whichever: the host's end is what counts
	entries, err := os.ReadDir(filepath.Join(e.networkDir(st.ID), "addresses"))
	if err != nil {
		return
	}
	for _, entry := range entries {
		id, err := os.Readlink(filepath.Join(e.networkDir(st.ID), "addresses", entry.Name()))
		if err != nil || id != ep.ID {
			continue
		}
		addr, err := netip.ParseAddr(entry.Name())
		for _, s := range st.Subnets {
			if err == nil && s.Prefix.Contains(addr) {
				ep.Endpoint.Addresses = append(ep.Endpoint.Addresses, netip.PrefixFrom(addr, s.Prefix.Bits()))
			}
		}
	}
	ep.settleMAC()
}
