package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func ptr[T any](v T) *T { return &v }

// TestGolden compares listings with testdata/*.txt: Docker's default of each architecture, and the profiles beside them.
func TestGolden(t *testing.T) {
	profiles := map[string]*specs.LinuxSeccomp{}
	archOf := map[string]string{}
	for _, goarch := range []string{"amd64", "arm64"} {
		name := "docker-default-" + goarch
		profiles[name], archOf[name] = defaultProfile(t, dockerCaps, goarch), goarch
	}
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var s specs.LinuxSeccomp
		if err := json.Unmarshal(data, &s); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		profiles[name], archOf[name] = &s, "amd64"
	}
	for name, s := range profiles {
		t.Run(name, func(t *testing.T) {
			p, err := Compile(s, &Options{Arch: archOf[name]})
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(golden, []byte(p.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), p.String()); diff != "" {
				t.Errorf("run with -update if this is meant (-want +got):\n%s", diff)
			}
		})
	}
}

// dockerCaps are the capabilities of a Docker container.
var dockerCaps = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

func TestDeterministic(t *testing.T) {
	s := defaultProfile(t, dockerCaps, "amd64")
	first, err := Compile(s, &Options{Arch: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		again, err := Compile(s, &Options{Arch: "amd64"})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first.Bytes(), again.Bytes()) {
			t.Fatal("the same profile gave another program")
		}
	}
	if got, want := len(first.Bytes()), 8*len(first.Instructions); got != want {
		t.Fatalf("%d bytes, want %d", got, want)
	}
}

func TestNothingToInstall(t *testing.T) {
	for name, s := range map[string]*specs.LinuxSeccomp{"nil": nil, "empty": {}} {
		p, err := Compile(s, nil)
		if err != nil || len(p.Instructions) != 0 || p.Flags != 0 {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func TestErrors(t *testing.T) {
	rule := func(s specs.LinuxSyscall) *specs.LinuxSeccomp {
		if s.Names == nil {
			s.Names = []string{"read"}
		}
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{s}}
	}
	arg := func(a specs.LinuxSeccompArg) *specs.LinuxSeccomp {
		return rule(specs.LinuxSyscall{Action: specs.ActKill, Args: []specs.LinuxSeccompArg{a}})
	}
	for name, tt := range map[string]struct {
		profile *specs.LinuxSeccomp
		field   string
	}{
		"no default":         {&specs.LinuxSeccomp{Syscalls: []specs.LinuxSyscall{{}}}, "defaultAction"},
		"unknown default":    {&specs.LinuxSeccomp{DefaultAction: "ALLOW"}, "defaultAction"},
		"default notify":     {&specs.LinuxSeccomp{DefaultAction: specs.ActNotify}, "defaultAction"},
		"default errno":      {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, DefaultErrnoRet: ptr(uint(1))}, "defaultErrnoRet"},
		"unknown action":     {rule(specs.LinuxSyscall{Action: "x"}), "syscalls[0].action"},
		"errno of kill":      {rule(specs.LinuxSyscall{Action: specs.ActKill, ErrnoRet: ptr(uint(1))}), "syscalls[0].errnoRet"},
		"errno too large":    {rule(specs.LinuxSyscall{Action: specs.ActErrno, ErrnoRet: ptr(uint(4096))}), "syscalls[0].errnoRet"},
		"trace too large":    {rule(specs.LinuxSyscall{Action: specs.ActTrace, ErrnoRet: ptr(uint(65536))}), "syscalls[0].errnoRet"},
		"empty name":         {rule(specs.LinuxSyscall{Names: []string{"read", ""}, Action: specs.ActKill}), "syscalls[0].names[1]"},
		"notify for write":   {rule(specs.LinuxSyscall{Names: []string{"write"}, Action: specs.ActNotify}), "syscalls[0].action"},
		"argument 6":         {arg(specs.LinuxSeccompArg{Index: 6, Op: specs.OpEqualTo}), "syscalls[0].args[0].index"},
		"unknown comparison": {arg(specs.LinuxSeccompArg{Op: "=="}), "syscalls[0].args[0].op"},
		"unknown flag":       {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"x"}}, "flags[0]"},
		"flag without notify": {
			&specs.LinuxSeccomp{
				DefaultAction: specs.ActAllow,
				Flags:         []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv},
			}, "flags[0]",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Compile(tt.profile, nil)
			var pe *ProfileError
			if !errors.As(err, &pe) || pe.Field != tt.field || p != nil {
				t.Fatalf("%v, %v; want an error about %s", p, err, tt.field)
			}
		})
	}

	var ae *ArchError
	_, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchMIPS}}, nil)
	if !errors.As(err, &ae) || !errors.Is(err, errors.ErrUnsupported) || ae.Arch != "SCMP_ARCH_MIPS" {
		t.Errorf("foreign architecture: %v", err)
	}
	_, err = Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow}, &Options{Arch: "riscv64"})
	if !errors.As(err, &ae) || ae.Arch != "riscv64" {
		t.Errorf("native architecture: %v", err)
	}
}

