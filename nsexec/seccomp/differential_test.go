package seccomp

import (
	"runtime"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"pgregory.net/rapid"
)

var (
	drawNames = []string{
		"read", "write", "socket", "socketcall", "clone", "accept", "shmat", "semop", "ipc", "send", "personality",
		"rt_sigaction", "cacheflush", "set_tls", "nosuchcall", "openat2", "mseal", "sync_file_range2",
		"arm_sync_file_range", "ioctl", "getppid", "restart_syscall", "futex_time64", "execveat",
	}
	drawValues = []uint64{
		0, 1, 2, 5, 9, 21, 38, 0xffff, 0x10001, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x100000001,
		0x1_00000005, 0x7fffffff_ffffffff, 0x80000000_00000000, 0xffffffff_00000000, 0xffffffff_fffffffe, 0xffffffff_ffffffff,
	}
	drawActions = []specs.LinuxSeccompAction{
		specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno, specs.ActTrace,
		specs.ActAllow, specs.ActLog, specs.ActNotify,
	}
	drawOps = []specs.LinuxSeccompOperator{
		specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan,
		specs.OpMaskedEqual,
	}
	drawArchs = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32, specs.ArchAARCH64, specs.ArchARM}
	goarchs   = []string{"amd64", "386", "arm64", "arm"}
)

func drawAction(t *rapid.T, def bool) (specs.LinuxSeccompAction, *uint) {
	a := rapid.SampledFrom(drawActions).Draw(t, "action")
	if def && a == specs.ActNotify {
		a = specs.ActErrno
	}
	if (a == specs.ActErrno || a == specs.ActTrace) && rapid.Bool().Draw(t, "with errno") {
		e := rapid.SampledFrom([]uint{0, 1, 38, 97, 4095}).Draw(t, "errno")
		return a, &e
	}
	return a, nil
}

// drawProfile draws a profile of few names, so that rules meet, or one of many, so that jumps become long.
func drawProfile(t *rapid.T) *specs.LinuxSeccomp {
	p := &specs.LinuxSeccomp{}
	p.DefaultAction, p.DefaultErrnoRet = drawAction(t, true)
	p.Architectures = rapid.SliceOfN(rapid.SampledFrom(drawArchs), 0, 5).Draw(t, "architectures")
	entries, perEntry := 12, 3
	if rapid.IntRange(0, 9).Draw(t, "size") == 0 {
		entries, perEntry = 60, 40
	}
	name := rapid.Custom(func(t *rapid.T) string {
		if perEntry > 3 {
			return syscallName(rapid.IntRange(0, syscallCount-1).Draw(t, "index"))
		}
		return rapid.SampledFrom(drawNames).Draw(t, "name")
	})
	arg := rapid.Custom(func(t *rapid.T) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{
			Index:    uint(rapid.SampledFrom([]int{0, 0, 0, 1, 5}).Draw(t, "index")),
			Value:    rapid.SampledFrom(drawValues).Draw(t, "value"),
			ValueTwo: rapid.SampledFrom(drawValues).Draw(t, "valueTwo"),
			Op:       rapid.SampledFrom(drawOps).Draw(t, "op"),
		}
	})
	for range rapid.IntRange(0, entries).Draw(t, "entries") {
		s := specs.LinuxSyscall{Names: rapid.SliceOfN(name, 1, perEntry).Draw(t, "names")}
		s.Action, s.ErrnoRet = drawAction(t, false)
		if s.Action == specs.ActNotify {
			for i := range s.Names {
				if s.Names[i] == "write" {
					s.Names[i] = "read"
				}
			}
		}
		s.Args = rapid.SliceOfN(arg, 0, 3).Draw(t, "args")
		p.Syscalls = append(p.Syscalls, s)
	}
	return p
}

// drawCalls lists calls at the edges of a profile's decisions.
func drawCalls(t *rapid.T) []call {
	numbers := []uint32{0, 1, 102, 117, 0xf0000, 0xf0002, 0xf0005, 0xf0006, 0xf0010, 1023, 1024, 0x3fffffff, 0x7fffffff, 0xfffffffe, 0xffffffff}
	for _, name := range drawNames {
		for a := range abiCount {
			if i := syscallIndex(name); i >= 0 && a.number(i) >= 0 {
				n := uint32(a.number(i)) + abis[a].base
				numbers = append(numbers, n, n+1, n|0x40000000)
			}
		}
	}
	numbers = append(numbers, rapid.SliceOfN(rapid.Uint32Range(0, 560), 20, 20).Draw(t, "numbers")...)
	for i, n := range rapid.SliceOfN(rapid.Uint32Range(0, 560), 10, 10).Draw(t, "x32 numbers") {
		numbers = append(numbers, n|0x40000000, uint32(i))
	}
	slices.Sort(numbers)
	numbers = slices.Compact(numbers)
	value := rapid.Custom(func(t *rapid.T) uint64 {
		v := rapid.SampledFrom(drawValues).Draw(t, "value")
		return v + rapid.SampledFrom([]uint64{0, 0, 0, 1, 1<<64 - 1, 1 << 32}).Draw(t, "step")
	})
	var out []call
	for _, arch := range []uint32{auditX86_64, auditX86, auditARM64, auditARM, 0xc0000016} {
		for _, nr := range numbers {
			c := call{nr: nr, arch: arch}
			for i := range c.args {
				c.args[i] = value.Draw(t, "arg")
			}
			out = append(out, c)
		}
	}
	return out
}

