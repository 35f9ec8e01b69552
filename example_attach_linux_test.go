package coracle_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/nsexec"
)

// exampleEcho starts a detached container that writes what it reads.
func exampleEcho(ctx context.Context) (c *coracle.Container, done func()) {
	eng, closeEngine := exampleImages(ctx)
	echo := &nsexec.Plan{}
	n, buffer, loop, end := echo.NewSlot("n"), echo.Zeroed(4096), echo.NewLabel(), echo.NewLabel()
	echo.Place(loop)
	echo.Syscall("read", unix.SYS_READ, nsexec.Const(0), buffer, nsexec.Const(4096)).Into(n)
	echo.Branch(n.Value(), nsexec.Equal, nsexec.Const(0), end)
	echo.Syscall("write", unix.SYS_WRITE, nsexec.Const(1), buffer, n.Value())
	echo.Jump(loop)
	echo.Place(end)
	echo.Syscall("exit", unix.SYS_EXIT_GROUP, nsexec.Const(0))
	b, err := echo.ELF()
	if err != nil {
		log.Fatal(err)
	}
	_, err = eng.ImageFromFS(ctx, "echo", fstest.MapFS{"echo": {Data: b, Mode: 0o755}},
		&coracle.ImageFSOptions{Config: coracle.ImageConfig{Entrypoint: []string{"/echo"}}})
	if err != nil {
		log.Fatal(err)
	}
	c, err = eng.Create(ctx, &coracle.ContainerSpec{Image: "echo", Detached: true, OpenStdin: true})
	if err == nil {
		err = c.Start(ctx)
	}
	if err != nil {
		log.Fatal(err)
	}
	return c, func() {
		if err := c.Remove(ctx, &coracle.RemoveOptions{Force: true}); err != nil {
			log.Fatal(err)
		}
		closeEngine()
	}
}

// Streams are connected to a container that runs already. What is left attached sees all of its output.
func ExampleAttachOptions() {
	ctx := context.Background()
	c, done := exampleEcho(ctx)
	defer done()
	err := c.Attach(ctx, &coracle.AttachOptions{
		Stdin: strings.NewReader("hello\n"), EndInput: true,
		Stdout: os.Stdout, Logs: true,
	})
	fmt.Println(err)
	// Output:
	// hello
	// <nil>
}

// Keys that leave the container alone, as in docker attach.
func ExampleAttachOptions_detachKeys() {
	ctx := context.Background()
	c, done := exampleEcho(ctx)
	defer done()
	err := c.Attach(ctx, &coracle.AttachOptions{Stdin: strings.NewReader("hello\n\x10\x11"), DetachKeys: "ctrl-p,ctrl-q"})
	fmt.Println(errors.Is(err, coracle.ErrDetached))
	// Output: true
}

// Any program may write to a container's input, and end it.
func ExampleInput() {
	ctx := context.Background()
	c, done := exampleEcho(ctx)
	defer done()
	in, err := c.Input(ctx)
	if err != nil {
		log.Fatal(err)
	}
	io.WriteString(in, "hello\n")
	if err := in.End(); err != nil {
		log.Fatal(err)
	}
	if _, err := c.Wait(ctx); err != nil {
		log.Fatal(err)
	}
	if err := c.CopyLogs(ctx, os.Stdout, nil, nil); err != nil {
		log.Fatal(err)
	}
	// Output: hello
}
