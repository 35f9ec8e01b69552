package nsexec

import (
	"os"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCapabilities are the 14 that Docker leaves to a container's root.
var defaultCapabilities = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// defaultMaskedPaths are those of current Docker, a superset of what 20.10 masks.
var defaultMaskedPaths = [...]string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
	"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
}

var defaultReadonlyPaths = [...]string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// DefaultSpec returns a new runtime spec with Docker's default isolation: namespaces, mounts, capabilities, masked and
// read-only paths, device rules and seccomp profile. It runs a shell as root; Process.Args, Process.Env and Root are
// the caller's to fill in, as are limits.
//
// The spec may be changed freely, except for the elements of the slices in Linux.Seccomp, which all specs share: append
// to them, or replace the profile.
func DefaultSpec() *specs.Spec {
	caps := func() []string { return append([]string(nil), defaultCapabilities[:]...) }
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Args:         []string{"sh"},
			Env:          []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cwd:          "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: caps(), Effective: caps(), Permitted: caps()},
			OOMScoreAdj:  defaultOOMScoreAdj(),
		},
		Root: &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.UTSNamespace}, {Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace}, {Type: specs.CgroupNamespace},
			},
			Resources:     &specs.LinuxResources{Devices: defaultDeviceRules()},
			Seccomp:       defaultProfile(defaultCapabilities[:]),
			MaskedPaths:   append(append(make([]string, 0, 16), defaultMaskedPaths[:]...), thermalThrottle()...),
			ReadonlyPaths: append([]string(nil), defaultReadonlyPaths[:]...),
		},
	}
}

// defaultOOMScoreAdj is Docker's 0, unless the importing program is a likelier victim than that: lowering the value
// takes a privilege that it may not have, and would make a container outlive its owner. Nil leaves the value alone.
func defaultOOMScoreAdj() *int {
	if ownOOMScoreAdj() > 0 {
		return nil
	}
	return new(int)
}

var ownOOMScoreAdj = sync.OnceValue(func() int {
	b, _ := os.ReadFile("/proc/self/oom_score_adj")
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
})

// defaultDeviceRules allow every device node to be made and only the usual ones to be opened.
func defaultDeviceRules() []specs.LinuxDeviceCgroup {
	number := func(n int64) *int64 {
		if n < 0 {
			return nil
		}
		return &n
	}
	rules := make([]specs.LinuxDeviceCgroup, 0, 12)
	rules = append(rules, specs.LinuxDeviceCgroup{Allow: false, Access: "rwm"})
	for _, r := range [...]struct {
		kind         string
		major, minor int64
		access       string
	}{
		{"c", -1, -1, "m"}, {"b", -1, -1, "m"},
		{"c", 1, 3, "rwm"}, {"c", 1, 5, "rwm"}, {"c", 1, 7, "rwm"}, {"c", 1, 8, "rwm"}, {"c", 1, 9, "rwm"}, // null zero full random urandom
		{"c", 5, 0, "rwm"}, {"c", 5, 1, "rwm"}, {"c", 5, 2, "rwm"}, {"c", 136, -1, "rwm"}, // tty console ptmx pts/*
	} {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: r.kind, Major: number(r.major), Minor: number(r.minor), Access: r.access})
	}
	return rules
}

// thermalThrottle lists the counters that tell what the whole machine is doing, one directory for each processor that
// has them.
var thermalThrottle = sync.OnceValue(func() []string {
	const dir = "/sys/devices/system/cpu"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var list []string
	for _, e := range entries {
		n, ok := strings.CutPrefix(e.Name(), "cpu")
		if _, err := strconv.Atoi(n); !ok || err != nil {
			continue
		}
		p := dir + "/" + e.Name() + "/thermal_throttle"
		if _, err := os.Stat(p); err == nil {
			list = append(list, p)
		}
	}
	return list
})
