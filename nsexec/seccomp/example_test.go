package seccomp_test

import (
	"errors"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/nsexec/seccomp"
)

func ExampleCompile() {
	errno := uint(1)
	profile := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls: []specs.LinuxSyscall{{
			Names:    []string{"mkdirat"},
			Action:   specs.ActErrno,
			ErrnoRet: &errno,
		}, {
			Names:  []string{"socket"},
			Action: specs.ActKillProcess,
			Args:   []specs.LinuxSeccompArg{{Index: 0, Value: 38, Op: specs.OpEqualTo}},
		}},
	}
	program, err := seccomp.Compile(profile, &seccomp.Options{Arch: "arm64"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Print(program)
	// Output:
	// 0000: ld  arch
	// 0001: jeq aarch64              ? 0003 : 0002
	// 0002: ret KILL_THREAD
	// 0003: ld  nr
	// 0004: jeq mkdirat              ? 0005 : 0006
	// 0005: ret ERRNO(EPERM)
	// 0006: jeq socket               ? 0007 : 0011
	// 0007: ld  args[0]>>32
	// 0008: jge 0x1                  ? 0011 : 0009
	// 0009: ld  args[0]
	// 0010: jeq 0x26                 ? 0012 : 0011
	// 0011: ret ALLOW
	// 0012: ret KILL_PROCESS
}

func ExampleProgram() {
	program, err := seccomp.Compile(&specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Flags:         []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog},
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"mount"}, Action: specs.ActNotify}},
		ListenerPath:  "/run/agent.sock",
	}, &seccomp.Options{Arch: "amd64"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(len(program.Bytes()) == 8*len(program.Instructions))
	fmt.Println(program.LoadFlags() == seccomp.FlagLog|seccomp.FlagNewListener)
	fmt.Println(program.Notify, program.ListenerPath)
	// Output:
	// true
	// true
	// true /run/agent.sock
}

// A kernel of another architecture than the program's, and the decision on new system calls left to the profile.
func ExampleOptions() {
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	program, err := seccomp.Compile(profile, &seccomp.Options{Arch: "arm64", StrictDefault: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Print(program)
	// Output:
	// 0000: ld  arch
	// 0001: jeq aarch64              ? 0003 : 0002
	// 0002: ret KILL_THREAD
	// 0003: ret ERRNO(EPERM)
}

func ExampleProfileError() {
	_, err := seccomp.Compile(&specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"read"}, Action: "DENY"}},
	}, nil)
	var pe *seccomp.ProfileError
	fmt.Println(errors.As(err, &pe), pe.Field)
	// Output: true syscalls[0].action
}

func ExampleArchError() {
	_, err := seccomp.Compile(nil, &seccomp.Options{Arch: "riscv64"})
	fmt.Println(errors.Is(err, errors.ErrUnsupported))
	// Output: true
}

func ExampleTooLargeError() {
	fmt.Println(&seccomp.TooLargeError{Limit: seccomp.MaxInstructions})
	// Output:
	// seccomp profile: more than the 4096 instructions that the kernel accepts: use fewer argument conditions or architectures
}

func ExampleKernelVersion() {
	fmt.Println(seccomp.KernelVersion{Major: 5, Minor: 14})
	// Output: 5.14
}
