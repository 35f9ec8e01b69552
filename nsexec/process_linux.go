package nsexec

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/crashpoint"
)

// Start starts the program and returns when its execve has succeeded. The process is attached: it ends with the
// launcher, with the thread that the launcher owns and with the importing program, whatever kills that.
//
// An error is a *StepError or an *ExecError where a step of the plan failed, and nothing is left behind then.
// Cancelling ctx while Start waits kills what was started.
func (l *Launcher) Start(ctx context.Context, prog *Program, stdio *Stdio) (*Process, error) {
	if prog.detached {
		return nil, errors.New("nsexec: a program with a keeper is started by StartDetached")
	}
	p, err := l.launch(ctx, prog, stdio)
	if err != nil {
		return nil, err
	}
	if err := l.add(p); err != nil {
		l.abandon(p, prog)
		return nil, err
	}
	go func() {
		p.await()
		l.remove(p)
	}()
	return p, nil
}

// launch forks the guard and waits until the program's execve has succeeded. The caller answers for the process, and
// for l.live.
func (l *Launcher) launch(ctx context.Context, prog *Program, stdio *Stdio) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	image, err := prog.Plan.ELF()
	if err != nil {
		return nil, err
	}
	ends, err := newEnds(prog)
	if err != nil {
		return nil, err
	}
	defer ends.closeTheirs()

	files := make([]*os.File, 0, firstFile+len(prog.files))
	if stdio == nil {
		stdio = &Stdio{}
	}
	for _, f := range []*os.File{stdio.Stdin, stdio.Stdout, stdio.Stderr} {
		if f == nil {
			if f, err = ends.devNull(); err != nil {
				ends.closeOurs()
				return nil, err
			}
		}
		files = append(files, f)
	}
	files = append(files, prog.files...)
	files[prog.report.value] = ends.reportTheirs
	files[prog.status.value] = ends.statusTheirs
	if ends.syncTheirs != nil {
		files[prog.sync.value] = ends.syncTheirs
	}
	if prog.keptTerminal.value != 0 {
		files[prog.keptTerminal.value], files[prog.terminalEnd.value] = ends.terminals[0], ends.terminals[1]
	}

	guard, err := l.fork(image, files, prog.nested && !prog.detached)
	if err != nil {
		ends.closeOurs()
		return nil, err
	}
	crashpoint.At("start: guard forked")
	ends.closeTheirs()
	p := &Process{guard: guard, report: ends.report, done: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() {
		ends.status.SetReadDeadline(time.Unix(1, 0))
		ends.report.SetReadDeadline(time.Unix(1, 0))
	})
	err = p.awaitSetup(ctx, prog, ends)
	if !stop() && err == nil {
		err = ctx.Err() // the deadlines of the pipes have passed
	}
	ends.status.Close()
	if ends.sync != nil {
		ends.sync.Close()
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		l.abandon(p, prog)
		return nil, err
	}
	return p, nil
}

// ends are the pipes between a program and a guard.
type ends struct {
	status, report, sync                   *os.File
	statusTheirs, reportTheirs, syncTheirs *os.File
	null                                   *os.File
	terminals                              [2]*os.File // between guard and payload
}

func newEnds(prog *Program) (*ends, error) {
	e := &ends{}
	var p, s, m [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("nsexec: make the status pipe: %w", err)
	}
	unix.SetNonblock(p[0], true)
	e.status, e.statusTheirs = os.NewFile(uintptr(p[0]), "status"), os.NewFile(uintptr(p[1]), "status")
	s, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		e.closeOurs()
		e.closeTheirs()
		return nil, fmt.Errorf("nsexec: make the report socket: %w", err)
	}
	unix.SetNonblock(s[0], true)
	e.report, e.reportTheirs = os.NewFile(uintptr(s[0]), "report"), os.NewFile(uintptr(s[1]), "report")
	if prog.keptTerminal.value != 0 {
		s, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			e.closeOurs()
			e.closeTheirs()
			return nil, fmt.Errorf("nsexec: make the terminal's socket: %w", err)
		}
		e.terminals = [2]*os.File{os.NewFile(uintptr(s[0]), "terminal"), os.NewFile(uintptr(s[1]), "terminal")}
	}
	if prog.sync.value != 0 {
		if err := unix.Pipe2(m[:], unix.O_CLOEXEC); err != nil {
			e.closeOurs()
			e.closeTheirs()
			return nil, fmt.Errorf("nsexec: make the mapping pipe: %w", err)
		}
		e.sync, e.syncTheirs = os.NewFile(uintptr(m[1]), "sync"), os.NewFile(uintptr(m[0]), "sync")
	}
	return e, nil
}

