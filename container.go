package coracle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/filelock"
	"github.com/coracle-dev/coracle/internal/lockorder"
	"github.com/coracle-dev/coracle/internal/statefile"
	"github.com/coracle-dev/coracle/layerfs"
)

// A Container is a handle on a container of an engine's root. Its methods may be called from many goroutines.
//
// A running container belongs to the engine that started it; others see it, can wait for it and signal it. A detached
// one belongs to all.
type Container struct {
	eng  *Engine
	id   string
	name string

	// op is held while the container starts, is removed, or is marked as ended: one such operation at a time, here
	// by the mutex and among processes by the lock of the container's directory.
	op sync.Mutex

	renamed atomic.Pointer[string] // the last name that is known, if it is not name
	restart sync.Mutex             // held by Restart

	mu    sync.Mutex
	state *containerState // of a container that this engine owns, otherwise nil
	run   *run            // of the last start by this engine, or nil
}

// ID returns the container's id, 64 hexadecimal digits.
func (c *Container) ID() string { return c.id }

// Create makes a container, pulling its image if need be, and does not start it. The container has a root filesystem of
// its own from now on.
//
// The error matches fs.ErrExist if the name is taken, fs.ErrNotExist if there is no such image, ErrInvalid if the spec
// makes no sense, and fs.ErrPermission if this user may not. Nothing is left behind then.
func (e *Engine) Create(ctx context.Context, spec *ContainerSpec) (*Container, error) {
	c, err := e.create(ctx, spec)
	if err != nil {
		name := spec.Name
		if name == "" {
			name = spec.Image
		}
		return nil, &OpError{Op: "create", Kind: "container", Name: name, Err: err}
	}
	return c, nil
}

func (e *Engine) create(ctx context.Context, spec *ContainerSpec) (_ *Container, err error) {
	ctx, done, err := e.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: containers need root (CAP_SYS_ADMIN) at present: run the program as root", fs.ErrPermission)
	}
	if err := spec.validate(); err != nil {
		return nil, err
	}
	if err := e.findNetworks(spec); err != nil {
		return nil, err
	}
	img, layers, release, err := e.imageFor(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer func() { release() }()
	st := &containerState{
		Version: stateVersion, ID: newID(idLength / 2), Name: spec.Name, Owner: e.owner.id, Status: StatusCreated,
		Spec: spec.clone(), ImageID: img.ID(), Layers: layers, Created: time.Now(), Customized: spec.Customize != nil,
	}
	if st.Resolved, err = spec.resolve(img.config.Config, st.ID); err != nil {
		return nil, err
	}
	health, err := img.health()
	if spec.Health.none() {
		err = nil // whatever the image's is worth
	}
	if err != nil {
		return nil, err
	}
	if st.Resolved.Health, err = spec.resolveHealth(health); err != nil {
		return nil, err
	}
	if st.Name == "" {
		st.Name = st.ID[:12]
	}
	// Whoever finds it and removes it before it is whole waits: only this engine can.
	c := &Container{eng: e, id: st.ID, name: st.Name, state: st}
	c.op.Lock()
	defer c.op.Unlock()
	e.mu.Lock()
	e.owned[st.ID] = c
	e.mu.Unlock()
	defer func() {
		if err != nil {
			e.disown(st.ID)
		}
	}()
	if err := e.addState(st); err != nil {
		return nil, err
	}
	release() // from here on the container's state keeps the layers
	defer func() {
		if err != nil {
			err = errors.Join(err, e.discard(context.WithoutCancel(ctx), st))
		}
	}()
	if spec.Name != "" {
		if err := e.addName(spec.Name, st.ID); err != nil {
			return nil, err
		}
		crashpoint.At("create: named")
	}
	// An attached container does not outlive its program, and what it wrote does not have to outlive a power failure.
	// Without Volatile, its end would write out everything that the host has not written yet.
	opts := &layerfs.SnapshotOptions{Volatile: !spec.Detached}
	if _, err := e.store.NewSnapshot(ctx, st.ID, layers, opts); err != nil {
		return nil, err
	}
	e.emitContainer(st, ActionCreate)
	return c, nil
}

// destroy is discard for a container that others have been told of: they are told of this too.
func (e *Engine) destroy(ctx context.Context, st *containerState) error {
	return e.discardThen(ctx, st, func() { e.emitContainer(st, ActionDestroy) })
}

// discard removes all that belongs to a container that is not running, in the order that state.go explains. What is
// missing is no error.
func (e *Engine) discard(ctx context.Context, st *containerState) error {
	return e.discardThen(ctx, st, func() {})
}

