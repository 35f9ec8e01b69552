package coracle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/statefile"
	"github.com/coracle-dev/coracle/netdrv"
)

// A NetworkSpec says what a network is to be. The zero NetworkSpec is a bridge with an IPv4 subnet that nothing on the
// host uses, from which containers reach each other and the world. A spec is plain data and can be stored as JSON.
type NetworkSpec struct {
	// Name is the network's name, unique in the engine's root, with the letters of a container's name. Empty means the
	// first twelve characters of its id.
	Name string `json:",omitempty"`
	// Driver is the name of the netdrv driver. Empty means "bridge".
	Driver string `json:",omitempty"`
	// Subnets are at most one of IPv4 and one of IPv6. Nil means an IPv4 subnet that is free, which may become another
	// one while no container is connected, if something else on the host takes it.
	Subnets []Subnet `json:",omitempty"`
	// IPv6 adds a free subnet of unique local addresses (RFC 4193), if Subnets has none of IPv6.
	IPv6 bool `json:",omitempty"`
	// Internal networks have no way out and no way in: containers reach each other and the host's end of the bridge.
	Internal bool `json:",omitempty"`
	// Isolated keeps the containers of the network from each other. They reach what is outside.
	Isolated bool `json:",omitempty"`
	// MTU is the largest packet in bytes. Zero leaves it to the driver.
	MTU int `json:",omitempty"`
	// Labels are the user's own.
	Labels map[string]string `json:",omitempty"`
	// Options are the driver's.
	Options map[string]string `json:",omitempty"`
}

// A Subnet is a range of addresses of a network.
type Subnet struct {
	Prefix netip.Prefix
	// Gateway is the host's end of a bridge, or the router of a network without one. The zero Addr means the first
	// address.
	Gateway netip.Addr `json:",omitzero"`
	// Range is the part of Prefix from which addresses are chosen. The zero Prefix means all of it.
	Range netip.Prefix `json:",omitzero"`
}

// A Network is a handle on a network of an engine's root. Its methods may be called from many goroutines.
type Network struct {
	eng  *Engine
	id   string
	name string
}

// ID returns the network's id, 64 hexadecimal digits.
func (n *Network) ID() string { return n.id }

// Name returns the network's name.
func (n *Network) Name() string { return n.name }

// NetworkInfo is what there is to know about a network at one moment.
type NetworkInfo struct {
	ID, Name string
	Created  time.Time
	Spec     NetworkSpec
	Subnets  []Subnet // as they are at present
	// Endpoints are the running containers that are connected, by container id.
	Endpoints map[string]EndpointInfo
}

// EndpointInfo is a running container's place in a network.
type EndpointInfo struct {
	Network   string // name
	NetworkID string
	Container string // name at the time of the start
	// Interface is the name in the container, HostInterface that of the other end on the host, if there is one.
	Interface, HostInterface string
	MAC                      string
	Addresses                []netip.Prefix
	Aliases                  []string
}

// NetworkFilter chooses networks. All that is set must hold; the zero filter chooses all.
type NetworkFilter struct {
	// Driver is the name of the driver; empty means any.
	Driver string
	// Labels are labels it has, by value; an empty value means that the label exists.
	Labels map[string]string
}

func (n *Network) fail(op string, err error) error { return networkError(op, n.name, err) }

func networkError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &OpError{Op: op, Kind: "network", Name: name, Err: err}
}

// CreateNetwork makes a network. Nothing of it is on the host before a container is connected.
//
// The error matches fs.ErrExist if the name is taken, ErrInvalid if the spec makes no sense, ErrInUse if a subnet is
// used by something on the host, and errors.ErrUnsupported if there is no such driver.
func (e *Engine) CreateNetwork(ctx context.Context, spec *NetworkSpec) (*Network, error) {
	if spec == nil {
		spec = &NetworkSpec{}
	}
	if isReservedNetwork(spec.Name) {
		return nil, networkError("create", spec.Name, fmt.Errorf("%w: the name means something else", ErrInvalid))
	}
	n, err := e.createNetwork(ctx, spec)
	return n, networkError("create", spec.Name, err)
}

