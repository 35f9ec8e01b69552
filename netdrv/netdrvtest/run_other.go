//go:build !linux

package netdrvtest

import (
	"testing"

	"github.com/coracle-dev/coracle/netdrv"
)

// Run skips the test: there are no drivers outside of Linux.
func Run(t *testing.T, _ netdrv.OpenDriver, _ *Options) {
	t.Helper()
	t.Skip("netdrv works on Linux only")
}
