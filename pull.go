package coracle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/layerfs"
)

// RegistryConfig says how an engine talks to registries. The zero value works.
type RegistryConfig struct {
	// Keychain knows the credentials. Nil means DockerKeychain{}: what `docker login` stored.
	Keychain Keychain
	// Transport sends the requests. Nil means one with the proxies
	// of the environment (HTTPS_PROXY, NO_PROXY) and the system's certificates.
	Transport http.RoundTripper
	// PlainHTTP are registries, as in a reference ("registry.lan:5000"), that may be spoken to without TLS. The ones
	// on this machine (localhost, 127.0.0.0/8, ::1) always may; https is tried first with all of them.
	PlainHTTP []string
	// IdleTimeout is how long a registry may send nothing, or less than 4 kB of a layer. Zero means one minute.
	IdleTimeout time.Duration
	// Parallelism is how many layers of an image are received and unpacked at once. Zero means 3.
	Parallelism int
}

// A PullPolicy says when an image is fetched from its registry.
type PullPolicy string

const (
	// PullAlways asks the registry what the reference stands for, and fetches what is not here yet.
	PullAlways PullPolicy = "always"
	// PullMissing asks the registry only where the image is not here.
	PullMissing PullPolicy = "missing"
	// PullNever does not ask the registry: an image that is not here does not exist.
	PullNever PullPolicy = "never"
)

// PullOptions are the settings of one pull. Nil means the defaults.
type PullOptions struct {
	// Policy says when the registry is asked. Empty means PullAlways here, as in `docker pull`; a container's image
	// has PullMissing.
	Policy PullPolicy
	// Platform chooses from an image with several: "linux/arm64", "linux/arm/v7". Empty means the host's.
	Platform string
	// Credentials are used in place of the keychain's. Nil means the keychain's; the zero Credentials are anonymous.
	Credentials *Credentials
	// PlainHTTP allows this registry to be spoken to without TLS.
	PlainHTTP bool
	// Progress, if not nil, is called as the pull goes on: at most some twenty times a second for each layer, never
	// by two goroutines at once, and never after Pull has returned. It holds the pull up as long as it runs.
	Progress func(Progress)
}

// Pull fetches an image from its registry and unpacks its layers. ref is a name with tag or digest as Docker takes
// them: "alpine", "quay.io/team/app:v2", "localhost:5000/app@sha256:…". What is here already is not fetched again.
//
// Every manifest, configuration and layer is verified against its digest while it is received. A pull that fails or is
// cancelled leaves the store as it was, but for whole verified layers, which the next one uses.
//
// The error is an [*OpError]. Its cause is a [*PullError] that names the part, where the registry is to blame; it
// matches fs.ErrNotExist, fs.ErrPermission, os.ErrDeadlineExceeded or [ErrCorrupt] as that type says. A [*MediaTypeError]
// is an image of a kind that cannot be run, and a [*PlatformError] one for other machines.
func (e *Engine) Pull(ctx context.Context, ref string, opts *PullOptions) (*Image, error) {
	var o PullOptions
	if opts != nil {
		o = *opts
	}
	if o.Policy == "" {
		o.Policy = PullAlways
	}
	img, _, release, err := e.pull(ctx, ref, &o)
	if err != nil {
		return nil, imageError("pull", ref, err)
	}
	release()
	return img, nil
}

// imageFor returns the image of a container and its unpacked layers, pulling it if its spec says so. They stay where they
// are until release is called, which is to be soon: others may wait for it.
func (e *Engine) imageFor(ctx context.Context, spec *ContainerSpec) (img *Image, layers []layerfs.Layer, release func(), err error) {
	policy := spec.Pull
	if policy == "" {
		policy = PullMissing
	}
	img, layers, release, err = e.pull(ctx, spec.Image, &PullOptions{Policy: policy, Platform: spec.Platform})
	if err != nil {
		return nil, nil, nil, imageError("pull", spec.Image, err)
	}
	return img, layers, release, nil
}

