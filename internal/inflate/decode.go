package inflate

import (
	"encoding/binary"
	"unsafe"
)

const (
	// What the fast loop may read from one check of its limits to the next: three refills, each of which loads 8 bytes and
	// advances by at most 7.
	inSlack = 7 + 7 + 8
	// What it may write from one check to the next: two literals and a match, or three literals, and up to 32 bytes that
	// the copy writes past the beginning of a short match or the end of a long one.
	maxMatch = 258
	outSlack = 2 + maxMatch + 32
)

// load64 reads 8 bytes at p+i.
func load64(p unsafe.Pointer, i int) uint64 {
	return binary.LittleEndian.Uint64((*[8]byte)(unsafe.Add(p, i))[:])
}

// decodeFast decodes symbols while there are inSlack bytes of input and room for outSlack bytes of output: nothing in
// its loop is checked but that, the distances and the codes. It reports whether the block has ended.
//
// The bit buffer b holds n valid bits, of n only the low six bits count, and the bits of b above the valid ones are
// either zero or those that the next refill brings. A refill makes at least 56 of them valid: a length and a distance
// with all their extra bits take 15+5+15+13 = 48.
//
// Everything that is addressed without a bounds check is within z.in or z.out: inPos+8 <= z.inEnd follows from inPos <= inLimit
// where it was checked last and inSlack; what is written at pos from outLimit and outSlack; pos-dist from the comparison
// with low. TestBounds runs it between unmapped pages.
func (z *Reader) decodeFast() (end bool, err error) {
	inLimit, outLimit := z.inEnd-inSlack, len(z.out)-outSlack
	inPos, pos := z.inPos, z.pos
	if inPos > inLimit || pos > outLimit {
		return false, nil
	}
	t := z.codes
	in, out := unsafe.Pointer(unsafe.SliceData(z.in)), unsafe.Pointer(unsafe.SliceData(z.out))
	b, n := z.b, z.n
	low := z.low

	b |= load64(in, inPos) << (n & 63)
	inPos += int(^n >> 3 & 7)
	n |= 56
	e := t.lit[b&(1<<litBits-1)]
	for {
		// Up to three literals of at most litBits each.
		if e&flagLit != 0 {
			b >>= e & 63
			n -= uint64(e)
			*(*byte)(unsafe.Add(out, pos)) = byte(e >> 8)
			pos++
			e = t.lit[b&(1<<litBits-1)]
			if e&flagLit != 0 {
				b >>= e & 63
				n -= uint64(e)
				*(*byte)(unsafe.Add(out, pos)) = byte(e >> 8)
				pos++
				e = t.lit[b&(1<<litBits-1)]
				if e&flagLit != 0 {
					b >>= e & 63
					n -= uint64(e)
					*(*byte)(unsafe.Add(out, pos)) = byte(e >> 8)
					pos++
					goto next
				}
			}
			b |= load64(in, inPos) << (n & 63)
			inPos += int(^n >> 3 & 7)
			n |= 56
		}
		if e&flagOdd != 0 {
			if e&flagSub != 0 {
				b >>= litBits
				n -= litBits
				e = t.lit[(e>>subShift&subMask+uint32(b)&(1<<(e>>8&31)-1))&(litTable-1)]
				if e&flagLit != 0 {
					b >>= e & 63
					n -= uint64(e)
					*(*byte)(unsafe.Add(out, pos)) = byte(e >> 8)
					pos++
					goto next
				}
			}
			if e&flagEnd != 0 {
				b >>= e & 63
				n -= uint64(e)
				end = true
				break
			}
			if e&flagBad != 0 {
				err = errCode
				break
			}
		}
		{
			length := int(e>>lenBaseShift) + int(uint32(b>>(e>>8&63))&(e>>lenMaskShift&31))
			b >>= e & 63
			n -= uint64(e)
			d := t.dist[b&(1<<distBits-1)]
			if d&distOdd != 0 {
				if d&distSub != 0 {
					b >>= distBits
					n -= distBits
					d = t.dist[(d>>32+b&(1<<(d>>8&63)-1))&(distTable-1)]
				}
				if d&distBad != 0 {
					err = errCode
					break
				}
			}
			dist := int(d>>32) + int(b>>(d>>8&63)&(d>>16&0x1fff))
			b >>= d & 63
			n -= d
			if dist > pos-low {
				err = errDistance
				break
			}
			b |= load64(in, inPos) << (n & 63)
			inPos += int(^n >> 3 & 7)
			n |= 56
			e = t.lit[b&(1<<litBits-1)]
			dst, src, stop := pos, pos-dist, pos+length
			pos = stop
			if dist >= 16 {
				*(*[16]byte)(unsafe.Add(out, dst)) = *(*[16]byte)(unsafe.Add(out, src))
				*(*[16]byte)(unsafe.Add(out, dst+16)) = *(*[16]byte)(unsafe.Add(out, src+16))
				for dst += 32; dst < stop; dst += 16 {
					src += 16
					*(*[16]byte)(unsafe.Add(out, dst)) = *(*[16]byte)(unsafe.Add(out, src+16))
				}
			} else {
				copyNear(out, dst, src, stop)
			}
			if inPos > inLimit || pos > outLimit {
				break
			}
			continue
		}
	next:
		if inPos > inLimit || pos > outLimit {
			break
		}
		b |= load64(in, inPos) << (n & 63)
		inPos += int(^n >> 3 & 7)
		n |= 56
		e = t.lit[b&(1<<litBits-1)]
	}
	z.inPos, z.pos = inPos, pos
	z.b, z.n = b, n&63
	return end, err
}

