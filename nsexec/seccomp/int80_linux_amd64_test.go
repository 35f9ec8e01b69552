package seccomp

import i386 "github.com/coracle-dev/coracle/nsexec/seccomp/internal/int80"

func int80(nr uint32, a0, a1, a2 uint64) int32 { return i386.Call(nr, a0, a1, a2) }
