package coracle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/inroot"
	"github.com/coracle-dev/coracle/internal/statefile"
	"github.com/coracle-dev/coracle/nsexec"
)

// An execTarget is a running container made ready for commands: what does not change from one to the next. It is of one
// start of the container, and as long as it is held its process is that start's.
type execTarget struct {
	id      string
	pid     int
	start   uint64 // with pid, which start it is
	process *hostProcess
	spec    *specs.Spec
	group   *cgroup.Group
	join    *cgroup.Join
	target  *nsexec.Target

	refs int // of commands that are being started, and one of the list
}

// commands are the commands that an engine runs, and the targets of the last ones.
type commands struct {
	mu      sync.Mutex
	targets []*execTarget // the last used is last
	running map[*Cmd]struct{}
	closed  bool
}

// maxTargets bounds the descriptors that are kept open: a dozen a target where there are many v1 hierarchies.
const maxTargets = 8

// execTarget returns the container ready for a command, and its state. The caller releases it.
func (c *Container) execTarget(ctx context.Context) (*execTarget, *containerState, error) {
	st, err := c.current()
	if err != nil {
		return nil, nil, err
	}
	if st.Status != StatusRunning {
		return nil, nil, ErrNotRunning
	}
	t := c.eng.commands.find(st)
	if t == nil {
		if t, err = c.newExecTarget(ctx, st); err != nil {
			return nil, nil, err
		}
		c.eng.commands.keep(t)
	}
	err = t.ready()
	if err != nil {
		c.eng.commands.release(t)
		return nil, nil, err
	}
	return t, st, nil
}

// ready says whether a command can be started now.
func (t *execTarget) ready() error {
	if t.process.ended(0) {
		return ErrNotRunning
	}
	// A command would be frozen before it has begun, and Start would wait for who knows how long.
	if t.group == nil {
		return nil
	}
	if frozen, err := t.group.Frozen(); err != nil {
		return err
	} else if frozen {
		return ErrPaused
	}
	return nil
}

func (c *Container) newExecTarget(ctx context.Context, st *containerState) (_ *execTarget, err error) {
	t := &execTarget{id: st.ID, pid: st.PID, start: st.StartTime, refs: 1}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if t.process, err = openProcess(st.PID, st.BootID, st.StartTime); err != nil {
		if errors.Is(err, os.ErrProcessDone) {
			return nil, ErrNotRunning
		}
		return nil, err
	}
	if t.spec, err = c.specOfStart(ctx, st); err != nil {
		return nil, err
	}
	name := c.eng.groupName(st.ID)
	t.join = &cgroup.Join{}
	switch t.group, err = c.eng.cgroups.Load(name); {
	case err == nil:
		if t.join, err = t.group.Join(); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	default:
		// Where there are no cgroups to write, the container has none. If it has one, a command must not be outside.
		if b, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", st.PID)); readErr != nil || bytes.Contains(b, []byte(name)) {
			return nil, fmt.Errorf("find the container's cgroup: %w", errors.Join(err, readErr))
		}
	}
	t.target, err = nsexec.NewTarget(t.spec, &nsexec.TargetOptions{Process: t.process.file(), Cgroup: t.join.Dir, Tasks: t.join.Tasks})
	return t, err
}

