package main

import (
	"bufio"
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// modules lists what the guest loads before the tests run, in this order and after what each depends on. The drivers
// of the disk come first. A name that the kernel does not have, built in or as a module, is an error.
var modules = strings.Fields(`
	virtio_pci virtio_blk virtio_rng
	overlay erofs squashfs fuse loop xfs xxhash_generic btrfs
	veth bridge br_netfilter macvlan ipvlan vxlan dummy 8021q tun wireguard
	nf_tables nft_ct nft_nat nft_masq nft_redir nft_chain_nat nft_reject nft_reject_inet nft_fib nft_fib_inet nft_limit
	nft_log nft_numgen nft_hash nft_compat nft_meta_bridge nf_conntrack_netlink
	ip_tables iptable_filter iptable_nat iptable_mangle ip6_tables ip6table_filter x_tables xt_conntrack xt_addrtype
	xt_MASQUERADE xt_tcpudp xt_comment
	sch_netem sch_tbf sch_htb sch_ingress cls_bpf sctp
`)

// findKernel returns the kernel image below an unpacked kernel package.
func findKernel(dir string) (string, error) {
	names, err := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if err != nil || len(names) != 1 {
		return "", fmt.Errorf("want one kernel image in %s/boot, found %q", dir, names)
	}
	return names[0], nil
}

// writeInitrd writes an initial ramdisk: the guest program as /init, and the kernel modules as /modules/NNN-name.ko,
// numbered in the order in which they must be loaded.
func writeInitrd(path, guest, kernelDir string) error {
	sorted, err := resolveModules(kernelDir, modules)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := &cpioWriter{w: bufio.NewWriterSize(f, 1<<20)}
	for _, dir := range []string{"dev", "proc", "root", "modules"} {
		w.add(dir, cpioDir|0o755, nil)
	}
	w.addFile("init", 0o755, guest)
	for i, module := range sorted {
		w.addFile(fmt.Sprintf("modules/%03d-%s", i, filepath.Base(module)), 0o644, module)
	}
	w.add("TRAILER!!!", 0, nil)
	if err := w.w.Flush(); w.err == nil {
		w.err = err
	}
	if err := f.Close(); w.err == nil {
		w.err = err
	}
	return w.err
}

// resolveModules returns the files of the named modules and of all that they depend on, dependencies first.
func resolveModules(kernelDir string, names []string) ([]string, error) {
	files := make(map[string]string)
	builtin := make(map[string]bool)
	err := filepath.WalkDir(filepath.Join(kernelDir, "lib/modules"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if d.Name() == "modules.builtin" {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(data)) {
				builtin[moduleName(strings.TrimSpace(line))] = true
			}
		} else if strings.HasSuffix(path, ".ko") {
			files[moduleName(path)] = path
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var sorted []string
	seen := make(map[string]bool)
	var visit func(name, by string) error
	visit = func(name, by string) error {
		name = moduleName(name)
		if seen[name] || builtin[name] {
			return nil
		}
		seen[name] = true
		path, ok := files[name]
		if !ok {
			return fmt.Errorf("the kernel in %s has no module %s, wanted by %s", kernelDir, name, by)
		}
		deps, err := moduleDepends(path)
		if err != nil {
			return err
		}
		for _, dep := range deps {
			if err := visit(dep, name); err != nil {
				return err
			}
		}
		sorted = append(sorted, path)
		return nil
	}
	for _, name := range names {
		if err := visit(name, "vmtest"); err != nil {
			return nil, err
		}
	}
	return sorted, nil
}

// moduleName returns the name of a module from its file name: the kernel takes - and _ for the same.
func moduleName(path string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
}

// moduleDepends reads the names that a module depends on from its .modinfo section: NUL-terminated key=value strings.
func moduleDepends(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("%s has no .modinfo", path)
	}
	data, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for entry := range bytes.SplitSeq(data, []byte{0}) {
		if deps, ok := bytes.CutPrefix(entry, []byte("depends=")); ok && len(deps) > 0 {
			return strings.Split(string(deps), ","), nil
		}
	}
	return nil, nil
}

const (
	cpioDir  = 0o040000
	cpioFile = 0o100000
)

// A cpioWriter writes the "newc" format that the kernel unpacks (Documentation/driver-api/early-userspace). The first
// error sticks.
type cpioWriter struct {
	w   *bufio.Writer
	ino uint32
	err error
}

func (c *cpioWriter) addFile(name string, mode uint32, from string) {
	data, err := os.ReadFile(from)
	if err != nil && c.err == nil {
		c.err = err
	}
	c.add(name, cpioFile|mode, data)
}

func (c *cpioWriter) add(name string, mode uint32, data []byte) {
	if c.err != nil {
		return
	}
	c.ino++
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	for _, part := range [][]byte{[]byte(header), data} {
		if _, c.err = c.w.Write(part); c.err != nil {
			return
		}
		if _, c.err = io.WriteString(c.w, "\x00\x00\x00"[:-len(part)&3]); c.err != nil {
			return
		}
	}
}
