package coracle

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/coracle-dev/coracle/layerfs"
)

// DiskUsage is what a root takes on disk. Sizes are bytes: of blobs as they are in the registry, of unpacked layers and
// of containers' files as sums of file sizes, without what the filesystem adds.
type DiskUsage struct {
	// Images are the images, in the order of [Engine.Images].
	Images []ImageUsage
	// Containers are the containers, by name.
	Containers []ContainerUsage
	// Blobs and Layers are the sizes of all blobs, and of the files of all unpacked layers, each counted once.
	Blobs, Layers int64
	// Unused is the size of the blobs and layers that belong to no image and to no container: what PruneImages takes even
	// where it finds no image to remove, unless it is being pulled.
	Unused int64
}

// ImageUsage is what one image takes on disk: its blobs and its unpacked layers.
type ImageUsage struct {
	// ID is the digest of its configuration, Digest that of its manifest, and Refs are its names.
	ID, Digest digest.Digest
	Refs       []string
	// Size is all of it; Shared is the part that other images have too, and Unique the rest: what removing the image
	// would free if no container were made of it.
	Size, Shared, Unique int64
	// Containers are the names of the containers that were made of it.
	Containers []string
}

// ContainerUsage is what one container takes on disk beside its image.
type ContainerUsage struct {
	ID, Name string
	// Size is that of the files that it has written; with the "copy" driver of all its files.
	Size int64
}

// DiskUsage adds up what the root takes on disk. It takes no locks: what comes and goes meanwhile is counted or not.
// The error is an [*OpError].
func (e *Engine) DiskUsage(ctx context.Context) (*DiskUsage, error) {
	err := e.use()
	if err == nil {
		var u *DiskUsage
		if u, err = e.diskUsage(ctx); err == nil {
			return u, nil
		}
	}
	return nil, &OpError{Op: "measure", Kind: "engine", Name: e.root, Err: err}
}

func (e *Engine) diskUsage(ctx context.Context) (*DiskUsage, error) {
	blobs, layers, err := e.store.Sizes()
	if err != nil {
		return nil, err
	}
	u := &DiskUsage{}
	for _, n := range blobs {
		u.Blobs += n
	}
	for _, n := range layers {
		u.Layers += n
	}
	used := make(map[string]bool) // digests of blobs and keys of layers

	images, err := e.listImages(ctx)
	if err != nil {
		return nil, err
	}
	parts := make([]map[string]int64, len(images))
	owners := make(map[string]int)
	for i, img := range images {
		parts[i] = img.parts(e.store, blobs, layers)
		for p := range parts[i] {
			owners[p]++
			used[p] = true
		}
	}
	users := make(map[digest.Digest][]string)
	list, err := e.containers(nil)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		st, err := c.current()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		size, err := e.store.SnapshotUsage(ctx, st.ID)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		u.Containers = append(u.Containers, ContainerUsage{ID: st.ID, Name: st.Name, Size: size})
		users[st.ImageID] = append(users[st.ImageID], st.Name)
		for _, l := range st.Layers {
			used[l.Key] = true
		}
	}
	slices.SortFunc(u.Containers, func(a, b ContainerUsage) int { return strings.Compare(a.Name, b.Name) })
	for i, img := range images {
		iu := ImageUsage{ID: img.ID(), Digest: img.Digest(), Refs: img.Refs(), Containers: users[img.ID()]}
		for p, n := range parts[i] {
			iu.Size += n
			if owners[p] > 1 {
				iu.Shared += n
			} else {
				iu.Unique += n
			}
		}
		u.Images = append(u.Images, iu)
	}
	for d, n := range blobs {
		if !used[string(d)] {
			u.Unused += n
		}
	}
	for k, n := range layers {
		if !used[k] {
			u.Unused += n
		}
	}
	return u, nil
}

// parts returns the blobs and unpacked layers of the image with their sizes; the same part counts once.
func (i *Image) parts(store *layerfs.Store, blobs map[digest.Digest]int64, layers map[string]int64) map[string]int64 {
	parts := make(map[string]int64)
	add := func(d digest.Digest) {
		if n, ok := blobs[d]; ok {
			parts[string(d)] = n
		}
	}
	add(i.desc.Digest)
	add(i.manifest.Config.Digest)
	for _, l := range i.manifest.Layers {
		add(l.Digest)
	}
	for _, l := range store.FindLayers(i.config.RootFS.DiffIDs) {
		parts[l.Key] = layers[l.Key]
	}
	return parts
}
