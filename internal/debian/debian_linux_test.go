package debian

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func TestImage(t *testing.T) {
	f := Image(t)
	if len(f.Layers) != 3 {
		t.Fatalf("layers: %q", f.Layers)
	}
	var diffs []string
	for _, text := range []string{f.GzipRef, f.ZstdRef, f.IndexRef} {
		ref, err := name.ParseReference(text)
		if err != nil {
			t.Fatal(err)
		}
		image, err := remote.Image(ref)
		if err != nil {
			t.Fatal(err)
		}
		config, err := image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, id := range config.RootFS.DiffIDs {
			ids = append(ids, id.String())
		}
		if diffs = append(diffs, strings.Join(ids, " ")); len(ids) != 3 || diffs[0] != strings.Join(ids, " ") {
			t.Errorf("%s has other layers: %q", text, diffs)
		}
	}
}

func TestLargeImage(t *testing.T) {
	f := LargeImage(t)
	var total int64
	for _, path := range f.Layers {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
		t.Logf("%s: %d MB", filepath.Base(path), info.Size()>>20)
	}
	if len(f.Layers) != 6 || total < 800<<20 {
		t.Errorf("%d layers of %d MB together", len(f.Layers), total>>20)
	}
	for _, text := range []string{f.GzipRef, f.ZstdRef} {
		ref, err := name.ParseReference(text)
		if err != nil {
			t.Fatal(err)
		}
		image, err := remote.Image(ref)
		if err != nil {
			t.Fatal(err)
		}
		manifest, err := image.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		for i, l := range manifest.Layers {
			t.Logf("%s: layer %d: %d MB", text, i, l.Size>>20)
		}
	}
}

// TestExtract runs the image's own python in GNU tar's extraction and looks for what a careless layer would lose.
func TestExtract(t *testing.T) {
	f := Image(t)
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Extract(t.Context(), root, f.Layers); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("chroot", root, "python3", "-c", "print(6*7)").CombinedOutput()
	if err != nil || string(out) != "42\n" {
		t.Errorf("python3: %v: %s", err, out)
	}
	lines, err := List(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"nasty/setuid-of-other" mode=0106755 owner=1234:5678`,
		`"nasty/null" mode=0020666 owner=0:0`,
		`"nasty/capability" mode=0100755 owner=0:0`,
		`"nasty/latin1-\xe9" `,
		`"usr/share/doc/bash/only" `,
		`"usr/share/doc/dpkg" mode=0120777`,
		`"usr/share/doc/tar" mode=0040711`,
		`"etc/issue.net" mode=0100644 owner=7:8`,
	} {
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, want) }) {
			t.Errorf("no entry %s", want)
		}
	}
	for _, want := range []string{
		"mtime=1600000000.123456789", "mtime=-86400.250000000", "device=259:70000", "security.capability=",
		`user.empty=""`, `same as "nasty/a-link"`, `-> "../../../../../../etc/passwd"`,
	} {
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, want) }) {
			t.Errorf("no entry with %s", want)
		}
	}
	for _, gone := range []string{`"etc/debian_version"`, `"usr/share/doc/apt"`, `"usr/share/doc/bash/copyright"`, `.wh.`} {
		if i := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, gone) }); i >= 0 {
			t.Errorf("still there: %s", lines[i])
		}
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(root, link); err != nil {
		t.Fatal(err)
	}
	if again, err := List(link); err != nil || !slices.Equal(again, lines) {
		t.Errorf("through a link: %d lines instead of %d, %v", len(again), len(lines), err)
	}
	var blocks int64
	if info, err := os.Stat(filepath.Join(root, "nasty/sparse")); err != nil {
		t.Error(err)
	} else if blocks = statBlocks(info) * 512; blocks > 1<<20 || info.Size() != 64<<20 {
		t.Errorf("the sparse file has %d bytes on disk of %d", blocks, info.Size())
	}
}

func TestBusyboxRootfs(t *testing.T) {
	root := BusyboxRootfs(t)
	if _, err := os.Lstat(filepath.Join(root, "bin/sh")); err != nil {
		t.Error(err)
	}
	out, err := exec.Command(filepath.Join(root, "bin/busybox"), "echo", "ok").CombinedOutput()
	if err != nil || string(out) != "ok\n" {
		t.Errorf("busybox: %v: %s", err, out)
	}
}

func statBlocks(info os.FileInfo) int64 { return info.Sys().(*syscall.Stat_t).Blocks }

// TestPostgres looks at the image of the server; examples/testharness runs it.
func TestPostgres(t *testing.T) {
	ref, err := name.ParseReference(Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	image, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	if layers, err := image.Layers(); err != nil || len(layers) != 2 {
		t.Errorf("%d layers, %v", len(layers), err)
	}
}
