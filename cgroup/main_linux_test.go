package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// childEnv makes the test binary a process for a group: the value says which.
const childEnv = "CORACLE_CGROUP_CHILD"

// testParent is the parent of all groups of these tests.
var discard = slog.New(slog.DiscardHandler)

var testParent = "/coracle-test-" + strconv.Itoa(os.Getpid())

func TestMain(m *testing.M) {
	if role := os.Getenv(childEnv); role != "" {
		os.Exit(child(role))
	}
	code := m.Run()
	if left := leftovers(); len(left) > 0 {
		fmt.Fprintln(os.Stderr, "left behind:", left)
		code = 1
	}
	os.Exit(code)
}

// leftovers returns the cgroups that the tests left.
func leftovers() []string {
	var left []string
	mounts, _ := mounted()
	for _, t := range mounts {
		for _, base := range ancestors(t.own) {
			dir := filepath.Join(t.mount, base, testParent)
			if _, err := os.Lstat(dir); err == nil {
				left = append(left, dir)
			}
		}
	}
	return left
}

// open opens a hierarchy for a test, or skips it where no group can be made.
func open(t testing.TB) *Hierarchy {
	t.Helper()
	testutil.RequireRoot(t)
	h, err := Open(Config{Parent: testParent})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	if h.tree("") == nil && len(h.Controllers()) == 0 {
		testutil.Skip(t, "there are no cgroups that may be written")
	}
	return h
}

// needs skips a test where a controller is missing.
func needs(t testing.TB, h *Hierarchy, controller string) {
	t.Helper()
	if h.tree(controller) == nil {
		t.Skipf("this machine has no %s controller", controller)
	}
}

// create makes a group that the test's end kills and removes.
func create(t testing.TB, h *Hierarchy, r *specs.LinuxResources) *Group {
	t.Helper()
	name := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			return c
		}
		return '_'
	}, t.Name())
	g, err := h.Create(name, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Kill(background); err != nil {
			t.Error(err)
		}
		if err := g.Remove(background); err != nil {
			t.Error(err)
		}
	})
	return g
}

// resources translates limits, or fails.
func resources(t testing.TB, l Limits) *specs.LinuxResources {
	t.Helper()
	r, err := l.Resources()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// process is a child in a group.
type process struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// start starts a child in a group as the library's users do: a thread joins the v1 hierarchies through their tasks files,
// and its child is cloned into the v2 one.
func start(t testing.TB, g *Group, role ...string) *process {
	t.Helper()
	p := command(t, role...)
	if err := p.startIn(g); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.in.Close()
		_ = p.Process.Kill()
		_ = p.Wait()
	})
	return p
}

// startIn starts a command in a group.
func (p *process) startIn(g *Group) error {
	j, err := g.Join()
	if err != nil {
		return err
	}
	defer j.Close()
	if j.Dir != nil {
		if p.SysProcAttr == nil {
			p.SysProcAttr = &syscall.SysProcAttr{}
		}
		p.SysProcAttr.UseCgroupFD, p.SysProcAttr.CgroupFD = true, int(j.Dir.Fd())
	}
	started := make(chan error)
	hold := make(chan struct{})
	defer close(hold)
	var join func()
	join = func() {
		runtime.LockOSThread() // and never unlocked: the thread ends in the group
		if unix.Gettid() == os.Getpid() {
			go join() // the first thread cannot end
			<-hold
			runtime.UnlockOSThread()
			return
		}
		for _, f := range j.Tasks {
			if _, err := f.WriteString("0"); err != nil {
				started <- err
				return
			}
		}
		started <- p.Start()
	}
	go join()
	return <-started
}

func command(t testing.TB, role ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command("/proc/self/exe")}
	p.Env = append(os.Environ(), childEnv+"="+strings.Join(role, " "), "GORACE=atexit_sleep_ms=0")
	p.Stderr = os.Stderr
	var err error
	if p.in, err = p.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	return p
}

// line reads a line of the child's output.
func (p *process) line(t testing.TB) string {
	t.Helper()
	if !p.out.Scan() {
		t.Fatalf("the child ended without a word: %v", p.out.Err())
	}
	return p.out.Text()
}

// spun counts the turns of a child that spins.
var spun atomic.Uint64

