package nsexec

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// The container's root is a mount that lies on top of the host's root, in a mount namespace of its own, while it is
// furnished: sources of bind mounts are the host's paths, everything inside is reached through the descriptor of the
// root by openat2 with RESOLVE_IN_ROOT. Last, pivot_root makes it the root, and the host's tree is detached.

const (
	inRoot  = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
	// ownFiles is for filesystems that the plan has just made, where nobody had a chance to mount or link anything.
	ownFiles = beneath | unix.RESOLVE_NO_XDEV
)

type how struct{ flags, resolve uint64 }

var (
	openNames = []flagName{
		{unix.O_WRONLY, "O_WRONLY"}, {unix.O_RDWR, "O_RDWR"}, {unix.O_PATH, "O_PATH"}, {unix.O_DIRECTORY, "O_DIRECTORY"},
		{unix.O_NOFOLLOW, "O_NOFOLLOW"}, {unix.O_CLOEXEC, "O_CLOEXEC"},
	}
	resolveNames = []flagName{
		{unix.RESOLVE_IN_ROOT, "RESOLVE_IN_ROOT"}, {unix.RESOLVE_BENEATH, "RESOLVE_BENEATH"},
		{unix.RESOLVE_NO_SYMLINKS, "RESOLVE_NO_SYMLINKS"}, {unix.RESOLVE_NO_MAGICLINKS, "RESOLVE_NO_MAGICLINKS"},
		{unix.RESOLVE_NO_XDEV, "RESOLVE_NO_XDEV"},
	}
)

// openat2 emits the opening of a path below dir.
func (c *compiler) openat2(label string, dir, path Arg, flags, resolve uint64) StepRef {
	h := how{flags | unix.O_CLOEXEC, resolve}
	a, ok := c.hows[h]
	if !ok {
		a = c.Words(Const(h.flags), Const(0), Const(h.resolve)).
			As("{" + flagText(h.flags, openNames) + ", " + flagText(h.resolve, resolveNames) + "}")
		if c.hows == nil {
			c.hows = make(map[how]Arg)
		}
		c.hows[h] = a
	}
	return c.Syscall(label, unix.SYS_OPENAT2, dir, path, a, Const(24))
}

// resolve opens a path inside the root with O_PATH into the slot. What happens when it does not exist is up to absent,
// which is laid out off the usual path and ends by falling through to the rest; if absent is nil, it is an error.
func (c *compiler) resolve(label, p string, flags, resolve uint64, fd Slot, absent func()) {
	retry, back, special := c.NewLabel(), c.NewLabel(), c.NewLabel()
	c.Place(retry)
	c.openat2(label, c.root.Value(), c.String(p), unix.O_PATH|flags, resolve).Into(fd).Else(special)
	c.Place(back)
	c.later(func() {
		c.Place(special)
		missing := c.NewLabel()
		c.Branch(fd.Value(), Equal, Errno(unix.ENOENT), missing)
		c.retry(fd, retry)
		c.Place(missing)
		if absent == nil {
			c.Jump(c.failTarget())
			return
		}
		absent()
		c.Jump(back)
	})
}

// retry goes back when openat2 gave up because something was renamed or mounted while it resolved "..", as other
// containers may do all the time, and fails otherwise.
func (c *compiler) retry(result Slot, to Label) {
	if !c.haveRetry {
		c.retries, c.haveRetry = c.NewSlot("retries"), true
	}
	c.Branch(result.Value(), NotEqual, Errno(unix.EAGAIN), c.failTarget())
	c.Add(c.retries, c.retries.Value(), Const(1))
	c.Branch(c.retries.Value(), Below, Const(maxRetries), to)
	c.Jump(c.failTarget())
}

const maxRetries = 100_000

// later puts steps behind the usual path.
func (c *compiler) later(emit func()) { c.late = append(c.late, emit) }

