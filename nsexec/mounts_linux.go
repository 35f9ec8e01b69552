package nsexec

import (
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mountAll emits the mounts of the spec in their order.
func (c *compiler) mountAll() {
	for i := range c.mounts {
		m := &c.mounts[i]
		switch {
		case m.remount:
			c.remount(m)
		case m.kind == "bind":
			c.bind(m)
		case m.kind == "cgroup":
			c.mountCgroup(m)
		case m.needsFD():
			c.mountFS(m)
		default:
			c.mountPlain(m)
		}
		if m.dest == "/dev" && m.kind == "tmpfs" && !m.remount {
			c.makeDevices()
		}
	}
}

// resolveFor restricts how a mount point is found. What the plan relies on later must not be a symlink of the image's
// (CVE-2019-19921: a fake /proc).
func resolveFor(m *mount) uint64 {
	if m.dest == "/dev" || m.kind == "proc" || m.kind == "sysfs" {
		return inRoot | unix.RESOLVE_NO_SYMLINKS
	}
	return inRoot
}

func (m *mount) title() string {
	t := "mount " + m.kind + " on " + m.dest
	if len(m.data) > 0 {
		t += " with " + strings.Join(m.data, ",")
	}
	return t
}

// mountPlain emits a mount by mount(2) on the directory that the process changes to.
func (c *compiler) mountPlain(m *mount) {
	flags := mountFlags(m.set) | m.super
	label, data, source := m.title(), strings.Join(m.data, ","), m.source
	if source == "" {
		source = m.kind
	}
	if c.haveDev && m.underDev() && !c.inDev(m) {
		// Nobody but this plan has seen our /dev yet, and there is nothing of this name in it.
		if c.cwd != c.dev {
			c.fchdir("go to /dev", c.dev)
		}
		name := path.Base(m.dest)
		c.Syscall("make the mount point "+m.dest, unix.SYS_MKDIRAT, c.dev.Value(), c.Str(name), Const(0o755).As("0755"))
		c.mountCall(label, source, name, m.kind, flags, data)
		return
	}
	at := c.target(m.dest, directory, 0, unix.O_DIRECTORY, resolveFor(m))
	c.fchdir("go to "+m.dest, at)
	c.mountCall(label, source, ".", m.kind, flags, data)
	c.done(at)
}

// mountFS emits a mount by fsopen and fsmount.
func (c *compiler) mountFS(m *mount) {
	fs, mnt := c.temp("fs"), c.temp("mount")
	readOnlyLater := m.set&unix.MOUNT_ATTR_RDONLY != 0 && (m.kind == "tmpfs" || m.dest == "/dev")
	if m.kind == "proc" || m.dest == "/dev" || readOnlyLater {
		mnt = c.NewSlot(strings.ReplaceAll(m.dest[1:], "/", "_"))
	}
	label := "mount " + m.kind + " on " + m.dest
	c.newFS(label, m.kind, fs)
	if m.source != "" {
		c.fsconfig(label, fs, "source="+m.source)
	}
	for _, o := range m.data {
		c.fsconfig(label, fs, o)
	}
	for _, f := range []struct {
		flag uint64
		name string
	}{{unix.MS_SYNCHRONOUS, "sync"}, {unix.MS_DIRSYNC, "dirsync"}, {unix.MS_LAZYTIME, "lazytime"}, {unix.MS_MANDLOCK, "mand"}} {
		if m.super&f.flag != 0 {
			c.fsconfig(label, fs, f.name)
		}
	}
	// A tmpfs and /dev are read-only when all that belongs into them is there.
	set := m.set
	if readOnlyLater {
		set &^= unix.MOUNT_ATTR_RDONLY
	}
	c.createFS(label, fs, mnt, set)
	at := c.target(m.dest, directory, 0, unix.O_DIRECTORY, resolveFor(m))
	if m.copyUp {
		c.copyUp(m, mnt, at)
	} else {
		c.moveMount(label, mnt.Value(), at.Value())
	}
	if readOnlyLater {
		c.final = append(c.final, func() {
			c.setAttributes("make "+m.dest+" read-only", mnt.Value(), unix.MOUNT_ATTR_RDONLY, 0, 0, false)
		})
	}
	c.attributesAndPropagation(m, mnt)
	c.done(at)
	switch {
	case m.kind == "proc" && !c.haveProc:
		c.procFS, c.haveProc, c.procOnProc = mnt, true, m.dest == "/proc" && !c.mountedAgain(m)
	case m.dest == "/dev" && m.kind == "tmpfs":
		c.dev, c.haveDev = mnt, true
	case m.kind != "proc" && !readOnlyLater:
		c.done(mnt)
	}
}

// mountedAgain says whether another mount of the spec has the same mount point.
func (c *compiler) mountedAgain(m *mount) bool {
	for i := range c.mounts {
		if o := &c.mounts[i]; o != m && o.dest == m.dest {
			return true
		}
	}
	return false
}

// inDev says whether there can be something of the mount point's name in /dev already.
func (c *compiler) inDev(m *mount) bool {
	name := path.Base(m.dest)
	return c.mountedAgain(m) ||
		slices.ContainsFunc(deviceLinks[:], func(l [2]string) bool { return l[0] == name }) ||
		slices.ContainsFunc(c.devices, func(d device) bool { return d.path == m.dest }) ||
		slices.ContainsFunc(c.mounts, func(o mount) bool { return strings.HasPrefix(o.dest, m.dest+"/") })
}

// attributesAndPropagation emits what is set recursively, and the propagation, of an open mount.
func (c *compiler) attributesAndPropagation(m *mount, mnt Slot) {
	if m.setAll|m.clearAll != 0 {
		c.setAttributes("set the recursive attributes of "+m.dest, mnt.Value(), m.setAll, m.clearAll&^m.setAll|atimeMask(m.setAll), 0, true)
	}
	if m.kind == "bind" && !m.remount {
		c.separate(m, mnt)
	}
	for _, p := range m.propagation {
		if p&unix.MS_PRIVATE != 0 && !m.remount && allPrivate(m.propagation) {
			continue // as it is
		}
		c.setAttributes("set the propagation of "+m.dest, mnt.Value(), 0, 0, p&^unix.MS_REC, p&unix.MS_REC != 0)
	}
}

// separate emits what keeps mounts in a bind mount from the host, unless the host is to see them: a copy is related to
// its source, and so are copies of what is mounted below it, whatever is asked for the bind mount itself.
func (c *compiler) separate(m *mount, mnt Slot) {
	asks := func(flag uint64) bool {
		return slices.ContainsFunc(m.propagation, func(p uint64) bool { return p&flag != 0 })
	}
	label := "keep mounts in " + m.dest + " from the host"
	switch {
	case asks(unix.MS_SHARED):
	case !asks(unix.MS_SLAVE):
		if c.hostPropagation() != unix.MS_PRIVATE || c.hostOpens() {
			c.setAttributes(label, mnt.Value(), 0, 0, unix.MS_PRIVATE, true)
		}
	case slices.Contains(m.propagation, unix.MS_SLAVE|unix.MS_REC):
	case c.hostPropagation() == unix.MS_SHARED || c.hostOpens():
		c.setAttributes(label, mnt.Value(), 0, 0, unix.MS_SLAVE, true)
	}
}

// atimeMask is what mount_setattr(2) wants cleared when one of the access time attributes is set.
func atimeMask(set uint64) uint64 {
	if set&unix.MOUNT_ATTR__ATIME != 0 {
		return unix.MOUNT_ATTR__ATIME
	}
	return 0
}

// bind emits a bind mount: a detached copy of the source's mount, its attributes, then the place where it goes.
func (c *compiler) bind(m *mount) {
	source := c.temp("source")
	if f := c.openAsHost(m.field+".source", m.source, m.recursive); f != nil {
		c.Add(source, c.own(m.source, f), Const(0))
	} else {
		c.openTree("open "+m.source+" to bind it on "+m.dest, Int(unix.AT_FDCWD), m.source, m.recursive).Into(source)
	}
	if m.set|m.clear != 0 {
		c.setAttributes("set the attributes of "+m.dest, source.Value(), m.set, m.clear&^(m.set&^unix.MOUNT_ATTR__ATIME), 0, false)
	}
	at := c.target(m.dest, likeSource, source, 0, inRoot)
	c.attributesAndPropagation(m, source)
	c.moveMount("bind "+m.source+" on "+m.dest, source.Value(), at.Value())
	c.done(source, at)
}

// hostOpens says whether sources are opened here rather than by the plan.
func (c *compiler) hostOpens() bool {
	return c.namespaces.fresh&unix.CLONE_NEWUSER != 0 && os.Geteuid() == 0
}

// openAsHost opens the source of a bind mount for a container in a new user namespace, whose root may not be allowed to
// reach it. Without privilege there is no other way than from inside, as the importing program's own user: nil.
func (c *compiler) openAsHost(field, source string, recursive bool) *os.File {
	if !c.hostOpens() {
		return nil
	}
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, flags)
	if err != nil {
		c.invalid(field, "open %s to bind it: %w", source, err)
		return nil
	}
	return os.NewFile(uintptr(fd), source)
}