// child is what the test binary does in a group.
func child(role string) int {
	args := strings.Fields(role)
	switch args[0] {
	case "wait": // until there is no more input
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
	case "spin":
		fmt.Println("ready")
		for n := uint64(0); ; n++ { // the kernel throttles or freezes it, and then the test kills it
			spun.Store(n)
		}
	case "hog": // memory without end
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
			if len(all) > 512 {
				fmt.Println("got 512 MiB")
				return 0
			}
		}
	case "bomb": // children without end
		fmt.Println("ready")
		for n := 0; n < 200; n++ {
			c := exec.Command("/proc/self/exe")
			c.Env = append(os.Environ(), childEnv+"=wait")
			if _, err := c.StdinPipe(); err != nil {
				return 1
			}
			if err := c.Start(); err != nil {
				fmt.Println("refused:", err)
				_, _ = io.Copy(io.Discard, os.Stdin)
				return 0
			}
		}
		fmt.Println("made 200")
	case "open": // a device
		f, err := os.OpenFile(args[1], os.O_RDONLY, 0)
		fmt.Println(errno(err))
		f.Close()
	case "mknod":
		fmt.Println(errno(unix.Mknod(args[1], unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))))
		os.Remove(args[1])
	case "readonly":
		return childReadonly()
	case "unmounted":
		return childUnmounted()
	case "namespace":
		return childNamespace(args[1])
	case "delegated":
		return childDelegated(args[1])
	default:
		return 99
	}
	return 0
}

func errno(err error) string {
	var e syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}

// childReadonly sees cgroups that are mounted read-only, as in a container.
func childReadonly() int {
	mounts, err := mounted()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for _, m := range mounts {
		if err := unix.Mount("", m.mount, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			fmt.Println("remount", m.mount, err)
			return 1
		}
	}
	h, err := Open(Config{Parent: testParent, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer h.Close()
	ok := true
	for what, r := range map[string]*specs.LinuxResources{
		"memory":  {Memory: &specs.LinuxMemory{Limit: new(int64(64 << 20))}},
		"devices": {Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}},
	} {
		_, err := h.Create("readonly", r)
		var u *UnsupportedError
		if !errors.As(err, &u) || !errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, unix.EROFS) || u.Fix == "" {
			fmt.Printf("%s: %#v\n", what, err)
			ok = false
		}
	}
	return childNothing(h, ok)
}

// childUnmounted sees no cgroups.
func childUnmounted() int {
	mounts, err := mounted()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.mount, unix.MNT_DETACH); err != nil {
			fmt.Println("unmount", m.mount, err)
			return 1
		}
	}
	h, err := Open(Config{})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer h.Close()
	ok := h.Mode() == None
	_, err = h.Create("x", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(5))}})
	ok = ok && errors.Is(err, errors.ErrUnsupported)
	return childNothing(h, ok)
}

// childNamespace is in the root of a cgroup namespace, which is no real root: as in a container with writable cgroups.
func childNamespace(at string) int {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Println("private:", err)
		return 1
	}
	if err := unix.Mount("cgroup2", at, "cgroup2", 0, ""); err != nil {
		fmt.Println("mount:", err)
		return 1
	}
	t := &tree{mount: at, own: "/", v2: true}
	p, err := t.open("/inner")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	kind, err := readAt(p.fd, "cgroup.type")
	_ = unix.Rmdir(p.path)
	if err != nil || strings.TrimSpace(string(kind)) != "domain" || len(p.controllers) > 0 {
		fmt.Printf("%v: %q, %v\n", p.controllers, kind, err)
		return 1
	}
	fmt.Println("good")
	return 0
}

// childDelegated is an unprivileged user with a group that was delegated.
func childDelegated(parent string) int {
	h, err := Open(Config{Parent: parent})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer h.Close()
	g, err := h.Create("x", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(100))}})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	p := &process{Cmd: exec.Command("/proc/self/exe")}
	p.Env = append(os.Environ(), childEnv+"=wait")
	in, err := p.StdinPipe()
	if err == nil {
		err = p.startIn(g)
	}
	if err != nil {
		fmt.Println(err, g.Remove(background))
		return 1
	}
	s, err := g.Stats()
	pids, err2 := g.Procs()
	err = errors.Join(err, err2, g.Kill(background), g.Remove(background), in.Close())
	_ = p.Wait()
	if err != nil || s.PIDs.Limit != 100 || !slices.Equal(pids, []int{p.Process.Pid}) {
		fmt.Println(err, s, pids)
		return 1
	}
	fmt.Println("good", g.Path("pids"))
	return 0
}

// childNothing checks that a group that does nothing does it without an error.
func childNothing(h *Hierarchy, ok bool) int {
	g, err := h.Create("nothing", nil)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	j, err := g.Join()
	names, err2 := h.Names()
	n, err3 := g.OOMKills()
	_, err4 := g.Stats()
	pids, err5 := g.Procs()
	err = errors.Join(err, err2, err3, err4, err5, g.Kill(background), g.Remove(background), j.Close())
	if err != nil || j.Dir != nil || len(names) > 0 || n != 0 || len(pids) > 0 || len(h.Controllers()) > 0 {
		fmt.Println(err, names, n, pids, h.Controllers())
		return 1
	}
	if !errors.Is(g.Freeze(background), errors.ErrUnsupported) {
		fmt.Println("freeze did not say that it is unsupported")
		return 1
	}
	if !ok {
		return 1
	}
	fmt.Println("good")
	return 0
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it did not come to pass that %s", what)
		}
	}
}
