package nsexec

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
)

// The executable is laid out as the kernel maps it, for page sizes up to 64 kB:
//
//	read-execute at textBase: ELF header | program headers | params | interpreter | steps
//	read-write   at dataBase: data | slots | zeroed memory (the last two take no room in the file)
//
// The addresses are fixed (ET_EXEC), so pointers inside the data are known when it is laid out, and the interpreter
// needs neither relocation nor stack.
const (
	textBase = 0x10000000
	dataBase = 0x20000000
	pageSize = 64 << 10 // the largest page size of arm64

	elfHeaderSize  = 64
	progHeaderSize = 56
	progHeaders    = 3
	paramsOffset   = elfHeaderSize + progHeaders*progHeaderSize // address of the slots, address of the steps
	interpOffset   = paramsOffset + 16

	stepSize = 64
)

// layout holds the addresses of a plan's parts.
type layout struct {
	steps, data, slots, zeroed, end uint64
	dataOffset                      uint64 // of the data in the file
}

func (p *Plan) layout(codeSize int) layout {
	var l layout
	stepsOffset := align(uint64(interpOffset+codeSize), stepSize)
	l.steps = textBase + stepsOffset
	// One more step than the plan has: the exit that failing steps without a handler go to.
	l.dataOffset = align(stepsOffset+uint64(len(p.steps)+1)*stepSize, 4096)
	l.data = dataBase + l.dataOffset%pageSize
	l.slots = align(l.data+uint64(len(p.data)), 64)
	l.zeroed = align(l.slots+8*uint64(int(firstSlot)+len(p.slots)), 64)
	l.end = l.zeroed + p.zeroed
	return l
}

func align(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }

// ELF returns the plan as a static executable for the architecture that the program runs on. It needs no stack, no
// libraries and no arguments; it inherits the descriptors that [Plan.Files] lists.
func (p *Plan) ELF() ([]byte, error) {
	if err := p.Err(); err != nil {
		return nil, err
	}
	code, err := interpreter()
	if err != nil {
		return nil, err
	}
	machine, exitNR, err := target(runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	l := p.layout(len(code))
	le := binary.LittleEndian
	image := make([]byte, l.dataOffset, l.dataOffset+uint64(len(p.data)))

	// ELF header (System V ABI, chapter 4).
	copy(image, "\x7fELF\x02\x01\x01")
	le.PutUint16(image[16:], 2) // ET_EXEC
	le.PutUint16(image[18:], machine)
	le.PutUint32(image[20:], 1) // EV_CURRENT
	le.PutUint64(image[24:], textBase+interpOffset)
	le.PutUint64(image[32:], elfHeaderSize)
	le.PutUint16(image[52:], elfHeaderSize)
	le.PutUint16(image[54:], progHeaderSize)
	le.PutUint16(image[56:], progHeaders)

	const (
		ptLoad, ptGNUStack = 1, 0x6474e551
		x, w, r            = 1, 2, 4
	)
	textSize := l.steps - textBase + uint64(len(p.steps)+1)*stepSize
	putProgHeader(image[elfHeaderSize:], ptLoad, r|x, 0, textBase, textSize, textSize)
	putProgHeader(image[elfHeaderSize+progHeaderSize:], ptLoad, r|w, l.dataOffset, l.data, uint64(len(p.data)), l.end-l.data)
	putProgHeader(image[elfHeaderSize+2*progHeaderSize:], ptGNUStack, r|w, 0, 0, 0, 0)

	le.PutUint64(image[paramsOffset:], l.slots)
	le.PutUint64(image[paramsOffset+8:], l.steps)
	copy(image[interpOffset:], code)

	at := image[l.steps-textBase:]
	for i := range p.steps {
		if err := p.putStep(at[i*stepSize:], i, l); err != nil {
			return nil, err
		}
	}
	last := at[len(p.steps)*stepSize:]
	last[0] = byte(opSyscall)
	le.PutUint16(last[2:], uint16(slotDiscard))
	le.PutUint32(last[4:], exitNR)
	le.PutUint32(last[8:], uint32(len(p.steps)*stepSize))
	le.PutUint64(last[16:], 125)

	image = append(image, p.data...)
	data := image[l.dataOffset:]
	for _, r := range p.relocs {
		v, err := p.address(r.to, l)
		if err != nil {
			return nil, err
		}
		le.PutUint64(data[r.at:], v)
	}
	return image, nil
}

func putProgHeader(b []byte, typ, flags uint32, offset, addr, fileSize, memSize uint64) {
	le := binary.LittleEndian
	le.PutUint32(b, typ)
	le.PutUint32(b[4:], flags)
	for i, v := range []uint64{offset, addr, addr, fileSize, memSize, pageSize} {
		le.PutUint64(b[8+8*i:], v)
	}
}

// putStep lays out one step: opcode, mask of slot arguments, destination, auxiliary number, target, six arguments.
func (p *Plan) putStep(b []byte, i int, l layout) error {
	le := binary.LittleEndian
	s := &p.steps[i]
	if int(s.dst) >= int(firstSlot)+len(p.slots) {
		return fmt.Errorf("nsexec: step %d (%s) writes slot %d, which does not exist", i, s.label, s.dst)
	}
	target := i + 1
	switch {
	case s.target >= 0:
		target = p.labels[s.target]
	case s.target == exitNow:
		target = len(p.steps)
	}
	b[0] = byte(s.op)
	le.PutUint16(b[2:], uint16(s.dst))
	le.PutUint32(b[4:], s.aux)
	le.PutUint32(b[8:], uint32(target*stepSize))
	for n, a := range s.args {
		if a.kind == argSlot {
			if a.value >= uint64(int(firstSlot)+len(p.slots)) {
				return fmt.Errorf("nsexec: step %d (%s) reads slot %d, which does not exist", i, s.label, a.value)
			}
			b[1] |= 1 << n
			le.PutUint64(b[16+8*n:], a.value)
			continue
		}
		v, err := p.address(a, l)
		if err != nil {
			return err
		}
		le.PutUint64(b[16+8*n:], v)
	}
	return nil
}

// address is the 64-bit value of an argument that does not depend on the run.
func (p *Plan) address(a Arg, l layout) (uint64, error) {
	switch a.kind {
	case argConst, argFile:
		return a.value, nil
	case argSlotAddr:
		if a.value < uint64(int(firstSlot)+len(p.slots)) {
			return l.slots + 8*a.value, nil
		}
	case argData:
		if a.value <= uint64(len(p.data)) {
			return l.data + a.value, nil
		}
	case argZeroed:
		if a.value <= p.zeroed {
			return l.zeroed + a.value, nil
		}
	case argText, argTextSize:
		if a.value < uint64(len(p.labels)) {
			end := l.steps + uint64(len(p.steps)+1)*stepSize
			from := min(align(l.steps+uint64(p.labels[a.value])*stepSize, uint64(os.Getpagesize())), end)
			if a.kind == argText {
				return from, nil
			}
			return end - from, nil
		}
	}
	return 0, fmt.Errorf("nsexec: argument %d of kind %d lies outside the plan", a.value, a.kind)
}

// target returns the ELF machine and the number of exit_group.
func target(arch string) (machine uint16, exitNR uint32, err error) {
	switch arch {
	case "amd64":
		return 62, 231, nil // EM_X86_64
	case "arm64":
		return 183, 94, nil // EM_AARCH64
	}
	return 0, 0, errNoInterpreter
}
