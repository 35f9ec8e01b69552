package nsexec

import (
	"path"

	"golang.org/x/sys/unix"
)

// The container's root is a mount that lies on top of the host's root, in a mount namespace of its own, while it is
// furnished: sources of bind mounts are the host's paths, everything inside is reached through the descriptor of the
// root by openat2 with RESOLVE_IN_ROOT. Last, pivot_root makes it the root, and the host's tree is detached.

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
	if c.hostRelation == 0 {
		c.hostRelation = c.findHostRelation()
	}
	return c.hostRelation
}

func (c *compiler) findHostRelation() uint64 {
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
		c.mountCall("separate mounts from the host's (in a chroot, / is no mount)", "", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
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
	c.Syscall("attach the root", unix.SYS_MOVE_MOUNT, c.root.Value(), c.Str(""), Int(unix.AT_FDCWD), c.Str("/"),
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
		c.Syscall("open the host's root", unix.SYS_OPENAT, Int(unix.AT_FDCWD), c.Str("/"),
			Const(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC).As("O_PATH|O_DIRECTORY|O_CLOEXEC"), Const(0)).Into(old)
	}
	dot, ramdisk, entered := c.Str("."), c.NewLabel(), c.NewLabel()
	c.fchdir("go to the root", c.root)
	c.Syscall("make it the root", unix.SYS_PIVOT_ROOT, dot, dot).Else(ramdisk)
	if shared {
		c.Syscall("go to the host's root", unix.SYS_FCHDIR, old.Value())
		// Detaching shared mounts would detach them on the host as well.
		c.mountCall("separate mounts from the host's", "", ".", "", unix.MS_REC|unix.MS_SLAVE, "")
	}
	c.Syscall("detach the host's mounts", unix.SYS_UMOUNT2, dot, Const(unix.MNT_DETACH).As("MNT_DETACH"))
	c.Syscall("go to the new root", unix.SYS_CHDIR, c.Str("/"))
	c.Place(entered)
	c.checkAlone()
	c.later(func() {
		// The initial ramdisk can be neither pivoted nor unmounted: EINVAL. Our root lies on top of it, as the root of a
		// machine does that was booted through one, and whatever leaves the chroot by .. is back in our root. It is
		// weaker in that a container with CAP_SYS_ADMIN could unmount its root and see the ramdisk.
		// Where the importing program is in a chroot itself, the same error comes back, and .. would lead out of both.
		c.Place(ramdisk)
		c.Branch(slotResult.Value(), NotEqual, Errno(unix.EINVAL), c.failTarget())
		st, attributes, chrooted := c.Zeroed(sizeofStatx), c.temp("attributes"), c.NewLabel()
		c.Syscall("see whether the host's root is a mount", unix.SYS_STATX, Int(unix.AT_FDCWD), c.Str("/"), Const(0),
			Const(unix.STATX_TYPE).As("STATX_TYPE"), st)
		c.Load(attributes, 8, st, Const(statxAttributes))
		c.And(attributes, attributes.Value(), Const(unix.STATX_ATTR_MOUNT_ROOT).As("STATX_ATTR_MOUNT_ROOT"))
		c.Branch(attributes.Value(), Equal, Const(0), chrooted)
		c.Syscall("enter the root on an initial ramdisk", unix.SYS_CHROOT, dot)
		c.Syscall("go to the new root", unix.SYS_CHDIR, c.Str("/"))
		c.Jump(entered)
		c.Place(chrooted)
		c.refuse("the importing program runs in a chroot, out of which a container would find its way: its root must be a mount")
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
	names := []string{"root_id", "top_id"}
	for i, p := range []string{"/", "/.."} {
		st := c.Zeroed(sizeofStatx)
		id[i] = c.NewSlot(names[i])
		c.Syscall("see what is mounted on "+p, unix.SYS_STATX, Int(unix.AT_FDCWD), c.Str(p), Const(0), Const(unix.STATX_MNT_ID).As("STATX_MNT_ID"), st)
		c.Load(id[i], 8, st, Const(statxMountID))
	}
	crowded := c.NewLabel()
	c.Branch(id[0].Value(), NotEqual, id[1].Value(), crowded)
	c.later(func() {
		c.Place(crowded)
		c.refuse("something is mounted on top of the container's root")
	})
}
