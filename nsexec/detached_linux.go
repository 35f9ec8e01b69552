package nsexec

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// A Detached is a program that was started with a keeper and waits to be let go: until [Detached.Release] it ends with
// the importing program, so that whatever happens somebody knows of it. One of Release and Abandon must be called; what
// is called after it does nothing.
type Detached struct {
	l    *Launcher
	p    *Process
	prog *Program
	over sync.Once // it was let go, or ended
}

// StartDetached starts a program that was compiled with [Options].Keeper, and returns when its execve has succeeded.
// Errors are those of [Launcher.Start].
func (l *Launcher) StartDetached(ctx context.Context, prog *Program, stdio *Stdio) (*Detached, error) {
	if !prog.detached {
		return nil, errors.New("nsexec: a program without a keeper is started by Start")
	}
	p, err := l.launch(ctx, prog, stdio)
	if err != nil {
		return nil, err
	}
	return &Detached{l: l, p: p, prog: prog}, nil
}

// receiveKeeper takes the keeper's pidfd from the process that the launcher forked, which exits then.
func (p *Process) receiveKeeper() error {
	if err := p.receive('K'); err != nil {
		return err
	}
	for {
		if err := unix.Waitid(unix.P_PIDFD, p.guard, nil, unix.WEXITED, nil); err != unix.EINTR {
			break
		}
	}
	unix.Close(p.guard)
	p.guard, p.keeper = p.keeper, 0
	return nil
}

// PID is the id of the program's process in the pid namespace of the importing program, or 0 once it has ended.
func (d *Detached) PID() int { return d.p.PID() }

// KeeperPID is the id of the keeper, or 0 once it has ended.
func (d *Detached) KeeperPID() int {
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	if d.p.guard < 0 {
		return 0
	}
	return pidOf(d.p.guard)
}

// Release lets the program go: from now on it is its keeper's, and the importing program may end. The error is ErrDied
// if the keeper is dead already.
func (d *Detached) Release() (err error) {
	d.over.Do(func() {
		defer d.l.live.Done()
		_, err = d.p.report.Write([]byte("C"))
		d.p.closeHandles()
	})
	if errors.Is(err, unix.EPIPE) {
		return ErrDied
	}
	if err != nil {
		return fmt.Errorf("nsexec: let the program go: %w", err)
	}
	return nil
}

// Abandon ends the program and waits until its keeper is gone.
func (d *Detached) Abandon() {
	d.over.Do(func() { d.l.abandon(d.p, d.prog) })
}

// closeHandles gives up what the importing program has of a process.
func (p *Process) closeHandles() {
	p.report.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	unix.Close(p.guard)
	for _, fd := range []int{p.pidfd, p.keeper} {
		if fd > 0 {
			unix.Close(fd)
		}
	}
	p.guard, p.pidfd, p.keeper = -1, -1, -1
}
