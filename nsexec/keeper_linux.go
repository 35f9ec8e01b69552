package nsexec

import (
	"math"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Sizes of what the keep loop moves. A buffer that is never used takes no memory.
const (
	logHeaderSize = 40
	logReadSize   = 16 << 10
	// drainReads bounds what is read after the program's end: more than the largest pipe holds, in packets of a page.
	drainReads = 1024
	// fullPause is how long the guard waits before it tries a full disk again, in nanoseconds.
	fullPause = 100e6
)

const logMagic = 'C' | 'L'<<8 | 'R'<<16 | '1'<<24

// Streams of log records.
const (
	logStdout = 1
	logStderr = 2
	logNote   = 3
)

// Kinds of notes.
const (
	noteDropped = 1
	noteBlocked = 2
)

// loops reports whether the guard does more than wait.
func (o *Options) loops() bool { return o.Log != nil || o.Keeper != nil || o.Input != nil }

// keepFiles are the descriptors of the loop.
type keepFiles struct {
	logDir, logFile, stdout, stderr Arg
	record, memory, note            Arg
	control, stdin, pipe            Arg
	terminal                        Arg // a socket, and what came through it from then on
}

// inherit makes room for the files of the loop. They come before all that the guard closes.
func (k *keepFiles) inherit(c *compiler) {
	file := func(name string, f *os.File) Arg {
		if f == nil {
			return Arg{} // descriptor 0 is never one of them
		}
		return c.file(name, f)
	}
	if l := c.opts.Log; l != nil {
		k.logDir, k.logFile = file("log directory", l.Dir), file("log", l.File)
		k.stdout, k.stderr = file("output", l.Stdout), file("errors", l.Stderr)
	}
	if kp := c.opts.Keeper; kp != nil {
		k.record, k.memory, k.note = file("record", kp.Record), file("memory events", kp.MemoryEvents), file("note", kp.Note)
		for i, f := range kp.Hold {
			file("held "+strconv.Itoa(i), f)
		}
	}
	if in := c.opts.Input; in != nil {
		k.control, k.stdin, k.pipe = file("control", in.Control), file("input", in.Stdin), file("program's input", in.Pipe)
	}
	if c.opts.Log != nil && c.spec.Process.Terminal {
		c.prog.keptTerminal = c.file("guard's end for the terminal", nil)
		k.terminal = c.prog.keptTerminal
	}
}

// detach emits the birth of the keeper: the process that the program forked clones it and exits, so that the keeper is
// nobody's child and nobody has to reap it. The importing program learns its pidfd through the report socket.
func (c *compiler) detach() {
	flags, cgroup := uint64(unix.CLONE_PIDFD), Const(0)
	if c.ownPIDNamespace() {
		flags |= unix.CLONE_NEWPID
	}
	if g := c.opts.Keeper.Cgroup; g != nil {
		flags |= unix.CLONE_INTO_CGROUP
		cgroup = c.file("keeper's cgroup", g)
	}
	pid, pidfd, keeper := c.NewSlot("keeper"), c.NewSlot("keeper's pidfd"), c.NewLabel()
	args := c.Words(
		Const(flags), pidfd.Addr(), Const(0), Const(0), Const(uint64(unix.SIGCHLD)),
		Const(0), Const(0), Const(0), Const(0), Const(0), cgroup,
	).As("{" + cloneFlagNames(flags) + "}")
	c.Syscall("create the keeper", unix.SYS_CLONE3, args, Const(8*wordsOfCloneArgs)).Into(pid)
	c.Branch(pid.Value(), Equal, Const(0), keeper)
	c.sendFile("report the keeper", c.prog.report, c.Str("K"), 1, pidfd)
	c.Syscall("exit: nobody is the keeper's parent", unix.SYS_EXIT_GROUP, Const(0))

	c.Place(keeper)
	c.Syscall("start a session", unix.SYS_SETSID)
	for _, f := range c.opts.Keeper.Tasks {
		if f != nil {
			c.Syscall("enter the keepers' cgroup of "+f.Name(), unix.SYS_WRITE, c.file("keeper's "+f.Name(), f), c.Str("0"), Const(1))
		}
	}
}

// awaitRelease makes the keeper wait until the program has noted that it exists. If the program dies before, or gives
// up, nobody would know: then the container ends.
func (c *compiler) awaitRelease(note, pidfd Arg) {
	n, released := c.NewSlot("released"), c.NewLabel()
	// The container must not wait for memory in the keeper's place. Lowering needs CAP_SYS_RESOURCE.
	fd, no := c.temp("fd"), c.NewLabel()
	c.Syscall("open our badness", unix.SYS_OPENAT, Int(unix.AT_FDCWD), c.Str("/proc/self/oom_score_adj"),
		Const(unix.O_WRONLY|unix.O_CLOEXEC).As("O_WRONLY|O_CLOEXEC"), Const(0)).Into(fd).Else(no)
	c.Syscall("be the last to go when memory is short", unix.SYS_WRITE, fd.Value(), c.Str("-999"), Const(4)).Ignore()
	c.Syscall("close our badness", unix.SYS_CLOSE, fd.Value()).Ignore()
	c.Place(no)
	c.Syscall("wait for the program to note us", unix.SYS_READ, c.prog.report, c.Zeroed(8), Const(1)).Into(n).Ignore()
	c.Branch(n.Value(), Equal, Const(1), released)
	if note.value != 0 {
		st, names, unknown := c.Zeroed(sizeofStatx), c.temp("names"), c.NewLabel()
		c.statx("see whether we were noted", note, unix.STATX_NLINK, st).Else(unknown)
		c.Load(names, 4, st, Const(statxNlink))
		c.Branch(names.Value(), Equal, Const(0), released)
		c.Place(unknown)
	}
	c.killPayload(pidfd)
	c.Place(released)
	if note.value != 0 {
		c.Syscall("close the note", unix.SYS_CLOSE, note).Ignore()
	}
	c.Syscall("close the report", unix.SYS_CLOSE, c.prog.report).Ignore()
}

// killPayload ends what is in the container.
func (c *compiler) killPayload(pidfd Arg) {
	if c.prog.kill.value != 0 {
		c.Syscall("kill what is left in the cgroup", unix.SYS_WRITE, c.prog.kill, c.Str("1"), Const(1)).Ignore()
	}
	c.Syscall("kill the container's process", unix.SYS_PIDFD_SEND_SIGNAL, pidfd, Const(uint64(unix.SIGKILL)).As("SIGKILL"), Const(0), Const(0)).Ignore()
}

// keeping is what the steps of the loop share.
type keeping struct {
	*compiler
	keepFiles
	pidfd Arg

	fds      Arg // struct pollfd of each source, see poll(2)
	sources  int
	next     Label // after a source was served
	at       Slot  // where the log ends
	seq      Slot  // of the next record
	ended    Slot  // the program has ended
	drained  Slot  // reads since then
	open     Slot  // the terminal has come
	counters Arg   // of the record: dropped bytes, dropped reads, whether the disk is full
	finish   Label
}

// keep emits the loop of a guard that writes a log or takes messages, until the program has ended and its output was
// read. What the program's output pipes, the log file and the FIFOs are is known; nothing is allocated.
func (c *compiler) keep(files keepFiles, pidfd Arg) *keeping {
	k := &keeping{compiler: c, keepFiles: files, pidfd: pidfd}
	k.at, k.seq, k.ended, k.drained = c.NewSlot("log end"), c.NewSlot("sequence"), c.NewSlot("ended"), c.NewSlot("drained")
	k.counters = c.Zeroed(recordCounters)
	k.finish = c.NewLabel()
	if files.terminal.value != 0 {
		k.open = c.NewSlot("terminal open")
	}
	loop := c.NewLabel()

	var polled []Arg
	pollIn := func(fd Arg) int {
		polled = append(polled, fd)
		return len(polled) - 1
	}
	end := pollIn(pidfd)
	report, control, stdin, sink, terminal, stdout, stderr := -1, -1, -1, -1, -1, -1, -1
	if !c.prog.detached && !c.prog.nested {
		report = pollIn(c.prog.report) // POLLHUP: the program is dead
	}
	if files.control.value != 0 {
		control = pollIn(files.control)
	}
	if l := c.opts.Log; l != nil {
		c.Add(k.at, Const(uint64(l.Offset)), Const(0))
		c.Add(k.seq, Const(l.Sequence), Const(0))
		if l.Stdout != nil {
			stdout = pollIn(files.stdout)
			k.nonblocking(files.stdout)
		}
		if l.Stderr != nil {
			stderr = pollIn(files.stderr)
			k.nonblocking(files.stderr)
		}
	}
	if control >= 0 {
		k.nonblocking(files.control)
	}
	switch {
	case files.terminal.value != 0:
		terminal = pollIn(files.terminal)
		if files.stdin.value != 0 {
			stdin, sink = pollIn(Int(-1)), terminal // until the terminal has come
			k.nonblocking(files.stdin)
		}
	case files.pipe.value != 0:
		stdin, sink = pollIn(files.stdin), pollIn(Int(-1))
		k.nonblocking(files.stdin)
		k.nonblocking(files.pipe)
		// A program that closes its input is no reason to die.
		c.Syscall("ignore SIGPIPE", unix.SYS_RT_SIGACTION, Const(uint64(unix.SIGPIPE)).As("SIGPIPE"),
			c.Words(Const(1), Const(0), Const(0), Const(0)).As("{SIG_IGN}"), Const(0), Const(8))
	}
	words := make([]Arg, len(polled))
	for i, fd := range polled {
		words[i] = Const(uint64(uint32(fd.value)) | unix.POLLIN<<32)
	}
	if sink >= 0 && sink != terminal {
		words[sink] = Const(math.MaxUint32 | unix.POLLOUT<<32)
	}
	k.fds, k.sources = c.Words(words...).As("{POLLIN...}"), len(polled)
	timeout, ready, revents := c.NewSlot("timeout"), c.NewSlot("ready"), c.NewSlot("revents")

	c.Place(loop)
	c.Syscall("wait for output, messages or the end", unix.SYS_PPOLL, k.fds, Int(k.sources), timeout.Value(), Const(0), Const(8)).Into(ready).Ignore()
	going := c.NewLabel()
	c.Branch(k.ended.Value(), Equal, Const(0), going)
	c.Branch(ready.Value(), Equal, Const(0), k.finish)
	c.Place(going)
	var input *typing
	if stdin >= 0 {
		to := files.pipe
		if terminal >= 0 {
			to = files.terminal
		}
		input = &typing{source: stdin, sink: sink, to: to, push: c.NewLabel(), from: c.NewSlot("from"), left: c.NewSlot("left"), over: c.NewSlot("over"), buffer: c.Zeroed(inputSize)}
		k.write(input)
	}

	// serve emits the steps for one source, which are passed over while there is nothing of it.
	serve := func(i int, emit func()) {
		if i < 0 {
			return
		}
		skip := c.NewLabel()
		c.Load(revents, 4, k.fds, Const(uint64(8*i+4)))
		c.And(revents, revents.Value(), Const(0xffff0000))
		c.Branch(revents.Value(), Equal, Const(0), skip)
		k.next = skip
		emit()
		c.Place(skip)
	}
	serve(report, func() { k.killPayload(pidfd); k.unwatch(report) })
	serve(end, func() {
		c.Add(k.ended, Const(1), Const(0))
		c.Add(timeout, c.Words(Const(0), Const(0)).As("{0, 0}"), Const(0))
		k.unwatch(end)
		if c.prog.kill.value != 0 {
			k.killPayload(pidfd)
		}
	})
	serve(control, func() { k.message(input) })
	out := &logWriter{keeping: k}
	serve(terminal, func() {
		come := c.NewLabel()
		c.Branch(k.open.Value(), NotEqual, Const(0), come)
		k.receiveTerminal(terminal, stdin)
		c.Place(come)
		out.begin(terminal, files.terminal, logStdout)
	})
	serve(stdin, func() { k.read(input) })
	serve(stdout, func() { out.begin(stdout, files.stdout, logStdout) })
	serve(stderr, func() { out.begin(stderr, files.stderr, logStderr) })
	c.Jump(loop)
	out.emit()
	c.Place(k.finish)
	return k
}

// nonblocking makes a read of nothing an error: who else has the pipe may have read it. The other end is not affected.
func (k *keeping) nonblocking(fd Arg) {
	k.Syscall("never wait in a read", unix.SYS_FCNTL, fd, Const(unix.F_SETFL).As("F_SETFL"), Const(unix.O_NONBLOCK).As("O_NONBLOCK"))
}

// watch takes a source into the poll again.
func (k *keeping) watch(i int, fd Arg) { k.Store(4, k.fds, Const(uint64(8*i)), fd) }

// events changes what a source is watched for, and not what was seen: that is still to be looked at.
func (k *keeping) events(i int, events uint64) {
	k.Store(1, k.fds, Const(uint64(8*i+4)), Const(events))
}

// unwatch takes a source out of the poll, and forgets what was seen of it in this turn.
func (k *keeping) unwatch(i int) {
	k.Store(4, k.fds, Const(uint64(8*i)), Int(-1))
	k.Store(1, k.fds, Const(uint64(8*i+6)), Const(0))
}

// message emits the reading of one message.
func (k *keeping) message(t *typing) {
	c := k.compiler
	m, n, kind := c.Zeroed(ControlSize), c.NewSlot("message"), c.NewSlot("kind")
	c.Syscall("read a message", unix.SYS_READ, k.control, m, Const(ControlSize)).Into(n).Else(k.next)
	c.Branch(n.Value(), NotEqual, Const(ControlSize), k.next)
	c.Load(kind, 4, m, Const(0))
	other := c.NewLabel()
	c.Branch(kind.Value(), NotEqual, Const(ControlCloseStdin), other)
	if t != nil {
		if k.terminal.value != 0 {
			c.Branch(k.open.Value(), Equal, Const(0), k.next)
		}
		c.Add(t.over, Const(1), Const(0))
		c.Jump(t.push)
	}
	c.Place(other)
	if k.terminal.value != 0 {
		c.Branch(kind.Value(), NotEqual, Const(ControlResize), k.next)
		c.Branch(k.open.Value(), Equal, Const(0), k.next)
		c.Syscall("resize the terminal", unix.SYS_IOCTL, k.terminal, Const(unix.TIOCSWINSZ).As("TIOCSWINSZ"), m.Plus(8)).Ignore()
	}
}

// receiveTerminal emits the arrival of the terminal's master from the payload, which takes the place of the socket.
func (k *keeping) receiveTerminal(source, stdin int) {
	c := k.compiler
	control := c.Zeroed(24)
	iov := c.Words(c.Zeroed(8), Const(1))
	message := c.Words(Const(0), Const(0), iov, Const(1), control, Const(24), Const(0)).As("{SCM_RIGHTS}")
	n, size, master := c.NewSlot("came"), c.NewSlot("control size"), c.NewSlot("master")
	failed := c.NewLabel()
	c.Syscall("receive the terminal", unix.SYS_RECVMSG, k.terminal, message, Const(unix.MSG_CMSG_CLOEXEC).As("MSG_CMSG_CLOEXEC")).Into(n).Else(failed)
	c.Branch(n.Value(), NotEqual, Const(1), failed)
	c.Load(size, 8, control, Const(0))
	c.Branch(size.Value(), NotEqual, Const(20), failed)
	c.Load(master, 4, control, Const(16))
	c.Syscall("keep the terminal", unix.SYS_DUP3, master.Value(), k.terminal, Const(unix.O_CLOEXEC).As("O_CLOEXEC")).Else(failed)
	c.Syscall("close the second descriptor", unix.SYS_CLOSE, master.Value()).Ignore()
	k.nonblocking(k.terminal)
	c.Add(k.open, Const(1), Const(0))
	if stdin >= 0 {
		k.watch(stdin, k.stdin)
	}
	c.Jump(k.next) // it may have nothing to say yet
	c.Place(failed)
	k.unwatch(source)
	c.Jump(k.next)
}

// inputSize is how much input is read at once: less than the kernel takes of a line.
const inputSize = 1024

// typing is the way of input from the FIFO to the terminal or the pipe that the program reads. While that takes no more,
// nothing is read: who types waits, and nobody else.
type typing struct {
	source     int   // the FIFO
	sink       int   // the terminal, or the pipe, which is watched only while it takes no more
	to         Arg   // its descriptor
	push       Label // see write
	from, left Slot  // what it has not taken yet
	over       Slot  // the input is to end behind what is in the FIFO
	buffer     Arg
}

// write emits the sink's part, at the beginning of every turn of the loop.
func (k *keeping) write(t *typing) {
	c, written := k.compiler, k.NewSlot("typed")
	none, refused, wait := c.NewLabel(), c.NewLabel(), c.NewLabel()
	isTerminal := k.terminal.value != 0
	closeInput := func() {
		c.Syscall("close the program's input", unix.SYS_CLOSE, t.to).Ignore()
		c.Syscall("take no more input", unix.SYS_CLOSE, k.stdin).Ignore()
		k.unwatch(t.source)
		k.unwatch(t.sink)
	}
	c.Place(t.push)
	c.Branch(t.left.Value(), Equal, Const(0), none)
	c.Syscall("type", unix.SYS_WRITE, t.to, t.from.Value(), t.left.Value()).Into(written).Else(refused)
	c.Add(t.from, t.from.Value(), written.Value())
	c.Sub(t.left, t.left.Value(), written.Value())
	c.Branch(t.left.Value(), NotEqual, Const(0), wait)
	k.watch(t.source, k.stdin)
	if isTerminal {
		k.events(t.sink, unix.POLLIN)
	} else {
		k.unwatch(t.sink)
	}
	c.Jump(none)
	c.Place(refused)
	c.Branch(written.Value(), Equal, Errno(unix.EAGAIN), wait)
	c.Add(t.left, Const(0), Const(0)) // nobody reads any more
	if !isTerminal {
		closeInput()
	}
	c.Jump(none)
	c.Place(wait)
	if isTerminal {
		k.events(t.sink, unix.POLLIN|unix.POLLOUT)
	} else {
		k.watch(t.sink, t.to)
	}
	c.Place(none)

	on, empty := c.NewLabel(), c.NewLabel()
	c.Branch(t.over.Value(), Equal, Const(0), on)
	c.Branch(t.left.Value(), NotEqual, Const(0), on)
	n := k.temp("n")
	c.Syscall("read the last input", unix.SYS_READ, k.stdin, t.buffer, Const(inputSize)).Into(n).Else(empty)
	k.typeOn(t, n)
	c.Place(empty)
	if isTerminal {
		const endOfFile = "\x04" // Ctrl-D
		c.Syscall("end the program's input", unix.SYS_WRITE, t.to, c.Str(endOfFile), Const(1)).Ignore()
	} else {
		closeInput()
	}
	c.Add(t.over, Const(0), Const(0))
	c.Place(on)
}

// read emits the FIFO's part.
func (k *keeping) read(t *typing) {
	c, n := k.compiler, k.temp("n")
	c.Syscall("read input", unix.SYS_READ, k.stdin, t.buffer, Const(inputSize)).Into(n).Else(k.next)
	k.typeOn(t, n)
}

// typeOn emits the typing of n bytes in the buffer.
func (k *keeping) typeOn(t *typing, n Slot) {
	c := k.compiler
	c.Add(t.left, n.Value(), Const(0))
	c.Add(t.from, t.buffer, Const(0))
	k.unwatch(t.source)
	c.Jump(t.push)
}

// logWriter emits the writing of records: once, for all streams, since there are no subroutines. begin notes where it
// goes on.
type logWriter struct {
	*keeping
	write   Label
	entries []logEntry
	fd      Slot // the stream's descriptor
	entry   Slot // offset of its pollfd
	head    Slot // first word of its records' headers
}

type logEntry struct {
	stream uint64
	next   Label
}

func (w *logWriter) begin(source int, fd Arg, stream uint64) {
	c := w.compiler
	if len(w.entries) == 0 {
		w.write, w.fd, w.entry, w.head = c.NewLabel(), c.NewSlot("stream"), c.NewSlot("entry"), c.NewSlot("head")
	}
	c.Add(w.fd, fd, Const(0))
	c.Add(w.entry, Const(uint64(8*source)), Const(0))
	c.Add(w.head, Const(logMagic|stream<<32), Const(0))
	c.Jump(w.write)
	w.entries = append(w.entries, logEntry{stream, w.next})
}

// emit lays out what begin jumps to.
func (w *logWriter) emit() {
	if len(w.entries) == 0 {
		return
	}
	c, l := w.compiler, w.opts.Log
	var (
		n, total, written    = c.NewSlot("n"), c.NewSlot("size"), c.NewSlot("written")
		full                 = c.NewSlot("full")
		bytes, reads         = c.NewSlot("dropped bytes"), c.NewSlot("dropped reads") // not noted in the log yet
		back, ended, again   = c.NewLabel(), c.NewLabel(), c.NewLabel()
		record, drop, failed = c.NewLabel(), c.NewLabel(), c.NewLabel()
		live, rotated        = c.NewLabel(), c.NewLabel()
	)
	const noteSize = logHeaderSize + 24
	buffer, header, note := c.Zeroed(logReadSize), c.Zeroed(logHeaderSize), c.Zeroed(noteSize)
	vector := c.Words(note, Const(noteSize), header, Const(logHeaderSize), buffer, Const(0))
	withNote, alone := vector.As("{note, header, output}"), vector.Plus(16).As("{header, output}")
	lengthAt := Const(40) // of the output, in the vector
	what, parts, number := c.NewSlot("vector"), c.NewSlot("parts"), c.NewSlot("number")

	c.Place(w.write)
	c.Syscall("read output", unix.SYS_READ, w.fd.Value(), buffer, Const(logReadSize)).Into(n).Else(failed)
	c.Branch(n.Value(), Equal, Const(0), ended)
	c.Branch(w.ended.Value(), Equal, Const(0), live)
	c.Add(w.drained, w.drained.Value(), Const(1))
	c.Branch(w.drained.Value(), AtLeast, Const(drainReads), w.finish)
	c.Place(live)
	c.Store(8, header, Const(0), w.head.Value())
	c.Store(4, header, Const(8), n.Value())
	c.Store(8, vector, lengthAt, n.Value())
	c.Syscall("when was it", unix.SYS_CLOCK_GETTIME, Const(unix.CLOCK_REALTIME).As("CLOCK_REALTIME"), header.Plus(24)).Ignore()

	c.Place(again)
	c.Add(what, alone, Const(0))
	c.Add(parts, Const(2), Const(0))
	c.Add(total, n.Value(), Const(logHeaderSize))
	c.Add(number, w.seq.Value(), Const(0))
	c.Branch(full.Value(), Equal, Const(0), record)
	// The disk was full. If it is not any more, the log says what is missing: both records are written, or none, lest a
	// note takes the room of what comes next.
	kind, lost := c.NewSlot("note"), c.NewLabel()
	c.Add(kind, Const(noteDropped), Const(0))
	c.Branch(reads.Value(), NotEqual, Const(0), lost)
	c.Add(kind, Const(noteBlocked), Const(0))
	c.Place(lost)
	c.Store(8, note, Const(0), Const(logMagic|logNote<<32))
	c.Store(4, note, Const(8), Const(noteSize-logHeaderSize))
	c.Store(8, note, Const(16), number.Value())
	for i, s := range []Slot{kind, bytes, reads} {
		c.Store(8, note, Const(uint64(logHeaderSize+8*i)), s.Value())
	}
	c.Syscall("when did the log go on", unix.SYS_CLOCK_GETTIME, Const(unix.CLOCK_REALTIME).As("CLOCK_REALTIME"), note.Plus(24)).Ignore()
	c.Add(what, withNote, Const(0))
	c.Add(parts, Const(3), Const(0))
	c.Add(total, total.Value(), Const(noteSize))
	c.Add(number, number.Value(), Const(1))

	c.Place(record)
	c.Store(8, header, Const(16), number.Value())
	c.Syscall("write a record", unix.SYS_PWRITEV, w.logFile, what.Value(), parts.Value(), w.at.Value(), Const(0)).Into(written).Ignore()
	rollBack, good := c.NewLabel(), c.NewLabel()
	c.Branch(written.Value(), NotEqual, total.Value(), rollBack)
	c.Add(w.at, w.at.Value(), total.Value())
	c.Add(w.seq, number.Value(), Const(1))
	c.Branch(full.Value(), Equal, Const(0), good)
	for _, s := range []Slot{full, bytes, reads} {
		c.Add(s, Const(0), Const(0))
	}
	w.setFull(Const(0))
	c.Place(good)
	if l.MaxSize > 0 {
		c.Branch(w.at.Value(), Below, Const(uint64(l.MaxSize)), rotated)
		w.rotate()
	}
	c.Place(rotated)

	c.Place(back)
	for _, e := range w.entries[1:] {
		c.Branch(w.head.Value(), Equal, Const(logMagic|e.stream<<32), e.next)
	}
	c.Jump(w.entries[0].next)

	c.Place(failed)
	c.Branch(n.Value(), Equal, Errno(unix.EAGAIN), back)
	c.Branch(n.Value(), Equal, Errno(unix.EINTR), back)
	c.Place(ended)
	c.Store(4, w.fds, w.entry.Value(), Int(-1))
	c.Jump(back)

	// Readers must not find half a record.
	c.Place(rollBack)
	c.Syscall("take back half a record", unix.SYS_FTRUNCATE, w.logFile, w.at.Value()).Ignore()
	if l.Block {
		c.Branch(w.ended.Value(), NotEqual, Const(0), drop) // nobody is left to wait
		// Room may come. What else can go wrong does not get better.
		room := c.NewLabel()
		for _, e := range []unix.Errno{unix.ENOSPC, unix.EDQUOT} {
			c.Branch(written.Value(), Equal, Errno(e), room)
		}
		c.Branch(written.Value(), Less, Const(0), drop)
		c.Place(room)
		known := c.NewLabel()
		c.Branch(full.Value(), NotEqual, Const(0), known)
		c.Add(full, Const(1), Const(0))
		w.setFull(Const(1))
		c.Place(known)
		waited := []Arg{Const(w.pidfd.value | unix.POLLIN<<32)}
		if !c.prog.detached && !c.prog.nested {
			waited = append(waited, Const(c.prog.report.value)) // POLLHUP: the program is dead
		}
		pollEnd := c.Words(waited...).As("{pidfd: POLLIN...}")
		over, pause := c.NewSlot("over"), c.Zeroed(16)
		c.Store(8, pause, Const(0), Const(0)) // the kernel changes it
		c.Store(8, pause, Const(8), Const(fullPause))
		c.Syscall("wait for room on the disk", unix.SYS_PPOLL, pollEnd, Int(len(waited)), pause.As("100 ms"), Const(0), Const(8)).Into(over).Ignore()
		c.Branch(over.Value(), Less, Const(1), again)
		c.Add(w.ended, Const(2), Const(0)) // the loop has still to see it
		c.Jump(again)
	}
	c.Place(drop)
	c.Add(bytes, bytes.Value(), n.Value())
	c.Add(reads, reads.Value(), Const(1))
	c.Add(w.seq, w.seq.Value(), Const(1)) // readers see that something is missing
	c.Add(full, Const(1), Const(0))
	w.countDropped(n)
	c.Jump(back)
}

// setFull notes whether the disk is full, and keeps the record right while the program runs, for whoever inspects it.
func (w *logWriter) setFull(value Arg) {
	w.Store(8, w.counters, Const(16), value)
	if w.record.value != 0 {
		w.Syscall("say so in the record", unix.SYS_PWRITE64, w.record, w.counters, Const(recordCounters), Const(recordCountersAt)).Ignore()
	}
}

// countDropped adds one read of n bytes to the counters.
func (w *logWriter) countDropped(n Slot) {
	c, sum := w.compiler, w.temp("sum")
	c.Load(sum, 8, w.counters, Const(0))
	c.Add(sum, sum.Value(), n.Value())
	c.Store(8, w.counters, Const(0), sum.Value())
	c.Load(sum, 8, w.counters, Const(8))
	c.Add(sum, sum.Value(), Const(1))
	c.Store(8, w.counters, Const(8), sum.Value())
	w.setFull(Const(1))
}

// rotate emits the step from one file of the log to the next. If no new file can be made, the log goes on in the old one.
func (w *logWriter) rotate() {
	c, l := w.compiler, w.opts.Log
	fresh, stay := c.NewSlot("new log"), c.NewLabel()
	c.Syscall("make the next file of the log", unix.SYS_OPENAT, w.logDir, c.Str("new"),
		Const(unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC).As("O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC"), Const(0o600).As("0600")).Into(fresh).Else(stay)
	rename := func(from, to string) {
		c.Syscall("rename a file of the log", unix.SYS_RENAMEAT2, w.logDir, c.Str(from), w.logDir, c.Str(to), Const(0)).Ignore()
	}
	for i := l.MaxFiles - 1; i > 0; i-- {
		rename(strconv.Itoa(i-1), strconv.Itoa(i))
	}
	rename("new", "0")
	c.Syscall("write to it from now on", unix.SYS_DUP3, fresh.Value(), w.logFile, Const(unix.O_CLOEXEC).As("O_CLOEXEC")).Ignore()
	c.Syscall("close the second descriptor", unix.SYS_CLOSE, fresh.Value()).Ignore()
	c.Add(w.at, Const(0), Const(0))
	c.Place(stay)
}

// leaveRecord emits what a keeper does last: the exit record, on the disk.
func (k *keeping) leaveRecord(exit Arg) {
	c := k.compiler
	if k.record.value == 0 {
		return
	}
	r := c.Zeroed(recordSize)
	word, n := c.temp("word"), c.NewSlot("length")
	for i := 0; i < exitSize; i += 8 {
		c.Load(word, 8, exit, Const(uint64(i)))
		c.Store(8, r, Const(uint64(recordStatusAt+i)), word.Value())
	}
	c.Syscall("when did it end", unix.SYS_CLOCK_GETTIME, Const(unix.CLOCK_REALTIME).As("CLOCK_REALTIME"), r.Plus(recordTimeAt)).Ignore()
	c.Store(8, r, Const(recordOffsetAt), k.at.Value())
	c.Store(8, r, Const(recordSequenceAt), k.seq.Value())
	for i := 0; i < recordCounters; i += 8 {
		c.Load(word, 8, k.counters, Const(uint64(i)))
		c.Store(8, r, Const(uint64(recordCountersAt+i)), word.Value())
	}
	if k.memory.value != 0 {
		none := c.NewLabel()
		c.Syscall("read what happened to its memory", unix.SYS_PREAD64, k.memory, r.Plus(recordMemoryAt), Const(recordMemorySize), Const(0)).Into(n).Else(none)
		c.Store(8, r, Const(recordMemoryLenAt), n.Value())
		c.Place(none)
	}
	c.Store(8, r, Const(0), Const(recordMagic|recordEnded<<32))
	c.Store(8, r, Const(recordSize-8), Const(recordMagic|recordEnded<<32))
	c.Syscall("leave the exit record", unix.SYS_PWRITE64, k.record, r, Const(recordSize), Const(0)).Ignore()
	c.Syscall("sync it", unix.SYS_FDATASYNC, k.record).Ignore()
}
