package coracle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	pathpkg "path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle/layerfs"
)

// ImageFSOptions say what an image made by [Engine.ImageFromFS] is, beside its files. Nil means the defaults.
type ImageFSOptions struct {
	// Config is how a container of the image runs. The zero value says nothing: whoever runs it gives the arguments.
	Config ImageConfig
	// Health is the health check of the image's containers. Nil means none.
	Health *HealthSpec
	// Platform is what the files run on, such as "linux/arm64". Empty means linux and the architecture of this program.
	Platform string
	// Created is the image's date. Zero means none: one of the clock would give the same files another digest.
	Created time.Time
	// KeepTimes keeps the modification times of the files. Without it all are the beginning of 1970, so that the
	// same content has the same digest, whenever and wherever it was written.
	KeepTimes bool
}

// ImageFromFS makes an image of one layer from a file system and gives it a name: a directory (os.DirFS), files embedded
// in the program (embed.FS), an archive (zip.Reader), or files made up in memory. The same content gives the same image,
// and where the store has it already nothing is written. Files pass through in pieces, never held in memory; they are
// read twice and must not change meanwhile.
//
// Everything belongs to root, and making such files needs root. Permissions are those of fsys, with one exception: file systems that know none show
// files as read-only without execute permission (mode 0444, as embed.FS does) or without any. Such a file gets 0755 if
// it begins like an executable (ELF, or #!), else 0644, and such a directory 0755; so does the root, always. Symbolic links are kept where fsys
// has [fs.ReadLinkFS], as os.DirFS does. Devices, sockets and pipes are refused.
//
// ref is a name with an optional tag, normalised as in [ParseReference]. The error is an [*OpError].
func (e *Engine) ImageFromFS(ctx context.Context, ref string, fsys fs.FS, opts *ImageFSOptions) (*Image, error) {
	img, err := e.imageFromFS(ctx, ref, fsys, opts)
	if err != nil {
		return nil, imageError("make", ref, err)
	}
	return img, nil
}

func (e *Engine) imageFromFS(ctx context.Context, name string, fsys fs.FS, opts *ImageFSOptions) (*Image, error) {
	if err := e.use(); err != nil {
		return nil, err
	}
	var o ImageFSOptions
	if opts != nil {
		o = *opts
	}
	ref, err := ParseReference(name)
	if err != nil {
		return nil, err
	}
	if ref.Digest != "" {
		return nil, fmt.Errorf("a new image has no digest yet: name it by tag: %w", ErrInvalid)
	}
	if fsys == nil {
		return nil, fmt.Errorf("no file system: %w", ErrInvalid)
	}
	platform, err := parsePlatform(o.Platform)
	if err != nil {
		return nil, err
	}
	layer, err := describeTar(ctx, fsys, o.KeepTimes)
	if err != nil {
		return nil, err
	}
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: platform.OS, Architecture: platform.Architecture, Variant: platform.Variant},
		Config:   o.Config,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	}
	if !o.Created.IsZero() {
		created := o.Created.UTC()
		config.Created = &created
	}
	if o.Health != nil {
		if err := o.Health.validate(); err != nil {
			return nil, err
		}
	}
	rawConfig, err := marshalConfig(config, o.Health)
	if err != nil {
		return nil, err
	}
	configDesc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(rawConfig), Size: int64(len(rawConfig))}
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: configDesc, Layers: []ocispec.Descriptor{layer},
	})
	if err != nil {
		return nil, err
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest)), Platform: &platform}
	spec := layerfs.LayerSpec{
		Descriptor: layer,
		DiffID:     layer.Digest, // it is not compressed
		Open: func(ctx context.Context) (io.ReadCloser, error) {
			r, w := io.Pipe()
			go func() {
				w.CloseWithError(writeTar(ctx, w, fsys, o.KeepTimes))
			}()
			return r, nil
		},
	}
	lease, err := e.store.Lease(ctx, []digest.Digest{desc.Digest, configDesc.Digest, layer.Digest}, config.RootFS.DiffIDs)
	if err != nil {
		return nil, err
	}
	defer lease.Release()
	if _, err := e.store.UnpackAll(ctx, []layerfs.LayerSpec{spec}, nil); err != nil {
		if errors.Is(err, layerfs.ErrCorrupt) {
			return nil, fmt.Errorf("the files changed while they were read: %w", err)
		}
		return nil, err
	}
	img, err := e.addImage(ctx, ref.key(), desc, manifest, configDesc, rawConfig)
	if err == nil {
		img.emit(ActionImport, ref.key())
	}
	return img, err
}

