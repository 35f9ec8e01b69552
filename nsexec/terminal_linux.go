package nsexec

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// A terminal is made by the process that it is for, of the container's own devpts, where a path of the container's could
// lead elsewhere at no point: /dev/pts is resolved within the root, has to be a devpts, and ptmx is opened in that very
// filesystem. The slave is what the kernel says is the other end (TIOCGPTPEER), never a path such as /dev/pts/0. The
// master goes to whoever started the process, through a socket.

// checkTerminal validates consoleSize, which counts with a terminal only (config.md).
func (c *compiler) checkTerminal() {
	p := c.spec.Process
	if !p.Terminal || p.ConsoleSize == nil {
		return
	}
	if p.ConsoleSize.Height > math.MaxUint16 || p.ConsoleSize.Width > math.MaxUint16 {
		c.invalid("process.consoleSize", "%d rows and %d columns, at most %d are possible", p.ConsoleSize.Height, p.ConsoleSize.Width, math.MaxUint16)
	}
}

// terminal is a pseudo-terminal that the plan has opened.
type terminal struct{ master, slave Slot }

// startTerminal emits the terminal of a container's first process, while the container is furnished: after its mounts
// and before its masks, so that no mask is undone by /dev/console (CVE-2025-52565).
func (c *compiler) startTerminal() {
	if !c.spec.Process.Terminal {
		return
	}
	t := c.openTerminal(c.root.Value())
	c.mountConsole(t)
	c.useTerminal(t, c.terminalSocket())
}

// joinTerminal emits the terminal of a process in a running container, whose root is the root by now.
func (c *compiler) joinTerminal() {
	if !c.spec.Process.Terminal {
		return
	}
	c.useTerminal(c.openTerminal(Int(unix.AT_FDCWD)), c.terminalSocket())
}

// terminalSocket is where the master goes: to a guard that writes a log, else to the program through the report socket.
func (c *compiler) terminalSocket() Arg {
	if c.prog.keptTerminal.value != 0 {
		c.prog.terminalEnd = c.file("terminal", nil)
		return c.prog.terminalEnd
	}
	c.prog.terminal = true
	return c.prog.report
}

// openTerminal emits the opening of a new terminal in the /dev/pts below root.
func (c *compiler) openTerminal(root Arg) terminal {
	t := terminal{c.NewSlot("master"), c.NewSlot("slave")}
	pts, st, magic := c.NewSlot("pts"), c.Zeroed(sizeofStatfs), c.NewSlot("devpts")
	wrong, special, retry := c.NewLabel(), c.NewLabel(), c.NewLabel()
	c.Place(retry)
	c.openat2("open the container's /dev/pts", root, c.Str("/dev/pts"), unix.O_PATH|unix.O_DIRECTORY,
		inRoot|unix.RESOLVE_NO_SYMLINKS).Into(pts).Else(special)
	c.Syscall("see what /dev/pts is", unix.SYS_FSTATFS, pts.Value(), st)
	c.Load(magic, 8, st, Const(0))
	c.Branch(magic.Value(), NotEqual, Const(unix.DEVPTS_SUPER_MAGIC).As("DEVPTS_SUPER_MAGIC"), wrong)
	c.openat2("open a new terminal", pts.Value(), c.Str("ptmx"), unix.O_RDWR|unix.O_NOCTTY, ownFiles).Into(t.master)
	c.Syscall("unlock the terminal", unix.SYS_IOCTL, t.master.Value(), Const(unix.TIOCSPTLCK).As("TIOCSPTLCK"), c.Zeroed(8))
	c.Syscall("open the terminal's other end", unix.SYS_IOCTL, t.master.Value(), Const(unix.TIOCGPTPEER).As("TIOCGPTPEER"),
		Const(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC).As("O_RDWR|O_NOCTTY|O_CLOEXEC")).Into(t.slave)
	if s := c.spec.Process.ConsoleSize; s != nil {
		// struct winsize: rows, columns, and the same in pixels.
		size := c.Words(Const(uint64(s.Height) | uint64(s.Width)<<16)).As(fmt.Sprintf("{%d, %d}", s.Height, s.Width))
		c.Syscall("set the terminal's size", unix.SYS_IOCTL, t.master.Value(), Const(unix.TIOCSWINSZ).As("TIOCSWINSZ"), size)
	}
	if uid := c.spec.Process.User.UID; uid != 0 {
		// The group is that of devpts's option gid, and so is the mode.
		c.Syscall("give the terminal to the user", unix.SYS_FCHOWN, t.slave.Value(), Const(uint64(uid)), Const(noID).As("-1"))
	}
	c.later(func() {
		c.Place(special)
		c.retry(pts, retry)
		c.Place(wrong)
		c.refuse("the container's /dev/pts is not a devpts")
	})
	return t
}

