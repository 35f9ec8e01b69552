package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Hierarchy is the place where groups are made: one parent in each hierarchy that is mounted. It may be used by several
// goroutines, and by several processes with the same parent.
type Hierarchy struct {
	mode    Mode
	log     *slog.Logger
	parent  string
	trees   []*tree // v1 first, and last the v2 one
	mounts  []Mount
	once    sync.Map
	devices deviceFilters
}

// tree is one mounted hierarchy.
type tree struct {
	mount       string // where it is mounted
	own         string // the cgroup of this process, from the mount point; "/" when it is outside of what is mounted
	v2          bool
	controllers []string // of v1

	parent atomic.Pointer[parent]

	mu   sync.Mutex // held while the parent is made
	made bool       // by us: ours to remove
}

// parent is the parent of all groups in one hierarchy.
type parent struct {
	fd          int
	path        string   // for Path and for errors
	controllers []string // that its children have
	err         error    // why there is none
}

// dir returns the descriptor of the parent, or why there is none.
func (t *tree) dir() (int, error) {
	p := t.parent.Load()
	return p.fd, p.err
}

// where returns the path of the parent.
func (t *tree) where() string { return t.parent.Load().path }

// has reports whether groups have a controller in this hierarchy.
func (t *tree) has(controller string) bool {
	return slices.Contains(t.parent.Load().controllers, controller)
}

// legacyControllers are the v1 hierarchies that a group is made in. A hierarchy of another kind (perf_event, net_cls) has
// no limit to set.
var legacyControllers = []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb",
	"rdma", "misc"}

// defaultParent is the parent when Config names none.
const defaultParent = "/coracle"

// systemdName is the v1 hierarchy in which systemd keeps track of processes.
const systemdName = "name=systemd"

// Open finds the hierarchies and makes the parent in each. That there are none, or none that may be written, is not an
// error: see [Hierarchy.Create].
func Open(config Config) (*Hierarchy, error) {
	at := config.Parent
	if at == "" {
		at = defaultParent
	}
	if !path.IsAbs(at) || path.Clean(at) != at || at == "/" || strings.ContainsAny(at, "\x00\n") {
		return nil, invalid("Parent", at, "must be a clean absolute path below the root, such as "+defaultParent)
	}
	log := config.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	trees, err := mounted()
	if err != nil {
		return nil, fmt.Errorf("cgroup: find the hierarchies: %w", err)
	}
	h := &Hierarchy{log: log, parent: at}
	var v1, v2 bool
	for _, t := range trees {
		v2 = v2 || t.v2
		v1 = v1 || !t.v2 && !slices.Contains(t.controllers, systemdName)
	}
	switch {
	case v1 && v2:
		h.mode = Hybrid
	case v1:
		h.mode = V1
	case v2:
		h.mode = V2
	}
	for _, t := range trees {
		h.mounts = append(h.mounts, Mount{Path: t.mount, Controllers: slices.Clone(t.controllers), V2: t.v2})
		// The v2 tree freezes as well, and kills: one group less to make.
		if v2 && !t.v2 && slices.Equal(t.controllers, []string{"freezer"}) {
			continue
		}
		if p, err := t.open(at); err == nil {
			t.parent.Store(p)
		} else {
			t.parent.Store(&parent{fd: -1, path: t.mount, err: err})
		}
		h.trees = append(h.trees, t)
	}
	return h, nil
}

// mounted returns the hierarchies that this process sees.
func mounted() ([]*tree, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no /proc
	}
	if err != nil {
		return nil, err
	}
	own, err := ownGroups()
	if err != nil {
		return nil, err
	}
	var trees []*tree
	var unified *tree
	seen := make(map[string]bool)
	for _, m := range mounts {
		t := &tree{mount: m.Mountpoint}
		key := ""
		if m.FSType == "cgroup2" {
			if unified != nil {
				continue
			}
			t.v2, unified = true, t
		} else {
			for _, o := range strings.Split(m.VFSOptions, ",") {
				if slices.Contains(legacyControllers, o) || o == systemdName {
					t.controllers = append(t.controllers, o)
				}
			}
			if len(t.controllers) == 0 || seen[t.controllers[0]] {
				continue
			}
			seen[t.controllers[0]] = true
			key = t.controllers[0]
			trees = append(trees, t)
		}
		t.own = below(m.Root, own[key])
	}
	if unified != nil {
		trees = append(trees, unified)
	}
	return trees, nil
}

// ownGroups returns the cgroup of this process by controller; "" stands for the v2 tree.
func ownGroups() (map[string]string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	own := make(map[string]string)
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, c := range strings.Split(f[1], ",") {
			own[c] = f[2]
		}
	}
	return own, nil
}

