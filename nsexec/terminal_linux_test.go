package nsexec

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// readTerminal reads a terminal until the other end is closed.
func readTerminal(t *testing.T, f *os.File) string {
	t.Helper()
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil && !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	return strings.ReplaceAll(string(b), "\r\n", "\n")
}

// startWith starts a spec with a terminal and returns what came out of it.
func startWith(t *testing.T, s *specs.Spec) string {
	t.Helper()
	l := &Launcher{}
	defer l.Close()
	prog, err := Compile(s, nil)
	check(t, err)
	defer prog.Close()
	p, err := l.Start(t.Context(), prog, nil)
	check(t, err)
	out := readTerminal(t, p.Terminal())
	if status, err := p.Wait(t.Context()); err != nil || status.Code != 0 {
		t.Fatalf("%v, %v: %s", status, err, out)
	}
	return out
}

func TestTerminal(t *testing.T) {
	requireRoot(t)
	want := "0 /dev/pts/0 24 80\n1 /dev/pts/0 24 80\n2 /dev/pts/0 24 80\nforeground true <nil> dev/tty <nil>\n"
	for name, change := range map[string]func(*specs.Spec){
		"root": func(*specs.Spec) {},
		"user": func(s *specs.Spec) { s.Process.User = specs.User{UID: 1000, GID: 1000} },
		"own device": func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/console", Type: "c", Major: 5, Minor: 1}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSpec(newRoot(t), "tty")
			s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Height: 24, Width: 80}
			change(s)
			if out := startWith(t, s); out != want {
				t.Errorf("got\n%s\nwant\n%s", out, want)
			}
			s.Process.Args = []string{insidePath, "stat", "/dev/console", "/dev/pts/0"}
			out := startWith(t, s)
			lines := strings.Split(out, "\n")
			for i := range lines {
				_, lines[i], _ = strings.Cut(lines[i], " ")
			}
			owner := "0:5"
			if s.Process.User.UID != 0 {
				owner = "1000:5"
			}
			if len(lines) < 2 || lines[0] != lines[1] || lines[0] != "20620 "+owner+" 136:0 " {
				t.Errorf("console and terminal:\n%s", out)
			}
		})
	}
	t.Run("no /dev/pts", func(t *testing.T) {
		s := newSpec(newRoot(t), "tty")
		s.Mounts = s.Mounts[:2]
		s.Process.Terminal = true
		var se *StepError
		if _, _, err := run(t, s, nil); !errors.As(err, &se) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("/dev/pts is something else", func(t *testing.T) {
		s := newSpec(newRoot(t), "tty")
		s.Mounts[2] = specs.Mount{Destination: "/dev/pts", Type: "tmpfs"}
		s.Process.Terminal = true
		var se *StepError
		if _, _, err := run(t, s, nil); !errors.As(err, &se) || !strings.Contains(se.Label, "not a devpts") {
			t.Errorf("got %v", err)
		}
	})
}

func TestJoinTerminal(t *testing.T) {
	for name, user := range map[string]specs.User{"root": {}, "another": {UID: 1000, GID: 1000}, "traceable": {UID: 1000, GID: 1000}} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, eitherWay[name], nil)
			p := h.process("tty")
			p.Terminal, p.ConsoleSize, p.User = true, &specs.Box{Height: 10, Width: 20}, user
			for range 3 {
				prog, err := h.target.Compile(p)
				check(t, err)
				proc, err := h.l.Start(t.Context(), prog, nil)
				check(t, err)
				out := readTerminal(t, proc.Terminal())
				want := "0 /dev/pts/0 10 20\n1 /dev/pts/0 10 20\n2 /dev/pts/0 10 20\nforeground true <nil> dev/tty <nil>\n"
				if _, err := proc.Wait(t.Context()); err != nil || out != want {
					t.Errorf("%v: got\n%s", err, out)
				}
			}
			// A signal from the keyboard, and a new size.
			p.Args = []string{insidePath, "wait"}
			prog, err := h.target.Compile(p)
			check(t, err)
			proc, err := h.l.Start(t.Context(), prog, nil)
			check(t, err)
			defer proc.Terminal().Close()
			_, err = proc.Terminal().WriteString("\x03")
			check(t, err)
			if status, err := proc.Wait(t.Context()); err != nil || status.Signal != syscall.SIGINT && status.Code != 2 {
				t.Errorf("Ctrl-C: %+v, %v", status, err)
			}
		})
	}
}

