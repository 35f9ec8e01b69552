package coracle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/statefile"
	"github.com/coracle-dev/coracle/netdrv"
)

// Connect connects the container to the network, at once if it runs, whoever owns it, and at its next starts. Its default
// routes and published ports stay where they are. a may be nil; its Network is not looked at.
//
// The error matches ErrInvalid if it has no network of its own (NetworkNone, NetworkHost, another container's) or makes no
// sense otherwise, fs.ErrExist if it is connected already, and ErrInUse if an address is taken.
func (n *Network) Connect(ctx context.Context, c *Container, a *Attachment) error {
	at := Attachment{}
	if a != nil {
		at = *a
	}
	at.Network = n.name
	return n.fail("connect a container to", n.eng.connectLive(ctx, c, n.id, at))
}

func (e *Engine) connectLive(ctx context.Context, c *Container, networkID string, a Attachment) (err error) {
	ctx, st, end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if mode, _ := st.Spec.networkMode(); mode != "" {
		return fmt.Errorf("%w: the container %q has no network of its own, but %q", ErrInvalid, st.Name, st.Spec.Networks[0].Network)
	}
	nst, err := e.readNetwork(networkID) // else another one may have its name by now
	if err != nil {
		return err
	}
	if err := nst.checkWanted(a); err != nil {
		return err
	}
	before := st.Spec.attachments()
	i, err := e.attachmentTo(before, networkID)
	if err != nil {
		return err
	}
	after := slices.Clone(before)
	switch {
	case i < 0 && slices.ContainsFunc(before, func(other Attachment) bool { return other.Network == a.Network }):
		return fmt.Errorf("the network %q is being removed: %w", a.Network, fs.ErrNotExist) // it has lost its name
	case i < 0:
		after = append(after, a)
	case alive(st) && e.cutOff(st.ID, nst):
		after[i] = a
	default:
		return fmt.Errorf("the container %q is connected: %w", st.Name, fs.ErrExist)
	}
	next := st.Spec
	if next.Networks = after; next.validateNetworks() != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, next.validateNetworks())
	}
	if alive(st) {
		undo, err := e.plugLive(ctx, c, st, networkID, a)
		if err != nil {
			return err
		}
		defer func() {
			if err != nil {
				undo()
			}
		}()
	}
	return e.change(st.ID, func(ch *containerChanges) { ch.Networks = &after })
}

// attachmentTo returns which of the attachments is to the network, or -1.
func (e *Engine) attachmentTo(list []Attachment, networkID string) (int, error) {
	for i, a := range list {
		name := a.Network
		if name == "default" {
			name = NetworkBridge
		}
		st, err := e.findNetwork(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return -1, err
		}
		if st.ID == networkID {
			return i, nil
		}
	}
	return -1, nil
}

// cutOff reports whether a container that runs and is to be in a network is not: whoever was disconnecting it was killed.
func (e *Engine) cutOff(id string, st *networkState) bool {
	list, err := e.endpointsOf(id)
	return err == nil && !slices.ContainsFunc(list, func(one connection) bool {
		return one.network.ID == st.ID && one.state.Connected && !one.state.over && (st.driver() != "bridge" || linkExists(one.state.Endpoint.HostInterface))
	})
}

// namespaceOf opens the network namespace of a container that runs.
func (c *Container) namespaceOf() (*netdrv.Namespace, error) {
	f, _, err := c.openNetwork()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return netdrv.OpenNamespace(f)
}

// openNetwork opens the file that stands for the network namespace of a container that runs.
func (c *Container) openNetwork() (*os.File, *containerState, error) {
	p, st, err := c.openFirst()
	if err != nil {
		return nil, nil, err
	}
	defer p.close()
	dir, err := p.openDir(st.PID)
	if err != nil {
		return nil, nil, notRunningIfDone(err)
	}
	defer dir.Close()
	f, err := openIn(dir, "ns/net")
	if err != nil && p.ended(0) { // procfs has several errors for that
		err = ErrNotRunning
	}
	return f, st, err
}

