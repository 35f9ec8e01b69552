//go:build linux && (amd64 || arm64)

package nsexec

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// qemuEnv names the user-mode emulator that runs the plans of a test binary built for another architecture.
const qemuEnv = "CORACLE_TEST_QEMU_USER"

// perform runs a plan as a process of its own and returns its exit status and output.
func perform(t *testing.T, p *Plan, files ...*os.File) (int, string) {
	t.Helper()
	image, err := p.ELF()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "plan")
	if err := os.WriteFile(path, image, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	if qemu := os.Getenv(qemuEnv); qemu != "" {
		cmd = exec.Command(qemu, path)
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &out, os.Stderr, files
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if ws := cmd.ProcessState; !ws.Exited() {
		t.Fatalf("the plan was ended by %v\n%s", ws, p.String())
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// exitWith ends a plan with the low byte of the value.
func exitWith(p *Plan, v Arg) { p.Syscall("exit", unix.SYS_EXIT_GROUP, v).Ignore() }

func TestArithmetic(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(*Plan, Slot, Arg, Arg)
		a, b uint64
		want int
	}{
		{"add", (*Plan).Add, 40, 2, 42},
		{"add wraps", (*Plan).Add, 1<<64 - 1, 43, 42},
		{"add carries beyond 32 bits", (*Plan).Add, 1<<32 - 1, 1, 0},
		{"sub", (*Plan).Sub, 44, 2, 42},
		{"sub wraps", (*Plan).Sub, 0, 1<<64 - 42, 42},
		{"and", (*Plan).And, 0xff, 0x2a, 42},
		{"and high", (*Plan).And, 0xff00, 0x2a, 0},
	} {
		for _, mode := range []string{"constants", "slots"} {
			t.Run(test.name+"/"+mode, func(t *testing.T) {
				p := &Plan{}
				s := p.NewSlot("s")
				a, b := Const(test.a), Const(test.b)
				if mode == "slots" {
					x, y := p.NewSlot("x"), p.NewSlot("y")
					p.Add(x, a, Const(0))
					p.Add(y, b, Const(0))
					a, b = x.Value(), y.Value()
				}
				test.do(p, s, a, b)
				exitWith(p, s.Value())
				if got, _ := perform(t, p); got != test.want {
					t.Errorf("got %d, want %d\n%s", got, test.want, p.String())
				}
			})
		}
	}
}

func TestBranches(t *testing.T) {
	values := []uint64{0, 1, 2, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<63 - 1, 1 << 63, 1<<64 - 1}
	want := map[Cond]func(a, b uint64) bool{
		Equal:    func(a, b uint64) bool { return a == b },
		NotEqual: func(a, b uint64) bool { return a != b },
		Below:    func(a, b uint64) bool { return a < b },
		AtLeast:  func(a, b uint64) bool { return a >= b },
		Less:     func(a, b uint64) bool { return int64(a) < int64(b) },
		NotLess:  func(a, b uint64) bool { return int64(a) >= int64(b) },
	}
	// All comparisons in one plan; its output is one byte for each.
	p, expected := &Plan{}, strings.Builder{}
	for c := Equal; c <= NotLess; c++ {
		for _, a := range values {
			for _, b := range values {
				yes, end := p.NewLabel(), p.NewLabel()
				p.Branch(Const(a), c, Const(b), yes)
				p.Syscall("say no", unix.SYS_WRITE, Const(1), p.Str("n"), Const(1))
				p.Jump(end)
				p.Place(yes)
				p.Syscall("say yes", unix.SYS_WRITE, Const(1), p.Str("y"), Const(1))
				p.Place(end)
				if want[c](a, b) {
					expected.WriteByte('y')
				} else {
					expected.WriteByte('n')
				}
			}
		}
	}
	exitWith(p, Const(0))
	if code, out := perform(t, p); code != 0 || out != expected.String() {
		t.Errorf("exit %d, output\n%s\nwant\n%s", code, out, expected.String())
	}
}

func TestMemory(t *testing.T) {
	for _, width := range []int{1, 4, 8} {
		t.Run(fmt.Sprintf("width %d", width), func(t *testing.T) {
			p := &Plan{}
			mem, index, v := p.Bytes([]byte("................")), p.NewSlot("index"), p.NewSlot("v")
			p.Add(index, Const(3), Const(1)) // indexed: the offset comes from a slot
			p.Add(v, Const(0x4847464544434241), Const(0))
			p.Store(width, mem, index.Value(), v.Value())
			p.Load(v, width, mem, index.Value())
			p.Store(8, mem, Const(8), v.Value()) // zero-extended
			p.Syscall("show", unix.SYS_WRITE, Const(1), mem, Const(16))
			exitWith(p, Const(0))
			want := "...." + map[int]string{1: "A...A\x00\x00\x00\x00\x00\x00\x00", 4: "ABCDABCD\x00\x00\x00\x00", 8: "ABCDABCDEFGH"}[width]
			if _, out := perform(t, p); out != want {
				t.Errorf("got %q, want %q", out, want)
			}
		})
	}
}

// TestZeroedAndWords covers what the ELF writer lays out: memory beyond the file, pointers inside data, slot addresses.
func TestZeroedAndWords(t *testing.T) {
	p := &Plan{}
	zero, s, n := p.Zeroed(200000), p.NewSlot("s"), p.NewSlot("n")
	p.Load(s, 8, zero, Const(199992))
	fail := p.NewLabel()
	p.Branch(s.Value(), NotEqual, Const(0), fail)
	p.Store(1, zero, Const(199999), Const('Z'))
	iov := p.Words(p.Str("hello "), Const(6), zero.Plus(199999), Const(1), s.Addr(), Const(8))
	p.Load(s, 8, p.Str("in slot"), Const(0))
	p.Syscall("write", unix.SYS_WRITEV, Const(1), iov, Const(3)).Into(n)
	exitWith(p, n.Value())
	p.Place(fail)
	exitWith(p, Const(1))
	if code, out := perform(t, p); code != 15 || out != "hello Zin slot\x00" {
		t.Errorf("exit %d, output %q\n%s", code, out, p.String())
	}
}

func TestFiles(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteString("content")
	p := &Plan{}
	in, n := p.File("input"), p.NewSlot("n")
	buf := p.Zeroed(64)
	p.Syscall("read", unix.SYS_PREAD64, in, buf, Const(64), Const(3)).Into(n)
	p.Syscall("write", unix.SYS_WRITE, Const(1), buf, n.Value())
	exitWith(p, Const(7))
	if code, out := perform(t, p, f); code != 7 || out != "tent" {
		t.Errorf("exit %d, output %q", code, out)
	}
}

// TestErrors covers the ways in which a failing call goes on: to the handler with its number and errno, to a label of
// its own, on, or out.
func TestErrors(t *testing.T) {
	build := func(refine func(*Plan, StepRef)) *Plan {
		p := &Plan{}
		handler := p.NewLabel()
		p.FailTo(handler)
		p.Syscall("does nothing", unix.SYS_GETPID)
		refine(p, p.Syscall("fail", unix.SYS_CLOSE, Const(1000)))
		exitWith(p, Const(0))
		p.Place(handler)
		p.Syscall("show", unix.SYS_WRITE, Const(1), slotStep.Addr(), Const(1))
		p.Sub(slotResult, Const(0), slotResult.Value())
		exitWith(p, slotResult.Value())
		return p
	}
	t.Run("handler", func(t *testing.T) {
		if code, out := perform(t, build(func(*Plan, StepRef) {})); code != int(unix.EBADF) || out != "\x01" {
			t.Errorf("exit %d, step %q", code, out)
		}
	})
	t.Run("ignore", func(t *testing.T) {
		if code, _ := perform(t, build(func(_ *Plan, r StepRef) { r.Ignore() })); code != 0 {
			t.Errorf("exit %d", code)
		}
	})
	t.Run("branch on errno", func(t *testing.T) {
		p := build(func(p *Plan, r StepRef) {
			s, l := p.NewSlot("s"), p.NewLabel()
			r.Into(s).Ignore()
			p.Branch(s.Value(), NotEqual, Errno(unix.EBADF), l)
			exitWith(p, Const(33))
			p.Place(l)
		})
		if code, _ := perform(t, p); code != 33 {
			t.Errorf("exit %d\n%s", code, p.String())
		}
	})
	t.Run("else", func(t *testing.T) {
		p := build(func(p *Plan, r StepRef) {
			l, end := p.NewLabel(), p.NewLabel()
			r.Else(l)
			p.Jump(end)
			p.Place(l)
			exitWith(p, Const(44))
			p.Place(end)
		})
		if code, _ := perform(t, p); code != 44 {
			t.Errorf("exit %d", code)
		}
	})
	t.Run("no handler", func(t *testing.T) {
		p := &Plan{}
		p.Syscall("fail", unix.SYS_CLOSE, Const(1000))
		exitWith(p, Const(0))
		if code, _ := perform(t, p); code != 125 {
			t.Errorf("exit %d", code)
		}
	})
	t.Run("largest error and smallest success", func(t *testing.T) {
		// lseek returns what it is told, prctl cannot: -4095 is an error, -4096 would be an address.
		p := &Plan{}
		p.Syscall("fail", unix.SYS_OPENAT, Int(unix.AT_FDCWD), p.Str("/does/not/exist"), Const(0)).Ignore()
		p.Sub(slotResult, Const(0), slotResult.Value())
		exitWith(p, slotResult.Value())
		if code, _ := perform(t, p); code != int(unix.ENOENT) {
			t.Errorf("exit %d", code)
		}
	})
}

func TestSixArguments(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Write(append(make([]byte, 65536), "mapped"...))
	p := &Plan{}
	fd, at := p.File("file"), p.NewSlot("at")
	p.Syscall("map", unix.SYS_MMAP, Const(0), Const(65536), Const(unix.PROT_READ), Const(unix.MAP_PRIVATE), fd, Const(65536)).Into(at)
	p.Syscall("show", unix.SYS_WRITE, Const(1), at.Value(), Const(6))
	exitWith(p, Const(0))
	if code, out := perform(t, p, f); code != 0 || out != "mapped" {
		t.Errorf("exit %d, output %q", code, out)
	}
}

func TestMisuse(t *testing.T) {
	for name, build := range map[string]func(*Plan){
		"NUL in a string":      func(p *Plan) { p.Str("a\x00b") },
		"NUL in a vector":      func(p *Plan) { p.Vector([]string{"x", "\x00"}) },
		"seven arguments":      func(p *Plan) { p.Syscall("x", 0, make([]Arg, 7)...) },
		"label never placed":   func(p *Plan) { p.Jump(p.NewLabel()) },
		"label placed twice":   func(p *Plan) { l := p.NewLabel(); p.Place(l); p.Place(l) },
		"foreign label":        func(p *Plan) { p.Jump(17) },
		"odd comparison":       func(p *Plan) { l := p.NewLabel(); p.Place(l); p.Branch(Const(1), 6, Const(2), l) },
		"odd width":            func(p *Plan) { p.Store(2, p.Zeroed(8), Const(0), Const(0)) },
		"foreign slot":         func(p *Plan) { p.Add(Slot(99), Const(0), Const(0)) },
		"foreign slot read":    func(p *Plan) { p.Syscall("x", 0, Slot(99).Value()) },
		"foreign slot address": func(p *Plan) { p.Syscall("x", 0, Slot(99).Addr()) },
		"data outside":         func(p *Plan) { p.Syscall("x", 0, p.Bytes([]byte("x")).Plus(100)) },
		"slot in data":         func(p *Plan) { p.Words(p.NewSlot("s").Value()) },
		"too much data":        func(p *Plan) { p.Bytes(make([]byte, maxData+1)) },
		"too much memory":      func(p *Plan) { p.Zeroed(maxData + 1) },
		"negative memory":      func(p *Plan) { p.Zeroed(-100) },
		"too many slots": func(p *Plan) {
			for range maxSlots {
				p.NewSlot("s")
			}
		},
		"too many steps": func(p *Plan) {
			for range maxSteps + 1 {
				p.Jump(toNext)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := &Plan{}
			build(p)
			if _, err := p.ELF(); err == nil {
				t.Errorf("no error\n%s", p.String())
			}
		})
	}
}

func TestInterpreterIsSmall(t *testing.T) {
	code, err := interpreter()
	if err != nil {
		t.Fatal(err)
	}
	if len(code) > 512 {
		t.Errorf("the interpreter has %d bytes: did its end go unnoticed?", len(code))
	}
	t.Logf("%d bytes", len(code))
}

func BenchmarkELF(b *testing.B) {
	p := &Plan{}
	for i := range 200 {
		p.Syscall("x", unix.SYS_MOUNT, p.Str(fmt.Sprint("some string ", i)), Int(-1), Const(3))
	}
	for b.Loop() {
		if _, err := p.ELF(); err != nil {
			b.Fatal(err)
		}
	}
}
