package coracle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
)

// Run makes a container, starts it, waits for its end and removes it. Cancelling ctx kills it.
//
// The error is an *ExitError if the container ran and did not end with code 0.
func (e *Engine) Run(ctx context.Context, spec *ContainerSpec) error {
	once := *spec
	once.AutoRemove = true
	c, err := e.Create(ctx, &once)
	if err != nil {
		return err
	}
	if err := c.Start(ctx); err != nil {
		return errors.Join(err, c.Remove(context.WithoutCancel(ctx), nil))
	}
	exit, err := c.Wait(ctx)
	if ctx.Err() != nil {
		c.Kill(context.WithoutCancel(ctx))
		exit, err = c.Wait(context.WithoutCancel(ctx))
		err = errors.Join(ctx.Err(), err)
	}
	if r := c.lastRun(); r != nil {
		<-r.cleaned
		err = errors.Join(err, c.fail("remove", r.cleanErr))
	}
	if err != nil {
		return err
	}
	if !exit.Success() {
		return &ExitError{ExitStatus: exit, Container: c.knownName()}
	}
	return nil
}

// Output is Run, returning what the container wrote to its standard output. If the spec has no Stderr, the end of what
// it wrote there is in the *ExitError.
//
// The output is kept in memory: bound it by the program that you run, or give Run a writer of your own.
func (e *Engine) Output(ctx context.Context, spec *ContainerSpec) ([]byte, error) {
	if spec.Stdout != nil {
		return nil, &OpError{Op: "run", Kind: "container", Name: spec.Name, Err: fmt.Errorf("%w: Stdout is set, and Output sets it too", ErrInvalid)}
	}
	once := *spec
	var stdout bytes.Buffer
	once.Stdout = &stdout
	var stderr *tail
	if once.Stderr == nil {
		stderr = &tail{}
		once.Stderr = stderr
	}
	err := e.Run(ctx, &once)
	var exit *ExitError
	if stderr != nil && errors.As(err, &exit) {
		exit.Stderr = stderr.bytes()
	}
	return stdout.Bytes(), err
}

// tail keeps the last bytes written to it.
type tail struct {
	buf []byte
	cut bool
}

const tailSize = 32 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
		t.cut = true
	}
	return len(p), nil
}

func (t *tail) bytes() []byte {
	if t.cut {
		return append([]byte("... "), t.buf...)
	}
	return t.buf
}
