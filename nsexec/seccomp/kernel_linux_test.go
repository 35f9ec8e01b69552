package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// The tests of this file start the test binary again; that process installs a filter and tells what calls then return.

const childEnv = "CORACLE_SECCOMP_CHILD"

// An order is what a child does.
type order struct {
	Profile *specs.LinuxSeccomp
	Mode    string // "", or one of the modes of runChild
	Calls   []request
}

// A request is one call: a 64-bit one, or through int 0x80.
type request struct {
	Nr    uint64
	Args  [6]uint64
	Int80 bool
}

// A result is what a call returned: errno 0 is success.
type result struct {
	Value uint64
	Errno int
}

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		if err := runChild(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runChild(text string) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	if o.Mode == "probe" {
		return report([]result{do(o.Calls[0])})
	}
	p, err := Compile(o.Profile, nil)
	if err != nil {
		return err
	}
	// Keep the first thread for this goroutine: a dead one stays in /proc/self/task until the process ends.
	runtime.LockOSThread()
	switch o.Mode {
	case "":
		if _, err := install(p); err != nil {
			return err
		}
		var out []result
		for _, c := range o.Calls {
			out = append(out, do(c))
		}
		return report(out)
	case "thread":
		// The calling thread dies alone: it is gone, and this one goes on.
		tid := make(chan int)
		go func() {
			runtime.LockOSThread()
			if _, err := install(p); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(3)
			}
			tid <- unix.Gettid()
			do(o.Calls[0])
			fmt.Fprintln(os.Stderr, "the call returned")
			os.Exit(4)
		}()
		dir := filepath.Join("/proc/self/task", strconv.Itoa(<-tid))
		for range 200 {
			if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
				return report(nil)
			}
			time.Sleep(10 * time.Millisecond)
		}
		return errors.New("the thread lives on")
	case "notify":
		return notifyChild(p, o.Calls[0])
	}
	return errors.New("unknown mode")
}

// notifyChild makes one thread call and another answer through the listener.
func notifyChild(p *Program, c request) error {
	type installed struct {
		fd  int
		err error
	}
	ready, done := make(chan installed), make(chan result)
	go func() {
		runtime.LockOSThread()
		fd, err := install(p)
		ready <- installed{fd, err}
		if err == nil {
			done <- do(c)
		}
	}()
	in := <-ready
	if in.err != nil {
		return in.err
	}
	// struct seccomp_notif and struct seccomp_notif_resp of linux/seccomp.h.
	var note struct {
		id         uint64
		pid, flags uint32
		nr         int32
		arch       uint32
		ip         uint64
		args       [6]uint64
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(in.fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&note))); errno != 0 {
		return fmt.Errorf("receive: %w", errno)
	}
	answer := struct {
		id    uint64
		val   int64
		errno int32
		flags uint32
	}{id: note.id, val: 4242}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(in.fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&answer))); errno != 0 {
		return fmt.Errorf("answer: %w", errno)
	}
	return report([]result{<-done, {Value: uint64(note.nr)}, {Value: note.args[0]}})
}

func install(p *Program) (int, error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return -1, err
	}
	b := p.Bytes()
	prog := unix.SockFprog{Len: uint16(len(p.Instructions)), Filter: (*unix.SockFilter)(unsafe.Pointer(&b[0]))}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(p.LoadFlags()), uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return -1, fmt.Errorf("seccomp: %w\n%v", errno, p)
	}
	return int(fd), nil
}

func do(c request) result {
	if c.Int80 {
		v := int80(uint32(c.Nr), c.Args[0], c.Args[1], c.Args[2])
		if v < 0 && v > -4096 {
			return result{Errno: int(-v)}
		}
		return result{Value: uint64(uint32(v))}
	}
	a := c.Args
	v, _, errno := unix.RawSyscall6(uintptr(c.Nr), uintptr(a[0]), uintptr(a[1]), uintptr(a[2]), uintptr(a[3]), uintptr(a[4]), uintptr(a[5]))
	return result{uint64(v), int(errno)}
}

func report(out []result) error { return json.NewEncoder(os.Stdout).Encode(out) }

