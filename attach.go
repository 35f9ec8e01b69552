package coracle

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coracle-dev/coracle/nsexec"
)

// AttachOptions say what is connected to a running container; nil means nothing, and Attach waits for its end.
type AttachOptions struct {
	// Stdin is written to the container's input, which its spec opens by OpenStdin. When Stdin ends the input goes on,
	// for others, unless EndInput is set. A Read that does not return is left alone when Attach returns.
	Stdin io.Reader
	// EndInput ends the container's input when Stdin ends; with a terminal, by Ctrl-D.
	EndInput bool
	// Stdout and Stderr receive what the container writes from now on. A terminal has only Stdout.
	Stdout, Stderr io.Writer
	// Logs first gives Stdout and Stderr what the log has from before.
	Logs bool
	// DetachKeys are keys that end the attachment when they are typed one after the other, as "ctrl-p,ctrl-q": single
	// characters, and "ctrl-" with a letter or one of "@[\\]^_". They are not passed on. Empty means none.
	DetachKeys string
}

// ErrDetached is what Attach returns when DetachKeys were typed. The container goes on.
var ErrDetached = errors.New("detached by keys")

// Attach connects streams to a running container, of whichever program, until it has ended and all of its output has
// arrived, until DetachKeys were typed (ErrDetached), or until ctx is done. Output comes from the container's log: any
// number of programs may be attached, none takes anything from another, and none slows the container down.
//
// The error matches ErrNotRunning if the container is not running, and errors.ErrUnsupported if it has no log, or no
// input and Stdin is set.
func (c *Container) Attach(ctx context.Context, opts *AttachOptions) error {
	return c.fail("attach to", c.attach(ctx, opts))
}

func (c *Container) attach(ctx context.Context, opts *AttachOptions) error {
	if opts == nil {
		opts = &AttachOptions{}
	}
	keys, err := parseDetachKeys(opts.DetachKeys)
	if err != nil {
		return err
	}
	st, err := c.current()
	if err != nil {
		return err
	}
	if st.Status != StatusRunning {
		return ErrNotRunning
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.eng.emitContainer(st, ActionAttach)
	pass := func() {}
	if opts.Stdin != nil {
		in, err := c.input(st)
		if err != nil {
			return err
		}
		defer in.Close()
		pass = func() {
			go func() {
				_, err := io.Copy(in, &detachReader{r: opts.Stdin, keys: keys})
				switch {
				case errors.Is(err, ErrDetached):
					cancel(ErrDetached)
				case err == nil && opts.EndInput:
					in.End()
				}
				// That the container has closed its input, or ended, is its own business.
			}()
		}
	}
	if opts.Stdout == nil && opts.Stderr == nil {
		pass()
		_, err = c.wait(ctx)
	} else {
		// Not before it is settled where the output begins: the answer to the input is to be seen.
		logs := &LogOptions{Follow: true, Tail: -1, opened: pass}
		if opts.Logs {
			logs.Tail = 0
		}
		err = c.copyLogs(ctx, opts.Stdout, opts.Stderr, logs)
	}
	if ctx.Err() != nil {
		c.eng.emitContainer(st, ActionDetach)
		return context.Cause(ctx)
	}
	return err
}

// An Input is the standard input of a running container, open for writing. What several programs write at once comes in
// pieces of at most 4 kB, each whole.
type Input struct {
	c        *Container
	f        *os.File
	terminal bool
}

// Input opens the input of a running container whose spec has OpenStdin, whichever program runs it. Closing the Input
// ends it for the caller only, see [Input.End].
//
// The error matches ErrNotRunning if the container is not running or has closed its input, and errors.ErrUnsupported if
// it has none.
func (c *Container) Input(ctx context.Context) (*Input, error) {
	st, err := c.current()
	if err == nil && st.Status != StatusRunning {
		err = ErrNotRunning
	}
	var in *Input
	if err == nil {
		in, err = c.input(st)
	}
	return in, c.fail("open the input of", err)
}

func (c *Container) input(st *containerState) (*Input, error) {
	if !st.Spec.OpenStdin {
		return nil, &UnsupportedError{Feature: "writing to a container that was made without an input", Fix: "set OpenStdin in its spec"}
	}
	f, err := c.openFIFO(stdinName)
	if err != nil {
		return nil, err
	}
	return &Input{c, f, st.Spec.TTY}, nil
}

// pipeBuf is what a FIFO takes as a whole, pipe(7).
const pipeBuf = 4096

// openFIFO opens one of the container's FIFOs, which somebody has to be reading.
func (c *Container) openFIFO(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(c.eng.containerDir(c.id), name), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ENXIO) || errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotRunning
	}
	return f, err
}

