package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Update changes the limits of the group while it runs. What r says nothing about stays as it is. If it fails, the limits
// are those from before; only device rules may have been changed in part.
func (g *Group) Update(r *specs.LinuxResources) error {
	if err := checkResources(r); err != nil {
		return err
	}
	if !g.none && g.h.gone(g.name) {
		return fmt.Errorf("cgroup: update group %q: %w", g.name, fs.ErrNotExist)
	}
	return g.set(r, false)
}

// gone reports whether no hierarchy has the group.
func (h *Hierarchy) gone(name string) bool {
	_, err := h.Load(name)
	return errors.Is(err, fs.ErrNotExist)
}

// legacy reports whether a controller has a v1 hierarchy of its own, writable or not.
func (h *Hierarchy) legacy(controller string) bool {
	for _, t := range h.trees {
		if !t.v2 && slices.Contains(t.controllers, controller) {
			return true
		}
	}
	return h.mode == V1
}

// set writes the limits: as few files as they need. A group that was just made has no limits and no processes.
func (g *Group) set(r *specs.LinuxResources, create bool) error {
	if r == nil {
		return nil
	}
	swapFirst := false
	if !create {
		var err error
		if swapFirst, err = g.checkUpdate(r.Memory); err != nil {
			return err
		}
	}
	list := settings(r, swapFirst, g.h.legacy)
	var done []undo
	for i := range list {
		if err := g.write(&list[i], create, &done); err != nil {
			g.rollBack(done)
			return err
		}
	}
	if err := g.setDevices(r.Devices, create); err != nil {
		g.rollBack(done)
		return err
	}
	return nil
}

// checkUpdate reports whether the limit of memory and swap is to be written before that of memory, which it must never
// be below, and whether the memory limit may be set at all.
func (g *Group) checkUpdate(m *specs.LinuxMemory) (swapFirst bool, err error) {
	if m == nil || m.Limit == nil {
		return false, nil
	}
	now := statReader{g: g}
	if m.CheckBeforeUpdate != nil && *m.CheckBeforeUpdate && *m.Limit > 0 {
		file := "memory.current"
		if g.h.legacy("memory") {
			file = "memory.usage_in_bytes"
		}
		if used := now.number("memory", file); used > uint64(*m.Limit) {
			return false, &LimitError{Feature: "memory limit", File: file, Value: itoa(*m.Limit),
				Err: fmt.Errorf("%d bytes are in use: %w", used, unix.EBUSY)}
		}
	}
	if m.Swap == nil || !g.h.legacy("memory") {
		return false, nil
	}
	limit := now.number("memory", "memory.memsw.limit_in_bytes") // 0: none, which nothing is above
	return *m.Swap < 0 || limit > 0 && uint64(*m.Swap) > limit, nil
}

// write does one write, and adds to done what undoes it. A group that was just made is removed and needs none of that.
func (g *Group) write(s *setting, create bool, done *[]undo) error {
	if s.impossible != "" {
		return &UnsupportedError{Feature: s.feature, File: s.file, Fix: s.impossible}
	}
	t, err := g.h.treeOf(s.controller)
	if err != nil {
		return g.unsupported(s.feature, s.file, err)
	}
	dir, err := t.dir()
	if err != nil {
		return g.unsupported(s.feature, s.file, err)
	}
	file, value := s.file, s.value
	if s.keepFirst && !create {
		now, err := readAt(dir, g.name+"/"+file)
		if first, _, ok := strings.Cut(string(now), " "); err == nil && ok {
			_, rest, _ := strings.Cut(value, " ")
			value = first + " " + rest
		}
	}
	write := func() error {
		var back undo
		known := false
		if !create {
			back, known = g.undoOf(t, dir, file, value)
		}
		err := writeAt(dir, g.name+"/"+file, value)
		if err == nil && known {
			*done = append(*done, back)
		}
		return err
	}
	err = write()
	if err == unix.ENOENT && s.orElse != "" {
		file, value = s.orElse, s.orElseValue
		err = write()
	}
	if err == nil {
		return nil
	}
	at := path.Join(t.where(), g.name, file)
	switch err {
	case unix.ENOENT, unix.EACCES, unix.EPERM, unix.EROFS, unix.EOPNOTSUPP:
		if s.optional && err == unix.ENOENT {
			g.h.logOnce("cgroup: there is no such limit in this kernel, and the one asked for is only a default", "file", file)
			return nil
		}
		return g.unsupported(s.feature, at, err)
	case unix.ENODEV:
		err = fmt.Errorf("%w: not a whole disk", err)
	}
	return &LimitError{Feature: s.feature, File: at, Value: value, Err: err}
}

// treeOf returns the hierarchy of a controller, or why there is none; "" stands for the v2 hierarchy.
func (h *Hierarchy) treeOf(controller string) (*tree, error) {
	var unified *tree
	for _, t := range h.trees {
		if !t.v2 && slices.Contains(t.controllers, controller) {
			_, err := t.dir()
			return t, err
		}
		if t.v2 {
			unified = t
		}
	}
	if unified == nil {
		return nil, fmt.Errorf("the %s controller is not mounted", controller)
	}
	if _, err := unified.dir(); err != nil {
		return nil, err
	}
	if controller != "" && !unified.has(controller) {
		return nil, fmt.Errorf("the %s controller is not enabled in %s", controller, path.Join(unified.where(), "cgroup.subtree_control"))
	}
	return unified, nil
}

