package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// clock gives a second more each time.
func clock() func() time.Time {
	t := time.Unix(1_000_000_000, 0)
	return func() time.Time {
		t = t.Add(time.Second)
		return t
	}
}

// at is the time of the n-th record of a log with that clock.
func at(n int) time.Time { return time.Unix(1_000_000_000+int64(n), 0) }

func newWriter(t testing.TB, dir string, opts WriterOptions) *Writer {
	t.Helper()
	if opts.Now == nil {
		opts.Now = clock()
	}
	w, err := NewWriter(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func write(t testing.TB, w *Writer, stream Stream, text string) {
	t.Helper()
	if err := w.Write(stream, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, dir string, opts *Options) *Reader {
	t.Helper()
	r, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// all reads what there is, as "1:text", with "?" for damage, "~" for a truncation and "-n" for n missed records.
func all(t testing.TB, r *Reader) []string {
	t.Helper()
	list := []string{}
	for {
		rec, err := r.Next()
		switch {
		case err == io.EOF:
			return list
		case errors.Is(err, ErrCorrupt):
			list = append(list, "?")
			continue
		case err != nil:
			t.Fatal(err)
		}
		s := ""
		if rec.Truncated {
			s += "~"
		}
		if rec.Missed > 0 {
			s += fmt.Sprintf("-%d ", rec.Missed)
		}
		if rec.Stream == Notes {
			s += fmt.Sprintf("3:%v", ParseNote(rec.Data))
		} else {
			s += fmt.Sprintf("%d:%s", rec.Stream, rec.Data)
		}
		list = append(list, s)
	}
}

func wantAll(t testing.TB, r *Reader, want ...string) {
	t.Helper()
	if got := all(t, r); !slices.Equal(got, want) {
		t.Fatalf("read   %q\nwanted %q", got, want)
	}
}

func TestReadWhileWritten(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, nil)
	wantAll(t, r)
	w := newWriter(t, dir, WriterOptions{})
	wantAll(t, r)
	write(t, w, Stdout, "a")
	write(t, w, Stderr, "b\n")
	write(t, w, Stdout, "")
	wantAll(t, r, "1:a", "2:b\n", "1:")
	write(t, w, Stdout, strings.Repeat("x", MaxWrite+1))
	wantAll(t, r, "1:"+strings.Repeat("x", MaxWrite), "1:x")
	wantAll(t, r)
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, WriterOptions{MaxSize: 2 * (HeaderSize + 1), MaxFiles: 3})
	early := open(t, dir, nil)
	step := open(t, dir, nil)
	for i := range 9 {
		write(t, w, Stdout, fmt.Sprint(i))
		wantAll(t, step, fmt.Sprintf("1:%d", i))
	}
	// Files: 8 | 67 | 45. The early reader holds 01, and has lost 23.
	wantAll(t, early, "1:0", "1:1", "-2 1:4", "1:5", "1:6", "1:7", "1:8")
	wantAll(t, open(t, dir, nil), "1:4", "1:5", "1:6", "1:7", "1:8")
	names, _ := filepath.Glob(dir + "/*")
	if len(names) != 3 {
		t.Errorf("files: %v", names)
	}
}

// TestRotationAtTheEnd: what is written and rotated after a reader has met the end of the file, and before it looks
// whether that is still the current one.
func TestRotationAtTheEnd(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, WriterOptions{MaxSize: 2 * (HeaderSize + 1)})
	r := open(t, dir, nil)
	write(t, w, Stdout, "a")
	wantAll(t, r, "1:a")
	if _, err := r.read(); err != errEnd {
		t.Fatal(err)
	}
	write(t, w, Stdout, "b")
	write(t, w, Stdout, "c")
	if more, err := r.advance(); !more || err != nil {
		t.Fatal(more, err)
	}
	wantAll(t, r, "1:b", "1:c")
}

// TestRotationHalfDone: a keeper may be killed between two renames, and between these and the new file.
func TestRotationHalfDone(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, WriterOptions{MaxSize: 1, MaxFiles: 9})
	r := open(t, dir, nil)
	for _, s := range []string{"a", "b", "c"} {
		write(t, w, Stdout, s)
	}
	// a is 3, b is 2, c is 1, 0 is empty.
	if err := os.Remove(filepath.Join(dir, "0")); err != nil {
		t.Fatal(err)
	}
	for i := 3; i >= 2; i-- {
		if err := os.Rename(filepath.Join(dir, fmt.Sprint(i)), filepath.Join(dir, fmt.Sprint(i+2))); err != nil {
			t.Fatal(err)
		}
	}
	wantAll(t, r, "1:a", "1:b", "1:c")
	r2 := open(t, dir, nil)
	wantAll(t, r2, "1:a", "1:b", "1:c")
	w = newWriter(t, dir, WriterOptions{Run: 2})
	write(t, w, Stdout, "d")
	wantAll(t, r, "1:d")
	wantAll(t, r2, "1:d")
}

