package inflate_test

import (
	"bytes"
	"compress/flate"
	stdgzip "compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/coracle-dev/coracle/internal/inflate"
)

func compress(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// header makes the header of a member (RFC 1952, section 2.3); sum changes its checksum.
func header(flags byte, sum uint16, fields ...any) []byte {
	h := cat(append([]any{[]byte{0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 2, 3}}, fields...)...)
	if flags&2 != 0 {
		h = binary.LittleEndian.AppendUint16(h, uint16(crc32.ChecksumIEEE(h))+sum)
	}
	return h
}

func TestMembers(t *testing.T) {
	abc := member(new(bitWriter).fixed(1).lit('a', 'b', 'c', 256).buf, []byte("abc"))
	body, empty := abc[10:], member([]byte{3, 0}, nil)
	name := strings.Repeat("long name ", 40)
	wrongCRC := bytes.Clone(abc)
	wrongCRC[len(wrongCRC)-5]++
	wrongSize := bytes.Clone(abc)
	wrongSize[len(wrongSize)-1]++
	for _, tc := range []struct {
		name   string
		stream []byte
		want   string
		err    error
		// what compress/gzip does is another thing
		differs bool
	}{
		{"nothing", nil, "", io.EOF, false},
		{"one", abc, "abc", nil, false},
		{"an empty one", empty, "", nil, false},
		{"many", bytes.Repeat(abc, 1000), strings.Repeat("abc", 1000), nil, false},
		{"empty ones between", cat(empty, abc, empty, empty, abc, empty), "abcabc", nil, false},
		{"extra field", cat(header(4, 0, "\x05\x00hello"), body), "abc", nil, false},
		{"extra field, empty", cat(header(4, 0, "\x00\x00"), body), "abc", nil, false},
		{"extra field, as long as can be", cat(header(4, 0, "\xff\xff", bytes.Repeat([]byte{7}, 65535)), body), "abc", nil, false},
		{"extra field, cut", header(4, 0, "\x05\x00hell"), "", io.ErrUnexpectedEOF, false},
		{"name", cat(header(8, 0, "name\x00"), body), "abc", nil, false},
		{"name and comment", cat(header(0x18, 0, "name\x00comment\xe9\x00"), body), "abc", nil, false},
		{"name, empty", cat(header(8, 0, "\x00"), body), "abc", nil, false},
		{"name without end", header(8, 0, "name"), "", io.ErrUnexpectedEOF, false},
		{"name of 511 bytes", cat(header(8, 0, strings.Repeat("n", 511), "\x00"), body), "abc", nil, false},
		// compress/gzip keeps names and refuses those for which its buffer is too small.
		{"name of a megabyte", cat(header(8, 0, strings.Repeat("n", 1<<20), "\x00"), body), "abc", nil, true},
		{"header checksum", cat(header(2, 0), body), "abc", nil, false},
		{"everything", cat(header(0x1f, 0, "\x01\x00x", name, "\x00comment\x00"), body), "abc", nil, false},
		{"header checksum, wrong", cat(header(2, 1), body), "", inflate.ErrHeader, false},
		{"everything, wrong header checksum", cat(header(0x1e, 1, "\x01\x00x", name, "\x00comment\x00"), body), "", inflate.ErrHeader, false},
		{"reserved flags", cat(header(0xe0, 0), body), "abc", nil, false},
		{"not gzip", []byte("this is not gzip at all"), "", inflate.ErrHeader, false},
		{"not deflate", cat("\x1f\x8b\x07\x00\x00\x00\x00\x00\x00\x00", body), "", inflate.ErrHeader, false},
		{"short", []byte("x"), "", io.ErrUnexpectedEOF, false},
		{"wrong checksum", wrongCRC, "abc", inflate.ErrChecksum, false},
		{"wrong size", wrongSize, "abc", inflate.ErrChecksum, false},
		{"wrong checksum of the first", cat(wrongCRC, abc), "abc", inflate.ErrChecksum, false},
		{"garbage behind", cat(abc, "garbage garbage"), "abc", inflate.ErrHeader, false},
		{"a little garbage behind", cat(abc, "garbage"), "abc", io.ErrUnexpectedEOF, false},
		{"zeros behind", cat(abc, make([]byte, 512)), "abc", inflate.ErrHeader, false},
		{"a zero behind", cat(abc, make([]byte, 1)), "abc", io.ErrUnexpectedEOF, false},
		{"match into another member", cat(abc, member(new(bitWriter).fixed(1).lit(257).code(2, 5).lit(256).buf, []byte("abc"))), "abc", &inflate.CorruptError{}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := decoded(t, tc.stream)
			if want, ok := tc.err.(*inflate.CorruptError); ok {
				if !errors.As(err, &want) {
					t.Errorf("got %v, want a CorruptError", err)
				}
			} else if !errors.Is(err, tc.err) {
				t.Errorf("got %v, want %v", err, tc.err)
			}
			if string(got) != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if std, serr := stdAll(tc.stream); ((err == nil) != (serr == nil) || err == nil && !bytes.Equal(std, got)) != tc.differs {
				t.Errorf("we get %d bytes, %v; compress/gzip gets %d bytes, %v", len(got), err, len(std), serr)
			}
		})
	}
}

