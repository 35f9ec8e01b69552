package layerfs_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/layerfs"
	"github.com/coracle-dev/coracle/layerfs/layerfstest"
)

// TestDrivers is the conformance suite on the filesystem of t.TempDir; TestFilesystems has others.
func TestDrivers(t *testing.T) {
	testutil.RequireRoot(t)
	ways, err := layerfs.OverlayWays()
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range ways {
		if testutil.Short() && way != "auto" {
			continue
		}
		t.Run("overlay, "+way, func(t *testing.T) {
			o := layerfstest.Options{}
			if way == "descriptor names" {
				o.MaxLayers = 30 // whose numbers fit into a mount option of 255 bytes
			}
			layerfstest.Run(t, layerfs.OpenOverlay(way), &o)
		})
	}
	t.Run("overlay with user attributes", func(t *testing.T) {
		if testutil.Short() {
			t.Skip("-short: much the same")
		}
		layerfstest.Run(t, layerfs.BuiltinDriver("overlay"), &layerfstest.Options{UserXattrs: true})
	})
	t.Run("copy", func(t *testing.T) {
		layerfstest.Run(t, layerfs.BuiltinDriver("copy"), nil)
	})
	t.Run("one of a program's own", func(t *testing.T) {
		layerfstest.Run(t, openBind, &layerfstest.Options{MaxLayers: 1, ReadOnly: true})
	})
}

func TestRegisterDriver(t *testing.T) {
	names := layerfs.Drivers()
	if !slices.IsSorted(names) || !slices.Contains(names, "bind") || !slices.Contains(names, "copy") || !slices.Contains(names, "overlay") {
		t.Errorf("%q", names)
	}
	for name, open := range map[string]layerfs.OpenDriver{"bind": openBind, "overlay": openBind, "copy": openBind, "": openBind, "nil": nil} {
		func() {
			defer func() {
				if r, ok := recover().(string); !ok || !strings.Contains(r, "\""+name+"\"") {
					t.Errorf("%q: panics with %v", name, r)
				}
			}()
			layerfs.RegisterDriver(name, open)
		}()
	}
	if !slices.Equal(layerfs.Drivers(), names) {
		t.Errorf("what panicked is registered: %q", layerfs.Drivers())
	}
	_, err := layerfs.OpenStore(t.TempDir(), &layerfs.StoreOptions{Driver: "nobody"})
	if err == nil || !strings.Contains(err.Error(), `"nobody"`) || !strings.Contains(err.Error(), "import") {
		t.Errorf("%v", err)
	}
}
