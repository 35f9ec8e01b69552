package coracle

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
)

// PruneFilter chooses among what nobody uses. All that is set must hold; the zero filter chooses all.
type PruneFilter struct {
	// Until chooses what was made before: the date of an image's configuration (the zero time where it has none), the
	// creation of a container. Zero means any time.
	Until time.Time
	// Labels chooses what has all these labels, with these values; an empty value means any.
	Labels map[string]string
	// NotLabels leaves out what has one of these labels, with this value; an empty value means any.
	NotLabels map[string]string
}

func (f *PruneFilter) matches(made time.Time, labels map[string]string) bool {
	if !f.Until.IsZero() && !made.Before(f.Until) {
		return false
	}
	has := func(k, want string) bool {
		v, ok := labels[k]
		return ok && (want == "" || v == want)
	}
	for k, v := range f.Labels {
		if !has(k, v) {
			return false
		}
	}
	for k, v := range f.NotLabels {
		if has(k, v) {
			return false
		}
	}
	return true
}

// ImagePruneOptions are the settings of one PruneImages; nil means the defaults.
type ImagePruneOptions struct {
	PruneFilter
	// All takes every image that no container was made of; without it, only those without a name.
	All bool
}

// PruneImages removes the images that no container was made of and that have no name any more, or all of them (see
// ImagePruneOptions), and whatever else of the store nobody needs, such as the layers of a pull that failed. What is
// being pulled at the time stays. The error is an [*OpError].
func (e *Engine) PruneImages(ctx context.Context, opts *ImagePruneOptions) (*PruneReport, error) {
	if opts == nil {
		opts = &ImagePruneOptions{}
	}
	report := &PruneReport{}
	err := e.use()
	if err == nil {
		err = e.pruneImages(ctx, opts, report)
	}
	if err != nil {
		return nil, &OpError{Op: "prune", Kind: "images", Name: e.root, Err: err}
	}
	return report, nil
}

func (e *Engine) pruneImages(ctx context.Context, opts *ImagePruneOptions, report *PruneReport) error {
	var deleted []func()
	got, err := e.collect(ctx, func(c *collection) error {
		refs, err := c.store.List()
		if err != nil {
			return err
		}
		seen := make(map[digest.Digest]bool)
		for _, r := range refs {
			d := r.Descriptor.Digest
			if seen[d] {
				continue
			}
			seen[d] = true
			names := refNames(refs, d, "")
			if len(names) > 0 && !opts.All {
				continue
			}
			img, err := e.loadImage(ctx, r.Descriptor, names)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			// What is no image has neither date nor labels, and no container.
			id := d
			var made time.Time
			var labels map[string]string
			if err == nil {
				if len(c.users[img.ID()]) > 0 {
					continue
				}
				id, made, labels = img.ID(), img.Created(), img.config.Config.Labels
			}
			if !opts.matches(made, labels) {
				continue
			}
			if err := c.removeManifest(d); err != nil {
				return err
			}
			was := names
			deleted = append(deleted, func() { e.emitDeleted(string(id), was, labels) })
			if len(names) == 0 {
				names = []string{string(d)}
			}
			report.Images = append(report.Images, names...)
		}
		return nil
	})
	for _, emit := range deleted {
		emit()
	}
	if err != nil {
		return err
	}
	report.collected(got)
	e.emitPruned(EventImage, report.Bytes)
	return nil
}

// ContainerPruneOptions are the settings of one PruneContainers; nil means the defaults.
type ContainerPruneOptions struct {
	PruneFilter
}

// PruneContainers removes the containers that are not running. Those that belong to another program which has the root
// open stay, and so do those that their restart policy wants to be started again. The error is an [*OpError].
func (e *Engine) PruneContainers(ctx context.Context, opts *ContainerPruneOptions) (*PruneReport, error) {
	if opts == nil {
		opts = &ContainerPruneOptions{}
	}
	report := &PruneReport{}
	if err := e.pruneContainers(ctx, opts, report); err != nil {
		return nil, &OpError{Op: "prune", Kind: "containers", Name: e.root, Err: err}
	}
	return report, nil
}

func (e *Engine) pruneContainers(ctx context.Context, opts *ContainerPruneOptions, report *PruneReport) error {
	list, err := e.containers(nil)
	if err != nil {
		return err
	}
	for _, c := range list {
		st, err := c.current()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if wanted, _, _ := st.restart(); wanted {
			continue
		}
		if st.Status == StatusRunning || !opts.matches(st.Created, st.Resolved.Labels) {
			continue
		}
		size, _ := e.store.SnapshotUsage(ctx, st.ID) // of what is being removed elsewhere: nothing
		err = c.remove(ctx, nil)
		switch {
		case errors.Is(err, ErrRunning), errors.Is(err, ErrInUse):
			continue // started meanwhile, or another program's
		case err != nil:
			return c.fail("remove", err)
		}
		report.Containers = append(report.Containers, st.Name)
		report.Bytes += size
	}
	e.emitPruned(EventContainer, report.Bytes)
	return nil
}
