package coracle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/nsexec"
)

// A Cmd is a command to be run in a running container, as exec.Cmd is one to be run on the host: fields and methods of
// the same name mean the same. It has all of the container's isolation (namespaces, cgroups, capabilities, seccomp
// filter, rlimits) and sees the container's files.
//
// A Cmd is made by [Container.Command] and cannot be used again after it was started. Fields must not be changed after
// Start. Its methods may be called from several goroutines only where they say so.
//
// The command ends with the container, with the engine whose handle it was made from, and with the importing program
// however that ends. Processes that it leaves in the background are the container's and go on, unless it has Limits.
type Cmd struct {
	// Args are the program and its arguments. A program without a slash is searched in the PATH of the command's
	// environment, inside the container, with the rights of its user. This is the only required field.
	Args []string
	// Env are "NAME=value" settings on top of those of the container's own process; the last one of a name wins, and
	// "NAME" alone removes it. HOME is that of User unless somebody sets it; TERM is "xterm" with a terminal unless
	// somebody sets it. (exec.Cmd is different: there Env replaces the environment.)
	Env []string
	// Dir is the working directory, an absolute path in the container that has to exist. Empty means that of the
	// container's own process.
	Dir string
	// User is "name", "uid", "name:group" or "uid:gid", looked up in the files that the container has at present. Empty
	// means the user and groups of the container's own process.
	User string

	// Stdin, Stdout and Stderr are the streams, as in os/exec: nil means /dev/null, an *os.File is handed over as it is,
	// and anything else is copied through a pipe. If Stdout and Stderr are the same, at most one goroutine at a time
	// calls Write.
	//
	// With TTY all is copied through the terminal, which has one output: Stderr has to be nil or the same as Stdout. The
	// end of Stdin is passed on as Ctrl-D. If both Stdin and Stdout are nil the terminal is the caller's, see Terminal.
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer

	// TTY gives the command a terminal of the container's own: it leads a session, and Ctrl-C interrupts it. When it has
	// ended and its output was read, the terminal hangs up on whatever it has left in the background.
	TTY bool
	// Size is the size of the terminal at the start; Resize changes it. The zero size means that nobody knows.
	Size TerminalSize

	// Privileged gives the command all capabilities that the importing program has, and no AppArmor profile, as
	// "docker exec --privileged". The seccomp filter, masked paths and device rules stay the container's: some system
	// calls are refused all the same.
	Privileged bool
	// Limits bound the command and all that it starts, in a cgroup of its own inside of the container's: the container's
	// limits hold for both together. The zero Limits bound nothing and make no cgroup; a command without limits of its own
	// is in the container's. With limits, what the command leaves in the background is killed when it ends.
	//
	// The fields mean what they do for a container. Start's error is a *cgroup.InvalidError for values that make no sense,
	// a *cgroup.UnsupportedError for what cannot be had here, and a *cgroup.LimitError for what the kernel refuses: version
	// 1 of cgroups refuses more processors, or more of their time, than the container has; while the command runs it refuses
	// an Update of the container to less. An OOM kill of one of the command's processes, by whichever limit, is
	// the command's ExitStatus.OOMKilled, not the container's.
	//
	// In version 2 of cgroups the first command with limits moves the container's processes into a group below the
	// container's, where they stay: from then on they see "/coracle.main" in /proc/self/cgroup.
	Limits cgroup.Limits
	// Rlimits replace resource limits of the container's own process, by type.
	Rlimits []specs.POSIXRlimit
	// OOMScoreAdj is added to the badness of the command's processes, -1000 to 1000. Nil means that of the container's
	// own process. Less than the importing program's takes CAP_SYS_RESOURCE.
	OOMScoreAdj *int

	// Cancel is called when the context given to Start is done before the command has ended. Nil means Process.Kill. If
	// it returns an error that matches os.ErrProcessDone, Wait ignores it and the context's error.
	Cancel func() error
	// WaitDelay bounds two waits: from the end of the context until the command is killed, and from the command's end
	// until streams that it left open to others are closed; then Wait returns exec.ErrWaitDelay unless there is another
	// error. Zero means for ever.
	WaitDelay time.Duration

	// Process is the command's process, once it was started.
	Process *Process
	// ProcessState is how it ended, once Wait has returned.
	ProcessState *ExitStatus

	c       *Container
	group   *cgroup.Group // of its own, or nil
	silent  bool          // there are no events of it
	started bool
	waited  bool
	childs  []*os.File // the command's ends of the caller's pipes: closed once it has them
	ours    []*os.File // the caller's ends, closed by Wait

	streams  *streams
	terminal *os.File

	aborted chan struct{} // closed by Engine.Close
	done    chan struct{} // closed when the following are set
	exit    ExitStatus
	err     error
}

