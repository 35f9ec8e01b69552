package nsexec

import (
	"golang.org/x/sys/unix"
)

// A container is two processes: the guard, which the importing program forks, and the payload, which the guard clones
// into the container's namespaces and which becomes the container's program.
//
//	program                    guard                             payload
//	  fork, exec of the plan --> pid 1 of an outer pid namespace
//	                             hygiene, death signal
//	                             clone3 -----------------------> set-up steps
//	  <- report: pidfd --------- closes all but report           READY or {errno, step} -> status
//	  reads status: READY, EOF                                   execve (closes status)
//	                             wait4 <------------------------ exit
//	  <- report: wait status --- exit
//
// When the program dies, the kernel kills the guard (death signal), and with it everything in its pid namespace.
//
// A guard with a log does not just wait: see keeper_linux.go. Neither does a keeper, the guard of a detached container,
// which is cloned once more so that it is nobody's child, has no death signal, and waits for the program to say that it
// has noted the container.
//
//	program                    first process              keeper                     payload
//	  fork, exec of the plan --> clone3 ------------------> own cgroup
//	  <- report: pidfd --------- exit                       clone3 ------------------> set-up steps
//	  <- report: pidfd ------------------------------------ reads report
//	  reads status: READY, EOF                                                         execve
//	  notes it; report: "C" ------------------------------> loop: output -> log
//	                                                        wait4 <------------------- exit
//	                                                        exit record, exit
//
// Where the container does not get a pid namespace of its own, the guard is an ordinary process that watches the report
// socket: when the program's end closes, it writes cgroup.kill and kills the payload.

// statusReady is the step number that a payload reports when its set-up is done.
const statusReady = 1 << 32

// Sizes of what goes over status and report.
const (
	statusSize = 16 // result of the failing call and number of the step, or 0 and statusReady
	reportSize = 16 // "P", pid
	rusageSize = 144
	exitSize   = 8 + rusageSize // wait status, struct rusage
)

// guard emits the whole plan: the guard's part, and the payload's by calling payload.
func (c *compiler) guard(payload func()) {
	nested := c.ownPIDNamespace()
	c.prog.nested = nested
	c.prog.detached = c.opts.Keeper != nil
	// What the guard keeps comes first, so that it can close all the rest at once.
	c.prog.report = c.file("report", nil)
	var files keepFiles
	files.inherit(c)
	if !nested && c.opts.CgroupKill != nil {
		c.prog.kill = c.file("cgroup.kill", c.opts.CgroupKill)
	}
	c.prog.status = c.file("status", nil)
	if c.mapped() {
		c.prog.sync = c.file("sync", nil)
	}

	child, failed := c.NewLabel(), c.NewLabel()
	c.FailTo(failed)
	c.hygiene()
	switch {
	case c.prog.detached:
		c.detach()
	case nested:
		c.dieWithParent()
	}
	c.joinBeforeClone()

	pid, pidfd := c.NewSlot("payload"), c.NewSlot("pidfd")
	c.clone(pid, pidfd)
	c.Branch(pid.Value(), Equal, Const(0), child)

	c.supervise(pid, pidfd, child, files)

	c.Place(child)
	c.FailTo(failed)
	c.Syscall("start a session", unix.SYS_SETSID)
	if c.mapped() {
		c.awaitMappings()
	}
	payload()

	c.Place(failed)
	c.Syscall("report the error", unix.SYS_WRITE, c.prog.status, slotResult.Addr(), Const(statusSize)).Ignore()
	c.Syscall("exit", unix.SYS_EXIT_GROUP, Const(125)).Ignore()
}

