package seccomp

import (
	"fmt"
	"slices"

	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultProfile returns Docker's default profile for a container with these capabilities in its bounding set
// ("CAP_SYS_ADMIN" and so on; nil is none), on a kernel of that architecture (a GOARCH; empty: this program's) and
// version (zero: any that this module supports). The result belongs to the caller.
//
// The rules are the data of github.com/moby/profiles/seccomp. Its own resolution of them takes architecture and kernel
// version from the running host and panics without capabilities; this one depends on nothing but its arguments.
//
// One thing differs from Docker's: on 386 socketcall(2) may not create sockets. The profile denies AF_ALG (CVE-2026-31431,
// a write to the page cache and so to layers shared with other containers) and AF_VSOCK by the first argument of
// socket(2), but socketcall has it behind a pointer that no filter can read, and any program on an x86-64 kernel can use
// it through int 0x80. Docker leaves this way to AppArmor or SELinux, which may be absent. Programs for 386
// that use socket(2) (Linux 4.3; musl does) are not affected, others, like those of glibc, get EPERM. To
// let these in and AF_ALG with them, append a rule that allows socketcall: a rule without conditions comes before one with.
//
// Errors are *ArchError.
func DefaultProfile(caps []string, arch string, kernel KernelVersion) (*specs.LinuxSeccomp, error) {
	a, err := abiOfGOARCH(arch)
	if err != nil {
		return nil, err
	}
	if kernel == (KernelVersion{}) {
		kernel = oldestKernel
	}
	profile := moby.DefaultProfile()
	out := profile.LinuxSeccomp
	out.Architectures = []specs.Arch{abis[a].scmp}
	for _, m := range profile.ArchMap {
		if m.Arch == abis[a].scmp {
			out.Architectures = append(out.Architectures, m.SubArches...)
		}
	}
	in := resolver{arch: mobyArch(a), caps: caps, kernel: kernel}
	for i, call := range profile.Syscalls {
		if call.Name != "" {
			return nil, fmt.Errorf("seccomp: Docker's profile: entry %d has the old field \"name\"", i)
		}
		if in.takes(call) {
			out.Syscalls = append(out.Syscalls, withoutSocketcall(call.LinuxSyscall))
		}
	}
	out.Syscalls = append(out.Syscalls, specs.LinuxSyscall{
		Names:  []string{"socketcall"},
		Action: specs.ActAllow,
		Args:   []specs.LinuxSeccompArg{{Index: 0, Value: sysSocket, Op: specs.OpNotEqual}},
	})
	return &out, nil
}

// oldestKernel stands for the zero version: every kernel that this module supports has all that the profile asks for.
var oldestKernel = KernelVersion{5, 14}

// sysSocket is socketcall's SYS_SOCKET (linux/net.h).
const sysSocket = 1

func withoutSocketcall(call specs.LinuxSyscall) specs.LinuxSyscall {
	if call.Action == specs.ActAllow && len(call.Args) == 0 {
		call.Names = slices.DeleteFunc(call.Names, func(name string) bool { return name == "socketcall" })
	}
	return call
}

// mobyArch is the name of an architecture in the conditions of Docker's profile.
func mobyArch(a abi) string {
	if a == abiX86 {
		return "x86"
	}
	return abis[a].goarch
}

// A resolver selects entries of Docker's profile.
type resolver struct {
	arch   string
	caps   []string
	kernel KernelVersion
}

func (r *resolver) takes(call *moby.Syscall) bool {
	if in := call.Includes; in != nil {
		if len(in.Arches) > 0 && !slices.Contains(in.Arches, r.arch) {
			return false
		}
		for _, c := range in.Caps { // all of them
			if !slices.Contains(r.caps, c) {
				return false
			}
		}
		if in.MinKernel != nil && !r.atLeast(in.MinKernel) {
			return false
		}
	}
	if ex := call.Excludes; ex != nil {
		if slices.Contains(ex.Arches, r.arch) {
			return false
		}
		for _, c := range ex.Caps { // any of them
			if slices.Contains(r.caps, c) {
				return false
			}
		}
		if ex.MinKernel != nil && r.atLeast(ex.MinKernel) {
			return false
		}
	}
	return true
}

func (r *resolver) atLeast(v *moby.KernelVersion) bool {
	if r.kernel.Major != int(v.Kernel) {
		return r.kernel.Major > int(v.Kernel)
	}
	return r.kernel.Minor >= int(v.Major)
}
