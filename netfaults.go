package coracle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/netdrv"
)

// What a test does to a network: containers that cannot reach each other, and packets that are late or lost.

// partedDir is networks/<id>/parted. A file <container>.<container> in it, the lesser id first, says that the two are kept from each
// other; the kernel has elements for those that run.
const partedDir = "parted"

// Partition keeps the containers of each group from those of all other groups: what they send to each other on this network, in
// either direction, through published ports or on connections that are open already, is lost without an answer. Containers of one
// group, and those that are in none, are not affected. Partitions add up. They last until [Network.Heal], also if containers stop and
// start again or the program ends, and hold for containers of other programs too.
//
// The error matches ErrInvalid if there are fewer than two groups or a container is in two of them, fs.ErrNotExist if one is not
// connected to the network and is not to be when it starts, and errors.ErrUnsupported if the network's driver cannot do it; only that of
// bridges can. Then nothing has changed.
func (n *Network) Partition(ctx context.Context, groups ...[]*Container) error {
	return n.fail("part", n.partition(ctx, groups))
}

func (n *Network) partition(ctx context.Context, groups [][]*Container) (err error) {
	e := n.eng
	ctx, done, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	pairs, err := partedPairs(groups)
	if err != nil {
		return err
	}
	st, unlock, err := e.lockNetwork(ctx, n.id)
	if err != nil {
		return err
	}
	defer unlock()
	driver, err := e.partitioner(st)
	if err != nil {
		return err
	}
	for _, c := range slices.Concat(groups...) {
		if err := e.connectedTo(c, st); err != nil {
			return err
		}
	}
	dir := filepath.Join(e.networkDir(st.ID), partedDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var made []string
	defer func() {
		if err != nil {
			for _, file := range made {
				err = errors.Join(err, os.Remove(file))
			}
		}
	}()
	for _, p := range pairs {
		file := filepath.Join(dir, p.String())
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		f.Close()
		made = append(made, file)
	}
	crashpoint.At("partition: noted")
	// Whoever connects a container after this reads the notes.
	return e.onPairs(st, pairs, func(net *netdrv.Network, list [][2]*netdrv.Endpoint) error { return driver.Partition(ctx, net, list) })
}

// Heal ends the partitions of the network that any of the containers has a part in, or all of them if none is named. What was lost
// meanwhile is sent again by those who do so, after a while.
func (n *Network) Heal(ctx context.Context, containers ...*Container) error {
	return n.fail("heal", n.heal(ctx, containers))
}

func (n *Network) heal(ctx context.Context, containers []*Container) error {
	e := n.eng
	ctx, done, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	st, unlock, err := e.lockNetwork(ctx, n.id)
	if err != nil {
		return err
	}
	defer unlock()
	pairs, err := e.parted(st.ID)
	if err != nil || len(pairs) == 0 {
		return err
	}
	driver, err := e.partitioner(st)
	if err != nil {
		return err
	}
	if len(containers) > 0 {
		pairs = slices.DeleteFunc(pairs, func(p partedPair) bool {
			return !slices.ContainsFunc(containers, func(c *Container) bool { return p.has(c.id) })
		})
	}
	// The notes last: whoever is killed in between heals again.
	err = e.onPairs(st, pairs, func(net *netdrv.Network, list [][2]*netdrv.Endpoint) error { return driver.Heal(ctx, net, list) })
	if err != nil {
		return err
	}
	crashpoint.At("heal: healed")
	for _, p := range pairs {
		if err := os.Remove(filepath.Join(e.networkDir(st.ID), partedDir, p.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// SetFaults makes the container's packets on the network late, lost or slow, in both directions, instead of what was set before. The
// zero Faults end that. They last until the container has ended.
//
// The error matches ErrNotRunning if the container does not run, fs.ErrNotExist if it is not connected, and errors.ErrUnsupported if the
// kernel or the network's driver cannot do it: then it has no faults.
func (n *Network) SetFaults(ctx context.Context, c *Container, f netdrv.Faults) error {
	return n.fail("set the faults of a container on", n.eng.setFaults(ctx, c, n.id, f))
}

func (e *Engine) setFaults(ctx context.Context, c *Container, networkID string, f netdrv.Faults) error {
	ctx, st, end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if !alive(st) {
		return ErrNotRunning
	}
	list, err := e.endpointsOf(st.ID)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(one connection) bool {
		return one.network.ID == networkID && one.state.Connected && !one.state.over
	})
	if i < 0 {
		return fmt.Errorf("the container %q is not connected: %w", st.Name, fs.ErrNotExist)
	}
	driver, err := e.nets.driver(e, list[i].network.driver())
	if err != nil {
		return err
	}
	faulter, ok := driver.(netdrv.Faulter)
	if !ok {
		return &UnsupportedError{Feature: fmt.Sprintf("faults on a network of driver %q", list[i].network.driver()), Fix: "use a bridge"}
	}
	ns, err := c.namespaceOf()
	if err != nil {
		return err
	}
	defer ns.Close()
	return faulter.SetFaults(ctx, list[i].network.network(e.root), &list[i].state.Endpoint, ns, f)
}

// partedPair is the ids of two containers that are kept from each other, the lesser first.
type partedPair [2]string

func (p partedPair) String() string { return p[0] + "." + p[1] }

func (p partedPair) has(id string) bool { return p[0] == id || p[1] == id }

func partedPairs(groups [][]*Container) ([]partedPair, error) {
	if len(groups) < 2 {
		return nil, fmt.Errorf("%w: a network has to be parted into two groups of containers at least, not %d", ErrInvalid, len(groups))
	}
	group := make(map[string]int)
	for i, g := range groups {
		for _, c := range g {
			if in, seen := group[c.id]; seen && in != i {
				return nil, fmt.Errorf("%w: the container %q is in two groups", ErrInvalid, c.Name())
			}
			group[c.id] = i
		}
	}
	pairs := []partedPair{}
	for a := range group {
		for b := range group {
			if a < b && group[a] != group[b] {
				pairs = append(pairs, partedPair{a, b})
			}
		}
	}
	return pairs, nil
}

// partitioner is the network's driver, if it can part.
func (e *Engine) partitioner(st *networkState) (netdrv.Partitioner, error) {
	driver, err := e.nets.driver(e, st.driver())
	if err != nil {
		return nil, err
	}
	p, ok := driver.(netdrv.Partitioner)
	if !ok {
		return nil, &UnsupportedError{Feature: fmt.Sprintf("parting a network of driver %q", st.driver()), Fix: "use a bridge"}
	}
	return p, nil
}

// connectedTo looks whether a container is connected to a network, or will be when it starts.
func (e *Engine) connectedTo(c *Container, st *networkState) error {
	state, err := c.present()
	if err != nil {
		return fmt.Errorf("the container %q: %w", c.Name(), err)
	}
	if mode, _ := state.Spec.networkMode(); mode == "" {
		i, err := e.attachmentTo(state.Spec.attachments(), st.ID)
		if err != nil {
			return err
		}
		if i >= 0 {
			return nil
		}
	}
	return fmt.Errorf("the container %q is not connected: %w", state.Name, fs.ErrNotExist)
}

// parted lists the pairs of a network.
func (e *Engine) parted(networkID string) ([]partedPair, error) {
	entries, err := os.ReadDir(filepath.Join(e.networkDir(networkID), partedDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pairs []partedPair
	for _, entry := range entries {
		if a, b, ok := strings.Cut(entry.Name(), "."); ok && validID(a) && validID(b) {
			pairs = append(pairs, partedPair{a, b})
		}
	}
	return pairs, nil
}

// onPairs calls do with the endpoints of those pairs of which both run.
func (e *Engine) onPairs(st *networkState, pairs []partedPair, do func(*netdrv.Network, [][2]*netdrv.Endpoint) error) error {
	if len(pairs) == 0 {
		return nil
	}
	endpoints, err := e.endpoints(st.ID)
	if err != nil {
		return err
	}
	of := make(map[string][]*netdrv.Endpoint) // while a container is started again it may have two
	for _, ep := range endpoints {
		if ep.Connected && !ep.over {
			of[ep.Container] = append(of[ep.Container], &ep.Endpoint)
		}
	}
	var list [][2]*netdrv.Endpoint
	for _, p := range pairs {
		for _, a := range of[p[0]] {
			for _, b := range of[p[1]] {
				list = append(list, [2]*netdrv.Endpoint{a, b})
			}
		}
	}
	if len(list) == 0 {
		return nil
	}
	return do(st.network(e.root), list)
}

// partNew keeps a container that has just been connected from those that it is to be kept from. Whoever parts the network at the
// same time has noted that before it looks who is connected, and this one is connected before it looks at the notes.
func (e *Engine) partNew(ctx context.Context, one connection) error {
	pairs, err := e.parted(one.network.ID)
	if err != nil {
		return err
	}
	pairs = slices.DeleteFunc(pairs, func(p partedPair) bool { return !p.has(one.state.Container) })
	if len(pairs) == 0 {
		return nil
	}
	driver, err := e.partitioner(one.network)
	if err != nil {
		return err
	}
	return e.onPairs(one.network, pairs, func(net *netdrv.Network, list [][2]*netdrv.Endpoint) error { return driver.Partition(ctx, net, list) })
}

// sweepParted removes the notes about containers that are no more. The network is locked.
func (e *Engine) sweepParted(networkID string) error {
	pairs, err := e.parted(networkID)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		for _, id := range p {
			if _, err := os.Lstat(e.containerDir(id)); errors.Is(err, fs.ErrNotExist) {
				if err := os.Remove(filepath.Join(e.networkDir(networkID), partedDir, p.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
				break
			}
		}
	}
	return nil
}
