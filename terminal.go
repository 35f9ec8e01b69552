package coracle

import "os"

// RawTerminal puts the program's own terminal into raw mode, as programs do that pass every key on to a command with a
// terminal of its own; f is usually os.Stdin. If resized is not nil, it is called with the terminal's size at once and
// after every change of it (SIGWINCH), one call at a time.
//
//	cmd := c.Command("sh")
//	cmd.TTY, cmd.Stdin, cmd.Stdout = true, os.Stdin, os.Stdout
//	err := cmd.Start(ctx)
//	restore, err := coracle.RawTerminal(os.Stdin, func(s coracle.TerminalSize) { cmd.Resize(s.Rows, s.Cols) })
//	defer restore()
//	err = cmd.Wait()
//
// What restore does has to happen before the program ends, or its user is left with a terminal in raw mode: it restores
// the mode, and no call of resized is under way or follows when it returns. Further calls of it do nothing. The error
// matches errors.ErrUnsupported where this system has no such terminals, and syscall.ENOTTY if f is none.
func RawTerminal(f *os.File, resized func(TerminalSize)) (restore func() error, err error) {
	restore, err = rawTerminal(f, resized)
	if err != nil {
		return nil, &OpError{Op: "make raw", Kind: "terminal", Name: f.Name(), Err: err}
	}
	return restore, nil
}