func (e *ends) devNull() (*os.File, error) {
	if e.null == nil {
		f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("nsexec: open a standard stream: %w", err)
		}
		e.null = f
	}
	return e.null, nil
}

func (e *ends) closeTheirs() {
	for _, f := range []*os.File{e.statusTheirs, e.reportTheirs, e.syncTheirs, e.null, e.terminals[0], e.terminals[1]} {
		if f != nil {
			f.Close()
		}
	}
}

func (e *ends) closeOurs() {
	for _, f := range []*os.File{e.status, e.report, e.sync} {
		if f != nil {
			f.Close()
		}
	}
}

// A Process is a started program: the first process of a container.
type Process struct {
	guard  int // pidfd
	report *os.File

	keeper int // pidfd, until it takes the place of the guard's

	mu    sync.Mutex
	pidfd int // of the payload
	pid   int

	terminal *os.File

	done   chan struct{} // closed when the following are set
	status Status
	err    error
}

// awaitSetup reads the status pipe to its end.
func (p *Process) awaitSetup(ctx context.Context, prog *Program, e *ends) error {
	if prog.detached {
		if err := p.receiveKeeper(); err != nil {
			return setupError(prog, e.status, err)
		}
	}
	early := e.sync != nil || prog.joins
	if early {
		if err := p.receive('P'); err != nil {
			return setupError(prog, e.status, err)
		}
	}
	if prog.traceable {
		// The message may be of whoever traces the payload: a pid that names any process of the host.
		p.mu.Lock()
		p.pid = 0
		p.mu.Unlock()
		p.PID()
	}
	if e.sync != nil {
		if err := writeMappings(p.PID(), prog.uidMappings, prog.gidMappings); err != nil {
			return err
		}
		if prog.connect != nil {
			if err := p.connect(ctx, prog.connect); err != nil {
				return err
			}
		}
		if _, err := e.sync.Write([]byte{1}); err != nil {
			return setupError(prog, e.status, err)
		}
	}
	if err := setupError(prog, e.status, nil); err != nil {
		return err
	}
	if !early {
		if err := p.receive('P'); err != nil {
			return err
		}
	}
	if prog.terminal {
		return p.receive('T')
	}
	return nil
}

