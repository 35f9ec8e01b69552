package nsexec

import "golang.org/x/sys/unix"

// With Options.Init the payload does not become the program. It clones a process that does, and stays as pid 1 of the
// container, as tini and docker-init do:
//
//	payload                              program's process
//	  set-up, credentials, filter
//	  blocks all signals
//	  clone ----------------------------> process group of its own, in the foreground of its terminal
//	  closes all descriptors              READY -> status, execve (closes status)
//	  loop: rt_sigtimedwait
//	    SIGCHLD: wait4 until nothing has ended; <- exit
//	             the program: exit with its code, or 128 + its signal
//	    others: kill, to the program ---->
//
// It holds no descriptor, stays undumpable, and has the program's user, capabilities and seccomp filter. When it exits
// the kernel kills what is left in the pid namespace. It is cloned by clone and not by clone3, as the filters of
// container engines cannot look into clone3's flags and forbid it.

// becomeInit emits the steps by which the payload becomes the init; what follows is done by the program's process.
func (c *compiler) becomeInit() {
	c.Syscall("hold all signals back", unix.SYS_RT_SIGPROCMASK, Const(unix.SIG_SETMASK).As("SIG_SETMASK"),
		c.Words(Const(1<<64-1)).As("~[]"), Const(0), Const(8))
	if !c.ownPIDNamespace() {
		// Orphans come to pid 1 of a pid namespace by themselves.
		c.Syscall("adopt orphans", unix.SYS_PRCTL, Const(unix.PR_SET_CHILD_SUBREAPER).As("PR_SET_CHILD_SUBREAPER"), Const(1)).Ignore()
	}
	program, child := c.NewSlot("program"), c.NewLabel()
	c.Syscall("create the program's process", unix.SYS_CLONE, Const(uint64(unix.SIGCHLD)).As("SIGCHLD"), Const(0), Const(0), Const(0), Const(0)).Into(program)
	c.Branch(program.Value(), Equal, Const(0), child)
	c.reapAndForward(program)

	c.Place(child)
	// As tini: signals that a terminal sends are for the program and what it starts, not for the init. SIGTTOU is held back.
	c.Syscall("start a process group", unix.SYS_SETPGID, Const(0), Const(0))
	pid, group := c.NewSlot("pid"), c.Zeroed(8)
	c.Syscall("find the process group", unix.SYS_GETPID).Into(pid)
	c.Store(4, group, Const(0), pid.Value())
	c.Syscall("come to the foreground of the terminal, if there is one", unix.SYS_IOCTL, Const(0), Const(unix.TIOCSPGRP).As("TIOCSPGRP"), group).Ignore()
	c.Syscall("let all signals through", unix.SYS_RT_SIGPROCMASK, Const(unix.SIG_SETMASK).As("SIG_SETMASK"), c.Zeroed(8), Const(0), Const(8))
}

// reapAndForward emits the life of the init.
func (c *compiler) reapAndForward(program Slot) {
	status, all := c.Zeroed(8), c.Zeroed(8)
	sig, pid, code, fd := c.NewSlot("sig"), c.NewSlot("pid"), c.NewSlot("code"), c.NewSlot("fd")
	loop, reap, ended, signalled, blind := c.NewLabel(), c.NewLabel(), c.NewLabel(), c.NewLabel(), c.NewLabel()
	closed, closing := c.NewLabel(), c.NewLabel()

	// The end of the status pipe tells that the program runs: if this one stayed open, nobody would ever know.
	c.Syscall("close all descriptors", unix.SYS_CLOSE_RANGE, Const(0), Const(maxFD), Const(0)).Else(closing)
	c.Place(closed)
	c.Syscall("name the init", unix.SYS_PRCTL, Const(unix.PR_SET_NAME).As("PR_SET_NAME"), c.Str("coracle-init")).Ignore()
	c.Store(8, all, Const(0), Const(1<<64-1))

	c.Place(loop)
	c.Syscall("wait for a signal", unix.SYS_RT_SIGTIMEDWAIT, all.As("~[]"), Const(0), Const(0), Const(8)).Into(sig).Else(blind)
	c.Branch(sig.Value(), Equal, Const(uint64(unix.SIGCHLD)).As("SIGCHLD"), reap)
	c.Syscall("forward the signal to the program", unix.SYS_KILL, program.Value(), sig.Value()).Ignore()
	c.Jump(loop)

	c.Place(reap)
	c.Syscall("reap what has ended", unix.SYS_WAIT4, Int(-1), status, Const(unix.WNOHANG).As("WNOHANG"), Const(0)).Into(pid).Else(loop)
	c.Branch(pid.Value(), Equal, Const(0), loop)
	c.Branch(pid.Value(), NotEqual, program.Value(), reap)

	c.Place(ended)
	// The wait status: the signal is in the lowest seven bits, the exit code in the next byte.
	c.Load(code, 1, status, Const(0))
	c.And(code, code.Value(), Const(0x7f))
	c.Branch(code.Value(), NotEqual, Const(0), signalled)
	c.Load(code, 1, status, Const(1))
	c.Syscall("exit as the program did", unix.SYS_EXIT_GROUP, code.Value()).Ignore()
	c.Place(signalled)
	c.Add(code, code.Value(), Const(128))
	c.Syscall("exit with 128 and the program's signal", unix.SYS_EXIT_GROUP, code.Value()).Ignore()

	// A filter that forbids to wait for signals: nothing is forwarded then, but all is reaped.
	c.Place(blind)
	c.Branch(sig.Value(), Equal, Errno(unix.EINTR), loop)
	c.Branch(sig.Value(), Equal, Errno(unix.EAGAIN), loop)
	c.Syscall("wait for the end of a process", unix.SYS_WAIT4, Int(-1), status, Const(0), Const(0)).Into(pid).Else(signalled)
	c.Branch(pid.Value(), Equal, program.Value(), ended)
	c.Jump(blind)

	// And one that knows no close_range.
	c.Place(closing)
	c.Add(fd, Const(0), Const(0))
	one := c.NewLabel()
	c.Place(one)
	c.Syscall("close a descriptor", unix.SYS_CLOSE, fd.Value()).Ignore()
	c.Add(fd, fd.Value(), Const(1))
	c.Branch(fd.Value(), Below, Const(mostFDs), one)
	c.Jump(closed)
}

// mostFDs bounds the descriptors that are closed one by one.
const mostFDs = 4096
