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
// the next Up. So a firewall remembers what it made, and makes it again when it is told that it is gone.

// madeTables is what a firewall remembers of a network.
type madeTables struct {
	network   Network
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
	m.network = *n
	for _, ep := range eps {
		m.endpoints[ep.HostInterface] = ep
	}
	return m
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

// restoreTables makes tables again that somebody else has removed. Who removes a network removes its bridge first.
func (f *nftFirewall) restoreTables() error {
	f.mu.Lock()
	made := slices.Collect(maps.Keys(f.made))
	f.mu.Unlock()
	var errs []error
	restored := false
	for _, id := range made {
		again, err := f.restoreNetwork(id)
		errs = append(errs, err)
		restored = restored || again
	}
	if restored {
		errs = append(errs, f.restoreForward())
	}
	return errors.Join(errs...)
}

func (f *nftFirewall) restoreNetwork(id string) (restored bool, err error) {
	f.removing.Lock() // no firewallDown of ours meanwhile
	defer f.removing.Unlock()
	f.mu.Lock()
	m := f.made[id]
	if m == nil {
		f.mu.Unlock()
		return false, nil
	}
	n, parted := m.network, slices.Clone(m.parted)
	f.mu.Unlock()
	gone := func() bool { _, err := f.route.link(n.Interface()); return errors.Is(err, unix.ENODEV) }
	have, err := f.nf.table(unix.NFPROTO_INET, tableName(&n))
	if err != nil || have != nil || gone() {
		return false, err
	}
	if err := f.firewallUp(context.Background(), &n); err != nil {
		return false, err
	}
	if len(parted) > 0 {
		if err := f.part(context.Background(), &n, parted); err != nil {
			return false, err
		}
	}
	if gone() {
		return false, f.removeTables(&n)
	}
	f.log.Warn("somebody had removed the tables of a network: made them again", "network", n.Name)
	return true, nil
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
