package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/coracle-dev/coracle/internal/vmtest/guestplan"
)

// makeTree makes what a small Debian machine has, below root: busybox, and of tar the real one (from the tree tar), which
// tests compare with.
func makeTree(root, busybox, tar string) error {
	if err := copyTree(root, tar, nil); err != nil {
		return err
	}
	for dir, mode := range map[string]fs.FileMode{
		"bin": 0o755, "dev": 0o755, "etc": 0o755, "proc": 0o555, "root": 0o700, "run": 0o755, "sbin": 0o755,
		"src": 0o755, "sys": 0o555, "tmp": 0o777 | fs.ModeSticky, "usr/bin": 0o755, "usr/sbin": 0o755,
		"var/lib": 0o755, "var/tmp": 0o777 | fs.ModeSticky, "vmtest": 0o755,
	} {
		path := filepath.Join(root, dir)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"etc/passwd":      "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"etc/group":       "root:x:0:\nnogroup:x:65534:\n",
		"etc/hostname":    "vmtest\n",
		"etc/hosts":       "127.0.0.1\tlocalhost vmtest\n::1\tlocalhost\n",
		"etc/resolv.conf": "nameserver 127.0.0.1\n",
		"etc/subuid":      "nobody:100000:65536\n",
		"etc/subgid":      "nobody:100000:65536\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	// The guest makes the links of busybox's applets: the binary may be of another architecture.
	return copyFile(filepath.Join(root, "bin/busybox"), busybox, 0o755)
}

// compileTests compiles the tests of the packages into root and copies the source trees of their modules to root/src,
// where the tests find their testdata.
func compileTests(ctx context.Context, arch, root string, packages []string) ([]guestplan.Test, error) {
	const format = "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}\t{{.Dir}}\t{{.Module.Path}}\t{{.Module.Dir}}{{end}}"
	cmd := exec.CommandContext(ctx, "go", append([]string{"list", "-f", format, "--"}, packages...)...)
	cmd.Env = goEnv(arch)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var tests []guestplan.Test
	copied := make(map[string]bool)
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 4 {
			continue
		}
		pkg, dir, module, moduleDir := f[0], f[1], f[2], f[3]
		if !copied[module] {
			copied[module] = true
			if err := copyTree(filepath.Join(root, "src", module), moduleDir, notSource); err != nil {
				return nil, fmt.Errorf("copy the sources of %s: %w", module, err)
			}
		}
		binary := filepath.Join("/vmtest/bin", strings.ReplaceAll(pkg, "/", "_")+".test")
		if err := goBuild(ctx, arch, "test", filepath.Join(root, binary), pkg); err != nil {
			return nil, err
		}
		rel, err := filepath.Rel(moduleDir, dir)
		if err != nil {
			return nil, err
		}
		tests = append(tests, guestplan.Test{Package: pkg, Binary: binary, Dir: filepath.Join("/src", module, rel)})
	}
	return tests, nil
}

// goBuild compiles a static binary: the program of pkg ("build") or its tests ("test").
func goBuild(ctx context.Context, arch, what, out, pkg string) error {
	args := []string{what, "-o", out}
	if what == "test" {
		args = []string{what, "-c", "-o", out}
	}
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Env = goEnv(arch)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s %s: %w\n%s", what, pkg, err, text)
	}
	return nil
}

func goEnv(arch string) []string {
	return append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
}

// notSource reports what git does not keep and what builds leave.
func notSource(rel string, d fs.DirEntry) bool {
	return d.Name() == ".git" || rel == "bin" || strings.HasSuffix(rel, ".test") || strings.HasSuffix(rel, ".prof")
}

// copyTree copies directories, regular files and symbolic links but those that skip reports.
func copyTree(to, from string, skip func(rel string, d fs.DirEntry) bool) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != from {
			return nil // another process's temporary file
		} else if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if skip != nil && skip(rel, d) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		case d.Type() == fs.ModeSymlink:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		case !d.Type().IsRegular():
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return copyFile(target, path, info.Mode().Perm())
	})
}

func copyFile(to, from string, mode fs.FileMode) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		return err
	}
	return dst.Close()
}

// makeDisk makes an ext4 image of 4 GiB (sparse) with the tree root on it.
func makeDisk(ctx context.Context, image, root string) error {
	mke2fs := "mke2fs"
	if _, err := exec.LookPath(mke2fs); err != nil {
		mke2fs = "/sbin/mke2fs" // not in the PATH of ordinary users
	}
	cmd := exec.CommandContext(ctx, mke2fs, "-q", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0", "-d", root, image, "4G")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make the disk image: %s: %w\n%s", cmd, err, text)
	}
	return nil
}
