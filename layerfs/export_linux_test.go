package layerfs

import (
	"fmt"
	"maps"
	"slices"
)

// OverlayWays are the names of the ways in which the overlay driver can mount on this kernel.
func OverlayWays() ([]string, error) {
	ways, err := waysHere()
	return slices.Sorted(maps.Keys(ways)), err
}

// OpenOverlay opens the overlay driver to mount in one way only.
func OpenOverlay(way string) OpenDriver {
	w, ok := mountWays[way]
	if !ok {
		panic(fmt.Sprintf("no way to mount is called %q", way))
	}
	return func(c DriverConfig) (Driver, error) { return &overlayDriver{dir: c.Dir, way: w}, nil }
}

// OnOwnThread is onOwnThread.
var OnOwnThread = onOwnThread

// BuiltinDriver is builtinDriver.
var BuiltinDriver = builtinDriver
