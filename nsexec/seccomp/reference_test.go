package seccomp

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
)

// A call is struct seccomp_data.
type call struct {
	nr, arch uint32
	args     [6]uint64
}

func (c call) String() string { return fmt.Sprintf("arch %#x nr %#x args %#x", c.arch, c.nr, c.args) }

// word returns the 32-bit word at an offset.
func (c call) word(off uint32) uint32 {
	switch {
	case off == 0:
		return c.nr
	case off == 4:
		return c.arch
	case off < 16 || off >= 64:
		return 0
	}
	return uint32(c.args[(off-16)/8] >> (off % 8 * 8))
}

// execute runs a program with the kernel's rules: words in host order, jumps forward only.
func execute(code []bpf.RawInstruction, c call) (action uint32, steps int, err error) {
	var a uint32
	for pc := 0; pc < len(code); steps++ {
		in := code[pc]
		pc++
		take := false
		switch in.Op {
		case 0x20:
			if in.K%4 != 0 || in.K >= 64 {
				return 0, 0, fmt.Errorf("load at %d", in.K)
			}
			a = c.word(in.K)
			continue
		case 0x54:
			a &= in.K
			continue
		case 0x05:
			pc += int(in.K)
			continue
		case 0x06:
			return in.K, steps + 1, nil
		case 0x15:
			take = a == in.K
		case 0x25:
			take = a > in.K
		case 0x35:
			take = a >= in.K
		case 0x45:
			take = a&in.K != 0
		default:
			return 0, 0, fmt.Errorf("instruction %d: unknown code %#x", pc-1, in.Op)
		}
		if take {
			pc += int(in.Jt)
		} else {
			pc += int(in.Jf)
		}
	}
	return 0, 0, fmt.Errorf("ran off the end")
}

// executeVM runs a program in the virtual machine of x/net/bpf, which reads words in network order.
func executeVM(t testing.TB, code []bpf.RawInstruction, c call) uint32 {
	t.Helper()
	ins, ok := bpf.Disassemble(code)
	if !ok {
		t.Fatal("x/net/bpf does not know all instructions")
	}
	vm, err := bpf.NewVM(ins)
	if err != nil {
		t.Fatal(err)
	}
	var data []byte
	for off := uint32(0); off < 64; off += 4 {
		data = binary.BigEndian.AppendUint32(data, c.word(off))
	}
	got, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(got)
}

// validate checks what the kernel checks, and that every instruction can be reached and ends in a return.
func validate(code []bpf.RawInstruction) error {
	if len(code) == 0 || len(code) > 4096 {
		return fmt.Errorf("%d instructions", len(code))
	}
	reached := make([]bool, len(code))
	reached[0] = true
	for pc, in := range code {
		if !reached[pc] {
			return fmt.Errorf("%d cannot be reached", pc)
		}
		var next []int
		switch in.Op {
		case 0x20:
			if in.K%4 != 0 || in.K >= 64 {
				return fmt.Errorf("%d: load at %d", pc, in.K)
			}
			next = []int{pc + 1}
		case 0x54:
			next = []int{pc + 1}
		case 0x05:
			next = []int{pc + 1 + int(in.K)}
		case 0x15, 0x25, 0x35, 0x45:
			next = []int{pc + 1 + int(in.Jt), pc + 1 + int(in.Jf)}
		case 0x06:
		default:
			return fmt.Errorf("%d: code %#x", pc, in.Op)
		}
		for _, to := range next {
			if to >= len(code) {
				return fmt.Errorf("%d: goes to %d of %d", pc, to, len(code))
			}
			reached[to] = true
		}
	}
	return nil
}

// reference decides a call straight from the profile, rule by rule, as the package documentation words it. It shares
// nothing with the compiler but the tables of names.
type reference struct {
	profile *specs.LinuxSeccomp
	native  specs.Arch
	strict  bool
}

var refAction = map[specs.LinuxSeccompAction]uint32{
	specs.ActKill: 0, specs.ActKillThread: 0, specs.ActKillProcess: 0x80000000, specs.ActTrap: 0x30000,
	specs.ActErrno: 0x50000, specs.ActTrace: 0x7ff00000, specs.ActLog: 0x7ffc0000, specs.ActAllow: 0x7fff0000,
	specs.ActNotify: 0x7fc00000,
}

func refReturn(a specs.LinuxSeccompAction, errno *uint) uint32 {
	v := refAction[a]
	if a == specs.ActErrno || a == specs.ActTrace {
		if errno == nil {
			return v | 1
		}
		return v | uint32(*errno)
	}
	return v
}