// hygiene rids the guard, and the payload that inherits it, of what the importing program had: descriptors, signal
// dispositions and mask, controlling terminal, core dumps.
func (c *compiler) hygiene() {
	// What else follows in the plan is not known yet: setFileCount fills it in.
	c.hygieneStep = len(c.steps)
	c.Syscall("close inherited descriptors", unix.SYS_CLOSE_RANGE, Const(0), Const(maxFD), Const(0))
	c.Syscall("become undumpable", unix.SYS_PRCTL, Const(unix.PR_SET_DUMPABLE).As("PR_SET_DUMPABLE"), Const(0))
	c.Syscall("name the guard", unix.SYS_PRCTL, Const(unix.PR_SET_NAME).As("PR_SET_NAME"), c.Str("coracle"))
	c.Syscall("start a session", unix.SYS_SETSID)

	// A signal that the importing program ignores stays ignored across execve unless it is reset.
	sig, loop := c.NewSlot("sig"), c.NewLabel()
	c.Add(sig, Const(1), Const(0))
	c.Place(loop)
	c.Syscall("reset a signal", unix.SYS_RT_SIGACTION, sig.Value(), c.Zeroed(32), Const(0), Const(8)).Ignore()
	c.Add(sig, sig.Value(), Const(1))
	c.Branch(sig.Value(), Below, Const(65), loop)
	c.Syscall("unblock all signals", unix.SYS_RT_SIGPROCMASK, Const(unix.SIG_SETMASK).As("SIG_SETMASK"), c.Zeroed(8), Const(0), Const(8))
}

const maxFD = 1<<32 - 1

// setFileCount completes the hygiene when all files of the plan are known.
func (c *compiler) setFileCount() {
	c.steps[c.hygieneStep].args[0] = Int(firstFile + len(c.files))
}

// dieWithParent makes the kernel kill the guard when the thread that forked it ends. That thread may have ended before
// prctl: then the program's end of the report socket is closed by now (a process closes its files before its last
// thread hands over its children), or will be reparented and signalled again.
func (c *compiler) dieWithParent() {
	c.Syscall("die with the program", unix.SYS_PRCTL, Const(unix.PR_SET_PDEATHSIG).As("PR_SET_PDEATHSIG"), Const(uint64(unix.SIGKILL)).As("SIGKILL"))
	c.send("see whether the program lives", c.Str("A"), 1)
}

// send writes n bytes to the report socket.
func (c *compiler) send(label string, data Arg, n int) StepRef {
	return c.Syscall(label, unix.SYS_SENDTO, c.prog.report, data, Int(n), Const(unix.MSG_NOSIGNAL).As("MSG_NOSIGNAL"), Const(0), Const(0))
}

const wordsOfCloneArgs = 11 // of struct clone_args, clone3(2)

// clone creates the payload.
func (c *compiler) clone(pid, pidfd Slot) {
	c.cloneWith("create the container's process", c.cloneFlags()|unix.CLONE_PIDFD, pid, pidfd)
}

func (c *compiler) cloneWith(label string, flags uint64, pid, pidfd Slot) {
	cgroup := Const(0)
	if c.opts.Cgroup != nil {
		flags |= unix.CLONE_INTO_CGROUP
		cgroup = c.file("cgroup", c.opts.Cgroup)
	}
	args := c.Words(
		Const(flags), pidfd.Addr(), Const(0), Const(0), Const(uint64(unix.SIGCHLD)),
		Const(0), Const(0), Const(0), Const(0), Const(0), cgroup,
	).As("{" + cloneFlagNames(flags) + "}")
	c.Syscall(label, unix.SYS_CLONE3, args, Const(8*wordsOfCloneArgs)).Into(pid)
}

