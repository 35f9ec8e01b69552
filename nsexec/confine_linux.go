package nsexec

import (
	"encoding/binary"
	"runtime"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A container whose processes have CAP_SYS_PTRACE may trace whatever is in its pid namespace, undumpable or not, and with
// it a payload that has not given up its capabilities yet. In such a container nothing of the kind appears: between joiner
// and payload comes another process.
//
//	joiner                            middle                            payload
//	  setns: all but pid and cgroup
//	  clone3 -----------------------> cgroups, terminal, credentials,
//	                                  filter
//	                                  clone --------------------------> pid namespace of the container
//	  poll(middle, report)            exit                              session, READY
//	  as usual <------------------------------------------------------- execve
//
// The middle is in the host's pid namespace too. The payload is born as the joiner's child (CLONE_PARENT) with the
// rights, the filter and the files that the command is to have: whoever traces it gains nothing. It takes one process
// more for a moment, which counts for the container's pids limit.

// traceable says whether a container's processes could trace one that joins it.
func traceable(spec *specs.Spec) bool {
	if spec.Process == nil || spec.Process.Capabilities == nil {
		return false
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.UserNamespace {
			return false // what it traces has no rights outside of that either
		}
	}
	return slices.Contains(spec.Process.Capabilities.Bounding, "CAP_SYS_PTRACE")
}

// confines says whether the payload can be born confined: whether the filter lets the middle clone it, and lets it do what
// is left to do. If not, it is confined as in any other container, step by step.
func (c *compiler) confines() bool {
	for _, call := range [][]uint64{
		{unix.SYS_CLONE, confinedClone}, {unix.SYS_EXIT_GROUP}, {unix.SYS_SETSID},
		{unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uint64(unix.SIGKILL)}, {unix.SYS_IOCTL, 0, unix.TIOCSCTTY}, {unix.SYS_WRITE}, {unix.SYS_EXECVE},
	} {
		if !c.filter.allows(call[0], call[1:]...) {
			return false
		}
	}
	return true
}

// joinConfined emits what follows the joiner's setns.
func (c *compiler) joinConfined(target Arg, failed Label) {
	middle, child := c.NewLabel(), c.NewLabel()
	mid, midfd, pid, pidfd := c.NewSlot("middle"), c.NewSlot("middle_fd"), c.NewSlot("payload"), c.NewSlot("pidfd")
	shared := c.NewSlot("shared")
	const page = 4096
	c.Syscall("make memory for the payload's pid", unix.SYS_MMAP, Const(0), Const(page),
		Const(unix.PROT_READ|unix.PROT_WRITE).As("PROT_READ|PROT_WRITE"), Const(unix.MAP_SHARED|unix.MAP_ANONYMOUS).As("MAP_SHARED|MAP_ANONYMOUS"), Int(-1), Const(0)).Into(shared)
	c.cloneWith("create the process between", unix.CLONE_PIDFD, mid, midfd)
	c.Branch(mid.Value(), Equal, Const(0), middle)

	// The joiner. However the middle ends: if there is a payload its pid is there, and as the joiner's child that nobody
	// has waited for it keeps that pid.
	ended, lost, over := c.NewLabel(), c.NewLabel(), c.NewLabel()
	c.FailTo(over)
	fds, revents := c.Words(Const(unix.POLLIN<<32), Const(c.prog.report.value)).As("{middle: POLLIN, report: POLLHUP}"), c.NewSlot("revents")
	c.Store(4, fds, Const(0), midfd.Value())
	c.Syscall("wait for the process between or the program to end", unix.SYS_PPOLL, fds, Const(2), Const(0), Const(0), Const(8)).Else(lost)
	c.Load(revents, 1, fds, Const(8+6))
	c.Branch(revents.Value(), Equal, Const(0), ended)
	c.Place(lost)
	c.Syscall("kill the process between", unix.SYS_PIDFD_SEND_SIGNAL, midfd.Value(), Const(uint64(unix.SIGKILL)).As("SIGKILL"), Const(0), Const(0)).Ignore()
	c.Place(ended)
	c.Syscall("wait for the process between", unix.SYS_WAIT4, mid.Value(), Const(0), Const(unix.WALL).As("__WALL"), Const(0))
	c.Load(pid, 4, shared.Value(), Const(0))
	c.Branch(pid.Value(), Equal, Const(0), over)
	c.Syscall("open the container's process", unix.SYS_PIDFD_OPEN, pid.Value(), Const(0)).Into(pidfd)
	c.supervise(pid, pidfd, child, keepFiles{})
	c.Place(over)
	c.Syscall("exit", unix.SYS_EXIT_GROUP, Const(0)).Ignore()

	c.Place(middle)
	c.FailTo(failed)
	c.Syscall("keep the memory from the payload", unix.SYS_MADVISE, shared.Value(), Const(page), Const(unix.MADV_DONTFORK).As("MADV_DONTFORK"))
	c.Syscall("start a session", unix.SYS_SETSID)
	c.dieWithJoiner()
	c.enterCgroups()
	c.setnsOf(target, c.namespaces.joined&(unix.CLONE_NEWCGROUP|unix.CLONE_NEWPID))
	c.leaveKeyring()
	c.tuneSelf()
	if c.spec.Process.Terminal {
		c.handOver(c.openTerminal(Int(unix.AT_FDCWD)), c.terminalSocket())
	}
	c.changeDirectory()
	c.setRlimits()
	c.Syscall("close all but the ways to the program", unix.SYS_CLOSE_RANGE, c.prog.status.Plus(1), Const(maxFD), Const(0))
	c.closeFiles()
	c.setCredentials()
	if c.spec.Process.NoNewPrivileges {
		c.installSeccomp()
	}
	c.filter = nil // it is installed
	// The kernel writes the pid before the process runs.
	c.Syscall("create the container's process", unix.SYS_CLONE, Const(confinedClone).As("CLONE_PARENT|CLONE_PARENT_SETTID|SIGCHLD"),
		Const(0), shared.Value(), Const(0), Const(0)).Into(pid)
	c.Branch(pid.Value(), Equal, Const(0), child)
	c.Syscall("exit", unix.SYS_EXIT_GROUP, Const(0)).Ignore()

	c.Place(child)
	c.Syscall("start a session", unix.SYS_SETSID)
	c.dieWithJoiner()
	if c.spec.Process.Terminal {
		c.controlTerminal()
	}
	c.execute()
	c.emitLater()
}

const confinedClone = unix.CLONE_PARENT | unix.CLONE_PARENT_SETTID | uint64(unix.SIGCHLD)

// allows says whether the filter lets a system call through.
func (f *filter) allows(nr uint64, args ...uint64) bool {
	if f == nil {
		return true
	}
	var data [64]byte // struct seccomp_data
	le := binary.LittleEndian
	le.PutUint32(data[0:], uint32(nr))
	le.PutUint32(data[4:], auditArch())
	for i, a := range args {
		le.PutUint64(data[16+8*i:], a)
	}
	action, ok := runFilter(f.program, data[:])
	action &= unix.SECCOMP_RET_ACTION_FULL
	return ok && (action == unix.SECCOMP_RET_ALLOW || action == unix.SECCOMP_RET_LOG)
}

func auditArch() uint32 {
	if runtime.GOARCH == "arm64" {
		return unix.AUDIT_ARCH_AARCH64
	}
	return unix.AUDIT_ARCH_X86_64
}

// runFilter runs a program of classic BPF as far as seccomp's compiler makes use of it. It is not ok if there is anything
// else in the program.
func runFilter(program, data []byte) (result uint32, ok bool) {
	const size = 8 // struct sock_filter: code, jump if true, jump if false, operand
	le := binary.LittleEndian
	var acc uint32
	for pc := 0; pc >= 0 && (pc+1)*size <= len(program); pc++ {
		i := program[pc*size:]
		code, jt, jf, k := le.Uint16(i), int(i[2]), int(i[3]), le.Uint32(i[4:])
		jump := func(holds bool) {
			if holds {
				pc += jt
			} else {
				pc += jf
			}
		}
		switch code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			if uint64(k)+4 > uint64(len(data)) {
				return 0, false
			}
			acc = le.Uint32(data[k:])
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= k
		case unix.BPF_JMP | unix.BPF_JA:
			if k > uint32(len(program)) {
				return 0, false
			}
			pc += int(k)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(acc == k)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(acc > k)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(acc >= k)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			jump(acc&k != 0)
		case unix.BPF_RET | unix.BPF_K:
			return k, true
		default:
			return 0, false
		}
	}
	return 0, false
}
