package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/crashpoint"
)

// Group is the cgroup of one container: a directory of the same name in each hierarchy. It holds no resources of this
// process; its methods may be called by several goroutines.
type Group struct {
	h      *Hierarchy
	name   string
	parent string // the name of the group that this one is a child of, and the beginning of its own
	none   bool   // there is no hierarchy that can be written: the group does nothing
}

// Create makes a group and sets its limits. The name is one plain directory name: letters, digits, '_', '-' and '.'.
//
// It returns an error that matches [fs.ErrExist] if there is such a group, an [*InvalidError] for a name that is none, and
// an [*UnsupportedError] if r asks for something that no controller here can do; then nothing is left behind. With a nil
// r it also succeeds where there are no cgroups: the group then does nothing.
func (h *Hierarchy) Create(name string, r *specs.LinuxResources) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := checkResources(r); err != nil {
		return nil, err
	}
	g := &Group{h: h, name: name, none: true}
	for i, t := range h.trees {
		fd, err := t.dir()
		if err != nil {
			continue
		}
		err = unix.Mkdirat(fd, name, 0o755)
		for retry := 0; err == unix.ENOENT && retry < maxReopen; retry++ { // reopen does not change fd
			if err = t.reopen(h.parent); err == nil {
				err = unix.Mkdirat(fd, name, 0o755)
			}
		}
		if err != nil {
			g.rollback(h.trees[:i])
			return nil, fmt.Errorf("cgroup: create group: %w", &fs.PathError{Op: "mkdir", Path: path.Join(t.where(), name), Err: err})
		}
		g.none = false
		crashpoint.At("cgroup: directory made")
	}
	if err := g.set(r, true); err != nil {
		g.rollback(h.trees)
		return nil, err
	}
	crashpoint.At("cgroup: limits set")
	return g, nil
}

// maxReopen bounds how often a parent is made again that others remove at once.
const maxReopen = 50

// rollback removes what Create made: directories that nobody has joined.
func (g *Group) rollback(trees []*tree) {
	for _, t := range trees {
		if fd, err := t.dir(); err == nil {
			_ = unix.Unlinkat(fd, g.name, unix.AT_REMOVEDIR)
		}
	}
}

// Load returns a group that was created before, by this process or another; also one of which only a part is left. It
// returns an error that matches [fs.ErrNotExist] if there is none.
func (h *Hierarchy) Load(name string) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	// First all: what is done with the group goes through all of them.
	h.reopenRemoved()
	for _, t := range h.trees {
		fd, err := t.dir()
		if err != nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return &Group{h: h, name: name}, nil
		}
		if err != nil && err != unix.ENOENT {
			return nil, fmt.Errorf("cgroup: load group: %w", &fs.PathError{Op: "stat", Path: path.Join(t.where(), name), Err: err})
		}
	}
	return nil, fmt.Errorf("cgroup: load group %q: %w", name, fs.ErrNotExist)
}

// Name returns the name of the group; that of a child begins with that of the group it is in, and a slash.
func (g *Group) Name() string { return g.name }

// Path returns the directory of the group in the hierarchy of a controller; "" stands for the v2 hierarchy. It returns ""
// if there is none.
func (g *Group) Path(controller string) string {
	t := g.h.tree(controller)
	if t == nil || g.none {
		return ""
	}
	return path.Join(t.where(), g.name)
}

// tree returns the hierarchy of a controller, or nil; "" stands for the v2 hierarchy.
func (h *Hierarchy) tree(controller string) *tree {
	for _, t := range h.trees {
		if controller == "" && t.v2 || controller != "" && t.has(controller) {
			if _, err := t.dir(); err == nil {
				return t
			}
		}
	}
	return nil
}

