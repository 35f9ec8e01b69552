package layerfs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle/layerfs"
)

func ExampleStoreOptions() {
	dir, err := os.MkdirTemp("", "layerfs-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	st, err := layerfs.OpenStore(dir, &layerfs.StoreOptions{
		Driver: "copy", // where overlay cannot be had
		Limits: layerfs.Limits{Bytes: 1 << 30},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()
	fmt.Println(st.Dir() == dir)
	// Output: true
}

func ExampleLimits() {
	dir, err := os.MkdirTemp("", "layerfs-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	st, err := layerfs.OpenStore(dir, &layerfs.StoreOptions{Limits: layerfs.Limits{FileBytes: 4}})
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()
	_, err = st.Unpack(context.Background(), spec(archive("hello", "world")))
	var limit *layerfs.LimitError
	if errors.As(err, &limit) {
		fmt.Println(limit)
	}
	// Output: layer exceeds the limit of 4 for FileBytes at entry "hello": raise Limits.FileBytes if the image is trusted
}

func ExampleLayerSpec() {
	st, done := tempStore()
	defer done()
	blob := archive("hello", "world") // in truth from a registry
	layer, err := st.Unpack(context.Background(), layerfs.LayerSpec{
		Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(blob), Size: int64(len(blob))},
		DiffID:     digest.FromBytes(blob), // the same, as it is not compressed
		Open: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(blob)), nil
		},
	})
	fmt.Println(layer.DiffID == digest.FromBytes(blob), err)
	// Output: true <nil>
}

func ExampleLayer() {
	st, done := tempStore()
	defer done()
	blob := archive("hello", "world")
	layer, err := st.Unpack(context.Background(), spec(blob))
	if err != nil {
		log.Fatal(err)
	}
	// Later, and in any process, an image is found by the diffIDs of its config.
	again, err := st.Layers([]digest.Digest{digest.FromBytes(blob)})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(again[0] == layer, layer.ChainID == layer.DiffID) // the lowest layer's are the same
	// Output: true true
}

func ExampleUnpackOptions() {
	st, done := tempStore()
	defer done()
	layers, err := st.UnpackAll(context.Background(), []layerfs.LayerSpec{
		spec(archive("hello", "world")),
		spec(archive("bye", "world")),
	}, &layerfs.UnpackOptions{Parallelism: 1}) // one after the other, for a slow disk
	fmt.Println(len(layers), "layers,", err)
	// Output: 2 layers, <nil>
}

func ExampleReference() {
	st, done := tempStore()
	defer done()
	manifest := []byte("{}")
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	ctx := context.Background()
	if err := errors.Join(st.WriteBlob(ctx, desc, bytes.NewReader(manifest)), st.Tag(ctx, "example.com/app:1", desc)); err != nil {
		log.Fatal(err)
	}
	refs, err := st.List()
	if err != nil {
		log.Fatal(err)
	}
	for _, r := range refs {
		fmt.Println(r.Name, r.Descriptor.Digest.Encoded()[:12])
	}
	// Output: example.com/app:1 44136fa355b3
}

func ExampleSnapshotOptions() {
	st, done := tempStore()
	defer done()
	ctx := context.Background()
	layers, err := st.UnpackAll(ctx, []layerfs.LayerSpec{spec(archive("hello", "world"))}, nil)
	if err != nil {
		log.Fatal(err)
	}
	// For one run, as of docker run --rm: nobody will miss it after a power cut.
	snap, err := st.NewSnapshot(ctx, "job-1", layers, &layerfs.SnapshotOptions{Volatile: true})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(snap.ID(), snap.Remove(ctx))
	// Output: job-1 <nil>
}

func ExampleMountOptions() {
	st, done := tempStore()
	defer done()
	ctx := context.Background()
	layers, err := st.UnpackAll(ctx, []layerfs.LayerSpec{spec(archive("hello", "world"))}, nil)
	if err != nil {
		log.Fatal(err)
	}
	snap, err := st.NewSnapshot(ctx, "inspect", layers, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer snap.Remove(ctx)
	root, err := snap.Mount(ctx, &layerfs.MountOptions{ReadOnly: true})
	if err != nil {
		log.Fatal(err)
	}
	defer root.Close()
	err = os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/hello", root.Fd()), []byte("you"), 0o644)
	fmt.Println(errors.Is(err, syscall.EROFS))
	// Output: true
}

func ExampleEntryError() {
	st, done := tempStore()
	defer done()
	_, err := st.Unpack(context.Background(), spec(archive("../etc/passwd", "root::0:0:::")))
	var entry *layerfs.EntryError
	if errors.As(err, &entry) {
		fmt.Println(entry.Entry, errors.Is(err, layerfs.ErrInvalidArchive))
	}
	// Output: ../etc/passwd true
}

func ExampleOverlayError() {
	err := fmt.Errorf("start: %w", &layerfs.OverlayError{ // of Snapshot.Mount
		Step: "fsopen", Layers: 3, Fix: `use the driver "copy"`, Err: syscall.ENODEV, Unsupported: true,
	})
	var overlay *layerfs.OverlayError
	if errors.As(err, &overlay) && errors.Is(err, errors.ErrUnsupported) {
		fmt.Println(overlay.Fix)
	}
	// Output: use the driver "copy"
}

func ExampleOpenDriver() {
	// What a package that has a driver gives to RegisterDriver.
	var open layerfs.OpenDriver = func(config layerfs.DriverConfig) (layerfs.Driver, error) {
		return nil, fmt.Errorf("no disk for %s: %w", config.Dir, errors.ErrUnsupported)
	}
	_, err := open(layerfs.DriverConfig{Dir: "/var/lib/store", Logger: slog.New(slog.DiscardHandler)})
	fmt.Println(err)
	// Output: no disk for /var/lib/store: unsupported operation
}

// A driver can be tested without a store; bindDriver is the one of the example of Driver.
func ExampleDriverConfig() {
	driver, err := openBind(layerfs.DriverConfig{Dir: "/var/lib/store", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(driver.Close())
	// Output: <nil>
}

// What a driver is given; bindDriver is the one of the example of Driver.
func ExampleSnapshotDir() {
	var driver layerfs.Driver = bindDriver{}
	err := driver.Prepare(context.Background(), &layerfs.SnapshotDir{
		LayerPaths: []string{"/var/lib/store/layers/d-1", "/var/lib/store/layers/d-2"},
		Root:       layerfs.RootAttr{Mode: 0o755},
	})
	fmt.Println(err)
	// Output: bind 2 layers: unsupported operation
}

func ExampleRootAttr() {
	b, err := json.Marshal(layerfs.RootAttr{Mode: 0o755, UID: 1000, GID: 1000})
	fmt.Println(string(b), err)
	// Output: {"mode":493,"uid":1000,"gid":1000} <nil>
}
