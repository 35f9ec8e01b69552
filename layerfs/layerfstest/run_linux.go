package layerfstest

import (
	"testing"

	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/layerfs"
)

// Run checks a driver as subtests of t. It skips without root. open is called many times, each time for a store of its
// own. A nil opts means a driver without limits.
func Run(t *testing.T, open layerfs.OpenDriver, opts *Options) {
	t.Helper()
	testutil.RequireRoot(t)
	var o Options
	if opts != nil {
		o = *opts
	}
	for _, test := range []struct {
		name string
		f    func(t *testing.T, w *world)
		// writes: it is nothing for drivers whose mounts are read-only.
		writes bool
	}{
		{"what a root filesystem holds", testContent, false},
		{"attributes of the root", testRoot, false},
		{"numbers of layers", testNumbers, false},
		{"writes go to the snapshot", testWrites, true},
		{"snapshots of the same layers", testIsolation, true},
		{"a read-only mount", testReadOnly, false},
		{"a mount is detached", testDetached, false},
		{"another process", testStateless, false},
		{"volatile", testVolatile, true},
		{"removal", testRemove, false},
		{"removal of what a crash left", testHalfMade, false},
		{"errors", testErrors, false},
		{"many at once", testConcurrent, false},
		{"close", testClose, false},
		{"in a store", testStore, false},
	} {
		if test.writes && o.ReadOnly {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			before := testutil.Resources()
			t.Run("run", func(t *testing.T) { test.f(t, newWorld(t, open, o)) })
			testutil.Settled(t, before)
		})
	}
}
