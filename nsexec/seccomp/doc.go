// Package seccomp compiles the seccomp section of an OCI runtime specification to the classic BPF program that
// seccomp(2) loads, in pure Go.
//
//	profile, err := seccomp.DefaultProfile(caps, "", seccomp.KernelVersion{})
//	program, err := seccomp.Compile(profile, nil)
//	// program.Bytes() is the struct sock_filter array, program.LoadFlags() the flags argument.
//
// # What a profile means
//
// The meaning is that of runc with libseccomp, so that a profile decides here as it does there:
//
//   - The kernel's own architecture is always part of the filter; a call made through an architecture that is not listed
//     kills the thread, as libseccomp's "bad arch" action does. On x86-64 the x32 numbers are such an architecture.
//   - A name that an architecture does not have is ignored there.
//   - A rule whose action (with its errno) is the default action is dropped.
//   - The first rule without conditions decides a system call, whatever rules with conditions it has beside
//     it. Without one, the first matching rule of the profile decides. (libseccomp sorts overlapping rules with
//     conditions in an order of its own and refuses some; profiles whose rules do not overlap see no difference.)
//   - The conditions of a rule must all hold. When two of them look at the same argument, each condition becomes a rule
//     of its own (matchCall in runc's libcontainer/seccomp/seccomp_linux.go).
//   - SCMP_CMP_MASKED_EQ compares (argument & value) with (valueTwo & value).
//   - On x86 and arm, whose registers have 32 bits, the low 32 bits of argument and value are compared. The upper halves
//     are noise there: 64-bit code that uses int 0x80 chooses them freely. x32 registers have 64 bits and so do its
//     comparisons; libseccomp looks at the low half only.
//   - On x86 a rule for a socket or System V IPC call also covers the call's way through socketcall(2) or ipc(2). The
//     conditions of the rule cannot be checked there, since the arguments are behind a pointer: a rule with conditions
//     goes along only if it is stricter than the default action. libseccomp takes it along always, which turns "allow
//     socket(2) of this family" into "allow sockets".
//   - Where the default action is neither SCMP_ACT_ALLOW, SCMP_ACT_LOG nor SCMP_ACT_TRACE, a system call whose number is
//     above every one the profile names fails with ENOSYS instead. Such a call is newer than the profile; the C library
//     takes ENOSYS for "old kernel" and falls back, whereas EPERM would be fatal. This is what runc's
//     libcontainer/seccomp/patchbpf does. On arm the range ends before the private calls (0xf0000), which runc takes for
//     the newest ones.
//
// # The program
//
// For each architecture the numbers form ranges of equal decision, searched by a balanced tree. Arguments are loaded
// only where a decision depends on them: everything else can be cached by the kernel in its per-number bitmap (Linux
// 5.11) and costs nothing at run time. Conditions on one argument are merged to ranges and searched in the same way.
package seccomp