// TestTooLarge: profiles that cannot fit fail in bounded time, and at the limit nothing else happens.
func TestTooLarge(t *testing.T) {
	for _, n := range []int{3000, 20000} {
		s := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
		for i := range n {
			s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{
				Names: []string{"read"}, Action: specs.ActErrno,
				Args: []specs.LinuxSeccompArg{
					{Index: 0, Value: uint64(i), Op: specs.OpEqualTo}, {Index: 1, Value: uint64(i), Op: specs.OpEqualTo},
				},
			})
		}
		var tl *TooLargeError
		if _, err := Compile(s, nil); !errors.As(err, &tl) || tl.Limit != 4096 {
			t.Errorf("%d rules: %v", n, err)
		}
	}
}

func TestFlags(t *testing.T) {
	notify := []specs.LinuxSyscall{{Names: []string{"mount"}, Action: specs.ActNotify}}
	for name, tt := range map[string]struct {
		flags    []specs.LinuxSeccompFlag
		syscalls []specs.LinuxSyscall
		flag     uint
		load     uint
	}{
		"nil is speculation allowed": {nil, nil, FlagSpecAllow, FlagSpecAllow},
		"empty is none":              {[]specs.LinuxSeccompFlag{}, nil, 0, 0},
		"log and tsync":              {[]specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"}, nil, 3, 3},
		"listener":                   {[]specs.LinuxSeccompFlag{}, notify, 0, FlagNewListener},
		"listener and tsync": {
			[]specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC"}, notify,
			FlagTSync, FlagTSync | FlagNewListener | FlagTSyncESRCH,
		},
		"killable": {
			[]specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}, notify,
			FlagWaitKillableRecv, FlagWaitKillableRecv | FlagNewListener,
		},
	} {
		p, err := Compile(&specs.LinuxSeccomp{
			DefaultAction: specs.ActAllow, Flags: tt.flags, Syscalls: tt.syscalls,
			ListenerPath: "/run/agent.sock", ListenerMetadata: "m",
		}, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.Flags != tt.flag || p.LoadFlags() != tt.load || p.Notify != (tt.syscalls != nil) || p.ListenerPath != "/run/agent.sock" {
			t.Errorf("%s: %#x, %#x, %v", name, p.Flags, p.LoadFlags(), p.Notify)
		}
	}
}

func TestTables(t *testing.T) {
	for i := 1; i < syscallCount; i++ {
		if syscallName(i-1) >= syscallName(i) {
			t.Fatalf("%q, %q are not in order", syscallName(i-1), syscallName(i))
		}
	}
	for i := 1; i < len(x86Multiplexed); i++ {
		if x86Multiplexed[i-1].name >= x86Multiplexed[i].name {
			t.Fatalf("%q, %q are not in order", x86Multiplexed[i-1].name, x86Multiplexed[i].name)
		}
	}
	for a := range abiCount {
		for i := range syscallCount {
			if nr := a.number(i); nr >= plainSlots && (nr < privateFirst || slotOf(nr) >= slotCount) {
				t.Fatalf("%s: %s is %d: the table of decisions has no place for it", abis[a].label, syscallName(i), nr)
			}
		}
	}
	for _, tt := range []struct {
		abi  abi
		name string
		nr   int
	}{
		{abiX86_64, "read", 0}, {abiX86_64, "umount2", 166}, {abiX86_64, "clone3", 435}, {abiX86_64, "umount", -1},
		{abiX86, "read", 3}, {abiX86, "socketcall", 102}, {abiX86, "_llseek", 140}, {abiX86, "accept", -1},
		{abiX32, "read", 0}, {abiX32, "rt_sigaction", 512}, {abiX32, "pwritev2", 547}, {abiX32, "uselib", -1},
		{abiARM64, "read", 63}, {abiARM64, "newfstatat", 79}, {abiARM64, "mkdir", -1},
		{abiARM, "read", 3}, {abiARM, "set_tls", 0xf0005}, {abiARM, "arm_sync_file_range", 341}, {abiARM, "syscall_mask", -1},
	} {
		nr := -1
		if i := syscallIndex(tt.name); i >= 0 {
			nr = tt.abi.number(i)
		}
		if nr != tt.nr {
			t.Errorf("%s: %s is %d, want %d", abis[tt.abi].label, tt.name, nr, tt.nr)
		}
	}
}

func BenchmarkCompileDefault(b *testing.B) {
	s := defaultProfile(b, dockerCaps, "amd64")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(s, &Options{Arch: "amd64"}); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzCompile(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.json")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, uint8(0), uint32(1), uint32(auditX86_64), uint64(5))
	}
	f.Fuzz(func(t *testing.T, data []byte, native uint8, nr, arch uint32, arg uint64) {
		var s specs.LinuxSeccomp
		if json.Unmarshal(data, &s) != nil {
			return
		}
		goarch := goarchs[int(native)%len(goarchs)]
		p, err := Compile(&s, &Options{Arch: goarch})
		if err != nil || len(p.Instructions) == 0 {
			return
		}
		if err := validate(p.Instructions); err != nil {
			t.Fatalf("%v\n%v", err, p)
		}
		_ = p.String()
		a, _ := abiOfGOARCH(goarch)
		compare(t, p, reference{profile: &s, native: abis[a].scmp}, call{nr, arch, [6]uint64{arg, arg}}, nil)
	})
}

// TestMultiplexed: rules for socket and IPC calls on their way through socketcall and ipc, whether the profile's newest
// number lies below these or above.
func TestMultiplexed(t *testing.T) {
	profile := func(name string, args ...specs.LinuxSeccompArg) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{
			DefaultAction: specs.ActErrno,
			Syscalls:      []specs.LinuxSyscall{{Names: []string{"read", name}, Action: specs.ActAllow, Args: args}},
		}
	}
	domain := specs.LinuxSeccompArg{Index: 0, Value: 2, Op: specs.OpEqualTo}
	for name, tt := range map[string]struct {
		profile *specs.LinuxSeccomp
		nr      uint32
		arg     uint64
		want    uint32
	}{
		"send, which has no number":          {profile("send"), 102, 9, retAllow},
		"another one, newer than read":       {profile("send"), 102, 10, enosysRet},
		"socket":                             {profile("socket"), 102, 1, retAllow},
		"another one, older than socket":     {profile("socket"), 102, 2, retErrno | ePERM},
		"socket of a family, not to be seen": {profile("socket", domain), 102, 1, retErrno | ePERM},
		"shmat with a version":               {profile("shmat"), 117, 0x10015, retAllow},
	} {
		p, err := Compile(tt.profile, &Options{Arch: "386"})
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := execute(p.Instructions, call{nr: tt.nr, arch: auditX86, args: [6]uint64{tt.arg}})
		if err != nil || got != tt.want {
			t.Errorf("%s: %s, %v; want %s", name, actionName(got), err, actionName(tt.want))
		}
	}
}