// TerminalSize is the size of a terminal in characters. The zero value means that it is unknown.
type TerminalSize struct {
	Rows, Cols uint16
}

// A Process is the process of a command in a container, while it runs and after.
type Process struct {
	// PID is the process's id in the importing program's pid namespace. The command itself sees another one. It is 0 if
	// the container has CAP_SYS_PTRACE and the command had ended before Start returned.
	PID int

	proc *nsexec.Process
}

// Signal sends a signal to the process. It may be called at any time; the error matches os.ErrProcessDone after the
// process has ended.
func (p *Process) Signal(sig syscall.Signal) error { return p.proc.Signal(sig) }

// Kill ends the process at once. It is no error if it has ended. What it has started is the container's and goes on.
func (p *Process) Kill() error { return p.proc.Kill() }

// Command returns a command to run in the container with the given program and arguments; set its other fields before
// Start. Any engine that sees the container can run commands in it, not only the one that started it.
func (c *Container) Command(name string, arg ...string) *Cmd {
	return &Cmd{Args: append([]string{name}, arg...), c: c}
}

// String returns the program and its arguments, for reading.
func (c *Cmd) String() string { return strings.Join(c.Args, " ") }

// misuse is the error of a call that comes at the wrong time or with the wrong fields.
func misuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

func (c *Cmd) fail(err error) error { return c.c.fail("exec in", err) }

