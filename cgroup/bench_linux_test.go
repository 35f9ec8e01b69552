package cgroup

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// BenchmarkCreateRemove is what the cgroup adds to a container's life, beside what the kernel takes for it at least: the
// same calls (mkdir, open, write, rmdir) with nothing between them.
func BenchmarkCreateRemove(b *testing.B) {
	h := open(b)
	limits := resources(b, Limits{Memory: 64 << 20, CPUs: 1, PIDs: 100})
	devices := &specs.LinuxResources{Devices: dockerRules()}
	for _, bb := range []struct {
		name string
		r    *specs.LinuxResources
	}{{"none", nil}, {"limits", limits}, {"devices", devices}} {
		b.Run(bb.name, func(b *testing.B) {
			for b.Loop() {
				g, err := h.Create("bench", bb.r)
				if err != nil {
					b.Fatal(err)
				}
				j, err := g.Join()
				if err != nil {
					b.Fatal(err)
				}
				j.Close()
				if err := g.Remove(background); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(bb.name+"/floor", func(b *testing.B) { floor(b, h, bb.r) })
	}
	b.Run("devices by program", func(b *testing.B) {
		rules, err := newDeviceRules(dockerRules())
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			g, err := h.Create("bench", nil)
			if err != nil {
				b.Fatal(err)
			}
			if err := g.attachDevices(rules, true); err != nil {
				b.Skip(err)
			}
			if err := g.Remove(background); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, t := range h.trees {
		name := strings.Join(t.controllers, ",")
		if t.v2 {
			name = "v2"
		}
		b.Run("mkdir/"+name, func(b *testing.B) {
			fd, _ := t.dir()
			for b.Loop() {
				if err := unix.Mkdirat(fd, "bench", 0o755); err != nil {
					b.Fatal(err)
				}
				if err := unix.Unlinkat(fd, "bench", unix.AT_REMOVEDIR); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func floor(b *testing.B, h *Hierarchy, r *specs.LinuxResources) {
	type write struct{ dir, file, value string }
	var writes []write
	if r != nil {
		for _, s := range settings(r, false, h.legacy) {
			t, err := h.treeOf(s.controller)
			if err != nil {
				b.Fatal(err)
			}
			writes = append(writes, write{t.where(), s.file, s.value})
		}
		if t := h.tree("devices"); t != nil && len(r.Devices) > 0 {
			rules, err := newDeviceRules(r.Devices)
			if err != nil {
				b.Fatal(err)
			}
			writes = append(writes, write{t.where(), "devices.deny", "a"})
			for _, e := range rules.exceptions {
				writes = append(writes, write{t.where(), "devices.allow", e.line()})
			}
		}
	}
	var dirs, joins []string
	for _, t := range h.trees {
		dirs = append(dirs, filepath.Join(t.where(), "bench"))
		if t.v2 {
			joins = append(joins, filepath.Join(t.where(), "bench", "cgroup.kill"))
		} else {
			joins = append(joins, filepath.Join(t.where(), "bench", "tasks"))
		}
	}
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	for i := range writes {
		writes[i].file = filepath.Join(writes[i].dir, "bench", writes[i].file)
	}
	for b.Loop() {
		for _, d := range dirs {
			must(unix.Mkdir(d, 0o755))
		}
		fd, last := -1, ""
		for _, w := range writes {
			if w.file != last {
				if fd >= 0 {
					unix.Close(fd)
				}
				var err error
				fd, err = unix.Open(w.file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
				must(err)
				last = w.file
			}
			if _, err := unix.Write(fd, []byte(w.value)); err != nil {
				must(fmt.Errorf("%s: %w", w.file, err))
			}
		}
		if fd >= 0 {
			unix.Close(fd)
		}
		for _, f := range joins {
			fd, err := unix.Open(f, unix.O_WRONLY|unix.O_CLOEXEC, 0)
			must(err)
			unix.Close(fd)
		}
		for _, d := range dirs {
			must(unix.Rmdir(d))
		}
	}
}
