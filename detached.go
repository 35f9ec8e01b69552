package coracle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/filelock"
	"github.com/coracle-dev/coracle/internal/lockorder"
	"github.com/coracle-dev/coracle/internal/statefile"
	"github.com/coracle-dev/coracle/nsexec"
)

// A detached container is kept by its guard, the keeper: no engine owns it. While it runs there is
//
//	containers/<id>/state.json   says that it runs, and which process keeps it
//	containers/<id>/keeper       the exit record that the keeper fills in, see nsexec.Record
//	detached/<id>                says that somebody has to note its end and remove its cgroup, see the marks below
//
// That it has ended is what the record says, or what the keeper's death says. Any engine may note it, under the
// container's lock: settle.

const recordName = "keeper"

func (e *Engine) detachedDir() string { return filepath.Join(e.root, "detached") }

// keeperJoin opens what joins the group that the keepers of this root live in, and makes it where it is missing. Until
// done is called, nobody removes the group.
func (e *Engine) keeperJoin(ctx context.Context) (_ *cgroup.Join, done func(), err error) {
	for range 10 { // whoever closes may remove what we have just made
		unlock, err := e.lockKeepers(ctx, filelock.RLock)
		if err != nil {
			return nil, nil, err
		}
		join, err := e.loadKeepers()
		if err == nil {
			return join, unlock, nil
		}
		unlock()
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("open the cgroup of the keepers: %w", err)
		}
		if err := e.makeKeepers(ctx); err != nil {
			return nil, nil, fmt.Errorf("make the cgroup of the keepers: %w", err)
		}
	}
	return nil, nil, fmt.Errorf("%w: the cgroup of the keepers is removed again and again", ErrInUse)
}