// Run starts the command and waits for it to end; see Start and Wait.
func (c *Cmd) Run(ctx context.Context) error {
	if err := c.Start(ctx); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns what it wrote to its standard output. If Stderr is nil, the end of what it wrote
// there is in the *ExitError. The output is kept in memory: bound it by the program that you run, or give Run a writer of
// your own.
func (c *Cmd) Output(ctx context.Context) ([]byte, error) {
	if c.Stdout != nil {
		return nil, c.fail(misuse("Stdout is set, and Output sets it too"))
	}
	var stdout bytes.Buffer
	c.Stdout = &stdout
	var stderr *tail
	if c.Stderr == nil && !c.TTY {
		stderr = &tail{}
		c.Stderr = stderr
	}
	err := c.Run(ctx)
	var exit *ExitError
	if stderr != nil && errors.As(err, &exit) {
		exit.Stderr = stderr.bytes()
	}
	return stdout.Bytes(), err
}

// CombinedOutput runs the command and returns what it wrote to its standard output and standard error, in order.
func (c *Cmd) CombinedOutput(ctx context.Context) ([]byte, error) {
	if c.Stdout != nil || c.Stderr != nil {
		return nil, c.fail(misuse("Stdout or Stderr is set, and CombinedOutput sets them too"))
	}
	var both bytes.Buffer
	c.Stdout, c.Stderr = &both, &both
	err := c.Run(ctx)
	return both.Bytes(), err
}

// StdinPipe returns a pipe that is connected to the command's standard input when it starts. Closing it is the end of
// the input; Wait closes it too.
func (c *Cmd) StdinPipe() (io.WriteCloser, error) {
	theirs, ours, err := c.pipe("Stdin", c.Stdin != nil)
	if err != nil {
		return nil, c.fail(err)
	}
	c.Stdin = theirs
	return &closeOnce{File: ours}, c.own(theirs, ours)
}

// closeOnce is a file that may be closed again without an error: the caller and Wait both do.
type closeOnce struct {
	*os.File
	once sync.Once
	err  error
}

func (f *closeOnce) Close() error {
	f.once.Do(func() {
		if f.err = f.File.Close(); errors.Is(f.err, os.ErrClosed) {
			f.err = nil
		}
	})
	return f.err
}

// StdoutPipe returns a pipe that is connected to the command's standard output when it starts. Wait closes it: read it to
// its end before.
func (c *Cmd) StdoutPipe() (io.ReadCloser, error) {
	ours, theirs, err := c.pipe("Stdout", c.Stdout != nil)
	if err != nil {
		return nil, c.fail(err)
	}
	c.Stdout = theirs
	return ours, c.own(theirs, ours)
}

// StderrPipe returns a pipe that is connected to the command's standard error when it starts. Wait closes it: read it to
// its end before.
func (c *Cmd) StderrPipe() (io.ReadCloser, error) {
	ours, theirs, err := c.pipe("Stderr", c.Stderr != nil)
	if err != nil {
		return nil, c.fail(err)
	}
	c.Stderr = theirs
	return ours, c.own(theirs, ours)
}

func (c *Cmd) pipe(field string, set bool) (r, w *os.File, err error) {
	switch {
	case set:
		return nil, nil, misuse("%s is set already", field)
	case c.started:
		return nil, nil, misuse("%sPipe after the start", field)
	}
	return os.Pipe()
}

func (c *Cmd) own(theirs, ours *os.File) error {
	c.childs, c.ours = append(c.childs, theirs), append(c.ours, ours)
	return nil
}

// Terminal returns the command's terminal if it was started with TTY and with neither Stdin nor Stdout, otherwise nil.
// It is the caller's to read and write until Wait, which closes it; unread output makes the command wait. Reading gives
// an error that matches syscall.EIO when the command has hung up.
func (c *Cmd) Terminal() *os.File {
	if c.terminal == nil || c.Stdin != nil || c.Stdout != nil {
		return nil
	}
	return c.terminal
}

// Resize tells the command a new size of its terminal, and is no error once it has ended. It may be called at any time
// between Start and the end of Wait.
func (c *Cmd) Resize(rows, cols uint16) error {
	switch {
	case !c.started:
		return c.fail(misuse("not started"))
	case c.terminal == nil:
		return c.fail(misuse("the command has no terminal: set TTY"))
	}
	err := setTerminalSize(c.terminal, TerminalSize{rows, cols})
	select {
	case <-c.Process.proc.Done(): // and the terminal may be closed
		return nil
	default:
		return c.fail(err)
	}
}

// Start starts the command and returns when its program is being executed. If it returns nil, call Wait in the end.
//
// When ctx is done, then or later, the command is ended as Cancel says. The error matches ErrNotRunning if the container
// is not running, ErrPaused if it is paused, ErrInvalid if a field makes no sense or the command was started before; it
// is or wraps *nsexec.ExecError if the program cannot be executed and *nsexec.StepError if the kernel refused something.
func (c *Cmd) Start(ctx context.Context) error {
	if c.started {
		return c.fail(misuse("started already"))
	}
	c.started = true
	err := c.start(ctx)
	if err != nil {
		for _, f := range append(c.childs, c.ours...) {
			f.Close()
		}
	}
	return c.fail(err)
}

func (c *Cmd) start(ctx context.Context) error {
	e := c.c.eng
	if err := c.validate(); err != nil {
		return err
	}
	starting, done, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	t, st, err := c.c.execTarget(starting)
	if err != nil {
		return err
	}
	defer e.commands.release(t)
	process, err := c.process(starting, st, t)
	if err != nil {
		return err
	}
	if err := c.openStreams(process); err != nil {
		return err
	}
	id, text := newID(idLength/2), c.String()
	emit := func(action EventAction, pairs ...string) {
		if !c.silent {
			e.emitContainer(st, action, append(pairs, attrExecID, id)...)
		}
	}
	created := func() { emit(ActionExecCreate + EventAction(": "+text)) }
	proc, err := c.launch(starting, t, process, id, created)
	if crowded(err) && c.group == nil {
		// The container's processes have moved since the target was made.
		e.commands.forget(st.ID)
		var moved *execTarget
		if moved, _, err = c.c.execTarget(starting); err == nil {
			defer e.commands.release(moved)
			proc, err = c.launch(starting, moved, process, id, func() {})
		}
	}
	if err != nil {
		c.streams.abandon()
		return err
	}
	emit(ActionExecStart + EventAction(": "+text))
	c.Process = &Process{PID: proc.PID(), proc: proc}
	c.terminal = proc.Terminal()
	c.aborted, c.done = make(chan struct{}), make(chan struct{})
	c.beginStreams()
	e.commands.add(c)
	go func() {
		c.await(ctx)
		emit(ActionExecDie, c.exit.eventAttrs()...)
		e.commands.remove(c)
		close(c.done)
	}()
	return nil
}

// launch starts the process, in the container's cgroup or in one of its own.
func (c *Cmd) launch(ctx context.Context, t *execTarget, process *specs.Process, id string, created func()) (_ *nsexec.Process, err error) {
	target, group := t.target, t.group
	if c.limits() {
		var own *limitedTarget
		if own, err = c.limited(ctx, t, id); err != nil {
			return nil, err
		}
		defer func() {
			own.close()
			if err != nil {
				err = errors.Join(err, endCommandGroup(context.Background(), own.group))
			}
		}()
		target, group = own.target, own.group
	}
	prog, err := target.Compile(process)
	if err != nil {
		return nil, err
	}
	defer prog.Close()
	created()
	proc, err := c.c.eng.launcher.Start(ctx, prog, &c.streams.stdio)
	if err != nil {
		return nil, t.explain(err, group)
	}
	if c.limits() {
		c.group = group
	}
	return proc, nil
}

// crowded reports whether the container's cgroup takes no process any more, since groups below it have limits.
func crowded(err error) bool {
	var step *nsexec.StepError
	return errors.As(err, &step) && step.Call == "clone3" && step.Errno == syscall.EBUSY
}

// limits reports whether the command has limits of its own.
func (c *Cmd) limits() bool { return !reflect.ValueOf(&c.Limits).Elem().IsZero() }

// validate checks what can be checked without the container.
func (c *Cmd) validate() error {
	switch {
	case len(c.Args) == 0 || c.Args[0] == "":
		return misuse("Args: no program to execute")
	case c.Dir != "" && !path.IsAbs(c.Dir):
		return misuse("Dir: %q is not absolute", c.Dir)
	case c.TTY && c.Stderr != nil && !sameWriter(c.Stdout, c.Stderr):
		return misuse("Stderr: a terminal has one output: set Stdout")
	case !c.TTY && c.Size != TerminalSize{}:
		return misuse("Size: without TTY there is no terminal")
	case c.OOMScoreAdj != nil && (*c.OOMScoreAdj < -1000 || *c.OOMScoreAdj > 1000):
		return misuse("OOMScoreAdj: %d is not within -1000 and 1000", *c.OOMScoreAdj)
	}
	for _, list := range []struct {
		field  string
		values []string
	}{{"Args", c.Args}, {"Env", c.Env}, {"Dir", []string{c.Dir}}, {"User", []string{c.User}}} {
		for _, v := range list.values {
			if strings.ContainsRune(v, 0) {
				return misuse("%s: %q has a NUL byte", list.field, v)
			}
		}
	}
	for _, v := range c.Env {
		if v == "" || v[0] == '=' {
			return misuse("Env: %q has no name", v)
		}
	}
	if c.limits() {
		if err := c.Limits.Validate(); err != nil {
			return fmt.Errorf("%w: Limits: %w", ErrInvalid, err)
		}
	}
	return nil
}

// process makes the command's part of the runtime spec: the container's own process, changed as the fields say.
func (c *Cmd) process(ctx context.Context, st *containerState, t *execTarget) (*specs.Process, error) {
	p := *t.spec.Process
	p.Args, p.CommandLine = c.Args, ""
	p.Terminal, p.ConsoleSize = c.TTY, nil
	if c.TTY && c.Size != (TerminalSize{}) {
		p.ConsoleSize = &specs.Box{Height: uint(c.Size.Rows), Width: uint(c.Size.Cols)}
	}
	if c.Dir != "" {
		p.Cwd = c.Dir
	}
	base, home := p.Env, ""
	if c.User != "" {
		user, dir, err := t.lookUp(ctx, c.User, st.Spec.GroupAdd)
		if err != nil {
			return nil, fmt.Errorf("find user %q: %w", c.User, err)
		}
		user.Umask = p.User.Umask
		p.User, home = user, "HOME="+dir
		if !hasEnv(st.Resolved.Env, "HOME") {
			// It is that of the container's own user, which nobody has asked for.
			base = slices.DeleteFunc(slices.Clone(base), func(s string) bool { return strings.HasPrefix(s, "HOME=") })
		}
	}
	p.Env = mergeEnv(base, c.Env)
	if home != "" && !hasEnv(p.Env, "HOME") && !slices.Contains(c.Env, "HOME") {
		p.Env = append(p.Env, home)
	}
	if c.TTY && !hasEnv(p.Env, "TERM") && !slices.Contains(c.Env, "TERM") {
		p.Env = append(p.Env, "TERM=xterm")
	}
	if c.Privileged {
		if err := privileged(&p); err != nil {
			return nil, err
		}
	}
	if len(c.Rlimits) > 0 {
		p.Rlimits = slices.DeleteFunc(slices.Clone(p.Rlimits), func(old specs.POSIXRlimit) bool {
			return slices.ContainsFunc(c.Rlimits, func(l specs.POSIXRlimit) bool { return l.Type == old.Type })
		})
		p.Rlimits = append(p.Rlimits, c.Rlimits...)
	}
	if c.OOMScoreAdj != nil {
		p.OOMScoreAdj = c.OOMScoreAdj
	}
	return &p, nil
}

// privileged gives a process all capabilities that there are to give.
func privileged(p *specs.Process) error {
	all := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}, Linux: &specs.Linux{}}
	if err := (&nsexec.Security{Privileged: true}).Apply(all); err != nil {
		return err
	}
	p.Capabilities, p.ApparmorProfile = all.Process.Capabilities, ""
	return nil
}