// isReservedNetwork reports whether a name in an Attachment is not that of a network that somebody created.
func isReservedNetwork(name string) bool {
	return name == NetworkNone || name == NetworkHost || name == NetworkBridge || name == "default" || strings.Contains(name, ":")
}

func (e *Engine) createNetwork(ctx context.Context, spec *NetworkSpec) (_ *Network, err error) {
	ctx, done, err := e.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := spec.validate(); err != nil {
		return nil, err
	}
	st := &networkState{Version: stateVersion, ID: newID(idLength / 2), Name: spec.Name, Owner: e.owner.id, Spec: spec.clone(), Created: time.Now()}
	if st.Name == "" {
		st.Name = st.ID[:12]
	}
	if st.driver() != "bridge" && !slices.Contains(netdrv.Drivers(), st.driver()) {
		return nil, &UnsupportedError{Feature: fmt.Sprintf("the network driver %q", st.driver()), Fix: "import the package that registers it; there are " + strings.Join(netdrv.Drivers(), ", ")}
	}
	if err := e.nets.settleSubnets(ctx, e, st); err != nil {
		return nil, err
	}
	if err := e.addNetwork(st); err != nil {
		return nil, err
	}
	e.emitNetwork(st, ActionCreate, "")
	return &Network{eng: e, id: st.ID, name: st.Name}, nil
}

func (s *NetworkSpec) validate() error {
	if s.Name != "" && !validName(s.Name) {
		return fmt.Errorf("%w: the name %q has other characters than letters, digits, \"_\", \".\" and \"-\", begins with one of these, or has more than 128", ErrInvalid, s.Name)
	}
	if s.MTU < 0 || s.MTU > 65535 || s.MTU > 0 && s.MTU < 68 {
		return fmt.Errorf("%w: an MTU of %d: 68 to 65535 bytes are possible", ErrInvalid, s.MTU)
	}
	var seen [2]bool
	for _, sub := range s.Subnets {
		p := sub.Prefix
		family := 0
		if p.Addr().Is6() {
			family = 1
		}
		switch {
		case !p.IsValid() || p != p.Masked():
			return fmt.Errorf("%w: the subnet %v is no prefix, or has bits set behind its length", ErrInvalid, p)
		case p.Addr().Is4In6():
			return fmt.Errorf("%w: the subnet %v is IPv4 written as IPv6", ErrInvalid, p)
		case p.Bits() > p.Addr().BitLen()-2:
			return fmt.Errorf("%w: the subnet %v has no room for a gateway and a container", ErrInvalid, p)
		case p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast() || p.Bits() == 0:
			return fmt.Errorf("%w: the subnet %v has no addresses that containers could have", ErrInvalid, p)
		case seen[family]:
			return fmt.Errorf("%w: the subnet %v: one of each family is possible", ErrInvalid, p)
		case sub.Gateway.IsValid() && !usable(p, sub.Gateway):
			return fmt.Errorf("%w: the gateway %v is no address of %v", ErrInvalid, sub.Gateway, p)
		case sub.Range.IsValid() && (sub.Range != sub.Range.Masked() || sub.Range.Bits() < p.Bits() || !p.Contains(sub.Range.Addr())):
			return fmt.Errorf("%w: the range %v is no part of %v", ErrInvalid, sub.Range, p)
		}
		seen[family] = true
	}
	return nil
}

func (s *NetworkSpec) clone() NetworkSpec {
	c := *s
	c.Subnets = slices.Clone(s.Subnets)
	c.Labels, c.Options = maps.Clone(s.Labels), maps.Clone(s.Options)
	return c
}

