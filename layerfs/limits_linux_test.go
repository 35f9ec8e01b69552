package layerfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/coracle-dev/coracle/internal/hostile"
)

// TestLimits: what has exactly what a limit allows is unpacked, and one more is an error that names the limit.
func TestLimits(t *testing.T) {
	data := func(n int) string { return strings.Repeat("x", n) }
	files := func(n int) []ent { return manyEnts(n, func(i int) ent { return ent{name: fmt.Sprint(i)} }) }
	header := func(n int) []byte { // an extended header of n bytes
		const around = len("1000 comment=\n")
		return hostile.Cat(hostile.Extended("comment", data(n-around)), ownHeader("f", '0', 0), hostile.End)
	}
	segments := func(n int) []byte { // an old sparse map that goes on in n further blocks
		head := hostile.Header("f", 'S', 0, func(b []byte) {
			copy(b[108:], fmt.Sprintf("%07o\x00%07o\x00", os.Geteuid(), os.Getegid()))
			copy(b[257:], "ustar  \x00")
			b[482] = 1
			copy(b[483:], "00000000000\x00")
		})
		more := append(make([]byte, 504), 1, 0, 0, 0, 0, 0, 0, 0)
		last := make([]byte, 512)
		return hostile.Cat(head, bytes.Repeat(more, n-1), last, hostile.End)
	}
	// sparse files count with their holes for FileBytes and without them for Bytes
	sparse := func(size int) []byte {
		return hostile.Cat(hostile.Extended("GNU.sparse.map", "0,100", "GNU.sparse.size", fmt.Sprint(size)), ownHeader("f", '0', 100), hostile.Padded(data(100)), hostile.End)
	}
	tarOf := func(ents ...ent) []byte { return makeTar(t, own(ents...)...) }
	xattrs := func(n int) []byte { // directories with attributes of 1,000 bytes each
		var parts [][]byte
		for i := range n {
			parts = append(parts, hostile.Extended("SCHILY.xattr.user.x", data(1000-len("user.x"))), ownHeader(fmt.Sprintf("d%d/", i), '5', 0))
		}
		return hostile.Cat(append(parts, hostile.End)...)
	}
	plain := func(b []byte) []byte { return b }
	for _, c := range []struct {
		name     string
		limits   Limits
		limit    string
		max      int64
		ok, more []byte
		compress func([]byte) []byte
	}{
		{"Blob", Limits{Blob: 2048}, "Blob", 2048, tarOf(ent{name: "f", data: data(1)})[:2048], tarOf(ent{name: "f", data: data(1)}), plain},
		{"Bytes", Limits{Bytes: 1000}, "Bytes", 1000, tarOf(ent{name: "a", data: data(999)}, ent{name: "b", data: data(1)}), tarOf(ent{name: "a", data: data(999)}, ent{name: "b", data: data(2)}), plain},
		{"Bytes without holes", Limits{Bytes: 100}, "Bytes", 100, sparse(1 << 30), tarOf(ent{name: "a", data: data(101)}), plain},
		{"Bytes skipped", Limits{Bytes: 1000}, "Bytes", 1000, tarOf(ent{name: ".wh.a", data: data(999)}, ent{name: ".wh.b", data: data(1)}), tarOf(ent{name: ".wh.a", data: data(999)}, ent{name: ".wh.b", data: data(2)}), plain},
		{"Bytes behind the end", Limits{Bytes: 1024}, "Bytes", 1024, hostile.Cat(hostile.End, make([]byte, 1024)), hostile.Cat(hostile.End, make([]byte, 1025)), plain},
		{"FileBytes", Limits{FileBytes: 1000}, "FileBytes", 1000, tarOf(ent{name: "a", data: data(1000)}, ent{name: "b", data: data(1000)}), tarOf(ent{name: "a", data: data(1001)}), plain},
		{"FileBytes with holes", Limits{FileBytes: 1 << 30}, "FileBytes", 1 << 30, sparse(1 << 30), sparse(1<<30 + 1), plain},
		// makeTar writes an extended header for each entry, and the end counts.
		{"Entries", Limits{Entries: 201}, "Entries", 201, tarOf(files(100)...), tarOf(files(101)...), plain},
		{"Entries of directories by the way", Limits{Entries: 40}, "Entries", 40, tarOf(ent{name: strings.Repeat("d/", 10) + "f"}), tarOf(ent{name: strings.Repeat("d/", 11) + "f"}), plain},
		{"Depth", Limits{Depth: 9}, "Depth", 9, tarOf(ent{name: strings.Repeat("d/", 8) + "f"}), tarOf(ent{name: strings.Repeat("d/", 9) + "f"}), plain},
		{"Depth through a link", Limits{Depth: 9}, "Depth", 9,
			tarOf(ent{name: "l", kind: '2', link: strings.Repeat("d/", 7)}, ent{name: "l/d/f"}), tarOf(ent{name: "l", kind: '2', link: strings.Repeat("d/", 8)}, ent{name: "l/d/d/f"}), plain},
		{"Depth of a hard link's target", Limits{Depth: 9}, "Depth", 9,
			tarOf(ent{name: strings.Repeat("d/", 8) + "f"}, ent{name: "h", kind: '1', link: strings.Repeat("d/", 8) + "f"}), tarOf(ent{name: "h", kind: '1', link: strings.Repeat("d/", 9) + "f"}), plain},
		{"Header", Limits{Header: 1000}, "Header", 1000, header(1000), header(1001), plain},
		{"Header of a sparse map", Limits{Header: 2048}, "Header", 2048, segments(4), segments(5), plain},
		{"Header of all directories", Limits{Header: 1200}, "Header", 1200, xattrs(76), xattrs(77), plain},
		{"Window", Limits{Window: 1 << 20}, "Window", 1 << 20, tarOf(), tarOf(ent{name: "f"}), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openTest(t, &StoreOptions{Limits: c.limits})
			if c.limit == "Window" {
				c.compress = func(b []byte) []byte {
					if len(b) > len(tarOf()) {
						return hostile.WindowFrame(21, b)
					}
					return hostile.WindowFrame(20, b)
				}
			}
			if _, err := s.Unpack(t.Context(), specOf(c.ok, c.compress(c.ok))); err != nil {
				t.Errorf("what is allowed: %v", err)
			}
			keys, _ := s.LayerKeys()
			for _, k := range keys {
				_ = s.RemoveLayer(t.Context(), k)
			}
			_ = s.RemoveBlob(digest.FromBytes(c.compress(c.ok)))
			var le *LimitError
			_, err := s.Unpack(t.Context(), specOf(c.more, c.compress(c.more)))
			if !errors.As(err, &le) || le.Limit != c.limit || le.Max != c.max {
				t.Errorf("%v", err)
			} else if text := err.Error(); !strings.Contains(text, "Limits."+c.limit) || !strings.Contains(text, fmt.Sprint(c.max)) {
				t.Errorf("the error does not say what to do: %v", err)
			}
			wantEmpty(t, s, "layers", "tmp", "locks", "blobs/sha256")
		})
	}
	t.Run("Ratio", func(t *testing.T) {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		blob := zst(t, make([]byte, 64<<20))
		if _, err := f.Write(blob); err != nil {
			t.Fatal(err)
		}
		w := newFollower(f)
		w.add(len(blob))
		w.finish(nil)
		limits := Limits{}.withDefaults()
		c := newChunks()
		c.ratioFree = 8 << 20
		go c.decompress(t.Context(), w, &limits)
		go c.hash()
		var le *LimitError
		if err := c.drain(&limits); !errors.As(err, &le) || le.Limit != "Ratio" {
			t.Errorf("%v", err)
		}
	})
}

