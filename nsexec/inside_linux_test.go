package nsexec

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// The test binary is the only program in the root filesystems of these tests. As /bin/inside it looks around in the
// container and does what the test's arguments say.
const insidePath = "/bin/inside"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == filepath.Base(insidePath) {
		os.Exit(inside(os.Args[1:]))
	}
	flag.Parse()
	if skip := flag.Lookup("test.skip"); os.Geteuid() != 0 && skip != nil && skip.Value.String() == "" {
		fmt.Println("examples that start processes are skipped: they need root")
		flag.Set("test.skip", "^Example(|Launcher|Process|StepError|Stdio|Target|TargetOptions|Process_Terminal|Keeper|Detached)$")
	}
	before := hostState()
	code := m.Run()
	if static.dir != "" {
		os.RemoveAll(static.dir)
	}
	if code == 0 {
		after := hostState()
		for end := time.Now().Add(5 * time.Second); after != before && time.Now().Before(end); after = hostState() {
			time.Sleep(10 * time.Millisecond)
		}
		if after != before {
			fmt.Fprintf(os.Stderr, "the tests left something behind:\nbefore:\n%s\nafter:\n%s\n", before, after)
			code = 1
		}
	}
	os.Exit(code)
}

// hostState is what the tests must leave as it was; newRoot looks for mounts.
func hostState() string {
	var b strings.Builder
	children, _ := filepath.Glob("/proc/self/task/*/children")
	for _, c := range children {
		list, _ := os.ReadFile(c)
		b.Write(list)
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	open := 0
	for _, f := range fds {
		// What the Go runtime keeps for itself does not count.
		if l, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && !strings.HasPrefix(l, "anon_inode:[event") {
			open++
		}
	}
	fmt.Fprintf(&b, "%d files\n", open)
	return b.String()
}

// A view is what a process sees of itself and its surroundings.
type view struct {
	Status    map[string]string // /proc/self/status
	Mounts    []mountLine
	Files     map[string]string // descriptors 0 and up, without the one that lists them
	Sid, Pid  int
	Cgroups   string
	Rlimits   map[string][2]uint64
	Umask     int
	Hostname  string
	Domain    string
	Env       []string
	Cwd       string
	Args      []string
	Caps      map[string]string
	OOMAdj    string
	Namespace map[string]string
	Interface []string
	Machine   string
	Up        bool // lo
}

type mountLine struct{ Root, At, Options, Propagation, Type, Source, Super string }

func look() view {
	v := view{Status: map[string]string{}, Files: map[string]string{}, Rlimits: map[string][2]uint64{}, Namespace: map[string]string{}}
	v.Umask = syscall.Umask(0)
	v.Env, v.Args = os.Environ(), os.Args
	v.Cwd, _ = os.Getwd()
	v.Hostname, _ = os.Hostname()
	v.Sid, _ = unix.Getsid(0)
	v.Pid = os.Getpid()
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if k, s, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			v.Status[k] = strings.TrimSpace(s)
		}
	}
	b, _ = os.ReadFile("/proc/self/cgroup")
	v.Cgroups = string(b)
	b, _ = os.ReadFile("/proc/self/oom_score_adj")
	v.OOMAdj = strings.TrimSpace(string(b))
	b, _ = os.ReadFile("/proc/sys/kernel/domainname")
	v.Domain = strings.TrimSpace(string(b))
	v.Mounts = mountLines()
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		l, err := os.Readlink("/proc/self/fd/" + e.Name())
		// What the Go runtime opens for itself does not count: epoll, and the limits of its cgroup.
		runtimes := strings.HasPrefix(l, "anon_inode:[event") || strings.Contains(filepath.Base(l), "cpu.cfs_") || filepath.Base(l) == "cpu.max"
		if err == nil && !runtimes && l != "/proc/"+strconv.Itoa(v.Pid)+"/fd" {
			v.Files[e.Name()] = l
		}
	}
	for i, name := range rlimits {
		var l unix.Rlimit
		unix.Getrlimit(i, &l)
		v.Rlimits[name] = [2]uint64{l.Cur, l.Max}
	}
	entries, _ = os.ReadDir("/proc/self/ns")
	for _, e := range entries {
		v.Namespace[e.Name()], _ = os.Readlink("/proc/self/ns/" + e.Name())
	}
	b, _ = os.ReadFile("/proc/net/dev")
	for line := range strings.Lines(string(b)) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			v.Interface = append(v.Interface, strings.TrimSpace(name))
		}
	}
	b, _ = os.ReadFile("/sys/class/net/lo/flags")
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 0, 32)
	v.Up = n&unix.IFF_UP != 0
	var uts unix.Utsname
	unix.Uname(&uts)
	v.Machine = unix.ByteSliceToString(uts.Machine[:])
	return v
}

