package coracle_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
)

// TestAttach: several programs look at one container and type to it, none takes anything from another.
func TestAttach(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	for _, isDetached := range []bool{false, true} {
		name := map[bool]string{false: "attached", true: "detached"}[isDetached]
		t.Run(name, func(t *testing.T) {
			c := startTool(t, eng, coracle.ContainerSpec{OpenStdin: true, Detached: isDetached}, "cat")
			other := openAgain(t, eng.Root())
			seen, err := other.Container(t.Context(), c.ID())
			if err != nil {
				t.Fatal(err)
			}
			var one, two syncBuffer
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := c.Attach(t.Context(), &coracle.AttachOptions{Stdout: &one, Stdin: strings.NewReader("first\n")}); err != nil {
					t.Error(err)
				}
			})
			eventually(t, "the first line comes", func() bool { return one.String() == "first\n" })
			wg.Go(func() {
				if err := seen.Attach(t.Context(), &coracle.AttachOptions{Stdout: &two, Logs: true}); err != nil {
					t.Error(err)
				}
			})
			eventually(t, "the other sees it too", func() bool { return two.String() == "first\n" })
			in, err := seen.Input(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			long := strings.Repeat("0123456789abcde\n", 20_000)
			if n, err := io.WriteString(in, long); err != nil || n != len(long) {
				t.Fatalf("%d bytes, %v", n, err)
			}
			if err := in.End(); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			for i, out := range []string{one.String(), two.String()} {
				if out != "first\n"+long {
					t.Errorf("%d: %d bytes, want %d", i, len(out), len(long)+6)
				}
			}
			if exit, err := c.Wait(t.Context()); err != nil || !exit.Success() {
				t.Errorf("it ended with %v, %v", exit, err)
			}
			if _, err := c.Input(t.Context()); !errors.Is(err, coracle.ErrNotRunning) {
				t.Errorf("the input of one that has ended: %v", err)
			}
			if err := c.Attach(t.Context(), nil); !errors.Is(err, coracle.ErrNotRunning) {
				t.Errorf("attached to one that has ended: %v", err)
			}
		})
	}
}

// startTool starts a container of the tool, which is removed with the test.
func startTool(t testing.TB, eng *coracle.Engine, spec coracle.ContainerSpec, args ...string) *coracle.Container {
	t.Helper()
	spec.Image, spec.Args = "tool", args
	withoutNetwork(&spec)
	c, err := eng.Create(t.Context(), &spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Remove(context.Background(), &coracle.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestTerminal: a container with a terminal that nobody holds, and programs that come and go.
func TestTerminal(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	for _, isDetached := range []bool{false, true} {
		name := map[bool]string{false: "attached", true: "detached"}[isDetached]
		t.Run(name, func(t *testing.T) {
			c := startTool(t, eng, coracle.ContainerSpec{OpenStdin: true, TTY: true, Detached: isDetached,
				ConsoleSize: coracle.TerminalSize{Rows: 25, Cols: 80}}, "typist", "3")
			text := func() string { return logged(t, c) }
			eventually(t, "it says its size", func() bool { return text() == "25 rows, 80 columns\r\n" })
			if err := c.Resize(t.Context(), coracle.TerminalSize{Rows: 50, Cols: 132}); err != nil {
				t.Fatal(err)
			}
			keys, typed := io.Pipe()
			done := make(chan error, 1)
			go func() {
				done <- c.Attach(t.Context(), &coracle.AttachOptions{Stdin: keys, DetachKeys: "ctrl-p,ctrl-q"})
			}()
			io.WriteString(typed, "hello\n")
			eventually(t, "it answers", func() bool { return strings.HasSuffix(text(), "50 rows, 132 columns: hello\r\n") })
			io.WriteString(typed, "\x10\x11")
			if err := <-done; !errors.Is(err, coracle.ErrDetached) {
				t.Errorf("after the keys: %v", err)
			}
			typed.Close()
			in, err := c.Input(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(in, "again\n")
			if err := in.End(); err != nil {
				t.Fatal(err)
			}
			if exit, err := c.Wait(t.Context()); err != nil || exit.Code != 3 {
				t.Errorf("it ended with %v, %v", exit, err)
			}
			if out := text(); !strings.HasSuffix(out, "50 rows, 132 columns: again\r\nend\r\n") {
				t.Errorf("log %q", out)
			}
			if err := c.Resize(t.Context(), coracle.TerminalSize{}); !errors.Is(err, coracle.ErrNotRunning) {
				t.Errorf("resize of one that has ended: %v", err)
			}
		})
	}
	t.Run("held by the program", func(t *testing.T) {
		var out syncBuffer
		keys, typed := io.Pipe()
		c := startTool(t, eng, coracle.ContainerSpec{TTY: true, Stdin: keys, Stdout: &out}, "typist", "4")
		if err := c.Resize(t.Context(), coracle.TerminalSize{Rows: 10, Cols: 20}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(typed, "hello\n")
		typed.Close()
		exit, err := c.Wait(t.Context())
		if err != nil || exit.Code != 4 || !strings.HasSuffix(out.String(), "10 rows, 20 columns: hello\r\nend\r\n") {
			t.Errorf("it ended with %v, %v, and wrote %q", exit, err, out.String())
		}
	})
	t.Run("wrong", func(t *testing.T) {
		for name, spec := range map[string]coracle.ContainerSpec{
			"nobody sees it":   {Image: "tool", TTY: true, Log: coracle.LogSpec{Mode: coracle.LogNone}},
			"a second output":  {Image: "tool", TTY: true, Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}},
			"a file of stderr": {Image: "tool", TTY: true, Stderr: os.Stderr},
		} {
			if _, err := eng.Create(t.Context(), &spec); !errors.Is(err, coracle.ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
		c := startTool(t, eng, coracle.ContainerSpec{}, "sleep", "60000")
		if err := c.Resize(t.Context(), coracle.TerminalSize{}); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("resize without a terminal: %v", err)
		}
		if _, err := c.Input(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("input without one: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := c.Attach(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("attached for a time: %v", err)
		}
		if err := c.Attach(t.Context(), &coracle.AttachOptions{DetachKeys: "ctrl-1"}); !errors.Is(err, coracle.ErrInvalid) {
			t.Errorf("no key: %v", err)
		}
	})
}

// TestResizeWaits: a keeper that does not read holds nobody up for longer than the context lasts.
func TestResizeWaits(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := startTool(t, eng, coracle.ContainerSpec{TTY: true, Detached: true}, "sleep", "600000")
	keeper := inspect(t, c).KeeperPID
	if err := syscall.Kill(keeper, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(keeper, syscall.SIGCONT)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for range 100_000 { // a FIFO takes 64 kB
		if err := c.Resize(ctx, coracle.TerminalSize{Rows: 24, Cols: 80}); err != nil {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			return
		}
	}
	t.Error("nobody reads, and nobody waits")
}
