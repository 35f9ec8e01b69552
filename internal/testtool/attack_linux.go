package testtool

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attack is what a hostile process in a container tries on processes that join it.
func attack(args []string) int {
	if len(args) == 0 {
		return 2
	}
	switch args[0] {
	case "joiners": // attack joiners MILLISECONDS: looks into every process that appears, and prints what it got
		return attackJoiners(args[1:])
	case "kill-all": // kills all that it sees, again and again
		signal.Ignore()
		fmt.Println("ready")
		for {
			syscall.Kill(-1, syscall.SIGKILL)
			time.Sleep(50 * time.Microsecond)
		}
	case "bomb": // forks as fast as it can
		fmt.Println("ready")
		for {
			if pid, err := syscall.ForkExec("/proc/self/exe", []string{Name, "sleep", "60000"}, &syscall.ProcAttr{}); err != nil {
				time.Sleep(time.Millisecond)
			} else {
				_ = pid
			}
		}
	case "fifo": // attack fifo PATH: makes it a fifo
		os.Remove(args[1])
		if err := unix.Mkfifo(args[1], 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	case "huge": // attack huge PATH: makes it larger than anybody wants
		if err := os.Truncate(args[1], 1<<40); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	case "link": // attack link TARGET PATH
		os.Remove(args[2])
		if err := os.Symlink(args[1], args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	default:
		return hostile(args)
	}
	return 0
}

func attackJoiners(args []string) int {
	ms, _ := strconv.Atoi(args[0])
	self := os.Getpid()
	fmt.Println("ready")
	seen, looked := map[string]bool{}, 0
	var joining func() bool
	say := func(format string, a ...any) {
		// What a command lets others see once it runs is its own business.
		if joining == nil || !joining() {
			return
		}
		if line := fmt.Sprintf(format, a...); !seen[line] && len(seen) < 1000 {
			seen[line] = true
			fmt.Println(line)
		}
	}
	for end := time.Now().Add(time.Duration(ms) * time.Millisecond); time.Now().Before(end); {
		// Pids are given out in order: the next one is known before it is there.
		entries, _ := os.ReadDir("/proc")
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == self || pid == 1 {
				continue
			}
			dir := "/proc/" + e.Name()
			joining = func() bool {
				comm, err := os.ReadFile(dir + "/comm")
				return err == nil && strings.TrimSpace(string(comm)) == "coracle"
			}
			if !joining() {
				continue
			}
			looked++
			if status, err := os.ReadFile(dir + "/status"); err == nil {
				for _, line := range strings.Split(string(status), "\n") {
					if strings.HasPrefix(line, "CapEff:") || strings.HasPrefix(line, "Seccomp:") {
						say("%s", strings.Join(strings.Fields(line), " "))
					}
				}
			}
			fds, err := os.ReadDir(dir + "/fd")
			if err == nil {
				say("listed the descriptors")
			}
			for _, f := range fds {
				if l, err := os.Readlink(dir + "/fd/" + f.Name()); err == nil {
					say("fd %s", kindOf(l))
				}
				// Out of the container through a directory of the host?
				for _, up := range []string{"/..", "/../..", "/../../../.."} {
					if entries, err := os.ReadDir(dir + "/fd/" + f.Name() + up); err == nil {
						// There are no directories in the container's own group.
						for _, e := range entries {
							if l, err := os.Readlink(dir + "/fd/" + f.Name()); e.IsDir() && err == nil && l != "/proc" {
								say("escaped %s", filepath.Join(up, e.Name()))
							}
						}
					}
				}
				if w, err := os.OpenFile(dir+"/fd/"+f.Name()+"/cgroup.procs", os.O_WRONLY, 0); err == nil {
					say("may write cgroup.procs")
					w.Close()
				}
			}
			if w, err := os.OpenFile(dir+"/exe", os.O_WRONLY, 0); err == nil {
				if _, err := w.WriteString("overwritten"); err == nil {
					say("overwrote the executable")
				}
				w.Close()
			}
			if err := unix.PtraceSeize(pid); err == nil {
				say("traced it")
				unix.PtraceDetach(pid)
			}
			var word uint64
			local := []unix.Iovec{{Base: (*byte)(unsafe.Pointer(&word)), Len: 8}}
			if _, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: 0x10000000, Len: 8}}, 0); err == nil {
				say("read its memory %x", binary.NativeEndian.AppendUint64(nil, word)[:4])
			}
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				for n := range 16 {
					if got, err := unix.PidfdGetfd(fd, n, 0); err == nil {
						say("took a descriptor")
						unix.Close(got)
					}
				}
				unix.Close(fd)
			}
		}
	}
	fmt.Println("looked", looked)
	return 0
}

// kindOf leaves out of the target of a descriptor what differs each time.
func kindOf(link string) string {
	kind, _, _ := strings.Cut(link, "[")
	kind, _, _ = strings.Cut(kind, ":")
	return kind
}
