package coracle_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/hostile"
)

// Flaws by way of what an image says or brings along, from its making to a running container.

// Paths of the configuration (volumes, working directory, home directory) are paths of the image, whatever is in them and
// whatever lies there.
func TestCVE_2022_23648_ConfigPathsStayInTheImage(t *testing.T) {
	eng := engine(t)
	canary := hostile.NewCanary(t)
	out := strings.Repeat("../", 30) + strings.TrimPrefix(canary.Dir, "/")
	for _, dir := range []string{"/../../" + out + "/made", out, "/link/made", "/up/made", "/proc/self/root/made", canary.Dir, canary.Dir + "/victim"} {
		config := coracle.ImageConfig{Entrypoint: []string{"/tool"}, WorkingDir: dir, Env: []string{"HOME=" + out},
			Volumes: map[string]struct{}{"/" + out: {}, canary.Dir: {}, "/link/sub": {}, "../../" + out: {}, "": {}}}
		toolImage(t, eng, fstest.MapFS{
			"link": {Data: []byte(canary.Dir), Mode: os.ModeSymlink | 0o777}, "up": {Data: []byte(out), Mode: os.ModeSymlink | 0o777},
			strings.TrimPrefix(canary.Dir, "/") + "/mine": {Data: []byte("of the image")},
		}, config)
		if dir == "/proc/self/root/made" {
			// A way by magic links is refused, in the image and out of it.
			if err := eng.Run(t.Context(), &coracle.ContainerSpec{Image: "tool", Args: []string{"true"}}); err == nil {
				t.Errorf("the working directory %s was entered", dir)
			}
			canary.Check(t)
			continue
		}
		if got := output(t, eng, coracle.ContainerSpec{}, "ls", "."); strings.Contains(got, "victim") || strings.Contains(got, "secret") {
			t.Errorf("working directory %s shows %s", dir, got)
		}
		// What lies at that path in the container is the image's own.
		if got := output(t, eng, coracle.ContainerSpec{}, "cat", canary.Dir+"/mine"); got != "of the image" {
			t.Errorf("%q", got)
		}
		err := eng.Run(t.Context(), &coracle.ContainerSpec{Image: "tool", Args: []string{"cat", "/link/victim"}})
		if err == nil {
			t.Errorf("a file of the host can be read with the working directory %s", dir)
		}
		canary.Check(t)
	}
}

// The USER of an image is checked like that of a spec.
func TestCVE_2024_40635_UserOfAnImage(t *testing.T) {
	eng := engine(t)
	for _, user := range []string{"2147483648", "4294967296", "18446744073709551616", "0:4294967296", "-1", "0x0", "+0", " 0", "1000\x00", "root:99999999999", "\u0660"} {
		toolImage(t, eng, nil, coracle.ImageConfig{Entrypoint: []string{"/tool"}, User: user})
		err := eng.Run(t.Context(), &coracle.ContainerSpec{Image: "tool", Args: []string{"true"}})
		if !errors.Is(err, coracle.ErrInvalid) {
			t.Errorf("user %q: %v", user, err)
		}
	}
	for user, want := range map[string]int{"1000": 1000, "33": 33, "alice": 1000} {
		toolImage(t, eng, nil, coracle.ImageConfig{Entrypoint: []string{"/tool"}, User: user})
		if r := report(t, eng, coracle.ContainerSpec{}); r.UID != want {
			t.Errorf("user %q became %d", user, r.UID)
		}
	}
	if list, _ := eng.Containers(t.Context(), nil); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
}

