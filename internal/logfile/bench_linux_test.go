package logfile

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// fillLog writes a log of about size bytes in records of n.
func fillLog(t testing.TB, dir string, size int64, n int, opts WriterOptions) {
	t.Helper()
	opts.Now = time.Now
	w := newWriter(t, dir, opts)
	data := make([]byte, n)
	for i := range data {
		if data[i] = 'x'; i%100 == 99 || i == n-1 {
			data[i] = '\n'
		}
	}
	for written := int64(0); written < size; written += int64(n) + HeaderSize {
		if err := w.Write(Stdout, data); err != nil {
			t.Fatal(err)
		}
	}
}

func readAll(t testing.TB, dir string, opts *Options) (records int, bytes int64) {
	t.Helper()
	r, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for {
		rec, err := r.Next()
		if err == io.EOF {
			return records, bytes
		}
		if err != nil {
			t.Fatal(err)
		}
		records++
		bytes += int64(len(rec.Data))
	}
}

// TestMemory: what a reader allocates does not depend on the size of the log, and what is read of it neither.
func TestMemory(t *testing.T) {
	size := int64(200 << 20)
	if testutil.Short() {
		size = 20 << 20
	}
	dir := t.TempDir()
	fillLog(t, dir, size, 1000, WriterOptions{})
	for name, opts := range map[string]*Options{"all": nil, "tail": {Tail: 100}, "long tail": {Tail: 1e6}, "since": {Since: time.Now()}, "none": {Tail: -1}} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		records, _ := readAll(t, dir, opts)
		runtime.ReadMemStats(&after)
		got := after.TotalAlloc - before.TotalAlloc
		t.Logf("%s: %d records, %d kB allocated in all", name, records, got>>10)
		if got > 512<<10 {
			t.Errorf("%s: %d kB allocated", name, got>>10)
		}
	}
}

// BenchmarkLogRead reads a log of 64 MB, beside a plain copy of its file.
func BenchmarkLogRead(b *testing.B) {
	for _, n := range []int{100, 1000, MaxWrite} {
		dir := b.TempDir()
		const size = 64 << 20
		fillLog(b, dir, size, n, WriterOptions{})
		b.Run(fmt.Sprintf("records of %d", n), func(b *testing.B) {
			var copied, read time.Duration
			records := 0
			b.SetBytes(size)
			for b.Loop() {
				start := time.Now()
				f, err := os.Open(filepath.Join(dir, "0"))
				if err != nil {
					b.Fatal(err)
				}
				io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, maxChunk))
				f.Close()
				copied += time.Since(start)
				start = time.Now()
				got, _ := readAll(b, dir, nil)
				read += time.Since(start)
				records += got
			}
			b.ReportMetric(float64(read)/float64(copied), "x-copy")
			b.ReportMetric(float64(records)/read.Seconds(), "records/s")
			b.ReportMetric(float64(size)*float64(b.N)/read.Seconds()/1e6, "MB/s-read")
		})
	}
}

// BenchmarkLogTail finds the last ten lines of logs of the default size.
func BenchmarkLogTail(b *testing.B) {
	for _, n := range []int{100, 1000, MaxWrite} {
		dir := b.TempDir()
		fillLog(b, dir, 64<<20, n, WriterOptions{MaxSize: 16 << 20})
		b.Run(fmt.Sprintf("records of %d", n), func(b *testing.B) {
			for b.Loop() {
				if records, _ := readAll(b, dir, &Options{Tail: 10}); records == 0 {
					b.Fatal("no records")
				}
			}
		})
	}
}

// BenchmarkLogFollow is the time from a write to its delivery to a reader that waits.
func BenchmarkLogFollow(b *testing.B) {
	dir := b.TempDir()
	w := newWriter(b, dir, WriterOptions{MaxSize: 16 << 20, Now: time.Now})
	r, err := Open(dir, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	ctx, got := context.Background(), make(chan time.Time)
	go func() {
		defer close(got)
		for {
			rec, err := r.Next()
			if err == io.EOF {
				r.Wait(ctx, nil)
				continue
			}
			if err != nil || rec.Length == 0 {
				return
			}
			got <- time.Now()
		}
	}()
	var total time.Duration
	for b.Loop() {
		start := time.Now()
		if err := w.Write(Stdout, []byte("x")); err != nil {
			b.Fatal(err)
		}
		total += (<-got).Sub(start)
	}
	w.Write(Stdout, nil)
	<-got
	b.ReportMetric(float64(total.Microseconds())/float64(b.N), "us-latency")
}