// Write writes to the container's input, and waits while the container does not read. The error matches ErrNotRunning if
// it has ended or closed its input.
func (i *Input) Write(p []byte) (int, error) {
	written := 0
	for piece := range slices.Chunk(p, pipeBuf) {
		n, err := i.f.Write(piece)
		written += n
		if errors.Is(err, syscall.EPIPE) {
			err = ErrNotRunning
		}
		if err != nil {
			return written, i.c.fail("write to", err)
		}
	}
	return written, nil
}

// End ends the container's input, for all, behind what was written so far: a read that finds nothing left is told so. To a
// terminal it types Ctrl-D, and others may go on. End implies Close.
func (i *Input) End() error {
	i.f.Close()
	return i.c.fail("end the input of", i.c.tellGuard(context.Background(), nsexec.ControlCloseStdin, 0))
}

// Close gives the input up. Others may go on writing, and open it again. Further calls do nothing.
func (i *Input) Close() error {
	if err := i.f.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return i.c.fail("close the input of", err)
	}
	return nil
}

// Resize changes the size of the container's terminal. The error matches ErrNotRunning if it is not running, and
// errors.ErrUnsupported if it has no terminal, or one that another program holds.
func (c *Container) Resize(ctx context.Context, size TerminalSize) error {
	err := c.resize(ctx, size)
	if err == nil {
		c.emit(ActionResize)
	}
	return c.fail("resize the terminal of", err)
}

func (c *Container) resize(ctx context.Context, size TerminalSize) error {
	if r := c.lastRun(); r != nil && r.streams.terminal != nil {
		select {
		case <-r.ended:
			return ErrNotRunning
		default:
			return setTerminalSize(r.streams.terminal.f, size)
		}
	}
	st, err := c.current()
	switch {
	case err != nil:
		return err
	case st.Status != StatusRunning:
		return ErrNotRunning
	case !st.Spec.TTY:
		return &UnsupportedError{Feature: "the size of a container without a terminal", Fix: "set TTY in its spec"}
	}
	return c.tellGuard(ctx, nsexec.ControlResize, uint64(size.Rows)|uint64(size.Cols)<<16)
}

// tellGuard sends a message to the container's guard. It waits where thousands have come before, which a guard that waits
// for a full disk does not read.
func (c *Container) tellGuard(ctx context.Context, kind uint32, data uint64) error {
	f, err := c.openFIFO(controlName)
	if err != nil {
		return err
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var m [nsexec.ControlSize]byte
	binary.NativeEndian.PutUint32(m[:], kind)
	binary.NativeEndian.PutUint64(m[8:], data)
	_, err = f.Write(m[:])
	switch {
	case errors.Is(err, syscall.EPIPE):
		return ErrNotRunning
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// parseDetachKeys returns the bytes that the keys send.
func parseDetachKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	var keys []byte
	for key := range strings.SplitSeq(s, ",") {
		ctrl, isCtrl := strings.CutPrefix(key, "ctrl-")
		switch {
		case len(key) == 1:
			keys = append(keys, key[0])
		case isCtrl && len(ctrl) == 1 && (ctrl[0] >= 'a' && ctrl[0] <= 'z' || strings.Contains("@[\\]^_", ctrl)):
			keys = append(keys, ctrl[0]&0x1f)
		default:
			return nil, fmt.Errorf("%w: DetachKeys: %q is no key", ErrInvalid, key)
		}
	}
	return keys, nil
}

// detachReader passes on what is typed until the keys are, and then returns ErrDetached. What may be their beginning is
// held back.
type detachReader struct {
	r    io.Reader
	keys []byte
	held int // of keys, typed and not passed on

	pending []byte
	err     error
}

func (d *detachReader) Read(p []byte) (int, error) {
	if len(d.keys) == 0 {
		return d.r.Read(p)
	}
	for len(d.pending) == 0 {
		if d.err != nil {
			return 0, d.err
		}
		n, err := d.r.Read(p)
		if err != nil {
			d.err = err
		}
		d.scan(p[:n])
		if d.err != nil && !errors.Is(d.err, ErrDetached) { // there will be no more keys
			d.pending, d.held = append(d.pending, d.keys[:d.held]...), 0
		}
	}
	n := copy(p, d.pending)
	d.pending = d.pending[n:]
	return n, nil
}

func (d *detachReader) scan(typed []byte) {
	for _, b := range typed {
		for d.held > 0 && b != d.keys[d.held] {
			// The longest end of what was held, with b to come, that may still be a beginning.
			next := d.held - 1
			for next > 0 && string(d.keys[:next]) != string(d.keys[d.held-next:d.held]) {
				next--
			}
			d.pending = append(d.pending, d.keys[:d.held-next]...)
			d.held = next
		}
		if b != d.keys[d.held] {
			d.pending = append(d.pending, b)
			continue
		}
		if d.held++; d.held == len(d.keys) {
			d.held, d.err = 0, ErrDetached
			return
		}
	}
}
