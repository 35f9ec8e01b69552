//go:build !linux

package layerfstest

import (
	"testing"

	"github.com/coracle-dev/coracle/layerfs"
)

// Run skips the test: there are no drivers outside of Linux.
func Run(t *testing.T, _ layerfs.OpenDriver, _ *Options) {
	t.Helper()
	t.Skip("layerfs works on Linux only")
}