// below returns where the cgroup own lies below a mount point that shows the cgroup root.
func below(root, own string) string {
	if strings.HasPrefix(own, "/..") { // outside of our cgroup namespace
		return "/"
	}
	rest, ok := strings.CutPrefix(own, strings.TrimSuffix(root, "/")+"/")
	if !ok {
		return "/"
	}
	return "/" + rest
}

// open makes the parent, as far up as this process may.
func (t *tree) open(below string) (*parent, error) {
	var first error
	for _, base := range ancestors(t.own) {
		var p *parent
		var err error
		// Another process may remove the empty parent between mkdir and open (ENOENT), or open and read (ENODEV).
		for range 10 {
			if p, err = t.makeParent(base, below); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
				break
			}
		}
		if err == nil {
			return p, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// ancestors returns "/", "/a", "/a/b" for "/a/b".
func ancestors(p string) []string {
	all := []string{"/"}
	for i := 1; i < len(p); i++ {
		if p[i] == '/' {
			all = append(all, p[:i])
		}
	}
	if len(p) > 1 {
		all = append(all, p)
	}
	return all
}

// makeParent opens the parent below base and makes what is missing of it.
func (t *tree) makeParent(base, below string) (*parent, error) {
	fd, err := unix.Open(path.Join(t.mount, base), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path.Join(t.mount, base), Err: err}
	}
	at := path.Join(t.mount, base)
	for _, part := range strings.Split(below[1:], "/") {
		t.prepare(fd)
		err := unix.Mkdirat(fd, part, 0o755)
		made := err == nil
		t.made = t.made || made
		if err != nil && err != unix.EEXIST {
			unix.Close(fd)
			return nil, &fs.PathError{Op: "mkdir", Path: path.Join(at, part), Err: err}
		}
		at = path.Join(at, part)
		next, err := openDir(fd, part)
		if err == nil && (made || slices.Contains(t.controllers, "cpuset")) {
			err = t.adopt(fd, next)
		}
		// A parent that others made and that is theirs alone is no place for our groups.
		if err == nil {
			err = unix.Faccessat(next, ".", unix.W_OK, unix.AT_EACCESS)
		}
		unix.Close(fd)
		if err != nil {
			if next >= 0 {
				unix.Close(next)
			}
			return nil, &fs.PathError{Op: "open", Path: at, Err: err}
		}
		fd = next
	}
	t.prepare(fd)
	controllers := t.controllers
	if t.v2 {
		data, err := readAt(fd, "cgroup.subtree_control")
		if err != nil {
			unix.Close(fd)
			return nil, &fs.PathError{Op: "read", Path: path.Join(at, "cgroup.subtree_control"), Err: err}
		}
		controllers = strings.Fields(string(data))
	}
	return &parent{fd: fd, path: at, controllers: controllers}, nil
}

// prepare enables the controllers for the children of a v2 group, as far as it can: what is missing in the end is an
// error when a limit asks for it. A group that holds processes is left alone, except for the root, where that is allowed:
// the kernel would refuse most controllers, and turn the group into a threaded one for the rest.
func (t *tree) prepare(fd int) {
	if !t.v2 {
		return
	}
	has, err := readAt(fd, "cgroup.controllers")
	if err != nil {
		return
	}
	on, err := readAt(fd, "cgroup.subtree_control")
	if err != nil {
		return
	}
	enabled := strings.Fields(string(on))
	var missing []string
	for _, c := range strings.Fields(string(has)) {
		if !slices.Contains(enabled, c) {
			missing = append(missing, "+"+c)
		}
	}
	if len(missing) == 0 {
		return
	}
	// Only the real root has no events; what is at the mount point may be the root of a cgroup namespace.
	if unix.Faccessat(fd, "cgroup.events", unix.F_OK, 0) == nil {
		if procs, err := readAt(fd, "cgroup.procs"); err != nil || len(procs) > 0 {
			return
		}
	}
	if writeAt(fd, "cgroup.subtree_control", strings.Join(missing, " ")) == nil {
		return
	}
	for _, c := range missing {
		_ = writeAt(fd, "cgroup.subtree_control", c)
	}
}

// adopt gives a v1 cpuset the processors and memory nodes of its parent, without which no process can join, and has the
// kernel do the same for its children.
func (t *tree) adopt(parent, fd int) error {
	if t.v2 || !slices.Contains(t.controllers, "cpuset") {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := readAt(fd, file)
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(have)) > 0 {
			continue
		}
		value, err := readAt(parent, file)
		if err != nil {
			return err
		}
		if err := writeAt(fd, file, string(bytes.TrimSpace(value))); err != nil {
			return err
		}
	}
	if on, err := readAt(fd, "cgroup.clone_children"); err == nil && string(bytes.TrimSpace(on)) == "1" {
		return nil
	}
	return writeAt(fd, "cgroup.clone_children", "1")
}