// specOfStart returns the runtime spec of the container's present start: what its isolation is. The engine that has
// started it knows; others find it in config.json, which is written right after the start.
func (c *Container) specOfStart(ctx context.Context, st *containerState) (*specs.Spec, error) {
	if st.spec != nil {
		return st.spec, nil
	}
	dir := c.eng.containerDir(c.id)
	const patience, granularity = time.Second, 20 * time.Millisecond
	for deadline := time.Now().Add(patience); ; {
		info, err := os.Stat(filepath.Join(dir, "config.json"))
		late := time.Now().After(deadline)
		// One that is older is of the start before, unless the clock was set back.
		if err == nil && (late || !info.ModTime().Add(granularity).Before(st.Started)) {
			spec := &specs.Spec{}
			if err = statefile.Read(dir, "config.json", spec); err == nil {
				if spec.Process == nil || spec.Linux == nil {
					return nil, fmt.Errorf("config.json of container %s: %w", c.id, ErrCorrupt)
				}
				return spec, nil
			}
		}
		switch {
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return nil, err
		case st.kept() && err != nil:
			return nil, ErrNotRunning // it was there before the container was noted: it is being removed
		case late || st.Spec.AutoRemove && st.Resolved.Health == nil: // see monitor
			return nil, &UnsupportedError{Feature: "a command in a container with AutoRemove that another engine has started",
				Fix: "use the engine that has started it, or remove it yourself in the end"}
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
}

// lookUp finds a user in the container's own files as they are now. They may be on a filesystem that a process of the
// container serves, or does not: nothing but the context bounds the wait.
func (t *execTarget) lookUp(ctx context.Context, user string, groupAdd []string) (specs.User, string, error) {
	root, err := t.process.openRoot(t.pid)
	if errors.Is(err, os.ErrProcessDone) {
		err = ErrNotRunning
	}
	if err != nil {
		return specs.User{}, "", err
	}
	type found struct {
		user specs.User
		home string
		err  error
	}
	result := make(chan found, 1)
	go func() {
		defer root.Close()
		read := func(name string) func() ([]byte, error) {
			return func() ([]byte, error) { return inroot.ReadFile(int(root.Fd()), name, maxUserFile) }
		}
		var f found
		f.user, f.home, f.err = lookUpUser(user, groupAdd, read("/etc/passwd"), read("/etc/group"))
		result <- f
	}()
	select {
	case f := <-result:
		return f.user, f.home, f.err
	case <-ctx.Done():
		return specs.User{}, "", context.Cause(ctx)
	}
}

// explain adds what is known of the container, and of the group, to the error of a start in it.
func (t *execTarget) explain(err error, group *cgroup.Group) error {
	var step *nsexec.StepError
	gone := errors.As(err, &step) && step.Call == "setns" && step.Errno == syscall.ESRCH
	wait := time.Duration(0)
	if errors.Is(err, nsexec.ErrDied) || step != nil && step.Errno == syscall.ENOMEM {
		// The end of a container's first process begins with that of all others, and with no more processes: ENOMEM.
		wait = 200 * time.Millisecond
	}
	if gone || t.process.ended(wait) {
		return fmt.Errorf("%w: it has just ended: %w", ErrNotRunning, err)
	}
	if group == nil {
		return err
	}
	return explainStart(err, group)
}

// close frees what the target holds.
func (t *execTarget) close() {
	if t.target != nil {
		t.target.Close()
	}
	if t.join != nil {
		t.join.Close()
	}
	if t.process != nil {
		t.process.close()
	}
}

// find returns the target of a state, if it is kept, and takes it.
func (l *commands) find(st *containerState) *execTarget {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, t := range l.targets {
		if t.id != st.ID {
			continue
		}
		l.targets = slices.Delete(l.targets, i, i+1)
		if t.pid != st.PID || t.start != st.StartTime {
			l.drop(t)
			return nil
		}
		l.targets = append(l.targets, t)
		t.refs++
		return t
	}
	return nil
}

// keep keeps a target for the next command. Of several for one container that are made at once the last stays.
func (l *commands) keep(t *execTarget) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	if i := slices.IndexFunc(l.targets, func(old *execTarget) bool { return old.id == t.id }); i >= 0 {
		l.drop(l.targets[i])
		l.targets = slices.Delete(l.targets, i, i+1)
	}
	if len(l.targets) >= maxTargets {
		l.drop(l.targets[0])
		l.targets = slices.Delete(l.targets, 0, 1)
	}
	l.targets = append(l.targets, t)
	t.refs++
}

// forget gives up the target of a container that has ended.
func (l *commands) forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.IndexFunc(l.targets, func(t *execTarget) bool { return t.id == id }); i >= 0 {
		l.drop(l.targets[i])
		l.targets = slices.Delete(l.targets, i, i+1)
	}
}

// release gives back what execTarget returned.
func (l *commands) release(t *execTarget) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(t)
}

// drop drops one reference. The mutex is held.
func (l *commands) drop(t *execTarget) {
	if t.refs--; t.refs == 0 {
		t.close()
	}
}

// add makes the engine answer for a command that runs.
func (l *commands) add(c *Cmd) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running == nil {
		l.running = make(map[*Cmd]struct{})
	}
	l.running[c] = struct{}{}
}

// remove is for a command that has ended.
func (l *commands) remove(c *Cmd) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.running, c)
}

// close ends what is left of commands when all processes of the engine have ended, and frees the targets.
func (l *commands) close() {
	l.mu.Lock()
	l.closed = true
	for _, t := range l.targets {
		l.drop(t)
	}
	l.targets = nil
	var running []*Cmd
	for c := range l.running {
		running = append(running, c)
	}
	l.mu.Unlock()
	for _, c := range running {
		close(c.aborted)
	}
	for _, c := range running {
		<-c.done
		for _, f := range c.ours {
			f.Close()
		}
	}
}
