package nsexec

import (
	"strings"

	"golang.org/x/sys/unix"
)

// newFS opens a filesystem that is to be made.
func (c *compiler) newFS(label, kind string, fs Slot) {
	c.Syscall(label, unix.SYS_FSOPEN, c.Str(kind), Const(unix.FSOPEN_CLOEXEC).As("FSOPEN_CLOEXEC")).Into(fs)
}

// fsconfig sets an option, "key=value" or a flag, of a filesystem that is being made.
func (c *compiler) fsconfig(label string, fs Slot, option string) {
	key, value, ok := strings.Cut(option, "=")
	if !ok {
		c.Syscall(label+" with "+option, unix.SYS_FSCONFIG, fs.Value(), Const(unix.FSCONFIG_SET_FLAG).As("FSCONFIG_SET_FLAG"), c.Str(key))
		return
	}
	c.Syscall(label+" with "+option, unix.SYS_FSCONFIG, fs.Value(), Const(unix.FSCONFIG_SET_STRING).As("FSCONFIG_SET_STRING"),
		c.Str(key), c.Str(value), Const(0))
}

// createFS makes the filesystem and a detached mount of it.
func (c *compiler) createFS(label string, fs, mnt Slot, attributes uint64) {
	c.Syscall(label, unix.SYS_FSCONFIG, fs.Value(), Const(unix.FSCONFIG_CMD_CREATE).As("FSCONFIG_CMD_CREATE"))
	c.Syscall(label, unix.SYS_FSMOUNT, fs.Value(), Const(unix.FSMOUNT_CLOEXEC).As("FSMOUNT_CLOEXEC"),
		Const(attributes).As(flagText(attributes, attributeNames))).Into(mnt)
	c.done(fs)
}

// moveMount attaches a detached mount at an open place.
func (c *compiler) moveMount(label string, mount, at Arg) StepRef {
	return c.Syscall(label, unix.SYS_MOVE_MOUNT, mount, c.Str(""), at, c.Str(""),
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
	return c.Syscall(label, unix.SYS_OPEN_TREE, dir, c.Str(path), Const(flags).As(text))
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
	return c.Syscall(label, unix.SYS_MOUNT_SETATTR, mount, c.Str(""), flags, attr, Const(unix.MOUNT_ATTR_SIZE_VER0))
}

// mountCall emits mount(2).
func (c *compiler) mountCall(label, source, target, kind string, flags uint64, data string) StepRef {
	str := func(s string) Arg {
		if s == "" {
			return Const(0).As("NULL")
		}
		return c.Str(s)
	}
	return c.Syscall(label, unix.SYS_MOUNT, str(source), c.Str(target), str(kind),
		Const(flags).As(flagText(flags, mountFlagNames)), str(data))
}

func (c *compiler) fchdir(label string, fd Slot) {
	c.Syscall(label, unix.SYS_FCHDIR, fd.Value())
	c.cwd = fd
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
