package nsexec

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

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
	fs, mask, used := c.temp("fs"), c.NewSlot("mask"), c.NewSlot("used")
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
			c.Branch(used.Value(), NotEqual, Const(0), again)
			c.moveMount(label, mask.Value(), at.Value()).Into(moved).Else(other)
			c.Add(used, Const(1), Const(0))
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
		next, masked, other := c.NewLabel(), c.NewLabel(), c.NewLabel()
		c.openPath(label, p, at, next)
		first(other)
		c.Place(masked)
		c.done(at)
		c.Place(next)
		c.later(func() {
			// A file cannot be mounted on a directory, nor the other way round.
			c.Place(other)
			try := c.NewLabel()
			c.Branch(moved.Value(), Equal, Errno(unix.EINVAL), try)
			c.Branch(moved.Value(), NotEqual, Errno(unix.ENOTDIR), c.failTarget())
			c.Place(try)
			if !usuallyDirectory(p) {
				c.done(clone)
			}
			second(c.failTarget())
			c.Jump(masked)
		})
	}
}

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

// openPath opens a path in the root, and goes on at absent if it does not exist.
func (c *compiler) openPath(label, p string, at Slot, absent Label) {
	special, retry := c.NewLabel(), c.NewLabel()
	if rel, ok := strings.CutPrefix(p, "/proc/"); ok && c.procOnProc && plainProc(rel) {
		c.openat2(label, c.procFS.Value(), c.Str(rel), unix.O_PATH, beneath).Into(at).Else(special)
		c.later(func() {
			c.Place(special)
			c.Branch(at.Value(), Equal, Errno(unix.ENOENT), absent)
			c.Jump(c.failTarget())
		})
		return
	}
	c.Place(retry)
	c.openat2(label, c.root.Value(), c.Str(p), unix.O_PATH, inRoot).Into(at).Else(special)
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

// nullDevice opens the null device of the container, which masks files. It must be what it says: a mask that is a
// link or file of the image's would hide nothing (CVE-2025-31133).
func (c *compiler) nullDevice() Slot {
	null, st := c.NewSlot("null"), c.Zeroed(sizeofStatx)
	const label = "open the container's /dev/null"
	if c.haveDev {
		c.openat2(label, c.dev.Value(), c.Str("null"), unix.O_PATH|unix.O_NOFOLLOW, beneath).Into(null)
	} else {
		c.resolve(label, "/dev/null", 0, inRoot, null, nil)
	}
	kind, major, minor, wrong := c.temp("kind"), c.temp("major"), c.temp("minor"), c.NewLabel()
	c.statx("see what /dev/null is", null.Value(), unix.STATX_TYPE, st)
	c.Load(kind, 4, st, Const(statxMode))
	c.And(kind, kind.Value(), Const(unix.S_IFMT).As("S_IFMT"))
	c.Load(major, 4, st, Const(statxRdevMajor))
	c.Load(minor, 4, st, Const(statxRdevMinor))
	c.Branch(kind.Value(), NotEqual, Const(unix.S_IFCHR).As("S_IFCHR"), wrong)
	c.Branch(major.Value(), NotEqual, Const(1), wrong)
	c.Branch(minor.Value(), NotEqual, Const(3), wrong)
	c.later(func() {
		c.Place(wrong)
		c.refuse("the container's /dev/null is not the null device (1:3)")
	})
	return null
}