func compare(t interface{ Fatalf(string, ...any) }, p *Program, ref reference, c call, vm func(call) uint32) {
	got, _, err := execute(p.Instructions, c)
	if err != nil {
		t.Fatalf("%v: %v", c, err)
	}
	if want := ref.decide(c); got != want {
		t.Fatalf("%v: %s, want %s\n%v", c, actionName(got), actionName(want), p)
	}
	if vm != nil {
		if other := vm(c); other != got {
			t.Fatalf("%v: %s, but x/net/bpf gives %s", c, actionName(got), actionName(other))
		}
	}
}

// TestDifferential compares compiled programs, run by the evaluator above and by the machine of x/net/bpf, with the
// reference.
func TestDifferential(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		profile := drawProfile(rt)
		native := rapid.SampledFrom(goarchs).Draw(rt, "native")
		opts := &Options{Arch: native, StrictDefault: rapid.IntRange(0, 3).Draw(rt, "strict") == 0}
		p, err := Compile(profile, opts)
		if err != nil {
			rt.Fatal(err)
		}
		if err := validate(p.Instructions); err != nil {
			rt.Fatalf("%v\n%v", err, p)
		}
		a, err := abiOfGOARCH(native)
		if err != nil {
			rt.Fatal(err)
		}
		ref := reference{profile, abis[a].scmp, opts.StrictDefault}
		for i, c := range drawCalls(rt) {
			var vm func(call) uint32
			if i%16 == 0 {
				vm = func(c call) uint32 { return executeVM(t, p.Instructions, c) }
			}
			compare(rt, p, ref, c, vm)
		}
	})
}

// TestDefaultDecisions compares every number of every architecture under Docker's profile with the reference.
func TestDefaultDecisions(t *testing.T) {
	for _, goarch := range goarchs {
		for name, caps := range map[string][]string{"no capability": nil, "admin": {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE"}} {
			t.Run(goarch+"/"+name, func(t *testing.T) {
				profile := defaultProfile(t, caps, goarch)
				p, err := Compile(profile, &Options{Arch: goarch})
				if err != nil {
					t.Fatal(err)
				}
				a, _ := abiOfGOARCH(goarch)
				ref := reference{profile: profile, native: abis[a].scmp}
				conditional := map[uint32]bool{}
				for _, name := range []string{"socket", "socketcall", "clone", "personality"} {
					for a := range abiCount {
						conditional[uint32(a.number(syscallIndex(name)))+abis[a].base] = true
					}
				}
				for _, arch := range []uint32{auditX86_64, auditX86, auditARM64, auditARM} {
					for _, base := range []uint32{0, 0x40000000, 0xeff00, 0xfffffe00} {
						for nr := base; nr-base < 600 && nr >= base; nr++ {
							for _, v := range []uint64{0, 1, 2, 8, 37, 38, 39, 40, 0xffffffff, 1 << 28, 0x100000001, 1 << 63} {
								compare(t, p, ref, call{nr, arch, [6]uint64{v, v}}, nil)
								if !conditional[nr] {
									break
								}
							}
						}
					}
				}
			})
		}
	}
}

// TestLongJumps makes programs whose parts are further apart than a conditional jump reaches.
func TestLongJumps(t *testing.T) {
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActKillProcess, Architectures: drawArchs[:3]}
	for i := range syscallCount {
		errno := uint(i)
		s := specs.LinuxSyscall{Names: []string{syscallName(i)}, Action: specs.ActErrno, ErrnoRet: &errno}
		if i%16 == 0 {
			s.Args = []specs.LinuxSeccompArg{{Index: uint(i % 6), Value: uint64(i), Op: specs.OpGreaterEqual}}
		}
		profile.Syscalls = append(profile.Syscalls, s)
	}
	p, err := Compile(profile, &Options{Arch: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	if err := validate(p.Instructions); err != nil {
		t.Fatal(err)
	}
	long := 0
	for _, in := range p.Instructions {
		if in.Op == opJump && in.K > 255 {
			long++
		}
	}
	if long == 0 {
		t.Fatalf("%d instructions without a long jump: this test is to have them", len(p.Instructions))
	}
	ref := reference{profile: profile, native: specs.ArchX86_64}
	for _, arch := range []uint32{auditX86_64, auditX86, auditARM64, auditARM} {
		for _, base := range []uint32{0, 0x40000000, 0xeff00} {
			for nr := base; nr < base+600; nr++ {
				for _, v := range []uint64{0, uint64(nr - base), 1 << 40} {
					compare(t, p, ref, call{nr, arch, [6]uint64{v, v, v, v, v, v}}, nil)
				}
			}
		}
	}
}

// TestDepth bounds what a call costs where the kernel cannot cache the decision.
func TestDepth(t *testing.T) {
	profile := defaultProfile(t, nil, "amd64")
	p, err := Compile(profile, &Options{Arch: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	total, worst := 0, 0
	for nr := range uint32(460) {
		_, steps, err := execute(p.Instructions, call{nr: nr, arch: auditX86_64})
		if err != nil {
			t.Fatal(err)
		}
		total += steps
		worst = max(worst, steps)
	}
	if worst > 24 || total/460 > 14 {
		t.Fatalf("steps: worst %d, mean %.1f", worst, float64(total)/460)
	}
	if n := len(p.Instructions); n > 250 {
		t.Fatalf("%d instructions", n)
	}
	t.Logf("%d instructions, worst %d, mean %.1f", len(p.Instructions), worst, float64(total)/460)
}

func defaultProfile(t testing.TB, caps []string, goarch string) *specs.LinuxSeccomp {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("the data of Docker's profile builds on Linux only")
	}
	s, err := DefaultProfile(caps, goarch, KernelVersion{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
