package netdrv

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// A Subnet is a range of addresses of a network.
type Subnet struct {
	// Prefix is the range, masked: 10.88.0.0/24.
	Prefix netip.Prefix `json:"prefix"`
	// Gateway is the bridge's own address in the range. Drivers without a bridge of their own do not look at it: there
	// the gateway is a router that others run, and an Endpoint names it.
	Gateway netip.Addr `json:"gateway,omitzero"`
}

// A Network is what a driver needs to know of a network: plain data, which the caller stores.
type Network struct {
	// ID is 64 hexadecimal digits, unique for ever.
	ID string `json:"id"`
	// Name is for people, in logs and errors.
	Name string `json:"name"`
	// Driver is the name under which the driver is registered.
	Driver string `json:"driver"`
	// Root is the absolute path of the engine's root that the network belongs to. When that directory does not exist any
	// more, neither does the network: Up takes away what is left of such networks.
	Root string `json:"root"`
	// Subnets has at most one of IPv4 and one of IPv6.
	Subnets []Subnet `json:"subnets,omitempty"`
	// Internal networks have no way out to other networks.
	Internal bool `json:"internal,omitempty"`
	// Isolated networks carry no traffic between their own containers.
	Isolated bool `json:"isolated,omitempty"`
	// MTU is the largest packet in bytes; 0 leaves it to the driver.
	MTU int `json:"mtu,omitempty"`
	// Options are the driver's own; one that it does not know is an error.
	Options map[string]string `json:"options,omitempty"`
}

// Names of interfaces begin so. Nothing else on the host has such names.
const (
	bridgePrefix = "cor-"
	vethPrefix   = "corv"
)

// Interface is the name of the network's own interface on the host, 14 bytes of the 15 that the kernel allows.
func (n *Network) Interface() string { return bridgePrefix + n.ID[:min(len(n.ID), 10)] }

// subnet returns the subnet of a family, or nil.
func (n *Network) subnet(is4 bool) *Subnet {
	for i := range n.Subnets {
		if n.Subnets[i].Prefix.Addr().Is4() == is4 {
			return &n.Subnets[i]
		}
	}
	return nil
}

// check finds what would make no sense to any driver. options are the names that the driver knows.
func (n *Network) check(options ...string) error {
	if id, err := hex.DecodeString(n.ID); err != nil || len(id) != 32 {
		return invalid("Network.ID", n.ID, "an id is 64 hexadecimal digits")
	}
	if n.MTU != 0 && (n.MTU < 68 || n.MTU > 65535) {
		return invalid("Network.MTU", n.MTU, "an MTU is from 68 to 65535 bytes, or 0 for the driver's choice")
	}
	var have4, have6 bool
	for _, s := range n.Subnets {
		switch {
		case !s.Prefix.IsValid() || s.Prefix != s.Prefix.Masked() || s.Prefix.Addr().Is4In6():
			return invalid("Network.Subnets", s.Prefix, "it is not an address range")
		case s.Gateway.IsValid() && !s.Prefix.Contains(s.Gateway):
			return invalid("Network.Subnets", s.Gateway, "the gateway is not in "+s.Prefix.String())
		case s.Prefix.Addr().Is4() && have4 || s.Prefix.Addr().Is6() && have6:
			return invalid("Network.Subnets", s.Prefix, "a network has at most one range of each family")
		case n.MTU != 0 && n.MTU < 1280 && s.Prefix.Addr().Is6():
			return invalid("Network.MTU", n.MTU, "IPv6 needs at least 1280 bytes (RFC 8200, section 5)")
		}
		have4, have6 = have4 || s.Prefix.Addr().Is4(), have6 || s.Prefix.Addr().Is6()
	}
	for _, name := range slices.Sorted(maps.Keys(n.Options)) {
		if !slices.Contains(options, name) {
			return invalid("Network.Options", name, fmt.Sprintf("the driver %s has no such option; it has %q", n.Driver, options))
		}
	}
	return nil
}