// unsupported explains why a limit cannot be set.
func (g *Group) unsupported(feature, file string, err error) error {
	fix := "enable the controller in the kernel and mount its hierarchy"
	switch {
	case errors.Is(err, unix.EROFS):
		fix = "mount the cgroups writable, or ask for no limit"
	case errors.Is(err, fs.ErrPermission):
		fix = "run as root, or have the cgroup delegated: systemd-run --user --scope -p Delegate=yes"
	case errors.Is(err, fs.ErrNotExist):
		fix = "use a kernel that has it, or do not ask for it"
	case g.h.mode == V2:
		fix = "delegate the controller to a group that holds no processes, and name it as the parent"
	}
	return &UnsupportedError{Feature: feature, File: file, Fix: fix, Err: err}
}

// setDevices sets the filter for devices: the v1 list, or a program.
func (g *Group) setDevices(list []specs.LinuxDeviceCgroup, create bool) error {
	if len(list) == 0 {
		return nil
	}
	rules, err := newDeviceRules(list)
	if err != nil {
		return err
	}
	if create && rules.allow && len(rules.exceptions) == 0 {
		return nil
	}
	var file string
	if g.h.legacy("devices") {
		file, err = "devices.allow", g.writeDevices(rules, create)
	} else {
		err = g.attachDevices(rules, create)
	}
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrPermission) && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, unix.EROFS) &&
		!errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, errNoTree):
		return fmt.Errorf("cgroup: set the device rules of group %q: %w", g.name, err)
	case !canMakeDevices():
		// Then the container cannot either: the rules would guard what is not there.
		g.h.logOnce("cgroup: device rules are ignored: nothing can enforce them, and devices cannot be made here", "error", err)
		return nil
	}
	return &UnsupportedError{Feature: "a list of devices", File: file, Err: err,
		Fix: "run with the rights to filter devices (CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN), or in a user namespace"}
}

// errNoTree says that there is no hierarchy to filter devices in.
var errNoTree = errors.New("there is no hierarchy to filter devices in")

// attachDevices sets the filter in the v2 hierarchy.
func (g *Group) attachDevices(rules *deviceRules, create bool) error {
	t := g.h.tree("")
	if t == nil {
		for _, t := range g.h.trees {
			if _, err := t.dir(); t.v2 && err != nil {
				return err
			}
		}
		return errNoTree
	}
	parent, err := t.dir()
	if err != nil {
		return err
	}
	dir, err := unix.Openat(parent, g.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path.Join(t.where(), g.name), Err: err}
	}
	defer unix.Close(dir)
	return g.h.devices.use(rules.program(), func(fd int) error {
		if err := attachDeviceFilter(dir, fd, !create); err != nil {
			return os.NewSyscallError("bpf", err)
		}
		return nil
	})
}

// writeDevices sets the list of the v1 hierarchy: one write for each exception, the kernel takes no more at once.
func (g *Group) writeDevices(rules *deviceRules, create bool) error {
	t := g.h.tree("devices")
	if t == nil {
		for _, t := range g.h.trees {
			if _, err := t.dir(); slices.Contains(t.controllers, "devices") && err != nil {
				return err
			}
		}
		return errNoTree
	}
	dir, err := t.dir()
	if err != nil {
		return err
	}
	now := &deviceRules{allow: true}
	if !create {
		data, err := readAt(dir, g.name+"/devices.list")
		if err != nil {
			return err
		}
		if now, err = parseDeviceList(string(data)); err != nil {
			return err
		}
		// A list of what is denied cannot be read back: it shows as if all were allowed.
		if now.allow && rules.allow {
			if err := writeAt(dir, g.name+"/devices.allow", "a"); err != nil {
				return err
			}
		}
	}
	first, then := "devices.deny", "devices.allow"
	if rules.allow {
		first, then = then, first
	}
	if now.allow != rules.allow {
		if err := writeAt(dir, g.name+"/"+first, "a"); err != nil {
			return err
		}
		now = &deviceRules{allow: rules.allow}
	}
	// What is new first, then what goes: what stays is never gone meanwhile.
	if err := writeExceptions(dir, g.name+"/"+then, rules.exceptions, now.exceptions); err != nil {
		return err
	}
	return writeExceptions(dir, g.name+"/"+first, now.exceptions, rules.exceptions)
}

// writeExceptions writes those of list that are not covered by but.
func writeExceptions(dir int, file string, list, but []deviceException) error {
	fd := -1
	for _, e := range list {
		for _, b := range but {
			if b.deviceKey == e.deviceKey {
				e.access &^= b.access
			}
		}
		if e.access == 0 {
			continue
		}
		if fd < 0 {
			var err error
			if fd, err = retryOpen(dir, file, unix.O_WRONLY); err != nil {
				return err
			}
			defer unix.Close(fd)
		}
		if err := writeFd(fd, e.line()); err != nil {
			return fmt.Errorf("%q: %w", e.line(), err)
		}
	}
	return nil
}

// canMakeDevices reports whether this process could make a device node that works: it has CAP_MKNOD, and is in the first
// user namespace.
func canMakeDevices() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err == nil && data[0].Permitted&(1<<unix.CAP_MKNOD) == 0 {
		return false
	}
	ids, err := os.ReadFile("/proc/self/uid_map")
	return err != nil || slices.Equal(strings.Fields(string(ids)), []string{"0", "0", "4294967295"})
}
