package coracle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/filelock"
	"github.com/coracle-dev/coracle/internal/lockorder"
	"github.com/coracle-dev/coracle/internal/statefile"
	"github.com/coracle-dev/coracle/netdrv"
)

// networking is what an engine has of networks: drivers, the networks that it has on the host, and the publisher of its
// attached containers' ports. Everything is made when it is first needed.
type networking struct {
	mu        sync.Mutex
	drivers   map[string]netdrv.Driver
	up        map[string]*upNetwork // by id
	hints     map[string]netip.Addr // where to look for the next free address
	publisher *netdrv.Publisher

	ending sync.WaitGroup // endpoints that are being freed
}

// upNetwork is a network that this engine has on the host.
type upNetwork struct {
	mu     sync.Mutex
	state  *networkState // nil until it is up
	net    *netdrv.Network
	driver netdrv.Driver
	lock   *os.File // networks/<id>/up, locked: nobody else takes it down
}

func (n *networking) hint(key string) netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hints[key]
}

func (n *networking) setHint(key string, a netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hints == nil {
		n.hints = make(map[string]netip.Addr)
	}
	n.hints[key] = a
}

// driver opens a driver, once.
func (n *networking) driver(e *Engine, name string) (netdrv.Driver, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d := n.drivers[name]; d != nil {
		return d, nil
	}
	d, err := netdrv.Open(name, netdrv.Config{Root: e.root, Run: e.hostDir(), Lock: e.lockHost, Logger: e.log})
	if err != nil {
		return nil, err
	}
	if n.drivers == nil {
		n.drivers = make(map[string]netdrv.Driver)
	}
	n.drivers[name] = d
	return d, nil
}

// portsOf returns the publisher of the attached containers.
func (n *networking) attachedPublisher(e *Engine) (*netdrv.Publisher, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.publisher == nil {
		p, err := netdrv.NewPublisher("e-" + e.owner.id)
		if err != nil {
			return nil, err
		}
		n.publisher = p
	}
	return n.publisher, nil
}

// hostDir is where locks are that all roots of the host share.
func (e *Engine) hostDir() string { return cmp.Or(runDir(e.config.Run), e.root) }

