package coracle_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
)

func TestCommandStreams(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{})
	t.Run("much input and output", func(t *testing.T) {
		in := strings.Repeat("0123456789", 1_000_000)
		cmd := tool(c, "cat")
		cmd.Stdin = strings.NewReader(in)
		if out, err := cmd.Output(ctx); err != nil || string(out) != in {
			t.Errorf("%d bytes of %d, %v", len(out), len(in), err)
		}
	})
	t.Run("pipes and half-close", func(t *testing.T) {
		cmd := tool(c, "cat")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(ctx); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		for i := range 10 {
			line := fmt.Sprintf("line %d\n", i)
			if _, err := io.WriteString(stdin, line); err != nil {
				t.Fatal(err)
			}
			if n, err := stdout.Read(buf); err != nil || string(buf[:n]) != line {
				t.Fatalf("%q, %v", buf[:n], err)
			}
		}
		if err := stdin.Close(); err != nil {
			t.Error(err)
		}
		if rest, err := io.ReadAll(stdout); err != nil || len(rest) > 0 {
			t.Errorf("%q, %v", rest, err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		if err := stdin.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
	})
	t.Run("stderr pipe", func(t *testing.T) {
		cmd := tool(c, "echo2", "words")
		cmd.User = "alice"
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(stderr); err != nil || string(b) != "words\n" {
			t.Errorf("%q, %v", b, err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Run("files", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		cmd := tool(c, "echo", "to a file")
		cmd.Stdout = w
		if err := cmd.Run(ctx); err != nil {
			t.Error(err)
		}
		w.Close()
		if b, _ := io.ReadAll(r); string(b) != "to a file\n" {
			t.Errorf("%q", b)
		}
	})
	t.Run("input nobody reads", func(t *testing.T) {
		r, w := io.Pipe()
		defer w.Close()
		cmd := tool(c, "true")
		cmd.Stdin = r
		if err := cmd.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("a writer that fails", func(t *testing.T) {
		boom := errors.New("boom")
		cmd := tool(c, "flood", "1000000")
		cmd.Stdout = failingWriter{boom}
		if err := cmd.Run(ctx); !errors.Is(err, boom) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("opened again by another user", func(t *testing.T) {
		cmd := tool(c, "write", "/dev/stdout", "again")
		cmd.User = "alice"
		if out, err := cmd.Output(ctx); err != nil || string(out) != "again" {
			t.Errorf("%q, %v", out, err)
		}
	})
}

// TestCommandEnd: what ends a command before its own end.
func TestCommandEnd(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{})
	t.Run("context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cmd := tool(c, "stubborn")
		cmd.Stdout = &callOnWrite{call: cancel}
		err := cmd.Run(ctx)
		var exit *coracle.ExitError
		if !errors.Is(err, context.Canceled) || !errors.As(err, &exit) || exit.Signal != syscall.SIGKILL {
			t.Errorf("got %v", err)
		}
	})
	t.Run("context with Cancel", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cmd := tool(c, "obey")
		cmd.Stdout = &callOnWrite{call: cancel}
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
		err := cmd.Run(ctx)
		var exit *coracle.ExitError
		if !errors.Is(err, context.Canceled) || !errors.As(err, &exit) || exit.Code != int(syscall.SIGINT) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("Cancel is ignored", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cmd := tool(c, "stubborn")
		cmd.Stdout = &callOnWrite{call: cancel}
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
		cmd.WaitDelay = 10 * time.Millisecond
		err := cmd.Run(ctx)
		var exit *coracle.ExitError
		if !errors.Is(err, context.Canceled) || !errors.As(err, &exit) || exit.Signal != syscall.SIGKILL {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a child keeps the output open", func(t *testing.T) {
		for _, tty := range []bool{false, true} {
			cmd := tool(c, "daemon", "again", "stubborn")
			cmd.TTY = tty
			cmd.Stdout = &syncBuffer{}
			cmd.WaitDelay = 50 * time.Millisecond
			if tty {
				cmd.WaitDelay = time.Minute // not needed: the terminal hangs up
			}
			err := cmd.Run(t.Context())
			if tty && err != nil || !tty && !errors.Is(err, exec.ErrWaitDelay) {
				t.Errorf("terminal %v: %v", tty, err)
			}
			if cmd.ProcessState == nil || !cmd.ProcessState.Success() {
				t.Errorf("%v", cmd.ProcessState)
			}
		}
	})
	t.Run("the container", func(t *testing.T) {
		c := running(t, eng, coracle.ContainerSpec{})
		cmd := tool(c, "stubborn")
		cmd.Stdout = &callOnWrite{call: func() { c.Kill(context.Background()) }}
		var exit *coracle.ExitError
		if err := cmd.Run(t.Context()); !errors.As(err, &exit) || exit.Signal != syscall.SIGKILL {
			t.Errorf("got %v", err)
		}
	})
}
