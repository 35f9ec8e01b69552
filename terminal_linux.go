package coracle

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// withFD calls a function with the descriptor, which f.Fd would make blocking.
func withFD(f *os.File, call func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var callErr error
	if err := raw.Control(func(fd uintptr) { callErr = call(int(fd)) }); err != nil {
		return err
	}
	return callErr
}

// readableBefore waits until f can be read, and says whether that was before the other end of stop was closed. A file that
// cannot be waited for is readable.
func readableBefore(f, stop *os.File) bool {
	readable := true
	withFD(f, func(fd int) error {
		return withFD(stop, func(stopFD int) error {
			for {
				fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stopFD), Events: unix.POLLIN}}
				_, err := unix.Poll(fds, -1)
				if err == unix.EINTR {
					continue
				}
				readable = err != nil || fds[1].Revents == 0
				return err
			}
		})
	})
	return readable
}

func setTerminalSize(f *os.File, s TerminalSize) error {
	return withFD(f, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Cols})
	})
}

func terminalSize(f *os.File) (s TerminalSize, err error) {
	err = withFD(f, func(fd int) error {
		w, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		if err == nil {
			s = TerminalSize{w.Row, w.Col}
		}
		return err
	})
	return s, err
}

func rawTerminal(f *os.File, resized func(TerminalSize)) (func() error, error) {
	var before *unix.Termios
	err := withFD(f, func(fd int) (err error) {
		if before, err = unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
			return err
		}
		raw := *before
		// cfmakeraw(3).
		raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		raw.Oflag &^= unix.OPOST
		raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		raw.Cflag &^= unix.CSIZE | unix.PARENB
		raw.Cflag |= unix.CS8
		raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
		return unix.IoctlSetTermios(fd, unix.TCSETS, &raw)
	})
	if err != nil {
		return nil, err
	}
	stop := func() {}
	if resized != nil {
		stop = followSize(f, resized)
	}
	return sync.OnceValue(func() error {
		stop()
		return withFD(f, func(fd int) error { return unix.IoctlSetTermios(fd, unix.TCSETS, before) })
	}), nil
}

// followSize calls a function with the terminal's size now and whenever it changes, until the returned function is
// called.
func followSize(f *os.File, resized func(TerminalSize)) (stop func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if s, err := terminalSize(f); err == nil {
				resized(s)
			}
			select {
			case <-changed:
			case <-quit:
				return
			}
		}
	}()
	return func() {
		signal.Stop(changed)
		close(quit)
		<-ended
	}
}