// imageError wraps what layerfs says in the terms of this package.
func imageError(op, name string, err error) error {
	if errors.Is(err, layerfs.ErrCorrupt) && !errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if errors.Is(err, layerfs.ErrClosed) && !errors.Is(err, ErrClosed) {
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return &OpError{Op: op, Kind: "image", Name: name, Err: err}
}

func (e *Engine) pull(ctx context.Context, name string, opts *PullOptions) (*Image, []layerfs.Layer, func(), error) {
	fail := func(err error) (*Image, []layerfs.Layer, func(), error) { return nil, nil, nil, err }
	if err := e.use(); err != nil {
		return fail(err)
	}
	want, err := parsePlatform(opts.Platform)
	if err != nil {
		return fail(err)
	}
	switch opts.Policy {
	case PullAlways:
	case PullMissing, PullNever:
		img, layers, release, err := e.localImage(ctx, name, want, opts.Policy)
		if err == nil {
			return img, layers, release, nil
		}
		if opts.Policy == PullNever {
			return fail(err)
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, layerfs.ErrCorrupt) {
			return fail(err)
		}
	default:
		return fail(fmt.Errorf("pull policy %s: %w", quoteShort(string(opts.Policy)), ErrInvalid))
	}
	ref, err := ParseReference(name)
	if err != nil {
		return fail(err)
	}
	client, err := newRegistryClient(ctx, ref, e.config.Registry, opts)
	if err != nil {
		return fail(err)
	}
	defer client.close()
	return e.pullFrom(ctx, client, ref, want, opts)
}

// localImage finds an image that is here already. Where only its blobs are here the layers are unpacked.
func (e *Engine) localImage(ctx context.Context, name string, want ocispec.Platform, policy PullPolicy) (*Image, []layerfs.Layer, func(), error) {
	fail := func(err error) (*Image, []layerfs.Layer, func(), error) { return nil, nil, nil, err }
	hold, err := e.store.Hold(ctx)
	if err != nil {
		return fail(err)
	}
	img, err := e.findImage(ctx, name)
	if err == nil {
		err = runsOn(&img.config, want)
	}
	if err == nil && policy == PullMissing {
		err = img.isFor(want)
	}
	if err != nil {
		hold.Release()
		return fail(err)
	}
	layers, err := e.store.Layers(img.config.RootFS.DiffIDs)
	if err == nil {
		return img, layers, hold.Release, nil
	}
	hold.Release() // unpacking takes its time
	if !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	lease, err := img.lease(ctx)
	if err != nil {
		return fail(err)
	}
	if layers, err = e.store.UnpackAll(ctx, img.layerSpecs(nil), nil); err != nil {
		lease.Release()
		return fail(err)
	}
	return img, layers, lease.Release, nil
}

// pullFrom fetches the parts in the order in which they name each other, and stores them in the opposite one, so that
// what is in the store is complete. A lease keeps them until the image has its name and release was called.
func (e *Engine) pullFrom(ctx context.Context, client *registryClient, ref Reference, want ocispec.Platform, opts *PullOptions) (*Image, []layerfs.Layer, func(), error) {
	fail := func(err error) (*Image, []layerfs.Layer, func(), error) { return nil, nil, nil, err }
	doc, data, desc, err := client.imageManifest(ctx, ref, want)
	if err != nil {
		return fail(err)
	}
	// Of several that pull the same image, here and in other processes, one does the work.
	unlock, err := e.store.LockManifest(ctx, desc.Digest)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	rawConfig, err := e.store.ReadBlob(ctx, doc.Manifest.Config, maxManifest)
	if err != nil {
		// Not here, or damaged.
		if rawConfig, err = client.config(ctx, doc.Manifest.Config); err != nil {
			return fail(err)
		}
	}
	config, err := parseConfig(rawConfig, doc.Manifest)
	if err == nil {
		err = runsOn(config, want)
	}
	if err != nil {
		return fail(client.failed(ctx, "config", doc.Manifest.Config.Digest, err))
	}
	lease, err := leaseImage(ctx, e.store, desc.Digest, doc.Manifest, config)
	if err != nil {
		return fail(err)
	}
	crashpoint.At("pull: leased")
	layers, err := e.pullLayers(ctx, client, ref, doc.Manifest, config, opts.Progress)
	if err != nil {
		lease.Release()
		return fail(err)
	}
	crashpoint.At("pull: layers unpacked")
	p := normalPlatform(config.Platform)
	if p.OS == "" {
		p = want
	}
	desc.Platform = &p
	desc.Annotations = map[string]string{pulledForAnnotation: platformString(want)}
	img, err := e.addImage(ctx, ref.key(), desc, data, doc.Manifest.Config, rawConfig)
	if err != nil {
		lease.Release()
		return fail(err)
	}
	crashpoint.At("pull: named")
	img.emit(ActionPull, ref.key())
	return img, layers, lease.Release, nil
}

// imageManifest fetches the manifest that a reference stands for, and through an index the one for a platform.
func (c *registryClient) imageManifest(ctx context.Context, ref Reference, want ocispec.Platform) (doc parsedManifest, data []byte, desc ocispec.Descriptor, err error) {
	fail := func(d digest.Digest, err error) (parsedManifest, []byte, ocispec.Descriptor, error) {
		return doc, nil, desc, c.failed(ctx, "manifest", d, err)
	}
	if data, desc, err = c.manifest(ctx, ref.Tag, ref.Digest); err != nil {
		return doc, nil, desc, err
	}
	if doc, err = parseManifest(desc.MediaType, data); err != nil {
		return fail(desc.Digest, err)
	}
	if doc.Index != nil {
		chosen, err := choosePlatform(doc.Index, want)
		if err != nil {
			return fail(desc.Digest, err)
		}
		if data, desc, err = c.manifest(ctx, "", chosen.Digest); err != nil {
			return doc, nil, desc, err
		}
		if desc.Size != chosen.Size {
			return fail(desc.Digest, fmt.Errorf("it has %d bytes, its index says %d: %w", desc.Size, chosen.Size, ErrCorrupt))
		}
		if doc, err = parseManifest(desc.MediaType, data); err == nil && doc.MediaType != chosen.MediaType {
			err = fmt.Errorf("it is of media type %s, its index says %s: %w", quoteShort(doc.MediaType), quoteShort(chosen.MediaType), ErrInvalid)
		}
		if err != nil {
			return fail(desc.Digest, err)
		}
	}
	desc.MediaType = doc.MediaType
	return doc, data, desc, nil
}

// leaseImage keeps all that an image consists of, whether it is here yet or not.
func leaseImage(ctx context.Context, store *layerfs.Store, manifest digest.Digest, m *ocispec.Manifest, config *ocispec.Image) (*layerfs.Lease, error) {
	blobs := []digest.Digest{manifest, m.Config.Digest}
	for _, l := range m.Layers {
		blobs = append(blobs, l.Digest)
	}
	return store.Lease(ctx, blobs, config.RootFS.DiffIDs)
}

// pulledForAnnotation, on an entry of the store's index, is the platform that was wanted when the image was pulled. It
// tells the best that its registry has for a platform (a 32-bit image for a 64-bit machine) from one that was pulled for
// another.
const pulledForAnnotation = "dev.coracle.pulled-for"

// isFor says whether an image that runs on a platform is the one that a pull for it would bring. Of images that were
// not pulled there is but one.
func (i *Image) isFor(want ocispec.Platform) error {
	have := normalPlatform(i.config.Platform)
	pulledFor, pulled := i.desc.Annotations[pulledForAnnotation]
	if !pulled || pulledFor == platformString(want) || samePlatform(have, want) || have.Architecture == want.Architecture && i.config.Variant == "" {
		return nil
	}
	return &PlatformError{Want: platformString(want), Have: []string{platformString(have)}}
}

// pullLayers receives and unpacks what is missing of the layers, several at once.
func (e *Engine) pullLayers(ctx context.Context, client *registryClient, ref Reference, m *ocispec.Manifest, config *ocispec.Image, progress func(Progress)) ([]layerfs.Layer, error) {
	digests, sizes := make([]digest.Digest, len(m.Layers)), make([]int64, len(m.Layers))
	for i, l := range m.Layers {
		digests[i], sizes[i] = l.Digest, l.Size
	}
	report := newProgressReporter(progress, ref.String(), digests, sizes)
	specs := layerSpecs(m, config, client.layer)
	for i := range specs {
		specs[i].Progress = report.layer(i)
	}
	layers, err := e.store.UnpackAll(ctx, specs, &layerfs.UnpackOptions{Parallelism: e.config.Registry.Parallelism})
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if errors.Is(err, layerfs.ErrCorrupt) {
			return nil, client.failed(ctx, "layer", "", fmt.Errorf("%w: %w", ErrCorrupt, err))
		}
		return nil, err
	}
	report.done()
	return layers, nil
}

