package seccomp

import (
	"cmp"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A valueRange is first to last, both included.
type valueRange struct{ first, last uint64 }

func widest(narrow bool) uint64 {
	if narrow {
		return 1<<32 - 1
	}
	return 1<<64 - 1
}

// ranged tells whether a rule looks at one argument only, in a way that selects ranges of values.
func ranged(r *rule) (arg uint, ok bool) {
	if len(r.conds) != 1 || r.conds[0].op == specs.OpMaskedEqual {
		return 0, false
	}
	return r.conds[0].arg, true
}

// ranges returns the values that satisfy a condition, in order.
func ranges(c condition, narrow bool) []valueRange {
	end := widest(narrow)
	v := c.value & end
	below, above := []valueRange{{0, v - 1}}, []valueRange{{v + 1, end}}
	if v == 0 {
		below = nil
	}
	if v == end {
		above = nil
	}
	switch c.op {
	case specs.OpEqualTo:
		return []valueRange{{v, v}}
	case specs.OpNotEqual:
		return append(below, above...)
	case specs.OpLessThan:
		return below
	case specs.OpLessEqual:
		return []valueRange{{0, v}}
	case specs.OpGreaterThan:
		return above
	default: // SCMP_CMP_GE
		return []valueRange{{v, end}}
	}
}

// paint merges rules on one argument: every value goes to the first rule that has it, or to rest.
func paint(rules []*rule, narrow bool, rest target) []wideSpan {
	type painted struct {
		valueRange
		to target
	}
	var list []painted
	edges := []uint64{0}
	for _, r := range rules {
		for _, in := range ranges(r.conds[0], narrow) {
			list = append(list, painted{in, ret(r.action)})
			edges = append(edges, in.first)
			if in.last != widest(narrow) {
				edges = append(edges, in.last+1)
			}
		}
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	spans := make([]wideSpan, len(edges))
	for i, e := range edges {
		spans[i] = wideSpan{e, rest}
	}
	// free[i] leads to the first span from i on that no rule has taken, with paths shortened on the way: the time is
	// nearly linear whatever the rules look like.
	free := make([]int, len(edges)+1)
	for i := range free {
		free[i] = i
	}
	next := func(i int) int {
		for free[i] != i {
			free[i] = free[free[i]]
			i = free[i]
		}
		return i
	}
	for _, p := range list {
		i, _ := slices.BinarySearchFunc(spans, p.first, func(s wideSpan, v uint64) int { return cmp.Compare(s.from, v) })
		for i = next(i); i < len(spans) && spans[i].from <= p.last; i = next(i) {
			spans[i].to = p.to
			free[i] = i + 1
		}
	}
	return spans
}
