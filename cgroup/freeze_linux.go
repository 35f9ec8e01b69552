package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// Freeze stops all processes of the group until [Group.Thaw], and returns when they are stopped. If it fails, also for
// the end of ctx, the group is thawed again. The error matches [fs.ErrNotExist] if there is no such group, and ErrThawed if
// somebody else has thawed it before it was frozen as a whole.
//
// In version 2 a frozen process can be killed; in a freezer of version 1 it dies when it is thawed.
func (g *Group) Freeze(ctx context.Context) error {
	err := g.freeze(ctx, true)
	if err != nil {
		// What could not be frozen as a whole must not stay half frozen. The file is written even where nothing was
		// frozen; the error that counts is the first.
		_ = g.writeFreezer(false)
	}
	return err
}

// Thaw lets the processes of the group run on. That they end by it, and the group is removed at once, is no error.
func (g *Group) Thaw(ctx context.Context) error { return g.freeze(ctx, false) }

// Frozen reports whether the group is frozen, or is about to be: whether its processes wait for [Group.Thaw], whoever has
// frozen it; what was begun by a process that was killed counts too. A group that does not exist, or that cannot be
// frozen here, is not frozen.
func (g *Group) Frozen() (bool, error) {
	t, file := g.freezer()
	if t == nil {
		return false, nil
	}
	dir, err := t.dir()
	if err != nil {
		return false, nil
	}
	state, err := readAt(dir, g.name+"/"+file)
	if err == unix.ENOENT || err == unix.ENODEV {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cgroup: see whether group %q is frozen: %w", g.name, &fs.PathError{Op: "read", Path: path.Join(t.where(), g.name, file), Err: err})
	}
	return string(bytes.TrimSpace(state)) != freezerValue(t.v2, false), nil
}

func (g *Group) freeze(ctx context.Context, frozen bool) error {
	verb := "thaw"
	if frozen {
		verb = "freeze"
	}
	t, file := g.freezer()
	if t == nil {
		return fmt.Errorf("cgroup: %s group %q: %w", verb, g.name, &UnsupportedError{Feature: "freezing", File: file,
			Fix: "mount a cgroup hierarchy with a freezer that this process may write"})
	}
	dir, err := t.dir()
	if err == nil {
		if t.v2 {
			err = freezeUnified(ctx, dir, g.name, frozen)
		} else {
			err = freezeLegacy(ctx, dir, g.name, frozen)
		}
	}
	if err == unix.ENODEV { // removed since its files were opened
		err = unix.ENOENT
	}
	if err != nil {
		return fmt.Errorf("cgroup: %s group: %w", verb, &fs.PathError{Op: "write", Path: path.Join(t.where(), g.name, file), Err: err})
	}
	return nil
}

// freezer returns the hierarchy that freezes the group, or nil, and the file that does it.
func (g *Group) freezer() (*tree, string) {
	t, file := g.h.tree(""), "cgroup.freeze"
	if t == nil {
		t, file = g.h.tree("freezer"), "freezer.state"
	}
	if g.none {
		t = nil
	}
	return t, file
}

// KillsFrozen reports whether SIGKILL ends a frozen process at once. In a freezer of version 1 it does not: the group is to
// be thawed after it.
func (h *Hierarchy) KillsFrozen() bool { return h.tree("") != nil || h.tree("freezer") == nil }

// writeFreezer says what is wanted, without waiting for it.
func (g *Group) writeFreezer(frozen bool) error {
	t, file := g.freezer()
	if t == nil {
		return nil
	}
	dir, err := t.dir()
	if err != nil {
		return err
	}
	return writeAt(dir, g.name+"/"+file, freezerValue(t.v2, frozen))
}

func freezerValue(v2, frozen bool) string {
	switch {
	case v2 && frozen:
		return "1"
	case v2:
		return "0"
	case frozen:
		return "FROZEN"
	}
	return "THAWED"
}

func freezeUnified(ctx context.Context, dir int, name string, frozen bool) error {
	fd, err := retryOpen(dir, name+"/cgroup.events", unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	want := []byte("frozen 0")
	if frozen {
		want = []byte("frozen 1")
	}
	value := freezerValue(true, frozen)
	if err := writeAt(dir, name+"/cgroup.freeze", value); err != nil {
		return err
	}
	for wait := 1; ; wait = min(2*wait, 100) {
		var buf [256]byte
		n, err := unix.Pread(fd, buf[:], 0)
		if err != nil {
			return unlessThawed(err, frozen)
		}
		if bytes.Contains(buf[:n], want) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, wait); err != nil && err != unix.EINTR {
			return err
		}
		// What others want now will not become what is waited for.
		now, err := readAt(dir, name+"/cgroup.freeze")
		if err != nil {
			return unlessThawed(err, frozen)
		}
		if string(bytes.TrimSpace(now)) != value {
			if frozen {
				return ErrThawed
			}
			return nil // frozen again since
		}
	}
}

// unlessThawed is the error of looking at a group after the write that freezes or thaws it. One that is gone was thawed: what
// its processes waited for has ended them.
func unlessThawed(err error, frozen bool) error {
	if !frozen && (err == unix.ENOENT || err == unix.ENODEV) {
		return nil
	}
	return err
}

func freezeLegacy(ctx context.Context, dir int, name string, frozen bool) error {
	value := freezerValue(false, frozen)
	wait, written := 100*time.Microsecond, false
	for ; ; wait = min(2*wait, 10*time.Millisecond) {
		// Written again each time: a process that forks meanwhile can keep the group at FREEZING until then.
		if err := writeAt(dir, name+"/freezer.state", value); err != nil {
			return unlessThawed(err, frozen || !written)
		}
		written = true
		state, err := readAt(dir, name+"/freezer.state")
		if err != nil || string(bytes.TrimSpace(state)) == value {
			return unlessThawed(err, frozen)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		if !frozen {
			continue
		}
		// Whoever thaws it wants it to run, or to die of a signal.
		if state, err := readAt(dir, name+"/freezer.state"); err != nil || string(bytes.TrimSpace(state)) == freezerValue(false, false) {
			return errors.Join(err, ErrThawed)
		}
	}
}