func (r reference) decide(c call) uint32 {
	def := refReturn(r.profile.DefaultAction, r.profile.DefaultErrnoRet)
	listed := func(a specs.Arch) bool { return a == r.native || slices.Contains(r.profile.Architectures, a) }

	var table abi
	nr := c.nr
	switch c.arch {
	case 0xc000003e:
		isX32 := nr >= 0x40000000
		if nr == 0xffffffff && listed(specs.ArchX86_64) && !listed(specs.ArchX32) {
			isX32 = false
		}
		if isX32 {
			table, nr = abiX32, nr-0x40000000
		} else {
			table = abiX86_64
		}
	case 0x40000003:
		table = abiX86
	case 0xc00000b7:
		table = abiARM64
	case 0x40000028:
		table = abiARM
	default:
		return 0
	}
	if !listed(abis[table].scmp) {
		// -1 belongs to the table that is there.
		if c.nr == 0xffffffff && c.arch == 0xc000003e && listed(specs.ArchX86_64) {
			return def
		}
		return 0
	}
	narrow := table == abiX86 || table == abiARM

	if act, ok := r.unconditional(table, nr, def); ok {
		return act
	}
	newest := int64(-1)
	var first *uint32 // by the first rule that matches
	for _, s := range r.profile.Syscalls {
		act := refReturn(s.Action, s.ErrnoRet)
		for _, name := range s.Names {
			index := syscallIndex(name)
			if index < 0 {
				continue
			}
			have := table.number(index)
			if have >= 0 && have < 0xf0000 {
				newest = max(newest, int64(have))
			}
			if act == def {
				continue
			}
			alternatives, unconditional := r.split(s.Args, narrow)
			if have >= 0 && uint32(have) == nr {
				for _, conds := range alternatives {
					if first == nil && allHold(conds, c, narrow) {
						first = &act
					}
				}
			}
			if table == abiX86 && first == nil {
				via, sub := refMux(name)
				entry := uint32(c.args[0])
				if via == "ipc" {
					entry &= 0xffff
				}
				if via != "" && uint32(abiX86.number(syscallIndex(via))) == nr && entry == sub && first == nil {
					if unconditional || int32(act&0xffff0000) < int32(def&0xffff0000) {
						first = &act
					}
				}
			}
		}
	}
	if first != nil {
		return *first
	}
	if !r.strict && newest >= 0 && int64(nr) > newest && (table != abiARM || nr < 0xf0000) {
		switch r.profile.DefaultAction {
		case specs.ActAllow, specs.ActLog, specs.ActTrace:
		default:
			return 0x50000 | 38
		}
	}
	return def
}

// unconditional finds the first rule without conditions of a call.
func (r reference) unconditional(table abi, nr, def uint32) (uint32, bool) {
	for _, s := range r.profile.Syscalls {
		act := refReturn(s.Action, s.ErrnoRet)
		if _, always := r.split(s.Args, abis[table].narrow); !always || act == def {
			continue
		}
		for _, name := range s.Names {
			if i := syscallIndex(name); i >= 0 && table.number(i) >= 0 && uint32(table.number(i)) == nr {
				return act, true
			}
		}
	}
	return 0, false
}

// split gives the alternatives of a rule's conditions, and whether it has none.
func (reference) split(args []specs.LinuxSeccompArg, narrow bool) (alternatives [][]specs.LinuxSeccompArg, always bool) {
	if len(args) == 0 {
		return nil, true
	}
	count := map[uint]int{}
	for _, a := range args {
		count[a.Index]++
	}
	twice := false
	for _, n := range count {
		twice = twice || n > 1
	}
	if twice {
		for _, a := range args {
			alternatives = append(alternatives, []specs.LinuxSeccompArg{a})
		}
	} else {
		alternatives = append(alternatives, args)
	}
	for _, conds := range alternatives {
		moot := 0
		for _, a := range conds {
			mask := a.Value
			if narrow {
				mask &= 0xffffffff
			}
			if a.Op == specs.OpMaskedEqual && mask == 0 {
				moot++
			}
		}
		always = always || moot == len(conds)
	}
	return alternatives, always
}

func allHold(conds []specs.LinuxSeccompArg, c call, narrow bool) bool {
	for _, a := range conds {
		have, value, two := c.args[a.Index], a.Value, a.ValueTwo
		if narrow {
			have, value, two = have&0xffffffff, value&0xffffffff, two&0xffffffff
		}
		var ok bool
		switch a.Op {
		case specs.OpEqualTo:
			ok = have == value
		case specs.OpNotEqual:
			ok = have != value
		case specs.OpLessThan:
			ok = have < value
		case specs.OpLessEqual:
			ok = have <= value
		case specs.OpGreaterThan:
			ok = have > value
		case specs.OpGreaterEqual:
			ok = have >= value
		case specs.OpMaskedEqual:
			ok = have&value == two&value
		}
		if !ok {
			return false
		}
	}
	return true
}

// refMux knows the calls that the random profiles use.
func refMux(name string) (via string, sub uint32) {
	switch name {
	case "socket":
		return "socketcall", 1
	case "accept":
		return "socketcall", 5
	case "send":
		return "socketcall", 9
	case "shmat":
		return "ipc", 21
	case "semop":
		return "ipc", 1
	}
	for _, m := range x86Multiplexed {
		if m.name == name {
			return m.via, uint32(m.call)
		}
	}
	return "", 0
}
