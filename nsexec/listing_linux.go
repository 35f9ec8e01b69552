package nsexec

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// String lists the plan as strace would show its execution: one step a line, with the text of its label as a comment,
// the places that steps branch to, and the names of slots and files in place of their numbers.
func (p *Plan) String() string {
	l := listing{p, p.labelNames(), make(map[uint64]string, len(p.strings)+len(p.vectors))}
	for s, a := range p.strings {
		l.texts[a.value] = s
	}
	names := l.names
	var b strings.Builder
	for i := range p.steps {
		if n, ok := names[i]; ok {
			fmt.Fprintf(&b, "%s:\n", n)
		}
		line := l.stepText(&p.steps[i])
		s := &p.steps[i]
		if s.op == opSyscall {
			switch {
			case s.target == toNext:
				line += " or go on"
			case s.target == exitNow:
				line += " or exit"
			case s.target != p.fail-1:
				line += " or goto " + l.labelName(s.target)
			}
		}
		if s.label != "" {
			line = fmt.Sprintf("%-88s # %s", line, s.label)
		}
		fmt.Fprintf(&b, "%4d  %s\n", i, strings.TrimRight(line, " "))
	}
	if n, ok := names[len(p.steps)]; ok {
		fmt.Fprintf(&b, "%s:\n", n)
	}
	return b.String()
}

// labelNames numbers the labels by where they stand.
func (p *Plan) labelNames() map[int]string {
	used := make(map[int]bool)
	for i := range p.steps {
		if t := p.steps[i].target; t >= 0 && int(t) < len(p.labels) && p.labels[t] >= 0 {
			used[p.labels[t]] = true
		}
	}
	names := make(map[int]string, len(used))
	n := 0
	for i := 0; i <= len(p.steps); i++ {
		if used[i] {
			n++
			names[i] = "L" + strconv.Itoa(n)
		}
	}
	return names
}

// listing is what String knows of a plan.
type listing struct {
	*Plan
	names map[int]string    // of labels, by the step that they stand before
	texts map[uint64]string // strings, by where they are
}

// labelName names the label, or says that there is none: a plan that is misused can be listed too.
func (p *listing) labelName(l Label) string {
	if l < 0 || int(l) >= len(p.labels) || p.labels[l] < 0 {
		return "?"
	}
	return p.names[p.labels[l]]
}

func (p *listing) stepText(s *step) string {
	arg := func(i int) string {
		if i >= len(s.args) {
			return "0"
		}
		return p.argText(s.args[i])
	}
	width := map[uint32]string{1: "byte", 4: "word", 8: "long"}[s.aux]
	switch s.op {
	case opSyscall:
		args := make([]string, len(s.args))
		for i := range s.args {
			args[i] = p.argText(s.args[i])
		}
		text := syscallName(uintptr(s.aux)) + "(" + strings.Join(args, ", ") + ")"
		if s.dst != slotDiscard {
			text = p.slotName(s.dst) + " = " + text
		}
		return text
	case opLoad:
		return fmt.Sprintf("%s = %s at %s + %s", p.slotName(s.dst), width, arg(0), arg(1))
	case opStore:
		return fmt.Sprintf("%s at %s + %s = %s", width, arg(0), arg(1), arg(2))
	case opAdd, opSub, opAnd:
		if s.op == opAdd && arg(1) == "0" {
			return fmt.Sprintf("%s = %s", p.slotName(s.dst), arg(0))
		}
		return fmt.Sprintf("%s = %s %c %s", p.slotName(s.dst), arg(0), "+-&"[s.op-opAdd], arg(1))
	case opBranch:
		to := p.labelName(s.target)
		if a, b := s.args[0], s.args[1]; a == b && Cond(s.aux) == Equal {
			return "goto " + to
		}
		return fmt.Sprintf("if %s %s %s goto %s", arg(0), condNames[min(int(s.aux), len(condNames)-1)], arg(1), to)
	}
	return "?"
}

func (p *Plan) slotName(s Slot) string {
	switch {
	case s == slotResult:
		return "$result"
	case s == slotStep:
		return "$step"
	case s < firstSlot || int(s-firstSlot) >= len(p.slots):
		return fmt.Sprintf("$%d", s)
	}
	return "$" + p.slots[s-firstSlot]
}

func (p *listing) argText(a Arg) string {
	if a.text != "" {
		return a.text
	}
	switch a.kind {
	case argSlot:
		return p.slotName(Slot(a.value))
	case argSlotAddr:
		return "&" + p.slotName(Slot(a.value))
	case argData:
		return p.dataText(a.value)
	case argZeroed:
		return fmt.Sprintf("zeroed+%#x", a.value)
	case argFile:
		if n := int(a.value) - firstFile; n >= 0 && n < len(p.files) {
			return fmt.Sprintf("%d<%s>", a.value, p.files[n])
		}
		return strconv.FormatUint(a.value, 10)
	}
	if v := int64(a.value); v == unix.AT_FDCWD {
		return "AT_FDCWD"
	} else if v < 0 || v < 4096 {
		return strconv.FormatInt(v, 10)
	}
	return fmt.Sprintf("%#x", a.value)
}

var condNames = [...]string{"==", "!=", "<u", ">=u", "<", ">=", "?"}

