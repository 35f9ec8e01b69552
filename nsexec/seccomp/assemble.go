package seccomp

import (
	"slices"

	"golang.org/x/net/bpf"
)

// Instructions of classic BPF as used here (linux/filter.h).
const (
	opLoad = 0x20 // BPF_LD|BPF_W|BPF_ABS
	opAnd  = 0x54 // BPF_ALU|BPF_AND|BPF_K
	opJump = 0x05 // BPF_JMP|BPF_JA
	opJEQ  = 0x15 // BPF_JMP|BPF_JEQ|BPF_K
	opJGT  = 0x25 // BPF_JMP|BPF_JGT|BPF_K
	opJGE  = 0x35 // BPF_JMP|BPF_JGE|BPF_K
	opJSET = 0x45 // BPF_JMP|BPF_JSET|BPF_K
	opRet  = 0x06 // BPF_RET|BPF_K
)

// Offsets in struct seccomp_data.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// A target is where a jump goes: to an instruction, or to the return of an action.
type target struct {
	ret bool
	v   uint32 // the action, or the instruction's index in assembler.code
}

func ret(action uint32) target { return target{true, action} }

// A span is the start of a range of words that ends where the next one starts.
type span struct {
	from uint32
	to   target
}

// An assembler writes a program from its end to its beginning. Jumps only go forward, so every target is known when
// the jump to it is written, and a target too far for the 8 bits of a conditional jump gets a copy nearby: a return is
// repeated, anything else reached by a long jump.
type assembler struct {
	code     []bpf.RawInstruction // last instruction first
	near     []waypoint           // newest copy of each far target
	words    []wordSearch         // searches over argument words, to be shared
	overflow bool
}

type waypoint struct {
	to target
	at int
}

// reach is how far a conditional jump may go: 255, less what the copies for its other target may take.
const reach = 250

func (a *assembler) emit(in bpf.RawInstruction) {
	if len(a.code) >= MaxInstructions {
		a.overflow = true
		return
	}
	a.code = append(a.code, in)
}

// here returns the newest instruction, which will be the one executed after the next to be written.
func (a *assembler) here() target { return target{false, uint32(len(a.code) - 1)} }

// copyNear returns the index of an instruction within reach that leads to t.
func (a *assembler) copyNear(t target) int {
	if !t.ret && len(a.code)-int(t.v) <= reach {
		return int(t.v)
	}
	i := slices.IndexFunc(a.near, func(w waypoint) bool { return w.to == t })
	if i < 0 {
		i = len(a.near)
		a.near = append(a.near, waypoint{t, -reach - 1})
	}
	if len(a.code)-a.near[i].at > reach {
		if t.ret {
			a.emit(bpf.RawInstruction{Op: opRet, K: t.v})
		} else {
			a.emit(bpf.RawInstruction{Op: opJump, K: uint32(len(a.code)) - 1 - t.v})
		}
		a.near[i].at = len(a.code) - 1
	}
	return a.near[i].at
}

// branch writes a conditional jump.
func (a *assembler) branch(op uint16, k uint32, yes, no target) target {
	if yes == no {
		return yes
	}
	y, n := a.copyNear(yes), a.copyNear(no)
	if a.overflow {
		return a.here()
	}
	next := len(a.code) - 1
	a.emit(bpf.RawInstruction{Op: op, Jt: uint8(next - y), Jf: uint8(next - n), K: k})
	return a.here()
}

// load writes a load that goes on with the newest instruction.
func (a *assembler) load(off uint32) target {
	a.emit(bpf.RawInstruction{Op: opLoad, K: off})
	return a.here()
}

// search writes the decision over all values of a word that has been loaded; spans starts at 0 and is in order. When
// all of them lead to the same target, nothing is written and loaded is false: that target needs no load.
func (a *assembler) search(spans []span) (root target, loaded bool) {
	spans = slices.CompactFunc(spans, func(x, y span) bool { return x.to == y.to })
	if len(spans) == 1 || a.overflow {
		return spans[0].to, false
	}
	before := len(a.code)
	root = a.tree(spans, chunks(spans))
	return root, len(a.code) > before
}

// searchAt is search over the word at an offset of seccomp_data.
func (a *assembler) searchAt(off uint32, spans []span) target {
	root, loaded := a.search(spans)
	if loaded {
		root = a.load(off)
	}
	return root
}

// A wordSearch is the code of a search that may be wanted again: architectures mostly differ in the numbers of calls,
// not in the conditions on their arguments.
type wordSearch struct {
	off   uint32
	spans []span
	to    target
}

// searchWord is searchAt for the words of arguments.
func (a *assembler) searchWord(off uint32, spans []span) target {
	spans = slices.CompactFunc(spans, func(x, y span) bool { return x.to == y.to })
	if len(spans) == 1 {
		return spans[0].to
	}
	for _, w := range a.words {
		if w.off == off && slices.Equal(w.spans, spans) {
			return w.to
		}
	}
	to := a.searchAt(off, spans)
	a.words = append(a.words, wordSearch{off, spans, to})
	return to
}

// maxSingles bounds the linear part of a search: a chunk tests at most so many values one after the other.
const maxSingles = 3

// A chunk is a run of spans with a common target but for a few single values.
type chunk struct {
	first, end int // spans[first:end]
	base       target
}

