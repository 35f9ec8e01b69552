package coracle

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/filelock"
	"github.com/coracle-dev/coracle/internal/lockorder"
	"github.com/coracle-dev/coracle/internal/statefile"
)

// sweep removes what dead engines left: their running containers, which the kernel has ended, and those with AutoRemove
// or half made or half removed. Their other containers become nobody's. If all engines before this one were closed in
// order, and the host has not been booted since, there is nothing to do but to see that.
//
// Containers are not synced: those that are nobody's are looked at once after a boot, since a power failure may have left
// any part of them.
func (e *Engine) sweep(ctx context.Context) error {
	lock, err := os.OpenFile(filepath.Join(e.root, "sweep.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	// One at a time, and wait: whoever opens finds a clean root.
	if err := filelock.Lock(ctx, lock); err != nil {
		return err
	}
	defer lockorder.Taken(lockorder.Sweep, "sweep.lock")()
	if err := e.settleAll(ctx); err != nil {
		return err
	}
	if err := e.sweepOwners(ctx); err != nil {
		return err
	}
	return e.sweepNetworks(ctx) // by owners that are no more
}

// sweepOwners removes dead engines, and first what belongs to them.
func (e *Engine) sweepOwners(ctx context.Context) error {
	dead, err := deadOwners(e.ownersDir())
	defer func() {
		for _, o := range dead {
			o.file.Close()
		}
	}()
	booted := e.bootedSinceSweep()
	if err != nil || len(dead) == 0 && !booted {
		return err
	}
	if err := e.sweepContainers(ctx, dead, booted); err != nil {
		return err
	}
	crashpoint.At("sweep: containers done")
	if err := e.sweepOrphans(ctx); err != nil {
		return err
	}
	crashpoint.At("sweep: orphans done")
	for _, o := range dead {
		if run := runDir(e.config.Run); run != "" {
			if err := os.RemoveAll(filepath.Join(run, "plans", o.id)); err != nil {
				return err
			}
		}
		if err := os.Remove(o.file.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		crashpoint.At("sweep: an owner is gone")
	}
	if booted {
		return statefile.Write(e.root, "boot.json", bootRecord{ID: bootID()})
	}
	return nil
}

// bootRecord is boot.json of a root: the boot of the host that the root was last swept in. Nothing in a root can be torn
// by a power failure that its boot has not seen. The file itself may be: then the root is swept once more.
type bootRecord struct{ ID string }

func (e *Engine) bootedSinceSweep() bool {
	var r bootRecord
	err := statefile.Read(e.root, "boot.json", &r)
	return err != nil || r.ID == "" || r.ID != bootID()
}

// whole reports whether a container that does not run has all that belongs to it: one that has not was never completed,
// was being removed, or has seen a power failure.
func (e *Engine) whole(st *containerState) bool {
	if st.Spec.Name != "" && e.nameOf(st.Name) != st.ID {
		return false
	}
	_, err := e.store.OpenSnapshot(st.ID)
	return !errors.Is(err, fs.ErrNotExist)
}

// sweepContainers goes through the containers of dead engines and those that are nobody's.
func (e *Engine) sweepContainers(ctx context.Context, dead []*owner, booted bool) error {
	alive := make(map[string]bool)
	gone := func(id string) bool {
		if slices.ContainsFunc(dead, func(o *owner) bool { return o.id == id }) {
			return true // and locked by us at this moment
		}
		if _, known := alive[id]; !known {
			alive[id] = e.ownerAlive(id)
		}
		return !alive[id]
	}
	entries, err := os.ReadDir(e.containersDir())
	if err != nil {
		return err
	}
	crashpoint.At("sweep: containers listed")
	past := &pastEvents{eng: e}
	for _, entry := range entries {
		if owner, id, ok := strings.Cut(strings.TrimPrefix(entry.Name(), "."), "."); ok && entry.Name()[0] == '.' {
			if !gone(owner) {
				continue
			}
			// Its owner may have brought the container in sight after the listing and been killed only then. Now that the owner
			// is dead nobody but this sweep renames or removes the directory.
			transient := filepath.Join(e.containersDir(), entry.Name())
			if _, err := os.Lstat(transient); errors.Is(err, fs.ErrNotExist) {
				continue
			}
			past.removed(ctx, id)
			if err := os.RemoveAll(transient); err != nil {
				return err
			}
			crashpoint.At("sweep: a half-made container is gone")
			continue
		}
		if err := e.sweepContainer(ctx, entry.Name(), gone, booted, past); err != nil {
			return err
		}
	}
	return nil
}

// sweepContainer looks at one container. Others may be starting or removing it.
func (e *Engine) sweepContainer(ctx context.Context, id string, gone func(owner string) bool, booted bool, past *pastEvents) error {
	unreadable := func(err error) error {
		switch {
		case !validID(id):
		case booted && (errors.Is(err, statefile.ErrTorn) || errors.Is(err, fs.ErrNotExist)):
			// The power failed. The container's engine, whichever it was, is dead: those that live see whole files. The name
			// goes in sweepOrphans.
			e.log.Info("removing a container whose state did not survive a power failure", "id", id)
			past.removed(ctx, id)
			return e.discard(ctx, &containerState{ID: id})
		case !errors.Is(err, fs.ErrNotExist): // else it has just been removed
			e.log.Warn("a container's state cannot be read: see Engine.Check", "id", id, "error", err)
		}
		return nil
	}
	st, err := e.readState(id)
	if err != nil {
		return unreadable(err)
	}
	if st.Owner != "" && !gone(st.Owner) || e.derived(st).kept() {
		return nil
	}
	c := &Container{eng: e, id: st.ID, name: st.Name}
	st, unlock, err := c.lock(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		return unreadable(err)
	}
	defer unlock()
	if st.Owner != "" && !gone(st.Owner) || st.kept() {
		return nil
	}
	if st.unsettled() && e.whole(st) {
		return c.settleLocked(ctx, st)
	}
	goes := !e.whole(st) || st.Owner != "" && (st.Status == StatusRunning || st.Spec.AutoRemove)
	if goes || st.Owner != "" || booted {
		past.settle(ctx, st, !goes)
	}
	if goes {
		e.log.Info("removing a container whose program was killed", "container", st.Name, "id", st.ID)
		return past.discard(ctx, st)
	}
	// Whoever was starting it, or noting its end, may have been killed before that was noted. Nobody is now: we hold the lock.
	for _, name := range []string{"state.json.new", "config.json.new", endpointsFile + ".new", "changes.json.new", healthFile + ".new"} {
		if err := os.Remove(filepath.Join(e.containerDir(id), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if st.Owner != "" {
		st.Owner = ""
		if err := c.setState(st); err != nil {
			return err
		}
	}
	err = e.removeGroup(ctx, id)
	crashpoint.At("sweep: a container is done")
	return err
}

// sweepOrphans removes names, snapshots and cgroups whose container has no directory any more: see state.go for the
// order that makes this right.
func (e *Engine) sweepOrphans(ctx context.Context) error {
	exists := func(id string) bool {
		_, err := os.Lstat(e.containerDir(id))
		return !errors.Is(err, fs.ErrNotExist)
	}
	names, err := os.ReadDir(e.namesDir())
	if err != nil {
		return err
	}
	for _, entry := range names {
		path := filepath.Join(e.namesDir(), entry.Name())
		if id, err := os.Readlink(path); err == nil && !exists(id) {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			crashpoint.At("sweep: a name is gone")
		} else if err == nil {
			if err := e.sweepName(ctx, entry.Name(), id); err != nil {
				return err
			}
		}
	}
	snapshots, err := e.store.Snapshots()
	if err != nil {
		return err
	}
	for _, id := range snapshots {
		if !validID(id) || exists(id) {
			continue
		}
		if err := e.store.RemoveSnapshot(ctx, id); err != nil {
			return err
		}
		crashpoint.At("sweep: a snapshot is gone")
	}
	groups, err := e.cgroups.Names()
	if err != nil {
		return err
	}
	for _, name := range groups {
		id, ours := strings.CutPrefix(name, e.groupPrefix())
		if ours && validID(id) && !exists(id) {
			if err := e.removeGroup(ctx, id); err != nil {
				return err
			}
			crashpoint.At("sweep: a cgroup is gone")
		} else if ours && validID(id) {
			// The container runs on, whoever ran commands in it.
			group, err := e.cgroups.Load(name)
			if err == nil {
				err = e.sweepCommands(ctx, group)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // else it has just ended
				return err
			}
		}
	}
	return nil
}
