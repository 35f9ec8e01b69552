package inflate

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"syscall"
	"testing"
	"testing/iotest"
)

// guarded makes memory of n bytes that ends where nothing is mapped.
func guarded(t *testing.T, n int) []byte {
	t.Helper()
	page := os.Getpagesize()
	size := (n + page - 1) / page * page
	mem, err := syscall.Mmap(-1, 0, page+size+page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Munmap(mem) })
	for _, guard := range [][]byte{mem[:page], mem[page+size:]} {
		if err := syscall.Mprotect(guard, syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	return mem[page+size-n : page+size : page+size]
}

// TestBounds decodes from and to memory that ends with a page that is not mapped: what goes beyond, dies.
func TestBounds(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	data = append(data[:min(len(data), 4<<20)], bytes.Repeat([]byte("ab"), 100000)...)
	var stream bytes.Buffer
	w, _ := gzip.NewWriterLevel(&stream, 6)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{maxBlockHeader + 1, 1000, 4096, 5003} {
		for _, out := range []int{MinBuffer, MinBuffer + 1, MinBuffer + 777} {
			z := &Reader{in: guarded(t, size)}
			if err := z.Reset(iotest.DataErrReader(bytes.NewReader(stream.Bytes()))); err != nil {
				t.Fatal(err)
			}
			buf, got := guarded(t, out), []byte{}
			for {
				p, err := z.ReadChunk(buf)
				got = append(got, p...)
				if err == io.EOF {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(got, data) {
				t.Errorf("input buffer %d, output buffer %d: other data", size, out)
			}
		}
	}
}