// remount changes what is mounted at the destination already.
func (c *compiler) remount(m *mount) {
	at := c.temp("at")
	c.resolve("open "+m.dest, m.dest, 0, inRoot, at, nil)
	if m.kind == "bind" || m.kind == "" && m.super == 0 && len(m.data) == 0 {
		if m.set|m.clear != 0 {
			c.setAttributes("set the attributes of "+m.dest, at.Value(), m.set, m.clear&^(m.set&^unix.MOUNT_ATTR__ATIME), 0, m.recursive)
		}
	} else {
		c.fchdir("go to "+m.dest, at)
		c.mountCall("remount "+m.dest, m.source, ".", m.kind, unix.MS_REMOUNT|mountFlags(m.set)|m.super, strings.Join(m.data, ","))
	}
	c.attributesAndPropagation(m, at)
}

// copyUp mounts a tmpfs that begins with what the image has at its mount point. Nothing is copied before it is written:
// the content shows through an overlay whose upper layer is the tmpfs, which costs the same for a large directory as
// for an empty one.
func (c *compiler) copyUp(m *mount, tmpfs, at Slot) {
	label := "show what " + m.dest + " had"
	lower, st := c.temp("lower"), c.Zeroed(sizeofStatx)
	c.statx(label, at.Value(), unix.STATX_MODE|unix.STATX_UID|unix.STATX_GID, st)
	c.cloneMount(label, at.Value(), lower, false)
	c.moveMount("mount tmpfs on "+m.dest, tmpfs.Value(), at.Value())
	for _, name := range []string{"lower", "upper", "work"} {
		c.Syscall(label, unix.SYS_MKDIRAT, tmpfs.Value(), c.Str(name), Const(0o755).As("0755"))
	}
	// The upper layer gives the directory its owner and mode: those that it had, unless the options say otherwise.
	own := func(option string, base int, offset uint64, mask uint64) Arg {
		for _, o := range m.data {
			if v, ok := strings.CutPrefix(o, option+"="); ok {
				n, err := strconv.ParseUint(v, base, 32)
				if err != nil {
					c.invalid(m.field+".options", "%s of a tmpfs: %w", o, err)
				}
				return Const(n & mask)
			}
		}
		slot := c.temp(option)
		c.Load(slot, 4, st, Const(offset))
		c.And(slot, slot.Value(), Const(mask))
		return slot.Value()
	}
	c.Syscall(label, unix.SYS_FCHOWNAT, tmpfs.Value(), c.Str("upper"),
		own("uid", 10, statxUID, 1<<32-1), own("gid", 10, statxGID, 1<<32-1), Const(0))
	c.Syscall(label, unix.SYS_FCHMODAT, tmpfs.Value(), c.Str("upper"), own("mode", 8, statxMode, 0o7777))
	c.Syscall(label, unix.SYS_MOVE_MOUNT, lower.Value(), c.Str(""), tmpfs.Value(), c.Str("lower"),
		Const(unix.MOVE_MOUNT_F_EMPTY_PATH).As("F_EMPTY_PATH"))
	c.fchdir("go to "+m.dest, tmpfs)
	data := "lowerdir=lower,upperdir=upper,workdir=work,index=off,metacopy=off"
	if c.namespaces.has(unix.CLONE_NEWUSER) {
		data += ",userxattr"
	}
	c.mountCall(label, "tmpcopyup", ".", "overlay", mountFlags(m.set), data)
}
