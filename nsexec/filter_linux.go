package nsexec

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/nsexec/seccomp"
)

// compileSeccomp compiles the profile of the spec.
func (c *compiler) compileSeccomp() {
	s := c.spec.Linux.Seccomp
	if s == nil || c.bad != nil {
		return
	}
	f, err := compileProfile(s)
	if err != nil {
		field := "linux.seccomp"
		var pe *seccomp.ProfileError
		if errors.As(err, &pe) {
			field += "." + pe.Field
		}
		c.bad = &SpecError{field, err}
		return
	}
	c.filter = f
}

// installSeccomp emits the installation of the filter.
func (c *compiler) installSeccomp() {
	f := c.filter
	if f == nil {
		return
	}
	// struct sock_fprog: the number of instructions and where they are.
	prog := c.Words(Const(uint64(f.n)), c.Bytes(f.program)).As("{" + strconv.Itoa(f.n) + " instructions}")
	c.Syscall("install the seccomp filter", unix.SYS_SECCOMP, Const(unix.SECCOMP_SET_MODE_FILTER).As("SECCOMP_SET_MODE_FILTER"),
		Const(uint64(f.flags)).As(flagText(uint64(f.flags), filterFlagNames[:])), prog)
}

var filterFlagNames = [...]flagName{
	{unix.SECCOMP_FILTER_FLAG_TSYNC, "SECCOMP_FILTER_FLAG_TSYNC"}, {unix.SECCOMP_FILTER_FLAG_LOG, "SECCOMP_FILTER_FLAG_LOG"},
	{unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, "SECCOMP_FILTER_FLAG_SPEC_ALLOW"},
	{unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"},
}
