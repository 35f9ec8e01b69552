package coracle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// What Check looks at of containers: their records, their root filesystems and their names. Programs that are killed
// meanwhile leave things half done, which is no damage.

// containers verifies their records, names and snapshots.
func (c *checker) containers() error {
	e := c.eng
	c.users = make(map[string][]string)
	ids, err := e.containerIDs()
	if err != nil {
		return err
	}
	known := make(map[string]bool)
	for _, id := range ids {
		known[id] = true
		c.report.Containers++
		st, err := e.readState(id)
		if errors.Is(err, fs.ErrNotExist) {
			if _, statErr := os.Lstat(e.containerDir(id)); errors.Is(statErr, fs.ErrNotExist) {
				continue // removed meanwhile
			}
		}
		if err != nil {
			c.add(&Damage{Kind: DamagedContainer, Name: id, Err: corrupt(err)})
			continue
		}
		for _, l := range st.Layers {
			c.users[l.Key] = append(c.users[l.Key], st.Name)
		}
		c.report.Snapshots++
		if err := e.store.VerifySnapshot(id); err != nil {
			if stays, stErr := c.stays(func() bool { return !c.unfinished(id) }); stErr != nil {
				return stErr
			} else if !stays {
				continue
			}
			c.add(&Damage{Kind: DamagedSnapshot, Name: id, Containers: []string{st.Name}, Err: corrupt(err),
				fix: func(ctx context.Context) error { return e.repairSnapshot(ctx, id) }})
		}
	}
	snapshots, err := e.store.Snapshots()
	if err != nil {
		return err
	}
	for _, id := range snapshots {
		if _, err := os.Lstat(e.containerDir(id)); known[id] || err == nil {
			continue
		}
		stays, err := c.stays(func() bool {
			now, err := e.store.Snapshots()
			return err == nil && slices.Contains(now, id)
		})
		if err != nil {
			return err
		}
		if stays {
			c.report.Snapshots++
			c.add(&Damage{Kind: DamagedSnapshot, Name: id, Err: fmt.Errorf("%w: it belongs to no container", ErrCorrupt),
				fix: func(ctx context.Context) error { return e.store.RemoveSnapshot(ctx, id) }})
		}
	}
	return c.names()
}

// stays says whether what looks like damage is still there after what dead engines left was swept: they may be killed
// at any moment of the check, and what they leave is no damage. A killed process gives up its locks one after the other,
// so that it is asked for more than once.
func (c *checker) stays(damaged func() bool) (bool, error) {
	for range 3 {
		if err := c.eng.sweep(c.ctx); err != nil {
			return false, err
		}
		if !damaged() {
			return false, nil
		}
	}
	return true, nil
}

// unfinished says whether a container is being made or removed by an engine that is alive, or is gone by now.
func (c *checker) unfinished(id string) bool {
	st, err := c.eng.readState(id)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	ct := &Container{eng: c.eng, id: id, name: st.Name}
	st, unlock, err := ct.lock(c.ctx) // whoever removes it holds this
	if err != nil {
		return true
	}
	unlock()
	// Whoever makes it is its owner, and does not hold the lock.
	_, err = c.eng.store.OpenSnapshot(id)
	return errors.Is(err, fs.ErrNotExist) && st.Status == StatusCreated && c.eng.ownerAlive(st.Owner) || c.eng.store.VerifySnapshot(id) == nil
}

func (c *checker) names() error {
	e := c.eng
	entries, err := os.ReadDir(e.namesDir())
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := filepath.Join(e.namesDir(), entry.Name())
		id, err := os.Readlink(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && validID(id) {
			if _, err = os.Lstat(e.containerDir(id)); err == nil {
				continue
			}
			stays, err := c.stays(func() bool {
				now, err := os.Readlink(path)
				return err == nil && now == id
			})
			if err != nil {
				return err
			}
			if !stays {
				continue // it was being removed
			}
		}
		c.add(&Damage{Kind: DamagedName, Name: entry.Name(), Err: fmt.Errorf("%w: it leads to no container", ErrCorrupt),
			fix: func(context.Context) error { return removeStale(path, id) }})
	}
	return nil
}

// removeStale removes a name if it still leads to the id.
func removeStale(path, id string) error {
	if now, err := os.Readlink(path); err == nil && now != id {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
