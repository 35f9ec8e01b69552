package coracle

import (
	"context"
	"fmt"
	"io/fs"
)

// Tag gives the image one more name, normalised as in [ParseReference]; what had the name before loses it, and stays in
// the store until it is removed or pruned. The error is an [*OpError] that matches fs.ErrNotExist where the image was
// removed meanwhile, and [ErrInvalid] where ref makes no name.
func (i *Image) Tag(ctx context.Context, ref string) error {
	if err := i.tag(ctx, ref); err != nil {
		return imageError("tag", ref, err)
	}
	return nil
}

func (i *Image) tag(ctx context.Context, name string) error {
	e := i.eng
	if err := e.use(); err != nil {
		return err
	}
	ref, err := ParseReference(name)
	if err != nil {
		return err
	}
	if ref.Digest != "" {
		return fmt.Errorf("a name with a digest is what a registry gives: %w", ErrInvalid)
	}
	// Between seeing that the image is there and naming it, it is not to be taken away.
	hold, err := e.store.Hold(ctx)
	if err != nil {
		return err
	}
	defer hold.Release()
	refs, err := e.store.List()
	if err != nil {
		return err
	}
	if !hasManifest(refs, i.desc.Digest) {
		return fmt.Errorf("the image %s was removed: %w", i.desc.Digest, fs.ErrNotExist)
	}
	if err := e.store.Tag(ctx, ref.key(), i.desc); err != nil {
		return err
	}
	i.emit(ActionTag, ref.key())
	return nil
}

// Untag takes a name from the image. Without any name the image is still there, under its id and digest, until it is
// removed or pruned. The error is an [*OpError] that matches fs.ErrNotExist where the image does not have the name.
func (i *Image) Untag(ctx context.Context, ref string) error {
	err := i.eng.use()
	if err == nil {
		var r Reference
		if r, err = ParseReference(ref); err == nil {
			if err = i.eng.store.Untag(ctx, r.key(), i.desc.Digest); err == nil {
				i.emit(ActionUntag, r.key())
			}
		}
	}
	if err != nil {
		return imageError("untag", ref, err)
	}
	return nil
}

// ImageRemoveOptions are the settings of one Remove of an image; nil means the defaults.
type ImageRemoveOptions struct {
	// Force removes the image also where containers use it. They keep the layers they are made of, and those go with
	// the next removal or pruning after the containers.
	Force bool
}

// Remove removes the image with all its names, and whatever of the store nobody needs then: layers that another image
// or a container has stay. The error is an [*OpError]: it wraps an [*InUseError] where containers were made of the
// image and Force is not set, and matches fs.ErrNotExist where the image is gone already.
func (i *Image) Remove(ctx context.Context, opts *ImageRemoveOptions) error {
	name := i.Ref()
	if name == "" {
		name = string(i.Digest())
	}
	if err := i.remove(ctx, opts); err != nil {
		return imageError("remove", name, err)
	}
	return nil
}

func (i *Image) remove(ctx context.Context, opts *ImageRemoveOptions) error {
	e := i.eng
	if err := e.use(); err != nil {
		return err
	}
	removed := false
	var names []string
	_, err := e.collect(ctx, func(c *collection) error {
		refs, err := c.store.List()
		if err != nil {
			return err
		}
		names = refNames(refs, i.desc.Digest, "")
		users := c.users[i.ID()]
		if hasManifest(refs, i.desc.Digest) && len(users) > 0 && (opts == nil || !opts.Force) {
			return &InUseError{Kind: "container", Users: users}
		}
		err = c.removeManifest(i.desc.Digest)
		removed = err == nil
		return err
	})
	if removed {
		e.emitDeleted(string(i.ID()), names, i.config.Config.Labels)
	}
	return err
}
