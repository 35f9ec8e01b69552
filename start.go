package coracle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/statefile"
	"github.com/coracle-dev/coracle/nsexec"
)

// run is one start of a container by this engine.
type run struct {
	proc     *nsexec.Process
	detached *nsexec.Detached // in place of proc
	group    *cgroup.Group
	streams  *streams
	spec     *specs.Spec
	net      *connected // or nil

	ended     chan struct{} // closed when the container has ended and the following are set
	exit      ExitStatus
	streamErr error

	cleaned  chan struct{} // closed when its cgroup is gone, and the container itself with AutoRemove
	cleanErr error
}

// Start starts the container and returns when its program is being executed. The container ends with the engine, and
// with the importing program however that ends.
//
// The error matches ErrRunning if it is running already, and is or wraps *nsexec.ExecError if its program cannot be
// executed, *nsexec.StepError if the kernel refused a step of its set-up, and *nsexec.SpecError if the spec asks for
// what cannot be done. The container can be started again then. Cancelling ctx after Start has returned does nothing.
func (c *Container) Start(ctx context.Context) error {
	return c.fail("start", c.start(ctx))
}

func (c *Container) start(ctx context.Context) error { return c.startIf(ctx, nil) }

// startIf starts the container if admit, called with the container locked and its state, returns nil. Without admit it is
// somebody's own start, and the counting of restarts begins anew.
func (c *Container) startIf(ctx context.Context, admit func(*containerState) error) error {
	e := c.eng
	ctx, done, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	if r := c.lastRun(); r != nil {
		select {
		case <-r.ended:
			<-r.cleaned // its cgroup has the same name
		default:
			return ErrRunning
		}
	}
	st, unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if st.Owner != e.owner.id && e.ownerAlive(st.Owner) {
		return fmt.Errorf("%w: the container belongs to another program that is running", ErrInUse)
	}
	if st.Status == StatusRunning {
		return ErrRunning
	}
	if st.unsettled() {
		if err := c.settleLocked(ctx, st); err != nil {
			return err
		}
		if st, err = c.current(); err != nil {
			return err // removed, as its spec says
		}
	}
	if st.Customized && st.Spec.Customize == nil {
		return fmt.Errorf("%w: its Customize function is known only to the program that created it, before its first detached start", ErrInvalid)
	}
	if admit == nil {
		st.Restarts, st.Backoff = 0, 0
	} else if err := admit(st); err != nil {
		return err
	}
	e.settleEvents(ctx, st)
	r, err := c.launch(ctx, st)
	if err != nil {
		return err
	}
	if r.detached != nil {
		return c.release(ctx, st, r)
	}
	next := *st
	next.Owner, next.Status, next.Started, next.Finished, next.Exit = e.owner.id, StatusRunning, time.Now(), time.Time{}, nil
	next.Starts++
	next.PID = r.proc.PID()
	next.BootID, next.StartTime = processIdentity(next.PID)
	next.spec = r.spec
	if err = c.setState(&next); err != nil {
		r.proc.Kill()
		<-r.proc.Done()
		r.net.end()
		r.streams.end()
		next.Status = StatusExited
		return errors.Join(err, r.group.Remove(context.WithoutCancel(ctx)), c.setState(&next))
	}
	e.own(c, r)
	e.emitContainer(&next, ActionStart)
	go c.monitor(r)
	return nil
}

// own makes the engine answer for the container.
func (e *Engine) own(c *Container, r *run) {
	e.mu.Lock()
	e.owned[c.id] = c
	e.mu.Unlock()
	c.mu.Lock()
	c.run = r
	c.mu.Unlock()
}

func (c *Container) lastRun() *run {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.run
}

