package layerfs

import (
	"context"
	"io"
	"log/slog"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// StoreOptions are the settings of [OpenStore].
type StoreOptions struct {
	// Driver makes the snapshots: "" means "overlay".
	Driver string
	// Limits bound what one layer may unpack to; a zero field means its default.
	Limits Limits
	// UserXattrs stores whiteouts for overlay mounts made in a user namespace (user.overlay.* attributes). It is
	// recorded when the store is made and cannot change after. False with root privilege is the usual store; a store
	// made by another user than root always has it.
	UserXattrs bool
	// Logger receives what is worth knowing but is no error; nil discards.
	Logger *slog.Logger
}

// Limits bound the unpacking of one layer. The zero value of a field means the default written beside it. What
// exceeds one is a [*LimitError].
type Limits struct {
	// Blob is the largest layer, in bytes as its registry has it, that is fetched: default 64 GiB.
	Blob int64
	// Bytes is the most file content, in bytes, that may be written (holes of sparse files do not count), and as much may
	// be skipped, and follow the end of the archive: default 64 GiB.
	Bytes int64
	// FileBytes is the largest apparent size of a file, in bytes, holes included: default 1 TiB.
	FileBytes int64
	// Entries is the most entries of an archive: default 4,000,000.
	Entries int64
	// Ratio is the most decompressed bytes for each compressed byte, once 1 GiB has come out: default 1,200. gzip
	// cannot do more than 1,032; zstd can with zeros, of which an honest layer has less than that gigabyte.
	Ratio int64
	// Depth is the most components of a path: default 512.
	Depth int
	// Header is the most bytes of extended header (PAX records, long names, sparse map) for one entry, and a sixty-fourth
	// of the most for the extended attributes of all directories together: default 1 MiB.
	Header int64
	// Window is the most memory, in bytes, that a zstd frame may ask for: default 128 MiB.
	Window int64
}

func (l Limits) withDefaults() Limits {
	def := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.Blob, 64<<30)
	def(&l.Bytes, 64<<30)
	def(&l.FileBytes, 1<<40)
	def(&l.Entries, 4_000_000)
	def(&l.Ratio, 1200)
	def(&l.Header, 1<<20)
	def(&l.Window, 128<<20)
	if l.Depth <= 0 {
		l.Depth = 512
	}
	return l
}

// Reference is an entry of the store's index.
type Reference struct {
	// Name is the full reference as given to [Store.Tag], or empty: the entry has lost its name, or was made by another
	// tool without one.
	Name string
	// Descriptor is what it names, a manifest or an index, with its annotations.
	Descriptor ocispec.Descriptor
}

// Layer is an unpacked layer of a store. It is a plain value: comparable, and good in JSON.
type Layer struct {
	// DiffID is the digest of the uncompressed archive.
	DiffID digest.Digest `json:"diffID"`
	// ChainID is the digest of the layer and all below it (OCI image specification, "Layer ChainID").
	ChainID digest.Digest `json:"chainID"`
	// Key is the name of its directory under layers: "d-" and the diffID for a layer that is the same on any parents,
	// "c-" and the chainID for one that was applied against its parents.
	Key string `json:"key"`
}

// Independent reports whether the layer is the same on any parents.
func (l Layer) Independent() bool { return strings.HasPrefix(l.Key, "d-") }

// NextChainID returns the ChainID of a layer upon others, of which only the ChainID of the topmost is used (OCI image
// specification, "Layer ChainID").
func NextChainID(below []Layer, diffID digest.Digest) digest.Digest {
	if len(below) == 0 {
		return diffID
	}
	return digest.FromString(string(below[len(below)-1].ChainID) + " " + string(diffID))
}

// LayerSpec says what to unpack and where it comes from.
type LayerSpec struct {
	// Descriptor of the compressed blob: media type, digest and size. The media type decides nothing that the content
	// contradicts: compression is recognised by magic number, and an encrypted or foreign type is refused.
	Descriptor ocispec.Descriptor
	// DiffID is the digest of the uncompressed archive, from the image's config.
	DiffID digest.Digest
	// Parents are the layers below, lowest first. UnpackAll fills them itself.
	Parents []Layer
	// Open starts reading the blob from its beginning. It is not called where the store has the layer or the blob, and
	// may be called again where the stored blob turns out to be damaged. Nil: only a blob of the store will do.
	Open func(ctx context.Context) (io.ReadCloser, error)
	// Progress, if not nil, is called with the number of compressed bytes received so far, from another goroutine
	// than the caller's, one call at a time for each layer. The last call has the size of the blob, also where nothing
	// had to be fetched.
	Progress func(n int64)
}

// UnpackOptions are the settings of [Store.UnpackAll]; nil means the defaults.
type UnpackOptions struct {
	// Parallelism is how many layers are fetched and unpacked at once; 0 means 3.
	Parallelism int
}

// SnapshotOptions are the settings of [Store.NewSnapshot]; nil means the defaults.
type SnapshotOptions struct {
	// Volatile gives up the writes of a crash for speed: unmounting does not sync the store's filesystem, and fsync
	// inside does nothing. Meant for a snapshot that is removed after its one use.
	Volatile bool
}

// MountOptions are the settings of [Snapshot.Mount]; nil means the defaults.
type MountOptions struct {
	// ReadOnly mounts without a writable layer: nothing can be written through it, and the snapshot's own files, if
	// any, are the topmost read-only layer.
	ReadOnly bool
}

// Collected says what a collection took away.
type Collected struct {
	// Blobs and Layers are what is gone, the latter by key.
	Blobs  []digest.Digest
	Layers []string
	// Bytes is the size of those blobs and of the files of those layers.
	Bytes int64
}
