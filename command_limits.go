package coracle

import (
	"context"
	"errors"
	"strings"

	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/nsexec"
)

// A command with limits has a cgroup of its own inside of the container's, named for the engine that runs it:
// exec-OWNER-ID. The engine removes it when the command ends, with all that is in it. If the engine's program is killed
// it is left over until the next command with limits in this container, the next Open, or the container's end.

const commandPrefix = "exec-"

// A limitedTarget is a container made ready for one command in a group of its own.
type limitedTarget struct {
	group  *cgroup.Group
	join   *cgroup.Join
	target *nsexec.Target
}

// limited makes the group of a command. The caller closes the result, and ends the group in the end.
func (c *Cmd) limited(ctx context.Context, t *execTarget, id string) (_ *limitedTarget, err error) {
	e := c.c.eng
	if t.group == nil {
		return nil, &UnsupportedError{Feature: "limits of a command in a container without a cgroup", Fix: "mount cgroups that this program may write"}
	}
	r, err := c.Limits.Resources()
	if err != nil {
		return nil, err
	}
	if err := e.sweepCommands(ctx, t.group); err != nil {
		return nil, err
	}
	l := &limitedTarget{}
	if l.group, err = t.group.Child(ctx, commandPrefix+e.owner.id+"-"+id, r); err != nil {
		if t.process.ended(0) {
			return nil, ErrNotRunning
		}
		return nil, err
	}
	defer func() {
		if err != nil {
			l.close()
			err = errors.Join(err, endCommandGroup(context.Background(), l.group))
		}
	}()
	if l.join, err = l.group.Join(); err != nil {
		return nil, err
	}
	l.target, err = t.target.Within(l.join.Dir, l.join.Tasks)
	return l, err
}

// close frees what was needed to start the command.
func (l *limitedTarget) close() {
	if l.target != nil {
		l.target.Close()
	}
	l.join.Close()
}

// endCommandGroup kills what a command has left in its group and removes it: a group cannot go before its processes do,
// and limits that ended with the first process would bound nobody.
func endCommandGroup(ctx context.Context, group *cgroup.Group) error {
	return errors.Join(group.Kill(ctx), group.Remove(ctx))
}

// endGroup notes whether memory ran out in the command's own group, and ends that.
func (c *Cmd) endGroup() {
	if c.group == nil {
		return
	}
	// With the container its groups may have gone: then nobody knows.
	if n, err := c.group.OOMKills(); err == nil && n > 0 {
		c.exit.OOMKilled = true
	}
	if err := endCommandGroup(context.Background(), c.group); err != nil {
		c.c.eng.log.Warn("remove the cgroup of a command", "container", c.c.Name(), "command", c.Args[0], "error", err)
	}
}

// sweepCommands removes the groups of commands whose engines are dead.
func (e *Engine) sweepCommands(ctx context.Context, group *cgroup.Group) error {
	names, err := group.Children()
	if err != nil {
		return err
	}
	for _, name := range names {
		rest, ok := strings.CutPrefix(name, commandPrefix)
		owner, _, whole := strings.Cut(rest, "-")
		if !ok || !whole || e.ownerAlive(owner) {
			continue
		}
		child, err := group.LoadChild(name)
		if err != nil {
			return err
		}
		if err := endCommandGroup(ctx, child); err != nil {
			return err
		}
	}
	return nil
}
