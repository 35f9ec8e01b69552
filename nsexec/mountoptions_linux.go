package nsexec

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is one entry of spec.mounts, understood.
type mount struct {
	field  string // where it stands in the spec
	source string
	dest   string // cleaned
	kind   string // filesystem type; "bind" for bind mounts

	set, clear       uint64   // MOUNT_ATTR_* of the mount itself
	setAll, clearAll uint64   // MOUNT_ATTR_* of the mount and all below it
	super            uint64   // MS_* flags of the filesystem
	propagation      []uint64 // MS_PRIVATE and the like, with MS_REC where recursive, in the order of the spec
	data             []string // what only the filesystem understands
	recursive        bool     // a bind mount with what is mounted below the source
	remount          bool
	copyUp           bool
}

// attribute is an option that sets or clears attributes of a mount.
type attribute struct{ set, clear uint64 }

// mountAttribute knows the options that become attributes of a mount. With an r in front they are recursive
// (config.md, "Linux mount options").
func mountAttribute(option string) (a attribute, ok bool) {
	switch option {
	case "ro":
		return attribute{set: unix.MOUNT_ATTR_RDONLY}, true
	case "rw":
		return attribute{clear: unix.MOUNT_ATTR_RDONLY}, true
	case "nosuid":
		return attribute{set: unix.MOUNT_ATTR_NOSUID}, true
	case "suid":
		return attribute{clear: unix.MOUNT_ATTR_NOSUID}, true
	case "nodev":
		return attribute{set: unix.MOUNT_ATTR_NODEV}, true
	case "dev":
		return attribute{clear: unix.MOUNT_ATTR_NODEV}, true
	case "noexec":
		return attribute{set: unix.MOUNT_ATTR_NOEXEC}, true
	case "exec":
		return attribute{clear: unix.MOUNT_ATTR_NOEXEC}, true
	case "nodiratime":
		return attribute{set: unix.MOUNT_ATTR_NODIRATIME}, true
	case "diratime":
		return attribute{clear: unix.MOUNT_ATTR_NODIRATIME}, true
	case "nosymfollow":
		return attribute{set: unix.MOUNT_ATTR_NOSYMFOLLOW}, true
	case "symfollow":
		return attribute{clear: unix.MOUNT_ATTR_NOSYMFOLLOW}, true
	case "noatime":
		return attribute{set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME}, true
	case "atime":
		return attribute{clear: unix.MOUNT_ATTR__ATIME}, true
	case "relatime":
		return attribute{set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME}, true
	case "norelatime":
		return attribute{clear: unix.MOUNT_ATTR__ATIME}, true
	case "strictatime":
		return attribute{set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME}, true
	case "nostrictatime":
		return attribute{clear: unix.MOUNT_ATTR__ATIME}, true
	}
	return a, false
}

// superFlag knows the options that belong to the filesystem rather than to the mount.
func superFlag(option string) (a attribute, ok bool) {
	switch option {
	case "sync":
		return attribute{set: unix.MS_SYNCHRONOUS}, true
	case "async":
		return attribute{clear: unix.MS_SYNCHRONOUS}, true
	case "dirsync":
		return attribute{set: unix.MS_DIRSYNC}, true
	case "lazytime":
		return attribute{set: unix.MS_LAZYTIME}, true
	case "nolazytime":
		return attribute{clear: unix.MS_LAZYTIME}, true
	case "mand":
		return attribute{set: unix.MS_MANDLOCK}, true
	case "nomand":
		return attribute{clear: unix.MS_MANDLOCK}, true
	case "iversion":
		return attribute{set: unix.MS_I_VERSION}, true
	case "noiversion":
		return attribute{clear: unix.MS_I_VERSION}, true
	case "silent":
		return attribute{set: unix.MS_SILENT}, true
	case "loud":
		return attribute{clear: unix.MS_SILENT}, true
	case "defaults":
		return attribute{}, true
	}
	return a, false
}

