package nsexec

import (
	"io/fs"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultDevices are the devices that every container has (config-linux.md, "Default Devices").
var defaultDevices = [...]device{
	{path: "/dev/null", mode: unix.S_IFCHR | 0o666, major: 1, minor: 3},
	{path: "/dev/zero", mode: unix.S_IFCHR | 0o666, major: 1, minor: 5},
	{path: "/dev/full", mode: unix.S_IFCHR | 0o666, major: 1, minor: 7},
	{path: "/dev/random", mode: unix.S_IFCHR | 0o666, major: 1, minor: 8},
	{path: "/dev/urandom", mode: unix.S_IFCHR | 0o666, major: 1, minor: 9},
	{path: "/dev/tty", mode: unix.S_IFCHR | 0o666, major: 5, minor: 0},
}

// deviceLinks are the symlinks in /dev (runtime-linux.md, "Dev symbolic links"). The /dev/ptmx of the default devices
// is one of them.
var deviceLinks = [...][2]string{
	{"fd", "/proc/self/fd"},
	{"stdin", "/proc/self/fd/0"},
	{"stdout", "/proc/self/fd/1"},
	{"stderr", "/proc/self/fd/2"},
	{"ptmx", "pts/ptmx"},
	{"core", "/proc/kcore"},
}

type device struct {
	path         string
	mode         uint32
	major, minor uint32
	uid, gid     uint32
	made         bool
}

func (c *compiler) checkDevices() {
	c.devices = append(make([]device, 0, len(defaultDevices)+len(c.spec.Linux.Devices)), defaultDevices[:]...)
	for i := range c.spec.Linux.Devices {
		d, ok := c.checkDevice(index("linux.devices", i), &c.spec.Linux.Devices[i])
		if !ok {
			return
		}
		for k := range c.devices {
			if c.devices[k].path == d.path {
				c.devices[k].path = "" // the spec's own wins
			}
		}
		c.devices = append(c.devices, d)
	}
}

func (c *compiler) checkDevice(field string, s *specs.LinuxDevice) (device, bool) {
	d := device{path: c.absolute(field+".path", s.Path), mode: 0o666}
	if s.FileMode != nil {
		m := *s.FileMode
		d.mode = uint32(m.Perm())
		// Both Go's bits and the kernel's are found in specs.
		if m&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 || uint32(m)&0o7000 != 0 {
			c.unsupported(field+".fileMode", "other bits than permissions of a device")
		}
	}
	switch s.Type {
	case "c", "u":
		d.mode |= unix.S_IFCHR
	case "b":
		d.mode |= unix.S_IFBLK
	case "p":
		d.mode |= unix.S_IFIFO
	default:
		c.invalid(field+".type", "%q is none of c, u, b and p", s.Type)
	}
	if s.Type != "p" {
		// mknod(2) has 12 bits for the major number and 20 for the minor one.
		if s.Major < 0 || s.Major >= 1<<12 {
			c.invalid(field+".major", "%d is out of range", s.Major)
		}
		if s.Minor < 0 || s.Minor >= 1<<20 {
			c.invalid(field+".minor", "%d is out of range", s.Minor)
		}
		d.major, d.minor = uint32(s.Major), uint32(s.Minor)
	}
	if s.UID != nil {
		d.uid = *s.UID
	}
	if s.GID != nil {
		d.gid = *s.GID
	}
	if d.path == "/" {
		c.invalid(field+".path", "the root is no device")
	}
	return d, c.bad == nil
}

func (d *device) dev() uint64 { return unix.Mkdev(d.major, d.minor) }

// inUserNamespace says whether the payload runs in another user namespace than the host's, where nobody may make
// device nodes: the host's are bound instead.
func (c *compiler) inUserNamespace() bool { return c.namespaces.has(unix.CLONE_NEWUSER) }

// makeDevices emits the devices and links in our own /dev, right after it was mounted.
func (c *compiler) makeDevices() {
	for i := range c.devices {
		if d := &c.devices[i]; d.path != "" && path.Dir(d.path) == "/dev" {
			c.makeDevice(d, c.dev)
			d.made = true
		}
	}
	for _, l := range deviceLinks {
		if slices.ContainsFunc(c.devices, func(d device) bool { return d.path == "/dev/"+l[0] }) {
			continue
		}
		c.Syscall("link /dev/"+l[0], unix.SYS_SYMLINKAT, c.Str(l[1]), c.dev.Value(), c.Str(l[0]))
	}
}

// otherDevices emits the devices that are not immediately in our own /dev, after all mounts.
func (c *compiler) otherDevices() {
	for i := range c.devices {
		d := &c.devices[i]
		if d.path == "" || d.made || !c.haveDev && strings.HasPrefix(d.path, "/dev/") {
			continue // a /dev that is bound from elsewhere has its devices, and is not ours to change
		}
		c.makeDevice(d, c.parents(d.path))
	}
}

func (c *compiler) makeDevice(d *device, dir Slot) {
	base, label := c.Str(path.Base(d.path)), "make the device "+d.path
	bind := func() {
		source, at := c.temp("source"), c.temp("at")
		c.openTree("open the host's "+d.path+" in place of a device node", Int(unix.AT_FDCWD), d.path, false).Into(source)
		c.Syscall(label, unix.SYS_MKNODAT, dir.Value(), base, Const(unix.S_IFREG|0o666).As("S_IFREG|0666"), Const(0))
		c.openat2(label, dir.Value(), base, unix.O_PATH|unix.O_NOFOLLOW, beneath).Into(at)
		c.moveMount(label, source.Value(), at.Value())
		c.done(source, at)
	}
	special := d.mode&unix.S_IFMT != unix.S_IFIFO
	if c.inUserNamespace() && special {
		bind()
		return
	}
	mknod := c.Syscall(label, unix.SYS_MKNODAT, dir.Value(), base,
		Const(uint64(d.mode)).As(modeText(d.mode)), Const(d.dev()))
	if d.uid != 0 || d.gid != 0 {
		c.Syscall("set the owner of "+d.path, unix.SYS_FCHOWNAT, dir.Value(), base, Const(uint64(d.uid)), Const(uint64(d.gid)),
			Const(unix.AT_SYMLINK_NOFOLLOW).As("AT_SYMLINK_NOFOLLOW"))
	}
	if special && d.usual() {
		// Where the importing program has no CAP_MKNOD or its cgroup forbids the node, the host's usually will do.
		refused, made := c.NewLabel(), c.NewLabel()
		mknod.Else(refused)
		c.Place(made)
		c.later(func() {
			c.Place(refused)
			c.Branch(slotResult.Value(), NotEqual, Errno(unix.EPERM), c.failTarget())
			bind()
			c.Jump(made)
		})
	}
}

// usual says whether it is one of the default devices, which the host has under the same name.
func (d *device) usual() bool {
	return slices.ContainsFunc(defaultDevices[:], func(o device) bool { return o.path == d.path && o.major == d.major && o.minor == d.minor })
}

func modeText(mode uint32) string {
	kind := map[uint32]string{unix.S_IFCHR: "S_IFCHR", unix.S_IFBLK: "S_IFBLK", unix.S_IFIFO: "S_IFIFO"}[mode&unix.S_IFMT]
	const digits = "01234567"
	return kind + "|0" + string([]byte{digits[mode>>6&7], digits[mode>>3&7], digits[mode&7]})
}
