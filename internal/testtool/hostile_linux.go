package testtool

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hostile is what a container tries on whoever keeps it. Each command ends with a status of its own.
func hostile(args []string) int {
	number := func(i int) int {
		if i >= len(args) {
			return 0
		}
		n, _ := strconv.Atoi(args[i])
		return n
	}
	switch args[0] {
	case "flood": // flood BYTES CODE [wait]: lines without a pause
		line := []byte(strings.Repeat("0123456789abcde", 64) + "\n")
		block := bytes.Repeat(line, 16)
		for left := number(1); left > 0; {
			n, err := syscall.Write(1, block[:min(left, len(block))])
			if err != nil {
				return 1
			}
			left -= n
		}
		fmt.Println("\nflooded")
		if len(args) > 3 {
			signal.Ignore()
			time.Sleep(time.Hour)
		}
		return number(2)
	case "closed": // without its streams
		for fd := range 3 {
			syscall.Close(fd)
		}
		time.Sleep(20 * time.Millisecond)
		return 21
	case "close-input": // leaves its input unread and closed
		syscall.Close(0)
		fmt.Println("closed")
		time.Sleep(300 * time.Millisecond)
		return 22
	case "daemons": // leaves children of children that hold its streams and ignore signals
		for range 10 {
			attr := &syscall.ProcAttr{Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true}}
			if _, err := syscall.ForkExec("/proc/self/exe", []string{Name, "daemon", "stubborn"}, attr); err != nil {
				return 1
			}
		}
		return 23
	case "stop": // tries to stop itself and all else
		fmt.Println("before")
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		syscall.Kill(1, syscall.SIGSTOP)
		syscall.Kill(-1, syscall.SIGSTOP)
		syscall.Kill(0, syscall.SIGTSTP)
		fmt.Println("after")
		return 24
	case "pipes": // plays with the pipes that its output goes into
		for fd := 1; fd <= 2; fd++ {
			for _, size := range []int{4096, 1 << 20, 1 << 16, 4096} {
				unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, size)
				syscall.Write(fd, []byte("size\n"))
			}
			for _, flags := range []int{unix.O_NONBLOCK, unix.O_DIRECT, unix.O_ASYNC, unix.O_NONBLOCK | unix.O_DIRECT, 0} {
				unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags)
				for i := range 100 {
					syscall.Write(fd, []byte(strings.Repeat("p", i)+"\n"))
				}
			}
			unix.FcntlInt(uintptr(fd), unix.F_SETOWN, 1)
			unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK)
			unix.Flock(fd, unix.LOCK_EX)
			if r, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR|unix.O_NONBLOCK, 0); err == nil {
				unix.Read(r, make([]byte, 1<<16)) // what the keeper is about to read
				unix.Close(r)
			}
		}
		// Last, a packet pipe with as many packets as it takes, and no waiting.
		unix.FcntlInt(1, unix.F_SETFL, unix.O_NONBLOCK|unix.O_DIRECT)
		for range 5000 {
			syscall.Write(1, []byte("x"))
		}
		unix.FcntlInt(1, unix.F_SETFL, 0)
		fmt.Println("\nend of pipes")
		return 25
	case "proc": // writes to whatever it finds of the processes that it sees
		files, _ := filepath.Glob("/proc/[0-9]*/fd/*")
		more, _ := filepath.Glob("/proc/[0-9]*/*")
		for _, path := range append(files, more...) {
			if strings.HasSuffix(path, "/clear_refs") {
				continue
			}
			if f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
				f.Write([]byte("1000\n"))
				f.Close()
			}
		}
		fmt.Println("end of proc")
		return 26
	case "give": // give SOCKET: passes its output to who listens there
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: args[1]})
		}
		if err == nil {
			err = unix.Sendmsg(fd, []byte("x"), unix.UnixRights(0, 1, 2), nil, 0)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		unix.Read(fd, make([]byte, 1))
		fmt.Println("given")
		return 27
	case "terminal": // what a terminal can be asked for
		for _, c := range []byte("injected\n") {
			unix.IoctlSetPointerInt(0, unix.TIOCSTI, int(c))
		}
		unix.IoctlSetInt(0, unix.TIOCEXCL, 0)
		unix.IoctlSetInt(0, unix.TIOCPKT, 1)
		unix.IoctlSetWinsize(0, unix.TIOCSWINSZ, &unix.Winsize{Row: 65535, Col: 65535})
		for range 2000 {
			fmt.Print("\x1b[2J\x1b]0;title\x07\x1b[6n\x1bP+q\x1b\\\x00\xff")
		}
		fmt.Println(strings.Repeat("L", 64<<10))
		unix.IoctlSetInt(0, unix.TCXONC, unix.TCOOFF) // output stops
		unix.IoctlSetInt(0, unix.TCXONC, unix.TCOON)
		if t, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
			t.Lflag = 0
			t.Iflag = 0
			unix.IoctlSetTermios(0, unix.TCSETS, t)
		}
		fmt.Println("end of terminal")
		signal.Ignore(syscall.SIGHUP)
		unix.IoctlSetInt(0, unix.TIOCNOTTY, 0)
		for fd := range 3 {
			syscall.Close(fd)
		}
		time.Sleep(20 * time.Millisecond) // it is hung up now
		return 28
	case "kill-once": // kills all that it can, and ends
		syscall.Kill(-1, syscall.SIGKILL)
		for pid := range 100 {
			if pid > 0 && pid != os.Getpid() {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		fmt.Println("killed")
		return 29
	case "never-read": // never reads its input
		signal.Ignore()
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "bomb-once": // forks until it may not, and ends
		n := 0
		for range 5000 {
			if _, err := syscall.ForkExec("/proc/self/exe", []string{Name, "stubborn"}, &syscall.ProcAttr{}); err != nil {
				n++
				if n > 100 {
					break
				}
			}
		}
		return 30
	default:
		fmt.Fprintf(os.Stderr, "tool: no attack %q\n", args[0])
		return 2
	}
	return 0
}
