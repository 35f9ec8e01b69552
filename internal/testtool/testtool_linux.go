// Package testtool is the toolbox of the tests' containers: one static program with many commands, so that tests need
// no userland. Where the test binary itself is static, it is the tool (see Main); otherwise Path builds one.
package testtool

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Name is what the program is called in a container: a process whose argument 0 has this base name is a tool.
const Name = "tool"

// Main performs a command and exits if the process was started as the tool; otherwise it returns. Call it first in
// TestMain.
func Main() {
	if filepath.Base(os.Args[0]) == Name {
		os.Exit(Run(os.Args[1:]))
	}
}

// Report is what "report" says of the process, as JSON.
type Report struct {
	PID, PPID, SID, PGID int
	UID, GID             int
	Groups               []int
	Args, Env            []string
	Cwd, Hostname        string
	FDs                  []int
	Status               map[string]string // of /proc/self/status
	Cgroups              []string
	Mounts               []string // lines of /proc/self/mountinfo
	Exe1, Environ1       string   // what /proc/1/exe leads to, and /proc/1/environ
	Processes            []int
	Umask                int
	Ignored              string
	Links                map[string]string // of /proc/self/ns
	MaskedOrRO           map[string]string // of paths named on the command line: "masked", "read-only", "writable", "missing"
}

// Run performs a command.
func Run(args []string) int {
	if len(args) == 0 {
		return 0
	}
	die := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	number := func(i int) int {
		if i >= len(args) {
			return 0
		}
		n, _ := strconv.Atoi(args[i])
		return n
	}
	switch args[0] {
	case "true":
		return 0
	case "dial", "lookup", "lookup-addr", "interfaces", "lookup-at", "dns", "dns-flood", "frames", "flows":
		return networkCommand(args)
	case "exit":
		return number(1)
	case "echo":
		fmt.Println(strings.Join(args[1:], " "))
	case "echo2":
		fmt.Fprintln(os.Stderr, strings.Join(args[1:], " "))
	case "cat":
		if len(args) == 1 {
			if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
				return die(err)
			}
		}
		for _, name := range args[1:] {
			b, err := os.ReadFile(name)
			if err != nil {
				return die(err)
			}
			os.Stdout.Write(b)
		}
	case "say": // say LINE...: and stays
		for _, line := range args[1:] {
			fmt.Println(line)
		}
		time.Sleep(time.Hour)
	case "write": // write FILE TEXT
		if err := os.WriteFile(args[1], []byte(args[2]), 0o644); err != nil {
			return die(err)
		}
	case "ls":
		entries, err := os.ReadDir(args[1])
		if err != nil {
			return die(err)
		}
		for _, e := range entries {
			fmt.Println(e.Name())
		}
	case "sleep": // sleep MILLISECONDS
		fmt.Println("sleeping")
		time.Sleep(time.Duration(number(1)) * time.Millisecond)
	case "flood": // flood BYTES
		w := bufio.NewWriter(os.Stdout)
		for i := 0; i < number(1); i++ {
			w.WriteByte(byte('a' + i%26))
		}
		if err := w.Flush(); err != nil {
			return die(err)
		}
	case "spin": // uses one processor
		fmt.Println("ready")
		for n := 0; ; n++ {
			if n < 0 {
				return n
			}
		}
	case "count": // count LINES CODE: numbered lines, each written by itself, with pauses
		for i := range number(1) {
			fmt.Printf("line %d\n", i)
			if i%50 == 49 {
				time.Sleep(time.Millisecond)
			}
		}
		return number(2)
	case "typist": // says whether it has a terminal, of which size, and then each line with the size of then
		size := func() string {
			w, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
			if err != nil {
				return "no terminal"
			}
			return fmt.Sprintf("%d rows, %d columns", w.Row, w.Col)
		}
		fmt.Println(size())
		for r := bufio.NewReader(os.Stdin); ; {
			line, err := r.ReadString('\n')
			if err != nil {
				fmt.Println("end")
				return number(1)
			}
			fmt.Printf("%s: %s", size(), line)
		}
	case "kill-self": // kill-self SIGNAL
		signal.Reset(syscall.Signal(number(1)))
		syscall.Kill(os.Getpid(), syscall.Signal(number(1)))
		time.Sleep(time.Second)
	case "kill": // kill PID SIGNAL
		if err := syscall.Kill(number(1), syscall.Signal(number(2))); err != nil {
			return die(err)
		}
	case "stubborn": // ignores every signal that can be ignored
		signal.Ignore()
		for s := 1; s < 65; s++ {
			signal.Ignore(syscall.Signal(s))
		}
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "obey": // exits with the number of the first signal
		c := make(chan os.Signal, 1)
		signal.Notify(c)
		fmt.Println("ready")
		for s := range c {
			if s != syscall.SIGURG {
				return int(s.(syscall.Signal))
			}
		}
	case "setuid": // setuid UID COMMAND...: for ever after without the death signal
		if err := syscall.Setgid(number(1)); err != nil {
			return die(err)
		}
		if err := syscall.Setuid(number(1)); err != nil {
			return die(err)
		}
		return Run(args[2:])
	case "daemon": // daemon COMMAND...: a child of a child runs it in a session of its own; the parent goes on sleeping
		attr := &syscall.ProcAttr{Files: []uintptr{0, 1, 2}, Env: os.Environ(), Sys: &syscall.SysProcAttr{Setsid: true}}
		if len(args) > 1 && args[1] == "again" {
			if _, err := syscall.ForkExec("/proc/self/exe", append([]string{Name}, args[2:]...), attr); err != nil {
				return die(err)
			}
			return 0
		}
		pid, err := syscall.ForkExec("/proc/self/exe", append([]string{Name, "daemon", "again"}, args[1:]...), attr)
		if err != nil {
			return die(err)
		}
		var ws syscall.WaitStatus
		syscall.Wait4(pid, &ws, 0, nil)
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "forks": // forks N: tries to have N children at once and says how many it got
		n := 0
		for ; n < number(1); n++ {
			if _, err := syscall.ForkExec("/proc/self/exe", []string{Name, "sleep", "60000"}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{}}); err != nil {
				break
			}
		}
		fmt.Println(n)
	case "hog": // hog MEGABYTES
		for i := 0; i < number(1); i++ {
			b, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			if err != nil {
				return die(err)
			}
			for j := 0; j < len(b); j += 4096 {
				b[j] = 1
			}
		}
		fmt.Println("held")
	case "no-devices": // succeeds if device nodes can neither be made in nor used below the root
		err := unix.Mknod("/made", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5)))
		if err != unix.EPERM {
			return die(fmt.Errorf("mknod: %w", err))
		}
		if f, err := os.Open("/dev/zero"); err != nil {
			return die(err)
		} else {
			f.Close()
		}
		var st unix.Statfs_t
		if err := unix.Statfs("/", &st); err != nil || st.Flags&unix.ST_NODEV == 0 {
			return die(fmt.Errorf("the root is not mounted nodev: %w", err))
		}
	case "tty": // says what its terminal is; with "resize", waits for a new size and says that too
		changed := make(chan os.Signal, 1)
		signal.Notify(changed, syscall.SIGWINCH)
		for fd := range 3 {
			size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
			if err != nil {
				fmt.Println("no terminal on", fd)
				continue
			}
			fmt.Println(fd, size.Row, size.Col)
		}
		if len(args) > 1 {
			<-changed
			size, _ := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
			fmt.Println("now", size.Row, size.Col)
		}
	case "mount-tmpfs": // mount-tmpfs PATH
		if err := unix.Mount("tmpfs", args[1], "tmpfs", 0, ""); err != nil {
			return die(err)
		}
	case "bind": // bind SOURCE TARGET
		if err := unix.Mount(args[1], args[2], "", unix.MS_BIND, ""); err != nil {
			return die(err)
		}
	case "mkdirs":
		for _, dir := range args[1:] {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return die(err)
			}
		}
	case "call":
		return call(args[1:])
	case "serve":
		return serve(args[1:])
	case "attack":
		return attack(args[1:])
	case "report":
		return report(args[1:])
	default:
		fmt.Fprintf(os.Stderr, "tool: no command %q\n", args[0])
		return 2
	}
	return 0
}

