package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/crashpoint"
)

// A group may have groups inside of it, for part of its processes: see [Group.Child]. Version 2 has no limits below a
// group that holds processes itself, so the first child makes room: the group's own processes move into a leaf.
//
//	version 2                              version 1
//	<group>/               the limits      <group>/               the limits, and the group's own processes
//	<group>/coracle.main/  its processes
//	<group>/coracle.NAME/  a child         <group>/coracle.NAME/  a child
const (
	childPrefix = "coracle."
	leafName    = childPrefix + "main"
)

// Child makes a group inside of this one and sets its limits; those of this group bound both together, whichever is less.
// It is removed like any group, and with this one at the latest. There is one level: a child has no children.
//
// In version 1 a child has a directory where r has a limit, and in the memory hierarchy, so that its OOM kills are its
// own; elsewhere its processes are in this group's. Where version 2 has the controllers the processes of this group are moved into a leaf of it
// first, once, and stay there: they see "/coracle.main" in /proc/self/cgroup, and the root of their cgroup namespace, with
// its limits, remains this group. Each of the steps leaves all processes within the limits of this group, and can be taken
// again by whoever comes next: a program that is killed between them leaves nothing to mend, and two may take them at once.
//
// The error matches [fs.ErrExist] if there is such a child and [fs.ErrNotExist] if this group is gone; it is an
// [*InvalidError] for a name that is none, an [*UnsupportedError] for a limit that cannot be had here, and a [*LimitError]
// for one that the kernel refuses: version 1 does for processors and their time beyond those of this group, and version 2
// if for some seconds the group's processes fork faster than they can be moved (EBUSY). Then no child is left behind.
func (g *Group) Child(ctx context.Context, name string, r *specs.LinuxResources) (*Group, error) {
	child, err := g.child(name)
	if err != nil {
		return nil, err
	}
	if err := checkResources(r); err != nil {
		return nil, err
	}
	if !g.none && g.h.gone(g.name) {
		return nil, fmt.Errorf("cgroup: create child %q of group %q: %w", name, g.name, fs.ErrNotExist)
	}
	child.none = true
	// The v2 tree, which comes last, is the first to have the directory and the last to lose it: Children looks there.
	for _, t := range slices.Backward(g.h.trees) {
		fd, err := t.dir()
		if err != nil || g.none || !child.needs(t, r) {
			continue
		}
		if child.limited(t, r) {
			err = g.makeRoom(ctx, t, fd)
		}
		if err == nil {
			if err = unix.Mkdirat(fd, child.name, 0o755); err != nil {
				err = &fs.PathError{Op: "mkdir", Path: path.Join(t.where(), child.name), Err: err}
			}
		}
		if errors.Is(err, unix.ENODEV) { // the group is being removed
			err = errors.Join(fs.ErrNotExist, err)
		}
		if err != nil {
			if !child.none {
				child.rollback(g.h.trees)
			}
			return nil, fmt.Errorf("cgroup: create child %q of group %q: %w", name, g.name, err)
		}
		child.none = false
		crashpoint.At("cgroup: child made")
	}
	if err := child.set(r, true); err != nil {
		child.rollback(g.h.trees)
		return nil, err
	}
	crashpoint.At("cgroup: child limited")
	return child, nil
}

// LoadChild returns a child that was created before, by this process or another; also one of which only a part is left,
// or nothing: then what is done with it does nothing. The error is an [*InvalidError] for a name that is none.
func (g *Group) LoadChild(name string) (*Group, error) {
	child, err := g.child(name)
	if err == nil {
		child.none = g.none
	}
	return child, err
}

func (g *Group) child(name string) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if g.parent != "" || childPrefix+name == leafName {
		return nil, invalid("name", name, "is no name for a child of group "+g.name)
	}
	return &Group{h: g.h, name: g.name + "/" + childPrefix + name, parent: g.name}, nil
}

