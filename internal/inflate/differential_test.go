package inflate_test

import (
	"bytes"
	"compress/flate"
	stdgzip "compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"

	"github.com/coracle-dev/coracle/internal/inflate"
)

// inputs are of the kinds that make compressors do different things.
func inputs(t *testing.T) map[string][]byte {
	r := rand.New(rand.NewPCG(3, 4))
	skewed := make([]byte, 200000) // some codes are much longer than others
	for i := range skewed {
		skewed[i] = byte(min(r.ExpFloat64()*9, 255))
	}
	fibonacci := []byte{} // codes as long as they can be
	for a, b, c := 1, 1, byte(0); len(fibonacci) < 200000; a, b, c = b, a+b, c+1 {
		fibonacci = append(fibonacci, bytes.Repeat([]byte{c}, a)...)
	}
	r.Shuffle(len(fibonacci), func(i, j int) { fibonacci[i], fibonacci[j] = fibonacci[j], fibonacci[i] })
	matches := noise(9, 40000) // matches of all lengths and distances
	for len(matches) < 400000 {
		length, dist := 3+r.IntN(300), 1+r.IntN(32768)
		if r.IntN(2) == 0 {
			dist = 1 + r.IntN(40)
		}
		for range length {
			matches = append(matches, matches[len(matches)-dist])
		}
		matches = append(matches, byte(r.Uint32()))
	}
	text := []byte{}
	for len(text) < 300000 {
		text = fmt.Appendf(text, "%d bottles of %x on the wall\n", r.IntN(100), r.IntN(1000))
	}
	list := map[string][]byte{
		"empty": nil, "one byte": {7}, "zeros": make([]byte, 500000), "noise": noise(10, 200000), "skewed": skewed,
		"fibonacci": fibonacci, "matches": matches, "text": text,
	}
	if exe, err := os.Executable(); err == nil {
		if data, err := os.ReadFile(exe); err == nil {
			list["program"] = data[:min(len(data), 1<<20)]
		}
	}
	if sources, err := filepath.Glob("*.go"); err == nil {
		for _, name := range sources {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			list["source"] = append(list["source"], data...)
		}
	}
	return list
}

// TestCompressors decodes what the compressors of the standard library and of klauspost/compress make, at all levels.
func TestCompressors(t *testing.T) {
	for name, data := range inputs(t) {
		for level := -3; level <= 9; level++ {
			for _, c := range []struct {
				name string
				make func(w io.Writer) (io.WriteCloser, error)
			}{
				{"stdlib", func(w io.Writer) (io.WriteCloser, error) { return stdgzip.NewWriterLevel(w, level) }},
				{"klauspost", func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, level) }},
			} {
				var stream bytes.Buffer
				w, err := c.make(&stream)
				if level == -3 && err != nil {
					continue // klauspost's stateless compression
				}
				if err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write(data); err != nil {
					t.Fatal(err)
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				got, err := readAll(bytes.NewReader(stream.Bytes()))
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s, %s at level %d: %d bytes of %d, %v", name, c.name, level, len(got), len(data), err)
				}
				got, err = readChunks(iotest.HalfReader(&stream), inflate.MinBuffer+level+3)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s, %s at level %d, in chunks: %d bytes of %d, %v", name, c.name, level, len(got), len(data), err)
				}
			}
		}
	}
}

// TestDamage changes bits of streams: what comes out, and whether it does, is what compress/gzip says.
func TestDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for name, data := range inputs(t) {
		data = data[:min(len(data), 6000)]
		for _, level := range []int{1, 6, flate.HuffmanOnly} {
			stream := compress(t, data, level)
			for range 15 {
				damaged := bytes.Clone(stream)
				for range 1 + r.IntN(3) {
					damaged[10+r.IntN(len(stream)-10)] ^= 1 << r.IntN(8)
				}
				compare(t, damaged)
				compareDeflate(t, damaged[10:len(damaged)-8])
				if t.Failed() {
					t.Fatalf("%s at level %d", name, level)
				}
			}
		}
	}
}

