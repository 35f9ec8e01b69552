package nsexec_test

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/nsexec"
)

func TestSecurityCapabilities(t *testing.T) {
	defaults := nsexec.DefaultSpec().Process.Capabilities.Bounding
	for _, test := range []struct {
		name string
		nsexec.Security
		has, hasNot []string
		count       int // 0: any
	}{
		{"default", nsexec.Security{}, defaults, []string{"CAP_SYS_ADMIN"}, 14},
		{"add", nsexec.Security{CapAdd: []string{"net_admin", "CAP_SYS_PTRACE"}}, []string{"CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_CHOWN"}, nil, 16},
		{"add what is there", nsexec.Security{CapAdd: []string{"CHOWN"}}, defaults, nil, 14},
		{"drop", nsexec.Security{CapDrop: []string{"chown", "KILL"}}, nil, []string{"CAP_CHOWN", "CAP_KILL"}, 12},
		{"drop all", nsexec.Security{CapDrop: []string{"all"}}, nil, defaults, 0},
		{"drop all, add one", nsexec.Security{CapDrop: []string{"ALL"}, CapAdd: []string{"NET_BIND_SERVICE"}}, []string{"CAP_NET_BIND_SERVICE"}, nil, 1},
		{"add all, drop one", nsexec.Security{CapAdd: []string{"ALL"}, CapDrop: []string{"CHOWN"}}, []string{"CAP_KILL"}, []string{"CAP_CHOWN"}, 0},
		{"add and drop one", nsexec.Security{CapAdd: []string{"SYS_TIME"}, CapDrop: []string{"SYS_TIME"}}, []string{"CAP_SYS_TIME"}, nil, 15},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := nsexec.DefaultSpec()
			if err := test.Apply(s); err != nil {
				t.Fatal(err)
			}
			if slices.Contains(test.CapAdd, "ALL") {
				requireBounding(t)
			}
			c := s.Process.Capabilities
			for _, set := range [][]string{c.Bounding, c.Effective, c.Permitted} {
				for _, want := range test.has {
					if !slices.Contains(set, want) {
						t.Errorf("%s is missing in %q", want, set)
					}
				}
				for _, not := range test.hasNot {
					if slices.Contains(set, not) {
						t.Errorf("%s is in %q", not, set)
					}
				}
				if test.count != 0 && len(set) != test.count {
					t.Errorf("%d capabilities, want %d: %q", len(set), test.count, set)
				}
			}
			if len(c.Inheritable)+len(c.Ambient) != 0 {
				t.Errorf("inheritable %q, ambient %q, want none", c.Inheritable, c.Ambient)
			}
		})
	}
}

// requireBounding skips the test where the program itself may have no capabilities: ALL is what it may have.
func requireBounding(t *testing.T) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err == nil && strings.Contains(string(status), "CapBnd:\t0000000000000000\n") {
		testutil.Skip(t, "needs a capability bounding set that is not empty: run the tests as root")
	}
}

func TestSecurityApply(t *testing.T) {
	requireBounding(t)
	s := nsexec.DefaultSpec()
	own := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	err := (&nsexec.Security{NoNewPrivileges: true, Seccomp: own, ReadonlyRootfs: true, MaskedPaths: []string{}, ReadonlyPaths: []string{"/etc"},
		AppArmor: "profile", SELinux: "label"}).Apply(s)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Process.NoNewPrivileges || s.Linux.Seccomp != own || !s.Root.Readonly || len(s.Linux.MaskedPaths) != 0 ||
		!slices.Equal(s.Linux.ReadonlyPaths, []string{"/etc"}) || s.Process.ApparmorProfile != "profile" || s.Process.SelinuxLabel != "label" {
		t.Errorf("not all was applied: %+v %+v", s.Process, s.Linux)
	}

	s = nsexec.DefaultSpec()
	if err := (&nsexec.Security{Privileged: true}).Apply(s); err != nil {
		t.Fatal(err)
	}
	if s.Linux.Seccomp != nil || len(s.Linux.MaskedPaths)+len(s.Linux.ReadonlyPaths) != 0 || !slices.Contains(s.Process.Capabilities.Effective, "CAP_SYS_ADMIN") {
		t.Errorf("not privileged: %+v", s.Linux)
	}
	for _, m := range s.Mounts {
		if slices.Contains(m.Options, "ro") {
			t.Errorf("%s is read-only", m.Destination)
		}
	}
	if d := s.Linux.Resources.Devices; len(d) != 1 || !d[0].Allow {
		t.Errorf("device rules %+v", d)
	}

	// Docker's profile depends on the capabilities.
	allows := func(s *specs.Spec, call string) bool {
		return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(c specs.LinuxSyscall) bool {
			return c.Action == specs.ActAllow && slices.Contains(c.Names, call) && len(c.Args) == 0
		})
	}
	s = nsexec.DefaultSpec()
	if allows(s, "mount") {
		t.Error("mount is allowed by default")
	}
	if err := (&nsexec.Security{CapAdd: []string{"SYS_ADMIN"}}).Apply(s); err != nil || !allows(s, "mount") {
		t.Errorf("mount is not allowed with CAP_SYS_ADMIN: %v", err)
	}
	if err := (&nsexec.Security{SeccompUnconfined: true}).Apply(s); err != nil || s.Linux.Seccomp != nil {
		t.Errorf("not unconfined: %v", err)
	}
}

func TestSecurityErrors(t *testing.T) {
	for field, s := range map[string]nsexec.Security{
		"CapAdd[1]":  {CapAdd: []string{"CHOWN", "FLY"}},
		"CapDrop[0]": {CapDrop: []string{""}},
		"Seccomp":    {Seccomp: &specs.LinuxSeccomp{}, SeccompUnconfined: true},
	} {
		spec, want := nsexec.DefaultSpec(), nsexec.DefaultSpec()
		err := s.Apply(spec)
		var se *nsexec.SecurityError
		if !errors.As(err, &se) || se.Field != field || !strings.Contains(err.Error(), field) {
			t.Errorf("got %v, want an error of %s", err, field)
		}
		if !reflect.DeepEqual(spec, want) {
			t.Errorf("%s: the spec was changed", field)
		}
	}
	if err := (&nsexec.Security{}).Apply(&specs.Spec{}); err == nil {
		t.Error("an empty spec was secured")
	}
}

func TestSecurityJSON(t *testing.T) {
	for _, s := range []nsexec.Security{{}, {CapAdd: []string{"ALL"}, MaskedPaths: []string{}}, {Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}}} {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back nsexec.Security
		if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(s, back) {
			t.Errorf("%s became %+v: %v", b, back, err)
		}
	}
}

func TestDefaultSpecIsNew(t *testing.T) {
	a := nsexec.DefaultSpec()
	a.Process.Capabilities.Bounding[0] = "x"
	a.Linux.MaskedPaths[0] = "x"
	a.Linux.ReadonlyPaths[0] = "x"
	a.Mounts[0].Options[0] = "x"
	if p := a.Linux.Seccomp; p != nil {
		p.DefaultAction = "x"
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"x"}})
	}
	b, _ := json.Marshal(nsexec.DefaultSpec())
	if strings.Contains(string(b), `"x"`) {
		t.Errorf("a change of one spec shows in another: %s", b)
	}
}