// ownHeader is a header of a file of whoever runs the test.
func ownHeader(name string, kind byte, size int64) []byte {
	return hostile.Header(name, kind, size, func(b []byte) { copy(b[108:], fmt.Sprintf("%07o\x00%07o\x00", os.Geteuid(), os.Getegid())) })
}

// TestDefaultLimits: those that the documentation names.
func TestDefaultLimits(t *testing.T) {
	want := Limits{Blob: 64 << 30, Bytes: 64 << 30, FileBytes: 1 << 40, Entries: 4_000_000, Ratio: 1200, Depth: 512, Header: 1 << 20, Window: 128 << 20}
	if got := (Limits{}).withDefaults(); got != want {
		t.Errorf("%+v", got)
	}
	if got := (Limits{Depth: -1, Bytes: -1}).withDefaults(); got != want {
		t.Errorf("negative values: %+v", got)
	}
	own := Limits{Blob: 1, Bytes: 2, FileBytes: 3, Entries: 4, Ratio: 5, Depth: 6, Header: 7, Window: 8}
	if got := own.withDefaults(); got != own {
		t.Errorf("%+v", got)
	}
}

// TestNoProgress: a source that gives neither bytes nor an error is one that has failed.
func TestNoProgress(t *testing.T) {
	s := openTest(t, nil)
	archive := makeTar(t)
	spec := specOf(archive, archive)
	spec.Open = func(context.Context) (io.ReadCloser, error) { return io.NopCloser(idleSource{}), nil }
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := s.Unpack(ctx, spec); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("unpack: %v", err)
	}
	if err := s.WriteBlob(ctx, spec.Descriptor, idleSource{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("write blob: %v", err)
	}
	wantEmpty(t, s, "layers", "tmp", "locks", "blobs/sha256")
}

type idleSource struct{}

func (idleSource) Read([]byte) (int, error) { return 0, nil }

// TestWalkThroughLayersIsCancelled: looking for what lies behind forty links in many layers of deep directories takes
// long for each entry, but not longer than its context.
func TestWalkThroughLayersIsCancelled(t *testing.T) {
	s := openTest(t, nil)
	deep := strings.Repeat("d/", 500)
	dirs := manyEnts(500, func(i int) ent { return ent{name: strings.Repeat("d/", i+1)} })
	links := manyEnts(40, func(i int) ent { return ent{name: deep + fmt.Sprint("l", i), kind: '2', link: fmt.Sprint("l", i+1)} })
	below := makeTar(t, own(append(dirs, links...)...)...)
	middle := makeTar(t, own(append(dirs, ent{name: deep + "other"})...)...)
	top := makeTar(t, own(manyEnts(2000, func(i int) ent { return ent{name: deep + fmt.Sprintf("l%d/f", i%30)} })...)...)
	specs := []LayerSpec{specOf(below, below)}
	for range 100 {
		specs = append(specs, specOf(middle, middle))
	}
	if _, err := s.UnpackAll(t.Context(), specs, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := s.UnpackAll(ctx, append(specs, specOf(top, top)), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it went on for %v", d)
	}
	wantEmpty(t, s, "tmp", "locks")
}