func TestTornEnd(t *testing.T) {
	var whole []byte
	h := Header{Stream: Stdout, Length: 3, Seq: Sequence(1, 1), Sec: 1}
	whole = append(h.Append(nil), "abc"...)
	h.Seq++
	second := append(h.Append(nil), "def"...)
	for cut := range len(second) {
		dir := t.TempDir()
		name := filepath.Join(dir, "0")
		if err := os.WriteFile(name, append(bytes.Clone(whole), second[:cut]...), 0o600); err != nil {
			t.Fatal(err)
		}
		r := open(t, dir, nil)
		wantAll(t, r, "1:abc")
		f, _ := os.Open(name)
		if off, seq, err := End(f); off != int64(len(whole)) || seq != Sequence(1, 1) || err != nil {
			t.Fatalf("cut at %d: end %d, %d, %v", cut, off, seq, err)
		}
		f.Close()
		// Either the rest comes, or the next start writes something else there.
		if cut%2 == 0 {
			if err := os.WriteFile(name, append(bytes.Clone(whole), second...), 0o600); err != nil {
				t.Fatal(err)
			}
			wantAll(t, r, "1:def")
		} else {
			w := newWriter(t, dir, WriterOptions{Run: 2})
			write(t, w, Stderr, "next")
			wantAll(t, r, "2:next")
		}
	}
}

// TestZerosAtEnd: a power failure may leave them.
func TestZerosAtEnd(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, WriterOptions{})
	write(t, w, Stdout, "a")
	r := open(t, dir, nil)
	if err := os.Truncate(filepath.Join(dir, "0"), 1<<40); err != nil {
		t.Fatal(err)
	}
	wantAll(t, r, "1:a")
	wantAll(t, r)
	w = newWriter(t, dir, WriterOptions{Run: 2})
	if w.off != HeaderSize+1 {
		t.Fatalf("goes on at %d", w.off)
	}
	write(t, w, Stdout, "b")
	wantAll(t, r, "1:b")
}

// TestTruncation: people truncate logs of running containers, whose keepers go on at their offsets.
func TestTruncation(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "0")
	w := newWriter(t, dir, WriterOptions{})
	r := open(t, dir, nil)
	write(t, w, Stdout, "a")
	write(t, w, Stdout, "b")
	wantAll(t, r, "1:a", "1:b")
	if err := os.Truncate(name, 0); err != nil {
		t.Fatal(err)
	}
	wantAll(t, r)
	write(t, w, Stdout, "c")
	wantAll(t, r, "~1:c")
	write(t, w, Stdout, "d")
	// Back to the first record after the hole: what was delivered is not delivered again.
	if err := os.Truncate(name, w.off-HeaderSize-1); err != nil {
		t.Fatal(err)
	}
	lagging := open(t, dir, nil)
	wantAll(t, lagging, "~1:c")
	write(t, w, Stdout, "e")
	wantAll(t, r, "~-1 1:e")
	wantAll(t, lagging, "~-1 1:e")
	f, _ := os.Open(name)
	defer f.Close()
	if off, seq, err := End(f); off != w.off || seq != Sequence(1, 5) || err != nil {
		t.Fatalf("end %d, %d, %v; want %d", off, seq, err, w.off)
	}
}

