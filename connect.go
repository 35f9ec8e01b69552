package coracle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/statefile"
	"github.com/coracle-dev/coracle/netdrv"
	"github.com/coracle-dev/coracle/netdrv/dns"
)

// endpointsFile is containers/<id>/endpoints.json: where the container is connected, since its last start.
const endpointsFile = "endpoints.json"

// endpointsRecord is endpoints.json.
type endpointsRecord struct {
	Version   int
	Endpoints []endpointRef
}

// endpointRef names an endpoint, and its network by id and name.
type endpointRef struct{ Network, Name, Endpoint string }

// A connection is one endpoint of a container.
type connection struct {
	network *networkState
	state   *endpointState
}

// endpointsOf returns the connections of a container that runs, or did when it was last looked at.
func (e *Engine) endpointsOf(id string) ([]connection, error) {
	r, err := e.endpointRefs(id)
	if err != nil {
		return nil, err
	}
	var list []connection
	for _, ref := range r.Endpoints {
		st, err := e.readNetwork(ref.Network)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		ep, err := e.readEndpoint(ref.Network, ref.Endpoint)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, connection{st, ep})
	}
	return list, nil
}

// connected is what one start of a container has of networks.
type connected struct {
	eng *Engine
	id  string

	ns   *netdrv.Namespace // until the container is started
	join *os.File          // a namespace that is another one's, until then
	path string            // for the runtime spec
	of   string            // the container that the network is of, if it is another one

	mu        sync.Mutex
	list      []connection
	held      []*os.File        // sockets that keep host ports
	published []netdrv.Port     // by publisher
	publisher *netdrv.Publisher // of the engine, or the container's own
	own       bool
	socket    *os.File // of the publisher
	resolver  *dns.Server
	recorded  bool // in endpoints.json
	ended     bool
	portsFree chan struct{} // closed when the held ones are closed, after the end
}

// pendingConnect is a container that is being connected.
type pendingConnect struct {
	done chan struct{} // closed when the following are set
	net  *connected    // nil for NetworkNone and NetworkHost
	err  error
}

// beginConnect begins to connect a container that is being started.
func (e *Engine) beginConnect(ctx context.Context, st *containerState) *pendingConnect {
	p := &pendingConnect{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		switch mode, target := st.Spec.networkMode(); mode {
		case "":
			p.net, p.err = e.connect(ctx, st)
		case "container":
			p.net, p.err = e.shareNetwork(target)
		case "ns":
			p.net = &connected{eng: e, id: st.ID, path: target}
		}
	}()
	return p
}

// wait waits for it.
func (p *pendingConnect) wait() (*connected, error) {
	<-p.done
	return p.net, p.err
}

// discard undoes it.
func (p *pendingConnect) discard() {
	<-p.done
	p.net.end()
}

// shareNetwork opens the network namespace of another container, which runs.
func (e *Engine) shareNetwork(nameOrID string) (*connected, error) {
	other, err := e.container(nameOrID)
	if err != nil {
		return nil, fmt.Errorf("share the network of the container %q: %w", nameOrID, err)
	}
	f, st, err := other.openNetwork()
	if err != nil {
		return nil, fmt.Errorf("share the network of the container %q: %w", nameOrID, err)
	}
	return &connected{eng: e, join: f, path: fmt.Sprintf("/proc/self/fd/%d", f.Fd()), of: st.ID}, nil
}

// connections are the endpoints, for a container that has some.
func (c *connected) connections() []connection {
	if c == nil {
		return nil
	}
	return c.list
}

// connect makes the network namespace of a container that is being started and connects it. Nothing is left of it if it
// fails. The container is locked.
func (e *Engine) connect(ctx context.Context, st *containerState) (_ *connected, err error) {
	c := &connected{eng: e, id: st.ID}
	defer func() {
		if err != nil {
			c.end()
		}
	}()
	if c.ns, err = netdrv.NewNamespace(); err != nil {
		return nil, err
	}
	crashpoint.At("network: namespace made")
	attachments := st.Spec.attachments()
	for i, a := range attachments {
		if err := c.attach(ctx, st, a, i); err != nil {
			return nil, fmt.Errorf("connect to the network %q: %w", a.Network, err)
		}
	}
	if err := c.publish(ctx, st); err != nil {
		return nil, err
	}
	if err := c.plug(ctx, attachments); err != nil {
		return nil, err
	}
	if !st.Spec.Detached {
		if err := c.serveNames(st); err != nil {
			return nil, err
		}
	}
	record := endpointsRecord{Version: stateVersion}
	for _, one := range c.list {
		record.Endpoints = append(record.Endpoints, endpointRef{one.network.ID, one.network.Name, one.state.ID})
	}
	if err := statefile.Write(e.containerDir(st.ID), endpointsFile, record); err != nil {
		return nil, err
	}
	c.recorded = true
	c.path = fmt.Sprintf("/proc/self/fd/%d", c.ns.File().Fd())
	return c, nil
}