// TestTerminalUserNamespace: the terminal belongs to the container's user.
func TestTerminalUserNamespace(t *testing.T) {
	requireRoot(t)
	s := newSpec(newRoot(t), "tty")
	check(t, os.Chown(s.Root.Path, 100000, 100000))
	mappings := []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings, s.Linux.GIDMappings = mappings, mappings
	s.Process.Terminal, s.Process.User = true, specs.User{UID: 7, GID: 7}
	if out := startWith(t, s); !strings.HasPrefix(out, "0 /dev/pts/0 0 0\n") || !strings.Contains(out, "foreground true <nil> dev/tty <nil>") {
		t.Error(out)
	}
}

// TestCVE_2025_52565_ConsoleMount: /dev/console is a mount by descriptor and undoes no mask: whatever the image has in
// its place, the host's files stay as they are and the masks hold.
func TestCVE_2025_52565_ConsoleMount(t *testing.T) {
	requireRoot(t)
	host := emptyDir(t)
	for _, target := range []string{host + "/console", "/proc/sysrq-trigger", "/proc/kcore", "/proc/sys/kernel/core_pattern", "pts/0"} {
		root := newRoot(t)
		check(t, os.MkdirAll(root+"/dev/pts", 0o755))
		check(t, os.Symlink(target, root+"/dev/console"))
		check(t, os.Symlink(target, root+"/dev/pts/ptmx"))
		s := newSpec(root, "try", "write", "/proc/sys/kernel/domainname", "x", ";", "try", "write", "/proc/sysrq-trigger", "h", ";",
			"try", "read", "/proc/timer_list", ";", "stat", "/dev/console")
		s.Process.Terminal = true
		out := startWith(t, s)
		if !strings.Contains(out, "/dev/console 20620 0:5 136:0") || strings.Contains(out, "write /proc/sys/kernel/domainname x: <nil>") ||
			strings.Contains(out, "write /proc/sysrq-trigger h: <nil>") || strings.Contains(out, "read /proc/timer_list: <nil>") {
			t.Errorf("/dev/console is a link to %s:\n%s", target, out)
		}
		if l, err := os.Readlink(root + "/dev/console"); err != nil || l != target {
			t.Errorf("the image's /dev was changed: %s %v", l, err)
		}
	}
	// Without a mount on /dev, the container gets one all the same.
	root := newRoot(t)
	check(t, os.Mkdir(root+"/dev", 0o755))
	check(t, os.Symlink(host+"/console", root+"/dev/console"))
	s := newSpec(root, "stat", "/dev/console")
	s.Mounts = []specs.Mount{s.Mounts[0], s.Mounts[2]}
	s.Process.Terminal = true
	if out := startWith(t, s); !strings.HasPrefix(out, "/dev/console 20620 0:5 136:0") {
		t.Error(out)
	}
}

// TestReceivedFiles: messages that a hostile process could send into a program leave nothing open.
func TestReceivedFiles(t *testing.T) {
	s, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(s[1])
	unix.SetNonblock(s[0], true)
	p := &Process{report: os.NewFile(uintptr(s[0]), "report")}
	before := hostState()
	send := func(b string, fds ...int) {
		var oob []byte
		if fds != nil {
			oob = unix.UnixRights(fds...)
		}
		check(t, unix.Sendmsg(s[1], []byte(b), oob, nil, 0))
	}
	send("T", 0)                          // not a terminal
	send("X", 0, 1, 2)                    // nothing known
	send("P", 0, 1, 2, 0, 1)              // too many
	send("P", 0)                          // a second one
	send(strings.Repeat("T", 1000), 0, 1) // long
	send("T", 0, 0, 0, 0, 0, 0, 0, 0, 0)  // more than fits
	unix.Shutdown(s[1], unix.SHUT_WR)
	if err := p.receive('T'); !errors.Is(err, ErrDied) {
		t.Errorf("got %v", err)
	}
	if p.pidfd <= 0 || p.terminal != nil {
		t.Errorf("pidfd %d, terminal %v", p.pidfd, p.terminal)
	}
	unix.Close(p.pidfd)
	if after := hostState(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	p.report.Close()
}
