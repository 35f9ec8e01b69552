package seccomp

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Return values of a filter (linux/seccomp.h). The smaller of two, as signed numbers, is the stricter.
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retNotify      = 0x7fc00000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000
	retActionFull  = 0xffff0000
)

// Linux numbers, whatever this program runs on.
const (
	ePERM     = 1
	eNOSYS    = 38
	maxErrno  = 4095
	maxTrace  = 0xffff
	maxArgs   = 6
	maxRules  = 1 << 14 // with conditions, over the whole profile: bounds the time spent on a hostile one
	enosysRet = retErrno | eNOSYS
)

// A condition is one comparison of an argument.
type condition struct {
	arg         uint
	op          specs.LinuxSeccompOperator
	value, want uint64 // want: SCMP_CMP_MASKED_EQ only
}

// A rule applies its action where all conditions hold.
type rule struct {
	action uint32
	conds  []condition
}

// A statement is a syscalls[] entry of the profile, checked: its calls, and the rules that runc makes of it.
type statement struct {
	calls  []int // indices of the names that some architecture has
	action uint32
	same   bool   // the action is the default one: the names count, the rules do not
	rules  []rule // empty: without conditions
}

// actionOf converts an action with its errno. Only SCMP_ACT_ERRNO and SCMP_ACT_TRACE take one (OCI runtime
// specification, config-linux.md, "seccomp": anything else must be an error).
func actionOf(field string, act specs.LinuxSeccompAction, errnoField string, errno *uint) (uint32, error) {
	var data, limit uint
	var base uint32
	switch act {
	case specs.ActErrno:
		base, data, limit = retErrno, ePERM, maxErrno
	case specs.ActTrace:
		base, data, limit = retTrace, ePERM, maxTrace
	case specs.ActKill, specs.ActKillThread:
		base = retKillThread
	case specs.ActKillProcess:
		base = retKillProcess
	case specs.ActTrap:
		base = retTrap
	case specs.ActAllow:
		base = retAllow
	case specs.ActLog:
		base = retLog
	case specs.ActNotify:
		base = retNotify
	default:
		return 0, &ProfileError{field, string(act), "not an action (SCMP_ACT_ALLOW, SCMP_ACT_ERRNO and so on)"}
	}
	if errno != nil {
		switch {
		case limit == 0:
			return 0, &ProfileError{errnoField, fmt.Sprint(*errno), "the action " + string(act) + " has no errno"}
		case *errno > limit:
			return 0, &ProfileError{errnoField, fmt.Sprint(*errno), fmt.Sprintf("greater than %d", limit)}
		}
		data = *errno
	}
	return base | uint32(data), nil
}

func conditionOf(field string, arg *specs.LinuxSeccompArg) (condition, error) {
	if arg.Index >= maxArgs {
		return condition{}, &ProfileError{field + ".index", fmt.Sprint(arg.Index), "a system call has arguments 0 to 5"}
	}
	c := condition{arg: arg.Index, op: arg.Op, value: arg.Value}
	switch arg.Op {
	case specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual:
	case specs.OpMaskedEqual:
		c.want = arg.ValueTwo & arg.Value
	default:
		return condition{}, &ProfileError{field + ".op", string(arg.Op), "not a comparison (SCMP_CMP_EQ and so on)"}
	}
	return c, nil
}

// statements checks a profile and applies what runc does to it before libseccomp sees it.
func statements(s *specs.LinuxSeccomp, def uint32) ([]statement, error) {
	out := make([]statement, 0, len(s.Syscalls))
	total := 0
	for i := range s.Syscalls {
		call := &s.Syscalls[i]
		field := func(name string) string { return fmt.Sprintf("syscalls[%d].%s", i, name) }
		action, err := actionOf(field("action"), call.Action, field("errnoRet"), call.ErrnoRet)
		if err != nil {
			return nil, err
		}
		if j := slices.Index(call.Names, ""); j >= 0 {
			return nil, &ProfileError{field(fmt.Sprintf("names[%d]", j)), "", "empty"}
		}
		if action == retNotify && slices.Contains(call.Names, "write") {
			// As in runc: whoever loads the filter has to write afterwards, to hand the listener on.
			return nil, &ProfileError{field("action"), string(call.Action), "not possible for write: " +
				"the call is needed before anybody listens"}
		}
		conds := make([]condition, len(call.Args))
		var seen [maxArgs]bool
		twice := false
		for j := range call.Args {
			c, err := conditionOf(field(fmt.Sprintf("args[%d]", j)), &call.Args[j])
			if err != nil {
				return nil, err
			}
			conds[j] = c
			twice = twice || seen[c.arg]
			seen[c.arg] = true
		}
		st := statement{calls: make([]int, 0, len(call.Names)), action: action, same: action == def}
		for _, name := range call.Names {
			if index := syscallIndex(name); index >= 0 {
				st.calls = append(st.calls, index)
			}
		}
		switch {
		case len(conds) == 0 || st.same:
		case twice:
			for j := range conds {
				st.rules = append(st.rules, rule{action, conds[j : j+1]})
			}
		default:
			st.rules = []rule{{action, conds}}
		}
		if total += len(st.rules) * len(st.calls); total > maxRules {
			return nil, &TooLargeError{Limit: MaxInstructions}
		}
		out = append(out, st)
	}
	return out, nil
}