// mountConsole emits the terminal's appearance as /dev/console. Both the terminal and the place for it are open: no path
// leads there (CVE-2025-52565). A /dev that is not the plan's own, and a mount of the spec's own, are left as they are.
func (c *compiler) mountConsole(t terminal) {
	if !c.haveDev {
		return
	}
	for i := range c.mounts {
		if c.mounts[i].dest == "/dev/console" {
			return
		}
	}
	const label = "mount the terminal on /dev/console"
	at, clone, made, exists, again := c.temp("at"), c.temp("clone"), c.temp("made"), c.NewLabel(), c.NewLabel()
	c.Syscall(label, unix.SYS_MKNODAT, c.dev.Value(), c.Str("console"), Const(unix.S_IFREG|0o600).As("S_IFREG|0600"), Const(0)).Into(made).Else(exists)
	c.Place(again)
	c.openat2(label, c.dev.Value(), c.Str("console"), unix.O_PATH|unix.O_NOFOLLOW, beneath).Into(at)
	c.cloneMount(label, t.slave.Value(), clone, false)
	c.moveMount(label, clone.Value(), at.Value())
	c.done(at, clone)
	c.later(func() {
		c.Place(exists)
		c.Branch(made.Value(), Equal, Errno(unix.EEXIST), again)
		c.Jump(c.failTarget())
	})
}

// useTerminal emits the making of the standard streams and of a controlling terminal, and sends the master through the
// socket, behind the byte 'T'. The payload has started its session before.
func (c *compiler) useTerminal(t terminal, socket Arg) {
	c.handOver(t, socket)
	c.controlTerminal()
}

// handOver emits the part that any process can do that has the payload's files.
func (c *compiler) handOver(t terminal, socket Arg) {
	c.sendFile("hand the terminal over", socket, c.Str("T"), 1, t.master)
	for fd, name := range []string{"input", "output", "error"} {
		c.Syscall("make it the standard "+name, unix.SYS_DUP3, t.slave.Value(), Int(fd), Const(0))
	}
}

// controlTerminal emits the part of the leader of the session, which has the terminal as its input.
func (c *compiler) controlTerminal() {
	c.Syscall("make it the controlling terminal", unix.SYS_IOCTL, Const(0), Const(unix.TIOCSCTTY).As("TIOCSCTTY"), Const(0))
}

// sendFile emits a message of n bytes, the first of which says what it is, and one descriptor; SCM_RIGHTS, unix(7).
func (c *compiler) sendFile(label string, socket, data Arg, n int, fd Slot) StepRef {
	iov := c.Words(data, Int(n))
	control := c.Words(Const(20), Const(unix.SOL_SOCKET|unix.SCM_RIGHTS<<32), Const(0))
	message := c.Words(Const(0), Const(0), iov, Const(1), control, Const(24), Const(0)).As("{SCM_RIGHTS}")
	c.Store(4, control, Const(16), fd.Value())
	return c.Syscall(label, unix.SYS_SENDMSG, socket, message, Const(unix.MSG_NOSIGNAL).As("MSG_NOSIGNAL"))
}