// lockHost locks what the networks of all roots share: the routes of the host, its forwarding, its foreign firewall.
func (e *Engine) lockHost(ctx context.Context) (func(), error) {
	if err := os.MkdirAll(e.hostDir(), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(e.hostDir(), "network.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := filelock.Lock(ctx, f); err != nil {
		f.Close()
		return nil, err
	}
	released := lockorder.Taken(lockorder.HostNetwork, "network.lock")
	return func() {
		released()
		f.Close()
	}, nil
}

// errLinkStays says that an interface outlives its container.
var errLinkStays = errors.New("the interface of a container that has ended is still there: another process has its network namespace")

// upMark is networks/<id>/onhost: something of the network may be on the host.
const upMark = "onhost"

// bringUp makes sure that the network is on the host, and that nobody takes it down while this engine is open.
func (n *networking) bringUp(ctx context.Context, e *Engine, id string) (*upNetwork, error) {
	n.mu.Lock()
	u := n.up[id]
	if u == nil {
		u = &upNetwork{}
		if n.up == nil {
			n.up = make(map[string]*upNetwork)
		}
		n.up[id] = u
	}
	n.mu.Unlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state != nil {
		if u.driver == nil || u.state.driver() != "bridge" || linkExists(u.net.Interface()) {
			return u, nil
		}
		// Whoever was removing the network was killed, or somebody has removed the bridge.
		u.state = nil
		filelock.Release(u.lock)
	}
	return u, u.bring(ctx, e, id)
}

// touch makes close look whether somebody still uses the network.
func (n *networking) touch(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.up == nil {
		n.up = make(map[string]*upNetwork)
	}
	if n.up[id] == nil {
		n.up[id] = &upNetwork{}
	}
}

func (u *upNetwork) bring(ctx context.Context, e *Engine, id string) (err error) {
	st, unlock, err := e.lockNetwork(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	driver, err := e.nets.driver(e, st.driver())
	if err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(e.networkDir(id), "up"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	// Only who has the network locked takes this one exclusively, and gives it back.
	if err := filelock.RLock(ctx, lock); err != nil {
		return err
	}
	unlockHost, err := e.lockHost(ctx)
	if err != nil {
		return err
	}
	defer unlockHost()
	if err := e.nets.checkSubnets(e, st); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(e.networkDir(id), upMark), nil, 0o600); err != nil {
		return err
	}
	crashpoint.At("network: marked")
	net := st.network(e.root)
	if err := driver.Up(ctx, net); err != nil {
		return err // others may have it up; who closes last sees to the rest
	}
	crashpoint.At("network: up")
	u.state, u.net, u.driver, u.lock = st, net, driver, lock
	return nil
}

// down takes the network off the host. It is locked, and has no endpoints.
func (n *networking) down(ctx context.Context, e *Engine, st *networkState) error {
	n.mu.Lock()
	u := n.up[st.ID]
	delete(n.up, st.ID)
	n.mu.Unlock()
	if u != nil {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.lock != nil {
			filelock.Release(u.lock)
		}
		u.state = nil
	}
	mark := filepath.Join(e.networkDir(st.ID), upMark)
	if _, err := os.Lstat(mark); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	driver, err := n.driver(e, st.driver())
	if err != nil {
		return err
	}
	unlockHost, err := e.lockHost(ctx)
	if err != nil {
		return err
	}
	defer unlockHost()
	if err := driver.Down(ctx, st.network(e.root)); err != nil {
		return err
	}
	crashpoint.At("network: down")
	return os.Remove(mark)
}

// downIfUnused frees what dead engines had of the network, and takes it off the host if no container is connected and no
// engine has it up.
func (n *networking) downIfUnused(ctx context.Context, e *Engine, id string) error {
	st, unlock, err := e.lockNetwork(ctx, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	n.mu.Lock()
	u := n.up[id]
	delete(n.up, id)
	n.mu.Unlock()
	if u != nil && u.lock != nil {
		filelock.Release(u.lock)
	}
	left, err := e.sweepEndpoints(ctx, st)
	if err != nil || left > 0 {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(e.networkDir(id), "up"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer filelock.Release(lock)
	if free, err := filelock.TryLock(lock); err != nil || !free {
		return err
	}
	return n.down(ctx, e, st)
}

// sweepNetworks frees what engines left that were killed, and takes down the networks that nobody uses.
func (e *Engine) sweepNetworks(ctx context.Context) error {
	entries, err := os.ReadDir(e.networksDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		if owner, _, ok := strings.Cut(strings.TrimPrefix(name, "."), "."); ok && name[0] == '.' {
			if !e.ownerAlive(owner) {
				if err := os.RemoveAll(filepath.Join(e.networksDir(), name)); err != nil {
					return err
				}
			}
			continue
		}
		if !validID(name) {
			continue
		}
		st, err := e.readNetwork(name)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				e.log.Warn("a network's state cannot be read", "id", name, "error", err)
			}
			continue
		}
		if e.networkNamed(st.Name) != st.ID && !e.ownerAlive(st.Owner) { // never completed
			if err := os.RemoveAll(e.networkDir(name)); err != nil {
				return err
			}
			continue
		}
		if err := e.nets.downIfUnused(ctx, e, st.ID); err != nil {
			return err
		}
	}
	names, err := os.ReadDir(e.networkNamesDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range names {
		path := filepath.Join(e.networkNamesDir(), entry.Name())
		if id, err := os.Readlink(path); err == nil {
			if _, err := os.Lstat(e.networkDir(id)); errors.Is(err, fs.ErrNotExist) {
				if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
		}
	}
	return nil
}

// close takes down the networks that nobody uses any more, and frees the rest.
func (n *networking) close(e *Engine) error {
	var errs []error
	n.mu.Lock()
	publisher := n.publisher
	n.mu.Unlock()
	if publisher != nil {
		errs = append(errs, publisher.Flush(context.Background())) // or it would take its time
	}
	n.ending.Wait()
	n.mu.Lock()
	ids := make([]string, 0, len(n.up))
	for id := range n.up {
		ids = append(ids, id)
	}
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, id := range ids {
		errs = append(errs, n.downIfUnused(ctx, e, id))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.publisher != nil {
		errs = append(errs, n.publisher.Close())
		n.publisher = nil
	}
	for name, d := range n.drivers {
		errs = append(errs, d.Close())
		delete(n.drivers, name)
	}
	return errors.Join(errs...)
}

// The pools that subnets are chosen from: one of each is 4,094 or 2^64 addresses.
var (
	pool4 = netip.MustParsePrefix("172.16.0.0/12")
	pool6 = netip.MustParsePrefix("fd63:6f72:6163::/48") // a unique local prefix, RFC 4193
)

const (
	poolBits4 = 20
	poolBits6 = 64
)

// settleSubnets gives a new network its subnets.
func (n *networking) settleSubnets(ctx context.Context, e *Engine, st *networkState) error {
	unlock, err := e.lockHost(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	used, err := e.usedSubnets(st.ID)
	if err != nil {
		return err
	}
	return st.settleSubnets(used)
}

// usedPrefix is a range of addresses that somebody has.
type usedPrefix struct {
	netip.Prefix
	by string
}

// usedSubnets are those of the host's routes and of the root's other networks.
func (e *Engine) usedSubnets(but string) ([]usedPrefix, error) {
	routes, err := netdrv.HostRoutes()
	if err != nil {
		return nil, fmt.Errorf("read the host's routes: %w", err)
	}
	var used []usedPrefix
	for _, r := range routes {
		used = append(used, usedPrefix{r, "a route or an address of the host"})
	}
	states, err := e.networks()
	if err != nil {
		return nil, err
	}
	for _, st := range states {
		if st.ID != but {
			for _, s := range st.Subnets {
				used = append(used, usedPrefix{s.Prefix, fmt.Sprintf("the network %q", st.Name)})
			}
		}
	}
	return used, nil
}

func overlapping(used []usedPrefix, p netip.Prefix) (usedPrefix, bool) {
	for _, u := range used {
		if u.Bits() > 0 && u.Overlaps(p) {
			return u, true
		}
	}
	return usedPrefix{}, false
}

// settleSubnets completes the spec's subnets, and chooses those that it leaves open.
func (st *networkState) settleSubnets(used []usedPrefix) error {
	st.Subnets = slices.Clone(st.Spec.Subnets)
	bridged := st.driver() == "bridge"
	for _, s := range st.Subnets {
		if by, taken := overlapping(used, s.Prefix); taken && bridged {
			return fmt.Errorf("%w: the subnet %v overlaps %v of %s: choose another one, or leave it to the engine", ErrInUse, s.Prefix, by.Prefix, by.by)
		}
	}
	has6 := slices.ContainsFunc(st.Subnets, func(s Subnet) bool { return s.Prefix.Addr().Is6() })
	if len(st.Spec.Subnets) == 0 {
		p, err := chooseSubnet(pool4, poolBits4, used, st.ID)
		if err != nil {
			return err
		}
		st.Subnets = append(st.Subnets, Subnet{Prefix: p})
	}
	if st.Spec.IPv6 && !has6 {
		p, err := chooseSubnet(pool6, poolBits6, used, st.ID)
		if err != nil {
			return err
		}
		st.Subnets = append(st.Subnets, Subnet{Prefix: p})
	}
	for i := range st.Subnets {
		if s := &st.Subnets[i]; !s.Gateway.IsValid() {
			s.Gateway = s.Prefix.Addr().Next()
		}
	}
	return nil
}

// chooseSubnet chooses one of the pool's parts that nobody uses. Where the search begins is the network's own, so that
// the networks of different roots seldom choose the same.
func chooseSubnet(pool netip.Prefix, bits int, used []usedPrefix, id string) (netip.Prefix, error) {
	count := 1 << (bits - pool.Bits())
	var at int
	fmt.Sscanf(id[:4], "%x", &at)
	for i := range count {
		p := partOf(pool, bits, (at+i)%count)
		if _, taken := overlapping(used, p); !taken {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("%w: all of %v is used by routes of the host: name a subnet", ErrInUse, pool)
}

// partOf returns the i-th part of a prefix with that many bits.
func partOf(pool netip.Prefix, bits, i int) netip.Prefix {
	b := pool.Addr().AsSlice()
	for k := 0; i > 0; k++ { // add i from the last bit of the part's number upwards
		if i&1 != 0 {
			bit := bits - 1 - k
			b[bit/8] |= 1 << (7 - bit%8)
		}
		i >>= 1
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, bits)
}

// checkSubnets is called before the network comes onto the host. What was chosen for it may be somebody else's by now: then
// it gets other subnets, as nobody is connected. What its creator chose is his to change.
func (n *networking) checkSubnets(e *Engine, st *networkState) error {
	if st.driver() != "bridge" {
		return nil
	}
	if linkExists(st.network(e.root).Interface()) {
		return nil // it is there, and its routes are its own
	}
	used, err := e.usedSubnets(st.ID)
	if err != nil {
		return err
	}
	clash := slices.ContainsFunc(st.Subnets, func(s Subnet) bool {
		_, taken := overlapping(used, s.Prefix)
		return taken
	})
	if !clash {
		return nil
	}
	if err := st.settleSubnets(used); err != nil {
		return err
	}
	e.log.Info("another subnet for a network: the one it had is used by something else now", "network", st.Name, slog.Any("subnets", st.Subnets))
	return statefile.WriteSynced(e.networkDir(st.ID), "network.json", st)
}