func (e *Engine) lockKeepers(ctx context.Context, how func(context.Context, *os.File) error) (unlock func(), err error) {
	lock, err := os.OpenFile(filepath.Join(e.root, "keepers.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := how(ctx, lock); err != nil {
		lock.Close()
		return nil, err
	}
	released := lockorder.Taken(lockorder.Keepers, "keepers.lock")
	return func() {
		released()
		lock.Close()
	}, nil
}

// loadKeepers opens the group if all of it is there: it has a directory in each hierarchy.
func (e *Engine) loadKeepers() (*cgroup.Join, error) {
	group, err := e.cgroups.Load(e.keepersName())
	if err != nil {
		return nil, err
	}
	return group.Join()
}

// makeKeepers makes the group, if nobody else has done so meanwhile.
func (e *Engine) makeKeepers(ctx context.Context) error {
	unlock, err := e.lockKeepers(ctx, filelock.Lock)
	if err != nil {
		return err
	}
	defer unlock()
	if join, err := e.loadKeepers(); err == nil {
		return join.Close()
	}
	// Of a program that was killed while it made or removed it there may be a part.
	if group, err := e.cgroups.Load(e.keepersName()); err == nil {
		if err := group.Remove(ctx); err != nil {
			return err
		}
	}
	_, err = e.cgroups.Create(e.keepersName(), nil)
	return err
}

func (e *Engine) keepersName() string { return e.groupPrefix() + "keepers" }

// removeKeepers removes the keepers' group if there is no keeper, and nobody is about to make one.
func (e *Engine) removeKeepers() error {
	e.awaitKeepers()
	lock, err := os.OpenFile(filepath.Join(e.root, "keepers.lock"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // there has never been one
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if locked, err := filelock.TryLock(lock); err != nil || !locked {
		return err
	}
	defer lockorder.Taken(lockorder.Keepers, "keepers.lock")()
	group, err := e.cgroups.Load(e.keepersName())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if pids, err := group.Procs(); err != nil || len(pids) > 0 {
		return err
	}
	return group.Remove(context.Background())
}

// keeperWait bounds how long keepers may take to end that have left their records: they sync them, on a disk that may have
// other things to do.
const keeperWait = 10 * time.Second

// keeperLook is how often it is asked meanwhile whether there are others.
const keeperLook = 20 * time.Millisecond

// awaitKeepers waits for the keepers of containers whose end is noted already, if there are no others.
func (e *Engine) awaitKeepers() {
	ctx, cancel := context.WithTimeout(context.Background(), keeperWait)
	defer cancel()
	kept := func() bool {
		entries, err := os.ReadDir(e.detachedDir())
		return err != nil || len(entries) > 0
	}
	for !kept() {
		group, err := e.cgroups.Load(e.keepersName())
		if err != nil {
			return
		}
		pids, err := group.Procs()
		if err != nil || len(pids) == 0 {
			return
		}
		boot, start := processIdentity(pids[0])
		p, err := openProcess(pids[0], boot, start)
		if err == nil {
			// Not for longer than it takes to see that it is the keeper of a container that others are starting at this moment.
			look, cancelLook := context.WithTimeout(ctx, keeperLook)
			err = p.wait(look)
			cancelLook()
			p.close()
			if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
				continue
			}
		} else {
			err = ctx.Err() // it has just ended
		}
		if err != nil || !sleep(ctx, time.Millisecond) {
			e.log.Warn("a keeper has left its record and does not end", "pid", pids[0], "error", err)
			return
		}
	}
}

// release notes that a detached container runs and lets it go. The container is locked.
func (c *Container) release(ctx context.Context, st *containerState, r *run) (err error) {
	e, d := c.eng, r.detached
	defer func() {
		if err != nil {
			d.Abandon()
			r.net.end()
			err = errors.Join(err, r.group.Remove(context.WithoutCancel(ctx)))
		}
	}()
	if err := os.MkdirAll(e.detachedDir(), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(e.detachedDir(), c.id), []byte{markStarting}, 0o600); err != nil {
		return err
	}
	crashpoint.At("detach: marked")
	started := time.Now() // config.json is not older: by that its readers know it
	if err := c.writeConfig(r); err != nil {
		return err
	}
	next := *st
	next.Owner, next.Status, next.Started, next.Finished, next.Exit = "", StatusRunning, started, time.Time{}, nil
	next.Starts++
	next.PID, next.KeeperPID = d.PID(), d.KeeperPID()
	if next.PID != 0 { // else it has ended already
		next.BootID, next.StartTime = processIdentity(next.PID)
	}
	next.BootID, next.KeeperStart = processIdentity(next.KeeperPID)
	if next.KeeperPID == 0 || next.KeeperStart == 0 {
		return nsexec.ErrDied
	}
	if err := statefile.Write(e.containerDir(c.id), "state.json", &next); err != nil {
		return err
	}
	crashpoint.At("detach: noted")
	if err := d.Release(); err != nil {
		// The keeper is gone and has left a record, or nobody knows.
		return errors.Join(err, c.settleLocked(context.WithoutCancel(ctx), e.derived(&next)))
	}
	e.disown(c.id)
	c.mu.Lock()
	c.state, c.run = nil, nil // what is on disk counts
	c.mu.Unlock()
	e.emitContainer(&next, ActionStart)
	crashpoint.At("detach: told")
	if err := e.setMark(c.id, markStarted); err != nil {
		e.log.Warn("note that a container's start was told", "container", c.name, "id", c.id, "error", err) // whoever notes its end reads all events
	}
	e.follow(c)
	return nil
}

// follow notes the end of a detached container as soon as it comes, while the engine is open.
func (e *Engine) follow(c *Container) {
	_, done, err := e.begin(context.Background())
	if err != nil {
		return
	}
	go func() {
		defer done()
		if _, err := c.wait(e.closing); err != nil && e.closing.Err() == nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNotRunning) {
			e.log.Warn("wait for a detached container", "container", c.name, "id", c.id, "error", err)
		}
	}()
}

// derived completes a state from the disk by what only its keeper knows. The result says that it has ended, while
// KeeperPID is not zero, if that has to be noted.
func (e *Engine) derived(st *containerState) *containerState {
	if st.Status != StatusRunning || st.KeeperPID == 0 {
		return st
	}
	record, err := e.keeperRecord(st.ID)
	if err != nil || !record.Ended {
		if processLives(st.KeeperPID, st.BootID, st.KeeperStart) {
			return st
		}
		record, err = e.keeperRecord(st.ID) // it may have ended between the two
	}
	next := *st
	next.Status, next.PID = StatusExited, 0
	switch {
	case err == nil && record.Ended:
		next.Exit, next.Finished = newExitStatus(record.Status), record.Finished
		next.Exit.OOMKilled = cgroup.ParseOOMKills(record.MemoryEvents) > 0
		if next.Exit.OOMKilled {
			// In version 2 the keeper saw those of commands with limits too. The group tells them apart, until it is removed.
			if group, err := e.group(st.ID); err == nil {
				if n, err := group.OOMKills(); err == nil {
					next.Exit.OOMKilled = n > 0
				}
			}
		}
	default:
		next.Exit = &ExitStatus{Code: -1, Unknown: true}
	}
	return &next
}

func (e *Engine) keeperRecord(id string) (nsexec.Record, error) {
	f, err := os.Open(filepath.Join(e.containerDir(id), recordName))
	if err != nil {
		return nsexec.Record{}, err
	}
	defer f.Close()
	return nsexec.ReadRecord(f)
}

// kept reports whether the container runs under its keeper: it is nobody's to sweep.
func (st *containerState) kept() bool { return st.KeeperPID != 0 && st.Status == StatusRunning }

// unsettled reports whether the end of a detached container has to be noted.
func (st *containerState) unsettled() bool { return st.KeeperPID != 0 && st.Status != StatusRunning }

// settle notes the end of a detached container, if it has ended and nobody has done so, and removes what it needs no
// more: its cgroup, and with AutoRemove all of it. Of one that runs it tells the start, if who started it was killed before.
func (c *Container) settle(ctx context.Context) error {
	st, unlock, err := c.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return c.eng.unmark(c.id)
	}
	if err != nil {
		return err
	}
	defer unlock()
	if !st.unsettled() {
		if st.Status == StatusRunning {
			c.eng.tellStart(ctx, st)
			return nil
		}
		if !c.eng.marked(c.id) {
			return nil
		}
		// Whoever was noting it was killed, perhaps before its event.
		(&pastEvents{eng: c.eng}).settle(ctx, st, true)
		return c.eng.unmark(c.id)
	}
	return c.settleLocked(ctx, st)
}

