package inflate

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
)

// randomCode makes the lengths of a complete code of n of the symbols.
func randomCode(r *rand.Rand, symbols, n int) []uint8 {
	// Start with one code of no bits and split codes until there are enough.
	codes := []uint8{0}
	for len(codes) < n {
		// Splitting often where it was split last makes long codes.
		i := r.IntN(len(codes))
		if r.IntN(3) > 0 {
			i = len(codes) - 1
		}
		if codes[i] == maxCodeLen {
			continue
		}
		codes[i]++
		codes = append(codes, codes[i])
	}
	lens := make([]uint8, symbols)
	for i, s := range r.Perm(symbols)[:n] {
		lens[s] = codes[i]
	}
	return lens
}

// naive decodes a symbol bit by bit as RFC 1951, section 3.2.2 defines the code.
func naive(lens []uint8) (symbol [1 << maxCodeLen]int, length [1 << maxCodeLen]int) {
	code := 0
	for l := 1; l <= maxCodeLen; l++ {
		for s := range lens {
			if int(lens[s]) != l {
				continue
			}
			rev := int(bits.Reverse16(uint16(code)) >> (16 - l))
			for i := rev; i < 1<<maxCodeLen; i += 1 << l {
				symbol[i], length[i] = s, l
			}
			code++
		}
		code <<= 1
	}
	return symbol, length
}

// TestTables looks up all that 15 bits can be in the tables of random codes.
func TestTables(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var codeSets [][]uint8
	for i := range 200 {
		symbols := numLit
		if i%2 == 1 {
			symbols = numDist
		}
		codeSets = append(codeSets, randomCode(r, symbols, 2+r.IntN(symbols-1)))
	}
	var c codes
	for _, lens := range codeSets {
		symbol, length := naive(lens)
		if len(lens) == numDist {
			if !c.buildDist(lens) {
				t.Fatal("complete code refused", lens)
			}
			for i := range uint64(1 << maxCodeLen) {
				d := c.dist[i&(1<<distBits-1)]
				used := uint64(0)
				if d&distSub != 0 {
					used = distBits
					d = c.dist[d>>32&0xffff+i>>distBits&(1<<(d>>8&63)-1)]
				}
				want := distSymbols[symbol[i]]
				extra := want & 63
				if got := used + d>>8&63; got != uint64(length[i]) || d&63 != d>>8&63+extra || d>>16 != want>>16 {
					t.Fatalf("%v: %015b is %x", lens, i, d)
				}
			}
			continue
		}
		if !c.buildLit(lens) {
			t.Fatal("complete code refused", lens)
		}
		for i := range uint32(1 << maxCodeLen) {
			e := c.lit[i&(1<<litBits-1)]
			used := uint32(0)
			if e&flagSub != 0 {
				used = litBits
				e = c.lit[e>>subShift&subMask+i>>litBits&(1<<(e>>8&63)-1)]
			}
			want := litSymbols[symbol[i]]
			l := uint32(length[i]) - used
			want += l
			if want&flagLit == 0 {
				want += l << 8
			}
			if e != want {
				t.Fatalf("%v: %015b is %x, want %x", lens, i, e, want)
			}
		}
	}
}

// TestEnough: no complete code needs more entries than the tables have. This bound is above what zlib's examples/enough.c
// finds, which heeds that second levels cannot all be as deep as possible.
func TestEnough(t *testing.T) {
	for _, tc := range []struct{ symbols, mainBits, table int }{
		{numLit, litBits, litTable},
		{288, litBits, litTable},
		{numDist, distBits, distTable},
	} {
		if got := bound(tc.symbols, tc.mainBits); got > tc.table {
			t.Errorf("%d symbols may need %d entries, the table has %d", tc.symbols, got, tc.table)
		}
	}
}

// bound is what the tables need at most. A second level of k bits has 1<<k entries and contains a code of k bits, so it
// takes k+1 symbols or more; the largest ones first give most entries for the symbols that there are.
func bound(symbols, mainBits int) int {
	most := 0
	for subs := range 1 << mainBits {
		// The fewest codes that complete the first level, each of which takes a power of two of its entries.
		left := symbols - bits.OnesCount(uint(1<<mainBits-subs))
		if left < 2*subs {
			continue
		}
		size := 0
		for ; subs > 0; subs-- {
			k := min(maxCodeLen-mainBits, left-2*(subs-1)-1)
			left -= k + 1
			size += 1 << k
		}
		most = max(most, size)
	}
	return 1<<mainBits + most
}

// TestIncrement: a reversed code plus one is the reverse of the code plus one.
func TestIncrement(t *testing.T) {
	for n := 1; n <= maxCodeLen; n++ {
		for i := range uint(1 << n) {
			next := (i + 1) % (1 << n)
			if got, want := increment(reverse(i, n), n), reverse(next, n); got != want {
				t.Fatalf("%d bits: after %b comes %b, got %b", n, i, want, got)
			}
		}
	}
}

func reverse(v uint, n int) uint { return uint(bits.Reverse64(uint64(v)) >> (64 - n)) }

// TestRefused: codes that are neither complete nor an exception.
func TestRefused(t *testing.T) {
	for _, tc := range []struct {
		lens []uint8
		ok   bool
	}{
		{[]uint8{}, true},
		{[]uint8{0, 0, 0}, true},
		{[]uint8{0, 1}, true},
		{[]uint8{1, 1}, true},
		{[]uint8{2}, false},
		{[]uint8{1, 2}, false},
		{[]uint8{1, 1, 1}, false},
		{[]uint8{1, 2, 3, 3}, true},
		{[]uint8{15, 15}, false},
		{slices.Repeat([]uint8{1}, 286), false},
	} {
		if got := new(canonical).sort(tc.lens); got != tc.ok {
			t.Errorf("%v: got %v", tc.lens, got)
		}
	}
}
