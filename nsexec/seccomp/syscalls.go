package seccomp

import (
	"cmp"
	"runtime"
	"sort"

	"github.com/opencontainers/runtime-spec/specs-go"
)

//go:generate go run ./internal/gen

// An abi is a system call table together with how it appears in struct seccomp_data.
type abi uint8

const (
	abiX86_64 abi = iota
	abiX86
	abiX32
	abiARM64
	abiARM
	abiCount
)

// Values of seccomp_data.arch (AUDIT_ARCH_ of linux/audit.h), and the bit that marks x32's numbers.
const (
	auditX86_64 = 0xc000003e
	auditX86    = 0x40000003
	auditARM64  = 0xc00000b7
	auditARM    = 0x40000028
	x32Bit      = 0x40000000
)

type abiInfo struct {
	scmp   specs.Arch
	goarch string // "" for x32, which is no port of Go
	audit  uint32
	base   uint32 // added to every number
	narrow bool   // registers have 32 bits
	label  string // in listings
}

var abis = [abiCount]abiInfo{
	abiX86_64: {specs.ArchX86_64, "amd64", auditX86_64, 0, false, "x86_64"},
	abiX86:    {specs.ArchX86, "386", auditX86, 0, true, "x86"},
	abiX32:    {specs.ArchX32, "", auditX86_64, x32Bit, false, "x32"},
	abiARM64:  {specs.ArchAARCH64, "arm64", auditARM64, 0, false, "aarch64"},
	abiARM:    {specs.ArchARM, "arm", auditARM, 0, true, "arm"},
}

func abiOfGOARCH(goarch string) (abi, error) {
	goarch = cmp.Or(goarch, runtime.GOARCH)
	for a := range abis {
		if abis[a].goarch == goarch {
			return abi(a), nil
		}
	}
	return 0, &ArchError{Arch: goarch}
}

func abiOfSCMP(arch specs.Arch) (abi, error) {
	for a := range abis {
		if abis[a].scmp == arch {
			return abi(a), nil
		}
	}
	return 0, &ArchError{Arch: string(arch)}
}

func syscallName(i int) string { return syscallNames[syscallStart[i]:syscallStart[i+1]] }

// syscallIndex finds a name, for use with abi.number; -1 when no architecture has it.
func syscallIndex(name string) int {
	i := sort.Search(syscallCount, func(i int) bool { return syscallName(i) >= name })
	if i < syscallCount && syscallName(i) == name {
		return i
	}
	return -1
}

// number returns the number of a call in this table, without x32Bit; -1 when there is none.
func (a abi) number(index int) int {
	switch a {
	case abiX86_64:
		return int(syscallsX86_64[index])
	case abiX86:
		return int(syscallsX86[index])
	case abiX32:
		return int(syscallsX32[index])
	case abiARM64:
		return int(syscallsARM64[index])
	default:
		return int(syscallsARM[index])
	}
}

// name returns the call of a number, for listings; "" when there is none.
func (a abi) name(nr uint32) string {
	for i := range syscallCount {
		if n := a.number(i); n >= 0 && uint32(n)+abis[a].base == nr {
			return syscallName(i)
		}
	}
	return ""
}

// x86Multiplexed are the calls that x86 also reaches through socketcall(2) and ipc(2), with the first argument that
// stands for them there (linux/net.h, linux/ipc.h).
var x86Multiplexed = [...]struct {
	name, via string
	call      uint8
}{
	{"accept", "socketcall", 5}, {"accept4", "socketcall", 18}, {"bind", "socketcall", 2}, {"connect", "socketcall", 3},
	{"getpeername", "socketcall", 7}, {"getsockname", "socketcall", 6}, {"getsockopt", "socketcall", 15},
	{"listen", "socketcall", 4}, {"msgctl", "ipc", 14}, {"msgget", "ipc", 13}, {"msgrcv", "ipc", 12}, {"msgsnd", "ipc", 11},
	{"recv", "socketcall", 10}, {"recvfrom", "socketcall", 12}, {"recvmmsg", "socketcall", 19}, {"recvmsg", "socketcall", 17},
	{"semctl", "ipc", 3}, {"semget", "ipc", 2}, {"semop", "ipc", 1}, {"semtimedop", "ipc", 4},
	{"send", "socketcall", 9}, {"sendmmsg", "socketcall", 20}, {"sendmsg", "socketcall", 16}, {"sendto", "socketcall", 11},
	{"setsockopt", "socketcall", 14}, {"shmat", "ipc", 21}, {"shmctl", "ipc", 24}, {"shmdt", "ipc", 22}, {"shmget", "ipc", 23},
	{"shutdown", "socketcall", 13}, {"socket", "socketcall", 1}, {"socketpair", "socketcall", 8},
}