// TestHeaderMemory: a name that goes on for ever takes no memory.
func TestHeaderMemory(t *testing.T) {
	z, err := inflate.NewReader(bytes.NewReader(compress(t, nil, 6)))
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := io.LimitReader(repeat('n'), 8<<20)
	if err := z.Reset(io.MultiReader(bytes.NewReader(header(8, 0)), r)); err != io.ErrUnexpectedEOF {
		t.Errorf("got %v", err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<10 {
		t.Errorf("took %d bytes", n)
	}
}

type repeat byte

func (c repeat) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(c)
	}
	return len(p), nil
}

// TestTruncated cuts a stream with every kind of block at every byte.
func TestTruncated(t *testing.T) {
	text := []byte(strings.Repeat("It was the best of times, it was the worst of times. ", 20) + string(noise(3, 300)))
	first := compress(t, text, 6)
	stream := cat(first, compress(t, text, 0), member(new(bitWriter).fixed(1).lit('a', 264).code(0, 5).lit(256).buf, bytes.Repeat([]byte("a"), 11)))
	last := 0
	for n := range stream {
		got, err := decoded(t, stream[:n])
		std, serr := stdAll(stream[:n])
		switch {
		case n == 0 && err == io.EOF:
		case serr == nil: // between members
			if err != nil || !bytes.Equal(got, std) {
				t.Errorf("%d bytes: got %d bytes, %v, want %d", n, len(got), err, len(std))
			}
		case err != io.ErrUnexpectedEOF:
			t.Errorf("%d bytes: got %v", n, err)
		}
		if len(got) < last || len(got) < len(std) {
			t.Errorf("%d bytes give %d, fewer bytes gave %d, compress/gzip gives %d", n, len(got), last, len(std))
		}
		last = len(got)
	}
}

// shyReader gives nothing at every other call.
type shyReader struct {
	r   io.Reader
	odd bool
}

func (s *shyReader) Read(p []byte) (int, error) {
	if s.odd = !s.odd; s.odd {
		return 0, nil
	}
	return s.r.Read(p)
}

func TestSources(t *testing.T) {
	data := noise(4, 150000)
	copy(data[100000:], data[80000:])
	stream := cat(compress(t, data, 6), compress(t, data, 1))
	want := cat(data, data)
	for _, tc := range []struct {
		name string
		wrap func(io.Reader) io.Reader
	}{
		{"half", iotest.HalfReader},
		{"byte by byte", iotest.OneByteReader},
		{"end with data", iotest.DataErrReader},
		{"byte by byte, end with data", func(r io.Reader) io.Reader { return iotest.DataErrReader(iotest.OneByteReader(r)) }},
		{"sometimes nothing", func(r io.Reader) io.Reader { return &shyReader{r: r} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, err := readAll(tc.wrap(bytes.NewReader(stream))); err != nil || !bytes.Equal(got, want) {
				t.Errorf("Read: %d bytes, %v", len(got), err)
			}
			if got, err := readChunks(tc.wrap(bytes.NewReader(stream)), inflate.MinBuffer+100); err != nil || !bytes.Equal(got, want) {
				t.Errorf("ReadChunk: %d bytes, %v", len(got), err)
			}
		})
	}
}

