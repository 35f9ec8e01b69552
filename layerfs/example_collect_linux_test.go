package layerfs_test

import (
	"context"
	"fmt"
	"log"

	"github.com/opencontainers/go-digest"

	"github.com/coracle-dev/coracle/layerfs"
)

func ExampleLease() {
	st, done := tempStore()
	defer done()
	ctx := context.Background()
	layer := spec(archive("file", "content"))
	// Before anything is fetched, so that nobody takes it away as soon as it is there.
	lease, err := st.Lease(ctx, []digest.Digest{layer.Descriptor.Digest}, []digest.Digest{layer.DiffID})
	if err != nil {
		log.Fatal(err)
	}
	defer lease.Release()
	if _, err := st.Unpack(ctx, layer); err != nil {
		log.Fatal(err)
	}
	got, err := st.Collect(ctx, func(*layerfs.Collection) error { return nil })
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(got.Layers))
	// Output: 0
}

func ExampleHold() {
	st, done := tempStore()
	defer done()
	ctx := context.Background()
	layer := spec(archive("file", "content"))
	if _, err := st.Unpack(ctx, layer); err != nil {
		log.Fatal(err)
	}
	hold, err := st.Hold(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer hold.Release()
	// What is found now is still there when the snapshot is made.
	layers, err := st.Layers([]digest.Digest{layer.DiffID})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := st.NewSnapshot(ctx, "web", layers, nil); err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(layers))
	// Output: 1
}

func ExampleCollection() {
	st, done := tempStore()
	defer done()
	ctx := context.Background()
	wanted, unwanted := spec(archive("file", "wanted")), spec(archive("file", "unwanted"))
	for _, layer := range []layerfs.LayerSpec{wanted, unwanted} {
		if _, err := st.Unpack(ctx, layer); err != nil {
			log.Fatal(err)
		}
	}
	_, err := st.Collect(ctx, func(c *layerfs.Collection) error {
		c.KeepBlob(wanted.Descriptor.Digest)
		return c.KeepLayers([]digest.Digest{wanted.DiffID})
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(st.HasBlob(wanted.Descriptor.Digest), st.HasBlob(unwanted.Descriptor.Digest))
	// Output: true false
}

func ExampleCollected() {
	st, done := tempStore()
	defer done()
	ctx := context.Background()
	if _, err := st.Unpack(ctx, spec(archive("file", "content"))); err != nil {
		log.Fatal(err)
	}
	got, err := st.Collect(ctx, func(*layerfs.Collection) error { return nil })
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(got.Blobs), len(got.Layers), got.Bytes)
	// Output: 1 1 2055
}
