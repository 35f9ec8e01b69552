package coracle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/statefile"
)

// containerChanges is changes.json: what any program may change of a container, under its lock, while another one owns
// it and writes state.json without reading it again. What is set here counts and not what state.json says. It is synced:
// a name that is lost would make the container look like a half-made one after a power failure.
type containerChanges struct {
	Version int
	Name    string         `json:",omitempty"`
	Limits  *cgroup.Limits `json:",omitempty"`
	// Networks are the attachments since somebody has connected or disconnected the container.
	Networks *[]Attachment `json:",omitempty"`
	// Restarting is the engine that restarts the container: AutoRemove does not count at this end.
	Restarting string `json:",omitempty"`
	// Stopped says that somebody has ended the container: its restart policy does not start it.
	Stopped *stopMark `json:",omitempty"`
}

const changesFile = "changes.json"

// applyChanges puts the changes into a state as it was read.
func (e *Engine) applyChanges(st *containerState) error {
	ch, err := e.changes(st.ID)
	if err != nil {
		return err
	}
	if ch.Name != "" {
		st.Name, st.Spec.Name = ch.Name, ch.Name
	}
	if ch.Limits != nil {
		st.Spec.Limits = *ch.Limits
	}
	if ch.Networks != nil {
		st.Spec.Networks = *ch.Networks
		if len(*ch.Networks) == 0 {
			st.Spec.Networks = []Attachment{} // not nil, which means the default network
		}
	}
	st.stopped = ch.Stopped
	return nil
}

// changes reads the changes of a container. That there are none is no error.
func (e *Engine) changes(id string) (containerChanges, error) {
	var ch containerChanges
	err := statefile.Read(e.containerDir(id), changesFile, &ch)
	if errors.Is(err, fs.ErrNotExist) {
		return containerChanges{}, nil
	}
	if err == nil && (ch.Version != stateVersion || ch.Name != "" && !validName(ch.Name)) {
		err = fmt.Errorf("changes of container %s (version %d): %w", id, ch.Version, ErrCorrupt)
	}
	return ch, err
}

// change makes a further change. The container is locked.
func (e *Engine) change(id string, apply func(*containerChanges)) error {
	ch, err := e.changes(id)
	if err != nil {
		return err
	}
	ch.Version = stateVersion
	apply(&ch)
	return statefile.WriteSynced(e.containerDir(id), changesFile, ch)
}

// Name returns the container's name at this moment: any program may rename it. If it was removed, it is the last name
// that this handle has seen.
func (c *Container) Name() string {
	if ch, err := c.eng.changes(c.id); err == nil && ch.Name != "" {
		c.renamed.Store(&ch.Name)
	}
	return c.knownName()
}

// knownName is Name without a look at the disk.
func (c *Container) knownName() string {
	if name := c.renamed.Load(); name != nil {
		return *name
	}
	return c.name
}

// Rename gives the container another name, whoever owns it and whether it runs or not. Its host name stays, and so does the
// name by which other containers of its networks find it, until it is started again.
//
// The error matches fs.ErrExist if another container has the name, ErrInvalid if it is none (see ContainerSpec.Name),
// and fs.ErrNotExist if the container was removed. It is no error if it has the name already.
func (c *Container) Rename(ctx context.Context, name string) error {
	return c.fail("rename", c.rename(ctx, name))
}

// rename goes: the new name, then the note that it is the container's, then away with the old name. Both lead to the
// container in between, and whichever is not noted is swept when the program dies there.
func (c *Container) rename(ctx context.Context, name string) error {
	e := c.eng
	if !validName(name) {
		return fmt.Errorf("%w: the name %q has other characters than letters, digits, \"_\", \".\" and \"-\", begins with one of these, or has more than 128", ErrInvalid, name)
	}
	_, st, end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if !e.whole(st) {
		return fmt.Errorf("it is still being made: %w", fs.ErrNotExist) // by its owner, who does not hold the lock for that
	}
	old := st.Name
	owner := e.nameOf(name)
	if owner == st.ID && old == name {
		return nil
	}
	if owner != st.ID { // else of a rename that was killed
		if err := e.addName(name, st.ID); err != nil {
			return err
		}
	}
	crashpoint.At("rename: new name")
	err = syncDirectory(e.namesDir())
	if err == nil {
		err = e.change(st.ID, func(ch *containerChanges) { ch.Name = name })
	}
	if err != nil {
		return errors.Join(err, e.removeName(name, st.ID))
	}
	c.renamed.Store(&name)
	crashpoint.At("rename: noted")
	st.Name = name
	e.emitContainer(st, ActionRename, attrOldName, old)
	if old == name {
		return nil // it had it without a link: a container that was made without a name
	}
	err = e.removeName(old, st.ID)
	crashpoint.At("rename: old name gone")
	return err
}

func syncDirectory(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// sweepName removes a name that leads to a container which has another one: of a rename whose program was killed.
func (e *Engine) sweepName(ctx context.Context, name, id string) error {
	st, err := e.readState(id)
	if err != nil || st.Name == name {
		return nil // what cannot be read is the business of sweepContainer
	}
	c := &Container{eng: e, id: id, name: st.Name}
	st, unlock, err := c.lock(ctx) // a rename that goes on holds it
	if err != nil {
		return ctx.Err()
	}
	defer unlock()
	if st.Name == name {
		return nil
	}
	if err := removeStale(filepath.Join(e.namesDir(), name), id); err != nil {
		return err
	}
	crashpoint.At("sweep: a name of a rename is gone")
	return nil
}
