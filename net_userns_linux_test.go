package coracle_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"testing"
	"testing/fstest"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
)

// inUserNamespace gives a container a user namespace of its own.
func inUserNamespace(s *specs.Spec) error {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 300000, Size: 65536}}
	s.Linux.GIDMappings = s.Linux.UIDMappings
	return nil
}

// sameOwner reports whether the network namespace of a process belongs to its user namespace.
func sameOwner(t *testing.T, pid int) bool {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var owner, user unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &owner), unix.Stat(fmt.Sprintf("/proc/%d/ns/user", pid), &user)); err != nil {
		t.Fatal(err)
	}
	return owner.Ino == user.Ino
}

// TestUserNamespaceOnBridge: a container with a user namespace of its own is on a network like any other, and its network
// namespace is its own.
func TestUserNamespaceOnBridge(t *testing.T) {
	eng := engine(t)
	mountPoints := fstest.MapFS{} // the root of a user namespace that owns nothing of the image can make none
	for _, dir := range []string{"proc", "sys", "dev"} {
		mountPoints[dir] = &fstest.MapFile{Mode: fs.ModeDir | 0o755}
	}
	for _, file := range []string{"etc/hosts", "etc/resolv.conf", "etc/hostname"} {
		mountPoints[file] = &fstest.MapFile{Mode: 0o644}
	}
	toolImage(t, eng, mountPoints)
	createNetwork(t, eng, coracle.NetworkSpec{Name: "app", IPv6: true})
	neighbour := serving(t, eng, coracle.ContainerSpec{Name: "neighbour", Networks: onNetworks("app")}, "tcp", "0.0.0.0:80")
	for _, isDetached := range []bool{false, true} {
		t.Run(fmt.Sprint("detached ", isDetached), func(t *testing.T) {
			name := fmt.Sprint("boxed-", isDetached)
			c := serving(t, eng, coracle.ContainerSpec{
				Name: name, Detached: isDetached, Networks: onNetworks("app", "bridge"), Ports: []coracle.Port{{Container: 80}}, Customize: inUserNamespace,
			}, "tcp", "0.0.0.0:80")
			if pid := inspect(t, c).PID; !sameOwner(t, pid) {
				t.Error("its network namespace is not its user namespace's")
			}
			at, err := c.Addr(t.Context(), "tcp", 80)
			if err != nil {
				t.Fatal(err)
			}
			echoed(t, func() (net.Conn, error) { return net.Dial("tcp", at.String()) })
			out, err := execIn(t, neighbour, "dial", "tcp4", name+":80")
			wantOutput(t, "from a neighbour", out, err, "hello from "+addressOf(t, c, "app").String()+":80")
			out, err = execIn(t, c, "dial", "tcp4", "neighbour:80")
			wantOutput(t, "to a neighbour", out, err, "hello from "+addressOf(t, neighbour, "app").String()+":80")
			echoed(t, func() (net.Conn, error) { return c.Dial("tcp", "127.0.0.1:80") })
			if s, err := c.Stats(t.Context()); err != nil || len(s.Networks) != 2 || s.Networks["eth0"].RxPackets == 0 {
				t.Errorf("stats: %+v, %v", s, err)
			}
		})
	}
	spec := coracle.ContainerSpec{Image: "tool", Args: []string{"true"}, Customize: inUserNamespace}
	spec.Networks = onNetworks("container:neighbour")
	if err := eng.Run(t.Context(), &spec); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("the network of another container: %v", err)
	}
	// A start that fails after it was connected leaves nothing, which the engine's end looks at.
	spec.Networks, spec.Entrypoint = onNetworks("app"), []string{"/nothing"}
	if err := eng.Run(t.Context(), &spec); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a program that is not there: %v", err)
	}
}
