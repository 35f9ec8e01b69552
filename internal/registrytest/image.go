package registrytest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of Docker's second schema.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig       = "application/vnd.docker.container.image.v1+json"
	DockerLayer        = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// File is an entry of a layer's archive. Its directories are added by themselves.
type File struct {
	Name    string
	Content string
	// Mode is the permissions; zero means 0644, or 0755 for a directory.
	Mode int64
	// Link makes it a symbolic link.
	Link string
}

// Tar is the archive of some files, always the same for the same ones. They belong to whoever runs the program, so that
// root is not needed to unpack them.
func Tar(files ...File) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Size: int64(len(f.Content)), Typeflag: tar.TypeReg, ModTime: time.Unix(1e9, 0), Uid: max(os.Getuid(), 0), Gid: max(os.Getgid(), 0)}
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		case f.Name[len(f.Name)-1] == '/':
			h.Typeflag = tar.TypeDir
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		must(w.WriteHeader(h))
		_, err := w.Write([]byte(f.Content))
		must(err)
	}
	must(w.Close())
	return buf.Bytes()
}

// Layer is a layer as a registry has it.
type Layer struct {
	ocispec.Descriptor
	Data   []byte
	DiffID digest.Digest
}

// NewLayer compresses an archive as the media type says.
func NewLayer(mediaType string, archive []byte) Layer {
	var buf bytes.Buffer
	switch mediaType {
	case ocispec.MediaTypeImageLayerGzip, DockerLayer:
		w := gzip.NewWriter(&buf)
		_, err := w.Write(archive)
		must(err)
		must(w.Close())
	case ocispec.MediaTypeImageLayerZstd:
		w, err := zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1))
		must(err)
		_, err = w.Write(archive)
		must(err)
		must(w.Close())
	default:
		buf.Write(archive)
	}
	data := buf.Bytes()
	return Layer{
		Descriptor: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))},
		Data:       data, DiffID: digest.FromBytes(archive),
	}
}

// RandomLayer is one of a file of that many random bytes, the same for the same seed.
func RandomLayer(seed uint64, mediaType string, size int) Layer {
	rnd := rand.New(rand.NewPCG(seed, 1))
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(rnd.Uint32())
	}
	return NewLayer(mediaType, Tar(File{Name: "./"}, File{Name: fmt.Sprintf("file-%d", seed), Content: string(content)}))
}

// Image is an image to be served. Its fields may be changed before it is pushed.
type Image struct {
	Config ocispec.Image
	Layers []Layer
	// Docker uses the media types of Docker's second schema for manifest and config.
	Docker bool
}

// NewImage is an image for this machine.
func NewImage(layers ...Layer) *Image {
	img := &Image{Layers: layers}
	img.Config.OS, img.Config.Architecture = "linux", runtime.GOARCH
	img.Config.RootFS.Type = "layers"
	img.Config.RootFS.DiffIDs = []digest.Digest{}
	for _, l := range layers {
		img.Config.RootFS.DiffIDs = append(img.Config.RootFS.DiffIDs, l.DiffID)
	}
	return img
}

// RandomImage has that many gzip, zstd and plain layers in turn.
func RandomImage(seed uint64, layers, size int) *Image {
	types := []string{ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd, ocispec.MediaTypeImageLayer}
	var list []Layer
	for i := range layers {
		list = append(list, RandomLayer(seed*1000+uint64(i), types[i%len(types)], size))
	}
	return NewImage(list...)
}

// Manifest is the image's manifest, with the config that goes with it.
func (img *Image) Manifest() (ocispec.Manifest, []byte) {
	config := marshal(img.Config)
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{},
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
	}
	if img.Docker {
		m.MediaType, m.Config.MediaType = DockerManifest, DockerConfig
	}
	for _, l := range img.Layers {
		m.Layers = append(m.Layers, l.Descriptor)
	}
	return m, config
}

// Push serves an image under a name; an empty tag means by digest only.
func (r *Registry) Push(repo, tag string, img *Image) ocispec.Descriptor {
	for _, l := range img.Layers {
		r.PutBlob(l.Data)
	}
	m, config := img.Manifest()
	r.PutBlob(config)
	desc := r.PutManifest(repo, tag, m.MediaType, marshal(m))
	p := img.Config.Platform
	desc.Platform = &ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
	return desc
}

// PushIndex serves an index.
func (r *Registry) PushIndex(repo, tag string, manifests ...ocispec.Descriptor) ocispec.Descriptor {
	return r.PutManifest(repo, tag, ocispec.MediaTypeImageIndex, marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests,
	}))
}

func marshal(v any) []byte {
	data, err := json.Marshal(v)
	must(err)
	return data
}

// must is for errors that only a mistake in this package can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
