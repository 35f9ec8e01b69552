package coracle

import (
	"context"
	"errors"
	"io/fs"
	"time"
)

// A ProcessInfo is a process of a container at one moment, as the kernel shows it. Command and Args are what the process
// says of itself: any bytes, control characters among them, and any lie.
type ProcessInfo struct {
	// PID and PPID are its number and its parent's in the importing program's pid namespace. A parent outside of it is 0.
	PID, PPID int
	// ContainerPID is its number in its own pid namespace, which is 1 for the container's first process.
	ContainerPID int
	// UID and GID are its effective user and group, as numbers of the importing program's user namespace.
	UID, GID uint32
	// State is the kernel's letter: R running, S sleeping, D waiting for a disk, T stopped, Z ended and not reaped, I idle.
	State string
	// Threads is how many it has.
	Threads int
	// Started is when it was made, to a hundredth of a second.
	Started time.Time
	// CPUTime is the processor time that it has used.
	CPUTime time.Duration
	// RSS is the memory of it that is present, in bytes.
	RSS int64
	// Command is the kernel's name of it, at most 15 bytes.
	Command string
	// Args are its arguments, at most the first 4 kB of them. Nil if they cannot be read: it has ended, or gives no answer.
	Args []string
}

// Top lists the processes of the container, sorted by PID, whoever runs it. It may be paused. What ends meanwhile is left
// out. The error matches ErrNotRunning if the container is not running.
func (c *Container) Top(ctx context.Context) ([]ProcessInfo, error) {
	list, err := c.top(ctx)
	return list, c.fail("list the processes of", err)
}

func (c *Container) top(ctx context.Context) ([]ProcessInfo, error) {
	st, err := c.current()
	if err != nil {
		return nil, err
	}
	if !alive(st) {
		return nil, ErrNotRunning
	}
	group, err := c.eng.group(st.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, unlessGone(st, &UnsupportedError{Feature: "listing the processes of a container without a cgroup", Fix: "mount cgroups that this program may write"})
	}
	if err != nil {
		return nil, err
	}
	pids, err := group.Procs()
	if err != nil {
		return nil, err
	}
	seen, err := readProcesses(ctx, pids)
	if err != nil {
		return nil, err
	}
	// A number may have gone to a stranger before its files were opened. Who is in the group now, and was opened before, is
	// the one that was read.
	if pids, err = group.Procs(); err != nil {
		return nil, err
	}
	list := make([]ProcessInfo, 0, len(seen))
	for _, pid := range pids {
		if p, ok := seen[pid]; ok {
			list = append(list, p)
		}
	}
	if len(list) == 0 {
		return nil, ErrNotRunning // what is dying is not listed any more
	}
	return list, nil
}
