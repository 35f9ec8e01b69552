package seccomp

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
)

// Options are what Compile needs to know besides the profile. Nil and the zero value are the defaults.
type Options struct {
	// Arch is the kernel's architecture, as a GOARCH: amd64, 386, arm64 or arm. Empty: that of this program.
	Arch string

	// StrictDefault applies the default action to system calls newer than the profile, where Compile otherwise answers
	// ENOSYS as runc does.
	StrictDefault bool
}

// Compile translates the seccomp section of an OCI runtime specification (config-linux.md, "Seccomp") to a program. The
// package documentation says what a profile means in detail. The same input gives the same program.
//
// A nil section, and one with neither a default action nor system calls, give a program without instructions: nothing is
// to be installed. Where the section has no flags at all (nil), the program has FlagSpecAllow, as runc; an empty list is
// no flags.
//
// Errors are *ProfileError, *ArchError and *TooLargeError.
func Compile(s *specs.LinuxSeccomp, opts *Options) (*Program, error) {
	if opts == nil {
		opts = &Options{}
	}
	native, err := abiOfGOARCH(opts.Arch)
	if err != nil {
		return nil, err
	}
	if s == nil || s.DefaultAction == "" && len(s.Syscalls) == 0 {
		return &Program{}, nil
	}
	def, err := actionOf("defaultAction", s.DefaultAction, "defaultErrnoRet", s.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	if def == retNotify {
		// As in runc: nobody listens yet when the program that the filter is for is executed.
		return nil, &ProfileError{"defaultAction", string(s.DefaultAction), "not possible: " +
			"the calls that hand the listener on would wait for it"}
	}
	list, err := statements(s, def)
	if err != nil {
		return nil, err
	}
	p := &Program{ListenerPath: s.ListenerPath, ListenerMetadata: s.ListenerMetadata}
	p.Notify = slices.ContainsFunc(list, func(st statement) bool { return st.action == retNotify && len(st.calls) > 0 })
	if p.Flags, err = flagsOf(s.Flags, p.Notify); err != nil {
		return nil, err
	}
	present, err := archsOf(s.Architectures, native)
	if err != nil {
		return nil, err
	}
	c := compiler{def: def, list: list, present: present}
	c.enosys = !opts.StrictDefault && !permissive(def)
	p.Instructions, err = c.compile(native)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// permissive actions let a call through, or to a tracer that answers for it.
func permissive(action uint32) bool {
	switch action & retActionFull {
	case retAllow, retLog, retTrace:
		return true
	}
	return false
}

func flagsOf(list []specs.LinuxSeccompFlag, notify bool) (flags uint, err error) {
	if list == nil {
		return FlagSpecAllow, nil
	}
	for i, f := range list {
		field := fmt.Sprintf("flags[%d]", i)
		switch f {
		case "SECCOMP_FILTER_FLAG_TSYNC":
			flags |= FlagTSync
		case specs.LinuxSeccompFlagLog:
			flags |= FlagLog
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= FlagSpecAllow
		case specs.LinuxSeccompFlagWaitKillableRecv:
			if !notify {
				return 0, &ProfileError{field, string(f), "the kernel takes it only with a rule of action SCMP_ACT_NOTIFY"}
			}
			flags |= FlagWaitKillableRecv
		default:
			return 0, &ProfileError{field, string(f), "not a flag (SECCOMP_FILTER_FLAG_TSYNC, _LOG, _SPEC_ALLOW, " +
				"_WAIT_KILLABLE_RECV are)"}
		}
	}
	return flags, nil
}

func archsOf(list []specs.Arch, native abi) (present [abiCount]bool, err error) {
	present[native] = true
	for _, name := range list {
		a, err := abiOfSCMP(name)
		if err != nil {
			return present, err
		}
		present[a] = true
	}
	return present, nil
}

type compiler struct {
	assembler
	def     uint32
	enosys  bool // newer calls fail with ENOSYS
	list    []statement
	present [abiCount]bool
	blocks  []block
}

// A block is code for rules that has been written already.
type block struct {
	rules  []*rule
	narrow bool
	rest   target
	to     target
}

// compile writes, from the end: the sections of the other architectures, the choice between them, the native section and
// before it the check for the native architecture, which thus costs one comparison.
func (c *compiler) compile(native abi) ([]bpf.RawInstruction, error) {
	other := ret(retKillThread)
	var sections []span
	for _, audit := range []uint32{auditX86_64, auditX86, auditARM64, auditARM} {
		if audit == abis[native].audit {
			continue
		}
		if to, ok := c.section(audit); ok {
			sections = append(sections, span{audit, to})
		}
	}
	for _, s := range sections {
		other = c.branch(opJEQ, s.from, s.to, other)
	}
	root, _ := c.section(abis[native].audit)
	if root = c.branch(opJEQ, abis[native].audit, root, other); root.ret {
		c.emit(bpf.RawInstruction{Op: opRet, K: root.v})
	} else {
		c.load(offArch)
	}
	return c.program()
}

// section writes the decisions of all tables that share a value of seccomp_data.arch; ok is false when the profile has
// none of them.
func (c *compiler) section(audit uint32) (to target, ok bool) {
	var spans []span
	switch audit {
	case auditX86_64:
		if !c.present[abiX86_64] && !c.present[abiX32] {
			return to, false
		}
		// Both tables share seccomp_data.arch. The numbers of one that is absent are those of a foreign architecture,
		// except for -1, which makes the kernel answer ENOSYS; libseccomp leaves it to the table, too.
		above := ret(c.def)
		if c.present[abiX86_64] {
			spans, above = c.spans(spans, abiX86_64)
		} else {
			spans = append(spans, span{0, ret(retKillThread)})
		}
		if c.present[abiX32] {
			spans, _ = c.spans(spans, abiX32)
		} else {
			spans = append(spans, span{x32Bit, ret(retKillThread)}, span{1<<32 - 1, above})
		}
	default:
		a := abi(slices.IndexFunc(abis[:], func(d abiInfo) bool { return d.audit == audit }))
		if !c.present[a] {
			return to, false
		}
		spans, _ = c.spans(spans, a)
	}
	return c.searchAt(offNumber, spans), true
}

// spans appends the decisions of a table, and returns that on numbers above the table.
func (c *compiler) spans(to []span, a abi) (spans []span, above target) {
	t := tableOf(a, c.list, c.def)
	def := ret(c.def)
	above = def
	if c.enosys && t.newest >= 0 {
		above = ret(enosysRet)
	}
	add := func(nr uint32, next target) {
		if n := len(to); n == 0 || nr == 0 || to[n-1].to != next {
			to = append(to, span{abis[a].base + nr, next})
		}
	}
	for slot := range t.decisions {
		d := &t.decisions[slot]
		switch nr := numberOf(slot); {
		case d.named:
			rest := def
			if slot > t.newest && slot < plainSlots {
				rest = above // socketcall and ipc, which the profile need not name to have rules for them
			}
			add(nr, c.decide(d, abis[a].narrow, rest))
		case slot > t.newest && slot < plainSlots:
			add(nr, above)
		case slot < plainSlots || a == abiARM:
			add(nr, def)
		}
	}
	if a == abiARM {
		above = def
		add(numberOf(slotCount), def)
	}
	return to, above
}

// decide returns where the decision on a call begins. Rest is for calls that no rule applies to.
func (c *compiler) decide(d *decision, narrow bool, rest target) target {
	if d.fixed {
		return ret(d.action)
	}
	for _, b := range c.blocks {
		if b.narrow == narrow && b.rest == rest && slices.Equal(b.rules, d.rules) {
			return b.to
		}
	}
	// From the last rule to the first: what does not match goes on with the rule behind.
	next := rest
	for end := len(d.rules); end > 0 && !c.overflow; {
		from := end - 1
		if arg, ok := ranged(d.rules[from]); ok {
			for from > 0 {
				if before, ok := ranged(d.rules[from-1]); !ok || before != arg {
					break
				}
				from--
			}
			next = c.searchArg(arg, narrow, paint(d.rules[from:end], narrow, next))
		} else {
			next = c.match(d.rules[from], narrow, next)
		}
		end = from
	}
	c.blocks = append(c.blocks, block{d.rules, narrow, rest, next})
	return next
}

// match writes a rule: all of its conditions, else on to no.
func (c *compiler) match(r *rule, narrow bool, no target) target {
	next := ret(r.action)
	for i := len(r.conds) - 1; i >= 0; i-- {
		cond := r.conds[i]
		if cond.op == specs.OpMaskedEqual {
			next = c.maskedEqual(cond.arg, narrow, cond.value, cond.want, next, no)
			continue
		}
		spans := []wideSpan{{0, no}}
		for _, in := range ranges(cond, narrow) {
			spans = append(spans, wideSpan{in.first, next})
			if in.last != widest(narrow) {
				spans = append(spans, wideSpan{in.last + 1, no})
			}
		}
		if len(spans) > 1 && spans[1].from == 0 {
			spans = spans[1:]
		}
		next = c.searchArg(cond.arg, narrow, spans)
	}
	return next
}