// TestSourceErrors: what the source says is passed on as it is, after what it gave.
func TestSourceErrors(t *testing.T) {
	failure := errors.New("failure")
	data := noise(5, 100000)
	stream := compress(t, data, 6)
	for _, n := range []int{0, 5, 10, 11, 1000, len(stream) - 9, len(stream) - 1, len(stream)} {
		got, err := readAll(io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(failure)))
		if err != failure {
			t.Errorf("after %d bytes: %v", n, err)
		}
		got2, err := readAll(iotest.DataErrReader(io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(failure))))
		if err != failure || !bytes.Equal(got, got2) || !bytes.HasPrefix(data, got) {
			t.Errorf("together with the last of %d bytes: %d and %d bytes, %v", n, len(got), len(got2), err)
		}
		if n >= len(stream)-9 && len(got) != len(data) {
			t.Errorf("after %d bytes: got %d bytes", n, len(got))
		}
	}
	if _, err := readAll(shyForEver{}); err != io.ErrNoProgress {
		t.Errorf("a source that never gives anything: %v", err)
	}
	z, err := inflate.NewReader(bytes.NewReader(stream[:1000]))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := io.Copy(io.Discard, z); err != io.ErrUnexpectedEOF {
			t.Errorf("an error stays: got %v", err)
		}
	}
}

type shyForEver struct{}

func (shyForEver) Read([]byte) (int, error) { return 0, nil }

// TestProgress: a reader never waits for more while there is something to give. The source has what the compressor has
// flushed so far, and calling it when that is used up is a mistake unless everything was returned.
func TestProgress(t *testing.T) {
	for _, level := range []int{0, 1, 6, 9, flate.HuffmanOnly} {
		t.Run(fmt.Sprint(level), func(t *testing.T) {
			var wire bytes.Buffer
			w, err := stdgzip.NewWriterLevel(&wire, level)
			if err != nil {
				t.Fatal(err)
			}
			var written, got []byte
			piece := 0
			// Each time the source is asked for more, what was written before must be there in whole.
			src := readerFunc(func(p []byte) (int, error) {
				for wire.Len() == 0 {
					if !bytes.Equal(got, written) {
						return 0, fmt.Errorf("asked for more after %d of %d bytes", len(got), len(written))
					}
					if piece == 60 {
						return 0, io.EOF
					}
					piece++
					data := noise(uint32(piece), piece*piece*7)
					written = append(written, data...)
					if _, err := w.Write(data); err != nil {
						return 0, err
					}
					end := w.Flush
					if piece == 60 {
						end = w.Close
					}
					if err := end(); err != nil {
						return 0, err
					}
				}
				return wire.Read(p)
			})
			z, err := inflate.NewReader(src)
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, inflate.MinBuffer)
			for {
				p, err := z.ReadChunk(buf)
				got = append(got, p...)
				if err == io.EOF {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(got, written) {
				t.Error("other data")
			}
		})
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestReset(t *testing.T) {
	a, b := noise(6, 200000), noise(7, 200000)
	z, err := inflate.NewReader(bytes.NewReader(compress(t, a, 6)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, z, 100001); err != nil {
		t.Fatal(err)
	}
	stream := compress(t, b, 6)
	if n := testing.AllocsPerRun(10, func() {
		r := bytes.NewReader(stream)
		if err := z.Reset(r); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		for {
			if _, err := z.Read(buf); err == io.EOF {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}); n > 3 {
		t.Errorf("a stream takes %v allocations", n)
	}
	if err := z.Reset(bytes.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, b) {
		t.Error(len(got), err)
	}
	if err := z.Reset(nil); err != nil {
		t.Fatal(err)
	}
	if n, err := z.Read(make([]byte, 10)); n != 0 || err != io.EOF {
		t.Error(n, err)
	}
}

func TestShortBuffer(t *testing.T) {
	z, err := inflate.NewReader(bytes.NewReader(compress(t, noise(8, 100), 6)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.ReadChunk(make([]byte, inflate.MinBuffer-1)); err != io.ErrShortBuffer {
		t.Errorf("got %v", err)
	}
	if p, err := z.ReadChunk(make([]byte, inflate.MinBuffer)); err != nil || len(p) != 100 {
		t.Errorf("got %d bytes, %v", len(p), err)
	}
	if n, err := z.Read(nil); n != 0 || err != nil {
		t.Errorf("got %d bytes, %v", n, err)
	}
}
