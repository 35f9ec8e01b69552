package seccomp

import (
	"encoding/binary"

	"golang.org/x/net/bpf"
)

// MaxInstructions is the greatest length of a program: BPF_MAXINSNS of the kernel.
const MaxInstructions = 4096

// Flags of seccomp(2), linux/seccomp.h. They have their Linux values on every system.
const (
	FlagTSync            = 1 << 0 // SECCOMP_FILTER_FLAG_TSYNC
	FlagLog              = 1 << 1 // SECCOMP_FILTER_FLAG_LOG
	FlagSpecAllow        = 1 << 2 // SECCOMP_FILTER_FLAG_SPEC_ALLOW
	FlagNewListener      = 1 << 3 // SECCOMP_FILTER_FLAG_NEW_LISTENER
	FlagTSyncESRCH       = 1 << 4 // SECCOMP_FILTER_FLAG_TSYNC_ESRCH
	FlagWaitKillableRecv = 1 << 5 // SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, Linux 5.19
)

// A Program is a compiled profile.
type Program struct {
	// Instructions are the filter. Empty: nothing is to be installed.
	Instructions []bpf.RawInstruction

	// Flags holds those flags that the profile asks for; see LoadFlags for what seccomp(2) takes.
	Flags uint

	// Notify is set when a rule has the action SCMP_ACT_NOTIFY. seccomp(2) then returns a listener.
	Notify bool

	// ListenerPath and ListenerMetadata are those of the profile. Compile makes no use of them: who loads the program
	// sends the listener there.
	ListenerPath, ListenerMetadata string
}

// LoadFlags returns the flags argument of seccomp(2): Flags, and the listener's own where Notify is set. With both
// FlagTSync and a listener the kernel wants FlagTSyncESRCH as well (Linux 5.7).
func (p *Program) LoadFlags() uint {
	f := p.Flags
	if p.Notify {
		f |= FlagNewListener
		if f&FlagTSync != 0 {
			f |= FlagTSyncESRCH
		}
	}
	return f
}

// Bytes returns the program as the array of struct sock_filter that the kernel reads, in the byte order of this
// machine. It is 8 bytes an instruction.
func (p *Program) Bytes() []byte {
	b := make([]byte, 0, 8*len(p.Instructions))
	for _, in := range p.Instructions {
		b = binary.NativeEndian.AppendUint16(b, in.Op)
		b = append(b, in.Jt, in.Jf)
		b = binary.NativeEndian.AppendUint32(b, in.K)
	}
	return b
}