// propagation is the flag of mount(2) for a propagation option, or 0.
func propagation(option string) uint64 {
	switch option {
	case "private":
		return unix.MS_PRIVATE
	case "rprivate":
		return unix.MS_PRIVATE | unix.MS_REC
	case "slave":
		return unix.MS_SLAVE
	case "rslave":
		return unix.MS_SLAVE | unix.MS_REC
	case "shared":
		return unix.MS_SHARED
	case "rshared":
		return unix.MS_SHARED | unix.MS_REC
	case "unbindable":
		return unix.MS_UNBINDABLE
	case "runbindable":
		return unix.MS_UNBINDABLE | unix.MS_REC
	}
	return 0
}

// checkMounts understands the mounts of the spec.
func (c *compiler) checkMounts() {
	specMounts := c.spec.Mounts
	c.mounts = make([]mount, 0, len(specMounts)+1)
	for i := range specMounts {
		c.checkMount(i)
		if c.bad != nil {
			return
		}
	}
	// A container without a /dev of its own would get its device nodes written into its root filesystem, through
	// whatever symlinks an image has there (CVE-2026-88265).
	if !slices.ContainsFunc(c.mounts, func(m mount) bool { return m.dest == "/dev" }) {
		c.mounts = slices.Insert(c.mounts, 0, mount{
			field: "mounts", source: "tmpfs", dest: "/dev", kind: "tmpfs",
			set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_STRICTATIME, data: []string{"mode=755", "size=65536k"},
		})
	}
}

func (c *compiler) checkMount(i int) {
	s := &c.spec.Mounts[i]
	m := mount{field: index("mounts", i), source: s.Source, kind: s.Type}
	if dest := s.Destination; dest != "" && dest[0] != '/' {
		// Relative destinations were allowed before 1.1 of the specification, and mean the root.
		m.dest = c.absolute(m.field+".destination", "/"+dest)
	} else {
		m.dest = c.absolute(m.field+".destination", dest)
	}
	if m.dest == "/" {
		c.unsupported(m.field+".destination", "mounting over the container's root")
	}
	if len(s.UIDMappings)+len(s.GIDMappings) > 0 {
		c.unsupported(m.field+".uidMappings", "idmapped mounts")
	}
	bind := s.Type == "bind" || s.Type == "rbind"
	m.recursive = s.Type == "rbind"
	for k, o := range s.Options {
		switch {
		case o == "bind":
			bind = true
		case o == "rbind":
			bind, m.recursive = true, true
		default:
			c.mountOption(&m, index(m.field+".options", k), o)
		}
	}
	if bind {
		m.kind = "bind"
	}
	c.checkProcMount(&m)
	c.checkKind(&m)
	c.mounts = append(c.mounts, m)
}

// checkProcMount keeps everything but a procfs from /proc, and everything but what is known to be harmless from below
// it: what security modules and tools read and write there must be the kernel's (CVE-2019-16884).
func (c *compiler) checkProcMount(m *mount) {
	rel, below := strings.CutPrefix(m.dest, "/proc/")
	switch {
	case m.dest == "/proc":
		if m.kind != "proc" && !(m.kind == "bind" && path.Clean(m.source) == "/proc") && !m.remount {
			c.invalid(m.field+".destination", "/proc must be a procfs")
		}
	case below:
		switch rel {
		case "cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "sys/kernel/ns_last_pid",
			"sys/crypto/fips_enabled":
		default:
			c.invalid(m.field+".destination", "%s is inside of /proc", m.dest)
		}
	}
}

