package netdrv

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

func gettid() int { return unix.Gettid() }

// TestNamespace: a new one has a loopback interface that works, and nothing else.
func TestNamespace(t *testing.T) {
	testutil.RequireRoot(t)
	ns := namespace(t)
	failure := errors.New("of the function")
	if err := ns.Do(func() error {
		list, err := net.Interfaces()
		check(t, err)
		if len(list) != 1 || list[0].Name != "lo" || list[0].Flags&net.FlagUp == 0 {
			t.Errorf("there are %+v", list)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		check(t, err)
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		check(t, err)
		c.Close()
		return failure
	}); err != failure {
		t.Error(err)
	}
	check(t, ns.Close())
	check(t, ns.Close())
	if err := ns.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Do after Close: %v", err)
	}
}

// TestOpenNamespace opens that of a process, by its file and by its pidfd.
func TestOpenNamespace(t *testing.T) {
	testutil.RequireRoot(t)
	ns := namespace(t)
	inode := func(f *os.File) uint64 {
		var st unix.Stat_t
		check(t, unix.Fstat(int(f.Fd()), &st))
		return st.Ino
	}
	var cmd *exec.Cmd
	check(t, ns.Do(func() error {
		cmd = exec.Command("/proc/self/exe", "-test.run=^$")
		cmd.Env = append(os.Environ(), sleeperEnv+"=1")
		_, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		return err
	}))
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	check(t, err)
	f := os.NewFile(uintptr(pidfd), "pidfd")
	defer f.Close()
	other, err := OpenNamespace(f)
	check(t, err)
	defer other.Close()
	if inode(other.File()) != inode(ns.File()) {
		t.Error("the pidfd led to another namespace")
	}
	check(t, cmd.Process.Kill())
	cmd.Wait()
	if _, err := OpenNamespace(f); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("the namespace of a process that ended: %v", err)
	}
	regular, err := os.CreateTemp(t.TempDir(), "")
	check(t, err)
	defer regular.Close()
	if _, err := OpenNamespace(regular); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a file as a namespace: %v", err)
	}
}

// TestAdoptNamespace: the namespace that a process was born in works.
func TestAdoptNamespace(t *testing.T) {
	testutil.RequireRoot(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), sleeperEnv+"=1")
	pidfd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, PidFD: &pidfd}
	_, err := cmd.StdinPipe()
	check(t, err)
	check(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	f := os.NewFile(uintptr(pidfd), "pidfd")
	defer f.Close()
	ns, err := AdoptNamespace(f)
	check(t, err)
	defer ns.Close()
	if _, _, err := reach(ns, ns, netip.MustParseAddr("127.0.0.1"), "hello"); err != nil {
		t.Errorf("its loopback interface: %v", err)
	}
}

// without takes a capability from the calling thread, which the test's end ends.
func without(t testing.TB, capability uint) {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	check(t, unix.Capget(&h, &data[0]))
	data[capability/32].Effective &^= 1 << (capability % 32)
	data[capability/32].Permitted &^= 1 << (capability % 32)
	check(t, unix.Capset(&h, &data[0]))
}

// TestNoCapability: who may not do it is told so, with what to do.
func TestNoCapability(t *testing.T) {
	for _, name := range []string{"bridge", "macvlan"} {
		onHost(t, func(host *Namespace) {
			n := newNetwork(t, name, "10.99.7.0/24")
			if name == "macvlan" {
				n.Options = map[string]string{"parent": "lo"}
			}
			ns, d := namespace(t), open(t, name)
			without(t, unix.CAP_NET_ADMIN)
			err := d.Up(background, n)
			var e *Error
			if !errors.Is(err, fs.ErrPermission) || !errors.Is(err, unix.EPERM) || !errors.As(err, &e) || e.Fix == "" {
				t.Errorf("%s: Up without CAP_NET_ADMIN: %v", name, err)
			}
			t.Log(err)
			if err := d.Connect(background, n, endpoint(n, 2), ns); err == nil {
				t.Errorf("%s: Connect without CAP_NET_ADMIN", name)
			}
		})
	}
	testutil.RequireRoot(t)
	check(t, inside(func() error {
		without(t, unix.CAP_SYS_ADMIN)
		// NewNamespace would do it on another thread: that of this one's children has its capabilities, but goroutines have not.
		if err := makeNamespace(&Namespace{}); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("a namespace without CAP_SYS_ADMIN: %v", err)
		} else {
			t.Log(err)
		}
		return nil
	}))
}
