package coracle

import (
	"context"
	"os"

	"github.com/coracle-dev/coracle/layerfs"
)

// GroupPrefix is how the names of an engine's cgroups begin.
func (e *Engine) GroupPrefix() string { return e.groupPrefix() }

// layers returns the layers of an image, unpacking from their blobs what is not.
func (i *Image) layers(ctx context.Context) ([]layerfs.Layer, error) {
	if err := i.unpackHere(ctx); err != nil {
		return nil, err
	}
	return i.eng.store.Layers(i.config.RootFS.DiffIDs)
}

// MountImage returns a detached mount of an image's root filesystem, in a snapshot of its own that remove takes away.
func (e *Engine) MountImage(ctx context.Context, img *Image) (root *os.File, remove func() error, err error) {
	layers, err := img.layers(ctx)
	if err != nil {
		return nil, nil, err
	}
	snap, err := e.store.NewSnapshot(ctx, newID(idLength/2), layers, nil)
	if err != nil {
		return nil, nil, err
	}
	root, err = snap.Mount(ctx, nil)
	if err != nil {
		snap.Remove(ctx)
		return nil, nil, err
	}
	return root, func() error {
		root.Close()
		return snap.Remove(ctx)
	}, nil
}

// Cleaned waits until the last start of the container by this engine has left nothing behind.
func (c *Container) Cleaned() {
	if r := c.lastRun(); r != nil {
		<-r.cleaned
	}
}

// GroupPrefix is how the names of the cgroups of a root's engines begin.
func GroupPrefix(root string) string { return (&Engine{root: root}).groupPrefix() }