func (c *compiler) mountOption(m *mount, field, o string) {
	if a, ok := mountAttribute(o); ok {
		m.set, m.clear = m.set&^a.clear|a.set, m.clear&^a.set|a.clear
		return
	}
	if len(o) > 1 && o[0] == 'r' {
		if a, ok := mountAttribute(o[1:]); ok {
			m.setAll, m.clearAll = m.setAll&^a.clear|a.set, m.clearAll&^a.set|a.clear
			return
		}
	}
	if a, ok := superFlag(o); ok {
		m.super = m.super&^a.clear | a.set
		return
	}
	if p := propagation(o); p != 0 {
		m.propagation = append(m.propagation, p)
		return
	}
	switch o {
	case "remount":
		m.remount = true
	case "tmpcopyup":
		m.copyUp = true
	case "idmap", "ridmap":
		c.unsupported(field, "idmapped mounts")
	case "":
		c.invalid(field, "empty option")
	default:
		if strings.IndexByte(o, 0) >= 0 {
			c.invalid(field, "%q has a NUL byte", o)
			return
		}
		if strings.IndexByte(o, '"') < 0 && strings.IndexByte(o, ',') >= 0 {
			for part := range strings.SplitSeq(o, ",") {
				if part != "" {
					c.mountOption(m, field, part)
				}
			}
			return
		}
		m.data = append(m.data, o)
	}
}

// checkKind validates what depends on the type of the mount.
func (c *compiler) checkKind(m *mount) {
	field := m.field + ".options"
	if m.copyUp && m.kind != "tmpfs" {
		c.invalid(field, "tmpcopyup is for tmpfs, not for %q", m.kind)
	}
	switch m.kind {
	case "":
		if !m.remount {
			c.invalid(m.field+".type", "missing, and neither bind nor rbind is among the options")
		}
	case "bind":
		if len(m.data) > 0 {
			c.unsupported(field, "option "+strconv.Quote(m.data[0])+" of a bind mount")
		}
		if m.super != 0 {
			c.unsupported(field, "a filesystem's option with a bind mount")
		}
		if !m.remount {
			m.source = c.absolute(m.field+".source", m.source)
		}
	case "cgroup":
		if !c.namespaces.has(unix.CLONE_NEWCGROUP) && len(hostCgroups().v1) > 0 {
			c.unsupported(m.field+".type", "the host's cgroups of version 1: without a cgroup namespace a container would see all of them")
		}
		if len(m.data) > 0 {
			c.unsupported(field, "option "+strconv.Quote(m.data[0])+" of a cgroup mount")
		}
		if m.copyUp || m.remount || m.setAll|m.clearAll != 0 || m.super != 0 || len(m.propagation) > 0 && !allPrivate(m.propagation) {
			c.unsupported(field, "other options of a cgroup mount than those of each mount")
		}
	default:
		if strings.IndexByte(m.kind, 0) >= 0 {
			c.invalid(m.field+".type", "%q has a NUL byte", m.kind)
		}
		if strings.IndexByte(m.source, 0) >= 0 {
			c.invalid(m.field+".source", "%q has a NUL byte", m.source)
		}
	}
	if m.needsFD() && m.super&(unix.MS_I_VERSION|unix.MS_SILENT) != 0 {
		c.unsupported(field, "iversion or silent together with this kind of mount")
	}
	if m.remount && (m.copyUp || m.dest == "/dev" || m.setAll|m.clearAll != 0 && m.kind != "bind") {
		c.unsupported(field, "this option of a remount")
	}
}

func allPrivate(p []uint64) bool {
	return !slices.ContainsFunc(p, func(f uint64) bool { return f&unix.MS_PRIVATE == 0 })
}

// needsFD says whether the mount has to be made with fsopen and fsmount, which give a descriptor of it; mount(2) takes
// fewer calls.
func (m *mount) needsFD() bool {
	if m.kind == "bind" || m.remount {
		return false
	}
	return m.kind == "proc" || m.dest == "/dev" || m.copyUp || m.setAll|m.clearAll != 0 || !allPrivate(m.propagation) ||
		m.kind == "tmpfs" && m.set&unix.MOUNT_ATTR_RDONLY != 0
}

// underDev says whether the mount point is an immediate child of /dev.
func (m *mount) underDev() bool { return path.Dir(m.dest) == "/dev" }