// Children returns the names of the children, sorted: of this process and of any other. For a group that never had one
// it costs a system call. That there is no such group is no error.
func (g *Group) Children() ([]string, error) {
	if g.none {
		return nil, nil
	}
	var names []string
	for _, t := range slices.Backward(g.h.trees) {
		fd, err := t.dir()
		if err != nil {
			continue
		}
		found, err := childrenOf(fd, g.name)
		if err != nil {
			return nil, fmt.Errorf("cgroup: list the children of group %q: %w", g.name, &fs.PathError{Op: "read", Path: path.Join(t.where(), g.name), Err: err})
		}
		for _, n := range found {
			if rest, ok := strings.CutPrefix(n, childPrefix); ok && n != leafName && checkName(rest) == nil {
				names = append(names, rest)
			}
		}
		if t.v2 {
			break // it has them all
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// childrenOf returns the names of the directories in a group.
func childrenOf(fd int, name string) ([]string, error) {
	var st unix.Stat_t
	err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT || err == nil && st.Nlink == 2 { // the kernel counts directories there
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	dir, err := openDir(fd, name)
	if err == unix.ENOENT {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	names, err := subdirs(dir, 0)
	if err == unix.ENOENT { // removed meanwhile
		err = nil
	}
	return names, err
}

// needs reports whether a child has a directory of its own in a hierarchy.
func (g *Group) needs(t *tree, r *specs.LinuxResources) bool {
	if t.v2 || slices.Contains(t.controllers, "memory") {
		return true
	}
	if r == nil {
		// Where there is no v2 tree something has to list its processes.
		return g.h.mode == V1 && slices.Contains(t.controllers, "pids")
	}
	if len(r.Devices) > 0 && slices.Contains(t.controllers, "devices") {
		return true
	}
	return slices.ContainsFunc(settings(r, false, g.h.legacy), func(s setting) bool { return slices.Contains(t.controllers, s.controller) })
}

// limited reports whether a child has limits, or counters, in the v2 tree.
func (g *Group) limited(t *tree, r *specs.LinuxResources) bool {
	if !t.v2 || g.h.mode == V2 || r == nil {
		return t.v2 && g.h.mode == V2
	}
	return slices.ContainsFunc(settings(r, false, g.h.legacy), func(s setting) bool { return s.impossible == "" && t.has(s.controller) })
}

// place returns the directory that processes of the group join in a hierarchy: its own, the leaf that its processes have
// moved to, or that of the group it is a child of.
func (g *Group) place(t *tree, fd int) string {
	exists := func(name string) bool { return unix.Faccessat(fd, name, unix.F_OK, 0) == nil }
	switch {
	case g.parent == "" && t.v2 && exists(g.name+"/"+leafName):
		return g.name + "/" + leafName
	case g.parent != "" && !t.v2 && !exists(g.name):
		return g.parent
	}
	return g.name
}

// moveWait bounds how long makeRoom follows processes that fork.
const moveWait = 3 * time.Second

// makeRoom enables the controllers of a v2 group for groups below it. That takes a group without processes: they move to
// the leaf. New ones come only from those that have not moved yet, and from programs that clone into the group at this
// moment: after each pass there are fewer, or the kernel refuses and the next pass follows. From when the controllers are
// enabled on, the kernel lets no process into the group, so it is done once.
//
// The group is not frozen meanwhile, which would be one pass: a program that is killed would leave a container that
// stands still.
func (g *Group) makeRoom(ctx context.Context, t *tree, fd int) error {
	at := g.name + "/cgroup.subtree_control"
	missing, err := g.notEnabled(t, fd)
	if err != nil || len(missing) == 0 {
		return err
	}
	if err := unix.Mkdirat(fd, g.name+"/"+leafName, 0o755); err != nil && err != unix.EEXIST {
		return &fs.PathError{Op: "mkdir", Path: path.Join(t.where(), g.name, leafName), Err: err}
	}
	crashpoint.At("cgroup: leaf made")
	ctx, cancel := context.WithTimeout(ctx, moveWait)
	defer cancel()
	for {
		if err := g.moveToLeaf(ctx, fd); err != nil {
			return &fs.PathError{Op: "write", Path: path.Join(t.where(), g.name, leafName, "cgroup.procs"), Err: err}
		}
		crashpoint.At("cgroup: processes moved")
		value := strings.Join(missing, " ")
		err := writeAt(fd, at, value)
		if err != nil && err != unix.EBUSY && err != unix.ENOENT {
			// One of them cannot be had here. What is missing in the end is an error when a limit asks for it.
			err = nil
			for _, c := range missing {
				if one := writeAt(fd, at, c); one == unix.EBUSY {
					err = one
				}
			}
		}
		switch {
		case err == nil:
			crashpoint.At("cgroup: room made")
			// Protection from reclaim is given from parent to child: all that the group has is its own processes'.
			for _, file := range []string{"memory.min", "memory.low"} {
				_ = writeAt(fd, g.name+"/"+leafName+"/"+file, "max")
			}
			return nil
		case err != unix.EBUSY:
			return &fs.PathError{Op: "write", Path: path.Join(t.where(), at), Err: err}
		}
		if ctx.Err() != nil {
			return &LimitError{Feature: "controllers for a group inside of a group", File: path.Join(t.where(), at), Value: value,
				Err: fmt.Errorf("%w: for %v its processes have made others faster than they could be moved into %s", err, moveWait, leafName)}
		}
	}
}

// notEnabled returns what is to be written to the group's cgroup.subtree_control.
func (g *Group) notEnabled(t *tree, fd int) ([]string, error) {
	has, err := readAt(fd, g.name+"/cgroup.controllers")
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: path.Join(t.where(), g.name, "cgroup.controllers"), Err: err}
	}
	on, err := readAt(fd, g.name+"/cgroup.subtree_control")
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: path.Join(t.where(), g.name, "cgroup.subtree_control"), Err: err}
	}
	enabled := strings.Fields(string(on))
	var missing []string
	for _, c := range strings.Fields(string(has)) {
		if !slices.Contains(enabled, c) {
			missing = append(missing, "+"+c)
		}
	}
	return missing, nil
}

// moveToLeaf moves the processes that are in the group at this moment.
func (g *Group) moveToLeaf(ctx context.Context, fd int) error {
	procs, err := readAt(fd, g.name+"/cgroup.procs")
	if err != nil || len(procs) == 0 {
		return err
	}
	to, err := retryOpen(fd, g.name+"/"+leafName+"/cgroup.procs", unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	for pid := range bytes.FieldsSeq(procs) {
		if ctx.Err() != nil {
			return nil // the caller sees whether all have moved
		}
		switch err := writeFd(to, string(pid)); {
		case err == nil, err == unix.ESRCH: // it has ended
		case err == unix.EINVAL && string(pid) == "0":
			return errors.Join(err, errors.New("a process of a pid namespace that this program does not see is in the group"))
		default:
			return fmt.Errorf("process %s: %w", pid, err)
		}
	}
	return nil
}

// ownOOMKills counts the OOM kills of a v2 group that has made room for children, without those of children.
func (g *Group) ownOOMKills(fd int) (uint64, error) {
	local, err := readAt(fd, g.name+"/memory.events.local")
	if err != nil {
		return 0, err
	}
	n := field(local, "oom_kill")
	names, err := childrenOf(fd, g.name)
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		if strings.HasPrefix(name, childPrefix) && name != leafName {
			continue
		}
		events, err := readAt(fd, g.name+"/"+name+"/memory.events")
		if err != nil && err != unix.ENOENT {
			return 0, err
		}
		n += field(events, "oom_kill")
	}
	return n, nil
}
