package debian

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Kernel returns the directory of an unpacked cloud kernel of Debian for a GOARCH (amd64, arm64): boot/vmlinuz-* and
// lib/modules/* below it. The package is downloaded and unpacked, never installed.
func Kernel(ctx context.Context, goarch string) (string, error) {
	dir, err := CacheDir("kernel")
	if err != nil {
		return "", err
	}
	return once(dir, goarch, func(tmp string) error {
		apt, err := newApt(ctx, goarch)
		if err != nil {
			return err
		}
		defer apt.close()
		// The meta package names the current kernel.
		out, err := apt.output(ctx, "apt-cache", "depends", "--important", "linux-image-cloud-"+goarch)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
				return apt.unpack(ctx, tmp, "linux-image-"+name)
			}
		}
		return fmt.Errorf("apt-cache: linux-image-cloud-%s depends on no kernel:\n%s", goarch, out)
	})
}

// Busybox returns the path of Debian's static busybox for a GOARCH: the installed one where the architecture is the
// machine's own, else one from an unpacked package.
func Busybox(ctx context.Context, goarch string) (string, error) {
	if goarch == runtime.GOARCH {
		if path, err := exec.LookPath("busybox"); err == nil && static(path) {
			return path, nil
		}
	}
	dir, err := CacheDir("busybox")
	if err != nil {
		return "", err
	}
	dir, err = once(dir, goarch, func(tmp string) error {
		apt, err := newApt(ctx, goarch)
		if err != nil {
			return err
		}
		defer apt.close()
		return apt.unpack(ctx, tmp, "busybox-static")
	})
	if err != nil {
		return "", err
	}
	for _, name := range []string{"bin/busybox", "usr/bin/busybox"} {
		if path := filepath.Join(dir, name); static(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("no static busybox below %s", dir)
}

// GNUTar returns the directory of an unpacked GNU tar for a GOARCH with the libraries that it needs: a piece of a root
// filesystem.
func GNUTar(ctx context.Context, goarch string) (string, error) {
	dir, err := CacheDir("tar")
	if err != nil {
		return "", err
	}
	return once(dir, goarch, func(tmp string) error {
		apt, err := newApt(ctx, goarch)
		if err != nil {
			return err
		}
		defer apt.close()
		for _, pkg := range []string{"tar", "libc6", "libacl1", "libselinux1", "libpcre2-8-0"} {
			if err := apt.unpack(ctx, tmp, pkg); err != nil {
				return err
			}
		}
		return os.RemoveAll(filepath.Join(tmp, "usr/share"))
	})
}

// An apt runs apt's programs for one architecture. For a foreign one it has package lists of its own, so that the
// machine's dpkg need not know that architecture.
type apt struct {
	goarch string
	dir    string // of a foreign architecture: apt's state and cache
}

func newApt(ctx context.Context, goarch string) (*apt, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, fmt.Errorf("not a Debian system: %w", err)
	}
	a := &apt{goarch: goarch}
	if goarch == runtime.GOARCH {
		return a, nil
	}
	dir, err := os.MkdirTemp("", "coracle-apt-")
	if err != nil {
		return nil, err
	}
	a.dir = dir
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			a.close()
			return nil, err
		}
	}
	if _, err := a.output(ctx, "apt-get", "update"); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

func (a *apt) close() {
	if a.dir != "" {
		os.RemoveAll(a.dir)
	}
}

func (a *apt) output(ctx context.Context, name string, args ...string) (string, error) {
	return a.outputIn(ctx, "", name, args...)
}

func (a *apt) outputIn(ctx context.Context, dir, name string, args ...string) (string, error) {
	var full []string
	if a.dir != "" {
		full = []string{
			"-o", "APT::Architecture=" + a.goarch,
			"-o", "APT::Architectures=" + a.goarch,
			"-o", "Dir::State=" + filepath.Join(a.dir, "state"),
			"-o", "Dir::State::status=/dev/null",
			"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		}
	}
	// The download directory is ours, not the unprivileged _apt user's.
	full = append(full, "-o", "APT::Sandbox::User=root")
	return command(ctx, dir, name, append(full, args...)...)
}

// unpack downloads one package and unpacks it below dir.
func (a *apt) unpack(ctx context.Context, dir, pkg string) error {
	debs, err := os.MkdirTemp("", "coracle-deb-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(debs)
	if _, err := a.outputIn(ctx, debs, "apt-get", "download", pkg); err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil || len(names) != 1 {
		return fmt.Errorf("apt-get download %s left %q", pkg, names)
	}
	_, err = command(ctx, "", "dpkg", "-x", names[0], dir)
	return err
}

// archive returns where apt gets the main component of the running Debian release from, and that release's name.
func archive(ctx context.Context) (uri, codename string, err error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(release)) {
		if name, ok := strings.CutPrefix(line, "VERSION_CODENAME="); ok {
			codename = strings.Trim(strings.TrimSpace(name), `"`)
		}
	}
	out, err := command(ctx, "", "apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)",
		"Identifier: Packages", "Component: main", "Label: Debian", "Codename: "+codename)
	if err != nil {
		return "", "", err
	}
	uri, _, ok := strings.Cut(out, " ")
	if !ok {
		return "", "", fmt.Errorf("apt knows no archive of Debian %q: run apt-get update", codename)
	}
	return uri, codename, nil
}

// command runs a program; an error has all that it wrote.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.String(), nil
}
