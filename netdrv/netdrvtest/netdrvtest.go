// Package netdrvtest is what every network driver must pass, as tests that a driver's own package calls:
//
//	func TestDriver(t *testing.T) {
//		netdrvtest.Run(t, mydriver.Open, &netdrvtest.Options{Driver: "mine"})
//	}
//
// Each test has a network namespace that plays the host, and others that play containers; the tests send packets between them and
// look at what is left behind. They need root and Linux. Where the driver says that the kernel lacks something, they are skipped.
package netdrvtest

import (
	"net/netip"
	"testing"
)

// Options say what a driver is like.
type Options struct {
	// Driver is Network.Driver. "" means what the driver does not look at.
	Driver string
	// Options are Network.Options.
	Options map[string]string
	// Subnets are those of the networks; nil means one of each family.
	Subnets []netip.Prefix
	// Prepare is called in the namespace that plays the host before anything else, to make interfaces that the driver needs. May be nil.
	Prepare func(t testing.TB)
	// HostEnd says that endpoints have an interface on the host, whose name the tests choose.
	HostEnd bool
	// ReachHost says that containers reach the gateway's address, which the host has.
	ReachHost bool
	// SharedMAC says that the driver does not set hardware addresses.
	SharedMAC bool
	// RefusesDown says that Down refuses while a container is connected.
	RefusesDown bool
}