// mountFlags are the attributes as flags of mount(2).
func mountFlags(attributes uint64) uint64 {
	var flags uint64
	for _, f := range []struct{ attribute, flag uint64 }{
		{unix.MOUNT_ATTR_RDONLY, unix.MS_RDONLY}, {unix.MOUNT_ATTR_NOSUID, unix.MS_NOSUID},
		{unix.MOUNT_ATTR_NODEV, unix.MS_NODEV}, {unix.MOUNT_ATTR_NOEXEC, unix.MS_NOEXEC},
		{unix.MOUNT_ATTR_NOATIME, unix.MS_NOATIME}, {unix.MOUNT_ATTR_STRICTATIME, unix.MS_STRICTATIME},
		{unix.MOUNT_ATTR_NODIRATIME, unix.MS_NODIRATIME}, {unix.MOUNT_ATTR_NOSYMFOLLOW, unix.MS_NOSYMFOLLOW},
	} {
		if attributes&f.attribute != 0 {
			flags |= f.flag
		}
	}
	return flags
}

type flagName struct {
	flag uint64
	name string
}

var mountFlagNames = []flagName{
	{unix.MS_RDONLY, "MS_RDONLY"}, {unix.MS_NOSUID, "MS_NOSUID"}, {unix.MS_NODEV, "MS_NODEV"}, {unix.MS_NOEXEC, "MS_NOEXEC"},
	{unix.MS_SYNCHRONOUS, "MS_SYNCHRONOUS"}, {unix.MS_REMOUNT, "MS_REMOUNT"}, {unix.MS_MANDLOCK, "MS_MANDLOCK"},
	{unix.MS_DIRSYNC, "MS_DIRSYNC"}, {unix.MS_NOSYMFOLLOW, "MS_NOSYMFOLLOW"}, {unix.MS_NOATIME, "MS_NOATIME"},
	{unix.MS_NODIRATIME, "MS_NODIRATIME"}, {unix.MS_BIND, "MS_BIND"}, {unix.MS_MOVE, "MS_MOVE"}, {unix.MS_REC, "MS_REC"},
	{unix.MS_SILENT, "MS_SILENT"}, {unix.MS_UNBINDABLE, "MS_UNBINDABLE"}, {unix.MS_PRIVATE, "MS_PRIVATE"},
	{unix.MS_SLAVE, "MS_SLAVE"}, {unix.MS_SHARED, "MS_SHARED"}, {unix.MS_RELATIME, "MS_RELATIME"},
	{unix.MS_I_VERSION, "MS_I_VERSION"}, {unix.MS_STRICTATIME, "MS_STRICTATIME"}, {unix.MS_LAZYTIME, "MS_LAZYTIME"},
}

var attributeNames = []flagName{
	{unix.MOUNT_ATTR_RDONLY, "MOUNT_ATTR_RDONLY"}, {unix.MOUNT_ATTR_NOSUID, "MOUNT_ATTR_NOSUID"},
	{unix.MOUNT_ATTR_NODEV, "MOUNT_ATTR_NODEV"}, {unix.MOUNT_ATTR_NOEXEC, "MOUNT_ATTR_NOEXEC"},
	{unix.MOUNT_ATTR__ATIME, "MOUNT_ATTR__ATIME"}, {unix.MOUNT_ATTR_NOATIME, "MOUNT_ATTR_NOATIME"},
	{unix.MOUNT_ATTR_STRICTATIME, "MOUNT_ATTR_STRICTATIME"}, {unix.MOUNT_ATTR_NODIRATIME, "MOUNT_ATTR_NODIRATIME"},
	{unix.MOUNT_ATTR_NOSYMFOLLOW, "MOUNT_ATTR_NOSYMFOLLOW"},
}

// flagText shows flags in the listing.
func flagText(flags uint64, names []flagName) string {
	if flags == 0 {
		return "0"
	}
	var b strings.Builder
	for _, f := range names {
		if flags&f.flag == f.flag {
			if b.Len() > 0 {
				b.WriteByte('|')
			}
			b.WriteString(f.name)
			flags &^= f.flag
		}
	}
	if flags != 0 || b.Len() == 0 {
		if b.Len() > 0 {
			b.WriteByte('|')
		}
		b.WriteString("0x" + strconv.FormatUint(flags, 16))
	}
	return b.String()
}