// reopen makes the parent again after another process, closing its hierarchy, removed the empty one. The descriptor keeps
// its number, which others may be using at this moment: they see the one directory or the other.
func (t *tree) reopen(below string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	fd, err := t.dir()
	if err != nil || !removed(fd) { // another goroutine was faster
		return err
	}
	p, err := t.open(below)
	if err != nil {
		return err
	}
	err = unix.Dup3(p.fd, fd, unix.O_CLOEXEC)
	unix.Close(p.fd)
	if err != nil {
		return os.NewSyscallError("dup3", err)
	}
	p.fd = fd
	t.parent.Store(p)
	return nil
}

// removed reports whether somebody has removed the group of the descriptor.
func removed(fd int) bool { return unix.Faccessat(fd, "cgroup.procs", unix.F_OK, 0) == unix.ENOENT }

// reopenRemoved opens the parents again that somebody has removed, and perhaps made anew, since they were opened: in a
// directory that is gone there seems to be no group.
func (h *Hierarchy) reopenRemoved() {
	for _, t := range h.trees {
		if fd, err := t.dir(); err == nil && removed(fd) {
			_ = t.reopen(h.parent) // else the group is not found, as before
		}
	}
}

// Close removes the parents if they are empty and were made here, and frees what Open took. It must not be called while another method runs.
func (h *Hierarchy) Close() error {
	for _, t := range h.trees {
		t.mu.Lock()
		if p := t.parent.Load(); p.fd >= 0 {
			// Whoever else uses it makes it again. Groups below it make this fail, as it should.
			if t.made || h.parent == defaultParent {
				_ = unix.Rmdir(p.path)
			}
			unix.Close(p.fd)
			t.parent.Store(&parent{fd: -1, path: p.path, err: fs.ErrClosed})
		}
		t.mu.Unlock()
	}
	h.devices.close()
	return nil
}

// Mode returns which hierarchies there are.
func (h *Hierarchy) Mode() Mode { return h.mode }

// Mounts returns the hierarchies that are mounted, writable or not: those of version 1 first.
func (h *Hierarchy) Mounts() []Mount { return slices.Clone(h.mounts) }

// Controllers returns the names of the controllers that groups can have, sorted.
func (h *Hierarchy) Controllers() []string {
	var all []string
	for _, t := range h.trees {
		if _, err := t.dir(); err != nil {
			continue
		}
		for _, c := range t.parent.Load().controllers {
			if c != systemdName {
				all = append(all, c)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Names returns the names of the groups below the parent in any hierarchy, sorted: those of this process and of any
// other with the same parent, and what either left behind.
func (h *Hierarchy) Names() ([]string, error) {
	var names []string
	for _, t := range h.trees {
		fd, err := t.dir()
		if err != nil {
			continue
		}
		found, err := subdirs(fd, 0)
		if err != nil && err != unix.ENOENT {
			return nil, &fs.PathError{Op: "read", Path: t.where(), Err: err}
		}
		for _, name := range found {
			if checkName(name) == nil {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// openDir opens a directory below another one, and never through a link.
func openDir(dir int, name string) (int, error) {
	return unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
}

// subdirs returns the names of the directories in dir; at most limit of them if that is not 0.
func subdirs(dir, limit int) ([]string, error) {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "cgroup")
	defer f.Close()
	var names []string
	for {
		entries, err := f.ReadDir(128)
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
				if limit > 0 && len(names) == limit {
					return names, nil
				}
			}
		}
		if err != nil || len(entries) == 0 {
			var pe *fs.PathError
			if errors.As(err, &pe) {
				return names, pe.Err
			}
			return names, nil
		}
	}
}

// logOnce logs a message the first time it is called with it.
func (h *Hierarchy) logOnce(msg string, args ...any) {
	if _, again := h.once.LoadOrStore(msg, true); !again {
		h.log.Warn(msg, args...)
	}
}

// maxFile bounds what is read from a file of the kernel's: the longest, memory.stat and cgroup.procs, have far less.
const maxFile = 16 << 20

// readAt returns the content of a small file.
func readAt(dir int, file string) ([]byte, error) {
	fd, err := retryOpen(dir, file, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n := 0
	for {
		m, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m == 0 {
			return buf[:n], nil
		}
		if n += m; n == len(buf) {
			if n >= maxFile {
				return nil, unix.EFBIG
			}
			buf = append(buf, make([]byte, n)...)
		}
	}
}

// writeAt writes a value to a file in one write, as the kernel wants it.
func writeAt(dir int, file, value string) error {
	fd, err := retryOpen(dir, file, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return writeFd(fd, value)
}

func writeFd(fd int, value string) error {
	for {
		n, err := syscall.Write(fd, []byte(value))
		if err == unix.EINTR {
			continue
		}
		if err == nil && n != len(value) {
			return unix.EIO
		}
		return err
	}
}

func retryOpen(dir int, file string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, file, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