// An Endpoint is a container's place in a network: plain data, which the caller chooses and stores before the driver acts.
type Endpoint struct {
	// ID is the container's: 64 hexadecimal digits.
	ID string `json:"id"`
	// Interface is its name in the container: "eth0".
	Interface string `json:"interface"`
	// HostInterface is the name of the host's end: "corv" and 10 hexadecimal digits, random, never used twice. Empty for
	// drivers that have none.
	HostInterface string `json:"hostInterface,omitempty"`
	// MAC is the hardware address in the container, locally administered. Never nil, though drivers that cannot set one (ipvlan)
	// do not look at it.
	MAC net.HardwareAddr `json:"mac"`
	// Addresses are those in the container, each with the prefix length of its subnet: 10.88.0.7/24.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Gateway4 and Gateway6 are where default routes lead. Invalid: no default route by this endpoint, as where another
	// network of the container has it.
	Gateway4 netip.Addr `json:"gateway4,omitzero"`
	Gateway6 netip.Addr `json:"gateway6,omitzero"`
	// MTU is the largest packet in bytes; 0 means that of the network.
	MTU int `json:"mtu,omitempty"`
}

// check finds what would make no sense to any driver.
func (ep *Endpoint) check() error {
	switch {
	case !validInterface(ep.Interface):
		return invalid("Endpoint.Interface", ep.Interface, "a name of an interface is 1 to 15 bytes without / : and space")
	case len(ep.MAC) != 6 || ep.MAC[0]&1 != 0:
		return invalid("Endpoint.MAC", ep.MAC, "a hardware address is 6 bytes, and not a group's")
	case ep.MTU != 0 && (ep.MTU < 68 || ep.MTU > 65535):
		return invalid("Endpoint.MTU", ep.MTU, "an MTU is from 68 to 65535 bytes, or 0 for the network's")
	case ep.MTU != 0 && ep.MTU < 1280 && ep.has6():
		return invalid("Endpoint.MTU", ep.MTU, "IPv6 needs at least 1280 bytes (RFC 8200, section 5)")
	case ep.Gateway4.IsValid() && !ep.Gateway4.Is4():
		return invalid("Endpoint.Gateway4", ep.Gateway4, "it is not an IPv4 address")
	case ep.Gateway6.IsValid() && (!ep.Gateway6.Is6() || ep.Gateway6.Is4In6()):
		return invalid("Endpoint.Gateway6", ep.Gateway6, "it is not an IPv6 address")
	}
	for _, a := range ep.Addresses {
		if !a.IsValid() || a.Addr().Is4In6() {
			return invalid("Endpoint.Addresses", a, "it is not an address with a prefix length")
		}
	}
	return nil
}

// has6 reports whether the endpoint has an IPv6 address.
func (ep *Endpoint) has6() bool {
	return slices.ContainsFunc(ep.Addresses, func(a netip.Prefix) bool { return a.Addr().Is6() })
}