// leave takes the container out of the namespace that was made for it: one that belongs to its user namespace, which only its
// Customize function has asked for, is made with its first process.
func (c *connected) leave(ctx context.Context, spec *specs.Spec) error {
	for _, one := range c.list {
		driver, err := c.eng.nets.driver(c.eng, one.network.driver())
		if err != nil {
			return err
		}
		if err := driver.Disconnect(ctx, one.network.network(c.eng.root), &one.state.Endpoint, c.ns); err != nil {
			return fmt.Errorf("leave the network %q: %w", one.network.Name, err)
		}
	}
	if c.resolver != nil {
		c.resolver.Close()
		c.resolver = nil
	}
	c.closeNamespace()
	c.ns, c.path = nil, ""
	setNetworkPath(spec, "")
	return nil
}

// enter connects the container after leave, in the namespace of its first process, which does nothing before.
func (c *connected) enter(ctx context.Context, st *containerState, pidfd *os.File) error {
	ns, err := netdrv.AdoptNamespace(pidfd)
	if err != nil {
		return err
	}
	c.ns = ns
	for _, one := range c.list {
		driver, err := c.eng.nets.driver(c.eng, one.network.driver())
		if err == nil {
			err = driver.Connect(ctx, one.network.network(c.eng.root), &one.state.Endpoint, ns)
		}
		if err == nil {
			err = c.eng.partNew(ctx, one)
		}
		if err != nil {
			return fmt.Errorf("connect to the network %q: %w", one.network.Name, err)
		}
	}
	if st.Spec.Detached {
		return nil
	}
	return c.serveNames(st)
}

// attachments are the networks of the spec, the default one if it names none.
func (s *ContainerSpec) attachments() []Attachment {
	if s.Networks == nil {
		return []Attachment{{Network: NetworkBridge}}
	}
	return s.Networks
}

// findNetworks looks whether there are the networks of a spec.
func (e *Engine) findNetworks(s *ContainerSpec) error {
	if mode, _ := s.networkMode(); mode != "" {
		return nil
	}
	seen := make(map[string]bool)
	for _, a := range s.Networks {
		if a.Network == NetworkBridge || a.Network == "default" {
			continue
		}
		st, err := e.findNetwork(a.Network)
		if err != nil {
			return fmt.Errorf("find the network %q: %w", a.Network, err)
		}
		if seen[st.ID] {
			return fmt.Errorf("%w: Networks: %q comes twice", ErrInvalid, a.Network)
		}
		seen[st.ID] = true
	}
	return nil
}

// attach takes addresses in one network.
func (c *connected) attach(ctx context.Context, st *containerState, a Attachment, i int) error {
	e := c.eng
	nst, err := e.networkFor(ctx, a.Network)
	if err != nil {
		return err
	}
	if _, err := e.nets.bringUp(ctx, e, nst.ID); err != nil {
		return err
	}
	ep, nst, err := e.newEndpoint(ctx, nst.ID, st, "", a)
	if err != nil {
		return err
	}
	c.list = append(c.list, connection{nst, ep})
	ep.Endpoint.Interface = cmp.Or(a.Interface, fmt.Sprint("eth", i))
	// From here on nobody takes it down, but who was removing it before may have been killed halfway.
	_, err = e.nets.bringUp(ctx, e, nst.ID)
	return err
}

