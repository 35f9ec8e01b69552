package inflate

import (
	"math/bits"
	"sync"
)

const (
	maxCodeLen = 15  // RFC 1951, section 3.2.7: the longest code of literals and distances
	numLit     = 286 // literals, the end of the block and lengths; 286 and 287 exist in the fixed code alone
	numDist    = 30  // 30 and 31 exist in the fixed code alone
	endOfBlock = 256

	// A code of up to this many bits is decoded by one look-up, a longer one by two.
	litBits  = 11
	distBits = 8
	clenBits = 7 // RFC 1951, section 3.2.7: code length codes have up to 7 bits

	// The first level and every second level that a complete code can need, 2,342 and 402 entries (zlib's
	// examples/enough.c), rounded up to a power of two, so that an index is in bounds when it is masked.
	litTable  = 4096
	distTable = 1024
)

// An entry of the literal and length table tells all about the symbol whose code its index begins with:
//
//	bits  0-5   bits to consume, extra bits included
//	bits  8-15  the literal                                        when flagLit is set
//	bits  8-13  length of the code alone
//	bits 14-18  mask of the extra bits, 19-27 the length without them, and nothing above
//	bits  8-13  bits of the second level, 16-27 where it begins    when flagSub is set
//
// Only the low six bits of a bit count ever matter, so the loop subtracts whole entries from it.
const (
	flagLit = 1 << 31
	flagSub = 1 << 30 // go on in the second level
	flagEnd = 1 << 29 // end of block, or together with flagBad
	flagBad = 1 << 28 // no symbol has this code

	flagOdd = flagSub | flagEnd | flagBad // neither a literal nor a length

	lenMaskShift = 14
	lenBaseShift = 19
	subShift     = 16
	subMask      = 0xfff
)

// An entry of the distance table is the same in 64 bits:
//
//	bits  0-5   bits to consume, extra bits included
//	bits  8-13  length of the code alone, or bits of the second level
//	bits 16-28  mask of the extra bits
//	bits 32-46  the distance without them, or where the second level begins
const (
	distSub = 1 << 62
	distBad = 1 << 61
	distOdd = distSub | distBad
)

// codes are the tables of one block.
type codes struct {
	lit  [litTable]uint32
	dist [distTable]uint64
}

// fixedCodes are those of RFC 1951, section 3.2.6. They are made when first needed: importing costs nothing.
var fixedCodes = sync.OnceValue(func() *codes {
	var lens [288]uint8
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	c := new(codes)
	c.buildLit(lens[:])
	for i := range lens[:32] {
		lens[i] = 5
	}
	c.buildDist(lens[:32])
	return c
})

// litSymbols and distSymbols are the entries of the symbols, to which the length of the code is added in bits 0 and 8
// (bit 0 alone for literals).
var litSymbols, distSymbols = makeLitSymbols(), makeDistSymbols()

func makeLitSymbols() (t [288]uint32) {
	for i := range 256 {
		t[i] = flagLit | uint32(i)<<8
	}
	t[endOfBlock] = flagEnd
	// RFC 1951, section 3.2.5: 257-264 have no extra bits, then every four symbols have one more; 285 has none and is
	// not what 284 with all its extra bits is for, though that is 258 too.
	base := uint32(3)
	for i := range uint32(28) {
		extra := max(i/4, 1) - 1
		t[257+i] = base<<lenBaseShift | (1<<extra-1)<<lenMaskShift | extra
		base += 1 << extra
	}
	t[285] = 258 << lenBaseShift
	t[286], t[287] = flagBad, flagBad
	return t
}

func makeDistSymbols() (t [32]uint64) {
	base := uint64(1)
	for i := range uint64(30) {
		extra := max(i/2, 1) - 1
		t[i] = base<<32 | (1<<extra-1)<<16 | extra
		base += 1 << extra
	}
	t[30], t[31] = distBad, distBad
	return t
}

// canonical is a code sorted by length, as RFC 1951, section 3.2.2 numbers it.
type canonical struct {
	count [maxCodeLen + 1]uint16
	// symbols with a code, the shortest first
	symbols [288]uint16
	n       int
	longest int
	single  bool // one code of one bit: the other value of the bit has no meaning
}