// validInterface says what dev_valid_name of the kernel says.
func validInterface(name string) bool {
	if name == "" || len(name) > 15 || name == "." || name == ".." {
		return false
	}
	for _, c := range []byte(name) {
		if c == '/' || c == ':' || c == '%' || c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// Counters are what went through an endpoint, as its container sees it: received is what came into the container.
type Counters struct {
	RxBytes   uint64 `json:"rxBytes"`
	RxPackets uint64 `json:"rxPackets"`
	RxErrors  uint64 `json:"rxErrors"`
	RxDropped uint64 `json:"rxDropped"`
	TxBytes   uint64 `json:"txBytes"`
	TxPackets uint64 `json:"txPackets"`
	TxErrors  uint64 `json:"txErrors"`
	TxDropped uint64 `json:"txDropped"`
}

// Config is what a driver gets when it is opened.
type Config struct {
	// Root is the absolute path of the engine's root. Only what is logged needs it.
	Root string
	// Run is the directory of the locks that all engines of the host share.
	Run string
	// Lock takes the lock that the callers of Up and Down hold, and returns what gives it back. What others have removed is put
	// back under it. Nil: nobody else has these networks.
	Lock func(context.Context) (unlock func(), err error)
	// Logger is told what is changed on the host. Nil: nobody is.
	Logger *slog.Logger
}

// A Driver makes networks of one kind. It keeps nothing in memory that another process would need: many processes have the
// same network at once, and each may be killed at any instruction. Its methods are called from many goroutines.
//
// The life of a network: Up before each Connect (it costs little where all is there), Down in the end. The life of
// an endpoint: Connect into the network namespace of a container that is about to start or already runs; then either
// Disconnect, from a container that runs on, or the namespace goes, the kernel takes the interface with it, and Forget removes
// what is left elsewhere. Any of these may never come to be called; the next Up or Forget copes.
//
// An error of Connect leaves nothing behind. Errors match errors.ErrUnsupported where the kernel lacks something
// ([*UnsupportedError] says what), fs.ErrPermission where the program may not do it, and the kernel's errno.
//
// Package netdrvtest checks all of this: the test of a driver is one call of netdrvtest.Run.
type Driver interface {
	// Up makes what the network needs on the host, where it is not there or not as it has to be. The caller holds the lock
	// of the host's networks.
	Up(ctx context.Context, n *Network) error
	// Down removes what Up made. That nothing is there is no error; that a container is still connected is a
	// [*BusyError]. The caller holds the lock of the host's networks.
	Down(ctx context.Context, n *Network) error
	// Connect makes an interface with addresses and routes in a namespace.
	Connect(ctx context.Context, n *Network, ep *Endpoint, ns *Namespace) error
	// Disconnect takes the interface out of the namespace of a container that runs on, and does what Forget does. That it is not
	// there is no error.
	Disconnect(ctx context.Context, n *Network, ep *Endpoint, ns *Namespace) error
	// Forget removes what is left of endpoints whose namespaces are gone. Nothing left is no error.
	Forget(ctx context.Context, n *Network, eps []*Endpoint) error
	// Counters counts what went through an endpoint.
	Counters(ctx context.Context, n *Network, ep *Endpoint, ns *Namespace) (Counters, error)
	// Close frees what the driver holds; networks stay. A second call does nothing.
	Close() error
}

// OpenDriver makes a driver.
type OpenDriver func(Config) (Driver, error)

var (
	driversMu sync.RWMutex
	drivers   = map[string]OpenDriver{}
)

// Register makes a driver available to [Open] by name, usually from an init function of the package that has it, which
// programs then import for that alone. It panics where the name is taken or empty, or open is nil, as that is a mistake in the
// program.
func Register(name string, open OpenDriver) {
	driversMu.Lock()
	defer driversMu.Unlock()
	if _, taken := drivers[name]; taken || builtinDriver(name) != nil || name == "" || open == nil {
		panic(fmt.Sprintf("netdrv: driver %q is registered twice, or without name or function", name))
	}
	drivers[name] = open
}

// Open opens a driver: "bridge", "macvlan", "ipvlan", or one that was registered.
func Open(name string, config Config) (Driver, error) {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	open := builtinDriver(name)
	if open == nil {
		driversMu.RLock()
		open = drivers[name]
		driversMu.RUnlock()
	}
	if open == nil {
		return nil, &UnsupportedError{Feature: fmt.Sprintf("the network driver %q", name),
			Fix: fmt.Sprintf("import the package that registers it, or use one of %q", Drivers())}
	}
	return open(config)
}

// Drivers returns the names of the drivers that can be opened, sorted.
func Drivers() []string {
	driversMu.RLock()
	defer driversMu.RUnlock()
	names := slices.Collect(maps.Keys(drivers))
	for _, n := range []string{"bridge", "macvlan", "ipvlan"} {
		if builtinDriver(n) != nil {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}