// emitLater lays out what later collected.
func (c *compiler) emitLater() {
	for len(c.late) > 0 {
		late := c.late
		c.late = nil
		for _, emit := range late {
			emit()
		}
	}
}

// A mountPoint says what is made when a mount point is missing.
type mountPoint int

const (
	directory  mountPoint = iota
	file                  // an empty regular file
	likeSource            // what the source of a bind mount is
)

// target opens a mount point, and makes it if it is missing.
func (c *compiler) target(dest string, kind mountPoint, source Slot, flags, resolve uint64) Slot {
	fd := c.temp("at")
	c.resolve("open the mount point "+dest, dest, flags, resolve, fd, func() {
		dir, made := c.parents(dest), c.NewLabel()
		label := "make the mount point " + dest
		base := c.String(path.Base(dest))
		makeDir := func() {
			c.Syscall(label, unix.SYS_MKDIRAT, dir.Value(), base, Const(0o755).As("0755"))
		}
		makeFile := func() {
			c.Syscall(label, unix.SYS_MKNODAT, dir.Value(), base, Const(unix.S_IFREG|0o644).As("S_IFREG|0644"), Const(0))
		}
		switch kind {
		case directory:
			makeDir()
		case file:
			makeFile()
		case likeSource:
			isDir := c.NewLabel()
			mode := c.modeOf("see whether the source of "+dest+" is a directory", source)
			c.Branch(mode.Value(), Equal, Const(unix.S_IFDIR).As("S_IFDIR"), isDir)
			makeFile()
			c.Jump(made)
			c.Place(isDir)
			makeDir()
		}
		c.Place(made)
		c.openat2("open the mount point "+dest, dir.Value(), base, unix.O_PATH|unix.O_NOFOLLOW, beneath).Into(fd)
	})
	return fd
}

// modeOf emits the reading of the type bits of an open file's mode.
func (c *compiler) modeOf(label string, fd Slot) Slot {
	st, mode := c.Zeroed(sizeofStatx), c.temp("mode")
	c.statx(label, fd.Value(), unix.STATX_TYPE, st)
	c.Load(mode, 4, st, Const(statxMode))
	c.And(mode, mode.Value(), Const(unix.S_IFMT).As("S_IFMT"))
	return mode
}

// Of struct statx.
const (
	sizeofStatx    = 256
	statxUID       = 20
	statxGID       = 24
	statxMode      = 28 // 16 bits, zeroes behind them
	statxRdevMajor = 128
	statxRdevMinor = 132
	statxMountID   = 144
)

func (c *compiler) statx(label string, fd Arg, mask uint64, st Arg) {
	c.Syscall(label, unix.SYS_STATX, fd, c.String(""), Const(unix.AT_EMPTY_PATH).As("AT_EMPTY_PATH"), Const(mask), st)
}

// parents opens the directory that dest is to be made in. Missing directories above it are made one at a time, each in
// the one that was opened before, so that nothing can come between.
func (c *compiler) parents(dest string) Slot {
	dir, next := c.temp("dir"), c.temp("next")
	c.Add(dir, c.root.Value(), Const(0))
	label := "make the directories above " + dest
	for i := 1; i < len(dest); i++ {
		if dest[i] != '/' {
			continue
		}
		there, missing, exists, retry := c.NewLabel(), c.NewLabel(), c.NewLabel(), c.NewLabel()
		c.Place(retry)
		c.openat2(label, c.root.Value(), c.String(dest[:i]), unix.O_PATH|unix.O_DIRECTORY, inRoot).Into(next).Else(missing)
		c.Add(dir, next.Value(), Const(0))
		c.Jump(there)
		c.Place(missing)
		makeIt := c.NewLabel()
		c.Branch(next.Value(), Equal, Errno(unix.ENOENT), makeIt)
		c.retry(next, retry)
		c.Place(makeIt)
		base := c.String(path.Base(dest[:i]))
		c.Syscall(label, unix.SYS_MKDIRAT, dir.Value(), base, Const(0o755).As("0755")).Into(next).Else(exists)
		c.Place(exists)
		ok := c.NewLabel()
		c.Branch(next.Value(), Equal, Const(0), ok)
		c.Branch(next.Value(), NotEqual, Errno(unix.EEXIST), c.failTarget())
		c.Place(ok)
		c.openat2(label, dir.Value(), base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, beneath).Into(dir)
		c.Place(there)
	}
	return dir
}