// child runs an order; a child that a signal ends or that fails gives its state.
func child(t *testing.T, o order) ([]result, *os.ProcessState, string) {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	// A program built with -race otherwise sleeps for a second before it exits.
	cmd.Env = append(os.Environ(), childEnv+"="+string(text), "GORACE=atexit_sleep_ms=0")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var xe *exec.ExitError
	if err != nil && !errors.As(err, &xe) {
		t.Fatal(err)
	}
	var out []result
	if err == nil {
		if err := json.Unmarshal(stdout.Bytes(), &out); err != nil {
			t.Fatalf("%v: %q", err, &stdout)
		}
	}
	return out, cmd.ProcessState, stderr.String()
}

// results is child for orders that must be carried out.
func results(t *testing.T, o order) []result {
	t.Helper()
	out, state, stderr := child(t, o)
	if !state.Success() {
		t.Fatalf("%v: %s", state, stderr)
	}
	return out
}

func signalled(t *testing.T, o order, want syscall.Signal) {
	t.Helper()
	out, state, stderr := child(t, o)
	if ws := state.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != want {
		t.Fatalf("%v, %v: %s; want %v", out, state, stderr, want)
	}
}

// oneRule lets everything through but getppid, which ignores its arguments, so that conditions on any of them can be
// tried.
func oneRule(action specs.LinuxSeccompAction, errno *uint, args ...specs.LinuxSeccompArg) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Flags:         []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC"},
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"getppid"}, Action: action, ErrnoRet: errno, Args: args}},
	}
}

func getppid(args ...uint64) request {
	c := request{Nr: unix.SYS_GETPPID}
	copy(c.Args[:], args)
	return c
}

func TestKernelActions(t *testing.T) {
	one := []request{getppid()}
	t.Run("errno", func(t *testing.T) {
		for _, want := range []uint{0, 1, 77, 4094} {
			got := results(t, order{Profile: oneRule(specs.ActErrno, &want), Calls: one})
			if got[0].Errno != int(want) {
				t.Errorf("%d, want %d", got[0].Errno, want)
			}
		}
	})
	t.Run("allow", func(t *testing.T) {
		p := oneRule(specs.ActAllow, nil)
		p.DefaultAction = specs.ActLog
		if got := results(t, order{Profile: p, Calls: one}); got[0] != (result{Value: uint64(os.Getpid())}) {
			t.Errorf("%+v", got)
		}
	})
	t.Run("log", func(t *testing.T) {
		if got := results(t, order{Profile: oneRule(specs.ActLog, nil), Calls: one}); got[0] != (result{Value: uint64(os.Getpid())}) {
			t.Errorf("%+v", got)
		}
	})
	t.Run("trace without tracer", func(t *testing.T) {
		if got := results(t, order{Profile: oneRule(specs.ActTrace, nil), Calls: one}); got[0].Errno != int(unix.ENOSYS) {
			t.Errorf("%+v", got)
		}
	})
	t.Run("trap", func(t *testing.T) {
		// The runtime of Go answers SIGSYS with a crash of its own.
		_, state, stderr := child(t, order{Profile: oneRule(specs.ActTrap, nil), Calls: one})
		if state.Success() || !strings.Contains(stderr, "SIGSYS") {
			t.Errorf("%v: %s", state, stderr)
		}
	})
	t.Run("kill process", func(t *testing.T) {
		signalled(t, order{Profile: oneRule(specs.ActKillProcess, nil), Calls: one}, unix.SIGSYS)
	})
	for _, action := range []specs.LinuxSeccompAction{specs.ActKill, specs.ActKillThread} {
		t.Run(string(action), func(t *testing.T) {
			p := oneRule(action, nil)
			p.Flags = []specs.LinuxSeccompFlag{}
			results(t, order{Profile: p, Mode: "thread", Calls: one})
		})
	}
	t.Run("notify", func(t *testing.T) {
		p := oneRule(specs.ActNotify, nil)
		p.Flags = []specs.LinuxSeccompFlag{}
		got := results(t, order{Profile: p, Mode: "notify", Calls: []request{getppid(1 << 40)}})
		want := []result{{Value: 4242}, {Value: unix.SYS_GETPPID}, {Value: 1 << 40}}
		if !slices.Equal(got, want) {
			t.Errorf("%+v, want %+v", got, want)
		}
	})
}