// chunks cuts spans such that the search takes the fewest instructions: one to choose between two chunks and one for
// each single value in them.
func chunks(spans []span) []chunk {
	type step struct {
		cost, from int
		base       target
	}
	best := make([]step, len(spans)+1)
	for end := 1; end <= len(spans); end++ {
		best[end].cost = len(spans) * 2
		for from := end - 1; from >= max(0, end-2*maxSingles-1); from-- {
			base, singles, ok := chunkBase(spans, from, end)
			if !ok {
				continue
			}
			if c := best[from].cost + singles + min(from, 1); c < best[end].cost {
				best[end] = step{c, from, base}
			}
		}
	}
	var cut []chunk
	for end := len(spans); end > 0; end = best[end].from {
		cut = append(cut, chunk{best[end].from, end, best[end].base})
	}
	slices.Reverse(cut)
	return cut
}

// chunkBase finds the target to which all spans but singles lead.
func chunkBase(spans []span, from, end int) (base target, singles int, ok bool) {
	base = spans[from].to
	for i := from; i < end; i++ {
		if !single(spans, i) {
			base = spans[i].to
			break
		}
	}
	for i := from; i < end; i++ {
		if spans[i].to != base {
			if singles++; singles > maxSingles || !single(spans, i) {
				return base, 0, false
			}
		}
	}
	return base, singles, true
}

func single(spans []span, i int) bool {
	if i+1 < len(spans) {
		return spans[i+1].from == spans[i].from+1
	}
	return spans[i].from == 1<<32-1
}

func (a *assembler) tree(spans []span, cut []chunk) target {
	if len(cut) > 1 {
		mid := len(cut) / 2
		high := a.tree(spans, cut[mid:])
		low := a.tree(spans, cut[:mid])
		return a.branch(opJGE, spans[cut[mid].first].from, high, low)
	}
	next := cut[0].base
	for i := cut[0].end - 1; i >= cut[0].first; i-- {
		if spans[i].to != cut[0].base {
			next = a.branch(opJEQ, spans[i].from, spans[i].to, next)
		}
	}
	return next
}

// A wideSpan is a span of 64-bit words.
type wideSpan struct {
	from uint64
	to   target
}

// searchArg writes the decision over all values of an argument.
func (a *assembler) searchArg(arg uint, narrow bool, spans []wideSpan) target {
	lowOff, highOff := uint32(offArgs+8*arg), uint32(offArgs+8*arg+4) // both architectures' families are little endian
	spans = slices.CompactFunc(spans, func(x, y wideSpan) bool { return x.to == y.to })
	if narrow {
		low := make([]span, len(spans))
		for i, s := range spans {
			low[i] = span{uint32(s.from), s.to}
		}
		return a.searchWord(lowOff, low)
	}
	// Spans that begin inside a block of equal high words make that block a search of its own over the low word.
	var high []span
	for i := 0; i < len(spans); {
		h := uint32(spans[i].from >> 32)
		end := i + 1
		for end < len(spans) && uint32(spans[end].from>>32) == h {
			end++
		}
		var low []span
		if uint32(spans[i].from) != 0 {
			low = append(low, span{0, spans[i-1].to})
		}
		for _, s := range spans[i:end] {
			low = append(low, span{uint32(s.from), s.to})
		}
		high = append(high, span{h, a.searchWord(lowOff, low)})
		after := spans[end-1].to
		if h != 1<<32-1 && (end == len(spans) || uint32(spans[end].from>>32) > h+1) {
			high = append(high, span{h + 1, after})
		}
		i = end
	}
	return a.searchWord(highOff, high)
}

// maskedEqual writes the decision whether an argument, masked, has a value.
func (a *assembler) maskedEqual(arg uint, narrow bool, mask, value uint64, yes, no target) target {
	lowOff := uint32(offArgs + 8*arg)
	next := a.maskedWord(lowOff, uint32(mask), uint32(value), yes, no)
	if narrow {
		return next
	}
	return a.maskedWord(lowOff+4, uint32(mask>>32), uint32(value>>32), next, no)
}

func (a *assembler) maskedWord(off, mask, value uint32, yes, no target) target {
	if mask == 0 || yes == no {
		return yes
	}
	if value == 0 {
		a.branch(opJSET, mask, no, yes)
	} else {
		a.branch(opJEQ, value, yes, no)
		if mask != 1<<32-1 {
			a.emit(bpf.RawInstruction{Op: opAnd, K: mask})
		}
	}
	return a.load(off)
}

// program returns the instructions in order, without those that nothing leads to: code for a rule that an earlier one
// leaves no value to, for example.
func (a *assembler) program() ([]bpf.RawInstruction, error) {
	if a.overflow {
		return nil, &TooLargeError{Limit: MaxInstructions}
	}
	slices.Reverse(a.code)
	code := a.code
	used := make([]bool, len(code))
	used[0] = true
	for pc, in := range code {
		if !used[pc] {
			continue
		}
		switch in.Op {
		case opLoad, opAnd:
			used[pc+1] = true
		case opJump:
			used[pc+1+int(in.K)] = true
		case opRet:
		default:
			used[pc+1+int(in.Jt)] = true
			used[pc+1+int(in.Jf)] = true
		}
	}
	// Distances only shrink.
	moved := make([]int, len(code))
	kept := 0
	for pc := range code {
		moved[pc] = kept
		if used[pc] {
			kept++
		}
	}
	out := make([]bpf.RawInstruction, 0, kept)
	for pc, in := range code {
		if !used[pc] {
			continue
		}
		switch in.Op {
		case opLoad, opAnd, opRet:
		case opJump:
			in.K = uint32(moved[pc+1+int(in.K)] - moved[pc] - 1)
		default:
			in.Jt = uint8(moved[pc+1+int(in.Jt)] - moved[pc] - 1)
			in.Jf = uint8(moved[pc+1+int(in.Jf)] - moved[pc] - 1)
		}
		out = append(out, in)
	}
	return out, nil
}
