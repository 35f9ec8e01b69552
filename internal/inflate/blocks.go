package inflate

import (
	"encoding/binary"
	"io"
)

// fill reads input, waiting for it. Bytes in the bit buffer go back into the input first, so that they are in z.in
// before inPos at all times.
func (z *Reader) fill() error {
	z.unread()
	if z.srcErr != nil {
		return z.srcErr
	}
	copy(z.in, z.in[z.inPos:z.inEnd])
	z.consumed += int64(z.inPos)
	z.inPos, z.inEnd = 0, z.inEnd-z.inPos
	for range maxEmptyReads {
		n, err := z.src.Read(z.in[z.inEnd:])
		z.inEnd += n
		z.srcErr = err
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	z.srcErr = io.ErrNoProgress
	return z.srcErr
}

// unread gives the whole bytes in the bit buffer back.
func (z *Reader) unread() {
	z.inPos -= int(z.n >> 3)
	z.n &= 7
	z.b &= 1<<z.n - 1
}

// align drops the bits up to the next byte of the input.
func (z *Reader) align() {
	z.unread()
	z.b, z.n = 0, 0
}

// refill makes as many bits valid as fit and are there, and does not wait for more.
func (z *Reader) refill() {
	if z.inEnd-z.inPos >= 8 {
		z.b |= binary.LittleEndian.Uint64(z.in[z.inPos:]) << (z.n & 63)
		z.inPos += int((63 - z.n) >> 3)
		z.n |= 56
		return
	}
	for z.n < 56 && z.inPos < z.inEnd {
		z.b |= uint64(z.in[z.inPos]) << (z.n & 63)
		z.inPos++
		z.n += 8
	}
}

func (z *Reader) consume(n uint64) {
	z.b >>= n & 63
	z.n -= n
}

// bits reads n <= 16 bits, waiting for them.
func (z *Reader) bits(n uint64) (uint64, error) {
	for z.n < n {
		if z.refill(); z.n >= n {
			break
		}
		if err := z.fill(); err != nil {
			return 0, noEOF(err)
		}
	}
	v := z.b & (1<<n - 1)
	z.consume(n)
	return v, nil
}

// full reads bytes, when the bit buffer is empty. The error is io.EOF if there is none.
func (z *Reader) full(p []byte) error {
	for got := 0; got < len(p); {
		if z.inPos == z.inEnd {
			if err := z.fill(); err != nil {
				if got > 0 {
					err = noEOF(err)
				}
				return err
			}
		}
		n := copy(p[got:], z.in[z.inPos:z.inEnd])
		got += n
		z.inPos += n
	}
	return nil
}

// blockHeader reads the header of a block (RFC 1951, section 3.2.3).
func (z *Reader) blockHeader() error {
	h, err := z.bits(3)
	if err != nil {
		return err
	}
	z.final = h&1 != 0
	switch h >> 1 {
	case 0:
		z.align()
		var l [4]byte
		if err := z.full(l[:]); err != nil {
			return noEOF(err)
		}
		n := binary.LittleEndian.Uint16(l[:])
		if n != ^binary.LittleEndian.Uint16(l[2:]) {
			return z.corrupt(errStored)
		}
		z.storedLeft, z.state = int(n), inStored
	case 1:
		z.codes, z.state = fixedCodes(), inCodes
	case 2:
		z.codes, z.state = &z.dynamic, inCodes
		return z.dynamicCodes()
	default:
		return z.corrupt(errBlockType)
	}
	return nil
}

// clenOrder is the order in which the lengths of the code length code come.
var clenOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamicCodes reads the codes of a block (RFC 1951, section 3.2.7).
func (z *Reader) dynamicCodes() error {
	h, err := z.bits(14)
	if err != nil {
		return err
	}
	lit, dist, clen := int(h&31)+257, int(h>>5&31)+1, int(h>>10)+4
	if lit > numLit || dist > numDist {
		return z.corrupt(errLengths)
	}
	var clens [19]uint8
	for _, s := range clenOrder[:clen] {
		l, err := z.bits(3)
		if err != nil {
			return err
		}
		clens[s] = uint8(l)
	}
	var table [1 << clenBits]uint8
	if !buildClen(&table, clens[:]) {
		return z.corrupt(errLengths)
	}
	// The lengths of both codes are one sequence, repetitions may go from one into the other.
	lens := z.lengths[:lit+dist]
	for i := 0; i < len(lens); {
		if z.n < clenBits+7 {
			z.refill()
		}
		e := table[z.b&(1<<clenBits-1)]
		for uint64(e&7) > z.n {
			if err := z.fill(); err != nil {
				return noEOF(err)
			}
			z.refill()
			e = table[z.b&(1<<clenBits-1)]
		}
		if e == 0 {
			return z.corrupt(errCode)
		}
		z.consume(uint64(e & 7))
		var value uint8
		var repeat, extra uint64
		switch sym := e >> 3; sym {
		default:
			lens[i] = sym
			i++
			continue
		case 16:
			if i == 0 {
				return z.corrupt(errLengths)
			}
			value, repeat, extra = lens[i-1], 3, 2
		case 17:
			repeat, extra = 3, 3
		case 18:
			repeat, extra = 11, 7
		}
		more, err := z.bits(extra)
		if err != nil {
			return err
		}
		repeat += more
		if repeat > uint64(len(lens)-i) {
			return z.corrupt(errLengths)
		}
		for range repeat {
			lens[i] = value
			i++
		}
	}
	if lens[endOfBlock] == 0 || !z.dynamic.buildLit(lens[:lit]) || !z.dynamic.buildDist(lens[lit:]) {
		return z.corrupt(errLengths)
	}
	return nil
}