// Wait waits until the command has ended and its output has arrived. The error is an *ExitError if it ran and did not end
// with code 0, and matches the context's error too if it was ended because that was done. Otherwise it is the first error
// of a stream's writer.
func (c *Cmd) Wait() error {
	switch {
	case c.done == nil:
		return c.fail(misuse("not started"))
	case c.waited:
		return c.fail(misuse("Wait was called already"))
	}
	c.waited = true
	<-c.done
	for _, f := range c.ours {
		f.Close()
	}
	if c.terminal != nil {
		c.terminal.Close()
	}
	c.ProcessState = &c.exit
	var exit *ExitError
	if c.err == nil || errors.As(c.err, &exit) {
		return c.err
	}
	return c.fail(c.err)
}

// await waits for the end of the command and of its output.
func (c *Cmd) await(ctx context.Context) {
	proc := c.Process.proc
	var cause error
	var late <-chan time.Time
	select {
	case <-proc.Done():
	case <-ctx.Done():
		cause = c.interrupt(ctx)
		if c.WaitDelay > 0 {
			timer := time.NewTimer(c.WaitDelay)
			defer timer.Stop()
			select {
			case <-proc.Done():
				late = timer.C
			case <-timer.C:
				proc.Kill()
				gone := make(chan time.Time)
				close(gone)
				late = gone
			}
		}
		<-proc.Done()
	}
	status, err := proc.Wait(context.Background())
	c.exit = *newExitStatus(status)
	if err != nil {
		c.exit = ExitStatus{Code: -1, Unknown: true}
	}
	c.endGroup()
	if late == nil && c.WaitDelay > 0 {
		timer := time.NewTimer(c.WaitDelay)
		defer timer.Stop()
		late = timer.C
	}
	streamErr := c.endStreams(late)
	switch {
	case !c.exit.Success():
		c.err = &ExitError{ExitStatus: c.exit, Container: c.c.Name(), Command: c.Args[0]}
		if cause != nil {
			c.err = errors.Join(cause, c.err)
		}
	case cause != nil:
		c.err = cause
	default:
		c.err = streamErr
	}
}

// interrupt does what is to be done when the context ends before the command, and returns what Wait is to say of it.
func (c *Cmd) interrupt(ctx context.Context) error {
	cancel := c.Cancel
	if cancel == nil {
		cancel = func() error { return c.Process.proc.Signal(syscall.SIGKILL) }
	}
	err := cancel()
	switch {
	case err == nil:
		return ctx.Err()
	case errors.Is(err, os.ErrProcessDone):
		return nil
	}
	return fmt.Errorf("cancel the command: %w", err)
}
