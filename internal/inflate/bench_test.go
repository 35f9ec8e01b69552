//go:build unix

package inflate_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/coracle-dev/coracle/internal/inflate"
)

// corpora are gzip streams to measure: those of the directory $INFLATE_CORPUS (*.gz), or this test program, as a
// binary that everybody has, compressed as gzip -6 and a fast level do.
func corpora(b *testing.B) map[string][]byte {
	b.Helper()
	list := map[string][]byte{}
	if dir := os.Getenv("INFLATE_CORPUS"); dir != "" {
		names, err := filepath.Glob(filepath.Join(dir, "*.gz"))
		if err != nil || len(names) == 0 {
			b.Fatal("no *.gz in $INFLATE_CORPUS", err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				b.Fatal(err)
			}
			list[filepath.Base(name)] = data
		}
		return list
	}
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	data, err := os.ReadFile(exe)
	if err != nil {
		b.Fatal(err)
	}
	for name, level := range map[string]int{"program-6": 6, "program-1": 1} {
		var z bytes.Buffer
		w, _ := stdgzip.NewWriterLevel(&z, level)
		if _, err := w.Write(data); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		list[name] = z.Bytes()
	}
	return list
}

func BenchmarkInflate(b *testing.B) {
	buf := make([]byte, inflate.History+128<<10)
	for name, data := range corpora(b) {
		for _, d := range []struct {
			name string
			run  func(r io.Reader) (int64, error)
		}{
			{"chunks", func(r io.Reader) (total int64, err error) {
				z, err := inflate.NewReader(r)
				if err != nil {
					return 0, err
				}
				for {
					p, err := z.ReadChunk(buf)
					total += int64(len(p))
					if err == io.EOF {
						return total, nil
					} else if err != nil {
						return total, err
					}
				}
			}},
			{"read", func(r io.Reader) (int64, error) {
				z, err := inflate.NewReader(r)
				if err != nil {
					return 0, err
				}
				return drain(z, buf)
			}},
			{"klauspost", func(r io.Reader) (int64, error) {
				z, err := gzip.NewReader(r)
				if err != nil {
					return 0, err
				}
				return drain(z, buf)
			}},
			{"stdlib", func(r io.Reader) (int64, error) {
				z, err := stdgzip.NewReader(r)
				if err != nil {
					return 0, err
				}
				return drain(z, buf)
			}},
		} {
			b.Run(name+"/"+d.name, func(b *testing.B) {
				var total int64
				start := userTime(b)
				for b.Loop() {
					// Both others have a faster loop for bytes.Reader.
					n, err := d.run(bytes.NewReader(data))
					if err != nil {
						b.Fatal(err)
					}
					total += n
				}
				b.ReportMetric(float64(total)/1e6/(userTime(b)-start).Seconds(), "MB/cpu-s")
			})
		}
	}
}

func drain(r io.Reader, buf []byte) (int64, error) {
	var total int64
	for {
		n, err := r.Read(buf)
		total += int64(n)
		if err == io.EOF {
			return total, nil
		} else if err != nil {
			return total, err
		}
	}
}

// userTime is what this process has used: the machine may be busy with others.
func userTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
