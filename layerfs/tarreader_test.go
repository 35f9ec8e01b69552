package layerfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/coracle-dev/coracle/internal/hostile"
)

// sliceSource gives a slice in pieces of odd sizes.
type sliceSource struct {
	b []byte
	n int
}

func (s *sliceSource) next(n int64) ([]byte, error) {
	if len(s.b) == 0 {
		return nil, io.EOF
	}
	s.n = s.n%700 + 37
	k := min(n, int64(len(s.b)), int64(s.n))
	b := s.b[:k]
	s.b = s.b[k:]
	return b, nil
}

func newTestReader(data []byte) *tarReader {
	limits := Limits{}.withDefaults()
	return &tarReader{src: &sliceSource{b: data}, limits: &limits}
}

// content expands an entry as archive/tar does.
func content(t testing.TB, r *tarReader, e *tarEntry, max int64) ([]byte, error) {
	var raw []byte
	for {
		b, err := r.data()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		raw = append(raw, b...)
	}
	if !e.isSparse || e.size > max {
		return raw, nil
	}
	out := make([]byte, e.size)
	for _, s := range e.sparse {
		copy(out[s.off:s.off+s.n], raw)
		raw = raw[s.n:]
	}
	return out, nil
}

func TestTarReader(t *testing.T) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	headers := []*tar.Header{
		{Name: "ustar/file", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 1, Gid: 2, Size: 5, ModTime: time.Unix(1600000000, 0), Format: tar.FormatUSTAR},
		{Name: strings.Repeat("prefix/", 20) + "file", Typeflag: tar.TypeReg, Size: 5, Format: tar.FormatUSTAR},
		{Name: "gnu/" + strings.Repeat("x", 300), Linkname: strings.Repeat("y", 300), Typeflag: tar.TypeSymlink, Uid: 1 << 30, Format: tar.FormatGNU},
		{Name: "gnu/old", Typeflag: tar.TypeReg, Size: 5, ModTime: time.Unix(-1000, 0), Format: tar.FormatGNU},
		{Name: "pax/ünï", Typeflag: tar.TypeReg, Size: 5, ModTime: time.Unix(-5, 500), Uid: 4294967294, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "a\nb=c\x00"}},
		{Name: "dev", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 70000, Format: tar.FormatGNU},
		{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o600},
		{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o1777},
	}
	for _, h := range headers {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			_, _ = io.WriteString(w, "hello")
		}
	}
	_ = w.Close()
	if n := differ(t, buf.Bytes()); n != len(headers) {
		t.Errorf("%d of %d entries", n, len(headers))
	}
}

// differ compares the reader with the standard library's, which is the reference for what both accept, and returns the
// number of entries.
func differ(t testing.TB, data []byte) int {
	t.Helper()
	mine, theirs := newTestReader(data), tar.NewReader(bytes.NewReader(data))
	for n := 0; ; n++ {
		e, err := mine.entry()
		if err != nil {
			var le *LimitError
			if err != io.EOF && !errors.Is(err, ErrInvalidArchive) && !errors.As(err, &le) {
				t.Fatalf("an untyped error: %v", err)
			}
			return n
		}
		h, herr := theirs.Next()
		for herr == nil && (h.Typeflag == tar.TypeXGlobalHeader || h.Typeflag == 'V') {
			h, herr = theirs.Next()
		}
		if herr != nil {
			return n // stricter than we are, about fields that do not matter here
		}
		// archive/tar shows the size that stands in the header of what has no content.
		hasContent := e.kind == tarReg
		if e.name != h.Name || e.kind != kindOf(h) || hasContent && e.size != h.Size || !e.mtime.Equal(h.ModTime) || int(e.uid) != h.Uid || int(e.gid) != h.Gid {
			t.Fatalf("entry %d:\n got %q %c %d %v %d:%d\nwant %q %c %d %v %d:%d", n, e.name, e.kind, e.size, e.mtime, e.uid, e.gid, h.Name, kindOf(h), h.Size, h.ModTime, h.Uid, h.Gid)
		}
		if (e.kind == tarLink || e.kind == tarSymlink) && e.link != h.Linkname {
			t.Fatalf("entry %d links to %q, not %q", n, e.link, h.Linkname)
		}
		if (e.kind == tarChar || e.kind == tarBlockDev) && (int64(e.major) != h.Devmajor || int64(e.minor) != h.Devminor) {
			t.Fatalf("entry %d is device %d:%d, not %d:%d", n, e.major, e.minor, h.Devmajor, h.Devminor)
		}
		if e.size > 1<<20 {
			return n
		}
		if !hasContent {
			continue
		}
		got, err := content(t, mine, e, 1<<20)
		want, werr := io.ReadAll(theirs)
		if err == nil && werr == nil && !bytes.Equal(got, want) {
			t.Fatalf("entry %d has other content: %q, not %q", n, got, want)
		}
		if err != nil || werr != nil {
			return n
		}
	}
}

func kindOf(h *tar.Header) byte {
	switch h.Typeflag {
	case tar.TypeCont, tar.TypeGNUSparse:
		return tarReg
	}
	return h.Typeflag
}

func FuzzTarReader(f *testing.F) {
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		_ = w.WriteHeader(&tar.Header{Name: "a/b", Typeflag: tar.TypeReg, Size: 3, Uid: 5, Format: format, ModTime: time.Unix(100, 0)})
		_, _ = w.Write([]byte("abc"))
		_ = w.WriteHeader(&tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "x", Format: format})
		_ = w.Close()
		f.Add(buf.Bytes())
	}
	for _, a := range hostile.Archives("/outside") {
		if b := a.Bytes(); len(b) < 20<<10 {
			f.Add(b)
		}
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		differ(t, data)
		differ(t, withSums(data))
	})
}

// withSums gives the headers of an archive the checksums that a change has broken, or nothing behind it would be read.
func withSums(data []byte) []byte {
	data = bytes.Clone(data)
	for rest := data; len(rest) >= tarBlock; {
		b := rest[:tarBlock]
		rest = rest[tarBlock:]
		if [tarBlock]byte(b) == [tarBlock]byte{} {
			continue
		}
		copy(b[148:156], "        ")
		sum := 0
		for _, c := range b {
			sum += int(c)
		}
		copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
		if size, err := parseNumber(b[124:136]); err == nil && size > 0 && size <= int64(len(rest)) && b[156] != tarDir {
			rest = rest[min(size+padding(size), int64(len(rest))):]
		}
	}
	return data
}

func TestPAXTime(t *testing.T) {
	for in, want := range map[string]time.Time{
		"0": time.Unix(0, 0), "1.5": time.Unix(1, 5e8), "-1.5": time.Unix(-1, -5e8), "1.0000000019": time.Unix(1, 1), "-0.25": time.Unix(0, -25e7), "9": time.Unix(9, 0),
	} {
		if got, err := parsePAXTime(in); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", ".", "x", "1.x", "1.-5", "1.123456789x", "99999999999999999999"} {
		if got, err := parsePAXTime(in); err == nil {
			t.Errorf("%q is %v", in, got)
		}
	}
}
