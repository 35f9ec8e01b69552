package nsexec

import (
	"path"

	"golang.org/x/sys/unix"
)

// Paths inside the container are found by openat2, from the descriptor of its root, and what is missing is made one
// name at a time in a directory that is open: no path that was checked is resolved a second time.

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
		{unix.O_NOFOLLOW, "O_NOFOLLOW"}, {unix.O_NOCTTY, "O_NOCTTY"}, {unix.O_CLOEXEC, "O_CLOEXEC"},
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
	c.openat2(label, c.root.Value(), c.Str(p), unix.O_PATH|flags, resolve).Into(fd).Else(special)
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
		base := c.Str(path.Base(dest))
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
		c.openat2(label, c.root.Value(), c.Str(dest[:i]), unix.O_PATH|unix.O_DIRECTORY, inRoot).Into(next).Else(missing)
		c.Add(dir, next.Value(), Const(0))
		c.Jump(there)
		c.Place(missing)
		makeIt := c.NewLabel()
		c.Branch(next.Value(), Equal, Errno(unix.ENOENT), makeIt)
		c.retry(next, retry)
		c.Place(makeIt)
		base := c.Str(path.Base(dest[:i]))
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
	sizeofStatx     = 256
	statxAttributes = 8
	statxNlink      = 16
	statxUID        = 20
	statxGID        = 24
	statxMode       = 28 // 16 bits, zeroes behind them
	statxRdevMajor  = 128
	statxRdevMinor  = 132
	statxMountID    = 144
)

func (c *compiler) statx(label string, fd Arg, mask uint64, st Arg) StepRef {
	return c.Syscall(label, unix.SYS_STATX, fd, c.Str(""), Const(unix.AT_EMPTY_PATH).As("AT_EMPTY_PATH"), Const(mask), st)
}
