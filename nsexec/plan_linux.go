package nsexec

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// A Plan is a program of system calls: a flat list of steps that the interpreter performs one after the other, with
// slots for results that feed later steps and labels to branch to. Everything that a step needs (strings, structures,
// argument vectors) is laid out before the process that performs it exists, so that nothing is allocated, parsed or
// looked up between clone and execve.
//
// The zero Plan is empty and ready to use. A Plan is not safe for concurrent use; once built it may be listed, encoded
// and started any number of times. Building never fails at once: the first misuse (a wrong number of arguments, a
// string with a NUL byte, a label never placed) is kept and returned by [Plan.Err] and by everything that encodes.
type Plan struct {
	steps  []step
	data   []byte
	relocs []reloc
	zeroed uint64 // bytes of zeroed memory behind data
	slots  []string
	files  []string
	labels []int // step index of each label, -1 until placed
	fail   Label // where a failing step goes unless it says otherwise; see FailTo
	err    error

	strings map[string]Arg // one copy of each constant string
	vectors []vector       // for the listing
}

type vector struct {
	at   uint64
	list []string
}

// The first slots belong to the interpreter.
const (
	slotResult  Slot = iota // the result of the last failing system call, -errno
	slotStep                // the index of the step that failed
	slotDiscard             // results nobody wants
	firstSlot
)

// A Slot is a 64-bit variable of a plan. Results of steps go into slots, and arguments come from them.
type Slot uint16

// A Label is a place in a plan that steps can branch to.
type Label int32

// toNext is the target of a step whose error is ignored.
const toNext Label = -1

// exitNow is the target of failing steps in a plan without a failure handler: the interpreter exits with status 125.
const exitNow Label = -2

type opcode uint8

// The interpreter's instruction set. The numbers are known to interp_linux_*.s.
const (
	opSyscall opcode = iota // dst = nr(args...); on an error: slots 0 and 1 are set and control goes to target
	opLoad                  // dst = memory[a0+a1], width bytes wide, zero-extended
	opStore                 // memory[a0+a1] = a2, width bytes wide
	opAdd                   // dst = a0 + a1
	opSub                   // dst = a0 - a1
	opAnd                   // dst = a0 & a1
	opBranch                // if a0 cond a1, go to target
)

// A Cond is the comparison of a branch. The zero Cond is Equal.
type Cond uint32

// The comparisons of [Plan.Branch]. Below and AtLeast compare unsigned numbers, Less and NotLess signed ones.
const (
	Equal Cond = iota
	NotEqual
	Below
	AtLeast
	Less
	NotLess
)

type step struct {
	op     opcode
	aux    uint32 // system call number, width in bytes or condition
	dst    Slot
	target Label
	args   []Arg
	label  string
}

type argKind uint8

const (
	argConst argKind = iota
	argSlot
	argSlotAddr
	argData
	argZeroed
	argFile
	argText     // the first whole page of the steps from a label on
	argTextSize // the bytes from there to the last step
)

// An Arg is an argument of a step: a constant, the value or address of a slot, the address of data, or an inherited
// file descriptor. The zero Arg is the constant 0.
type Arg struct {
	kind  argKind
	value uint64
	text  string // how the listing shows it, if not by value
}

// Int is the constant v. Negative numbers are sign-extended, as the kernel expects of AT_FDCWD.
func Int(v int) Arg { return Arg{value: uint64(int64(v))} }

// Const is the constant v.
func Const(v uint64) Arg { return Arg{value: v} }

// Errno is the result of a system call that failed with e, for comparison in [Plan.Branch].
func Errno(e unix.Errno) Arg {
	return Arg{value: uint64(-int64(e)), text: "-" + unix.ErrnoName(e)}
}

// As returns the argument with the text that the listing shows for it, such as the names of flags.
func (a Arg) As(text string) Arg {
	a.text = text
	return a
}

// Plus returns the argument moved by n bytes. It serves addresses and constants.
func (a Arg) Plus(n int) Arg {
	a.value += uint64(int64(n))
	a.text = ""
	return a
}

// Value is the content of the slot when the step is performed.
func (s Slot) Value() Arg { return Arg{kind: argSlot, value: uint64(s)} }

// Addr is the address of the slot, for system calls that write a result to memory.
func (s Slot) Addr() Arg { return Arg{kind: argSlotAddr, value: uint64(s)} }

