package inflate_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

// bitWriter writes DEFLATE by hand.
type bitWriter struct {
	buf []byte
	n   int // bits in the last byte
}

// bits writes the n low bits of v, the lowest first (RFC 1951, section 3.1.1).
func (w *bitWriter) bits(v, n int) *bitWriter {
	for i := range n {
		if w.n%8 == 0 {
			w.buf, w.n = append(w.buf, 0), 0
		}
		w.buf[len(w.buf)-1] |= byte(v>>i&1) << w.n
		w.n++
	}
	return w
}

// code writes a Huffman code: the highest bit first.
func (w *bitWriter) code(v, n int) *bitWriter {
	return w.bits(int(bits.Reverse64(uint64(v))>>(64-n)), n)
}

func (w *bitWriter) bytes(p ...byte) *bitWriter {
	w.buf, w.n = append(w.buf, p...), 0
	return w
}

func (w *bitWriter) stored(final int, data []byte) *bitWriter {
	w.bits(final, 1).bits(0, 2)
	w.n = 0
	n := uint16(len(data))
	w.buf = binary.LittleEndian.AppendUint16(w.buf, n)
	w.buf = binary.LittleEndian.AppendUint16(w.buf, ^n)
	return w.bytes(data...)
}

func (w *bitWriter) fixed(final int) *bitWriter { return w.bits(final, 1).bits(1, 2) }

// lit writes symbols in the fixed code (RFC 1951, section 3.2.6).
func (w *bitWriter) lit(symbols ...int) *bitWriter {
	for _, s := range symbols {
		switch {
		case s < 144:
			w.code(0x30+s, 8)
		case s < 256:
			w.code(0x190+s-144, 9)
		case s < 280:
			w.code(s-256, 7)
		default:
			w.code(0xc0+s-280, 8)
		}
	}
	return w
}

// codeLengths writes the header of a dynamic block, with a code length code that has a code for everything: 0-12 of four
// bits and 13-18 of five. A negative length -n*100-x (n 16 or 17) is symbol n with
// extra bits x, -18*1000-x is symbol 18.
func (w *bitWriter) codeLengths(final, hlit, hdist int, lens ...int) *bitWriter {
	w.bits(final, 1).bits(2, 2).bits(hlit-257, 5).bits(hdist-1, 5).bits(19-4, 4)
	for _, s := range []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15} {
		if s < 13 {
			w.bits(4, 3)
		} else {
			w.bits(5, 3)
		}
	}
	for _, l := range lens {
		sym, extra := l, 0
		if l <= -18000 {
			sym, extra = 18, -l-18000
		} else if l < 0 {
			sym, extra = -l/100, -l%100
		}
		if sym < 13 {
			w.code(sym, 4)
		} else {
			w.code(26+sym-13, 5)
		}
		switch sym {
		case 16:
			w.bits(extra, 2)
		case 17:
			w.bits(extra, 3)
		case 18:
			w.bits(extra, 7)
		}
	}
	return w
}

// lengths makes n code lengths from those that are not 0, given as symbol, length, symbol, length...
func lengths(n int, pairs ...int) []int {
	l := make([]int, n)
	for i := 0; i < len(pairs); i += 2 {
		l[pairs[i]] = pairs[i+1]
	}
	return l
}

// canonical is the code of a symbol (RFC 1951, section 3.2.2).
func canonical(lens []int, symbol int) (code, length int) {
	for l := 1; l <= 15; l++ {
		for s, sl := range lens {
			if sl == l {
				if s == symbol {
					return code, l
				}
				code++
			}
		}
		code <<= 1
	}
	panic("symbol has no code")
}

func (w *bitWriter) sym(lens []int, symbols ...int) *bitWriter {
	for _, s := range symbols {
		w.code(canonical(lens, s))
	}
	return w
}

// member makes a gzip member of DEFLATE data and what it should decode to.
func member(deflated, data []byte) []byte {
	m := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, deflated...)
	m = binary.LittleEndian.AppendUint32(m, crc32.ChecksumIEEE(data))
	return binary.LittleEndian.AppendUint32(m, uint32(len(data)))
}

func cat(parts ...any) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b.WriteString(p)
		case []byte:
			b.Write(p)
		case byte:
			b.WriteByte(p)
		}
	}
	return b.Bytes()
}