func mountLines() (list []mountLine) {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		before, after, _ := strings.Cut(strings.TrimSpace(line), " - ")
		f, s := strings.Fields(before), strings.Fields(after)
		list = append(list, mountLine{f[3], f[4], f[5], strings.Join(f[6:], " "), s[0], s[1], s[2]})
	}
	return list
}

// on finds the mount at a place, the topmost one.
func (v *view) on(at string) (found mountLine) {
	for _, m := range v.Mounts {
		if m.At == at {
			found = m
		}
	}
	return found
}

// inside is the program of the containers. Several commands are separated by ";".
func inside(args []string) int {
	for len(args) > 0 {
		n := slices.Index(args, ";")
		if n < 0 {
			n = len(args)
		}
		if code := insideCommand(args[:n]); code != 0 {
			return code
		}
		args = args[min(n+1, len(args)):]
	}
	return 0
}

func insideCommand(args []string) int {
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	var err error
	switch arg(0) {
	case "view":
		err = json.NewEncoder(os.Stdout).Encode(look())
	case "exit":
		n, _ := strconv.Atoi(arg(1))
		return n
	case "cat":
		var b []byte
		b, err = os.ReadFile(arg(1))
		os.Stdout.Write(b)
	case "ls":
		var entries []fs.DirEntry
		entries, err = os.ReadDir(arg(1))
		for _, e := range entries {
			fmt.Println(e.Name())
		}
	case "stat":
		for _, p := range args[1:] {
			var st unix.Stat_t
			if e := unix.Lstat(p, &st); e != nil {
				fmt.Println(p, e)
				continue
			}
			link, _ := os.Readlink(p)
			fmt.Printf("%s %o %d:%d %d:%d %s\n", p, st.Mode, st.Uid, st.Gid, unix.Major(st.Rdev), unix.Minor(st.Rdev), link)
		}
	case "write":
		err = os.WriteFile(arg(1), []byte(arg(2)), 0o666)
	case "try": // prints the error of what follows instead of failing
		var out bytes.Buffer
		err = tryCommand(args[1:], &out)
		fmt.Println(strings.Join(args[1:], " ")+":", err)
		err = nil
	case "tty":
		for fd := range 3 {
			link, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
			size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
			if err != nil {
				fmt.Println(fd, link, err)
				continue
			}
			fmt.Println(fd, link, size.Row, size.Col)
		}
		group, err := unix.IoctlGetInt(0, unix.TIOCGPGRP)
		f, open := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		f.Close()
		fmt.Println("foreground", group == unix.Getpgrp(), err, "dev/tty", open)
	case "echo":
		fmt.Println(strings.Join(args[1:], " "))
	case "kill": // kill PID SIGNAL
		pid, _ := strconv.Atoi(arg(1))
		sig, _ := strconv.Atoi(arg(2))
		err = syscall.Kill(pid, syscall.Signal(sig))
		time.Sleep(100 * time.Millisecond)
	case "signals": // exits with the number of the first signal
		c := make(chan os.Signal, 8)
		signal.Notify(c)
		fmt.Println("ready")
		for sig := range c {
			if sig != syscall.SIGURG {
				return int(sig.(syscall.Signal))
			}
		}
	case "orphans": // orphans N: leaves N grandchildren that end at once, and says how many of them are not reaped
		n, _ := strconv.Atoi(arg(1))
		attr := &syscall.ProcAttr{Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{}}
		if arg(2) == "leave" {
			for range n {
				if _, err := syscall.ForkExec("/proc/self/exe", []string{os.Args[0], "exit", "3"}, attr); err != nil {
					return 1
				}
			}
			return 0
		}
		var pid int
		if pid, err = syscall.ForkExec("/proc/self/exe", []string{os.Args[0], "orphans", arg(1), "leave"}, attr); err != nil {
			break
		}
		syscall.Wait4(pid, nil, 0, nil)
		left := -1
		for end := time.Now().Add(5 * time.Second); left != 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
			left = 0
			entries, _ := os.ReadDir("/proc")
			for _, e := range entries {
				if b, err := os.ReadFile("/proc/" + e.Name() + "/stat"); err == nil && bytes.Contains(b, []byte(") Z ")) {
					left++
				}
			}
		}
		fmt.Println(left)
	case "errs":
		fmt.Fprintln(os.Stderr, strings.Join(args[1:], " "))
	case "flood": // flood BYTES: a pattern that repeats after 251 bytes
		n, _ := strconv.Atoi(arg(1))
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(i % 251)
		}
		_, err = os.Stdout.Write(b)
	case "lines": // lines N: numbered lines, each written by itself
		n, _ := strconv.Atoi(arg(1))
		for i := range n {
			fmt.Printf("line %d\n", i)
		}
	case "typist": // says the terminal's size, then the first line with the size of then, and what it read in all
		size := func() string {
			w, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
			if err != nil {
				return err.Error()
			}
			return fmt.Sprintf("size %d %d", w.Row, w.Col)
		}
		fmt.Println(size())
		n := 0
		for r := bufio.NewReader(os.Stdin); ; {
			line, err := r.ReadString('\n')
			if n == 0 {
				fmt.Printf("%s, read %q\n", size(), line)
			}
			n += len(line)
			if err != nil {
				fmt.Printf("end: %d bytes\n", n)
				return 0
			}
		}
	case "wait":
		_, err = io.Copy(io.Discard, os.Stdin)
	default:
		err = fmt.Errorf("what is %q?", args)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func tryCommand(args []string, _ io.Writer) error {
	switch args[0] {
	case "write":
		f, err := os.OpenFile(args[1], os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(args[2])
		return err
	case "create":
		return os.WriteFile(args[1], nil, 0o666)
	case "write big":
		n, _ := strconv.Atoi(args[2])
		return os.WriteFile(args[1], make([]byte, n), 0o666)
	case "mkdir":
		return os.Mkdir(args[1], 0o777)
	case "read":
		b, err := os.ReadFile(args[1])
		if err == nil && len(b) == 0 {
			return io.EOF
		}
		return err
	case "mount":
		return unix.Mount("none", args[1], "tmpfs", 0, "")
	case "alg":
		_, err := unix.Socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
		return err
	case "readdir":
		e, err := os.ReadDir(args[1])
		if err == nil && len(e) == 0 {
			return io.EOF
		}
		return err
	}
	return fmt.Errorf("what is %q?", args)
}

// static is the test program as a file that needs no libraries: itself, unless cgo or the race detector linked it with
// the C library.
var static struct {
	sync.Once
	path, dir string
	err       error
}

func insideProgram(t testing.TB) string {
	t.Helper()
	static.Do(func() {
		static.path, static.err = os.Executable()
		if static.err != nil || !dynamic(static.path) {
			return
		}
		if static.dir, static.err = os.MkdirTemp("", "nsexec-inside-"); static.err != nil {
			return
		}
		static.path = filepath.Join(static.dir, "inside.test")
		cmd := exec.Command("go", "test", "-c", "-o", static.path, ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			static.err = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if static.err != nil {
		t.Fatalf("make a static test program: %v", static.err)
	}
	return static.path
}

func dynamic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// newRoot makes a root filesystem that holds nothing but the test program.
func newRoot(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	t.Cleanup(func() {
		// Other programs mount and unmount on this host meanwhile: only what is in the root is the test's.
		for _, m := range mountLines() {
			if strings.HasPrefix(m.At, root) {
				t.Errorf("left on the host: %+v", m)
			}
		}
	})
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	// The path to it is not for others, and some tests change the user.
	for dir := filepath.Dir(root); dir != "/" && strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755)
	}
	exe := insideProgram(t)
	if err := os.Mkdir(root+"/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Link(exe, root+insidePath) != nil {
		b, err := os.ReadFile(exe)
		if err == nil {
			err = os.WriteFile(root+insidePath, b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// newSpec is the default spec for a root filesystem and a command of inside.
func newSpec(root string, args ...string) *specs.Spec {
	s := DefaultSpec()
	s.Root.Path = root
	s.Process.Args = append([]string{insidePath}, args...)
	return s
}

// run compiles and runs a spec, and returns the output and the exit status.
func run(t testing.TB, s *specs.Spec, opts *Options) (string, Status, error) {
	t.Helper()
	l := &Launcher{}
	defer l.Close()
	return runWith(t, l, s, opts)
}

func runWith(t testing.TB, l *Launcher, s *specs.Spec, opts *Options) (string, Status, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	prog, err := Compile(s, opts)
	if err != nil {
		return "", Status{}, err
	}
	defer prog.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := l.Start(ctx, prog, &Stdio{Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		return "", Status{}, err
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	status, err := p.Wait(ctx)
	return string(out), status, err
}

// mustRun is run for containers that are expected to work.
func mustRun(t testing.TB, s *specs.Spec, opts *Options) string {
	t.Helper()
	out, status, err := run(t, s, opts)
	if err != nil {
		t.Fatal(err)
	}
	if status.Code != 0 {
		t.Fatalf("the container ended with %v:\n%s", status, out)
	}
	return out
}

// viewOf runs a spec whose command is view.
func viewOf(t testing.TB, s *specs.Spec, opts *Options) (v view) {
	t.Helper()
	out := mustRun(t, s, opts)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	return v
}

func requireRoot(t testing.TB) { t.Helper(); testutil.RequireRoot(t) }