// launch goes the main path: state -> OCI spec -> launch plan -> process.
func (c *Container) launch(ctx context.Context, st *containerState) (_ *run, err error) {
	e := c.eng
	spec, err := e.runtimeSpec(st)
	if err != nil {
		return nil, err
	}
	// The cgroup needs nothing of the root filesystem, so one is made while the other is mounted. If the program wants
	// to change the spec, its limits are not known before.
	var group *pendingGroup
	if st.Spec.Customize == nil {
		group = e.beginGroup(st, spec)
	}
	defer func() {
		if err != nil && group != nil {
			err = errors.Join(err, group.discard(context.WithoutCancel(ctx)))
		}
	}()
	network := e.beginConnect(ctx, st)
	defer func() {
		if err != nil {
			network.discard()
		}
	}()
	snap, err := e.store.OpenSnapshot(st.ID)
	if err != nil {
		return nil, err
	}
	root, err := snap.Mount(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	crashpoint.At("start: root filesystem mounted")
	net, err := network.wait()
	if err != nil {
		return nil, err
	}
	if err := e.completeSpec(spec, st, root, net); err != nil {
		return nil, err
	}
	if st.Spec.Customize != nil {
		if err := st.Spec.Customize(spec); err != nil {
			return nil, fmt.Errorf("customize: %w", err)
		}
		if spec.Linux == nil || spec.Process == nil {
			return nil, fmt.Errorf("%w: customize: the spec has lost its process or linux section", ErrInvalid)
		}
		group = e.beginGroup(st, spec)
	}
	var connectLate func(context.Context, *os.File) error
	if net != nil && hasNamespace(spec, specs.UserNamespace) {
		if net.ns == nil {
			return nil, &UnsupportedError{Feature: "the network of others for a container with a user namespace of its own, which has to own the network namespace",
				Fix: "connect it to networks of its own"}
		}
		if err := net.leave(ctx, spec); err != nil {
			return nil, err
		}
		connectLate = func(ctx context.Context, pidfd *os.File) error { return net.enter(ctx, st, pidfd) }
	}
	join, err := group.join()
	if err != nil {
		return nil, err
	}
	defer join.Close()
	if group.unfiltered && !st.Spec.Security.Privileged {
		e.log.Info("no device filter is possible here: the container gets no CAP_MKNOD, and device nodes of its image do not work", "container", st.Name)
		if err := withoutDevices(spec, root); err != nil {
			return nil, err
		}
	}
	streams := &streams{}
	if !st.Spec.TTY {
		if streams, err = newStreams(st.Spec.Stdin, st.Spec.Stdout, st.Spec.Stderr); err != nil {
			return nil, err
		}
	}
	r := &run{group: group.group, streams: streams, spec: spec, net: net, ended: make(chan struct{}), cleaned: make(chan struct{})}
	if err := c.launchWith(ctx, st, r, &nsexec.Options{Root: root, Cgroup: join.Dir, Tasks: join.Tasks, CgroupKill: join.Kill, Init: st.Spec.Init, Connect: connectLate}); err != nil {
		streams.abandon()
		return nil, explainStart(err, group.group)
	}
	net.started()
	crashpoint.At("start: program runs")
	if r.proc != nil && r.proc.Terminal() != nil {
		streams.copyTerminal(r.proc.Terminal(), st.Spec.Stdin, st.Spec.Stdout)
	}
	streams.begin()
	return r, nil
}

// launchWith compiles the plan and starts it, with all that the container's guard needs.
func (c *Container) launchWith(ctx context.Context, st *containerState, r *run, opts *nsexec.Options) error {
	e := c.eng
	guard, err := c.guardFiles(st, r.streams)
	if err != nil {
		return err
	}
	defer guard.close()
	opts.Log, opts.Keeper, opts.Input = guard.log, guard.keeper, guard.input
	if opts.Keeper != nil {
		join, done, err := e.keeperJoin(ctx)
		if err != nil {
			return err
		}
		defer done()
		defer join.Close()
		opts.Keeper.Cgroup, opts.Keeper.Tasks = join.Dir, join.Tasks
		opts.Keeper.Hold = r.net.hold()
		events, err := r.group.MemoryEvents()
		if err != nil {
			return err
		}
		if events != nil {
			defer events.Close()
			opts.Keeper.MemoryEvents = events
		}
	}
	prog, err := nsexec.Compile(r.spec, opts)
	if err != nil {
		return err
	}
	defer prog.Close()
	if err := r.streams.own(r.spec.Process.User.UID, r.spec.Process.User.GID); err != nil {
		return err
	}
	if opts.Keeper != nil {
		r.detached, err = e.launcher.StartDetached(ctx, prog, &r.streams.stdio)
	} else {
		r.proc, err = e.launcher.Start(ctx, prog, &r.streams.stdio)
	}
	return err
}

// pendingGroup is a cgroup that is being made.
type pendingGroup struct {
	done  chan struct{} // closed when the following are set
	group *cgroup.Group
	files *cgroup.Join
	err   error

	unfiltered bool // the group has no limits and no device filter
}

// beginGroup begins to make the container's cgroup and to open what joins it.
func (e *Engine) beginGroup(st *containerState, spec *specs.Spec) *pendingGroup {
	p, resources := &pendingGroup{done: make(chan struct{})}, spec.Linux.Resources
	go func() {
		defer close(p.done)
		p.group, p.err = e.cgroups.Create(e.groupName(st.ID), resources)
		if errors.Is(p.err, fs.ErrExist) {
			// Of a start whose program was killed before it had noted that the container runs.
			if p.err = e.removeGroup(context.Background(), st.ID); p.err == nil {
				p.group, p.err = e.cgroups.Create(e.groupName(st.ID), resources)
			}
		}
		if errors.Is(p.err, errors.ErrUnsupported) && reflect.ValueOf(st.Spec.Limits).IsZero() {
			// No cgroups here, or none that may be written. A container without limits does without.
			p.group, p.err = e.cgroups.Create(e.groupName(st.ID), nil)
			p.unfiltered = true
		}
		if p.err == nil {
			p.files, p.err = p.group.Join()
		}
	}()
	return p
}

// join waits for the cgroup and returns what joins it.
func (p *pendingGroup) join() (*cgroup.Join, error) {
	<-p.done
	return p.files, p.err
}

// discard removes the cgroup again.
func (p *pendingGroup) discard(ctx context.Context) error {
	<-p.done
	if p.group == nil {
		return nil
	}
	return errors.Join(p.files.Close(), p.group.Remove(ctx))
}

// explainStart adds what the cgroup knows to the error of a start.
func explainStart(err error, group *cgroup.Group) error {
	if errors.Is(err, nsexec.ErrDied) {
		if n, _ := group.OOMKills(); n > 0 {
			return fmt.Errorf("%w: the memory limit is too small to start in", err)
		}
	}
	return err
}

// groupPrefix begins the names of the cgroups that belong to this root: roots may share a parent.
func (e *Engine) groupPrefix() string {
	h := fnv.New64a()
	h.Write([]byte(e.root))
	return fmt.Sprintf("%016x-", h.Sum64())
}

func (e *Engine) groupName(id string) string { return e.groupPrefix() + id }

// removeGroup kills what is in the cgroup of a container and removes it.
func (e *Engine) removeGroup(ctx context.Context, id string) error {
	group, err := e.cgroups.Load(e.groupName(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := group.Kill(ctx); err != nil {
		return err
	}
	return group.Remove(ctx)
}

// writeConfig stores the OCI spec for whoever inspects the container from elsewhere.
func (c *Container) writeConfig(r *run) error {
	b, err := json.Marshal(r.spec)
	if err != nil {
		return err
	}
	return statefile.WriteBytes(c.eng.containerDir(c.id), "config.json", b)
}

// monitor waits for the container's end and cleans up after it.
func (c *Container) monitor(r *run) {
	ctx := context.Background()
	st, _ := c.current() // of a container that this engine owns: no error is possible
	var errs []error
	// While the container runs; whoever asks before gets the spec from memory.
	// A container that is removed at its end is spared the work, unless others run commands in it.
	if !st.Spec.AutoRemove || st.Resolved.Health != nil {
		errs = append(errs, c.writeConfig(r))
	}
	status, err := r.proc.Wait(ctx)
	r.exit = *newExitStatus(status)
	if err != nil {
		r.exit = ExitStatus{Code: -1, Unknown: true}
	}
	crashpoint.At("end: program ended")
	c.eng.commands.forget(c.id)
	c.eng.listeners.end(c.id)
	// A pid namespace of its own is empty when its first process has been waited for. Without one a container may leave
	// processes, which hold its streams open.
	if !hasNamespace(r.spec, specs.PIDNamespace) {
		errs = append(errs, r.group.Kill(ctx))
	}
	if n, err := r.group.OOMKills(); err == nil && n > 0 {
		r.exit.OOMKilled = true
	}
	removed := make(chan error, 1)
	go func() { removed <- r.group.Remove(ctx) }()
	r.streamErr = r.streams.end()

	st.Status, st.Finished, st.PID, st.Exit = StatusExited, time.Now(), 0, &r.exit
	autoRemove := c.eng.removedAtEnd(st)
	if autoRemove {
		c.mu.Lock()
		c.state = st
		c.mu.Unlock()
	} else {
		errs = append(errs, c.setState(st))
	}
	named := *st
	named.Name = c.Name() // it may have been renamed meanwhile
	c.eng.emitDied(&named)
	r.net.end()
	close(r.ended)

	errs = append(errs, <-removed)
	r.net.awaitPorts()
	crashpoint.At("end: cgroup gone")
	if autoRemove {
		// Under the lock: it tells Check that the container is being removed. It may have another name by now.
		now, unlock, err := c.lock(ctx)
		if err == nil {
			errs = append(errs, c.eng.destroy(ctx, now))
			unlock()
		} else if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		c.eng.disown(c.id)
	}
	if r.cleanErr = errors.Join(errs...); r.cleanErr != nil {
		c.eng.log.Warn("clean up after a container", "container", c.name, "id", c.id, "error", r.cleanErr)
	}
	close(r.cleaned)
}

// hasNamespace reports whether the spec asks for a namespace of the container's own.
func hasNamespace(spec *specs.Spec, kind specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind && n.Path == "" })
}

func (e *Engine) disown(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.owned, id)
}

// shutDown is what Close does to a container of the engine.
func (c *Container) shutDown() error {
	c.op.Lock() // a start under way comes to its end first
	r := c.lastRun()
	c.op.Unlock()
	if r != nil {
		c.emitKill(syscall.SIGKILL, r.proc.Signal)
		if err := errors.Join(r.proc.Kill(), c.thawKilled()); err != nil {
			return c.fail("kill", err)
		}
		<-r.cleaned
		if r.cleanErr != nil {
			return c.fail("clean up", r.cleanErr)
		}
	}
	st, unlock, err := c.lock(context.Background())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return c.fail("release", err)
	}
	defer unlock()
	if st.Spec.AutoRemove {
		return c.fail("remove", c.eng.destroy(context.Background(), st))
	}
	st.Owner = ""
	return c.fail("release", c.setState(st))
}