// connect calls f with a pidfd of the payload.
func (p *Process) connect(ctx context.Context, f func(context.Context, *os.File) error) error {
	fd, err := unix.FcntlInt(uintptr(p.pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("nsexec: keep the pidfd: %w", err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	return f(ctx, pidfd)
}

// setupError reads the status pipe and rebuilds the error that the payload or the guard reported, if any.
func setupError(prog *Program, status *os.File, cause error) error {
	ready := false
	var b [statusSize]byte
	for {
		_, err := io.ReadFull(status, b[:])
		switch {
		case err == io.EOF && ready:
			return nil
		case err == io.EOF:
			if cause != nil {
				return fmt.Errorf("%w: %w", ErrDied, cause)
			}
			return ErrDied
		case err != nil:
			return fmt.Errorf("nsexec: read the set-up status: %w", err)
		}
		result, n := int64(binary.NativeEndian.Uint64(b[:])), binary.NativeEndian.Uint64(b[8:])
		if n == statusReady {
			ready = true
			continue
		}
		return prog.stepError(result, n)
	}
}

func (p *Program) stepError(result int64, n uint64) error {
	if n >= uint64(len(p.Plan.steps)) || result >= 0 || result < -4095 {
		return fmt.Errorf("nsexec: the set-up reported %d in step %d, which makes no sense", result, n)
	}
	s := &p.Plan.steps[n]
	errno := syscall.Errno(-result)
	if s.op == opSyscall && uintptr(s.aux) == unix.SYS_EXECVE {
		return &ExecError{Path: strings.TrimPrefix(s.label, execLabel), Errno: errno}
	}
	return &StepError{Step: int(n), Label: s.label, Call: syscallName(uintptr(s.aux)), Errno: errno}
}

// execLabel begins the label of the steps that execute the container's program; its name follows.
const execLabel = "execute "

// receive takes messages from the report socket until the one of this kind has arrived: 'P' is the payload's pidfd, from
// the guard, 'K' a keeper's, from the process that made it, and 'T' the terminal, from the payload; any may be first. A payload that joins a container could be
// traced by one of its processes: whatever comes through the socket is a message, or is dropped.
func (p *Process) receive(kind byte) error {
	raw, err := p.report.SyscallConn()
	if err != nil {
		return err
	}
	for {
		if kind == 'P' && p.pidfd > 0 || kind == 'T' && p.terminal != nil || kind == 'K' && p.keeper > 0 {
			return nil
		}
		var (
			data   [16]byte
			oob    [64]byte
			n, m   int
			recErr error
		)
		err = raw.Read(func(fd uintptr) bool {
			n, m, _, _, recErr = unix.Recvmsg(int(fd), data[:], oob[:], unix.MSG_CMSG_CLOEXEC)
			return recErr != unix.EAGAIN && recErr != unix.EINTR
		})
		if err == nil {
			err = recErr
		}
		if err != nil {
			return fmt.Errorf("nsexec: receive the process from its guard: %w", err)
		}
		if n == 0 {
			return ErrDied
		}
		p.take(data[:n], receivedFiles(oob[:m]))
	}
}

// receivedFiles are the descriptors that came with a message.
func receivedFiles(oob []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		if list, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, list...)
		}
	}
	return fds
}

// take keeps the descriptor of a message, and closes what there is too much.
func (p *Process) take(message []byte, fds []int) {
	kind := message[0]
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, fd := range fds {
		switch {
		case kind == 'P' && p.pidfd == 0:
			p.pidfd = fd
			if len(message) == reportSize {
				p.pid = int(int32(binary.NativeEndian.Uint64(message[reportSize-8:])))
			}
		case kind == 'K' && p.keeper == 0:
			p.keeper = fd
		case kind == 'T' && p.terminal == nil && isTerminal(fd):
			unix.SetNonblock(fd, true)
			p.terminal = os.NewFile(uintptr(fd), "terminal")
		default:
			unix.Close(fd)
		}
	}
}

// isTerminal says whether a descriptor is a pseudo-terminal's master, which every ioctl on it relies on.
func isTerminal(fd int) bool {
	_, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	return err == nil
}

// Terminal is the terminal of a process whose spec asks for one, otherwise nil: its master, which the caller reads,
// writes and closes. Reading it gives EIO when the process and all its children have closed the other end.
func (p *Process) Terminal() *os.File { return p.terminal }

// await receives the exit status from the guard and reaps it.
func (p *Process) await() {
	var b [exitSize]byte
	p.status.Code, p.err = -1, ErrUnknownStatus
	for {
		n, err := p.report.Read(b[:])
		if err != nil {
			break
		}
		if n == exitSize {
			p.status, p.err = newStatus(b[:]), nil
			break
		}
	}
	p.reap()
	close(p.done)
}

// abandonWait bounds how long a failed start waits for what is left of it.
const abandonWait = time.Second

// abandon kills a process that failed to start, and answers for it until it is gone. A guard takes its container along. A
// joiner kills its payload when the program lets go of the report socket; in a container that is frozen the v1 way, that
// is not before it is thawed.
func (l *Launcher) abandon(p *Process, prog *Program) {
	if prog.joins {
		p.report.Close()
	} else {
		unix.PidfdSendSignal(p.guard, unix.SIGKILL, nil, 0)
	}
	if p.terminal != nil {
		p.terminal.Close()
	}
	p.err = ErrDied
	go func() {
		p.reap()
		close(p.done)
		l.live.Done()
	}()
	late := time.NewTimer(abandonWait)
	defer late.Stop()
	select {
	case <-p.done:
	case <-late.C:
	}
}