// TestKernelArguments compares what the kernel decides on 64-bit arguments with the reference.
func TestKernelArguments(t *testing.T) {
	values := []uint64{0, 1, 5, 0xffffffff, 1 << 32, 1<<32 + 5, 1<<63 - 1, 1 << 63, 1<<64 - 1}
	errno := uint(77)
	for _, op := range drawOps {
		t.Run(string(op), func(t *testing.T) {
			p := oneRule(specs.ActErrno, &errno)
			p.Syscalls = nil
			// One argument for each value, so that a single filter has them all.
			for i, v := range []uint64{5, 1<<32 + 5, 0xffffffff, 1 << 63, 1 << 32} {
				p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{
					Names: []string{"getppid"}, Action: specs.ActErrno, ErrnoRet: &errno,
					Args: []specs.LinuxSeccompArg{
						{Index: uint(i), Value: v, ValueTwo: 1 << 32, Op: op},
						{Index: 5, Value: uint64(i), Op: specs.OpEqualTo},
					},
				})
			}
			o := order{Profile: p}
			ref := reference{profile: p, native: abis[nativeABI(t)].scmp}
			var want []bool
			for i := range 5 {
				for _, v := range values {
					c := getppid()
					c.Args[i], c.Args[5] = v, uint64(i)
					o.Calls = append(o.Calls, c)
					act := ref.decide(call{nr: uint32(c.Nr), arch: abis[nativeABI(t)].audit, args: c.Args})
					want = append(want, act == retErrno|77)
				}
			}
			for i, r := range results(t, o) {
				if (r.Errno == 77) != want[i] {
					t.Errorf("arguments %#x: errno %d, want refused %v", o.Calls[i].Args, r.Errno, want[i])
				}
			}
		})
	}
}

func nativeABI(t *testing.T) abi {
	a, err := abiOfGOARCH("")
	if err != nil {
		testutil.Skip(t, "no system call table for this machine")
	}
	return a
}

// dockerOrder is an order under Docker's profile for a container, to which Go programs are no strangers.
func dockerOrder(t *testing.T, calls ...request) order {
	p := defaultProfile(t, dockerCaps, "")
	p.Flags = []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC"}
	return order{Profile: p, Calls: calls}
}

func TestKernelDockerDefault(t *testing.T) {
	for _, tt := range []struct {
		name string
		call request
		want unix.Errno
	}{
		{"getppid is allowed", getppid(), 0},
		{"clone3 does not exist", request{Nr: unix.SYS_CLONE3}, unix.ENOSYS},
		{"clone of a network namespace", request{Nr: unix.SYS_CLONE, Args: [6]uint64{unix.CLONE_NEWNET}}, unix.EPERM},
		{"unshare of a user namespace", request{Nr: unix.SYS_UNSHARE, Args: [6]uint64{unix.CLONE_NEWUSER}}, unix.EPERM},
		{"unshare of nothing", request{Nr: unix.SYS_UNSHARE}, unix.EPERM},
		{"setns", request{Nr: unix.SYS_SETNS, Args: [6]uint64{^uint64(0)}}, unix.EPERM},
		{"mount", request{Nr: unix.SYS_MOUNT}, unix.EPERM},
		{"keyctl", request{Nr: unix.SYS_KEYCTL}, unix.EPERM},
		{"io_uring_setup", request{Nr: unix.SYS_IO_URING_SETUP}, unix.EPERM},
		{"personality of an old system", request{Nr: unix.SYS_PERSONALITY, Args: [6]uint64{1}}, unix.EPERM},
		{"personality asked for", request{Nr: unix.SYS_PERSONALITY, Args: [6]uint64{0xffffffff}}, 0},
		{"a unix socket", request{Nr: unix.SYS_SOCKET, Args: [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM}}, 0},
		{"a vsock socket", request{Nr: unix.SYS_SOCKET, Args: [6]uint64{unix.AF_VSOCK, unix.SOCK_STREAM}}, unix.EPERM},
		{"a call of the future", request{Nr: 999}, unix.ENOSYS},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := results(t, dockerOrder(t, tt.call)); got[0].Errno != int(tt.want) {
				t.Errorf("errno %d, want %d", got[0].Errno, tt.want)
			}
		})
	}
}

