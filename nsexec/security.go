package nsexec

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Security says in Docker's terms how far a container's isolation departs from the default. The zero Security is the
// default. It is plain data and survives JSON.
type Security struct {
	// CapAdd and CapDrop are capabilities to add to the default set and to drop from it, with or without "CAP_", in any
	// case, or "ALL". Dropping ALL leaves what is added; adding ALL leaves all that the importing program has but what is
	// dropped.
	CapAdd  []string `json:",omitempty"`
	CapDrop []string `json:",omitempty"`
	// NoNewPrivileges keeps setuid programs and file capabilities from having an effect.
	NoNewPrivileges bool `json:",omitempty"`
	// Privileged gives all capabilities, no seccomp filter, no masked or read-only paths, writable /sys and cgroups and
	// access to all devices that there are nodes of. Such a container is root on the host. CapAdd and CapDrop have no
	// effect.
	Privileged bool `json:",omitempty"`
	// Seccomp is the profile: nil for Docker's default, which allows some more calls for some added capabilities.
	Seccomp *specs.LinuxSeccomp `json:",omitempty"`
	// SeccompUnconfined means no profile at all.
	SeccompUnconfined bool `json:",omitempty"`
	// ReadonlyRootfs makes the container's root read-only.
	ReadonlyRootfs bool `json:",omitempty"`
	// MaskedPaths and ReadonlyPaths replace the default lists: nil leaves them, an empty list masks nothing.
	MaskedPaths   []string `json:",omitzero"`
	ReadonlyPaths []string `json:",omitzero"`
	// AppArmor is the name of a loaded AppArmor profile, or "unconfined". Empty means no profile.
	AppArmor string `json:",omitempty"`
	// SELinux is the label of the process. Empty means the importing program's.
	SELinux string `json:",omitempty"`
}

// Apply changes a spec, usually of [DefaultSpec], as s says. The error is a *SecurityError that names the field; the
// spec is unchanged then.
func (s *Security) Apply(spec *specs.Spec) error {
	if s.Seccomp != nil && s.SeccompUnconfined {
		return &SecurityError{"Seccomp", errors.New("a profile and SeccompUnconfined")}
	}
	if spec.Process == nil || spec.Linux == nil {
		return &SecurityError{"spec", errors.New("process or linux is missing")}
	}
	caps, err := s.capabilities()
	if err != nil {
		return err
	}
	if spec.Process.Capabilities == nil {
		spec.Process.Capabilities = &specs.LinuxCapabilities{}
	}
	if s.Privileged || len(s.CapAdd)+len(s.CapDrop) > 0 {
		c := spec.Process.Capabilities
		c.Bounding, c.Effective, c.Permitted = caps, slices.Clone(caps), slices.Clone(caps)
		c.Inheritable, c.Ambient = nil, nil // CVE-2022-24769
	}
	if s.NoNewPrivileges {
		spec.Process.NoNewPrivileges = true
	}
	l := spec.Linux
	switch {
	case s.Seccomp != nil:
		l.Seccomp = s.Seccomp
	case s.SeccompUnconfined || s.Privileged:
		l.Seccomp = nil
	case len(s.CapAdd)+len(s.CapDrop) > 0:
		l.Seccomp = defaultProfile(caps)
	}
	if s.Privileged {
		privileged(spec)
	}
	if s.MaskedPaths != nil {
		l.MaskedPaths = slices.Clone(s.MaskedPaths)
	}
	if s.ReadonlyPaths != nil {
		l.ReadonlyPaths = slices.Clone(s.ReadonlyPaths)
	}
	if s.ReadonlyRootfs {
		if spec.Root == nil {
			spec.Root = &specs.Root{}
		}
		spec.Root.Readonly = true
	}
	if s.AppArmor != "" {
		spec.Process.ApparmorProfile = s.AppArmor
	}
	if s.SELinux != "" {
		spec.Process.SelinuxLabel = s.SELinux
	}
	return nil
}

func privileged(spec *specs.Spec) {
	l := spec.Linux
	l.MaskedPaths, l.ReadonlyPaths = nil, nil
	if l.Resources == nil {
		l.Resources = &specs.LinuxResources{}
	}
	l.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	for i := range spec.Mounts {
		if m := &spec.Mounts[i]; m.Type == "sysfs" || m.Type == "cgroup" || m.Type == "cgroup2" {
			m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "ro" })
		}
	}
}

// capabilities combines the default set with what is added and dropped, in the order of Docker's tweakCapabilities:
// ALL first, single names override it.
func (s *Security) capabilities() ([]string, error) {
	if s.Privileged {
		return allCapabilities(), nil
	}
	add, addAll, err := normalize("CapAdd", s.CapAdd)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := normalize("CapDrop", s.CapDrop)
	if err != nil {
		return nil, err
	}
	base := defaultCapabilities[:]
	switch {
	case addAll:
		base = allCapabilities()
		if dropAll {
			base = nil
		}
	case dropAll:
		base = nil
	}
	caps := make([]string, 0, len(base)+len(add))
	for _, n := range base {
		if !slices.Contains(drop, n) {
			caps = append(caps, n)
		}
	}
	for _, n := range add {
		if !slices.Contains(caps, n) {
			caps = append(caps, n)
		}
	}
	return caps, nil
}

// allCapabilities are those that the importing program could give away: in a container itself, it may lack some.
func allCapabilities() []string {
	bounding := ownBounding()
	list := make([]string, 0, len(capabilityNames))
	for i, n := range capabilityNames {
		if bounding>>i&1 != 0 {
			list = append(list, n)
		}
	}
	return list
}

var ownBounding = sync.OnceValue(func() uint64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 1<<64 - 1
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			if set, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64); err == nil {
				return set
			}
		}
	}
	return 1<<64 - 1
})

func normalize(field string, names []string) (list []string, all bool, err error) {
	for i, n := range names {
		u := strings.ToUpper(n)
		if u == "ALL" || u == "CAP_ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(u, "CAP_") {
			u = "CAP_" + u
		}
		if !slices.Contains(capabilityNames[:], u) {
			return nil, false, &SecurityError{fmt.Sprintf("%s[%d]", field, i), fmt.Errorf("unknown capability %q", n)}
		}
		list = append(list, u)
	}
	return list, all, nil
}

// A SecurityError says which field of a Security cannot be applied, and why.
type SecurityError struct {
	Field string // such as "CapAdd[0]"
	Err   error
}

// Error names the field and the reason.
func (e *SecurityError) Error() string {
	return fmt.Sprintf("nsexec: security: %s: %v", e.Field, e.Err)
}

// Unwrap returns the reason.
func (e *SecurityError) Unwrap() error { return e.Err }

// capabilityNames are all capabilities by number; linux/capability.h.
var capabilityNames = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}
