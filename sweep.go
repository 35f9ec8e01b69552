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
)

// sweep removes what dead engines left: their running containers, which the kernel has ended, and those with AutoRemove
// or half made or half removed. Their other containers become nobody's. If all engines before this one were closed in
// order, there is nothing to do but to see that.
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
	dead, err := deadOwners(e.ownersDir())
	defer func() {
		for _, o := range dead {
			o.file.Close()
		}
	}()
	if err != nil || len(dead) == 0 {
		return err
	}
	if err := e.sweepContainers(ctx, dead); err != nil {
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
	return nil
}

// sweepContainers goes through the containers of dead engines.
func (e *Engine) sweepContainers(ctx context.Context, dead []*owner) error {
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
	for _, entry := range entries {
		if owner, _, ok := strings.Cut(strings.TrimPrefix(entry.Name(), "."), "."); ok && entry.Name()[0] == '.' {
			if gone(owner) {
				if err := os.RemoveAll(filepath.Join(e.containersDir(), entry.Name())); err != nil {
					return err
				}
				crashpoint.At("sweep: a half-made container is gone")
			}
			continue
		}
		if err := e.sweepContainer(ctx, entry.Name(), gone); err != nil {
			return err
		}
	}
	return nil
}

// sweepContainer looks at one container. Others may be starting or removing it.
func (e *Engine) sweepContainer(ctx context.Context, id string, gone func(owner string) bool) error {
	unreadable := func(err error) error {
		if errors.Is(err, fs.ErrNotExist) || !validID(id) {
			return nil
		}
		e.log.Warn("a container's state cannot be read: see Engine.Check", "id", id, "error", err)
		return nil
	}
	st, err := e.readState(id)
	if err != nil {
		return unreadable(err)
	}
	if st.Owner != "" && !gone(st.Owner) {
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
	if st.Owner != "" && !gone(st.Owner) {
		return nil
	}
	// One without a snapshot was never completed, or was being removed.
	_, err = e.store.OpenSnapshot(id)
	half := errors.Is(err, fs.ErrNotExist)
	if half || st.Owner != "" && (st.Status == StatusRunning || st.Spec.AutoRemove) {
		e.log.Info("removing a container whose program was killed", "container", st.Name, "id", st.ID)
		return e.discard(ctx, st)
	}
	// One that was being started, by whomever, or whose end was being noted, has a cgroup, and a file half written.
	if err := e.removeGroup(ctx, id); err != nil {
		return err
	}
	crashpoint.At("sweep: a cgroup is gone")
	for _, name := range []string{"state.json.new", "config.json.new"} {
		if err := os.Remove(filepath.Join(e.containerDir(id), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if st.Owner == "" {
		return nil
	}
	st.Owner = ""
	return c.setState(st)
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
		}
	}
	return nil
}