// sort reports whether the lengths make a code that may be used. Like zlib and compress/flate it takes complete codes, a
// single code of one bit (RFC 1951, section 3.2.7, for distances), and no code at all, which is an error when used.
func (c *canonical) sort(lens []uint8) bool {
	c.count = [maxCodeLen + 1]uint16{}
	for _, l := range lens {
		c.count[l&maxCodeLen]++
	}
	var next [maxCodeLen + 1]uint16
	c.longest = 0
	n, left := uint16(0), 1
	for l := 1; l <= maxCodeLen; l++ {
		next[l] = n
		n += c.count[l]
		left = left<<1 - int(c.count[l])
		if left < 0 {
			return false // more codes than there are bit patterns
		}
		if c.count[l] != 0 {
			c.longest = l
		}
	}
	c.n = int(n)
	c.single = n == 1 && c.longest == 1
	if left > 0 && n != 0 && !c.single {
		return false
	}
	for s, l := range lens {
		if l != 0 {
			c.symbols[next[l&maxCodeLen]] = uint16(s)
			next[l&maxCodeLen]++
		}
	}
	return true
}

// entry is what the tables are made of.
type entry interface{ uint8 | uint32 | uint64 }

// fill builds a table: symbols are the entries before their code's length, times perBit, is added; sub makes the link to
// a second level that begins at an index and decodes a number of bits.
func fill[E entry](c *canonical, table []E, mainBits int, bad E, symbol func(sym uint16, length int) E, sub func(start, bits int) E) {
	if c.n == 0 || c.single {
		for i := range table[:1<<mainBits] {
			table[i] = bad
		}
		if c.single {
			e := symbol(c.symbols[0], 1)
			for i := 0; i < 1<<mainBits; i += 2 {
				table[i] = e
			}
		}
		return
	}
	// Codes are packed starting with their most significant bit (RFC 1951, section 3.1.1), so the table is indexed by
	// reversed codes. It is made for codes of one bit and doubled for every further bit: what a shorter code leaves
	// open is what its entry is repeated for.
	var code uint // reversed
	i, size := 0, 1
	for l := 1; l <= min(mainBits, c.longest); l++ {
		copy(table[size:2*size], table[:size])
		size *= 2
		for range c.count[l] {
			table[code] = symbol(c.symbols[i], l)
			code = increment(code, l)
			i++
		}
	}
	for l := c.longest; l < mainBits; l++ {
		copy(table[size:2*size], table[:size])
		size *= 2
	}
	// Longer codes: those with the same first bits share a table, which is as large as the longest of them needs.
	start, subBits, prefix := size, 0, ^uint(0)
	for l := mainBits + 1; l <= c.longest; l++ {
		for left := int(c.count[l]); left > 0; left-- {
			if p := code & (1<<mainBits - 1); p != prefix {
				if prefix != ^uint(0) {
					start += 1 << subBits
				}
				prefix = p
				subBits = l - mainBits
				room := 1<<subBits - left
				for room > 0 && subBits+mainBits < c.longest {
					subBits++
					room = room<<1 - int(c.count[subBits+mainBits])
				}
				table[p] = sub(start, subBits)
			}
			e := symbol(c.symbols[i], l-mainBits)
			for k := int(code >> mainBits); k < 1<<subBits; k += 1 << (l - mainBits) {
				table[start+k] = e
			}
			code = increment(code, l)
			i++
		}
	}
}

// increment adds one to a reversed code of n bits; after the last one comes 0.
func increment(code uint, n int) uint {
	high := bits.Len(^code & (1<<n - 1)) // the highest bit that is not set, plus one
	if high == 0 {
		return 0
	}
	return code&(1<<(high-1)-1) | 1<<(high-1)
}

func (t *codes) buildLit(lens []uint8) bool {
	var c canonical
	if !c.sort(lens) {
		return false
	}
	fill(&c, t.lit[:], litBits, flagBad, func(sym uint16, length int) uint32 {
		e := litSymbols[sym] + uint32(length)
		if e&flagLit == 0 {
			e += uint32(length) << 8
		}
		return e
	}, func(start, bits int) uint32 {
		return flagSub | uint32(start)<<subShift | uint32(bits)<<8 | litBits
	})
	return true
}

func (t *codes) buildDist(lens []uint8) bool {
	var c canonical
	if !c.sort(lens) {
		return false
	}
	fill(&c, t.dist[:], distBits, distBad, func(sym uint16, length int) uint64 {
		return distSymbols[sym] + uint64(length)<<8 + uint64(length)
	}, func(start, bits int) uint64 {
		return distSub | uint64(start)<<32 | uint64(bits)<<8 | distBits
	})
	return true
}

// buildClen builds the table of the code length code: the symbol in the high five bits, the code's length in the low
// three. Length 0 is no code.
func buildClen(table *[1 << clenBits]uint8, lens []uint8) bool {
	var c canonical
	if !c.sort(lens) {
		return false
	}
	fill(&c, table[:], clenBits, 0, func(sym uint16, length int) uint8 {
		return uint8(sym)<<3 | uint8(length)
	}, nil)
	return true
}
