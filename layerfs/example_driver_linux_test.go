package layerfs_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/layerfs"
)

// bindDriver gives images of one layer a root filesystem that nobody can write to: the layer itself.
type bindDriver struct{}

func init() {
	layerfs.RegisterDriver("bind", openBind)
}

func openBind(config layerfs.DriverConfig) (layerfs.Driver, error) {
	config.Logger.Info("root filesystems are read-only", "store", config.Dir)
	return bindDriver{}, nil
}

func (bindDriver) Prepare(_ context.Context, s *layerfs.SnapshotDir) error {
	if len(s.LayerPaths) != 1 {
		return fmt.Errorf("bind %d layers: %w", len(s.LayerPaths), errors.ErrUnsupported)
	}
	return nil
}

func (bindDriver) Mount(_ context.Context, s *layerfs.SnapshotDir, _ *layerfs.MountOptions) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, s.LayerPaths[0], unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: s.LayerPaths[0], Err: err}
	}
	// Private: else the host would see what is mounted below.
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "mount_setattr", Path: s.LayerPaths[0], Err: err}
	}
	return os.NewFile(uintptr(fd), s.LayerPaths[0]), nil
}

func (bindDriver) Remove(context.Context, *layerfs.SnapshotDir) error { return nil }

func (bindDriver) Close() error { return nil }

func ExampleDriver() {
	dir, err := os.MkdirTemp("", "layerfs-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	st, err := layerfs.OpenStore(dir, &layerfs.StoreOptions{Driver: "bind"})
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()
	ctx := context.Background()
	layers, err := st.UnpackAll(ctx, []layerfs.LayerSpec{spec(archive("hello", "world")), spec(archive("bye", "world"))}, nil)
	if err != nil {
		log.Fatal(err)
	}
	_, err = st.NewSnapshot(ctx, "two", layers, nil)
	fmt.Println(errors.Is(err, errors.ErrUnsupported))
	snap, err := st.NewSnapshot(ctx, "one", layers[:1], nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(snap.ID(), snap.Remove(ctx))
	// Output:
	// true
	// one <nil>
}