// Err returns the first misuse of the plan while it was built, or nil.
func (p *Plan) Err() error {
	if p.err != nil {
		return p.err
	}
	for i := range p.steps {
		if t := p.steps[i].target; t >= 0 && (int(t) >= len(p.labels) || p.labels[t] < 0) {
			return fmt.Errorf("nsexec: step %d (%s) branches to a label that was never placed", i, p.steps[i].label)
		}
	}
	return nil
}

func (p *Plan) setErr(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("nsexec: "+format, args...)
	}
}

// NewSlot makes a slot. The name serves the listing.
func (p *Plan) NewSlot(name string) Slot {
	n := int(firstSlot) + len(p.slots)
	if n >= maxSlots {
		p.setErr("more than %d slots", maxSlots)
		return slotDiscard
	}
	p.slots = append(p.slots, name)
	return Slot(n)
}

// NewLabel makes a label, to be placed with [Plan.Place].
func (p *Plan) NewLabel() Label {
	p.labels = append(p.labels, -1)
	return Label(len(p.labels) - 1)
}

// Place puts the label before the next step.
func (p *Plan) Place(l Label) {
	if l < 0 || int(l) >= len(p.labels) || p.labels[l] >= 0 {
		p.setErr("label %d placed twice or never made", l)
		return
	}
	p.labels[l] = len(p.steps)
}

// FailTo sets where the steps added from now on go when their system call fails. Without it the process exits with
// status 125 at the first failure.
func (p *Plan) FailTo(l Label) { p.fail = l + 1 }

func (p *Plan) failTarget() Label {
	if p.fail == 0 {
		return exitNow
	}
	return p.fail - 1
}

// A StepRef refines the step that was just added to a plan.
type StepRef struct {
	p *Plan
	i int
}

// Into keeps the result in the slot, also when it is an error.
func (r StepRef) Into(s Slot) StepRef {
	r.p.steps[r.i].dst = s
	return r
}

// Else goes to the label when the system call fails, instead of ending the plan.
func (r StepRef) Else(l Label) StepRef {
	r.p.steps[r.i].target = l
	return r
}

// Ignore goes on with the next step when the system call fails. The result, kept with Into, tells.
func (r StepRef) Ignore() StepRef {
	r.p.steps[r.i].target = toNext
	return r
}

func (p *Plan) add(s step) StepRef {
	if len(p.steps) >= maxSteps {
		p.setErr("more than %d steps", maxSteps)
		return StepRef{p, len(p.steps) - 1}
	}
	p.steps = append(p.steps, s)
	return StepRef{p, len(p.steps) - 1}
}

// Syscall adds a system call. The label says what it is for in words: it becomes the text of the error when the call
// fails. Missing arguments are 0.
func (p *Plan) Syscall(label string, nr uintptr, args ...Arg) StepRef {
	if len(args) > 6 {
		p.setErr("step %q has %d arguments, at most 6 are possible", label, len(args))
		args = args[:6]
	}
	return p.add(step{op: opSyscall, aux: uint32(nr), dst: slotDiscard, target: p.failTarget(), args: args, label: label})
}

// Load adds a step that reads 1, 4 or 8 bytes at addr+offset into the slot.
func (p *Plan) Load(dst Slot, width int, addr, offset Arg) {
	p.checkWidth(width)
	p.add(step{op: opLoad, aux: uint32(width), dst: dst, target: toNext, args: []Arg{addr, offset}})
}

// Store adds a step that writes the low 1, 4 or 8 bytes of v at addr+offset. The memory must come from [Plan.Zeroed]
// or [Plan.Bytes].
func (p *Plan) Store(width int, addr, offset, v Arg) {
	p.checkWidth(width)
	p.add(step{op: opStore, aux: uint32(width), dst: slotDiscard, target: toNext, args: []Arg{addr, offset, v}})
}

func (p *Plan) checkWidth(width int) {
	if width != 1 && width != 4 && width != 8 {
		p.setErr("memory is read and written 1, 4 or 8 bytes at a time, not %d", width)
	}
}

// Add adds a step that puts a+b into the slot. With Const(0) it is a move.
func (p *Plan) Add(dst Slot, a, b Arg) {
	p.add(step{op: opAdd, dst: dst, target: toNext, args: []Arg{a, b}})
}

// Sub adds a step that puts a-b into the slot.
func (p *Plan) Sub(dst Slot, a, b Arg) {
	p.add(step{op: opSub, dst: dst, target: toNext, args: []Arg{a, b}})
}

// And adds a step that puts the bitwise and of a and b into the slot.
func (p *Plan) And(dst Slot, a, b Arg) {
	p.add(step{op: opAnd, dst: dst, target: toNext, args: []Arg{a, b}})
}

