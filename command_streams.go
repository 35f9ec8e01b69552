package coracle

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// openStreams makes the command's streams.
func (c *Cmd) openStreams(p *specs.Process) (err error) {
	if c.TTY {
		c.streams = &streams{}
		return nil
	}
	if c.streams, err = newStreams(c.Stdin, c.Stdout, c.Stderr); err != nil {
		return err
	}
	c.streams.theirs = append(c.streams.theirs, c.childs...)
	if err = c.streams.own(p.User.UID, p.User.GID); err != nil {
		c.streams.abandon()
	}
	return err
}

// beginStreams starts copying.
func (c *Cmd) beginStreams() {
	if c.terminal != nil && c.Terminal() == nil {
		c.streams.copyTerminal(c.terminal, c.Stdin, c.Stdout)
	}
	c.streams.begin()
}

// endOfInput is Ctrl-D, which a terminal turns into the end of a file.
const endOfInput = 4

// A terminalReader reads a command's terminal to its end: until the other side has hung up or, when the command has ended
// and others keep the other side open, until what the command has written has been read.
type terminalReader struct {
	f     *os.File
	ended atomic.Bool
	more  int // what may be read after the end
}

const (
	// terminalBuffer is more than the kernel keeps of a terminal's output.
	terminalBuffer = 256 << 10
	// terminalIdle is how long the output of a command that has ended may take to come out of the kernel.
	terminalIdle = 20 * time.Millisecond
)

func (r *terminalReader) Read(p []byte) (int, error) {
	if r.ended.Load() {
		if r.more <= 0 {
			return 0, io.EOF
		}
		r.f.SetReadDeadline(time.Now().Add(terminalIdle))
	}
	n, err := r.f.Read(p)
	if r.ended.Load() {
		r.more -= n
		if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, io.EOF
		}
	}
	if errors.Is(err, syscall.EIO) {
		err = io.EOF
	}
	return n, err
}

// end is called when the command has ended.
func (r *terminalReader) end() {
	r.more = terminalBuffer
	r.ended.Store(true)
	r.f.SetReadDeadline(time.Now().Add(terminalIdle))
}

// endStreams waits until all output has arrived, until late or until the engine closes, and returns the first error.
func (c *Cmd) endStreams(late <-chan time.Time) error {
	s, arrived := c.streams, make(chan error, 1)
	go func() { arrived <- s.end() }()
	if c.TTY {
		defer func() {
			if c.Terminal() == nil {
				c.terminal.Close()
			}
			for _, f := range c.childs {
				f.Close()
			}
			if c.stopInput != nil {
				c.stopInput.Close()
			}
		}()
	}
	select {
	case err := <-arrived:
		return err
	case <-late:
	case <-c.aborted:
	}
	s.abandon()
	if c.terminal != nil {
		c.terminal.Close()
	}
	// A copy that was waiting for the command ends now; one that is in a writer of the caller's is left alone, as in
	// os/exec.
	select {
	case <-arrived:
	case <-time.After(10 * time.Millisecond):
	}
	return exec.ErrWaitDelay
}
