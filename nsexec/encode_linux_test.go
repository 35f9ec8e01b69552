//go:build linux && (amd64 || arm64)

package nsexec

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"strings"
	"testing"
)

// FuzzPlan builds plans of whatever the input says, misuse included, and checks that what is encoded is whole: control
// never leaves the steps, slots are slots, and addresses lie in the plan's own memory (CVE-2021-43784 is what comes of
// a length that nobody checked).
func FuzzPlan(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Add([]byte("\x00\x05\x00\x07\x01\x02\x00\x02\x03\x09\x04\x04\x05\x00\x06\x06\x06"))
	f.Add(bytes.Repeat([]byte{7, 255, 255, 255, 0}, 40))
	f.Fuzz(func(t *testing.T, in []byte) {
		in = in[:min(len(in), 1024)]
		p := &Plan{}
		next := func() int {
			if len(in) == 0 {
				return 0
			}
			b := in[0]
			in = in[1:]
			return int(b)
		}
		var slots []Slot
		var labels []Label
		var memory []Arg
		arg := func() Arg {
			switch k := next(); {
			case k%6 == 0 && len(slots) > 0:
				return slots[next()%len(slots)].Value()
			case k%6 == 1 && len(slots) > 0:
				return slots[next()%len(slots)].Addr()
			case k%6 == 2 && len(memory) > 0:
				return memory[next()%len(memory)].Plus(next() - 16)
			case k%6 == 3:
				return p.Str(strings.Repeat("s", next()))
			case k == 254:
				return Slot(next() << 8).Value() // of another plan
			default:
				return Int(next() - 128)
			}
		}
		label := func() Label {
			if len(labels) == 0 {
				return Label(next())
			}
			return labels[next()%len(labels)]
		}
		for len(in) > 0 {
			switch next() % 12 {
			case 0:
				slots = append(slots, p.NewSlot("s"))
			case 1:
				labels = append(labels, p.NewLabel())
			case 2:
				p.Place(label())
			case 3:
				args := make([]Arg, next()%8)
				for i := range args {
					args[i] = arg()
				}
				step := p.Syscall("x", uintptr(next()), args...)
				switch next() % 4 {
				case 0:
					step.Ignore()
				case 1:
					step.Else(label())
				}
			case 4:
				p.Branch(arg(), Cond(next()%7), arg(), label())
			case 5:
				p.Store(1<<(next()%4), arg(), arg(), arg())
			case 6:
				if len(slots) > 0 {
					p.Load(slots[0], 1<<(next()%4), arg(), arg())
				}
			case 7:
				memory = append(memory, p.Zeroed(next()<<(next()%24)))
			case 8:
				memory = append(memory, p.Bytes(make([]byte, next())))
			case 9:
				memory = append(memory, p.Words(arg(), arg()))
			case 10:
				p.FailTo(label())
			case 11:
				memory = append(memory, p.Vector([]string{"a", string(rune(next()))}), p.File("f"))
			}
		}
		_ = p.String() // the listing must cope with all of it
		image, err := p.ELF()
		if err != nil {
			return
		}
		checkImage(t, p, image)
	})
}

// checkImage reads an executable back as the kernel and the interpreter do.
func checkImage(t *testing.T, p *Plan, image []byte) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	text, data := f.Progs[0], f.Progs[1]
	if text.Flags != elf.PF_R|elf.PF_X || data.Flags != elf.PF_R|elf.PF_W || f.Progs[2].Type != elf.PT_GNU_STACK || f.Progs[2].Flags&elf.PF_X != 0 {
		t.Fatalf("segments %+v", f.Progs)
	}
	for _, s := range []*elf.Prog{text, data} {
		if s.Off%pageSize != s.Vaddr%pageSize || s.Off+s.Filesz > uint64(len(image)) || s.Filesz > s.Memsz {
			t.Fatalf("segment %+v of %d bytes", s.ProgHeader, len(image))
		}
	}
	code, err := io.ReadAll(text.Open())
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	slotsAt, stepsAt := le.Uint64(code[paramsOffset:]), le.Uint64(code[paramsOffset+8:])
	slots := uint64(int(firstSlot) + len(p.slots))
	if slotsAt < data.Vaddr || slotsAt+8*slots > data.Vaddr+data.Memsz {
		t.Fatalf("%d slots at %#x outside of the data", slots, slotsAt)
	}
	steps := code[stepsAt-text.Vaddr:]
	if len(steps) != (len(p.steps)+1)*stepSize {
		t.Fatalf("%d bytes of steps for %d", len(steps), len(p.steps))
	}
	for i := 0; i*stepSize < len(steps); i++ {
		s := steps[i*stepSize:]
		target := le.Uint32(s[8:])
		// A step that ends the list and goes on with the next one reaches the exit that follows the list.
		if target%stepSize != 0 || int(target) > len(p.steps)*stepSize {
			t.Fatalf("step %d goes to %d", i, target)
		}
		if uint64(le.Uint16(s[2:])) >= slots {
			t.Fatalf("step %d writes slot %d of %d", i, le.Uint16(s[2:]), slots)
		}
		for n := range 6 {
			if v := le.Uint64(s[16+8*n:]); s[1]&(1<<n) != 0 && v >= slots {
				t.Fatalf("step %d reads slot %d of %d", i, v, slots)
			}
		}
	}
}

// TestEndOfPlan: a plan that does not end by itself ends with status 125, and does not run on into what lies behind it.
func TestEndOfPlan(t *testing.T) {
	for name, build := range map[string]func(*Plan){
		"empty":        func(*Plan) {},
		"one step":     func(p *Plan) { p.Add(p.NewSlot("s"), Const(1), Const(2)) },
		"label at end": func(p *Plan) { l := p.NewLabel(); p.Jump(l); p.Place(l) },
	} {
		t.Run(name, func(t *testing.T) {
			p := &Plan{}
			build(p)
			if code, _ := perform(t, p); code != 125 {
				t.Errorf("exit %d", code)
			}
		})
	}
}