// Network finds a network by its name, its id or an unambiguous beginning of its id. The default network, NetworkBridge, is
// there once a container has been connected to it. The error matches fs.ErrNotExist if there is none.
func (e *Engine) Network(ctx context.Context, nameOrID string) (*Network, error) {
	st, err := e.findNetwork(nameOrID)
	if err != nil {
		return nil, networkError("find", nameOrID, err)
	}
	return &Network{eng: e, id: st.ID, name: st.Name}, nil
}

func (e *Engine) findNetwork(nameOrID string) (*networkState, error) {
	if err := e.use(); err != nil {
		return nil, err
	}
	if id := e.networkNamed(nameOrID); id != "" {
		return e.readNetwork(id)
	}
	ids, err := e.networkIDs()
	if err != nil {
		return nil, err
	}
	found := ""
	for _, id := range ids {
		if nameOrID != "" && strings.HasPrefix(id, nameOrID) {
			if found != "" {
				return nil, fmt.Errorf("%w: more than one id begins so", ErrInvalid)
			}
			found = id
		}
	}
	if found == "" {
		return nil, fmt.Errorf("no network has this name: %w: create it first", fs.ErrNotExist)
	}
	return e.readNetwork(found)
}

// Networks lists the networks of the root, of this and of other programs, in the order of their creation.
func (e *Engine) Networks(ctx context.Context, filter *NetworkFilter) ([]*Network, error) {
	states, err := e.networks()
	if err != nil {
		return nil, &OpError{Op: "list", Kind: "networks", Name: e.root, Err: err}
	}
	var list []*Network
	for _, st := range states {
		if filter.matches(st) {
			list = append(list, &Network{eng: e, id: st.ID, name: st.Name})
		}
	}
	return list, nil
}

func (f *NetworkFilter) matches(st *networkState) bool {
	if f == nil {
		return true
	}
	for k, want := range f.Labels {
		if v, ok := st.Spec.Labels[k]; !ok || want != "" && v != want {
			return false
		}
	}
	return f.Driver == "" || f.Driver == st.driver()
}

