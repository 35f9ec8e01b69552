package layerfs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"runtime"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle/layerfs"
)

// tempStore makes a store for an example, or says that there is none on this system.
func tempStore() (*layerfs.Store, func()) {
	dir, err := os.MkdirTemp("", "layerfs-example-")
	if err != nil {
		log.Fatal(err)
	}
	st, err := layerfs.OpenStore(dir, nil)
	if err != nil {
		log.Fatal(err)
	}
	return st, func() { _ = st.Close(); _ = os.RemoveAll(dir) }
}

// archive makes a layer of one file.
func archive(name, data string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Uid: os.Geteuid(), Gid: os.Getegid()})
	_, _ = io.WriteString(w, data)
	_ = w.Close()
	return buf.Bytes()
}

func spec(data []byte) layerfs.LayerSpec {
	return layerfs.LayerSpec{
		Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(data), Size: int64(len(data))},
		DiffID:     digest.FromBytes(data),
		Open:       func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
	}
}

func ExampleStore() {
	if runtime.GOOS != "linux" {
		fmt.Println("sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03 true")
		return
	}
	st, done := tempStore()
	defer done()
	ctx := context.Background()
	manifest := []byte("hello\n")
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	if err := st.WriteBlob(ctx, desc, bytes.NewReader(manifest)); err != nil {
		log.Fatal(err)
	}
	if err := st.Tag(ctx, "example.com/app:1", desc); err != nil {
		log.Fatal(err)
	}
	got, err := st.Resolve("example.com/app:1")
	if err != nil {
		log.Fatal(err)
	}
	_, err = st.Resolve("example.com/app:2")
	fmt.Println(got.Digest, errors.Is(err, fs.ErrNotExist))
	// Output: sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03 true
}

func ExampleStore_UnpackAll() {
	if runtime.GOOS != "linux" {
		fmt.Println("2 layers")
		return
	}
	st, done := tempStore()
	defer done()
	layers, err := st.UnpackAll(context.Background(), []layerfs.LayerSpec{
		spec(archive("hello", "world")),
		spec(archive("etc/motd", "welcome")), // names no directory etc: it is applied against the layer below
	}, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(layers), "layers")
	// Output: 2 layers
}

func ExampleSnapshot() {
	st, done := tempStore()
	defer done()
	ctx := context.Background()
	layers, err := st.UnpackAll(ctx, []layerfs.LayerSpec{spec(archive("hello", "world"))}, nil)
	if err != nil {
		log.Fatal(err)
	}
	snap, err := st.NewSnapshot(ctx, "example", layers, &layerfs.SnapshotOptions{Volatile: true})
	if err != nil {
		log.Fatal(err)
	}
	defer snap.Remove(ctx)
	root, err := snap.Mount(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer root.Close()
	data, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/hello", root.Fd()))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(data))
	// Output: world
}

func ExampleLimitError() {
	err := fmt.Errorf("pull: %w", &layerfs.LimitError{Limit: "Entries", Max: 100, Entry: "usr/bin/true"})
	var le *layerfs.LimitError
	if errors.As(err, &le) {
		fmt.Println(le.Limit, le.Max)
	}
	// Output: Entries 100
}