func TestCorrupt(t *testing.T) {
	for name, damage := range map[string]struct {
		at    int64
		bytes []byte
	}{
		"magic":    {0, []byte("X")},
		"stream":   {4, []byte{4}},
		"reserved": {6, []byte{1}},
		"length":   {8, []byte{1, 0, 1, 0}},
		"seq":      {16, make([]byte, 8)},
		"time":     {24, []byte{255, 255, 255, 255, 255, 255, 255, 255}},
		"nanos":    {32, []byte{0, 0, 0, 0x40}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			const size = HeaderSize + 1
			w := newWriter(t, dir, WriterOptions{MaxSize: 3 * size})
			for _, s := range []string{"a", "b", "c", "d"} {
				write(t, w, Stdout, s)
			}
			f, err := os.OpenFile(filepath.Join(dir, "1"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(damage.bytes, size+damage.at); err != nil {
				t.Fatal(err)
			}
			wantAll(t, open(t, dir, nil), "1:a", "?", "-2 1:d")
			if off, seq, err := End(f); off != size || seq != Sequence(1, 1) || !errors.Is(err, ErrCorrupt) {
				t.Errorf("end: %d, %d, %v", off, seq, err)
			}
			var corrupt *CorruptError
			r := open(t, dir, nil)
			r.Next()
			if _, err := r.Next(); !errors.As(err, &corrupt) || corrupt.File != "1" || corrupt.Offset != size {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestCorruptCurrent: damage in the file that is written ends what can be read of it, until the next file, or until the
// next start or somebody else truncates it.
func TestCorruptCurrent(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "0")
	const size = HeaderSize + 1
	w := newWriter(t, dir, WriterOptions{MaxSize: 4 * size})
	write(t, w, Stdout, "a")
	write(t, w, Stdout, "b")
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteAt([]byte("X"), size)
	r := open(t, dir, nil)
	wantAll(t, r, "1:a", "?")
	write(t, w, Stdout, "c")
	wantAll(t, r)
	write(t, w, Stdout, "d")
	write(t, w, Stdout, "e")
	wantAll(t, r, "-3 1:e")

	f.WriteAt([]byte("X"), 0)
	w2 := newWriter(t, dir, WriterOptions{Run: 2})
	write(t, w2, Stdout, "f")
	wantAll(t, r, "1:f")
}

func TestNotALog(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "none"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "0"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x", "00", "-1", "99999999999999999999", "20000"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := Open(dir, nil); err == nil {
		r.Close()
		t.Error("a directory as a file")
	}
	os.Remove(filepath.Join(dir, "0"))
	wantAll(t, open(t, dir, nil))
}

func TestTail(t *testing.T) {
	type rec struct {
		stream Stream
		text   string
	}
	big := strings.Repeat("0123456789abcde\n", 1000)
	tests := []struct {
		name    string
		records []rec
		opts    Options
		want    []string
		oneFile bool
	}{
		{"last lines", []rec{{1, "a\nb\n"}, {1, "c\n"}}, Options{Tail: 2}, []string{"1:b\n", "1:c\n"}, false},
		{"within a record", []rec{{1, "a\nb\nc\n"}}, Options{Tail: 1}, []string{"1:c\n"}, false},
		{"unfinished line counts", []rec{{1, "a\nb"}}, Options{Tail: 1}, []string{"1:b"}, false},
		{"over records", []rec{{1, "a\nb"}, {1, "c"}, {1, "d\n"}}, Options{Tail: 1}, []string{"1:b", "1:c", "1:d\n"}, false},
		{"more than there are", []rec{{1, "a\n"}, {2, "b\n"}}, Options{Tail: 9}, []string{"1:a\n", "2:b\n"}, false},
		{"exactly all", []rec{{1, "a\n"}, {2, "b\n"}}, Options{Tail: 2}, []string{"1:a\n", "2:b\n"}, false},
		{"both streams", []rec{{1, "a\n"}, {2, "b\n"}, {1, "c\n"}, {2, "d\n"}}, Options{Tail: 3}, []string{"2:b\n", "1:c\n", "2:d\n"}, false},
		{"the other's unfinished line", []rec{{2, "x"}, {1, "a\n"}, {1, "b\n"}, {2, "y\n"}}, Options{Tail: 2}, []string{"2:x", "1:b\n", "2:y\n"}, true},
		{"one stream", []rec{{1, "a\n"}, {2, "b\n"}, {2, "c\n"}}, Options{Tail: 1, Streams: []Stream{1}}, []string{"1:a\n"}, false},
		{"since", []rec{{1, "a\n"}, {1, "b\n"}, {1, "c\n"}}, Options{Since: at(2)}, []string{"1:b\n", "1:c\n"}, false},
		{"since the end", []rec{{1, "a\n"}}, Options{Since: at(2)}, []string{}, false},
		{"since and tail", []rec{{1, "a\n"}, {1, "b\n"}, {1, "c\n"}}, Options{Since: at(3), Tail: 2}, []string{"1:c\n"}, false},
		{"until and tail", []rec{{1, "a\n"}, {1, "b\n"}, {1, "c\n"}}, Options{Until: at(2), Tail: 1}, []string{"1:b\n", "1:c\n"}, false},
		{"none", []rec{{1, "a\n"}}, Options{Tail: -1}, []string{}, false},
		{"long", []rec{{1, big}, {1, big}, {1, big}, {1, big}, {1, big}, {1, big}, {1, big}, {1, big}, {1, big}, {1, big}, {1, big}, {1, "end\n"}}, Options{Tail: 2}, []string{"1:0123456789abcde\n", "1:end\n"}, false},
		{"empty", nil, Options{Tail: 3}, []string{}, false},
	}
	for _, tt := range tests {
		for _, size := range []int64{0, 1, 100, 40000} {
			if size > 0 && tt.oneFile {
				continue // its beginning is in another file
			}
			t.Run(fmt.Sprintf("%s, files of %d", tt.name, size), func(t *testing.T) {
				dir := t.TempDir()
				w := newWriter(t, dir, WriterOptions{MaxSize: size, MaxFiles: 100})
				for _, r := range tt.records {
					write(t, w, r.stream, r.text)
				}
				r := open(t, dir, &tt.opts)
				wantAll(t, r, tt.want...)
				write(t, w, Stdout, "more")
				if tt.opts.Until.IsZero() {
					wantAll(t, r, "1:more")
				}
			})
		}
	}
}

func TestWait(t *testing.T) {
	for _, how := range []string{"inotify", "polling"} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			w := newWriter(t, dir, WriterOptions{MaxSize: 200})
			r := open(t, dir, nil)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			wantAll(t, r)
			if err := r.Wait(ctx, nil); err != nil {
				t.Fatal(err)
			}
			if how == "polling" {
				r.watch.changes.close()
				r.watch.changes = nil
			}
			for i := range 50 {
				wantAll(t, r)
				want, written := fmt.Sprintf("1:%d", i), make(chan error)
				go func() { written <- w.Write(Stdout, []byte(want[2:])) }()
				got := []string{}
				for ; len(got) == 0; got = all(t, r) {
					if err := r.Wait(ctx, nil); err != nil {
						t.Fatal(err)
					}
				}
				if err := <-written; err != nil || !slices.Equal(got, []string{want}) {
					t.Fatal(got, err)
				}
			}
			ended := make(chan struct{})
			close(ended)
			if err := r.Wait(ctx, ended); err != nil {
				t.Error(err)
			}
			cancel()
			for range 100 {
				if err := r.Wait(ctx, nil); err != nil {
					return
				}
			}
			t.Error("waits although the context is done")
		})
	}
}

// TestRemoved: a reader whose log is removed knows whether it has all.
func TestRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	const size = 100
	w := newWriter(t, dir, WriterOptions{MaxSize: size})
	write(t, w, Stdout, "a")
	has, lags := open(t, dir, nil), open(t, dir, nil)
	write(t, w, Stdout, strings.Repeat("b", 100))
	write(t, w, Stdout, "c")
	all(t, has)
	if has.Removed(size) || lags.Removed(size) {
		t.Error("removed before it is")
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	wantAll(t, has)
	wantAll(t, lags, "1:a", "1:"+strings.Repeat("b", 100))
	if has.Removed(size) {
		t.Error("has all, but is said not to")
	}
	if !lags.Removed(size) {
		t.Error("has not all, but is said to")
	}
}
