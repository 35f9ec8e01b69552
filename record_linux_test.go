package coracle_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/coracle-dev/coracle"
)

// Published flaws of other container software, as attacks on the whole path from an image to a running container. Those
// on a single package are tested there.

func TestCVE_2024_40635_UserIDsDoNotOverflow(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	for _, user := range []string{"2147483648", "4294967295", "4294967296", "18446744073709551616", "0:4294967296", "1:2147483648", "-1", "0x0", "+0", " 0"} {
		err := eng.Run(t.Context(), &coracle.ContainerSpec{Image: "tool", User: user, Args: []string{"true"}})
		if !errors.Is(err, coracle.ErrInvalid) {
			t.Errorf("user %q: %v", user, err)
		}
	}
}

func TestCVE_2026_46680_NumbersAreNotNames(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, fstest.MapFS{
		"etc/passwd": {Data: []byte("1000:x:0:0::/root:/tool\n33:x:0:0::/:/tool\nroot:x:0:0::/root:/tool\n"), Mode: 0o644},
		"etc/group":  {Data: []byte("1000:x:0:\n"), Mode: 0o644},
	})
	for user, want := range map[string][2]int{"1000": {1000, 0}, "33:1000": {33, 1000}} {
		if r := report(t, eng, coracle.ContainerSpec{User: user}); r.UID != want[0] || r.GID != want[1] {
			t.Errorf("user %s became %d:%d", user, r.UID, r.GID)
		}
	}
}

func TestCVE_2018_10856_NoCapabilitiesForOtherUsers(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	r := report(t, eng, coracle.ContainerSpec{User: "alice"})
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		if r.Status[set] != "0000000000000000" {
			t.Errorf("%s is %s", set, r.Status[set])
		}
	}
}

func TestCVE_2022_36109_SupplementaryGroups(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	if r := report(t, eng, coracle.ContainerSpec{User: "alice"}); !slices.Equal(r.Groups, []int{10, 50, 1000}) {
		t.Errorf("groups of alice: %v", r.Groups)
	}
	// None of the importing program's.
	if r := report(t, eng, coracle.ContainerSpec{User: "4711:4711"}); !slices.Equal(r.Groups, []int{4711}) {
		t.Errorf("groups of 4711: %v", r.Groups)
	}
}

func TestCVE_2024_9676_UserFilesAreBoundedAndInTheImage(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	secret := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(secret, []byte("mallory:x:0:0::/:/\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]*fstest.MapFile{
		"symbolic link to the host": {Data: []byte(secret), Mode: os.ModeSymlink | 0o777},
		"way out":                   {Data: []byte("../../../../../../../.." + secret), Mode: os.ModeSymlink | 0o777},
		"magic link":                {Data: []byte("/proc/self/root" + secret), Mode: os.ModeSymlink | 0o777},
		"huge":                      {Data: []byte(strings.Repeat("x", 5<<20) + "\nmallory:x:0:0::/:/\n"), Mode: 0o644},
		"directory":                 {Mode: os.ModeDir | 0o755},
	} {
		toolImage(t, eng, fstest.MapFS{"etc/passwd": file})
		err := eng.Run(ctx, &coracle.ContainerSpec{Image: "tool", User: "mallory", Args: []string{"true"}})
		if err == nil {
			t.Errorf("%s: mallory was found", name)
		}
		if list, _ := eng.Containers(ctx, nil); len(list) != 0 {
			t.Errorf("%s: left %v", name, list)
		}
	}
}

func TestCVE_2024_3154_LabelsAndAnnotationsChangeNothing(t *testing.T) {
	eng := engine(t)
	hostile := map[string]string{
		"run.oci.hooks": "/bin/true", "io.kubernetes.cri-o.userns-mode": "host", "org.systemd.property.ExecStart": "'/bin/true'",
		"run.oci.seccomp.receiver": "/tmp/x", "org.opencontainers.image.path": "../../../etc", "com.docker.compose.project.config_files": "/etc/passwd",
	}
	toolImage(t, eng, nil, coracle.ImageConfig{Entrypoint: []string{"/tool"}, Labels: hostile})
	r := report(t, eng, coracle.ContainerSpec{Labels: hostile})
	if r.PID != 1 || r.Status["CapBnd"] != "00000000a80425fb" || r.Status["Seccomp"] != "2" {
		t.Errorf("the container differs: %v", r.Status)
	}
}

func TestCVE_2021_41091_StoreIsClosedToOthers(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, fstest.MapFS{"bin/su": {Data: []byte("setuid"), Mode: os.ModeSetuid | 0o755}})
	if _, err := eng.Create(t.Context(), &coracle.ContainerSpec{Image: "tool", Args: []string{"true"}}); err != nil {
		t.Fatal(err)
	}
	// A setuid file of an image is out of reach: some directory above it is closed to others.
	for _, dir := range []string{"store", "containers", "names", "owners"} {
		info, err := os.Stat(filepath.Join(eng.Root(), dir))
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, info, err)
		}
	}
}

func TestCVE_2022_0811_SysctlsAreOfTheContainer(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	for name, value := range map[string]string{
		"kernel.core_pattern": "|/bin/sh", "kernel.shm_rmid_forced": "1+kernel.core_pattern=|/bin/sh", "net/../kernel.core_pattern": "x",
		"kernel.msgmax=1\nkernel.core_pattern": "x", "../kernel/core_pattern": "x", "vm.overcommit_memory": "1", "": "1",
	} {
		before, _ := os.ReadFile("/proc/sys/kernel/core_pattern")
		err := eng.Run(t.Context(), &coracle.ContainerSpec{Image: "tool", Sysctls: map[string]string{name: value}, Args: []string{"true"}})
		after, _ := os.ReadFile("/proc/sys/kernel/core_pattern")
		if err == nil || string(before) != string(after) {
			t.Errorf("sysctl %q = %q: %v; core_pattern %q", name, value, err, after)
		}
	}
	if out := output(t, eng, coracle.ContainerSpec{Sysctls: map[string]string{"kernel.msgmax": "4242"}}, "cat", "/proc/sys/kernel/msgmax"); out != "4242\n" {
		t.Errorf("msgmax %q", out)
	}
}

func TestCVE_2019_5736_TheProgramIsOutOfReach(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, fstest.MapFS{
		"self":   {Data: []byte("/proc/self/exe"), Mode: os.ModeSymlink | 0o777},
		"script": {Data: []byte("#!/proc/self/exe\n"), Mode: 0o755},
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(self)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range []string{"/self", "/script", "/proc/self/exe"} {
		// Whatever runs, it is not the importing program, which would say so.
		out, err := eng.Output(t.Context(), &coracle.ContainerSpec{Image: "tool", Entrypoint: []string{entry}, Args: []string{"-test.list", "."}})
		if err == nil && strings.Contains(string(out), "Test") {
			t.Errorf("%s ran the importing program: %s", entry, out)
		}
	}
	after, err := os.Stat(self)
	if err != nil || !before.ModTime().Equal(after.ModTime()) || before.Size() != after.Size() {
		t.Errorf("the program changed: %v, %v, %v", before, after, err)
	}
	if list, _ := eng.Containers(t.Context(), nil); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
}