// As CVE-2024-9676, by the file of groups, and by directories on the way.
func TestCVE_2026_47262_GroupFilesAreBoundedAndInTheImage(t *testing.T) {
	eng := engine(t)
	dir := t.TempDir()
	for _, name := range []string{"group", "passwd"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("mallory:x:0:0::/:/\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to string) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte(to), Mode: os.ModeSymlink | 0o777}
	}
	for name, files := range map[string]fstest.MapFS{
		"group is a link to the host": {"etc/group": link(dir + "/group")},
		"group is a way out":          {"etc/group": link(strings.Repeat("../", 30) + dir + "/group")},
		"group is a magic link":       {"etc/group": link("/proc/1/root" + dir + "/group")},
		"group is a loop":             {"etc/group": link("group")},
		"group is endless":            {"etc/group": link("/dev/zero")},
		"group is huge":               {"etc/group": {Data: []byte(strings.Repeat("x", 5<<20) + "\nmallory:x:0:\n"), Mode: 0o644}},
		"group is a directory":        {"etc/group": {Mode: os.ModeDir | 0o755}},
	} {
		toolImage(t, eng, files)
		for _, spec := range []coracle.ContainerSpec{{User: "1:mallory"}, {User: "1", GroupAdd: []string{"mallory"}}} {
			spec.Image, spec.Args = "tool", []string{"true"}
			if err := eng.Run(t.Context(), &spec); err == nil {
				t.Errorf("%s: mallory was found", name)
			}
		}
	}
	if list, _ := eng.Containers(t.Context(), nil); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
}

// Nothing of an image runs or is loaded outside of its container: no helper found on the image's PATH, no library that its
// environment names. What ran on the host could write there.
func TestCVE_2019_14271_NothingOfAnImageRunsOnTheHost(t *testing.T) {
	eng := engine(t)
	canary := hostile.NewCanary(t)
	files := fstest.MapFS{"etc/ld.so.preload": {Data: []byte("/evil.so\n")}, "etc/nsswitch.conf": {Data: []byte("passwd: evil\ngroup: evil\n")},
		"evil.so": {Data: []byte("\x7fELF rubbish"), Mode: 0o755}, "lib/libnss_evil.so.2": {Data: []byte("\x7fELF rubbish"), Mode: 0o755},
		"lib/x86_64-linux-gnu/libnss_files.so.2": {Data: []byte("\x7fELF rubbish"), Mode: 0o755}}
	for _, name := range []string{"sh", "bash", "tar", "gzip", "unpigz", "zstd", "xz", "mount", "umount", "newuidmap", "newgidmap", "iptables", "nft", "ip", "getent", "ldconfig", "modprobe",
		"docker-credential-evil", "runc", "crun", "nsenter", "kmod", "init"} {
		for _, dir := range []string{"bin", "usr/bin", "sbin", "evil"} {
			files[dir+"/"+name] = &fstest.MapFile{Data: []byte(fmt.Sprintf("#!/bin/sh\n/bin/touch %s/ran-%s\n", canary.Dir, name)), Mode: 0o755}
		}
	}
	env := []string{"PATH=/evil:/bin", "LD_PRELOAD=/evil.so", "LD_LIBRARY_PATH=/evil", "LD_AUDIT=/evil.so", "GCONV_PATH=/evil", "DOCKER_CONFIG=/evil", "HOME=/evil", "XDG_RUNTIME_DIR=/evil", "TMPDIR=/evil", "GODEBUG=evil=1"}
	toolImage(t, eng, files, coracle.ImageConfig{Entrypoint: []string{"/tool"}, Env: env, User: "alice:staff", WorkingDir: "/evil/new"})
	c, err := eng.Create(t.Context(), &coracle.ContainerSpec{Image: "tool", User: "alice", Args: []string{"sleep", "30000"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Who watches the container outside of it has nothing of its environment.
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		if strings.HasPrefix(os.Getenv(name), value) {
			t.Errorf("%s of the image is set here", name)
		}
	}
	info, err := c.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	parent, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", info.PID))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(parent[strings.LastIndexByte(string(parent), ')')+1:]))
	if environ, err := os.ReadFile("/proc/" + fields[1] + "/environ"); err == nil && strings.Contains(string(environ), "/evil") {
		t.Errorf("the process above the container has its environment: %q", environ)
	}
	if err := c.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := c.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Remove(t.Context(), nil); err != nil {
		t.Error(err)
	}
	canary.Check(t)
}

// The directories of an engine are closed to others from the beginning, whatever the umask, and where they were open
// before.
func TestCVE_2024_25621_DirectoriesAreClosed(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	if err := eng.Run(t.Context(), &coracle.ContainerSpec{Image: "tool", Args: []string{"true"}}); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, dir := range []string{"store", "containers", "names", "owners", "store/layers", "store/snapshots", "store/tmp", "store/blobs", "store/blobs/sha256", "store/locks", "store/stacks"} {
		info, err := os.Stat(filepath.Join(eng.Root(), dir))
		if err != nil {
			t.Error(err)
			continue
		}
		seen++
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has the mode %v", dir, info.Mode())
		}
	}
	if seen < 11 {
		t.Errorf("only %d directories", seen)
	}
}
