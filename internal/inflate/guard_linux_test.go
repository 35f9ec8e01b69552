package inflate_test

import (
	"bytes"
	"io"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/coracle-dev/coracle/internal/inflate"
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

// greedy is a stream of which the fast loop reads as much as it ever can from one check of its limits to the next: three
// literals and two literals with the longest codes that one look-up decodes, then a length and a distance with the
// longest codes and all extra bits.
func greedy() (stream, data []byte) {
	lit, dist := lengths(286), lengths(30)
	for i := range 14 {
		lit['a'+i], dist[i] = i+1, i+1
	}
	lit[256], lit[284], dist[28], dist[29] = 15, 15, 15, 15
	data = noise(11, 32768)
	w := new(bitWriter).stored(0, data).codeLengths(1, 286, 30, slices.Concat(lit, dist)...)
	for i := range 10000 {
		w.sym(lit, 'k', 'k', 'k', 'k', 'k', 284).bits(i&31, 5).sym(dist, 29).bits(i*7&8191, 13)
		data = append(data, "kkkkk"...)
		for range 227 + i&31 {
			data = append(data, data[len(data)-24577-i*7&8191])
		}
		if i&3 == 0 { // so that rounds begin everywhere
			w.sym(lit, 'a')
			data = append(data, 'a')
		}
	}
	return member(w.sym(lit, 256).buf, data), data
}

// TestBounds decodes from and to memory that ends with a page that is not mapped: what goes beyond, dies.
func TestBounds(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	program = append(program[:min(len(program), 4<<20)], bytes.Repeat([]byte("ab"), 100000)...)
	long, longData := greedy()
	for _, tc := range []struct {
		name         string
		stream, data []byte
	}{
		{"program", compress(t, program, 6), program},
		{"longest codes", long, longData},
	} {
		for _, size := range []int{inflate.SmallestInput, 1000, 4096, 5003} {
			for _, out := range []int{inflate.MinBuffer, inflate.MinBuffer + 1, inflate.MinBuffer + 777} {
				z := new(inflate.Reader)
				z.SetInput(guarded(t, size))
				if err := z.Reset(bytes.NewReader(tc.stream)); err != nil {
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
				if !bytes.Equal(got, tc.data) {
					t.Errorf("%s, input buffer of %d, output buffer of %d: other data", tc.name, size, out)
				}
			}
		}
	}
}