func (c *Container) settleLocked(ctx context.Context, st *containerState) error {
	e := c.eng
	e.commands.forget(st.ID)
	if err := e.removeGroup(ctx, st.ID); err != nil {
		return err
	}
	crashpoint.At("settle: cgroup gone")
	if len(st.Spec.Ports) > 0 {
		if err := e.awaitKeeper(ctx, st); err != nil {
			return err
		}
	}
	if e.removedAtEnd(st) {
		e.tellEnd(ctx, st)
		e.endConnections(st.ID)
		return e.destroy(ctx, st)
	}
	told := e.endsToTell(ctx, st)
	st.KeeperPID, st.KeeperStart = 0, 0
	if st.Finished.IsZero() {
		st.Finished = time.Now() // at the latest
	}
	if err := statefile.Write(e.containerDir(c.id), "state.json", st); err != nil {
		return err
	}
	crashpoint.At("settle: noted")
	told()
	e.endConnections(st.ID)
	return e.unmark(c.id)
}

// keeperEnds bounds how long a keeper may take from its record of the container's end to its own.
const keeperEnds = 10 * time.Second

// awaitKeeper waits until the keeper of a container that has ended has ended too: whoever starts the container again takes the ports
// that it has held. The error is that of the context.
func (e *Engine) awaitKeeper(ctx context.Context, st *containerState) error {
	p, err := openProcess(st.KeeperPID, st.BootID, st.KeeperStart)
	if err != nil {
		return nil // it has ended
	}
	defer p.close()
	bounded, cancel := context.WithTimeout(ctx, keeperEnds)
	defer cancel()
	err = p.wait(bounded)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		e.log.Warn("wait for the keeper of a container that has ended", "container", st.Name, "id", st.ID, "error", err)
	}
	return nil
}

