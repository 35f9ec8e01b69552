//go:build !linux

package coracle

import (
	"net/netip"
	"os"
)

func holdPort(_ string, at netip.AddrPort) (*os.File, netip.AddrPort, error) {
	return nil, at, errNoProtocol
}