// networks returns the states of all networks, in the order of their creation.
func (e *Engine) networks() ([]*networkState, error) {
	if err := e.use(); err != nil {
		return nil, err
	}
	ids, err := e.networkIDs()
	if err != nil {
		return nil, err
	}
	var list []*networkState
	for _, id := range ids {
		st, err := e.readNetwork(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		list = append(list, st)
	}
	slices.SortFunc(list, func(a, b *networkState) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

// Inspect tells what there is to know about the network. The error matches fs.ErrNotExist if it was removed.
func (n *Network) Inspect(ctx context.Context) (*NetworkInfo, error) {
	st, err := n.eng.readNetwork(n.id)
	if err != nil {
		return nil, n.fail("inspect", err)
	}
	info := &NetworkInfo{ID: st.ID, Name: st.Name, Created: st.Created, Spec: st.Spec, Subnets: st.Subnets, Endpoints: make(map[string]EndpointInfo)}
	endpoints, err := n.eng.endpoints(st.ID)
	if err != nil {
		return nil, n.fail("inspect", err)
	}
	for _, ep := range endpoints {
		if ep.Connected && !ep.over {
			info.Endpoints[ep.Container] = ep.info(st)
		}
	}
	return info, nil
}

// Remove removes the network. The error matches ErrInUse, and names them, if running containers are connected. It is no
// error if it is gone already. Containers that are to be connected to it when they start fail to start then.
func (n *Network) Remove(ctx context.Context) error {
	return n.fail("remove", n.remove(ctx))
}

func (n *Network) remove(ctx context.Context) error {
	e := n.eng
	ctx, done, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	st, unlock, err := e.lockNetwork(ctx, n.id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	if err := e.awaitFree(ctx, st); err != nil {
		return err
	}
	if err := e.nets.down(ctx, e, st); err != nil {
		return err
	}
	if err := e.removeNetwork(st); err != nil {
		return err
	}
	e.emitNetwork(st, ActionDestroy, "")
	return nil
}

// awaitFree waits for the endpoints of containers that have ended, which the kernel takes some milliseconds to remove, and
// returns ErrInUse if there are others. The network is locked.
func (e *Engine) awaitFree(ctx context.Context, st *networkState) error {
	for {
		endpoints, err := e.endpoints(st.ID)
		if err != nil {
			return err
		}
		var users []string
		for _, ep := range endpoints {
			if !e.endpointOver(ep) {
				users = append(users, ep.ContainerName)
			}
		}
		if len(users) > 0 {
			slices.Sort(users)
			return fmt.Errorf("%w: connected to %s: stop or disconnect them first", ErrInUse, strings.Join(users, ", "))
		}
		if len(endpoints) == 0 {
			return nil
		}
		for _, ep := range endpoints {
			if !e.beingFreed(ep) {
				if err := e.reclaim(ctx, st, ep); err != nil {
					return err
				}
			}
		}
		if !sleep(ctx, 2*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// PruneNetworks removes the networks that no running container is connected to and no other container is to be connected
// to, and returns their names. The default network stays.
func (e *Engine) PruneNetworks(ctx context.Context, filter *PruneFilter) ([]string, error) {
	names, err := e.pruneNetworks(ctx, filter)
	if err != nil {
		return names, &OpError{Op: "prune", Kind: "networks", Name: e.root, Err: err}
	}
	return names, nil
}

func (e *Engine) pruneNetworks(ctx context.Context, filter *PruneFilter) ([]string, error) {
	if filter == nil {
		filter = &PruneFilter{}
	}
	states, err := e.networks()
	if err != nil {
		return nil, err
	}
	wanted := make(map[string]bool) // by name and id
	ids, err := e.containerIDs()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		st, err := e.readState(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, a := range st.Spec.Networks {
			wanted[a.Network] = true
		}
	}
	names := []string{}
	for _, st := range states {
		prefixed := slices.ContainsFunc(slices.Collect(maps.Keys(wanted)), func(w string) bool { return len(w) >= 4 && strings.HasPrefix(st.ID, w) })
		if st.Name == NetworkBridge || wanted[st.Name] || prefixed || !filter.matches(st.Created, st.Spec.Labels) {
			continue
		}
		err := (&Network{eng: e, id: st.ID, name: st.Name}).remove(ctx)
		switch {
		case err == nil:
			names = append(names, st.Name)
		case errors.Is(err, ErrInUse):
		default:
			return names, err
		}
	}
	return names, nil
}

// A network is a directory, networks/<id>, which appears by a rename when its state is in it.
//
//	networks/<id>/network.json          networkState
//	networks/<id>/endpoints/<eid>       endpointState: a container that is connected, or about to be
//	networks/<id>/addresses/<address>   symbolic link to the endpoint that has it
//	networks/<id>/names/<name>/<eid>    symbolic link whose target is the endpoint's addresses, see names.go
//	networks/<id>/parted/<cid>.<cid>    two containers that are kept from each other, see netfaults.go
//	networks/<id>/up                    locked, shared, by the engines that have the network on the host
//	networks/.<owner>.<id>              being made or removed by that owner
//	networknames/<name>                 symbolic link to the id
//
// An endpoint's record is written before the first address is taken and removed after the last was freed: what its owner
// leaves when it is killed is found by it. The directory itself is locked while an endpoint is made (shared) and while the
// network is removed.

// networkState is network.json.
type networkState struct {
	Version int
	ID      string
	Name    string
	Owner   string // the engine that made it
	Spec    NetworkSpec
	Subnets []Subnet // settled
	Created time.Time
}

func (st *networkState) driver() string { return cmp.Or(st.Spec.Driver, "bridge") }

// network is what the driver needs to know.
func (st *networkState) network(root string) *netdrv.Network {
	n := &netdrv.Network{
		ID: st.ID, Name: st.Name, Driver: st.driver(), Root: root, Internal: st.Spec.Internal, Isolated: st.Spec.Isolated,
		MTU: st.Spec.MTU, Options: st.Spec.Options,
	}
	for _, s := range st.Subnets {
		n.Subnets = append(n.Subnets, netdrv.Subnet{Prefix: s.Prefix, Gateway: s.Gateway})
	}
	return n
}

func (e *Engine) networksDir() string         { return filepath.Join(e.root, "networks") }
func (e *Engine) networkDir(id string) string { return filepath.Join(e.networksDir(), id) }
func (e *Engine) networkNamesDir() string     { return filepath.Join(e.root, "networknames") }
func (e *Engine) transientNet(id string) string {
	return filepath.Join(e.networksDir(), "."+e.owner.id+"."+id)
}

func (e *Engine) addNetwork(st *networkState) (err error) {
	making := e.transientNet(st.ID)
	defer func() {
		if err != nil {
			os.RemoveAll(making)
		}
	}()
	for _, dir := range []string{making, filepath.Join(making, "endpoints"), filepath.Join(making, "addresses"), filepath.Join(making, "names"), e.networkNamesDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := statefile.WriteSynced(making, "network.json", st); err != nil {
		return err
	}
	crashpoint.At("network: state written")
	if err := os.Rename(making, e.networkDir(st.ID)); err != nil {
		return err
	}
	crashpoint.At("network: in sight")
	if err := os.Symlink(st.ID, filepath.Join(e.networkNamesDir(), st.Name)); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("the name %q is taken: %w: remove that network or choose another name", st.Name, fs.ErrExist)
		}
		return errors.Join(err, os.RemoveAll(e.networkDir(st.ID)))
	}
	crashpoint.At("network: has its name")
	return errors.Join(syncDirectory(e.networksDir()), syncDirectory(e.networkNamesDir()))
}

// removeNetwork removes the files of a network that nobody is connected to. It is locked.
func (e *Engine) removeNetwork(st *networkState) error {
	if e.networkNamed(st.Name) == st.ID {
		// If this is as far as it comes, the network without a name is not taken for one that its maker is about to name.
		st.Owner = e.owner.id
		if err := statefile.Write(e.networkDir(st.ID), "network.json", st); err != nil {
			return err
		}
		crashpoint.At("network: about to lose its name")
		if err := os.Remove(filepath.Join(e.networkNamesDir(), st.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	crashpoint.At("network: name gone")
	removing := e.transientNet(st.ID)
	if err := os.Rename(e.networkDir(st.ID), removing); err != nil {
		return err
	}
	crashpoint.At("network: out of sight")
	return os.RemoveAll(removing)
}

// networkNamed returns the id of the network with the name, or an empty string.
func (e *Engine) networkNamed(name string) string {
	if !validName(name) {
		return ""
	}
	id, err := os.Readlink(filepath.Join(e.networkNamesDir(), name))
	if err != nil || !validID(id) {
		return ""
	}
	return id
}

func (e *Engine) networkIDs() ([]string, error) {
	entries, err := os.ReadDir(e.networksDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, entry := range entries {
		if validID(entry.Name()) {
			ids = append(ids, entry.Name())
		}
	}
	return ids, nil
}

func (e *Engine) readNetwork(id string) (*networkState, error) {
	st := &networkState{}
	if err := statefile.Read(e.networkDir(id), "network.json", st); err != nil {
		return nil, err
	}
	if st.Version != stateVersion || st.ID != id || !validName(st.Name) {
		return nil, fmt.Errorf("state of network %s (version %d, id %q): %w", id, st.Version, st.ID, ErrCorrupt)
	}
	return st, nil
}

func (e *Engine) emitNetwork(st *networkState, action EventAction, container string) {
	ev := Event{Type: EventNetwork, Action: action, ID: st.ID, Name: st.Name, Attributes: map[string]string{"type": st.driver()}}
	if container != "" {
		ev.Attributes["container"] = container
	}
	e.emit(ev, st.Spec.Labels)
}