// TestCVE_2026_31431_AlgSocket asks for the socket of the kernel's cryptography in every way there is.
func TestCVE_2026_31431_AlgSocket(t *testing.T) {
	alg := [6]uint64{unix.AF_ALG, unix.SOCK_SEQPACKET}
	got := results(t, dockerOrder(t, request{Nr: unix.SYS_SOCKET, Args: alg}))
	if got[0].Errno != int(unix.EPERM) {
		t.Errorf("socket: errno %d, want EPERM", got[0].Errno)
	}
	if runtime.GOARCH != "amd64" {
		return
	}
	got = results(t, dockerOrder(t, request{Nr: unix.SYS_SOCKET | x32Bit, Args: alg}))
	if got[0].Errno != int(unix.EPERM) {
		t.Errorf("socket of x32: errno %d, want EPERM", got[0].Errno)
	}
	requireInt80(t)
	// With noise in the upper half of a register, too: the kernel looks at the lower one.
	for _, call := range []request{
		{Nr: 359, Args: alg, Int80: true},
		{Nr: 359, Args: [6]uint64{unix.AF_ALG | 1<<40, unix.SOCK_SEQPACKET}, Int80: true},
		{Nr: 102, Args: [6]uint64{1}, Int80: true},
		{Nr: 102, Args: [6]uint64{1 | 1<<40}, Int80: true},
	} {
		got := results(t, dockerOrder(t, call))
		if got[0].Errno != int(unix.EPERM) {
			t.Errorf("%+v: errno %d, want EPERM", call, got[0].Errno)
		}
	}
}

// requireInt80 skips where the kernel has no i386 calls.
func requireInt80(t *testing.T) {
	t.Helper()
	// getpid
	if _, state, _ := child(t, order{Mode: "probe", Calls: []request{{Nr: 20, Int80: true}}}); !state.Success() {
		testutil.Skip(t, "the kernel has no i386 emulation")
	}
}

// TestKernelForeign makes calls of architectures that a profile has or has not.
func TestKernelForeign(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("x32 and i386 calls are those of an x86-64 kernel")
	}
	errno := uint(77)
	x32 := request{Nr: unix.SYS_GETPPID | x32Bit}
	with := func(archs ...specs.Arch) *specs.LinuxSeccomp {
		p := oneRule(specs.ActErrno, &errno)
		p.Architectures = archs
		return p
	}
	t.Run("x32 absent", func(t *testing.T) {
		p := with(specs.ArchX86_64)
		p.Flags = []specs.LinuxSeccompFlag{}
		results(t, order{Profile: p, Mode: "thread", Calls: []request{x32}})
	})
	t.Run("x32 present", func(t *testing.T) {
		if got := results(t, order{Profile: with(specs.ArchX32), Calls: []request{x32}}); got[0].Errno != 77 {
			t.Errorf("%+v", got)
		}
	})
	i386 := request{Nr: 64, Int80: true} // getppid
	t.Run("i386 absent", func(t *testing.T) {
		requireInt80(t)
		p := with(specs.ArchX86_64)
		p.Flags = []specs.LinuxSeccompFlag{}
		results(t, order{Profile: p, Mode: "thread", Calls: []request{i386}})
	})
	t.Run("i386 present", func(t *testing.T) {
		requireInt80(t)
		if got := results(t, order{Profile: with(specs.ArchX86), Calls: []request{i386}}); got[0].Errno != 77 {
			t.Errorf("%+v", got)
		}
	})
	t.Run("i386 with noise in the upper halves", func(t *testing.T) {
		requireInt80(t)
		p := oneRule(specs.ActErrno, &errno, specs.LinuxSeccompArg{Index: 0, Value: 5, Op: specs.OpEqualTo})
		p.Architectures = []specs.Arch{specs.ArchX86}
		calls := []request{i386, i386, i386}
		calls[0].Args[0], calls[1].Args[0], calls[2].Args[0] = 5, 5|7<<32, 6
		got := results(t, order{Profile: p, Calls: calls})
		if got[0].Errno != 77 || got[1].Errno != 77 || got[2].Errno != 0 {
			t.Errorf("%+v", got)
		}
	})
}