// supervise is what the guard does from the clone on: report the payload's pidfd, keep its output if it has to, wait,
// report how it ended.
func (c *compiler) supervise(pid, pidfd Slot, child Label, files keepFiles) {
	nested, loops := c.prog.nested, c.opts.loops()
	died := c.NewLabel()
	c.FailTo(died)
	data, size := c.Str("P"), 1
	if c.prog.joins {
		// With the pid behind it: a short command has ended before the program can find it out.
		data, size = c.Bytes(append([]byte("P"), make([]byte, reportSize-1)...)), reportSize
		c.Store(8, data, Const(reportSize-8), pid.Value())
	}
	report := c.sendFile("report the container's process", c.prog.report, data, size, pidfd)
	lost, wait := c.NewLabel(), c.NewLabel()
	if !nested {
		report.Else(lost)
	}
	if nested && !loops {
		c.Syscall("close all but the report", unix.SYS_CLOSE_RANGE, c.prog.status, Const(maxFD), Const(0))
	} else {
		c.Syscall("keep the pidfd, close the status", unix.SYS_DUP3, pidfd.Value(), c.prog.status, Const(unix.O_CLOEXEC).As("O_CLOEXEC"))
		c.Syscall("close what the guard does not need", unix.SYS_CLOSE_RANGE, c.prog.status.Plus(1), Const(maxFD), Const(0))
	}
	c.Syscall("close the standard streams", unix.SYS_CLOSE_RANGE, Const(0), Const(2), Const(0))
	if loops && !c.prog.joins {
		// A keeper's memory counts, as there may be a thousand. What follows child is the payload's.
		from := Arg{kind: argText, value: uint64(child), text: "the payload's steps"}
		c.Syscall("give up the payload's steps", unix.SYS_MUNMAP, from, Arg{kind: argTextSize, value: uint64(child), text: "their size"}).Ignore()
	}
	if c.prog.detached {
		c.awaitRelease(files.note, c.prog.status)
	}
	var k *keeping
	switch {
	case loops:
		k = c.keep(files, c.prog.status)
	case !nested:
		c.awaitEnd(c.prog.status)
	}
	c.Place(wait)
	exit := c.Zeroed(exitSize)
	c.Syscall("wait for the container's process", unix.SYS_WAIT4, pid.Value(), exit, Const(unix.WALL).As("__WALL"), exit.Plus(8))
	if c.prog.detached {
		k.leaveRecord(exit)
	} else {
		c.send("report how it ended", exit, exitSize).Ignore()
	}
	c.Place(died)
	c.Syscall("exit", unix.SYS_EXIT_GROUP, Const(0)).Ignore()
	if !nested {
		// The program has ended or given up. What is not in the guard's pid namespace does not end with the guard, and a
		// zombie that is left to the host's init could hold up the end of the container that it is in.
		c.Place(lost)
		c.Syscall("kill the process that nobody wants", unix.SYS_PIDFD_SEND_SIGNAL, pidfd.Value(), Const(uint64(unix.SIGKILL)).As("SIGKILL"), Const(0), Const(0)).Ignore()
		c.Jump(wait)
	}
}

// awaitEnd waits until the payload ends or the program does, and then ends the rest of the container.
func (c *compiler) awaitEnd(pidfd Arg) {
	// struct pollfd: the pidfd becomes readable when the process ends; the socket reports POLLHUP unasked.
	const pollIn = unix.POLLIN << 32
	fds := c.Words(Const(pidfd.value|pollIn), Const(c.prog.report.value)).As("{pidfd: POLLIN, report: POLLHUP}")
	c.Syscall("wait for the container or the program to end", unix.SYS_PPOLL, fds, Const(2), Const(0), Const(0), Const(8)).Ignore()
	c.killPayload(pidfd)
}

// awaitMappings makes the payload wait until the program has written the mappings of its user namespace.
func (c *compiler) awaitMappings() {
	n, mapped := c.NewSlot("n"), c.NewLabel()
	c.Syscall("wait for the user namespace's mappings", unix.SYS_READ, c.prog.sync, c.Zeroed(8), Const(1)).Into(n)
	c.Branch(n.Value(), Equal, Const(1), mapped)
	c.Syscall("exit: the program gave up", unix.SYS_EXIT_GROUP, Const(125)).Ignore()
	c.Place(mapped)
}

// ready emits the message that the set-up is done. What may still fail is the execve.
func (c *compiler) ready() {
	c.Syscall("report READY", unix.SYS_WRITE, c.prog.status, c.Words(Const(0), Const(statusReady)).As("READY"), Const(statusSize))
}
