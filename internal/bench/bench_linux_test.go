package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/internal/debian"
	"github.com/coracle-dev/coracle/nsexec"
)

// allow is a filter of one instruction: return SECCOMP_RET_ALLOW.
var allow = []byte{6, 0, 0, 0, 0, 0, 0xff, 0x7f}

func container(t testing.TB, args ...string) *Container {
	require(t)
	spec := nsexec.DefaultSpec()
	spec.Process.Args = args
	spec.Hostname = "bench"
	memory, pids, quota, period, shares := int64(256<<20), int64(100), int64(50_000), uint64(100_000), uint64(512)
	spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &memory}
	spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
	spec.Linux.Resources.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares}
	return &Container{Spec: spec, Lower: []string{debian.BusyboxRootfs(t)}, Filter: allow}
}

// TestFloorIsolation looks at the floor's container from the inside, so that nobody can speed it up by leaving out a
// part. The exit status says which check failed.
func TestFloorIsolation(t *testing.T) {
	checks := []string{
		`[ $(hostname) = bench ]`,
		`[ "$(sed -n 's/^NSpid:\t//p' /proc/1/status)" = 1 ]`,
		`grep -q '^CapBnd:.*00000000a80425fb$' /proc/self/status`,
		`grep -q '^CapEff:.*00000000a80425fb$' /proc/self/status`,
		`grep -q '^CapInh:.*0000000000000000$' /proc/self/status`,
		`grep -q '^Seccomp:.*2$' /proc/self/status`,
		`grep -q '^NoNewPrivs:.*0$' /proc/self/status`,
		`grep -q '^SigIgn:.*0000000000000004$' /proc/1/status`, // SIGQUIT: the shell's own doing
		`[ "$(cut -d: -f3 /proc/self/cgroup | sort -u)" = / ]`,
		`! ls -l /proc/1/fd | grep -v ' [012] -> /dev/null$' | grep ' -> ' | grep -qv pipe:`, // the pipe is the shell's
		`[ "$(readlink /proc/1/fd/0)" = /dev/null ]`,
		`[ -c /dev/null ] && [ -c /dev/tty ] && [ -L /dev/ptmx ] && echo >/dev/null`,
		`! echo x 2>/dev/null >/sys/x && ! echo 1 2>/dev/null >/proc/sys/net/ipv4/ip_forward`,
		`[ -z "$(cat /proc/timer_list)" ] && [ -z "$(ls /sys/firmware)" ]`,
		`grep -q ' / / rw,.* - overlay ' /proc/self/mountinfo`,
		`[ $(grep -c ' /etc/\(hosts\|hostname\|resolv.conf\) ' /proc/self/mountinfo) = 3 ]`,
		`ip link show lo | grep -q UP && [ $(ip link | grep -c '^[0-9]') = 1 ]`,
		`mknod /tmp/disk b 254 0 && ! cat /tmp/disk 2>/dev/null >/dev/null`,
		`[ "$(cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max)" = 268435456 ]`,
		`[ "$(cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max)" = 100 ]`,
		`[ "$(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max)" = 50000 ]`,
	}
	container(t, "/bin/true").runFloor(t, 1) // compiles, or skips
	for _, check := range checks {
		c := container(t, "/bin/sh", "-c", check+" || exit 7")
		state := t.TempDir()
		if _, err := c.floor(1, false, state, state); err != nil {
			t.Errorf("%s: %v", check, err)
		}
	}
}

func TestFloorLeavesNothing(t *testing.T) {
	c := container(t, "/bin/true")
	state := t.TempDir()
	if times := c.runFloor(t, 20); len(times) != 20 {
		t.Fatalf("%d times", len(times))
	}
	if _, err := c.floor(2, false, state, state); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(state, "s*", "*")); len(left) > 0 {
		t.Errorf("left in the state directory: %q", left)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/coracle-floor*", "/sys/fs/cgroup/*/coracle-floor*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("cgroups left: %q", left)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), state) {
		t.Errorf("mounts left:\n%s", mounts)
	}
}

// TestFloorFails checks that an error of the container is the floor's.
func TestFloorFails(t *testing.T) {
	c := container(t, "/bin/true")
	c.runFloor(t, 1)
	state := t.TempDir()
	for name, change := range map[string]func(*Container){
		"no program": func(c *Container) { c.Spec.Process.Args = []string{"/bin/nothing"} },
		"exit 3":     func(c *Container) { c.Spec.Process.Args = []string{"/bin/sh", "-c", "exit 3"} },
		"bad filter": func(c *Container) { c.Filter = []byte{0, 0, 0, 0, 0, 0, 0, 0} },
		"no lower":   func(c *Container) { c.Lower = []string{"/nonexistent"} },
	} {
		c := container(t, "/bin/true")
		change(c)
		if _, err := c.floor(1, false, state, state); err == nil {
			t.Errorf("%s: no error", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

func BenchmarkFloor(b *testing.B) {
	for _, network := range []string{"none", "host"} {
		c := container(b, "/bin/true")
		if network == "host" {
			c.Spec.Linux.Namespaces = hostNetwork(c.Spec.Linux.Namespaces)
		}
		bundle := WriteBundle(b, c.Spec, c.Lower[0])
		b.Run("network="+network+"/floor", func(b *testing.B) { Floor(b, c) })
		for _, peer := range []string{"crun", "runc"} {
			b.Run("network="+network+"/"+peer, func(b *testing.B) { Peer(b, peer, bundle, "bench", 0) })
		}
	}
}

func BenchmarkFloorParallel(b *testing.B) {
	c := container(b, "/bin/true")
	FloorParallel(b, c, 4)
}

func hostNetwork(all []specs.LinuxNamespace) []specs.LinuxNamespace {
	var kept []specs.LinuxNamespace
	for _, ns := range all {
		if ns.Type != specs.NetworkNamespace {
			kept = append(kept, ns)
		}
	}
	return kept
}

// BenchmarkForkExec is the price of a process that is not in a container.
func BenchmarkForkExec(b *testing.B) {
	c := container(b, "/bin/true")
	program := filepath.Join(c.Lower[0], "bin/true")
	Each(b, 0, func() error { return exec.Command(program).Run() })
}