// copyNear copies to out[dst:stop] from out[src:] where dst-src is less than 16. The source may contain what is being
// copied (RFC 1951, section 3.2.3).
func copyNear(out unsafe.Pointer, dst, src, stop int) {
	// The first dst-src bytes of a word come out right, and then twice as many can be copied from the same place.
	for dst-src < 8 {
		*(*[8]byte)(unsafe.Add(out, dst)) = *(*[8]byte)(unsafe.Add(out, src))
		dst += dst - src
	}
	for ; dst < stop; dst, src = dst+8, src+8 {
		*(*[8]byte)(unsafe.Add(out, dst)) = *(*[8]byte)(unsafe.Add(out, src))
	}
}

// decodeSlow decodes symbols with whatever input there is. It stops when the block has ended, when the input does not
// hold the next symbol in whole (more is true) or when less than outSlack of room is left.
func (z *Reader) decodeSlow() (end, more bool, err error) {
	t := z.codes
	for len(z.out)-z.pos >= outSlack {
		z.refill()
		// Nothing is consumed before all of it is there. Where bits are missing there are zeros: a code that is found
		// is not longer than what is valid, or else not complete.
		b, n := z.b, z.n
		e := t.lit[b&(1<<litBits-1)]
		var used uint64
		if e&flagSub != 0 {
			used = litBits
			e = t.lit[(e>>subShift&subMask+uint32(b>>litBits)&(1<<(e>>8&63)-1))&(litTable-1)]
		}
		b >>= used
		used += uint64(e & 63)
		switch {
		case used > n:
			return false, true, nil
		case e&flagBad != 0:
			return false, false, errCode
		case e&flagLit != 0:
			z.out[z.pos] = byte(e >> 8)
			z.pos++
			z.consume(used)
			continue
		case e&flagEnd != 0:
			z.consume(used)
			return true, false, nil
		}
		length := int(e>>lenBaseShift) + int(uint32(b>>(e>>8&63))&(e>>lenMaskShift&31))
		b >>= e & 63
		d := t.dist[b&(1<<distBits-1)]
		if d&distSub != 0 {
			used += distBits
			b >>= distBits
			d = t.dist[(d>>32+b&(1<<(d>>8&63)-1))&(distTable-1)]
		}
		used += d & 63
		if used > n {
			return false, true, nil
		}
		if d&distBad != 0 {
			return false, false, errCode
		}
		dist := int(d>>32) + int(b>>(d>>8&63)&(d>>16&0x1fff))
		if dist > z.pos-z.low {
			return false, false, errDistance
		}
		z.consume(used)
		for range length {
			z.out[z.pos] = z.out[z.pos-dist]
			z.pos++
		}
	}
	return false, false, nil
}
