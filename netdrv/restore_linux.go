package netdrv

import (
	"context"
	"errors"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// nft flush ruleset, as the service of that name does it when it is reloaded, takes our tables along (but not those of
// Publishers, which belong to sockets). Then containers would reach nobody outside and could say that they are anybody, until
// the next Up. So a firewall remembers what it made, and makes it again when it is told that it is gone. Each program does so
// for the endpoints that it connected.

// madeTables is what a firewall remembers of a network.
type madeTables struct {
	network   Network
	bridge    int                  // its index; 0 if there was none
	endpoints map[string]*Endpoint // by host's end
	parted    [][2]*Endpoint
	key       string           // says for what the hashes are
	hashes    map[uint8][]byte // of the tables, by family
}

// remember notes that a network has its tables, and endpoints their elements.
func (f *nftFirewall) remember(n *Network, eps ...*Endpoint) *madeTables {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.made[n.ID]
	if m == nil {
		m = &madeTables{endpoints: map[string]*Endpoint{}}
		f.made[n.ID] = m
	}
	m.network = *n // the caller's may change
	m.network.Subnets, m.network.Options = slices.Clone(n.Subnets), maps.Clone(n.Options)
	for _, ep := range eps {
		own := *ep
		m.endpoints[ep.HostInterface] = &own
	}
	return m
}

// rememberBridge notes which bridge a network's tables are for. Another one than before says that the network was taken off the
// host meanwhile, with all that was connected.
func (f *nftFirewall) rememberBridge(n *Network) error {
	link, err := f.route.link(n.Interface())
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return kernelError("find", n.Interface(), err)
	}
	m := f.remember(n)
	f.mu.Lock()
	defer f.mu.Unlock()
	was := m.bridge
	if m.bridge = 0; err == nil {
		m.bridge = link.Attrs().Index
	}
	if was != 0 && was != m.bridge {
		clear(m.endpoints)
		m.parted = nil
	}
	return nil
}

// endpoints are those remembered of a network.
func (f *nftFirewall) endpoints(n *Network) []*Endpoint {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.made[n.ID]; m != nil {
		return slices.Collect(maps.Values(m.endpoints))
	}
	return nil
}

// forget notes that endpoints have no elements any more.
func (f *nftFirewall) forget(n *Network, eps []*Endpoint) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.made[n.ID]; m != nil {
		for _, ep := range eps {
			delete(m.endpoints, ep.HostInterface)
		}
	}
}

// restoreTables puts back what was in tables that somebody has removed. The lock of the host's networks is held, so that
// no network is being brought up or taken down.
func (f *nftFirewall) restoreTables(ctx context.Context, removed *removedTables) error {
	f.mu.Lock()
	var made []Network
	for _, m := range f.made {
		if removed.has(tableName(&m.network)) {
			made = append(made, m.network)
		}
	}
	f.mu.Unlock()
	var errs []error
	restored := false
	for i := range made {
		again, err := f.restoreNetwork(ctx, &made[i])
		errs = append(errs, err)
		restored = restored || again
	}
	if restored {
		errs = append(errs, f.restoreForward())
	}
	return errors.Join(errs...)
}

// restoreNetwork makes the tables of a network again, unless another program has, and in any case what they have about
// endpoints of this one. A network that was taken off the host since has lost nothing, whether or not it is there again.
func (f *nftFirewall) restoreNetwork(ctx context.Context, n *Network) (restored bool, err error) {
	f.removing.Lock() // no firewallDown of ours meanwhile
	defer f.removing.Unlock()
	f.mu.Lock()
	m := f.made[n.ID]
	if m == nil {
		f.mu.Unlock()
		return false, nil
	}
	bridge, parted := m.bridge, slices.Clone(m.parted)
	f.mu.Unlock()
	there := func() (bool, error) {
		link, err := f.route.link(n.Interface())
		if errors.Is(err, unix.ENODEV) {
			return false, nil
		} else if err != nil {
			return false, kernelError("find", n.Interface(), err)
		}
		return link.Attrs().Index == bridge, nil
	}
	if is, err := there(); err != nil || !is {
		return false, err
	}
	have, err := f.nf.table(unix.NFPROTO_INET, tableName(n))
	if err != nil {
		return false, nfErr("look for the tables of network "+n.Name, err)
	}
	if have == nil {
		if err := f.firewallUp(ctx, n); err != nil {
			return false, err
		}
		if is, err := there(); err != nil || !is { // who removes a network without the lock removes its bridge first
			return false, errors.Join(err, f.removeTables(n))
		}
		f.log.Warn("somebody had removed the tables of a network: made them again", "network", n.Name)
	}
	if err = f.addSources(ctx, n, f.endpoints(n)); err == nil && len(parted) > 0 {
		err = f.part(ctx, n, parted)
	}
	if errors.Is(err, unix.ENOENT) {
		err = nil // somebody has removed them again, which the monitor will tell
	}
	return have == nil, err
}

// restoreForward makes the table coracle-forward again, if there was one.
func (f *nftFirewall) restoreForward() error {
	f.mu.Lock()
	table := f.forward
	f.mu.Unlock()
	have, err := f.nf.table(unix.NFPROTO_INET, forwardName)
	if err != nil || have != nil || table == nil {
		return err
	}
	messages, err := table.replace()
	if err == nil {
		err = f.nf.batch(0, messages...)
	}
	return nfErr("make the table "+forwardName, err)
}
