package nsexec

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Launcher starts programs. It owns a thread, because the kernel ends a guard when the thread that forked it ends;
// that thread lives until Close, and the guards of attached processes live no longer than it.
//
// syscall.Exec in the importing program ends all its threads, and therefore every attached process.
type Launcher struct {
	// Dir is a directory of the launcher's own, in which plans are written if executable memory files are forbidden
	// (vm.memfd_noexec = 2, or a security module). It is made when it is needed and must be on a filesystem without
	// noexec. A plan is removed once it is executed; what a killed program leaves is for its successor to remove. Empty
	// means that starting fails then.
	Dir string

	mu     sync.Mutex
	forks  chan fork
	closed bool
	live   sync.WaitGroup // starts under way and processes whose guard is not reaped yet
	procs  map[*Process]struct{}
}

type fork struct {
	argv0 string
	attr  *syscall.ProcAttr
	done  chan error
}

// start makes the thread on first use. The mutex is held.
func (l *Launcher) thread() (chan fork, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, ErrClosed
	}
	if l.forks == nil {
		l.forks = make(chan fork)
		go func(forks chan fork) {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			for f := range forks {
				_, err := syscall.ForkExec(f.argv0, guardArgv, f.attr)
				f.done <- err
			}
		}(l.forks)
	}
	l.live.Add(1)
	return l.forks, nil
}

var guardArgv = []string{"coracle: guard"}

// Close kills what the launcher started and still runs, waits for it and ends the thread. Further calls do nothing.
func (l *Launcher) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	forks, procs := l.forks, slices.Collect(maps.Keys(l.procs))
	l.mu.Unlock()
	for _, p := range procs {
		p.Kill() // the thread must outlive the guards: they bring the exit status
	}
	l.live.Wait()
	if forks != nil {
		close(forks)
	}
	return nil
}

// add makes the launcher answer for a started process, unless it was closed meanwhile.
func (l *Launcher) add(p *Process) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if l.procs == nil {
		l.procs = make(map[*Process]struct{})
	}
	l.procs[p] = struct{}{}
	return nil
}

// remove forgets a process whose guard is reaped.
func (l *Launcher) remove(p *Process) {
	l.mu.Lock()
	delete(l.procs, p)
	l.mu.Unlock()
	l.live.Done()
}

// fork executes the image as the guard of a new process. The files become descriptors 0, 1, 2 and on.
func (l *Launcher) fork(image []byte, files []*os.File, newPIDNamespace bool) (pidfd int, err error) {
	forks, err := l.thread()
	if err != nil {
		return -1, err
	}
	fds := make([]uintptr, len(files))
	highest := len(files)
	for i, f := range files {
		fds[i] = f.Fd()
		highest = max(highest, int(fds[i]))
	}
	exe, remove, err := l.executable(image, highest+len(files))
	if err != nil {
		l.live.Done()
		return -1, err
	}
	defer remove()
	pidfd = -1
	sys := &syscall.SysProcAttr{PidFD: &pidfd}
	if newPIDNamespace {
		sys.Cloneflags = unix.CLONE_NEWPID
	}
	f := fork{exe, &syscall.ProcAttr{Dir: "/", Env: []string{}, Files: fds, Sys: sys}, make(chan error, 1)}
	forks <- f // Close waits for us before it closes the channel
	err = <-f.done
	runtime.KeepAlive(files)
	if err != nil {
		l.live.Done()
		return -1, forkError(err, newPIDNamespace)
	}
	return pidfd, nil
}

func forkError(err error, newPIDNamespace bool) error {
	switch {
	case errors.Is(err, unix.EPERM) && newPIDNamespace:
		return fmt.Errorf("nsexec: create the guard in a pid namespace: %w (CAP_SYS_ADMIN is needed: run as root)", err)
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("nsexec: create the guard in a pid namespace: %w (too many nested or open pid namespaces: see user.max_pid_namespaces)", err)
	}
	return fmt.Errorf("nsexec: start the guard: %w", err)
}

// executable makes a file of the image that can be executed once, and returns its path and what removes it. The
// descriptor is above all those that the fork uses while it puts the inherited files in their places.
func (l *Launcher) executable(image []byte, above int) (path string, remove func(), err error) {
	fd, err := unix.MemfdCreate("coracle", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("coracle", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return l.executableFile(image, err)
	}
	if err := writeAll(fd, image); err != nil {
		unix.Close(fd)
		return "", nil, fmt.Errorf("nsexec: write the launch plan to memory: %w", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		unix.Close(fd)
		return "", nil, fmt.Errorf("nsexec: seal the launch plan: %w", err)
	}
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, above+1)
	unix.Close(fd)
	if err != nil {
		return "", nil, fmt.Errorf("nsexec: keep the launch plan: %w", err)
	}
	return "/proc/self/fd/" + strconv.Itoa(high), func() { unix.Close(high) }, nil
}

// executableFile is the fallback where the kernel or a security module forbids executable memory.
func (l *Launcher) executableFile(image []byte, cause error) (path string, remove func(), err error) {
	if l.Dir == "" {
		return "", nil, fmt.Errorf("nsexec: make an executable memory file: %w (the sysctl vm.memfd_noexec or a security module forbids it: "+
			"set vm.memfd_noexec to 0 or 1, or give the launcher a directory)", cause)
	}
	err = os.MkdirAll(l.Dir, 0o700)
	var f *os.File
	if err == nil {
		f, err = os.CreateTemp(l.Dir, "plan-*")
	}
	if err != nil {
		return "", nil, fmt.Errorf("nsexec: executable memory is forbidden (%w; see the sysctl vm.memfd_noexec), and no file can be made instead: %w", cause, err)
	}
	path = f.Name()
	remove = func() { os.Remove(path) }
	_, err = f.Write(image)
	if err == nil {
		err = f.Chmod(0o500)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		f.Close()
		remove()
		return "", nil, fmt.Errorf("nsexec: write the launch plan: %w", err)
	}
	var st unix.Statfs_t
	if unix.Statfs(path, &st) == nil && st.Flags&unix.ST_NOEXEC != 0 {
		remove()
		return "", nil, fmt.Errorf("nsexec: executable memory is forbidden (%w; see the sysctl vm.memfd_noexec), and %s, where the plan could go instead, is mounted noexec: %w", cause, l.Dir, fs.ErrPermission)
	}
	return path, remove, nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