// plugLive connects a container that runs. It is locked.
func (e *Engine) plugLive(ctx context.Context, c *Container, st *containerState, networkID string, a Attachment) (undo func(), err error) {
	if _, err := e.nets.bringUp(ctx, e, networkID); err != nil {
		return nil, err
	}
	ns, err := c.namespaceOf()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	record, err := e.endpointRefs(st.ID)
	if err != nil {
		return nil, err
	}
	present, err := e.endpointsOf(st.ID)
	if err != nil {
		return nil, err
	}
	for _, other := range present {
		if other.network.ID == networkID { // whoever was connecting or disconnecting it was killed
			record.Endpoints = slices.DeleteFunc(record.Endpoints, func(r endpointRef) bool { return r.Endpoint == other.state.ID })
			e.unplug(ctx, st, other, ns, record)
		}
	}
	ep, nst, err := e.newEndpoint(ctx, networkID, st, st.Owner, a)
	if err != nil {
		return nil, err
	}
	one := connection{nst, ep}
	defer func() {
		if err != nil {
			e.unplug(context.WithoutCancel(ctx), st, one, ns, record)
		}
	}()
	if _, err := e.nets.bringUp(ctx, e, networkID); err != nil { // see attach
		return nil, err
	}
	if ep.Endpoint.Interface = a.Interface; ep.Endpoint.Interface == "" {
		for i := 0; ; i++ {
			name := fmt.Sprint("eth", i)
			if !slices.ContainsFunc(present, func(other connection) bool { return other.state.Endpoint.Interface == name }) {
				ep.Endpoint.Interface = name
				break
			}
		}
	}
	// Before the interface: whoever sees to the container's end knows of it, and whoever finds this program killed can take
	// it out again.
	if err := e.writeEndpoint(nst.ID, ep); err != nil {
		return nil, err
	}
	after := endpointsRecord{Version: stateVersion, Endpoints: append(slices.Clone(record.Endpoints), endpointRef{nst.ID, nst.Name, ep.ID})}
	if err := statefile.Write(e.containerDir(st.ID), endpointsFile, after); err != nil {
		return nil, err
	}
	crashpoint.At("connect: noted")
	err = e.plug(ctx, one, ns)
	if !alive(st) { // and the kernel may have removed the interface before it was complete
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, err
	}
	// The namespace may be closed by the caller's undo only while it is open.
	undo = func() {
		if ns, err := c.namespaceOf(); err == nil {
			defer ns.Close()
			e.unplug(context.WithoutCancel(ctx), st, one, ns, record)
		}
	}
	return undo, nil
}

// unplug takes a container that runs out of a network. What is left of a container that has ended meanwhile is freed by
// who notes that.
func (e *Engine) unplug(ctx context.Context, st *containerState, one connection, ns *netdrv.Namespace, after endpointsRecord) {
	var errs []error
	if driver, err := e.nets.driver(e, one.network.driver()); err == nil && one.state.Endpoint.MAC != nil {
		errs = append(errs, driver.Disconnect(ctx, one.network.network(e.root), &one.state.Endpoint, ns))
	}
	e.endEndpoints([]connection{one})
	errs = append(errs, e.reclaim(ctx, one.network, one.state), statefile.Write(e.containerDir(st.ID), endpointsFile, after))
	if err := errors.Join(errs...); err != nil && alive(st) {
		e.log.Warn("take a container out of a network", "container", st.Name, "network", one.network.Name, "error", err)
	}
}

// Disconnect takes the container out of the network, at once if it runs, whoever owns it, and at its next starts.
//
// The error matches fs.ErrNotExist if it is not connected, and ErrInUse if its ports are published from this network and it
// runs: stop it first.
func (n *Network) Disconnect(ctx context.Context, c *Container) error {
	return n.fail("disconnect a container from", n.eng.disconnectLive(ctx, c, n.id))
}

