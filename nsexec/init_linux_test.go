package nsexec

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// inits are specs under which an init has to work.
var inits = map[string]func(*specs.Spec){
	"default": func(*specs.Spec) {},
	"user": func(s *specs.Spec) {
		s.Process.User = specs.User{UID: 1000, GID: 1000}
	},
	"no_new_privs": func(s *specs.Spec) {
		s.Process.User = specs.User{UID: 1000, GID: 1000}
		s.Process.NoNewPrivileges = true
	},
	"read-only": func(s *specs.Spec) { s.Root.Readonly = true },
	"user namespace": func(s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 0, Size: 65536}}
		s.Linux.GIDMappings = s.Linux.UIDMappings
	},
	"blind": func(s *specs.Spec) { // the filter forbids to wait for signals, and close_range
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"rt_sigtimedwait", "close_range"}, Action: specs.ActErrno}}}
	},
}

var withInit = &Options{Init: true}

func TestInit(t *testing.T) {
	requireRoot(t)
	for name, change := range inits {
		t.Run(name, func(t *testing.T) {
			spec := func(args ...string) *specs.Spec {
				s := newSpec(newRoot(t), args...)
				change(s)
				return s
			}
			v := viewOf(t, spec("view"), withInit)
			if v.Pid != 2 || v.Sid != 1 {
				t.Errorf("pid %d in session %d, want 2 in 1", v.Pid, v.Sid)
			}
			if v.Status["SigBlk"] != "0000000000000000" || v.Status["SigIgn"] != "0000000000000000" {
				t.Errorf("signals blocked %s, ignored %s", v.Status["SigBlk"], v.Status["SigIgn"])
			}
			if len(v.Files) != 3 {
				t.Errorf("open files: %v", v.Files)
			}
			for _, test := range []struct {
				args []string
				want Status
			}{
				{[]string{"exit", "0"}, Status{}},
				{[]string{"exit", "7"}, Status{Code: 7}},
				{[]string{"exit", "255"}, Status{Code: 255}},
				{[]string{"kill", "2", "9"}, Status{Code: 128 + 9}}, // no signal: 128 and its number, as a shell has it
			} {
				out, status, err := run(t, spec(test.args...), withInit)
				if err != nil || status.Code != test.want.Code || status.Signal != 0 {
					t.Errorf("%v: %v, %v, want %v: %s", test.args, status, err, test.want, out)
				}
			}
			if out := mustRun(t, spec("orphans", "20"), withInit); out != "0\n" {
				t.Errorf("orphans that are not reaped: %s", out)
			}
			// The error of execve arrives through the clone.
			s := spec()
			s.Process.Args = []string{"/does/not/exist"}
			_, _, err := run(t, s, withInit)
			var ee *ExecError
			if !errors.As(err, &ee) || ee.Errno != unix.ENOENT || ee.Path != "/does/not/exist" {
				t.Errorf("a program that is missing: %v", err)
			}
		})
	}
}

// startInit starts the command "signals" behind an init and waits until it is ready.
func startInit(t *testing.T, change func(*specs.Spec)) *Process {
	t.Helper()
	l := &Launcher{}
	t.Cleanup(func() { l.Close() })
	s := newSpec(newRoot(t), "signals")
	change(s)
	prog, err := Compile(s, withInit)
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := l.Start(t.Context(), prog, &Stdio{Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	r.SetReadDeadline(time.Now().Add(20 * time.Second))
	if line, err := bufio.NewReader(r).ReadString('\n'); line != "ready\n" {
		t.Fatalf("it says %q: %v", line, err)
	}
	return p
}

// TestInitForwards: signals to the first process reach the program, and the init has nothing that anybody could take.
func TestInitForwards(t *testing.T) {
	requireRoot(t)
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGWINCH, unix.SIGCONT, 35, 64} {
		p := startInit(t, inits["user"])
		if err := p.Signal(sig); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		status, err := p.Wait(ctx)
		cancel()
		if err != nil || status.Code != int(sig) {
			t.Errorf("after %v: %v, %v", sig, status, err)
			p.Kill()
		}
	}
	p := startInit(t, inits["no_new_privs"])
	dir := "/proc/" + strconv.Itoa(p.PID())
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil || len(fds) != 0 {
		t.Errorf("the init's descriptors: %v, %v", fds, err)
	}
	// The files of an undumpable process belong to root, whoever it runs as.
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "environ"), &st); err != nil || st.Uid != 0 {
		t.Errorf("the init is dumpable: %s/environ belongs to %d, %v", dir, st.Uid, err)
	}
	b, err := os.ReadFile(dir + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Name:\tcoracle-init\n", "Uid:\t1000\t1000\t1000\t1000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in the init's status:\n%s", want, b)
		}
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(t.Context()); err != nil || status.Signal != unix.SIGKILL {
		t.Errorf("killed: %v, %v", status, err)
	}
}

// TestInitNeedsClone: a filter that forbids clone is an error that says so.
func TestInitNeedsClone(t *testing.T) {
	requireRoot(t)
	s := newSpec(newRoot(t), "exit", "0")
	s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"clone"}, Action: specs.ActErrno}}}
	_, _, err := run(t, s, withInit)
	var se *StepError
	if !errors.As(err, &se) || se.Call != "clone" || !errors.Is(err, unix.EPERM) {
		t.Errorf("got %v", err)
	}
}

// TestInitWithoutPIDNamespace: in the host's pid namespace the init adopts what its program leaves.
func TestInitWithoutPIDNamespace(t *testing.T) {
	requireRoot(t)
	s := newSpec(newRoot(t), "exit", "5")
	sharesPIDs(s)
	out, status, err := run(t, s, withInit)
	if err != nil || status.Code != 5 {
		t.Errorf("got %v, %v: %s", status, err, out)
	}
}

// TestInitTerminal: the program is in the foreground of its terminal, and what is typed there is for it.
func TestInitTerminal(t *testing.T) {
	requireRoot(t)
	start := func(args ...string) *Process {
		s := newSpec(newRoot(t), args...)
		s.Process.Terminal, s.Process.User = true, specs.User{UID: 1000, GID: 1000}
		l := &Launcher{}
		t.Cleanup(func() { l.Close() })
		prog, err := Compile(s, withInit)
		check(t, err)
		defer prog.Close()
		p, err := l.Start(t.Context(), prog, nil)
		check(t, err)
		return p
	}
	p := start("tty")
	if out := readTerminal(t, p.Terminal()); !strings.HasSuffix(out, "foreground true <nil> dev/tty <nil>\n") {
		t.Errorf("got %s", out)
	}
	// An interrupt goes to the program and not to the init, which would forward it a second time.
	p = start("signals")
	r := bufio.NewReader(p.Terminal())
	if line, err := r.ReadString('\n'); line != "ready\r\n" {
		t.Fatalf("it says %q, %v", line, err)
	}
	if _, err := p.Terminal().WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(t.Context()); err != nil || status.Code != int(unix.SIGINT) {
		t.Errorf("after ^C: %v, %v", status, err)
	}
	p.Terminal().Close()
}