// marshalConfig writes a configuration with a health check, which is Docker's addition to the OCI specification.
func marshalConfig(config ocispec.Image, health *HealthSpec) ([]byte, error) {
	if health == nil {
		return json.Marshal(config)
	}
	return json.Marshal(struct {
		ocispec.Image
		Config struct {
			ocispec.ImageConfig
			Healthcheck *HealthSpec
		} `json:"config"`
	}{Image: config, Config: struct {
		ocispec.ImageConfig
		Healthcheck *HealthSpec
	}{config.Config, health}})
}

// describeTar is the first reading: digest and size must be known before the second one can be verified.
func describeTar(ctx context.Context, fsys fs.FS, keepTimes bool) (ocispec.Descriptor, error) {
	w := &hashCounter{hash: sha256.New()}
	if err := writeTar(ctx, w, fsys, keepTimes); err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.NewDigest(digest.SHA256, w.hash), Size: w.n}, nil
}

type hashCounter struct {
	hash hash.Hash
	n    int64
}

func (w *hashCounter) Write(p []byte) (int, error) {
	w.n += int64(len(p))
	return w.hash.Write(p)
}

// writeTar writes the archive of a file system, in the order of names and with nothing in it that depends on the place
// or the time.
func writeTar(ctx context.Context, w io.Writer, fsys fs.FS, keepTimes bool) error {
	tw := tar.NewWriter(w)
	buf := make([]byte, 256<<10)
	root := true
	err := fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		// WalkDir joins whatever a directory lists: ".." would be the same directory again, until the stack overflows.
		if !root && (path == "." || d.Name() != pathpkg.Base(path) || !fs.ValidPath(path) || strings.Count(path, "/") > maxFSDepth) || strings.ContainsRune(path, 0) {
			return fmt.Errorf("the file system has a file %s below %s: %w", quoteShort(d.Name()), quoteShort(pathpkg.Dir(path)), ErrInvalid)
		}
		root = false
		info, err := d.Info()
		if err != nil {
			return err
		}
		h := &tar.Header{Name: path, ModTime: time.Unix(0, 0), Mode: tarMode(info.Mode())}
		if keepTimes && !info.ModTime().IsZero() {
			h.ModTime = info.ModTime()
			h.Format = tar.FormatPAX // for the parts of a second
		}
		switch info.Mode().Type() {
		case fs.ModeDir:
			h.Typeflag, h.Name = tar.TypeDir, path+"/"
			if p := info.Mode().Perm(); p == 0 || p == 0o555 {
				h.Mode = h.Mode&^0o777 | 0o755
			}
			if path == "." {
				h.Mode = 0o755 // temporary directories are closed to others, and an image's root must not be
			}
			return tw.WriteHeader(h)
		case fs.ModeSymlink:
			h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
			if h.Linkname, err = fs.ReadLink(fsys, path); err != nil {
				return err
			}
			return tw.WriteHeader(h)
		case 0:
			h.Typeflag, h.Size = tar.TypeReg, info.Size()
			return writeTarFile(ctx, tw, h, fsys, path, info.Mode().Perm(), buf)
		}
		return &fs.PathError{Op: "add", Path: path, Err: fmt.Errorf("a %s is no file, directory or symbolic link: %w", info.Mode().Type(), errors.ErrUnsupported)}
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

// maxFSDepth is deeper than any layer; a file system that goes round in circles has no end.
const maxFSDepth = 10_000

// tarMode is the mode as tar has it, with setuid, setgid and sticky.
func tarMode(m fs.FileMode) int64 {
	mode := int64(m.Perm())
	for _, b := range []struct {
		bit fs.FileMode
		tar int64
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if m&b.bit != 0 {
			mode |= b.tar
		}
	}
	return mode
}

func writeTarFile(ctx context.Context, tw *tar.Writer, h *tar.Header, fsys fs.FS, path string, perm fs.FileMode, buf []byte) error {
	f, err := fsys.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.ReadFull(f, buf[:min(int64(len(buf)), max(h.Size, 1))])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return &fs.PathError{Op: "read", Path: path, Err: err}
	}
	start := buf[:n]
	if perm == 0 || perm == 0o444 {
		h.Mode = h.Mode&^0o777 | 0o644
		if bytes.HasPrefix(start, []byte("\x7fELF")) || bytes.HasPrefix(start, []byte("#!")) {
			h.Mode |= 0o111
		}
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	for total := int64(0); ; {
		if total += int64(n); total > h.Size {
			return &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("it grew beyond its %d bytes while it was read", h.Size)}
		}
		if _, err := tw.Write(buf[:n]); err != nil {
			return err
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if n, err = f.Read(buf); n == 0 && err == io.EOF {
			if total < h.Size {
				return &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("it ended after %d of its %d bytes: %w", total, h.Size, io.ErrUnexpectedEOF)}
			}
			return nil
		} else if err != nil && err != io.EOF {
			return &fs.PathError{Op: "read", Path: path, Err: err}
		}
	}
}
