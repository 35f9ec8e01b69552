package nsexec

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/nsexec/seccomp"
)

// profiles keeps Docker's default profile for each set of capabilities that was asked for, and what it compiles to:
// both take much longer than everything else between a spec and its plan.
var profiles struct {
	sync.Mutex
	list []*knownProfile
}

// maxProfiles bounds the memory; programs use one or two.
const maxProfiles = 16

type knownProfile struct {
	caps    uint64
	profile specs.LinuxSeccomp
	once    sync.Once
	filter  *filter
	err     error
}

// filter is a compiled profile.
type filter struct {
	program []byte // array of struct sock_filter
	n       int    // instructions
	flags   uint
}

// defaultProfile returns Docker's default profile for a container with these capabilities. The result has slices in
// common with other results; appending to them is safe.
func defaultProfile(caps []string) *specs.LinuxSeccomp {
	set := capabilitySet(caps)
	profiles.Lock()
	defer profiles.Unlock()
	for _, k := range profiles.list {
		if k.caps == set {
			p := k.profile
			return &p
		}
	}
	p, err := seccomp.DefaultProfile(caps, "", seccomp.KernelVersion{})
	if err != nil {
		// Not reached where this package can start anything. No profile would be the opposite of the default:
		// this one does not compile.
		return &specs.LinuxSeccomp{DefaultAction: "unknown architecture"}
	}
	k := &knownProfile{caps: set, profile: *p}
	k.profile.Architectures = slices.Clip(p.Architectures)
	k.profile.Flags = slices.Clip(p.Flags)
	k.profile.Syscalls = slices.Clip(p.Syscalls)
	if len(profiles.list) >= maxProfiles {
		profiles.list = slices.Delete(profiles.list, 0, 1)
	}
	profiles.list = append(profiles.list, k)
	copied := k.profile
	return &copied
}

// compileProfile compiles a profile, or finds it compiled. The result is nil if there is nothing to install.
func compileProfile(s *specs.LinuxSeccomp) (*filter, error) {
	profiles.Lock()
	for _, k := range profiles.list {
		if sameProfile(&k.profile, s) {
			profiles.Unlock()
			k.once.Do(func() { k.filter, k.err = newFilter(&k.profile) })
			return k.filter, k.err
		}
	}
	profiles.Unlock()
	return newFilter(s)
}

func newFilter(s *specs.LinuxSeccomp) (*filter, error) {
	p, err := seccomp.Compile(s, nil)
	if err != nil {
		return nil, err
	}
	if p.Notify {
		return nil, errNotify
	}
	if len(p.Instructions) == 0 {
		return nil, nil
	}
	return &filter{p.Bytes(), len(p.Instructions), p.LoadFlags()}, nil
}

var errNotify = fmt.Errorf("the action SCMP_ACT_NOTIFY: nobody receives the listener: %w", errors.ErrUnsupported)

// sameProfile says whether two profiles share everything. It errs on the side of false.
func sameProfile(a, b *specs.LinuxSeccomp) bool {
	return a.DefaultAction == b.DefaultAction && a.DefaultErrnoRet == b.DefaultErrnoRet &&
		sameSlice(a.Architectures, b.Architectures) && sameSlice(a.Flags, b.Flags) && sameSlice(a.Syscalls, b.Syscalls) &&
		a.ListenerPath == b.ListenerPath && a.ListenerMetadata == b.ListenerMetadata
}

func sameSlice[T any](a, b []T) bool {
	return len(a) == len(b) && unsafe.SliceData(a) == unsafe.SliceData(b)
}

// capabilitySet is the set of capabilities of these names; unknown names are left out.
func capabilitySet(names []string) (set uint64) {
	for _, n := range names {
		set |= capabilityBit(n)
	}
	return set
}

// capabilityBit is the capability of the name as a bit of a set, or 0.
func capabilityBit(name string) uint64 {
	for i, n := range capabilityNames {
		if n == name {
			return 1 << i
		}
	}
	return 0
}