// dataText shows data as the string or the list of strings that it is, or by where it is.
func (p *listing) dataText(at uint64) string {
	for _, v := range p.vectors {
		if v.at == at {
			return fmt.Sprintf("%q", v.list)
		}
	}
	if s, ok := p.texts[at]; ok {
		return strconv.Quote(s)
	}
	return fmt.Sprintf("data+%#x", at)
}

// syscallName names the system calls that plans are made of.
func syscallName(nr uintptr) string {
	switch nr {
	case unix.SYS_CAPSET:
		return "capset"
	case unix.SYS_CHDIR:
		return "chdir"
	case unix.SYS_FSTATFS:
		return "fstatfs"
	case unix.SYS_CHROOT:
		return "chroot"
	case unix.SYS_MADVISE:
		return "madvise"
	case unix.SYS_MMAP:
		return "mmap"
	case unix.SYS_CLONE:
		return "clone"
	case unix.SYS_CLONE3:
		return "clone3"
	case unix.SYS_CLOSE:
		return "close"
	case unix.SYS_CLOSE_RANGE:
		return "close_range"
	case unix.SYS_DUP3:
		return "dup3"
	case unix.SYS_EXECVE:
		return "execve"
	case unix.SYS_EXIT_GROUP:
		return "exit_group"
	case unix.SYS_FCHDIR:
		return "fchdir"
	case unix.SYS_FCHMOD:
		return "fchmod"
	case unix.SYS_FCHMODAT:
		return "fchmodat"
	case unix.SYS_FCHOWN:
		return "fchown"
	case unix.SYS_FCHOWNAT:
		return "fchownat"
	case unix.SYS_FSCONFIG:
		return "fsconfig"
	case unix.SYS_FSMOUNT:
		return "fsmount"
	case unix.SYS_FSOPEN:
		return "fsopen"
	case unix.SYS_GETDENTS64:
		return "getdents64"
	case unix.SYS_GETPID:
		return "getpid"
	case unix.SYS_IOCTL:
		return "ioctl"
	case unix.SYS_IOPRIO_SET:
		return "ioprio_set"
	case unix.SYS_KEYCTL:
		return "keyctl"
	case unix.SYS_KILL:
		return "kill"
	case unix.SYS_MKDIRAT:
		return "mkdirat"
	case unix.SYS_MKNODAT:
		return "mknodat"
	case unix.SYS_MOUNT:
		return "mount"
	case unix.SYS_MOUNT_SETATTR:
		return "mount_setattr"
	case unix.SYS_MOVE_MOUNT:
		return "move_mount"
	case unix.SYS_OPENAT:
		return "openat"
	case unix.SYS_OPENAT2:
		return "openat2"
	case unix.SYS_OPEN_TREE:
		return "open_tree"
	case unix.SYS_PERSONALITY:
		return "personality"
	case unix.SYS_PIDFD_OPEN:
		return "pidfd_open"
	case unix.SYS_PIDFD_SEND_SIGNAL:
		return "pidfd_send_signal"
	case unix.SYS_PIPE2:
		return "pipe2"
	case unix.SYS_PIVOT_ROOT:
		return "pivot_root"
	case unix.SYS_PPOLL:
		return "ppoll"
	case unix.SYS_PRCTL:
		return "prctl"
	case unix.SYS_PRLIMIT64:
		return "prlimit64"
	case unix.SYS_READ:
		return "read"
	case unix.SYS_RT_SIGACTION:
		return "rt_sigaction"
	case unix.SYS_RT_SIGPROCMASK:
		return "rt_sigprocmask"
	case unix.SYS_RT_SIGTIMEDWAIT:
		return "rt_sigtimedwait"
	case unix.SYS_SCHED_SETATTR:
		return "sched_setattr"
	case unix.SYS_SECCOMP:
		return "seccomp"
	case unix.SYS_SENDMSG:
		return "sendmsg"
	case unix.SYS_SENDTO:
		return "sendto"
	case unix.SYS_SETDOMAINNAME:
		return "setdomainname"
	case unix.SYS_SETGID:
		return "setgid"
	case unix.SYS_SETGROUPS:
		return "setgroups"
	case unix.SYS_SETHOSTNAME:
		return "sethostname"
	case unix.SYS_SETNS:
		return "setns"
	case unix.SYS_SETPGID:
		return "setpgid"
	case unix.SYS_SETPRIORITY:
		return "setpriority"
	case unix.SYS_SETRESGID:
		return "setresgid"
	case unix.SYS_SETRESUID:
		return "setresuid"
	case unix.SYS_SETSID:
		return "setsid"
	case unix.SYS_SETUID:
		return "setuid"
	case unix.SYS_SOCKET:
		return "socket"
	case unix.SYS_STATX:
		return "statx"
	case unix.SYS_SYMLINKAT:
		return "symlinkat"
	case unix.SYS_UMASK:
		return "umask"
	case unix.SYS_UMOUNT2:
		return "umount2"
	case unix.SYS_UNLINKAT:
		return "unlinkat"
	case unix.SYS_UNSHARE:
		return "unshare"
	case unix.SYS_WAIT4:
		return "wait4"
	case unix.SYS_WRITE:
		return "write"
	}
	return fmt.Sprintf("syscall_%d", nr)
}