// Branch adds a step that goes to the label if the comparison holds.
func (p *Plan) Branch(a Arg, c Cond, b Arg, to Label) {
	if c > NotLess {
		p.setErr("no comparison has the number %d", c)
	}
	p.add(step{op: opBranch, aux: uint32(c), dst: slotDiscard, target: to, args: []Arg{a, b}})
}

// Jump adds a step that goes to the label.
func (p *Plan) Jump(to Label) { p.Branch(Const(0), Equal, Const(0), to) }

// File makes room for an open file that the process inherits, and returns its descriptor. The name serves the listing
// and [Plan.Files]. Descriptors 0 to 2 are the standard streams and need no File.
func (p *Plan) File(name string) Arg {
	p.files = append(p.files, name)
	return Arg{kind: argFile, value: uint64(firstFile + len(p.files) - 1)}
}

// Files lists the names of the files that the plan expects to inherit, from descriptor 3 on.
func (p *Plan) Files() []string { return append([]string(nil), p.files...) }

// firstFile is the descriptor of the first inherited file.
const firstFile = 3

// Str returns the address of the string, ended by a NUL byte. Equal strings share their memory, which steps must
// not change.
func (p *Plan) Str(s string) Arg {
	if a, ok := p.strings[s]; ok {
		return a
	}
	for i := range len(s) {
		if s[i] == 0 {
			p.setErr("the string %q has a NUL byte", s)
			return Arg{}
		}
	}
	a := p.alloc(1, len(s)+1)
	copy(p.data[a.value:], s)
	if p.strings == nil {
		p.strings = make(map[string]Arg)
	}
	p.strings[s] = a
	return a
}

// Bytes returns the address of a copy of b, aligned to 8 bytes. Steps may change it.
func (p *Plan) Bytes(b []byte) Arg {
	a := p.alloc(8, len(b))
	copy(p.data[a.value:], b)
	return a
}

// Zeroed returns the address of n bytes of zeroed memory, aligned to 8 bytes.
func (p *Plan) Zeroed(n int) Arg {
	if n < 0 || n > maxData || p.zeroed+uint64(n) > maxData {
		p.setErr("more than %d bytes of memory", maxData)
		return Arg{}
	}
	a := Arg{kind: argZeroed, value: p.zeroed}
	p.zeroed += uint64(n+7) &^ 7
	return a
}

// Words returns the address of an array of 64-bit words, each a constant or an address. Steps may change it.
func (p *Plan) Words(words ...Arg) Arg {
	a := p.alloc(8, 8*len(words))
	for i, w := range words {
		p.setWord(a, 8*i, w)
	}
	return a
}

// setWord puts a constant, file or address into memory that Bytes or Words returned.
func (p *Plan) setWord(at Arg, offset int, w Arg) {
	off := at.value + uint64(offset)
	switch {
	case p.err != nil:
	case at.kind != argData || off+8 > uint64(len(p.data)):
		p.setErr("word at %d lies outside the data", off)
	case w.kind == argSlot:
		p.setErr("the value of a slot is not known when data is laid out")
	case w.kind == argConst || w.kind == argFile:
		binary.NativeEndian.PutUint64(p.data[off:], w.value)
	default:
		p.relocs = append(p.relocs, reloc{at: off, to: w})
	}
}

// Vector returns the address of an array of strings ended by a null pointer, as execve takes it.
func (p *Plan) Vector(list []string) Arg {
	words := make([]Arg, 0, len(list)+1)
	for _, s := range list {
		words = append(words, p.Str(s))
	}
	a := p.Words(append(words, Const(0))...)
	p.vectors = append(p.vectors, vector{a.value, list})
	return a
}

type reloc struct {
	at uint64 // offset in data
	to Arg
}

func (p *Plan) alloc(align, n int) Arg {
	off := (len(p.data) + align - 1) &^ (align - 1)
	if n < 0 || n > maxData || off+n > maxData {
		p.setErr("more than %d bytes of data", maxData)
		return Arg{}
	}
	if need := off + n - len(p.data); need > 0 {
		p.data = append(p.data, make([]byte, need)...)
	}
	return Arg{kind: argData, value: uint64(off)}
}

// Bounds of a plan. The kernel's own limit for arguments and environment is 6 MB with the default stack limit, a single
// string may have 128 kB; a plan that is larger than this is a mistake or an attack.
const (
	maxSlots = 4096
	maxSteps = 1 << 16
	maxData  = 16 << 20
)
