package seccomp

import (
	"fmt"
	"strings"

	"golang.org/x/net/bpf"
)

// String lists the program, one instruction a line, with targets of jumps by line number and the names of system calls,
// architectures and actions:
//
//	0000: ld  arch
//	0001: jeq x86_64           ? 0003 : 0002
//	0002: ret KILL_THREAD
//	0003: ld  nr
//	0004: jge unshare          ? 0009 : 0005
func (p *Program) String() string {
	var b strings.Builder
	states := make([]listState, len(p.Instructions))
	for pc, in := range p.Instructions {
		st := states[pc]
		st.reached = true
		flow := func(to int, st listState) {
			if to < len(states) && !states[to].reached {
				states[to] = st
			}
		}
		fmt.Fprintf(&b, "%04d: ", pc)
		switch in.Op {
		case opLoad:
			st.loaded = in.K
			fmt.Fprintf(&b, "ld  %s\n", fieldName(in.K))
			flow(pc+1, st)
		case opAnd:
			fmt.Fprintf(&b, "and %#x\n", in.K)
			flow(pc+1, st)
		case opJump:
			to := pc + 1 + int(in.K)
			fmt.Fprintf(&b, "ja  %04d\n", to)
			flow(to, st)
		case opRet:
			fmt.Fprintf(&b, "ret %s\n", actionName(in.K))
		case opJEQ, opJGE, opJGT, opJSET:
			yes, no := pc+1+int(in.Jt), pc+1+int(in.Jf)
			fmt.Fprintf(&b, "%s %-20s ? %04d : %04d\n", opName(in.Op), st.value(in), yes, no)
			after := st
			if in.Op == opJEQ && st.loaded == offArch {
				after.audit = in.K
			}
			flow(yes, after)
			flow(no, st)
		default:
			fmt.Fprintf(&b, "op  %#x %#x, %d, %d\n", in.Op, in.K, in.Jt, in.Jf)
		}
	}
	return b.String()
}

// A listState is what is known on the way to an instruction.
type listState struct {
	reached bool
	loaded  uint32 // offset of the word in the accumulator
	audit   uint32 // seccomp_data.arch, 0 when it has not been tested
}

func (s listState) value(in bpf.RawInstruction) string {
	if in.Op == opJSET {
		return fmt.Sprintf("%#x", in.K)
	}
	switch s.loaded {
	case offArch:
		for _, a := range abis {
			if a.audit == in.K {
				return a.label
			}
		}
	case offNumber:
		if in.K == 1<<32-1 {
			return "-1"
		}
		for a := range abiCount {
			if abis[a].audit != s.audit || in.K&x32Bit != abis[a].base {
				continue
			}
			label := fmt.Sprint(in.K - abis[a].base)
			if name := a.name(in.K); name != "" {
				label = name
			}
			if a == abiX32 {
				label = "x32:" + label
			}
			return label
		}
	}
	return fmt.Sprintf("%#x", in.K)
}

func opName(op uint16) string {
	switch op {
	case opJEQ:
		return "jeq"
	case opJGE:
		return "jge"
	case opJGT:
		return "jgt"
	default:
		return "jset"
	}
}

func fieldName(off uint32) string {
	switch {
	case off == offNumber:
		return "nr"
	case off == offArch:
		return "arch"
	case off >= offArgs && off < offArgs+8*maxArgs && off%8 == 0:
		return fmt.Sprintf("args[%d]", (off-offArgs)/8)
	case off >= offArgs && off < offArgs+8*maxArgs && off%8 == 4:
		return fmt.Sprintf("args[%d]>>32", (off-offArgs)/8)
	default:
		return fmt.Sprintf("[%d]", off)
	}
}

// actionName returns a filter's return value as SCMP_ACT_ names it, with the errno or other data where it matters.
func actionName(action uint32) string {
	name := ""
	switch action & retActionFull {
	case retKillProcess:
		name = "KILL_PROCESS"
	case retKillThread:
		name = "KILL_THREAD"
	case retTrap:
		name = "TRAP"
	case retErrno:
		switch data := action &^ retActionFull; data {
		case ePERM:
			return "ERRNO(EPERM)"
		case eNOSYS:
			return "ERRNO(ENOSYS)"
		default:
			return fmt.Sprintf("ERRNO(%d)", data)
		}
	case retNotify:
		name = "NOTIFY"
	case retTrace:
		return fmt.Sprintf("TRACE(%d)", action&^retActionFull)
	case retLog:
		name = "LOG"
	case retAllow:
		name = "ALLOW"
	default:
		return fmt.Sprintf("%#x", action)
	}
	if data := action &^ retActionFull; data != 0 {
		return fmt.Sprintf("%s(%d)", name, data)
	}
	return name
}