// reap waits for the guard, and for nothing else. If the importing program reaps all its children by itself, there is
// nothing left to reap, and the status has come through the report socket.
func (p *Process) reap() {
	for {
		err := unix.Waitid(unix.P_PIDFD, p.guard, nil, unix.WEXITED, nil)
		if err == unix.ECHILD { // a keeper is nobody's child
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(p.guard), Events: unix.POLLIN}}, -1)
		}
		if err != unix.EINTR {
			break
		}
	}
	p.closeHandles()
}

// newStatus decodes a wait status and the struct rusage behind it; wait4(2), getrusage(2).
func newStatus(b []byte) Status {
	word := func(i int) int64 { return int64(binary.NativeEndian.Uint64(b[8+8*i:])) }
	duration := func(i int) time.Duration {
		return time.Duration(word(i))*time.Second + time.Duration(word(i+1))*time.Microsecond
	}
	wait := syscall.WaitStatus(binary.NativeEndian.Uint32(b))
	s := Status{Code: wait.ExitStatus(), CoreDump: wait.CoreDump(), UserTime: duration(0), SystemTime: duration(2), MaxRSS: word(4) << 10}
	if wait.Signaled() {
		s.Signal = wait.Signal()
	}
	return s
}

// PID is the process's id in the pid namespace of the importing program, or 0 once it has ended.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pid == 0 && p.pidfd > 0 {
		p.pid = pidOf(p.pidfd)
	}
	return p.pid
}

// pidOf reads the pid that a pidfd stands for; see pidfd_open(2).
func pidOf(pidfd int) int {
	fd, err := unix.Open("/proc/self/fdinfo/"+strconv.Itoa(pidfd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var b [512]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b[:n])) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			if pid, _ := strconv.Atoi(strings.TrimSpace(v)); pid > 0 {
				return pid
			}
		}
	}
	return 0
}

// Signal sends a signal to the process. After its end the error matches os.ErrProcessDone.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd <= 0 {
		return os.ErrProcessDone
	}
	err := unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
	if err == unix.ESRCH {
		return os.ErrProcessDone
	}
	if err != nil {
		return fmt.Errorf("nsexec: send %s to process %d: %w", unix.SignalName(sig), p.pid, err)
	}
	return nil
}

// Kill ends the process and everything in its pid namespace. It is no error if it has ended already.
func (p *Process) Kill() error {
	if err := p.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Done is closed when the process has ended and its guard is reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the process and returns how it ended. Cancelling ctx stops the waiting, not the process.
// The error is ErrUnknownStatus if the guard was killed.
func (p *Process) Wait(ctx context.Context) (Status, error) {
	select {
	case <-p.done:
		return p.status, p.err
	default:
	}
	select {
	case <-p.done:
		return p.status, p.err
	case <-ctx.Done():
		return Status{}, ctx.Err()
	}
}

// writeMappings writes the mappings of the user namespace that the process is in; user_namespaces(7).
func writeMappings(pid int, uids, gids []specs.LinuxIDMapping) error {
	dir := "/proc/" + strconv.Itoa(pid) + "/"
	if os.Geteuid() != 0 {
		if err := writeProc(dir+"setgroups", "deny"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := writeProc(dir+"gid_map", mappingLines(gids)); err != nil {
		return err
	}
	return writeProc(dir+"uid_map", mappingLines(uids))
}

func mappingLines(mappings []specs.LinuxIDMapping) string {
	var b strings.Builder
	for _, m := range mappings {
		fmt.Fprintf(&b, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	return b.String()
}

func writeProc(path, s string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("nsexec: map the user namespace: %w", err)
	}
	defer f.Close()
	if _, err := f.WriteString(s); err != nil {
		return fmt.Errorf("nsexec: map the user namespace: %w", err)
	}
	return nil
}