// moveMount attaches a detached mount at an open place.
func (c *compiler) moveMount(label string, mount, at Arg) StepRef {
	return c.Syscall(label, unix.SYS_MOVE_MOUNT, mount, c.String(""), at, c.String(""),
		Const(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH).As("F_EMPTY_PATH|T_EMPTY_PATH"))
}

// cloneMount makes a detached mount of an open place.
func (c *compiler) cloneMount(label string, of Arg, into Slot, recursive bool) StepRef {
	return c.openTree(label, of, "", recursive).Into(into)
}

func (c *compiler) openTree(label string, dir Arg, path string, recursive bool) StepRef {
	flags, text := uint64(unix.OPEN_TREE_CLONE|unix.O_CLOEXEC), "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC"
	if path == "" {
		flags, text = flags|unix.AT_EMPTY_PATH, text+"|AT_EMPTY_PATH"
	}
	if recursive {
		flags, text = flags|unix.AT_RECURSIVE, text+"|AT_RECURSIVE"
	}
	return c.Syscall(label, unix.SYS_OPEN_TREE, dir, c.String(path), Const(flags).As(text))
}

// setAttributes changes attributes and propagation of an open mount.
func (c *compiler) setAttributes(label string, mount Arg, set, clear, propagation uint64, recursive bool) StepRef {
	flags := Const(unix.AT_EMPTY_PATH).As("AT_EMPTY_PATH")
	if recursive {
		flags = Const(unix.AT_EMPTY_PATH | unix.AT_RECURSIVE).As("AT_EMPTY_PATH|AT_RECURSIVE")
	}
	text := "{set: " + flagText(set, attributeNames)
	if clear != 0 {
		text += ", clear: " + flagText(clear, attributeNames)
	}
	if propagation != 0 {
		text += ", propagation: " + flagText(propagation, mountFlagNames)
	}
	attr := c.Words(Const(set), Const(clear), Const(propagation), Const(0)).As(text + "}")
	return c.Syscall(label, unix.SYS_MOUNT_SETATTR, mount, c.String(""), flags, attr, Const(unix.MOUNT_ATTR_SIZE_VER0))
}

// mountCall emits mount(2).
func (c *compiler) mountCall(label, source, target, kind string, flags uint64, data string) StepRef {
	str := func(s string) Arg {
		if s == "" {
			return Const(0).As("NULL")
		}
		return c.String(s)
	}
	return c.Syscall(label, unix.SYS_MOUNT, str(source), c.String(target), str(kind),
		Const(flags).As(flagText(flags, mountFlagNames)), str(data))
}

func (c *compiler) fchdir(label string, fd Slot) {
	c.Syscall(label, unix.SYS_FCHDIR, fd.Value())
	c.cwd = fd
}

// checkRootfs validates what concerns the root and the paths in it.
func (c *compiler) checkRootfs() {
	if c.opts.Root == nil {
		c.absolute("root.path", c.spec.Root.Path)
	}
	l := c.spec.Linux
	if p := l.RootfsPropagation; p != "" {
		if propagation(p) == 0 {
			c.invalid("linux.rootfsPropagation", "unknown propagation %q", p)
		}
	}
	for i, p := range l.MaskedPaths {
		c.absolute(index("linux.maskedPaths", i), p)
	}
	for i, p := range l.ReadonlyPaths {
		c.absolute(index("linux.readonlyPaths", i), p)
	}
}

