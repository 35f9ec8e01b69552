// Package layerfstest is what every driver for [layerfs.Store] must pass, as tests that a driver's own package calls:
//
//	func TestDriver(t *testing.T) {
//		layerfstest.Run(t, mydriver.Open, nil)
//	}
//
// The tests unpack images into a store as any program does and use the driver as the store does: they prepare, mount,
// remove, in the orders and with the accidents that a machine has, and look at every file. They need root and Linux.
// Directories go where t.TempDir makes them unless [Options] say otherwise; TMPDIR therefore chooses a filesystem.
package layerfstest

// Options say what a driver can do, for [Run]; nil means all of it.
type Options struct {
	// Dir is where stores are made: "" means t.TempDir. It is how one test tries several filesystems.
	Dir string
	// MaxLayers is how many layers the driver can stack: 0 means as many as there are. Prepare or Mount have to answer
	// errors.ErrUnsupported for more, and may do so for none at all.
	MaxLayers int
	// ReadOnly: the driver's mounts cannot be written, with or without MountOptions.ReadOnly.
	ReadOnly bool
	// UserXattrs makes stores with that flavour (layerfs.StoreOptions).
	UserXattrs bool
}