func report(paths []string) int {
	r := Report{
		PID: os.Getpid(), PPID: os.Getppid(), UID: os.Getuid(), GID: os.Getgid(), Args: os.Args, Env: os.Environ(),
		Status: map[string]string{}, Links: map[string]string{}, MaskedOrRO: map[string]string{},
	}
	r.SID, _ = unix.Getsid(0)
	r.PGID = unix.Getpgrp()
	r.Groups, _ = os.Getgroups()
	sort.Ints(r.Groups)
	r.Cwd, _ = os.Getwd()
	r.Hostname, _ = os.Hostname()
	for fd := range 1024 {
		// Go itself opens an epoll and an eventfd; they have flags that nobody inherits.
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			r.FDs = append(r.FDs, fd)
		}
	}
	lines := func(path string) []string {
		b, err := os.ReadFile(path)
		if err != nil {
			return []string{err.Error()}
		}
		return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	}
	for _, line := range lines("/proc/self/status") {
		if k, v, ok := strings.Cut(line, ":"); ok {
			r.Status[k] = strings.TrimSpace(v)
		}
	}
	r.Cgroups, r.Mounts = lines("/proc/self/cgroup"), lines("/proc/self/mountinfo")
	r.Exe1, _ = os.Readlink("/proc/1/exe")
	environ, _ := os.ReadFile("/proc/1/environ")
	r.Environ1 = string(environ)
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			r.Processes = append(r.Processes, pid)
		}
	}
	r.Umask = unix.Umask(0)
	ns, _ := os.ReadDir("/proc/self/ns")
	for _, e := range ns {
		r.Links[e.Name()], _ = os.Readlink("/proc/self/ns/" + e.Name())
	}
	for _, p := range paths {
		r.MaskedOrRO[p] = access(p)
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// access says whether a path is masked, read-only or neither, by what is there.
func access(path string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "missing"
	}
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) {
		return "masked"
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return err.Error()
	}
	if entries, err := os.ReadDir(path); err == nil && len(entries) == 0 && fs.Type == unix.TMPFS_MAGIC {
		return "masked"
	}
	if fs.Flags&unix.ST_RDONLY != 0 {
		return "read-only"
	}
	return "writable"
}
