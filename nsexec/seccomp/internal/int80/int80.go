//go:build linux && amd64

// Package int80 makes i386 system calls from 64-bit code, as a hostile program would. It serves the tests of package
// seccomp.
package int80

// Call executes int 0x80 with whole 64-bit registers and returns what the kernel leaves in EAX: a result or a negated
// errno. Where the kernel lacks i386 emulation the program is killed by SIGSEGV.
func Call(nr uint32, a0, a1, a2 uint64) int32
