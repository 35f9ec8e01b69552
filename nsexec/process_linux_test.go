package nsexec

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// waiting starts a container that waits until the returned pipe is closed.
func waiting(t *testing.T, l *Launcher, change func(*specs.Spec)) (*Process, *os.File) {
	t.Helper()
	s := newSpec(newRoot(t), "wait")
	if change != nil {
		change(s)
	}
	prog, err := Compile(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	t.Cleanup(func() { w.Close() })
	p, err := l.Start(t.Context(), prog, &Stdio{Stdin: r})
	if err != nil {
		t.Fatal(err)
	}
	return p, w
}

// gone waits for a process to disappear.
func gone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("process %d is still there", pid)
		}
	}
}

func sharesPIDs(s *specs.Spec) {
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
	s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Type == "proc" })
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
}

func TestProcess(t *testing.T) {
	requireRoot(t)
	for name, change := range map[string]func(*specs.Spec){"own pid namespace": nil, "the host's pid namespace": sharesPIDs} {
		t.Run(name, func(t *testing.T) {
			l := &Launcher{}
			defer l.Close()
			p, stdin := waiting(t, l, change)
			pid := p.PID()
			if pid <= 0 {
				t.Fatalf("pid %d", pid)
			}
			if err := p.Signal(0); err != nil {
				t.Error(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			if _, err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("wait while it runs: %v", err)
			}
			stdin.Close()
			status, err := p.Wait(t.Context())
			if err != nil || status.Code != 0 || status.Signal != 0 || status.MaxRSS == 0 {
				t.Errorf("status %+v, %v", status, err)
			}
			if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("signal after the end: %v", err)
			}
			if err := p.Kill(); err != nil {
				t.Errorf("kill after the end: %v", err)
			}
			if p.PID() != pid {
				t.Errorf("pid %d after the end, %d before", p.PID(), pid)
			}
			gone(t, pid)
		})
	}
}

func TestKill(t *testing.T) {
	requireRoot(t)
	for name, change := range map[string]func(*specs.Spec){"own pid namespace": nil, "the host's pid namespace": sharesPIDs} {
		t.Run(name, func(t *testing.T) {
			l := &Launcher{}
			defer l.Close()
			p, _ := waiting(t, l, change)
			if err := p.Kill(); err != nil {
				t.Fatal(err)
			}
			if status, err := p.Wait(t.Context()); err != nil || status.Signal != syscall.SIGKILL || status.Code != -1 {
				t.Errorf("status %+v, %v", status, err)
			}
		})
	}
}

// TestGuardKilled: the container does not survive its guard, and its exit status is unknown rather than invented.
func TestGuardKilled(t *testing.T) {
	requireRoot(t)
	l := &Launcher{}
	defer l.Close()
	p, _ := waiting(t, l, nil)
	pid := p.PID()
	p.mu.Lock()
	err := unix.PidfdSendSignal(p.guard, unix.SIGKILL, nil, 0)
	p.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(t.Context()); !errors.Is(err, ErrUnknownStatus) {
		t.Errorf("status %+v, %v", status, err)
	}
	gone(t, pid)
}

func TestLauncherClose(t *testing.T) {
	requireRoot(t)
	l := &Launcher{}
	var procs []*Process
	for _, change := range []func(*specs.Spec){nil, sharesPIDs, nil} {
		p, _ := waiting(t, l, change)
		procs = append(procs, p)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if status, err := p.Wait(t.Context()); err != nil || status.Signal != syscall.SIGKILL {
			t.Errorf("status %+v, %v", status, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	prog, err := Compile(newSpec(newRoot(t), "exit", "0"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	if _, err := l.Start(t.Context(), prog, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("start after close: %v", err)
	}
}

// TestCancelStart: a start that is cancelled leaves nothing, at whatever moment.
func TestCancelStart(t *testing.T) {
	requireRoot(t)
	l := &Launcher{}
	defer l.Close()
	root := newRoot(t)
	for i := range 30 {
		prog, err := Compile(newSpec(root, "exit", "0"), nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*200*time.Microsecond)
		p, err := l.Start(ctx, prog, nil)
		switch {
		case err == nil:
			if _, err := p.Wait(t.Context()); err != nil {
				t.Error(err)
			}
		case !errors.Is(err, context.DeadlineExceeded):
			t.Errorf("cancelled: %v", err)
		}
		cancel()
		prog.Close()
	}
}

// TestHygiene: what the importing program ignores or leaves open does not reach the container.
func TestHygiene(t *testing.T) {
	requireRoot(t)
	signal.Ignore(syscall.SIGHUP, syscall.SIGUSR1)
	defer signal.Reset(syscall.SIGHUP, syscall.SIGUSR1)
	var leaked []int
	for range 20 { // without O_CLOEXEC, as a careless library would
		fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		leaked = append(leaked, fd)
	}
	defer func() {
		for _, fd := range leaked {
			unix.Close(fd)
		}
	}()
	v := viewOf(t, newSpec(newRoot(t), "view"), nil)
	if v.Status["SigIgn"] != "0000000000000000" || v.Status["SigBlk"] != "0000000000000000" {
		t.Errorf("ignored %s, blocked %s", v.Status["SigIgn"], v.Status["SigBlk"])
	}
	if len(v.Files) != 3 {
		t.Errorf("descriptors %v", v.Files)
	}
}

// TestStepError: the step that fails comes back with its words and its errno.
func TestStepError(t *testing.T) {
	requireRoot(t)
	s := newSpec(newRoot(t), "exit", "0")
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: "/does/not/exist", Options: []string{"bind"}})
	_, _, err := run(t, s, nil)
	var step *StepError
	if !errors.As(err, &step) || step.Errno != syscall.ENOENT || !errors.Is(err, os.ErrNotExist) || step.Call != "open_tree" {
		t.Errorf("got %v", err)
	}
	t.Log(err)
}

// TestReapedByOthers: a program that reaps all its children by itself does not take the exit status away.
func TestReapedByOthers(t *testing.T) {
	requireRoot(t)
	l := &Launcher{}
	defer l.Close()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
				time.Sleep(50 * time.Microsecond)
			}
		}
	}()
	root := newRoot(t)
	for range 20 {
		if _, status, err := runWith(t, l, newSpec(root, "exit", "7"), nil); err != nil || status.Code != 7 {
			t.Errorf("status %+v, %v", status, err)
		}
	}
	close(stop)
	<-stopped
}
