package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// killWait is how long Kill waits for what it killed to be gone. A process that waits for a disk cannot die sooner.
const killWait = 10 * time.Second

// Kill kills all processes of the group and of the groups inside of it, frozen ones too, and waits until they are gone.
// It returns at once if there are none, or no such group.
func (g *Group) Kill(ctx context.Context) error {
	if g.none {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	err := g.killUnified(ctx)
	if err == errNoKill {
		err = g.killEach(ctx)
	}
	if err != nil {
		return fmt.Errorf("cgroup: kill group %q: %w", g.name, err)
	}
	return nil
}

// errNoKill says that there is no cgroup.kill: no v2 hierarchy, or Linux before 5.14.
var errNoKill = errors.New("no cgroup.kill")

func (g *Group) killUnified(ctx context.Context) error {
	t := g.h.tree("")
	if t == nil {
		return errNoKill
	}
	dir, err := t.dir()
	if err != nil {
		return errNoKill
	}
	fd, err := retryOpen(dir, g.name+"/cgroup.events", unix.O_RDONLY)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: path.Join(t.where(), g.name, "cgroup.events"), Err: err}
	}
	defer unix.Close(fd)
	if populated, err := populated(fd); err != nil || !populated {
		return err
	}
	if err := writeAt(dir, g.name+"/cgroup.kill", "1"); err != nil {
		if err == unix.ENOENT {
			return errNoKill
		}
		return &fs.PathError{Op: "write", Path: path.Join(t.where(), g.name, "cgroup.kill"), Err: err}
	}
	for wait := 1; ; wait = min(2*wait, 100) {
		populated, err := populated(fd)
		if err != nil || !populated {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("there are still processes in it: %w", err)
		}
		// A change of the file is urgent data. The kernel holds that back for up to 10 ms after the one before (CGROUP_
		// FILE_NOTIFY_MIN_INTV), and a context may end meanwhile: look anyway from time to time.
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, wait); err != nil && err != unix.EINTR {
			return err
		}
	}
}

// populated reports whether there are processes in the group of a cgroup.events file, or below it.
func populated(events int) (bool, error) {
	var buf [256]byte
	n, err := unix.Pread(events, buf[:], 0)
	if err == unix.ENODEV {
		return false, nil // removed
	}
	if err != nil {
		return false, err
	}
	return bytes.Contains(buf[:n], []byte("populated 1")), nil
}

// killEach kills by SIGKILL what is listed, until nothing is.
func (g *Group) killEach(ctx context.Context) error {
	thawed := false
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids, err := g.allProcs()
		if err != nil || len(pids) == 0 {
			return err
		}
		if err := g.killListed(pids); err != nil {
			return err
		}
		if !thawed && g.h.mode == V1 {
			// A frozen process of v1 dies when it is thawed.
			if t := g.h.tree("freezer"); t != nil {
				if dir, err := t.dir(); err == nil {
					_ = writeAt(dir, g.name+"/freezer.state", "THAWED")
				}
			}
			thawed = true
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("there are still %d processes in it: %w", len(pids), ctx.Err())
		case <-time.After(wait):
		}
	}
}

// killListed kills processes by descriptors. Between the list and the opening a number may have gone to a stranger, so
// the list is read again: whoever is alive, has the number and is listed now is the one that was opened.
func (g *Group) killListed(pids []int) error {
	fds := make(map[int]int, len(pids))
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids[:min(len(pids), maxKillAtOnce)] {
		fd, err := unix.PidfdOpen(pid, 0)
		if err == unix.ESRCH || err == unix.EINVAL { // ended, or a thread of a threaded group
			continue
		}
		if err != nil {
			return fmt.Errorf("open process %d: %w", pid, err)
		}
		fds[pid] = fd
	}
	listed, err := g.allProcs()
	if err != nil {
		return err
	}
	for _, pid := range listed {
		fd, ok := fds[pid]
		if !ok {
			continue
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return nil
}

// maxKillAtOnce bounds the descriptors of one round.
const maxKillAtOnce = 512

// Procs returns the processes of the group and of the groups inside of it, as this process numbers them, sorted.
func (g *Group) Procs() ([]int, error) {
	if g.none {
		return nil, nil
	}
	pids, err := g.allProcs()
	if err != nil {
		return nil, fmt.Errorf("cgroup: list processes: %w", err)
	}
	return pids, nil
}

func (g *Group) allProcs() ([]int, error) {
	// All hierarchies hold the same processes; the v2 one comes last. A child is not in all of them.
	for _, t := range slices.Backward(g.h.trees) {
		dir, err := t.dir()
		if err != nil {
			continue
		}
		pids, err := procsBelow(dir, g.name, 0)
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: path.Join(t.where(), g.name, "cgroup.procs"), Err: err}
		}
		if len(pids) > 0 || t.v2 {
			slices.Sort(pids)
			return slices.Compact(pids), nil
		}
	}
	return nil, nil
}

// maxNesting bounds how deep groups inside of a group are looked at.
const maxNesting = 128

func procsBelow(dir int, name string, depth int) ([]int, error) {
	fd, err := openDir(dir, name)
	if err == unix.ENOENT {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	data, err := readAt(fd, "cgroup.procs")
	if err == unix.ENODEV {
		return nil, nil
	}
	if err != nil && err != unix.EOPNOTSUPP { // a threaded group
		return nil, err
	}
	var pids []int
	for line := range bytes.FieldsSeq(data) {
		// 0 is a process of another pid namespace.
		if pid, err := strconv.Atoi(string(line)); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	if depth == maxNesting {
		return pids, nil
	}
	names, err := subdirs(fd, 0)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		more, err := procsBelow(fd, n, depth+1)
		if err != nil {
			return nil, err
		}
		pids = append(pids, more...)
	}
	return pids, nil
}
