package layerfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// rawHeader makes a header that archive/tar would not write.
func rawHeader(name string, kind byte, size int64, edit func(b []byte)) []byte {
	b := make([]byte, tarBlock)
	copy(b, name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], "00000000000\x00")
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	if edit != nil {
		edit(b)
	}
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func padded(data string) []byte {
	b := []byte(data)
	return append(b, make([]byte, padding(int64(len(b))))...)
}

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

var tarEnd = make([]byte, 2*tarBlock)

// hostileArchives are generators of attacks; each must end in an error or in a layer that is harmless.
func hostileArchives(t testing.TB, outside string) map[string][]byte {
	rel := strings.Repeat("../", 30) + strings.TrimPrefix(outside, "/")
	victim := outside + "/victim"
	f := func(ents ...ent) []byte { return makeTar(t, ents...) }
	l := byte(tar.TypeSymlink)
	h := byte(tar.TypeLink)
	return map[string][]byte{
		"dot dot":                        f(ent{name: rel + "/evil", data: "x"}),
		"dot dot inside":                 f(ent{name: "a/../../" + rel + "/evil", data: "x"}),
		"absolute name":                  f(ent{name: victim, data: "overwritten"}),
		"only dot dot":                   f(ent{name: "..", kind: tar.TypeDir, mode: 0o777}),
		"root is a link":                 f(ent{name: ".", kind: l, link: outside}, ent{name: "evil", data: "x"}),
		"root is a link, with a slash":   f(ent{name: "./", kind: l, link: outside}, ent{name: "evil", data: "x"}),
		"root is a file":                 cat(rawHeader("/", '7', 0, nil), tarEnd),
		"root is a hard link":            f(ent{name: ".", kind: h, link: "x"}),
		"absolute link as parent":        f(ent{name: "l", kind: l, link: outside}, ent{name: "l/victim", data: "overwritten"}),
		"relative link as parent":        f(ent{name: "d/"}, ent{name: "d/l", kind: l, link: "../" + rel}, ent{name: "d/l/victim", data: "overwritten"}),
		"link chain as parent":           f(ent{name: "a", kind: l, link: "b"}, ent{name: "b", kind: l, link: outside}, ent{name: "a/victim", data: "overwritten"}),
		"link loop as parent":            f(ent{name: "a", kind: l, link: "b"}, ent{name: "b", kind: l, link: "a"}, ent{name: "a/x", data: "x"}),
		"file over a link":               f(ent{name: "v", kind: l, link: victim}, ent{name: "v", data: "overwritten"}),
		"directory over a link":          f(ent{name: "o", kind: l, link: outside}, ent{name: "o/", mode: 0o777}, ent{name: "o/evil", data: "x"}),
		"chmod through a link":           f(ent{name: "v", kind: l, link: victim, mode: 0o777}),
		"hard link outside":              f(ent{name: "v", kind: h, link: victim}, ent{name: "v", data: "overwritten"}),
		"hard link outside, relative":    f(ent{name: "v", kind: h, link: rel + "/victim"}, ent{name: "v", data: "overwritten"}),
		"hard link through a link":       f(ent{name: "o", kind: l, link: outside}, ent{name: "v", kind: h, link: "o/victim"}, ent{name: "v", data: "overwritten"}),
		"hard link to a link, then file": f(ent{name: "s", kind: l, link: victim}, ent{name: "v", kind: h, link: "s"}, ent{name: "v", data: "overwritten"}),
		"hard link to itself":            f(ent{name: "v", kind: h, link: "v"}),
		"hard link to a directory":       f(ent{name: "d/"}, ent{name: "v", kind: h, link: "d"}),
		"hard link to the root":          f(ent{name: "v", kind: h, link: "/"}),
		"whiteout outside":               f(ent{name: rel + "/.wh.victim"}),
		"whiteout through a link":        f(ent{name: "o", kind: l, link: outside}, ent{name: "o/.wh.victim"}),
		"opaque through a link":          f(ent{name: "o", kind: l, link: outside}, ent{name: "o/" + whOpaque}),
		"whiteout of dot":                f(ent{name: ".wh.."}),
		"whiteout of dot dot":            f(ent{name: ".wh..."}),
		"whiteout of nothing":            f(ent{name: ".wh."}),
		"whiteout of a path":             f(ent{name: ".wh.a/b", data: "x"}),
		"a link replaced mid-way":        f(ent{name: "d/"}, ent{name: "d/x", data: "1"}, ent{name: "d", kind: l, link: outside}, ent{name: "d/victim", data: "overwritten"}),
		"directory replaced, then used":  f(ent{name: "d/"}, ent{name: "d/e/"}, ent{name: "d", data: "file"}, ent{name: "d/e/x", data: "x"}),
		"times and modes by a late link": f(ent{name: "d/", mode: 0o777, time: time.Unix(1, 0)}, ent{name: "d", kind: l, link: outside}),
		"overlay attributes": f(ent{name: "d/", pax: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/../../etc", "SCHILY.xattr.user.overlay.metacopy": "", "SCHILY.xattr.trusted.overlay.opaque": "y"}},
			ent{name: "d/f", pax: map[string]string{"SCHILY.xattr.trusted.overlay.metacopy": "x", "SCHILY.xattr.trusted.overlay.redirect": "/etc/shadow"}}),
		"whiteout device":         f(ent{name: "dev", kind: tar.TypeChar}),
		"fifo, then written":      f(ent{name: "p", kind: tar.TypeFifo}, ent{name: "p", data: "would block"}),
		"device, then written":    f(ent{name: "full", kind: tar.TypeChar, maj: 1, min: 7}, ent{name: "full", data: "x"}),
		"component too long":      f(ent{name: strings.Repeat("x", 256), data: "x"}),
		"path too deep":           f(ent{name: strings.Repeat("d/", 600) + "f", data: "x"}),
		"path made deep by links": deepByLinks(t),
		"case and spaces":         f(ent{name: " ", data: "x"}, ent{name: "...", data: "x"}, ent{name: ". ", data: "x"}),
		"a file as parent":        f(ent{name: "f", data: "x"}, ent{name: "f/g", data: "x"}),
		"the same entry often":    f(append([]ent{{name: "d/"}}, many(500, func(i int) ent { return ent{name: "d/f", data: fmt.Sprint(i)} })...)...),
		"file and directory by turn": f(many(200, func(i int) ent {
			if i%2 == 0 {
				return ent{name: "x", data: "f"}
			}
			return ent{name: "x/y/z/", mode: 0o700}
		})...),
		"unknown type":              cat(rawHeader("x", 'Z', 0, nil), tarEnd),
		"negative size":             cat(rawHeader("x", '0', 0, func(b []byte) { copy(b[124:136], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00") }), tarEnd),
		"size of 8 EB":              cat(rawHeader("x", '0', 0, func(b []byte) { copy(b[124:136], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") }), tarEnd),
		"bad checksum":              cat(rawHeader("x", '0', 0, nil)[:511], []byte{1}, tarEnd),
		"ends in a header":          rawHeader("x", '0', 0, nil)[:100],
		"ends in data":              cat(rawHeader("x", '0', 1000, nil), []byte("short")),
		"no end":                    rawHeader("x", '0', 0, nil),
		"one zero block":            cat(make([]byte, tarBlock), rawHeader("x", '0', 0, nil)),
		"PAX header of 1 TB":        cat(rawHeader("x", 'x', 1<<33-1, nil), tarEnd),
		"long name of 1 TB":         cat(rawHeader("x", 'L', 1<<33-1, nil), tarEnd),
		"PAX record lengths":        cat(rawHeader("x", 'x', 20, nil), padded("999999999999 path=x\n"), rawHeader("x", '0', 0, nil), tarEnd),
		"PAX record without value":  cat(rawHeader("x", 'x', 9, nil), padded("9 path\nab"), rawHeader("x", '0', 0, nil), tarEnd),
		"PAX name with NUL":         cat(rawHeader("x", 'x', 12, nil), padded("12 path=a\x00b\n"), rawHeader("x", '0', 0, nil), tarEnd),
		"PAX owner of 2^32":         cat(rawHeader("x", 'x', 18, nil), padded("18 uid=4294967296\n"), rawHeader("x", '0', 0, nil), tarEnd),
		"owner of minus one":        cat(rawHeader("x", 'x', 18, nil), padded("18 uid=4294967295\n"), rawHeader("x", '0', 0, nil), tarEnd),
		"headers without end":       cat(bytes.Repeat(cat(rawHeader("x", 'x', 12, nil), padded("12 path=abc\n")), 3000), tarEnd),
		"old sparse of 8 EB":        oldSparse(1<<62, [][2]int64{{0, 0}}),
		"old sparse, overlapping":   oldSparse(1000, [][2]int64{{0, 100}, {50, 100}}),
		"old sparse, map outside":   oldSparse(10, [][2]int64{{100, 5}}),
		"old sparse, map overflows": oldSparse(1000, [][2]int64{{1 << 62, 1 << 62}}),
		"old sparse without end": cat(rawHeader("x", 'S', 0, func(b []byte) { copy(b[257:], "ustar  \x00"); b[482] = 1; copy(b[483:], "00000000010\x00") }),
			bytes.Repeat(append(make([]byte, 504), 1, 0, 0, 0, 0, 0, 0, 0), 5000)),
		"sparse 1.0, many segments":   cat(paxHeader("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "1"), rawHeader("x", '0', 512, nil), padded("99999999999\n"), tarEnd),
		"sparse 1.0, map without end": cat(paxHeader("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "1"), rawHeader("x", '0', 1<<32, nil), []byte("900000\n"), bytes.Repeat([]byte("0\n0\n"), 1<<20)),
		"sparse 1.0, endless number":  cat(paxHeader("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "1"), rawHeader("x", '0', 1<<20, nil), bytes.Repeat([]byte("1"), 1<<20), tarEnd),
		"sparse 0.1, odd":             cat(paxHeader("GNU.sparse.map", "0,1,2", "GNU.sparse.size", "10"), rawHeader("x", '0', 1, nil), padded("x"), tarEnd),
		"sparse 0.1, size too large":  cat(paxHeader("GNU.sparse.map", "0,0", "GNU.sparse.size", "9223372036854775807"), rawHeader("x", '0', 0, nil), tarEnd),
		"sparse 2.0":                  cat(paxHeader("GNU.sparse.major", "2", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "1"), rawHeader("x", '0', 0, nil), tarEnd),
		"sparse device":               cat(rawHeader("x", '3', 0, func(b []byte) { copy(b[329:], "7777777\x007777777\x00") }), tarEnd),
		"random bytes":                []byte(strings.Repeat("\xde\xad\xbe\xef", 1000)),
	}
}

func paxHeader(kv ...string) []byte {
	var b strings.Builder
	for i := 0; i < len(kv); i += 2 {
		rec := " " + kv[i] + "=" + kv[i+1] + "\n"
		n := len(rec) + 2
		if n >= 100 {
			n++
		}
		fmt.Fprintf(&b, "%d%s", n, rec)
	}
	return cat(rawHeader("pax", 'x', int64(b.Len()), nil), padded(b.String()))
}

func oldSparse(size int64, segs [][2]int64) []byte {
	num := func(b []byte, n int64) {
		b[0] = 0x80
		for i := range 8 {
			b[11-i] = byte(n >> (8 * i))
		}
	}
	return cat(rawHeader("x", 'S', 0, func(b []byte) {
		copy(b[257:], "ustar  \x00")
		num(b[483:495], size)
		for i, s := range segs {
			num(b[386+24*i:], s[0])
			num(b[398+24*i:], s[1])
		}
	}), tarEnd)
}

func many(n int, f func(int) ent) []ent {
	out := make([]ent, n)
	for i := range out {
		out[i] = f(i)
	}
	return out
}

// deepByLinks makes directories below each other through links, each name short enough by itself.
func deepByLinks(t testing.TB) []byte {
	var ents []ent
	for i := range 20 {
		prefix := ""
		if i > 0 {
			prefix = fmt.Sprintf("l%d/", i-1)
		}
		ents = append(ents, ent{name: prefix + strings.Repeat("d/", 100) + "x/"},
			ent{name: fmt.Sprintf("l%d", i), kind: tar.TypeSymlink, link: prefix + strings.Repeat("d/", 100) + "x"})
	}
	return makeTar(t, ents...)
}

// outsideTree is what attacks aim at; the result says later whether it is as it was.
func outsideTree(t testing.TB) (dir string, unchanged func(testing.TB)) {
	dir = filepath.Join(t.TempDir(), "outside")
	write(t, dir+"/victim", "original")
	write(t, dir+"/sub/file", "original")
	before := scan(t, dir)
	return dir, func(t testing.TB) {
		t.Helper()
		if after := scan(t, dir); !maps.Equal(before, after) {
			t.Errorf("files outside were changed:\n got %v\nwant %v", after, before)
		}
	}
}

func TestHostileArchives(t *testing.T) {
	testutil.RequireRoot(t)
	outside, unchanged := outsideTree(t)
	s := openTest(t, &StoreOptions{Limits: Limits{Entries: 5000}})
	ok := 0
	for name, archive := range hostileArchives(t, outside) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			l, err := s.Unpack(ctx, specOf(archive, archive))
			unchanged(t)
			if err == nil {
				ok++
				checkLayer(t, layerDir(s, l))
				return
			}
			var le *LimitError
			var ee *EntryError
			if !errors.As(err, &le) && !errors.As(err, &ee) && !errors.Is(err, ErrInvalidArchive) {
				t.Errorf("an untyped error: %v", err)
			}
			wantEmpty(t, s, "tmp", "locks")
		})
	}
	if ok < 5 {
		t.Errorf("only %d archives were applied", ok)
	}
	unchanged(t)
}

// checkLayer looks for what no layer may have.
func checkLayer(t testing.TB, dir string) {
	t.Helper()
	for p, f := range scan(t, dir) {
		for x := range strings.SplitSeq(f.xattrs, ";") {
			switch x {
			case "", "trusted.overlay.opaque=79", "trusted.overlay.origin=", "user.overlay.opaque=79", "user.overlay.origin=":
				continue
			}
			if strings.Contains(x, ".overlay.") {
				t.Errorf("%s has the attribute %s", p, x)
			}
		}
	}
}

func mustUnpack(t testing.TB, s *Store, archive []byte) Layer {
	t.Helper()
	l, err := s.Unpack(t.Context(), specOf(archive, archive))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestCVE_2021_29136_RootIsNeverReplaced(t *testing.T) {
	s := openTest(t, nil)
	outside, unchanged := outsideTree(t)
	for _, name := range []string{".", "./", "/", "./.", "//", "./././"} {
		for _, kind := range []byte{tar.TypeSymlink, tar.TypeLink, tar.TypeReg, tar.TypeFifo} {
			archive := cat(rawHeader(name, kind, 0, func(b []byte) { copy(b[157:257], outside) }), makeTar(t, own(ent{name: "evil", data: "x"})...))
			if _, err := s.Unpack(t.Context(), specOf(archive, archive)); !errors.Is(err, ErrInvalidArchive) {
				t.Errorf("%q of type %c: %v", name, kind, err)
			}
		}
	}
	unchanged(t)
	wantEmpty(t, s, "layers", "tmp")
}

func TestCVE_2021_32760_MetadataStaysInside(t *testing.T) {
	s := openTest(t, nil)
	outside, unchanged := outsideTree(t)
	mustUnpack(t, s, makeTar(t, own(ent{name: "l", kind: tar.TypeSymlink, link: outside + "/victim", mode: 0o777, time: time.Unix(5, 0)},
		ent{name: "h", kind: tar.TypeLink, link: "l", mode: 0o777, time: time.Unix(5, 0)},
		ent{name: "o", kind: tar.TypeSymlink, link: outside, mode: 0o777})...))
	unchanged(t)
}

// Whoever can race the unpacking by swapping directories in the layer reaches nothing: directories are held by
// descriptor and opened without following links.
func TestCVE_2025_47290_SwapWhileUnpacking(t *testing.T) {
	s := openTest(t, nil)
	outside, unchanged := outsideTree(t)
	var ents []ent
	for i := range 300 {
		ents = append(ents, ent{name: fmt.Sprintf("d%d/", i%20)}, ent{name: fmt.Sprintf("d%d/victim", i%20), data: "overwritten", mode: 0o777})
	}
	archive := makeTar(t, own(ents...)...)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			temps, _ := filepath.Glob(s.Dir() + "/tmp/*/layer/fs")
			for _, t := range temps {
				// Of a fixed set of names, or removing them would never end.
				d := fmt.Sprintf("%s/d%d", t, i%20)
				if os.Rename(d, d+"-away") == nil {
					_ = os.Symlink(outside, d)
				}
			}
		}
	}()
	for range 50 {
		l, err := s.Unpack(t.Context(), specOf(archive, archive))
		if err == nil {
			_ = s.RemoveLayer(t.Context(), l.Key)
		}
	}
	close(stop)
	<-done
	unchanged(t)
}

func TestCVE_2021_20291_BadArchiveEndsWithAnError(t *testing.T) {
	s := openTest(t, nil)
	good := makeTar(t, own(many(2000, func(i int) ent { return ent{name: fmt.Sprintf("f%d", i), data: strings.Repeat("x", 3000)} })...)...)
	bad := bytes.Clone(good)
	copy(bad[tarBlock*45:], "garbage in a header, with megabytes behind it")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for name, blob := range map[string][]byte{"plain": bad, "gzip": gz(t, bad), "zstd": zst(t, bad)} {
		if _, err := s.Unpack(ctx, specOf(bad, blob)); !errors.Is(err, ErrInvalidArchive) && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	wantEmpty(t, s, "layers", "tmp", "locks", "blobs/sha256")
}

func TestCVE_2025_58183_SparseMapsAreBounded(t *testing.T) {
	s := openTest(t, &StoreOptions{Limits: Limits{FileBytes: 1 << 40}})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, archive := range hostileArchives(t, t.TempDir()) {
		if strings.Contains(name, "parse") || strings.Contains(name, "TB") {
			if _, err := s.Unpack(t.Context(), specOf(archive, archive)); err == nil {
				t.Errorf("%s was unpacked", name)
			}
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 300<<20 {
		t.Errorf("%d MB were allocated", n>>20)
	}
	// An honest hole of a terabyte costs nothing.
	l := mustUnpack(t, s, cat(paxHeader("GNU.sparse.map", "1099511627770,5", "GNU.sparse.size", "1099511627775"),
		rawHeader("hole", '0', 5, func(b []byte) {
			copy(b[108:], fmt.Sprintf("%07o\x00%07o\x00", os.Geteuid(), os.Getegid()))
		}), padded("hello"), tarEnd))
	var st unix.Stat_t
	if err := unix.Lstat(layerDir(s, l)+"/hole", &st); err != nil || st.Size != 1<<40-1 || st.Blocks > 1000 {
		t.Errorf("%d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
}

func TestCVE_2021_41091_StoreIsClosedToOthers(t *testing.T) {
	s := openTest(t, nil)
	mustUnpack(t, s, makeTar(t, own(ent{name: "suid", mode: 0o4755})...))
	for _, d := range []string{"", "layers", "snapshots", "tmp", "blobs", "blobs/sha256"} {
		st, err := os.Stat(filepath.Join(s.Dir(), d))
		if err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%q: %v, %v", d, st.Mode(), err)
		}
	}
}

func TestCVE_2025_11395_EscapesThroughLowerLayers(t *testing.T) {
	testutil.RequireRoot(t)
	outside, unchanged := outsideTree(t)
	base := makeTar(t, ent{name: "abs", kind: tar.TypeSymlink, link: outside}, ent{name: "d/"}, ent{name: "d/rel", kind: tar.TypeSymlink, link: strings.Repeat("../", 40) + outside},
		ent{name: "loop", kind: tar.TypeSymlink, link: "loop"}, ent{name: "file", data: "x"})
	for name, top := range map[string][]ent{
		"write through an absolute link":     {{name: "abs/victim", data: "overwritten"}},
		"write through a relative link":      {{name: "d/rel/victim", data: "overwritten"}},
		"white out through a link":           {{name: "abs/.wh.victim"}},
		"opaque through a link":              {{name: "abs/" + whOpaque}},
		"hard link through a link":           {{name: "h", kind: tar.TypeLink, link: "abs/victim"}, {name: "h", data: "overwritten"}},
		"hard link to a link, then write":    {{name: "h", kind: tar.TypeLink, link: "abs"}, {name: "h/victim", data: "overwritten"}},
		"directory attributes of the target": {{name: "abs/.", kind: tar.TypeDir, mode: 0o777}},
		"loop":                               {{name: "loop/x", data: "x"}},
		"file as directory":                  {{name: "file/x", data: "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := openTest(t, nil)
			archive := makeTar(t, top...)
			ls, err := s.UnpackAll(t.Context(), []LayerSpec{specOf(base, base), specOf(archive, archive)}, nil)
			unchanged(t)
			if err != nil {
				return
			}
			n, err := s.NewSnapshot(t.Context(), "x", ls, nil)
			if err != nil {
				t.Fatal(err)
			}
			mount(t, n, nil)
			unchanged(t)
		})
	}
}

func TestLimits(t *testing.T) {
	big := strings.Repeat("x", 1<<20)
	for _, c := range []struct {
		limit  string
		limits Limits
		ents   []ent
	}{
		{"Bytes", Limits{Bytes: 1<<21 - 1}, []ent{{name: "a", data: big}, {name: "b", data: big}}},
		{"FileBytes", Limits{FileBytes: 1<<20 - 1}, []ent{{name: "a", data: big}}},
		{"Entries", Limits{Entries: 99}, many(100, func(i int) ent { return ent{name: fmt.Sprint(i)} })},
		{"Entries", Limits{Entries: 40}, []ent{{name: strings.Repeat("d/", 30) + "f"}}},
		{"Depth", Limits{Depth: 9}, []ent{{name: strings.Repeat("d/", 9) + "f"}}},
		{"Header", Limits{Header: 1000}, []ent{{name: "a", pax: map[string]string{"comment": strings.Repeat("x", 1000)}}}},
	} {
		t.Run(c.limit, func(t *testing.T) {
			s := openTest(t, &StoreOptions{Limits: c.limits})
			archive := makeTar(t, own(c.ents...)...)
			var le *LimitError
			if _, err := s.Unpack(t.Context(), specOf(archive, archive)); !errors.As(err, &le) || le.Limit != c.limit || le.Max == 0 {
				t.Errorf("%v", err)
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
		if err := c.drain(); !errors.As(err, &le) || le.Limit != "Ratio" {
			t.Errorf("%v", err)
		}
	})
}

func FuzzUnpack(f *testing.F) {
	outside := f.TempDir()
	for _, a := range hostileArchives(f, outside) {
		if len(a) < 20<<10 {
			f.Add(a)
		}
	}
	f.Add(makeTar(f, ent{name: "d/"}, ent{name: "d/f", data: "x"}, ent{name: "d/.wh.g"}, ent{name: "l", kind: '2', link: "d"}, ent{name: "l/h", kind: '1', link: "d/f"}))
	write(f, outside+"/victim", "original")
	before := scan(f, outside)
	s, err := OpenStore(f.TempDir()+"/store", &StoreOptions{Limits: Limits{Bytes: 1 << 20, FileBytes: 1 << 30, Entries: 1000, Depth: 40, Header: 64 << 10}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	base := makeTar(f, own(ent{name: "d/"}, ent{name: "d/f", data: "x"}, ent{name: "out", kind: '2', link: outside})...)
	parent, err := s.Unpack(context.Background(), specOf(base, base))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		spec := LayerSpec{Descriptor: ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}, DiffID: digest.FromBytes(data), Parents: []Layer{parent},
			Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}
		l, err := s.Unpack(t.Context(), spec)
		if !maps.Equal(before, scan(t, outside)) {
			t.Fatal("files outside were changed")
		}
		if err != nil {
			wantEmpty(t, s, "tmp", "locks")
			return
		}
		if l.Key != parent.Key {
			_ = s.RemoveLayer(t.Context(), l.Key)
			_ = s.RemoveBlob(spec.Descriptor.Digest)
		}
	})
}

func FuzzIndex(f *testing.F) {
	f.Add(emptyIndex())
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:x","size":-1}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		idx, err := parseIndex(data)
		if err != nil {
			return
		}
		d := ocispec.Descriptor{Digest: digest.FromString("x"), Size: 1}
		setRef(&idx, "name", d)
		found := 0
		for _, m := range idx.Manifests {
			if refName(m) == "name" {
				found++
			}
		}
		if found != 1 || !dropRef(&idx, "name") || dropRef(&idx, "name") {
			t.Errorf("%d entries of one name", found)
		}
	})
}