// hostPropagation is how the copy of the host's mounts relates to the host's. Only mounts that are to see what the
// host mounts later, or to let the host see what they mount, may stay related.
func (c *compiler) hostPropagation() uint64 {
	p := propagation(c.spec.Linux.RootfsPropagation) &^ unix.MS_REC
	if p == unix.MS_SHARED {
		// A shared root without a shared bind mount has nothing to share with the host.
		p = unix.MS_PRIVATE
	}
	for i := range c.mounts {
		for _, f := range c.mounts[i].propagation {
			switch {
			case c.mounts[i].kind != "bind":
			case f&unix.MS_SHARED != 0:
				return unix.MS_SHARED
			case f&unix.MS_SLAVE != 0:
				p = unix.MS_SLAVE
			}
		}
	}
	if p != unix.MS_SLAVE {
		p = unix.MS_PRIVATE
	}
	return p
}

// attachRoot emits the first steps: the mount namespace is cut off from the host's, and the root is attached.
func (c *compiler) attachRoot() {
	switch c.hostPropagation() {
	case unix.MS_SHARED:
		// What is attached to the host's root directory must not appear there; all other mounts stay shared.
		c.mountCall("keep mounts on / from the host", "", "/", "", unix.MS_PRIVATE, "")
	case unix.MS_SLAVE:
		c.mountCall("keep mounts from the host", "", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
	default:
		c.mountCall("separate mounts from the host's", "", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	c.root = c.NewSlot("root")
	if c.opts.Root != nil {
		c.Add(c.root, c.file("root", c.opts.Root), Const(0))
	} else {
		p := path.Clean(c.spec.Root.Path)
		if f := c.openAsHost("root.path", p, true); f != nil {
			c.Add(c.root, c.own("root", f), Const(0))
		} else {
			c.openTree("open the root "+p, Int(unix.AT_FDCWD), p, true).Into(c.root)
		}
	}
	if c.opts.Root != nil || c.hostPropagation() != unix.MS_PRIVATE || c.hostOpens() {
		// A copy of a mount of the host's may be its peer: what is mounted in it would appear on the host.
		c.setAttributes("keep mounts in the root from the host", c.root.Value(), 0, 0, unix.MS_PRIVATE, true)
	}
	// On top of the root directory: no mount point anywhere is needed.
	c.Syscall("attach the root", unix.SYS_MOVE_MOUNT, c.root.Value(), c.String(""), Int(unix.AT_FDCWD), c.String("/"),
		Const(unix.MOVE_MOUNT_F_EMPTY_PATH).As("F_EMPTY_PATH"))
}

// enterRoot emits the last steps: the root becomes the root, and the host's tree is gone.
func (c *compiler) enterRoot() {
	for _, emit := range c.final {
		emit()
	}
	if c.spec.Root != nil && c.spec.Root.Readonly {
		c.setAttributes("make the root read-only", c.root.Value(), unix.MOUNT_ATTR_RDONLY, 0, 0, false)
	}
	shared, old := c.hostPropagation() == unix.MS_SHARED, c.NewSlot("host")
	if shared {
		c.Syscall("open the host's root", unix.SYS_OPENAT, Int(unix.AT_FDCWD), c.String("/"),
			Const(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC).As("O_PATH|O_DIRECTORY|O_CLOEXEC"), Const(0)).Into(old)
	}
	dot, ramdisk, entered := c.String("."), c.NewLabel(), c.NewLabel()
	c.fchdir("go to the root", c.root)
	c.Syscall("make it the root", unix.SYS_PIVOT_ROOT, dot, dot).Else(ramdisk)
	if shared {
		c.Syscall("go to the host's root", unix.SYS_FCHDIR, old.Value())
		// Detaching shared mounts would detach them on the host as well.
		c.mountCall("separate mounts from the host's", "", ".", "", unix.MS_REC|unix.MS_SLAVE, "")
	}
	c.Syscall("detach the host's mounts", unix.SYS_UMOUNT2, dot, Const(unix.MNT_DETACH).As("MNT_DETACH"))
	c.Syscall("go to the new root", unix.SYS_CHDIR, c.String("/"))
	c.checkAlone()
	c.Place(entered)
	c.later(func() {
		// The root filesystem of the kernel's own initial ramdisk can be neither pivoted nor unmounted: EINVAL. Moving
		// the root over it and chroot hide it, which is weaker, since a process with CAP_SYS_CHROOT can leave a chroot.
		c.Place(ramdisk)
		c.Branch(slotResult.Value(), NotEqual, Errno(unix.EINVAL), c.failTarget())
		c.Syscall("enter the root on an initial ramdisk", unix.SYS_CHROOT, dot)
		c.Syscall("go to the new root", unix.SYS_CHDIR, c.String("/"))
		c.Jump(entered)
	})
	if p := propagation(c.spec.Linux.RootfsPropagation); p != 0 && p&unix.MS_PRIVATE == 0 {
		c.mountCall("set the root's propagation", "", "/", "", p, "")
	}
}

// checkAlone makes sure that nothing is left on top of the root, where /.. would lead. A root that was copied from the
// host could have brought something along.
func (c *compiler) checkAlone() {
	if c.opts.Root != nil {
		return
	}
	var id [2]Slot
	for i, p := range []string{"/", "/.."} {
		st := c.Zeroed(sizeofStatx)
		id[i] = c.NewSlot("id")
		c.Syscall("see what is mounted on "+p, unix.SYS_STATX, Int(unix.AT_FDCWD), c.String(p), Const(0), Const(unix.STATX_MNT_ID).As("STATX_MNT_ID"), st)
		c.Load(id[i], 8, st, Const(statxMountID))
	}
	crowded := c.NewLabel()
	c.Branch(id[0].Value(), NotEqual, id[1].Value(), crowded)
	c.later(func() {
		c.Place(crowded)
		c.refuse("something is mounted on top of the container's root")
	})
}

// usuallyDirectory says which masked paths are directories, as far as is known. It only decides what is tried first.
func usuallyDirectory(p string) bool {
	switch p {
	case "/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap":
		return true
	}
	return strings.HasSuffix(p, "/thermal_throttle")
}

// maskPaths hides what the container must not see: files behind its null device, directories behind an empty one.
func (c *compiler) maskPaths() {
	if len(c.spec.Linux.MaskedPaths) == 0 {
		return
	}
	null := c.nullDevice()
	fs, mask, masked := c.temp("fs"), c.NewSlot("mask"), c.NewSlot("masked")
	c.newFS("make the mask for directories", "tmpfs", fs)
	c.fsconfig("make the mask for directories", fs, "mode=555")
	c.createFS("make the mask for directories", fs, mask,
		unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)

	for _, p := range c.spec.Linux.MaskedPaths {
		p = path.Clean(p)
		label := "mask " + p
		at, clone, moved := c.temp("at"), c.temp("clone"), c.temp("moved")
		asFile := func(other Label) {
			c.cloneMount(label, null.Value(), clone, false)
			c.moveMount(label, clone.Value(), at.Value()).Into(moved).Else(other)
			c.done(clone)
		}
		// The mask itself goes to the first directory: before Linux 6.15 only what is attached can be cloned.
		asDirectory := func(other Label) {
			again, done := c.NewLabel(), c.NewLabel()
			c.Branch(masked.Value(), NotEqual, Const(0), again)
			c.moveMount(label, mask.Value(), at.Value()).Into(moved).Else(other)
			c.Add(masked, Const(1), Const(0))
			c.Place(done)
			c.later(func() {
				c.Place(again)
				c.cloneMount(label, mask.Value(), clone, false)
				c.moveMount(label, clone.Value(), at.Value()).Into(moved).Else(other)
				c.done(clone)
				c.Jump(done)
			})
		}
		first, second := asFile, asDirectory
		if usuallyDirectory(p) {
			first, second = second, first
		}
		next, other := c.NewLabel(), c.NewLabel()
		c.openPath(label, p, at, next)
		first(other)
		c.done(at)
		c.Place(next)
		c.later(func() {
			// A file cannot be mounted on a directory, nor the other way round.
			c.Place(other)
			try := c.NewLabel()
			c.Branch(moved.Value(), Equal, Errno(unix.EINVAL), try)
			c.Branch(moved.Value(), NotEqual, Errno(unix.ENOTDIR), c.failTarget())
			c.Place(try)
			second(c.failTarget())
			c.Jump(next)
		})
	}
}

// openPath opens a path in the root, and goes on at absent if it does not exist.
func (c *compiler) openPath(label, p string, at Slot, absent Label) {
	special, retry := c.NewLabel(), c.NewLabel()
	if rel, ok := strings.CutPrefix(p, "/proc/"); ok && c.procOnProc && plainProc(rel) {
		c.openat2(label, c.procFS.Value(), c.String(rel), unix.O_PATH, beneath).Into(at).Else(special)
		c.later(func() {
			c.Place(special)
			c.Branch(at.Value(), Equal, Errno(unix.ENOENT), absent)
			c.Jump(c.failTarget())
		})
		return
	}
	c.Place(retry)
	c.openat2(label, c.root.Value(), c.String(p), unix.O_PATH, inRoot).Into(at).Else(special)
	c.later(func() {
		c.Place(special)
		c.Branch(at.Value(), Equal, Errno(unix.ENOENT), absent)
		c.Branch(at.Value(), Equal, Errno(unix.ENOTDIR), absent)
		c.retry(at, retry)
	})
}

// plainProc says whether a path in procfs has no symlink: /proc/self is one, and so is what depends on it.
func plainProc(rel string) bool {
	first, _, _ := strings.Cut(rel, "/")
	switch first {
	case "self", "thread-self", "net", "mounts":
		return false
	}
	return true
}

// done closes a descriptor that is not needed any more, if there are so many that they could reach the limit of open
// files. A few are cheaper left to execve.
func (c *compiler) done(fds ...Slot) {
	if !c.crowded {
		return
	}
	for _, fd := range fds {
		c.Syscall("close it", unix.SYS_CLOSE, fd.Value()).Ignore()
	}
}

// crowd is how many mounts, masks and devices a plan may have without closing what it opened for them: twice to four
// times as many descriptors, where 1024 is the usual limit.
const crowd = 100

// readonlyPaths binds paths onto themselves, read-only.
func (c *compiler) readonlyPaths() {
	for _, p := range c.spec.Linux.ReadonlyPaths {
		p = path.Clean(p)
		at, clone := c.temp("at"), c.temp("clone")
		absent := c.NewLabel()
		label := "make " + p + " read-only"
		c.openPath(label, p, at, absent)
		c.cloneMount(label, at.Value(), clone, true)
		c.setAttributes(label, clone.Value(), unix.MOUNT_ATTR_RDONLY, 0, 0, true)
		c.moveMount(label, clone.Value(), at.Value())
		c.done(at, clone)
		c.Place(absent)
	}
}

// fsconfig sets an option, "key=value" or a flag, of a filesystem that is being made.
func (c *compiler) fsconfig(label string, fs Slot, option string) {
	key, value, ok := strings.Cut(option, "=")
	if !ok {
		c.Syscall(label+" with "+option, unix.SYS_FSCONFIG, fs.Value(), Const(unix.FSCONFIG_SET_FLAG).As("FSCONFIG_SET_FLAG"), c.String(key))
		return
	}
	c.Syscall(label+" with "+option, unix.SYS_FSCONFIG, fs.Value(), Const(unix.FSCONFIG_SET_STRING).As("FSCONFIG_SET_STRING"),
		c.String(key), c.String(value), Const(0))
}