// Join opens what a process needs to start in the group. The caller closes it.
func (g *Group) Join() (*Join, error) {
	j := &Join{}
	if g.none {
		return j, nil
	}
	for _, t := range g.h.trees {
		fd, err := t.dir()
		if err != nil {
			continue
		}
		place := g.place(t, fd)
		open := func(at string, flags int) (*os.File, error) {
			fd, err := retryOpen(fd, at, flags)
			if err != nil {
				return nil, &fs.PathError{Op: "open", Path: path.Join(t.where(), at), Err: err}
			}
			return os.NewFile(uintptr(fd), path.Join(t.where(), at)), nil
		}
		if t.v2 {
			if j.Dir, err = open(place, unix.O_RDONLY|unix.O_DIRECTORY); err == nil {
				// Since Linux 5.14.
				if j.Kill, err = open(g.name+"/cgroup.kill", unix.O_WRONLY); errors.Is(err, fs.ErrNotExist) {
					err = nil
				}
			}
		} else {
			var f *os.File
			if f, err = open(place+"/tasks", unix.O_WRONLY); err == nil {
				j.Tasks = append(j.Tasks, f)
			}
		}
		if err != nil {
			j.Close()
			return nil, fmt.Errorf("cgroup: join group: %w", err)
		}
	}
	return j, nil
}

// removeWait is how long Remove waits for processes that were killed to be gone.
const removeWait = 5 * time.Second

// Remove removes the group in all hierarchies, with all groups that were made inside of it. A process that is still in it
// is an error (EBUSY), after some time in which one that was just killed may leave. That there is no such group is none.
func (g *Group) Remove(ctx context.Context) error {
	if g.none {
		return nil
	}
	var errs []error
	deadline := time.Now().Add(removeWait)
	for _, t := range g.h.trees {
		fd, err := t.dir()
		if err != nil {
			continue
		}
		if err := removeTree(ctx, fd, g.name, deadline); err != nil {
			err = &fs.PathError{Op: "rmdir", Path: path.Join(t.where(), g.name), Err: err}
			if errors.Is(err, unix.EBUSY) {
				err = fmt.Errorf("%w: there are processes in it: kill them first", err)
			}
			errs = append(errs, err)
		}
		crashpoint.At("cgroup: directory gone")
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cgroup: remove group: %w", err)
	}
	return nil
}

// removeTree removes the directory name in dir, and those below it.
func removeTree(ctx context.Context, dir int, name string, deadline time.Time) error {
	for wait := 50 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
		if err == unix.EBUSY {
			err = removeChildren(ctx, dir, name)
			if err == nil {
				err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
			}
		}
		switch {
		case err == nil, err == unix.ENOENT:
			return nil
		case err != unix.EBUSY || time.Now().After(deadline):
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// removeChildren removes the directories below name in dir, deepest first. It holds two descriptors however deep they
// are: a container may have nested them for that.
func removeChildren(ctx context.Context, dir int, name string) error {
	cur, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer func() { unix.Close(cur) }()
	var down []string
	for {
		if err := ctx.Err(); err != nil {
			return errors.Join(unix.EBUSY, err)
		}
		names, err := subdirs(cur, 64)
		if err != nil {
			return err
		}
		deeper := ""
		for _, n := range names {
			if err := unix.Unlinkat(cur, n, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
				if err != unix.EBUSY {
					return err
				}
				deeper = n
				break
			}
		}
		switch {
		case deeper != "":
			next, err := openDir(cur, deeper)
			if err != nil {
				return err
			}
			unix.Close(cur)
			cur = next
			down = append(down, deeper)
			if below, err := subdirs(cur, 1); err != nil || len(below) == 0 {
				return unix.EBUSY // it is busy by itself: a process is in it
			}
		case len(names) > 0:
			// There may be more than one batch.
		case len(down) == 0:
			return nil
		default:
			up, err := unix.Openat(cur, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			unix.Close(cur)
			cur = up
			last := down[len(down)-1]
			down = down[:len(down)-1]
			if err := unix.Unlinkat(cur, last, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
				return err
			}
		}
	}
}