func (e *Engine) disconnectLive(ctx context.Context, c *Container, networkID string) error {
	ctx, st, end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	before := st.Spec.attachments()
	if mode, _ := st.Spec.networkMode(); mode != "" {
		before = nil
	}
	i, err := e.attachmentTo(before, networkID)
	if err != nil {
		return err
	}
	was := false
	if alive(st) {
		if was, err = e.unplugLive(ctx, c, st, networkID); err != nil {
			return err
		}
	}
	if i < 0 && was {
		return nil // whoever was connecting it was killed before that was noted
	}
	if i < 0 {
		return fmt.Errorf("the container %q is not connected: %w", st.Name, fs.ErrNotExist)
	}
	after := slices.Delete(slices.Clone(before), i, i+1)
	return e.change(st.ID, func(ch *containerChanges) { ch.Networks = &after })
}

// unplugLive takes a container that runs out of a network, and reports whether it was in it.
func (e *Engine) unplugLive(ctx context.Context, c *Container, st *containerState, networkID string) (was bool, err error) {
	list, err := e.endpointsOf(st.ID)
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(list, func(one connection) bool { return one.network.ID == networkID && !one.state.over })
	if i < 0 {
		return false, nil // since its start the spec has been changed, and the start was not seen
	}
	one := list[i]
	if len(one.state.Ports) > 0 {
		return false, fmt.Errorf("%w: %v is published from it: stop the container first", ErrInUse, one.state.Ports[0])
	}
	record, err := e.endpointRefs(st.ID)
	if err != nil {
		return false, err
	}
	record.Endpoints = slices.DeleteFunc(record.Endpoints, func(r endpointRef) bool { return r.Endpoint == one.state.ID })
	ns, err := c.namespaceOf()
	if err != nil {
		return false, err
	}
	defer ns.Close()
	driver, err := e.nets.driver(e, one.network.driver())
	if err != nil {
		return false, err
	}
	if one.state.Endpoint.MAC != nil {
		if err := driver.Disconnect(ctx, one.network.network(e.root), &one.state.Endpoint, ns); err != nil {
			return false, err
		}
	}
	crashpoint.At("disconnect: interface gone")
	e.endEndpoints(list[i : i+1])
	if err := e.reclaim(ctx, one.network, one.state); err != nil {
		return false, err
	}
	crashpoint.At("disconnect: freed")
	return true, statefile.Write(e.containerDir(st.ID), endpointsFile, record)
}

// endpointRefs reads endpoints.json.
func (e *Engine) endpointRefs(id string) (endpointsRecord, error) {
	r := endpointsRecord{Version: stateVersion}
	err := statefile.Read(e.containerDir(id), endpointsFile, &r)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, statefile.ErrTorn) { // it is not synced: what runs has not seen a power failure
		return endpointsRecord{Version: stateVersion}, nil
	}
	if err == nil && r.Version != stateVersion {
		err = fmt.Errorf("connections of container %s (version %d): %w", id, r.Version, ErrCorrupt)
	}
	return r, err
}

// hasWayOut reports whether a container is on a network that is not internal, at this moment: else nothing that it asks may
// leave the host either (CVE-2024-29018).
func (e *Engine) hasWayOut(id string) bool {
	for _, n := range e.resolvable(id) {
		if st, err := e.readNetwork(n.id); err == nil && !st.Spec.Internal {
			return true
		}
	}
	return false
}

// resolvable are the networks whose names a container can resolve, at this moment, whoever has connected it.
func (e *Engine) resolvable(id string) []namedNetwork {
	r, err := e.endpointRefs(id)
	if err != nil {
		return nil
	}
	list := make([]namedNetwork, len(r.Endpoints))
	for i, ref := range r.Endpoints {
		list[i] = namedNetwork{ref.Network, ref.Name}
	}
	return list
}