// networkFor finds the network of an attachment. The default network is made when it is first needed.
func (e *Engine) networkFor(ctx context.Context, name string) (*networkState, error) {
	if name != NetworkBridge && name != "default" {
		return e.findNetwork(name)
	}
	for {
		if id := e.networkNamed(NetworkBridge); id != "" {
			st, err := e.readNetwork(id)
			if !errors.Is(err, fs.ErrNotExist) {
				return st, err
			}
		}
		_, err := e.createNetwork(ctx, &NetworkSpec{Name: NetworkBridge})
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
}

// plug decides which network has the default routes, and puts the interfaces into the namespace.
func (c *connected) plug(ctx context.Context, attachments []Attachment) error {
	for _, is4 := range []bool{true, false} {
		best := -1
		for i, one := range c.list {
			if one.network.Spec.Internal || !one.network.gateway(is4).IsValid() {
				continue
			}
			if best < 0 || attachments[i].GatewayPriority > attachments[best].GatewayPriority {
				best = i
			}
		}
		if best >= 0 && is4 {
			c.list[best].state.Endpoint.Gateway4 = c.list[best].network.gateway(true)
		} else if best >= 0 {
			c.list[best].state.Endpoint.Gateway6 = c.list[best].network.gateway(false)
		}
	}
	for _, one := range c.list {
		if err := c.eng.plug(ctx, one, c.ns); err != nil {
			return fmt.Errorf("connect to the network %q: %w", one.network.Name, err)
		}
	}
	return nil
}

func (st *networkState) gateway(is4 bool) netip.Addr {
	for _, s := range st.Subnets {
		if s.Prefix.Addr().Is4() == is4 {
			return s.Gateway
		}
	}
	return netip.Addr{}
}

// plug puts the interface of an endpoint into a namespace, and lets others find the container by its names.
func (e *Engine) plug(ctx context.Context, one connection, ns *netdrv.Namespace) error {
	driver, err := e.nets.driver(e, one.network.driver())
	if err != nil {
		return err
	}
	if err := driver.Connect(ctx, one.network.network(e.root), &one.state.Endpoint, ns); err != nil {
		return err
	}
	crashpoint.At("network: interface made")
	one.state.Connected = true
	if err := e.writeEndpoint(one.network.ID, one.state); err != nil {
		return err
	}
	if err := e.partNew(ctx, one); err != nil {
		return err
	}
	if err := errors.Join(e.addNames(one.network.ID, one.state), e.addFollower(one.network.ID, one.state)); err != nil {
		return err
	}
	e.refreshHosts(ctx, one.network.ID)
	crashpoint.At("network: named")
	e.emitNetwork(one.network, ActionConnect, one.state.Container)
	return nil
}

// publish holds the ports of the spec on the host and makes the kernel forward them.
func (c *connected) publish(ctx context.Context, st *containerState) (err error) {
	if len(st.Spec.Ports) == 0 {
		return nil
	}
	i := slices.IndexFunc(c.list, func(one connection) bool { return !one.network.Spec.Internal && one.network.driver() == "bridge" })
	if i < 0 {
		return fmt.Errorf("%w: Ports: the container is on no network that ports can be published from: connect it to a bridge that is not internal", ErrInvalid)
	}
	one := c.list[i]
	held, published, err := holdPorts(st.Spec.Ports)
	if err != nil {
		return err
	}
	c.held = held
	crashpoint.At("network: ports held")
	v4, v6 := one.state.addresses()
	var ports []netdrv.Port
	for _, p := range published {
		to := v4
		if p.Host.Addr().Is6() {
			to = v6
		}
		if !to.IsValid() {
			return fmt.Errorf("%w: Ports: %v: the network %q has no addresses of this family", ErrInvalid, p, one.network.Name)
		}
		ports = append(ports, netdrv.Port{Protocol: p.Protocol, HostAddr: p.Host.Addr(), HostPort: p.Host.Port(), Addr: to, Port: p.Container})
	}
	if c.own = st.Spec.Detached; c.own {
		c.publisher, err = netdrv.NewPublisher("c-" + one.state.ID)
	} else {
		c.publisher, err = c.eng.nets.attachedPublisher(c.eng)
	}
	if err != nil {
		return err
	}
	if c.own {
		if c.socket, err = c.publisher.Socket(); err != nil {
			return err
		}
	}
	if err := c.publisher.Publish(ctx, ports); err != nil {
		return err
	}
	c.published = ports
	crashpoint.At("network: ports published")
	one.state.Ports = published // noted with the interface
	return nil
}

// hold returns what the keeper of a detached container has to keep open: its ports, and the socket that owns the table
// which forwards them.
func (c *connected) hold() []*os.File {
	if c == nil || !c.own {
		return nil
	}
	return append(slices.Clone(c.held), c.socket)
}

// serveNames starts the container's name server: its sockets are in the container's network namespace.
func (c *connected) serveNames(st *containerState) error {
	upstreams, err := upstreamsOf(&st.Spec)
	if err != nil {
		return err
	}
	var udp net.PacketConn
	var tcp net.Listener
	err = c.ns.Do(func() (err error) {
		if udp, err = net.ListenPacket("udp4", resolverAddr+":0"); err != nil {
			return err
		}
		tcp, err = net.Listen("tcp4", resolverAddr+":0")
		return err
	})
	if err == nil {
		err = netdrv.RedirectDNS(c.ns, udp.LocalAddr().(*net.UDPAddr).AddrPort().Port(), tcp.Addr().(*net.TCPAddr).AddrPort().Port())
	}
	if err != nil {
		if udp != nil {
			udp.Close()
		}
		if tcp != nil {
			tcp.Close()
		}
		return fmt.Errorf("serve names to the container: %w", err)
	}
	z := &zone{eng: c.eng, networks: func() []namedNetwork { return c.eng.resolvable(c.id) }}
	c.resolver = dns.Serve(udp, tcp, dns.Config{Zone: z, Private: c.eng.private(c.id), Upstreams: upstreams, Forward: func() bool { return c.eng.hasWayOut(c.id) }, Logger: c.eng.log})
	return nil
}

// resolverAddr is where a container finds its name server, as with Docker.
const resolverAddr = "127.0.0.11"

// started lets go of the namespace, which is the container's from now on.
func (c *connected) started() {
	if c == nil {
		return
	}
	held := connected{ns: c.ns, join: c.join}
	c.ns, c.join = nil, nil
	c.eng.nets.ending.Go(held.closeNamespace) // nobody waits for the kernel
	if c.own {                                // its keeper has them
		closeAll(append(c.held, c.socket))
		c.publisher.Close()
		c.held, c.socket, c.publisher, c.published, c.own = nil, nil, nil, nil, false
	}
}

func (c *connected) closeNamespace() {
	if c.ns != nil {
		c.ns.Close()
	}
	if c.join != nil {
		c.join.Close()
	}
}

// end frees everything when the container has ended. What takes the kernel time goes on after it has returned.
func (c *connected) end() {
	if c == nil {
		return
	}
	c.mu.Lock()
	over := c.ended
	c.ended = true
	c.mu.Unlock()
	if over {
		return
	}
	e := c.eng
	if c.recorded {
		if list, err := e.endpointsOf(c.id); err == nil {
			c.list = list // others may have connected and disconnected it
		}
	}
	c.closeNamespace()
	if c.resolver != nil {
		c.resolver.Close()
	}
	e.endEndpoints(c.list)
	c.portsFree = make(chan struct{})
	e.nets.ending.Go(func() {
		var forgotten <-chan struct{}
		if c.publisher != nil {
			var err error
			if forgotten, err = c.publisher.Withdraw(c.published); err != nil {
				e.log.Warn("withdraw published ports", "container", c.id, "error", err)
			}
		}
		closeAll(c.held) // not before: whoever takes the port next would see his connections go to the container
		close(c.portsFree)
		if c.own {
			if err := c.publisher.Close(); err != nil {
				e.log.Warn("withdraw published ports", "container", c.id, "error", err)
			}
			if c.socket != nil {
				c.socket.Close()
			}
		}
		if forgotten != nil {
			<-forgotten // before another one has the addresses
		}
		c.free(context.Background())
	})
}

// awaitPorts waits until the ports of a container that has ended are free, and nothing of theirs leads anywhere.
func (c *connected) awaitPorts() {
	if c != nil {
		<-c.portsFree
	}
}

func (c *connected) free(ctx context.Context) { c.eng.freeConnections(ctx, c.list) }

// endEndpoints notes that a container has ended.
func (e *Engine) endEndpoints(list []connection) {
	for _, one := range list {
		if one.state.over {
			continue // somebody has done so
		}
		first, err := e.endEndpoint(one.network.ID, one.state)
		if err != nil {
			e.log.Warn("note that a container has left a network", "container", one.state.ContainerName, "network", one.network.Name, "error", err)
		}
		e.refreshHosts(context.Background(), one.network.ID)
		if first && one.state.Connected {
			e.emitNetwork(one.network, ActionDisconnect, one.state.Container)
		}
	}
}

// freeConnections frees addresses when the kernel has removed the interfaces.
func (e *Engine) freeConnections(ctx context.Context, list []connection) {
	for _, one := range list {
		if err := e.reclaim(ctx, one.network, one.state); err != nil && !errors.Is(err, fs.ErrNotExist) {
			e.log.Warn("free a container's place in a network", "container", one.state.ContainerName, "network", one.network.Name, "error", err)
		}
	}
}

// endConnections is connected.end for a container whose end this engine notes without having started it.
func (e *Engine) endConnections(id string) {
	list, err := e.endpointsOf(id)
	if err != nil {
		e.log.Warn("read a container's connections", "id", id, "error", err)
		return
	}
	if len(list) == 0 {
		return
	}
	e.endEndpoints(list)
	for _, one := range list {
		e.nets.touch(one.network.ID)
	}
	e.nets.ending.Go(func() { e.freeConnections(context.Background(), list) })
}

// networkMode says which kind of network a spec asks for: NetworkNone, NetworkHost, "container", "ns" or "" for networks.
func (s *ContainerSpec) networkMode() (mode, target string) {
	if len(s.Networks) == 0 {
		return "", ""
	}
	switch n := s.Networks[0].Network; {
	case n == NetworkNone, n == NetworkHost:
		return n, ""
	case strings.HasPrefix(n, containerNetwork):
		return "container", n[len(containerNetwork):]
	case strings.HasPrefix(n, pathNetwork):
		return "ns", n[len(pathNetwork):]
	}
	return "", ""
}

const (
	containerNetwork = "container:"
	pathNetwork      = "ns:"
)

// validateNetworks checks Networks and Ports.
func (s *ContainerSpec) validateNetworks() error {
	mode, target := s.networkMode()
	if mode != "" && len(s.Networks) > 1 {
		return fmt.Errorf("field Networks: %q stands for itself: name no other network", s.Networks[0].Network)
	}
	seen := make(map[string]bool)
	for i, a := range s.Networks {
		if m, _ := (&ContainerSpec{Networks: s.Networks[i : i+1]}).networkMode(); m != "" && i > 0 {
			return fmt.Errorf("field Networks[%d]: %q stands for itself: name no other network", i, a.Network)
		}
		switch {
		case a.Network == "":
			return fmt.Errorf("field Networks[%d]: no network is named", i)
		case seen[a.Network]:
			return fmt.Errorf("field Networks[%d]: %q comes twice", i, a.Network)
		case a.IPv4.IsValid() && !a.IPv4.Is4():
			return fmt.Errorf("field Networks[%d]: IPv4: %v is none", i, a.IPv4)
		case a.IPv6.IsValid() && (!a.IPv6.Is6() || a.IPv6.Is4In6() || a.IPv6.Zone() != ""):
			return fmt.Errorf("field Networks[%d]: IPv6: %v is none", i, a.IPv6)
		}
		for _, alias := range a.Aliases {
			if !validDNSName(strings.ToLower(alias)) {
				return fmt.Errorf("field Networks[%d]: the alias %q is no name of at most %d bytes", i, alias, maxLabel)
			}
		}
		if mode != "" && (len(a.Aliases) > 0 || a.IPv4.IsValid() || a.IPv6.IsValid() || a.MAC != "" || a.Interface != "" || a.GatewayPriority != 0) {
			return fmt.Errorf("field Networks[%d]: %q has nothing to set", i, a.Network)
		}
		seen[a.Network] = true
	}
	if (mode == "container" || mode == "ns") && target == "" {
		return fmt.Errorf("field Networks[0]: %q names nothing", s.Networks[0].Network)
	}
	if mode != "" && len(s.Ports) > 0 {
		return fmt.Errorf("field Ports: the container has no network of its own to publish from")
	}
	for i := range s.Ports {
		if err := s.Ports[i].validate(); err != nil {
			return fmt.Errorf("field Ports[%d]: %v", i, err)
		}
	}
	return nil
}
