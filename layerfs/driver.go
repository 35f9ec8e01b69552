package layerfs

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"
)

// Driver makes the root filesystem of a snapshot out of unpacked layers and a private directory. A driver keeps no
// state of its own outside that directory, so that any process can continue where another left off. Its methods are
// called from many goroutines.
//
// The life of a snapshot: Prepare once, Mount any number of times, Remove. Each may be the last call ever made when
// the process is killed, and Remove must cope with a half-made directory.
//
// A layer is a directory as overlayfs has it, owned by root and never changed: a file that is deleted below is a character
// device 0:0; a directory that hides those of the same name below has the extended attribute trusted.overlay.opaque
// (user.overlay.opaque with UserXattrs) of value "y"; one with whiteouts in it may have trusted.overlay.origin, without a
// value, which tells overlayfs to hide them where nothing is below. Whatever else is in it, names of one inode included,
// belongs in the root filesystem. The attributes of the root directory are not those of a layer: they are
// [SnapshotDir].Root.
//
// An error of Prepare or Mount leaves no descriptor, mount or process behind; one about a missing layer matches
// fs.ErrNotExist, and one about layers that the driver cannot stack errors.ErrUnsupported. Package layerfstest checks all
// of this: the test of a driver is one call of layerfstest.Run.
type Driver interface {
	// Prepare fills the snapshot's new, empty directory.
	Prepare(ctx context.Context, s *SnapshotDir) error
	// Mount returns a detached mount of the root filesystem, in no mount table and no peer of any mount of the host
	// (mount_namespaces(7), "Shared subtrees"). The caller closes it. It outlives the driver.
	Mount(ctx context.Context, s *SnapshotDir, opts *MountOptions) (*os.File, error)
	// Remove empties the directory, which has been renamed by then. That a thing is missing is no error. It may never be
	// called: after a crash the directory is deleted as any other.
	Remove(ctx context.Context, s *SnapshotDir) error
	// Close frees what the driver holds. A second call does nothing.
	Close() error
}

// SnapshotDir is what a driver works on. Descriptors are borrowed: they are valid during the call only.
type SnapshotDir struct {
	// Dir is the snapshot's own directory, and Path its absolute path, for calls that take nothing else.
	Dir  int
	Path string
	// LayerPaths are the absolute paths of the layers' directories, lowest first; nil for Remove. They are read-only.
	LayerPaths []string
	// Root holds the attributes that the root directory has in the layers.
	Root RootAttr
	// UserXattrs is the store's flavour of overlay attributes, see [StoreOptions].
	UserXattrs bool
	// Volatile is the option of [SnapshotOptions].
	Volatile bool
}

// RootAttr are the attributes of the root directory of an image: those of the topmost layer that has an entry for it.
type RootAttr struct {
	// Mode is the permission bits, with setuid, setgid and sticky as in stat(2).
	Mode uint32 `json:"mode"`
	// UID and GID are its owner.
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
	// ModTime is its modification time. Zero: no layer has an entry for the root, or a time that makes no sense, and
	// the root is as old as the snapshot.
	ModTime time.Time `json:"modTime,omitzero"`
	// Xattrs are its extended attributes by full name, ACLs as the kernel has them; often nil.
	Xattrs map[string][]byte `json:"xattrs,omitempty"`
}

// DriverConfig is what a driver gets when a store is opened.
type DriverConfig struct {
	// Dir is the directory of the store.
	Dir string
	// Logger is never nil.
	Logger *slog.Logger
}

// OpenDriver makes a driver for a store.
type OpenDriver func(DriverConfig) (Driver, error)

var (
	driversMu sync.RWMutex
	drivers   = map[string]OpenDriver{}
)

// RegisterDriver makes a driver available to [StoreOptions] by name, usually from an init function of the package that
// has it, which programs then import for that alone, as they do with drivers of database/sql. It panics where the name is
// taken or empty, or open is nil, as that is a mistake in the program.
func RegisterDriver(name string, open OpenDriver) {
	driversMu.Lock()
	defer driversMu.Unlock()
	if _, taken := drivers[name]; taken || builtinDriver(name) != nil || name == "" || open == nil {
		panic(fmt.Sprintf("layerfs: driver %q is registered twice, or without name or function", name))
	}
	drivers[name] = open
}

// Drivers returns the names of the drivers that can be used, sorted.
func Drivers() []string {
	driversMu.RLock()
	defer driversMu.RUnlock()
	names := slices.Collect(maps.Keys(drivers))
	for _, n := range []string{"overlay", "copy"} {
		if builtinDriver(n) != nil {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

func findDriver(name string) (OpenDriver, error) {
	if name == "" {
		name = "overlay"
	}
	if open := builtinDriver(name); open != nil {
		return open, nil
	}
	driversMu.RLock()
	defer driversMu.RUnlock()
	if open := drivers[name]; open != nil {
		return open, nil
	}
	return nil, fmt.Errorf("layerfs: no snapshot driver is called %q: import the package that registers it, or use \"overlay\" or \"copy\"", name)
}
