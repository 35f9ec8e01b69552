package inflate_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/coracle-dev/coracle/internal/inflate"
)

// decoded reads a gzip stream, in the two ways that there are, and wants the same of both.
func decoded(t *testing.T, stream []byte) ([]byte, error) {
	t.Helper()
	all, err := readAll(bytes.NewReader(stream))
	chunks, cerr := readChunks(iotest.OneByteReader(bytes.NewReader(stream)), inflate.MinBuffer)
	if !bytes.Equal(all, chunks) || !sameError(err, cerr) {
		t.Fatalf("Read gives %d bytes, %v; ReadChunk byte by byte gives %d bytes, %v", len(all), err, len(chunks), cerr)
	}
	return all, err
}

// sameError leaves it to the offset to be inexact by a symbol.
func sameError(a, b error) bool {
	var ca, cb *inflate.CorruptError
	if errors.As(a, &ca) && errors.As(b, &cb) {
		return ca.Err == cb.Err && max(ca.Offset, cb.Offset)-min(ca.Offset, cb.Offset) <= 8
	}
	return a == b
}

func readAll(r io.Reader) ([]byte, error) {
	z, err := inflate.NewReader(r)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// readChunks uses two buffers by turns, as a ring of them does, and spoils the one that no longer counts.
func readChunks(r io.Reader, size int) (all []byte, err error) {
	z := readers.Get().(*inflate.Reader)
	defer readers.Put(z)
	if err := z.Reset(r); err != nil {
		return nil, err
	}
	cur, prev := make([]byte, size), make([]byte, size)
	for {
		p, err := z.ReadChunk(cur)
		all = append(all, p...)
		if err == io.EOF {
			return all, nil
		} else if err != nil {
			return all, err
		}
		if len(p) == 0 {
			return all, errors.New("no bytes and no error")
		}
		cur, prev = prev, cur
		clear(cur[inflate.History-16 : min(len(cur), inflate.History+1<<10)])
	}
}

// blockCase is DEFLATE data that is a member's, and what becomes of it: err is "EOF" for an unexpected end, or part of a
// CorruptError.
type blockCase struct {
	name string
	w    *bitWriter
	want string
	err  string
}

func blockCases() []blockCase {
	random := noise(1, 65535)
	abc := []int{'a', 'b', 'c'}
	rep := func(n, v int) []int { return slices.Repeat([]int{v}, n) }
	// A literal and length code with a and b of two bits, the end of two bits, 257 and 285 of three.
	litLens := lengths(286, 'a', 2, 'b', 2, 256, 2, 257, 3, 285, 3)
	// As long as codes can be: 1, 2, 3, ... 14, 15, 15 bits.
	longLit := func() []int {
		l := lengths(286)
		for i := range 14 {
			l['a'+i] = i + 1
		}
		l[256], l[285] = 15, 15
		return l
	}()
	longDist := func() []int {
		l := lengths(30)
		for i := range 14 {
			l[i] = i + 1
		}
		l[28], l[29] = 15, 15
		return l
	}()

	return []blockCase{
		// Stored blocks, RFC 1951, section 3.2.4.
		{"stored", new(bitWriter).stored(1, []byte("hello")), "hello", ""},
		{"stored, empty", new(bitWriter).stored(1, nil), "", ""},
		{"stored, twice", new(bitWriter).stored(0, []byte("hello")).stored(1, []byte(" world")), "hello world", ""},
		{"stored, as long as can be", new(bitWriter).stored(1, random[:65535]), string(random[:65535]), ""},
		{"stored, longer than a buffer", new(bitWriter).stored(0, random[:65535]).stored(0, random[:65535]).stored(1, random[:4000]), strings.Repeat(string(random[:65535]), 2) + string(random[:4000]), ""},
		{"stored, lengths differ", new(bitWriter).bits(1, 3).bytes(5, 0, 0xfb, 0xff), "", "stored"},
		{"stored, after a fixed block that ends within a byte", new(bitWriter).fixed(0).lit(abc...).lit(256).stored(1, []byte("def")), "abcdef", ""},
		{"stored, the padding is not zero", new(bitWriter).bits(1, 3).bits(31, 5).bytes(1, 0, 0xfe, 0xff, 'x'), "x", ""},
		{"stored, cut", new(bitWriter).bits(1, 3).bytes(200, 0, 55, 0xff, 'x'), "", "EOF"},
		{"reserved type", new(bitWriter).bits(1, 1).bits(3, 2), "", "block type"},

		// The fixed code, section 3.2.6.
		{"fixed, empty", new(bitWriter).fixed(1).lit(256), "", ""},
		{"fixed, all literals", func() *bitWriter {
			w := new(bitWriter).fixed(1)
			for i := range 256 {
				w.lit(i)
			}
			return w.lit(256)
		}(), func() string {
			var b []byte
			for i := range 256 {
				b = append(b, byte(i))
			}
			return string(b)
		}(), ""},
		{"fixed, length 3 at distance 3", new(bitWriter).fixed(1).lit(abc...).lit(257).code(2, 5).lit(256), "abcabc", ""},
		{"fixed, length 10 at distance 1", new(bitWriter).fixed(1).lit('x', 264).code(0, 5).lit(256), strings.Repeat("x", 11), ""},
		{"fixed, length 258 of symbol 285", new(bitWriter).fixed(1).lit('x', 285).code(0, 5).lit(256), strings.Repeat("x", 259), ""},
		{"fixed, length 258 of symbol 284 and 31", new(bitWriter).fixed(1).lit('x', 284).bits(31, 5).code(0, 5).lit(256), strings.Repeat("x", 259), ""},
		{"fixed, length 257 of symbol 284 and 30", new(bitWriter).fixed(1).lit('x', 284).bits(30, 5).code(0, 5).lit(256), strings.Repeat("x", 258), ""},
		{"fixed, symbol 286", new(bitWriter).fixed(1).lit('x', 286).code(0, 5).lit(256), "x", "code"},
		{"fixed, symbol 287", new(bitWriter).fixed(1).lit('x', 287).code(0, 5).lit(256), "x", "code"},
		{"fixed, distance 30", new(bitWriter).fixed(1).lit('x', 257).code(30, 5).lit(256), "x", "code"},
		{"fixed, distance 31", new(bitWriter).fixed(1).lit('x', 257).code(31, 5).lit(256), "x", "code"},
		{"fixed, distance into nothing", new(bitWriter).fixed(1).lit(257).code(0, 5).lit(256), "", "distance"},
		{"fixed, distance one too far", new(bitWriter).fixed(1).lit(abc...).lit(257).code(3, 5).lit(256), "abc", "distance"},
		{"fixed, the largest distance", new(bitWriter).stored(0, random[:32768]).fixed(1).lit(257).code(29, 5).bits(8191, 13).lit(256), string(random[:32768]) + string(random[:3]), ""},
		{"fixed, the largest distance, one too far", new(bitWriter).stored(0, random[:32767]).fixed(1).lit(257).code(29, 5).bits(8191, 13).lit(256), string(random[:32767]), "distance"},
		{"fixed, the largest distance into the last chunk", new(bitWriter).stored(0, random[:60000]).fixed(1).lit(257).code(29, 5).bits(8191, 13).lit(256), string(random[:60000]) + string(random[60000-32768:][:3]), ""},

		// Dynamic codes, section 3.2.7.
		{"dynamic", new(bitWriter).codeLengths(1, 286, 2, append(litLens, 1, 1)...).sym(litLens, 'a', 'b', 257).code(1, 1).sym(litLens, 285).code(0, 1).sym(litLens, 256), "ababa" + strings.Repeat("a", 258), ""},
		{"dynamic, no distances", new(bitWriter).codeLengths(1, 286, 1, append(litLens, 0)...).sym(litLens, 'a', 256), "a", ""},
		{"dynamic, no distances, one used", new(bitWriter).codeLengths(1, 286, 1, append(litLens, 0)...).sym(litLens, 'a', 257).code(0, 1).sym(litLens, 256), "a", "code"},
		{"dynamic, one distance", new(bitWriter).codeLengths(1, 286, 1, append(litLens, 1)...).sym(litLens, 'a', 257).code(0, 1).sym(litLens, 256), "aaaa", ""},
		{"dynamic, one distance, the other used", new(bitWriter).codeLengths(1, 286, 1, append(litLens, 1)...).sym(litLens, 'a', 257).code(1, 1).sym(litLens, 256), "a", "code"},
		{"dynamic, one distance of two bits", new(bitWriter).codeLengths(1, 286, 1, append(litLens, 2)...).sym(litLens, 'a', 256), "", "lengths"},
		{"dynamic, distances incomplete", new(bitWriter).codeLengths(1, 286, 2, append(litLens, 2, 1)...).sym(litLens, 'a', 256), "", "lengths"},
		{"dynamic, distances oversubscribed", new(bitWriter).codeLengths(1, 286, 3, append(litLens, 1, 1, 1)...).sym(litLens, 'a', 256), "", "lengths"},
		{"dynamic, only an end", new(bitWriter).codeLengths(1, 257, 1, append(lengths(257, 256, 1), 0)...).code(0, 1), "", ""},
		{"dynamic, only an end, the other bit", new(bitWriter).codeLengths(1, 257, 1, append(lengths(257, 256, 1), 0)...).code(1, 1), "", "code"},
		{"dynamic, no end", new(bitWriter).codeLengths(1, 257, 1, append(lengths(257, 'a', 1, 'b', 1), 0)...).code(0, 1), "", "lengths"},
		{"dynamic, no literal at all", new(bitWriter).codeLengths(1, 257, 1, lengths(258)...), "", "lengths"},
		{"dynamic, literals incomplete", new(bitWriter).codeLengths(1, 257, 1, append(lengths(257, 'a', 2, 256, 1), 0)...).code(0, 1), "", "lengths"},
		{"dynamic, literals oversubscribed", new(bitWriter).codeLengths(1, 257, 1, append(lengths(257, 'a', 1, 'b', 1, 256, 1), 0)...).code(0, 1), "", "lengths"},
		{"dynamic, 287 lengths", new(bitWriter).codeLengths(1, 287, 1, append(lengths(287, 'a', 1, 256, 1), 0)...).code(1, 1), "", "lengths"},
		{"dynamic, 31 distances", new(bitWriter).codeLengths(1, 257, 31, append(lengths(257, 'a', 1, 256, 1), lengths(31, 0, 1)...)...).code(1, 1), "", "lengths"},
		{"dynamic, 30 distances", new(bitWriter).codeLengths(1, 257, 30, append(lengths(257, 'a', 1, 256, 1), lengths(30, 0, 1)...)...).code(0, 1).code(1, 1), "a", ""},
		{"dynamic, repeats nothing", new(bitWriter).codeLengths(1, 257, 1, append([]int{-1600}, lengths(255)...)...), "", "lengths"},
		{"dynamic, repetition from literals into distances", new(bitWriter).codeLengths(1, 258, 4, slices.Concat([]int{3}, lengths(251), rep(4, 3), []int{0}, []int{3, 3, -1600, 3})...).code(0, 3).code(5, 3), "\x00", "lengths"},
		{"dynamic, repetition beyond the end", new(bitWriter).codeLengths(1, 257, 1, append(lengths(256, 'a', 1), 1, -1600)...).code(0, 1).code(1, 1), "", "lengths"},
		{"dynamic, zeros beyond the end", new(bitWriter).codeLengths(1, 257, 1, append(lengths(256, 'a', 1), 1, -18000)...).code(0, 1).code(1, 1), "", "lengths"},
		{"dynamic, zeros", new(bitWriter).codeLengths(1, 257, 1, -18000-97+11, 1, -18127, -18009, 1, 0).code(0, 1).code(1, 1), "a", ""},
		{"dynamic, long codes", new(bitWriter).codeLengths(1, 286, 30, append(longLit, longDist...)...).sym(longLit, 'n', 'a', 'm', 'n', 285).sym(longDist, 0).sym(longLit, 'l', 256), "namn" + strings.Repeat("n", 258) + "l", ""},
		{"dynamic, the longest symbols", new(bitWriter).stored(0, random[:40000]).codeLengths(1, 286, 30, append(longLit, longDist...)...).
			sym(longLit, 285).sym(longDist, 29).bits(8191, 13).sym(longLit, 285).sym(longDist, 28).bits(8191, 13).sym(longLit, 'n', 'n', 256),
			string(random[:40000]) + string(random[40000-32768:][:258]) + string(random[40258-24576:][:258]) + "nn", ""},
		{"code length code, empty", new(bitWriter).bits(1, 1).bits(2, 2).bits(0, 14).bits(0, 12).bits(0, 64), "", "code"},
		{"code length code, incomplete", new(bitWriter).bits(1, 1).bits(2, 2).bits(0, 14).bits(2, 3).bits(2, 3).bits(2, 3).bits(0, 3).bits(0, 64), "", "lengths"},
		{"code length code, oversubscribed", new(bitWriter).bits(1, 1).bits(2, 2).bits(0, 14).bits(1, 3).bits(1, 3).bits(1, 3).bits(0, 3).bits(0, 64), "", "lengths"},
		{"code length code, one code", new(bitWriter).bits(1, 1).bits(2, 2).bits(0, 14).bits(0, 9).bits(1, 3).bits(0, 300), "", "lengths"},
		{"code length code, the other of one code", new(bitWriter).bits(1, 1).bits(2, 2).bits(0, 14).bits(0, 9).bits(1, 3).bits(2, 2).bits(0, 64), "", "code"},
		{"nothing", new(bitWriter), "", "EOF"},
	}
}

func TestBlocks(t *testing.T) {
	for _, tc := range blockCases() {
		t.Run(tc.name, func(t *testing.T) {
			// What follows a block is of no importance, be it in reach of the fast loop or not. It counts for what is
			// cut, of course.
			for _, tail := range []int{0, 100} {
				if tail > 0 && tc.err == "EOF" {
					continue
				}
				stream := append(member(tc.w.buf, []byte(tc.want)), bytes.Repeat(member([]byte{3, 0}, nil), tail)...)
				if tc.err == "EOF" {
					stream = stream[:len(stream)-8]
				}
				got, err := decoded(t, stream)
				var corrupt *inflate.CorruptError
				switch {
				case tc.err == "" && err != nil:
					t.Fatal(err)
				case tc.err == "EOF" && err != io.ErrUnexpectedEOF:
					t.Fatalf("got %v, want an unexpected EOF", err)
				case tc.err != "" && tc.err != "EOF" && (!errors.As(err, &corrupt) || !strings.Contains(err.Error(), tc.err)):
					t.Fatalf("got %v, want %q", err, tc.err)
				}
				if tc.err == "" && string(got) != tc.want {
					t.Errorf("got %q, want %q", got, tc.want)
				}
				if tc.err != "" && !strings.HasPrefix(tc.want, string(got)) && tc.err != "EOF" {
					t.Errorf("got %q before the error, want %q", got, tc.want)
				}
				want, werr := stdAll(stream)
				if (err == nil) != (werr == nil) || err == nil && !bytes.Equal(got, want) {
					t.Errorf("we get %d bytes, %v; compress/gzip gets %d bytes, %v", len(got), err, len(want), werr)
				}
			}
		})
	}
}

func stdAll(stream []byte) ([]byte, error) {
	z, err := stdgzip.NewReader(bytes.NewReader(stream))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// TestMatches: every length at every small distance and some large ones, next to a copy made byte by byte.
func TestMatches(t *testing.T) {
	start := noise(2, 600)
	for dist := 1; dist <= 600; dist += 1 + dist/40 {
		w, want := new(bitWriter).stored(0, start).fixed(1), slices.Clone(start)
		for length := 3; length <= 258; length++ {
			writeMatch(w, length, dist)
			for range length {
				want = append(want, want[len(want)-dist])
			}
			w.lit(length & 0xff) // the next match is of something else
			want = append(want, byte(length))
		}
		got, err := decoded(t, member(w.lit(256).buf, want))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("distance %d: %v", dist, err)
		}
	}
}

// writeMatch writes length and distance in the fixed code (RFC 1951, section 3.2.5).
func writeMatch(w *bitWriter, length, dist int) {
	sym, base := 257, 3
	for extra := 0; ; sym++ {
		extra = max((sym-257)/4, 1) - 1
		if sym == 285 {
			base, extra = 258, 0
		}
		if length == base && sym == 285 || sym < 285 && length != 258 && length < base+1<<extra {
			w.lit(sym).bits(length-base, extra)
			break
		}
		base += 1 << extra
	}
	base = 1
	for sym := 0; ; sym++ {
		extra := max(sym/2, 1) - 1
		if dist < base+1<<extra {
			w.code(sym, 5).bits(dist-base, extra)
			return
		}
		base += 1 << extra
	}
}

// noise is data that is the same in every run.
func noise(seed uint32, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		seed = seed*1664525 + 1013904223
		b[i] = byte(seed >> 24)
	}
	return b
}