// The mark of a detached container, the one byte in detached/<id>, says which events there are of its last start. A
// program can be killed between any two steps, and no event may be missing or come twice.
const (
	markStarting = '0' // it may be that the start is told
	markStarted  = '1' // the start is told, the end is not
	markEnding   = '2' // it may be that the end is told
)

func (e *Engine) marked(id string) bool {
	_, err := os.Lstat(filepath.Join(e.detachedDir(), id))
	return !errors.Is(err, fs.ErrNotExist)
}

// startUntold reports whether it may be that nobody has told that the container was started.
func (e *Engine) startUntold(id string) bool {
	mark, err := os.ReadFile(filepath.Join(e.detachedDir(), id))
	return err == nil && len(mark) == 1 && mark[0] == markStarting
}

// tellStart appends the event of the start of a container that runs, if it is not there. The container is locked, so who has
// started it is not just about to.
func (e *Engine) tellStart(ctx context.Context, st *containerState) {
	if st.KeeperPID == 0 || !e.startUntold(st.ID) {
		return
	}
	if c := (&pastEvents{eng: e}).of(ctx, st); c == nil || !c.running {
		if c == nil {
			e.emitContainer(st, ActionCreate)
		}
		e.emitContainer(st, ActionStart)
	}
	if err := e.setMark(st.ID, markStarted); err != nil {
		e.log.Warn("note that a container's start is told", "container", st.Name, "id", st.ID, "error", err)
	}
}

func (e *Engine) setMark(id string, m byte) error {
	f, err := os.OpenFile(filepath.Join(e.detachedDir(), id), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte{m}, 0)
	return errors.Join(err, f.Close())
}

// tellEnd appends the events of a start that has ended, those that are not there. The container is locked.
func (e *Engine) tellEnd(ctx context.Context, st *containerState) { e.endsToTell(ctx, st)() }

// endsToTell is tellEnd in two steps: after the first one everybody knows that the second may have been taken.
func (e *Engine) endsToTell(ctx context.Context, st *containerState) (tell func()) {
	mark, err := os.ReadFile(filepath.Join(e.detachedDir(), st.ID))
	if err == nil && len(mark) == 1 && mark[0] == markStarted {
		if err := e.setMark(st.ID, markEnding); err != nil {
			e.log.Warn("note that a container's end is told", "container", st.Name, "id", st.ID, "error", err)
		}
		return func() { e.emitDied(st) }
	}
	// Somebody was killed, or the host was.
	past := &pastEvents{eng: e}
	if c := past.of(ctx, st); (c == nil || !c.running) && (len(mark) != 1 || mark[0] != markEnding) {
		if c == nil {
			e.emitContainer(st, ActionCreate)
		}
		e.emitContainer(st, ActionStart)
		if err := e.setMark(st.ID, markEnding); err != nil && !errors.Is(err, fs.ErrNotExist) {
			e.log.Warn("note that a container's end is told", "container", st.Name, "id", st.ID, "error", err)
		}
		return func() { e.emitDied(st) }
	}
	return func() { past.settle(ctx, st, true) }
}

// unmark removes detached/<id>.
func (e *Engine) unmark(id string) error {
	if err := os.Remove(filepath.Join(e.detachedDir(), id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	crashpoint.At("settle: mark gone")
	return nil
}

// settleAll notes the ends of detached containers that nobody saw, and tells the starts that nobody told.
func (e *Engine) settleAll(ctx context.Context) error {
	entries, err := os.ReadDir(e.detachedDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		id := entry.Name()
		if !validID(id) {
			continue
		}
		st, err := e.readState(id)
		if err == nil {
			if st = e.derived(st); st.Status == StatusRunning && !e.startUntold(id) {
				continue
			}
		} else if !errors.Is(err, fs.ErrNotExist) {
			continue // the sweep of all containers and Check see to it
		}
		c := &Container{eng: e, id: id}
		if st != nil {
			c.name = st.Name
		}
		if err := c.settle(ctx); err != nil {
			return err
		}
	}
	return nil
}
