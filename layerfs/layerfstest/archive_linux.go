package layerfstest

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle/layerfs"
)

// node is a file, both in an archive and as it has to be in a root filesystem.
type node struct {
	name         string // of a directory with a slash at the end; "./" is the root
	kind         byte   // 0: a file or directory
	link         string // of a symbolic or hard link
	data         string
	mode         int64 // 0: 0644 or 0755
	uid, gid     int
	major, minor int64
	xattrs       map[string]string // by full name, values as the kernel has them
	time         time.Time         // zero: epoch
}

var epoch = time.Date(2022, 2, 3, 4, 5, 6, 123456789, time.UTC)

func (n node) withDefaults() node {
	if n.kind == 0 {
		n.kind = tar.TypeReg
		if strings.HasSuffix(n.name, "/") {
			n.kind = tar.TypeDir
		}
	}
	if n.mode == 0 {
		switch n.kind {
		case tar.TypeDir:
			n.mode = 0o755
		case tar.TypeSymlink:
			n.mode = 0o777
		default:
			n.mode = 0o644
		}
	}
	if n.time.IsZero() {
		n.time = epoch
	}
	return n
}

func archive(t testing.TB, layer []node) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, n := range layer {
		n = n.withDefaults()
		h := &tar.Header{Name: n.name, Typeflag: n.kind, Linkname: n.link, Mode: n.mode, Uid: n.uid, Gid: n.gid, Devmajor: n.major,
			Devminor: n.minor, ModTime: n.time, Size: int64(len(n.data)), Format: tar.FormatPAX}
		for _, k := range slices.Sorted(maps.Keys(n.xattrs)) {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+k] = n.xattrs[k]
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("%s: %v", n.name, err)
		}
		if _, err := io.WriteString(w, n.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func specOf(archive []byte) layerfs.LayerSpec {
	d := digest.FromBytes(archive)
	return layerfs.LayerSpec{
		Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(archive))},
		DiffID:     d,
		Open:       func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil },
	}
}
