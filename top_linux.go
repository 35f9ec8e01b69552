package coracle

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// readProcesses reads what /proc says of processes. Those that have ended are left out.
func readProcesses(ctx context.Context, pids []int) (map[int]ProcessInfo, error) {
	boot, err := bootTime()
	if err != nil {
		return nil, err
	}
	lines := &lineReader{patience: readPatience}
	list := make(map[int]ProcessInfo, len(pids))
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		// Files below this descriptor are those of this process or of none, never of a later one.
		dir, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		p := ProcessInfo{PID: pid, ContainerPID: pid}
		stat, err1 := readProc(dir, "stat", 4096)
		status, err2 := readProc(dir, "status", 16384)
		if err1 != nil || err2 != nil || !parseStat(stat, boot, &p) {
			unix.Close(dir)
			continue
		}
		parseStatus(status, &p)
		p.Args = parseArgs(lines.read(dir))
		unix.Close(dir)
		list[pid] = p
	}
	return list, nil
}

// bootTime is the moment that start times count from.
func bootTime() (time.Time, error) {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Time{}, os.NewSyscallError("clock_gettime", err)
	}
	return time.Now().Add(-time.Duration(up.Nano())), nil
}

// readProc reads a file of a process, or the beginning of it.
func readProc(dir int, name string, most int) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, most)
	n := 0
	for n < most {
		m, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return buf[:n], nil
}

const ticksPerSecond = 100 // USER_HZ, which is this on all architectures that Go runs on

// parseStat reads /proc/PID/stat; proc_pid_stat(5). The name in parentheses may contain anything, parentheses too.
func parseStat(stat []byte, boot time.Time, p *ProcessInfo) bool {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return false
	}
	p.Command = string(stat[open+1 : end])
	f := strings.Fields(string(stat[end+1:]))
	if len(f) < 22 {
		return false
	}
	number := func(field int) int64 { n, _ := strconv.ParseInt(f[field-3], 10, 64); return n } // field 3 comes first
	p.State, p.PPID, p.Threads = f[0], int(number(4)), int(number(20))
	ticks := func(n int64) time.Duration { return time.Duration(n) * (time.Second / ticksPerSecond) }
	p.CPUTime, p.Started = ticks(number(14)+number(15)), boot.Add(ticks(number(22)))
	p.RSS = number(24) * int64(os.Getpagesize())
	return true
}

// parseStatus reads users and the number in the container of /proc/PID/status. The kernel quotes the line end in names.
func parseStatus(status []byte, p *ProcessInfo) {
	for line := range bytes.Lines(status) {
		key, value, _ := strings.Cut(string(line), ":")
		f := strings.Fields(value)
		switch {
		case key == "Uid" && len(f) == 4: // real, effective, saved, filesystem
			n, _ := strconv.ParseUint(f[1], 10, 32)
			p.UID = uint32(n)
		case key == "Gid" && len(f) == 4:
			n, _ := strconv.ParseUint(f[1], 10, 32)
			p.GID = uint32(n)
		case key == "NSpid" && len(f) > 0: // from the reader's namespace to its own
			p.ContainerPID, _ = strconv.Atoi(f[len(f)-1])
		}
	}
}

const maxArgs = 4096 // bytes

// parseArgs splits a command line.
func parseArgs(line []byte) []string {
	if len(line) == 0 {
		return nil
	}
	return strings.Split(string(bytes.TrimSuffix(line, []byte{0})), "\x00")
}

// A lineReader reads command lines. They are memory of the process, and its owner can make it memory that is not there
// yet, and never will be: a file on a FUSE filesystem of his. Whoever reads it then hangs until the process ends. So a
// goroutine reads, and is given up after a while.
type lineReader struct{ patience time.Duration }

// lineReads counts the command lines that are being read in the whole program. When as many as maxLineReads do not end, no
// more are read.
var lineReads atomic.Int32

const maxLineReads = 8

// readPatience is how long a command line may take; after the first one that has not come, lessPatience.
const (
	readPatience = 100 * time.Millisecond
	lessPatience = time.Millisecond
)

func (r *lineReader) read(dir int) []byte {
	if lineReads.Add(1) > maxLineReads {
		lineReads.Add(-1)
		return nil
	}
	fd, err := unix.Openat(dir, "cmdline", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		lineReads.Add(-1)
		return nil
	}
	result := make(chan []byte, 1)
	go func() {
		defer lineReads.Add(-1)
		defer unix.Close(fd)
		buf := make([]byte, maxArgs)
		n, err := unix.Read(fd, buf)
		for err == unix.EINTR {
			n, err = unix.Read(fd, buf)
		}
		if err != nil {
			n = 0
		}
		result <- buf[:n]
	}()
	timer := time.NewTimer(r.patience)
	defer timer.Stop()
	select {
	case line := <-result:
		return line
	case <-timer.C:
		r.patience = lessPatience
		return nil
	}
}