// discardThen calls gone when the container is out of sight.
func (e *Engine) discardThen(ctx context.Context, st *containerState, gone func()) error {
	var errs []error
	if err := e.removeGroup(ctx, st.ID); err != nil {
		errs = append(errs, err)
	}
	crashpoint.At("discard: cgroup gone")
	e.endConnections(st.ID) // of a detached container whose end nobody has noted
	errs = append(errs, e.store.RemoveSnapshot(ctx, st.ID))
	crashpoint.At("discard: snapshot gone")
	errs = append(errs, e.removeName(st.Name, st.ID))
	crashpoint.At("discard: name gone")
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := e.removeState(st.ID, gone); err != nil {
		return err
	}
	return e.unmark(st.ID)
}

// Container finds a container by its name, its id or an unambiguous beginning of its id. The error matches
// fs.ErrNotExist if there is none.
func (e *Engine) Container(ctx context.Context, nameOrID string) (*Container, error) {
	c, err := e.container(nameOrID)
	if err != nil {
		return nil, &OpError{Op: "find", Kind: "container", Name: nameOrID, Err: err}
	}
	return c, nil
}

func (e *Engine) container(nameOrID string) (*Container, error) {
	if err := e.use(); err != nil {
		return nil, err
	}
	id := e.nameOf(nameOrID)
	if id == "" {
		ids, err := e.containerIDs()
		if err != nil {
			return nil, err
		}
		for _, candidate := range ids {
			if nameOrID == "" || !strings.HasPrefix(candidate, nameOrID) {
				continue
			}
			if id != "" {
				return nil, fmt.Errorf("%w: more than one id begins so", ErrInvalid)
			}
			id = candidate
		}
	}
	if id == "" {
		return nil, fs.ErrNotExist
	}
	return e.handle(id)
}

// handle returns the handle of the container with the id: always the same one for a container that the engine owns.
func (e *Engine) handle(id string) (*Container, error) {
	e.mu.Lock()
	c := e.owned[id]
	e.mu.Unlock()
	if c != nil {
		return c, nil
	}
	st, err := e.readState(id)
	if err != nil {
		return nil, err
	}
	return &Container{eng: e, id: id, name: st.Name}, nil
}

// containerIDs lists the ids of all containers of the root.
func (e *Engine) containerIDs() ([]string, error) {
	entries, err := os.ReadDir(e.containersDir())
	if err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(entries))
	for _, entry := range entries {
		if validID(entry.Name()) {
			ids = append(ids, entry.Name())
		}
	}
	return ids, nil
}

// ContainerFilter chooses containers. All that is set must hold; the zero filter chooses all.
type ContainerFilter struct {
	// Status is what the container is at present; empty means any.
	Status ContainerStatus
	// Labels are labels it has, by value; an empty value means that the label exists.
	Labels map[string]string
	// Image is the reference that its spec names; empty means any.
	Image string
}

// Containers lists the containers of the root, of this and of other programs, in the order of their creation.
func (e *Engine) Containers(ctx context.Context, filter *ContainerFilter) ([]*Container, error) {
	list, err := e.containers(filter)
	if err != nil {
		return nil, &OpError{Op: "list", Kind: "containers", Name: e.root, Err: err}
	}
	return list, nil
}

// lock takes the container for an operation that changes it, and returns its present state and what unlocks it. The
// error matches fs.ErrNotExist if the container was removed meanwhile.
func (c *Container) lock(ctx context.Context) (*containerState, func(), error) {
	c.op.Lock()
	dir, err := os.Open(c.eng.containerDir(c.id))
	if err != nil {
		c.op.Unlock()
		return nil, nil, err
	}
	released := func() {}
	unlock := func() {
		released()
		dir.Close()
		c.op.Unlock()
	}
	if err := filelock.Lock(ctx, dir); err != nil {
		unlock()
		return nil, nil, err
	}
	released = lockorder.Taken(lockorder.Operation, c.id)
	st, err := c.current()
	if err == nil && !sameFile(c.eng.containerDir(c.id), dir) {
		err = fs.ErrNotExist
	}
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return st, unlock, nil
}

// begin begins an operation that changes the container: until end is called the engine is not closed, and the container is locked as by
// lock.
func (c *Container) begin(ctx context.Context) (_ context.Context, st *containerState, end func(), err error) {
	ctx, done, err := c.eng.begin(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	st, unlock, err := c.lock(ctx)
	if err != nil {
		done()
		return nil, nil, nil, err
	}
	return ctx, st, func() { unlock(); done() }, nil
}

// current returns the container's state: the engine's own if it owns the container, the stored one otherwise.
func (c *Container) current() (*containerState, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != nil {
		st := *c.state
		return &st, c.eng.applyChanges(&st)
	}
	st, err := c.eng.readState(c.id)
	if err != nil {
		return nil, err
	}
	return c.eng.derived(st), nil
}

// setState stores the state, here and on disk. The container is locked.
func (c *Container) setState(st *containerState) error {
	if err := statefile.Write(c.eng.containerDir(c.id), "state.json", st); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = st
	return nil
}

// fail makes the error of an operation on the container.
func (c *Container) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	return &OpError{Op: op, Kind: "container", Name: c.knownName(), Err: err}
}
