package cgroup

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// Freeze stops all processes of the group until [Group.Thaw], and returns when they are stopped.
func (g *Group) Freeze(ctx context.Context) error { return g.freeze(ctx, true) }

// Thaw lets the processes of the group run on.
func (g *Group) Thaw(ctx context.Context) error { return g.freeze(ctx, false) }

// Frozen reports whether the group is frozen, or is about to be: whether its processes wait for [Group.Thaw]. A group that
// does not exist, or that cannot be frozen here, is not frozen.
func (g *Group) Frozen() (bool, error) {
	t, file, running := g.h.tree(""), "/cgroup.freeze", "0"
	if t == nil {
		t, file, running = g.h.tree("freezer"), "/freezer.state", "THAWED"
	}
	if t == nil || g.none {
		return false, nil
	}
	dir, err := t.dir()
	if err != nil {
		return false, nil
	}
	state, err := readAt(dir, g.name+file)
	if err == unix.ENOENT || err == unix.ENODEV {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cgroup: see whether group %q is frozen: %w", g.name, &fs.PathError{Op: "read", Path: path.Join(t.where(), g.name+file), Err: err})
	}
	return string(bytes.TrimSpace(state)) != running, nil
}

func (g *Group) freeze(ctx context.Context, frozen bool) error {
	verb := "thaw"
	if frozen {
		verb = "freeze"
	}
	t := g.h.tree("")
	file := "cgroup.freeze"
	if t == nil {
		t, file = g.h.tree("freezer"), "freezer.state"
	}
	if t == nil || g.none {
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
	if err != nil {
		return fmt.Errorf("cgroup: %s group: %w", verb, &fs.PathError{Op: "write", Path: path.Join(t.where(), g.name, file), Err: err})
	}
	return nil
}

func freezeUnified(ctx context.Context, dir int, name string, frozen bool) error {
	fd, err := retryOpen(dir, name+"/cgroup.events", unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value, want := "0", []byte("frozen 0")
	if frozen {
		value, want = "1", []byte("frozen 1")
	}
	if err := writeAt(dir, name+"/cgroup.freeze", value); err != nil {
		return err
	}
	for wait := 1; ; wait = min(2*wait, 100) {
		var buf [256]byte
		n, err := unix.Pread(fd, buf[:], 0)
		if err != nil {
			return err
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
	}
}

func freezeLegacy(ctx context.Context, dir int, name string, frozen bool) error {
	value := "THAWED"
	if frozen {
		value = "FROZEN"
	}
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		// Written again each time: a process that forks meanwhile can keep the group at FREEZING until then.
		if err := writeAt(dir, name+"/freezer.state", value); err != nil {
			return err
		}
		state, err := readAt(dir, name+"/freezer.state")
		if err != nil || string(bytes.TrimSpace(state)) == value {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
