package coracle_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// lines turns a terminal's line ends into usual ones.
func lines(b []byte) string { return strings.ReplaceAll(string(b), "\r\n", "\n") }

func TestCommandTerminal(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{})
	t.Run("none", func(t *testing.T) {
		if out, err := tool(c, "tty").Output(ctx); err != nil || string(out) != "no terminal on 0\nno terminal on 1\nno terminal on 2\n" {
			t.Errorf("%q, %v", out, err)
		}
	})
	for _, user := range []string{"", "alice"} {
		t.Run("size "+user, func(t *testing.T) {
			cmd := tool(c, "tty")
			cmd.TTY, cmd.User, cmd.Size = true, user, coracle.TerminalSize{Rows: 24, Cols: 80}
			if out, err := cmd.CombinedOutput(ctx); err != nil || lines(out) != "0 24 80\n1 24 80\n2 24 80\n" {
				t.Errorf("%q, %v", out, err)
			}
		})
	}
	t.Run("TERM", func(t *testing.T) {
		for want, env := range map[string][]string{"TERM=xterm": nil, "TERM=dumb": {"TERM=dumb"}} {
			cmd := tool(c, "cat", "/proc/self/environ")
			cmd.TTY, cmd.Env = true, env
			if out, err := cmd.Output(ctx); err != nil || !strings.Contains(string(out), want) {
				t.Errorf("%q, %v", out, err)
			}
		}
	})
	t.Run("resize", func(t *testing.T) {
		cmd := tool(c, "tty", "resize")
		cmd.TTY = true
		var out syncBuffer
		cmd.Stdout = &out
		if err := cmd.Start(ctx); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); !strings.Contains(out.String(), "2 0 0"); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(out.String())
			}
		}
		if err := cmd.Resize(50, 132); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "now 50 132") {
			t.Errorf("%q, %v", out.String(), err)
		}
		if err := cmd.Resize(1, 1); err != nil {
			t.Errorf("after the end: %v", err)
		}
	})
	t.Run("input and its end", func(t *testing.T) {
		cmd := tool(c, "cat")
		cmd.TTY, cmd.Stdin = true, strings.NewReader("typed\n")
		if out, err := cmd.Output(ctx); err != nil || lines(out) != "typed\ntyped\n" { // the echo and the answer
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("input that goes on", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		cmd := tool(c, "echo", "done")
		cmd.TTY, cmd.Stdin = true, r
		if out, err := cmd.Output(ctx); err != nil || lines(out) != "done\n" {
			t.Errorf("%q, %v", out, err)
		}
		// What is typed after the end is not the command's any more.
		time.Sleep(10 * time.Millisecond)
		w.WriteString("next")
		buf := make([]byte, 10)
		if n, err := r.Read(buf); err != nil || string(buf[:n]) != "next" {
			t.Errorf("%q, %v", buf[:n], err)
		}
	})
	t.Run("Ctrl-C", func(t *testing.T) {
		cmd := tool(c, "obey")
		cmd.TTY = true
		if err := cmd.Start(ctx); err != nil {
			t.Fatal(err)
		}
		terminal := cmd.Terminal()
		if line, err := bufio.NewReader(terminal).ReadString('\n'); err != nil || line != "ready\r\n" {
			t.Fatalf("%q, %v", line, err)
		}
		if _, err := terminal.WriteString("\x03"); err != nil {
			t.Error(err)
		}
		var exit *coracle.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.Code != int(syscall.SIGINT) {
			t.Errorf("got %v", err)
		}
		if _, err := terminal.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("after Wait: %v", err)
		}
	})
	t.Run("terminal of the caller", func(t *testing.T) {
		cmd := tool(c, "tty")
		cmd.TTY = true
		if cmd.Terminal() != nil {
			t.Error("a terminal before the start")
		}
		if err := cmd.Start(ctx); err != nil {
			t.Fatal(err)
		}
		out, err := io.ReadAll(cmd.Terminal())
		if !errors.Is(err, syscall.EIO) || !strings.Contains(string(out), "0 0 0") {
			t.Errorf("%q, %v", out, err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Run("much output", func(t *testing.T) {
		cmd := tool(c, "flood", "1000000")
		cmd.TTY = true
		if out, err := cmd.Output(ctx); err != nil || len(out) != 1_000_000 {
			t.Errorf("%d bytes, %v", len(out), err)
		}
		cmd = tool(c, "flood", "1000000")
		cmd.TTY, cmd.Stdin = true, bytes.NewReader(nil) // the output goes nowhere
		if err := cmd.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("pipes", func(t *testing.T) {
		cmd := tool(c, "cat")
		cmd.TTY = true
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(ctx); err != nil {
			t.Fatal(err)
		}
		io.WriteString(in, "x\n")
		in.Close()
		if b, err := io.ReadAll(out); err != nil || lines(b) != "x\nx\n" {
			t.Errorf("%q, %v", b, err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	// All terminals are gone again.
	if out, err := tool(c, "ls", "/dev/pts").Output(ctx); err != nil || string(out) != "ptmx\n" {
		t.Errorf("left: %q, %v", out, err)
	}
}

// TestRawTerminal has a terminal of the host.
func TestRawTerminal(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testutil.Skip(t, err.Error())
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.IoctlRetInt(int(master.Fd()), unix.TIOCGPTPEER) // flags 0: O_RDONLY
	if err != nil {
		t.Fatal(err)
	}
	slave := os.NewFile(uintptr(fd), "slave")
	defer slave.Close()
	resize := func(rows, cols uint16) {
		if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
			t.Fatal(err)
		}
	}
	resize(10, 20)
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	sizes := make(chan coracle.TerminalSize, 10)
	restore, err := coracle.RawTerminal(slave, func(s coracle.TerminalSize) { sizes <- s })
	if err != nil {
		t.Fatal(err)
	}
	if s := <-sizes; s != (coracle.TerminalSize{Rows: 10, Cols: 20}) {
		t.Errorf("size %v", s)
	}
	raw, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil || raw.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 || raw.Oflag&unix.OPOST != 0 {
		t.Errorf("%+v, %v", raw, err)
	}
	resize(30, 40)
	syscall.Kill(os.Getpid(), syscall.SIGWINCH) // it is not our controlling terminal
	if s := <-sizes; s != (coracle.TerminalSize{Rows: 30, Cols: 40}) {
		t.Errorf("size %v", s)
	}
	for range 2 {
		if err := restore(); err != nil {
			t.Error(err)
		}
	}
	if after, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil || *after != *before {
		t.Errorf("%+v, %v, was %+v", after, err, before)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := coracle.RawTerminal(null, nil); !errors.Is(err, syscall.ENOTTY) {
		t.Errorf("no terminal: %v", err)
	}
}
