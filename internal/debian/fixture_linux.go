package debian

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// A Fixture is a real Debian image in a registry on loopback: debootstrap's minbase, python3-minimal installed by apt
// as a second layer, and a third layer with whatever a layer can hold that is easily lost (see nasty). Its command is
// bash.
type Fixture struct {
	GzipRef  string // an image with gzip layers, host:port/debian:gzip; plain HTTP
	ZstdRef  string // the same image with zstd layers
	IndexRef string // an index whose entry for this machine's platform is the image with gzip layers

	Layers []string // the layers as uncompressed tar files, lowest first
}

// Image returns the fixture, building it where this machine has not yet done so (about a minute), with a registry that
// runs until the test ends. It skips where it cannot be built: it needs root, debootstrap and docker-registry.
func Image(t testing.TB) *Fixture {
	t.Helper()
	if os.Getenv("CORACLE_TEST_VM") != "" {
		t.Skip("the virtual machine has no Debian image")
	}
	testutil.RequireRoot(t)
	requireTools(t, "debootstrap", "docker-registry", "apt-get", "tar", "unshare", "zstd", "gzip")
	dir, err := imageDir(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	host := startRegistry(t, filepath.Join(dir, "registry"))
	return &Fixture{
		GzipRef:  host + "/debian:gzip",
		ZstdRef:  host + "/debian:zstd",
		IndexRef: host + "/debian:latest",
		Layers:   layerFiles(dir),
	}
}

// imageDir is where the fixture of [Image] is.
func imageDir(ctx context.Context) (string, error) {
	dir, err := CacheDir("image")
	if err != nil {
		return "", err
	}
	return once(dir, "v1-"+runtime.GOARCH, func(tmp string) error { return buildImage(ctx, tmp) })
}

// BusyboxRootfs returns a new directory with a small root filesystem, removed when the test ends: a static busybox with
// links for all its applets, a few lines of /etc, and the usual empty directories. It skips without busybox-static.
func BusyboxRootfs(t testing.TB) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil || !static(busybox) {
		testutil.Skip(t, "needs a static busybox: install busybox-static")
	}
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "var"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
		"etc/group":  "root:x:0:\nnogroup:x:65534:\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if err := os.Symlink("/bin/busybox", filepath.Join(root, "bin", applet)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	return root
}

// requireTools skips the test where a program is missing.
func requireTools(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			testutil.Skip(t, "needs "+name+": install it to include this test")
		}
	}
}