// A decision is what a profile says about one call of one architecture.
type decision struct {
	named  bool // there is a rule: without one, nothing else is set
	fixed  bool // action decides alone
	action uint32
	rules  []*rule // else the first of these that applies, else the default action
}

// add applies a rule after those that are there already.
func (d *decision) add(r *rule) {
	switch {
	case d.fixed:
	case len(r.conds) == 0:
		*d = decision{named: true, fixed: true, action: r.action}
	default:
		d.named = true
		d.rules = append(d.rules, r)
	}
}

// Numbers from 0 and arm's private ones are kept in one table.
const (
	plainSlots   = 1024
	privateFirst = 0xf0000
	slotCount    = plainSlots + 16
)

func slotOf(nr int) int {
	if nr >= privateFirst {
		return nr - privateFirst + plainSlots
	}
	return nr
}

func numberOf(slot int) uint32 {
	if slot >= plainSlots {
		return uint32(slot - plainSlots + privateFirst)
	}
	return uint32(slot)
}

// A table is a profile's decisions for one architecture, by slot.
type table struct {
	abi       abi
	decisions [slotCount]decision
	newest    int // greatest plain number that the profile names; -1 when it names none
}

// tableOf resolves the names of a profile for one architecture.
func tableOf(a abi, list []statement, def uint32) *table {
	t := &table{abi: a, newest: -1}
	for i := range list {
		st := &list[i]
		rules := rulesFor(st, abis[a].narrow)
		for _, index := range st.calls {
			nr := a.number(index)
			if nr >= 0 && nr < privateFirst {
				t.newest = max(t.newest, nr)
			}
			if st.same {
				continue
			}
			if nr >= 0 {
				for _, r := range rules {
					t.at(nr).add(r)
				}
			}
			if a == abiX86 {
				t.addMultiplexed(syscallName(index), st, rules, def)
			}
		}
	}
	return t
}

func (t *table) at(nr int) *decision { return &t.decisions[slotOf(nr)] }

// rulesFor returns a statement's rules for registers of 64 or 32 bits, without the conditions that always hold: a mask
// of which nothing is left. libseccomp takes a rule without any other condition for one without conditions.
func rulesFor(st *statement, narrow bool) []*rule {
	if len(st.rules) == 0 {
		return []*rule{{action: st.action}}
	}
	out := make([]*rule, len(st.rules))
	for i := range st.rules {
		out[i] = &st.rules[i]
		conds := st.rules[i].conds
		moot := func(c condition) bool {
			return c.op == specs.OpMaskedEqual && (c.value == 0 || narrow && uint32(c.value) == 0)
		}
		if slices.ContainsFunc(conds, moot) {
			out[i] = &rule{st.action, slices.DeleteFunc(slices.Clone(conds), moot)}
		}
	}
	return out
}

// addMultiplexed makes a rule hold on the call's way through socketcall(2) or ipc(2) as well.
func (t *table) addMultiplexed(name string, st *statement, rules []*rule, def uint32) {
	i, ok := slices.BinarySearchFunc(x86Multiplexed[:], name, func(m struct {
		name, via string
		call      uint8
	}, name string,
	) int {
		switch {
		case m.name < name:
			return -1
		case m.name > name:
			return 1
		}
		return 0
	})
	if !ok {
		return
	}
	conditional := !slices.ContainsFunc(rules, func(r *rule) bool { return len(r.conds) == 0 })
	if conditional && int32(st.action&retActionFull) >= int32(def&retActionFull) {
		return
	}
	m := x86Multiplexed[i]
	c := condition{op: specs.OpEqualTo, value: uint64(m.call)}
	if m.via == "ipc" {
		// The upper half is a version that does not change which call it is.
		c = condition{op: specs.OpMaskedEqual, value: 0xffff, want: uint64(m.call)}
	}
	t.at(abiX86.number(syscallIndex(m.via))).add(&rule{st.action, []condition{c}})
}