// layerSpecs says what the layers of an image are and how they are fetched; a nil fetch means that their blobs are here.
func layerSpecs(m *ocispec.Manifest, config *ocispec.Image, fetch func(context.Context, ocispec.Descriptor) (io.ReadCloser, error)) []layerfs.LayerSpec {
	specs := make([]layerfs.LayerSpec, len(m.Layers))
	for i, l := range m.Layers {
		specs[i] = layerfs.LayerSpec{Descriptor: l, DiffID: config.RootFS.DiffIDs[i]}
		if fetch != nil {
			specs[i].Open = func(ctx context.Context) (io.ReadCloser, error) { return fetch(ctx, l) }
		}
	}
	return specs
}

// addImage stores what describes an image whose layers are unpacked, and gives it its name.
func (e *Engine) addImage(ctx context.Context, key string, desc ocispec.Descriptor, manifest []byte, configDesc ocispec.Descriptor, config []byte) (*Image, error) {
	for _, blob := range []struct {
		desc ocispec.Descriptor
		data []byte
	}{{configDesc, config}, {desc, manifest}} {
		if err := e.writeBlob(ctx, blob.desc, blob.data); err != nil {
			return nil, err
		}
		crashpoint.At("image: blob stored")
	}
	if err := e.store.Tag(ctx, key, desc); err != nil {
		return nil, err
	}
	return e.loadImage(ctx, desc, []string{key})
}