// mostOutput is enough for a fuzzer.
const mostOutput = 1 << 20

func limited(r io.Reader, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, mostOutput))
}

// compare decodes a gzip stream in several ways, all of which must do what compress/gzip does, but for what is documented:
//
//   - names and comments of more than 511 bytes are refused there and skipped here,
//   - a block without a code for its end is refused at once here, and there when it has not ended: more comes out there,
//   - the last codes of a stream that is cut may come out here only, as compress/flate reads as many bits for each code as
//     the one for the end has.
func compare(t *testing.T, stream []byte) {
	t.Helper()
	want, werr := limited(stdgzip.NewReader(bytes.NewReader(stream)))
	if len(want) == mostOutput {
		return
	}
	if werr == stdgzip.ErrHeader && bytes.Contains(stream, []byte{0x1f, 0x8b, 8}) && len(stream) > 512 {
		return
	}
	same := func(how string, got []byte, err error) {
		t.Helper()
		if (err == nil) != (werr == nil) {
			t.Errorf("%s: got %v, want %v", how, err, werr)
		}
		if err == nil && !bytes.Equal(got, want) || err != nil && !bytes.HasPrefix(want, got) && !bytes.HasPrefix(got, want) {
			t.Errorf("%s: got %d bytes, %v, want %d, %v", how, len(got), err, len(want), werr)
		}
	}
	got, err := limitedOurs(bytes.NewReader(stream))
	same("at once", got, err)
	slow, serr := limitedOurs(iotest.OneByteReader(bytes.NewReader(stream)))
	same("byte by byte", slow, serr)
	if !bytes.Equal(got, slow) || !sameError(err, serr) {
		t.Errorf("at once: %d bytes, %v; byte by byte: %d bytes, %v", len(got), err, len(slow), serr)
	}
	got, err = readChunks(bytes.NewReader(stream), inflate.MinBuffer+len(stream)%1000)
	same("in chunks", got, err)
}

// readers are for what makes many of them, and for seeing that Reset leaves nothing behind.
var readers = sync.Pool{New: func() any { return new(inflate.Reader) }}

func limitedOurs(r io.Reader) ([]byte, error) {
	z := readers.Get().(*inflate.Reader)
	defer readers.Put(z)
	if err := z.Reset(r); err != nil {
		return nil, err
	}
	return limited(z, nil)
}

// compareDeflate makes a member with the right trailer, so that it depends on the compressed data alone whether it is
// accepted.
func compareDeflate(t *testing.T, deflated []byte) {
	t.Helper()
	r := bytes.NewReader(deflated)
	want, err := limited(flate.NewReader(r), nil)
	if err != nil || len(want) == mostOutput {
		compare(t, member(deflated, want))
		return
	}
	used := len(deflated) - r.Len()
	compare(t, member(deflated[:used], want))
	compare(t, cat(member(deflated[:used], want), member(deflated, want)))
}

// FuzzInflate is the differential test above, with data as a gzip stream and as the compressed data of a member.
func FuzzInflate(f *testing.F) {
	for _, tc := range blockCases() {
		if len(tc.w.buf) < 2000 {
			f.Add(tc.w.buf, false)
			f.Add(member(tc.w.buf, []byte(tc.want)), true)
		}
	}
	text := []byte(strings.Repeat("It was the best of times, it was the worst of times. ", 10) + string(noise(3, 100)))
	for level := range 10 {
		f.Add(compress(f, text, level), true)
	}
	f.Add(cat(header(0x1f, 0, "\x01\x00x", "name\x00comment\x00"), compress(f, text, 6)[10:], compress(f, nil, 6)), true)
	f.Fuzz(func(t *testing.T, data []byte, framed bool) {
		if framed {
			compare(t, data)
		} else {
			compareDeflate(t, data)
		}
	})
}
