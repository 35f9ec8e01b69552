package coracle

import (
	"fmt"
	"io"
	"os"
	"reflect"
	"sync"

	"github.com/coracle-dev/coracle/nsexec"
)

// streams connect the readers and writers of a spec with the descriptors of a process.
type streams struct {
	stdio   nsexec.Stdio
	theirs  []*os.File // given to the process; closed once it has them
	ours    []*os.File // our ends of pipes, closed if the process never starts
	input   *os.File   // our end of stdin, or nil
	copies  []func() error
	logEnds []*os.File // the guard's ends of pipes, see toLog

	terminal  *terminalReader // in place of pipes
	stopInput *os.File        // ends the copy of input to it when it is closed

	output sync.WaitGroup // copies of output
	mu     sync.Mutex
	err    error // first failing Write to a writer of the spec
}

// newStreams opens the pipes that the spec's streams need, as os/exec does it.
func newStreams(stdin io.Reader, stdout, stderr io.Writer) (_ *streams, err error) {
	s := &streams{}
	defer func() {
		if err != nil {
			s.abandon()
		}
	}()
	if s.stdio.Stdin, err = s.reader(stdin); err != nil {
		return nil, err
	}
	if s.stdio.Stdout, err = s.writer(stdout); err != nil {
		return nil, err
	}
	if stderr != nil && sameWriter(stdout, stderr) {
		s.stdio.Stderr = s.stdio.Stdout
		return s, nil
	}
	s.stdio.Stderr, err = s.writer(stderr)
	return s, err
}

// sameWriter compares interfaces, which panics for types that cannot be compared.
func sameWriter(a, b io.Writer) bool {
	return a != nil && reflect.TypeOf(a).Comparable() && reflect.TypeOf(b).Comparable() && a == b
}

func (s *streams) reader(r io.Reader) (*os.File, error) {
	if r == nil {
		return nil, nil
	}
	if f, ok := r.(*os.File); ok {
		return f, nil
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for stdin: %w", err)
	}
	s.theirs, s.ours, s.input = append(s.theirs, theirs), append(s.ours, ours), ours
	s.copies = append(s.copies, func() error {
		// That the container does not read all, or ends, is its own business: no error of writing is reported. A
		// reader that never returns is left alone: nothing waits for this copy.
		io.Copy(ours, r)
		ours.Close()
		return nil
	})
	return theirs, nil
}

func (s *streams) writer(w io.Writer) (*os.File, error) {
	if w == nil {
		return nil, nil
	}
	if f, ok := w.(*os.File); ok {
		return f, nil
	}
	ours, theirs, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for output: %w", err)
	}
	s.theirs, s.ours = append(s.theirs, theirs), append(s.ours, ours)
	s.output.Add(1)
	s.copies = append(s.copies, func() error {
		defer s.output.Done()
		_, err := io.Copy(w, ours)
		if err != nil {
			io.Copy(io.Discard, ours) // a writer that fails must not block the container
		}
		ours.Close()
		return err
	})
	return theirs, nil
}

// give makes f the process's input.
func (s *streams) give(stdin *os.File) {
	s.stdio.Stdin = stdin
	s.theirs = append(s.theirs, stdin)
}

// toLog gives the process pipes to a guard that writes its log, and returns the guard's ends.
func (s *streams) toLog(stdout, stderr bool) (out, errs *os.File, err error) {
	pipe := func(wanted bool, stream **os.File) (*os.File, error) {
		if !wanted {
			return nil, nil
		}
		ours, theirs, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("make a pipe for the log: %w", err)
		}
		*stream = theirs
		s.theirs, s.logEnds = append(s.theirs, theirs), append(s.logEnds, ours)
		return ours, nil
	}
	if out, err = pipe(stdout, &s.stdio.Stdout); err != nil {
		return nil, nil, err
	}
	errs, err = pipe(stderr, &s.stdio.Stderr)
	return out, errs, err
}

// copyTerminal adds what goes through a terminal to what is copied.
func (s *streams) copyTerminal(terminal *os.File, in io.Reader, out io.Writer) {
	s.terminal = &terminalReader{f: terminal}
	if out == nil {
		out = io.Discard
	}
	s.output.Add(1)
	s.copies = append(s.copies, func() error {
		defer s.output.Done()
		_, err := io.Copy(out, s.terminal)
		if err != nil {
			io.Copy(io.Discard, s.terminal) // a writer that fails must not block who writes
		}
		return err
	})
	if in == nil {
		return
	}
	done := func() {}
	if f, ok := in.(*os.File); ok {
		if stop, ours, err := os.Pipe(); err == nil {
			s.stopInput = ours
			in, done = &fileUntil{f, stop}, func() { stop.Close() }
		}
	}
	s.copies = append(s.copies, func() error {
		defer done()
		// As in reader: an error of the other side is its own business, and nothing waits for this copy.
		if _, err := io.Copy(struct{ io.Writer }{terminal}, in); err == nil {
			terminal.Write([]byte{endOfInput})
		}
		return nil
	})
}

// fileUntil reads a file until the other end of stop is closed. A read that is not stopped would take the next line of the
// program's own terminal, long after what it was for has ended.
type fileUntil struct{ f, stop *os.File }

func (r *fileUntil) Read(p []byte) (int, error) {
	if !readableBefore(r.f, r.stop) {
		return 0, io.EOF
	}
	return r.f.Read(p)
}

// own gives the process's ends of our pipes to the user that it runs as, so that it may open /dev/stdout and the like
// again. Files of the spec belong to whoever opened them.
func (s *streams) own(uid, gid uint32) error {
	if uid == 0 && gid == 0 {
		return nil
	}
	for _, f := range s.theirs {
		if err := f.Chown(int(uid), int(gid)); err != nil {
			return fmt.Errorf("give a stream to the container's user: %w", err)
		}
	}
	return nil
}

// begin starts copying: the process has its ends now.
func (s *streams) begin() {
	for _, f := range s.theirs {
		f.Close()
	}
	for _, c := range s.copies {
		go func() {
			if err := c(); err != nil {
				s.mu.Lock()
				if s.err == nil {
					s.err = err
				}
				s.mu.Unlock()
			}
		}()
	}
}

// end waits until all output has arrived and returns the first error of a writer. The process has ended, and with it
// all that held the other ends.
func (s *streams) end() error {
	if s.input != nil {
		s.input.Close()
	}
	if s.terminal != nil {
		s.terminal.end()
		defer s.terminal.f.Close()
	}
	s.output.Wait()
	if s.stopInput != nil {
		s.stopInput.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// abandon closes everything: the process never started.
func (s *streams) abandon() {
	for _, f := range append(s.theirs, s.ours...) {
		f.Close()
	}
}
