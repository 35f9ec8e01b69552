package nsexec

import (
	"bufio"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// mountCgroup emits the mount of what the container sees of its cgroups: the unified hierarchy, or every hierarchy of
// version 1 in a small tmpfs, under the names that the host uses.
func (c *compiler) mountCgroup(m *mount) {
	host := hostCgroups()
	flags := mountFlags(m.set)
	at := c.target(m.dest, directory, 0, unix.O_DIRECTORY, inRoot)
	c.fchdir("go to "+m.dest, at)
	switch {
	case len(host.v1) == 0:
		c.mountCall("mount cgroup2 on "+m.dest, "cgroup", ".", "cgroup2", flags, "")
		return
	}
	base := flags &^ unix.MS_RDONLY
	c.mountCall("mount tmpfs on "+m.dest, "cgroup", ".", "tmpfs", base, "mode=755")
	tmpfs := c.NewSlot("cgroups")
	c.resolve("open "+m.dest, m.dest, unix.O_DIRECTORY, inRoot, tmpfs, nil)
	c.fchdir("go to "+m.dest, tmpfs)
	for _, h := range host.v1 {
		c.Syscall("make the mount point "+m.dest+"/"+h.name, unix.SYS_MKDIRAT, tmpfs.Value(), c.Str(h.name), Const(0o755).As("0755"))
		c.mountCall("mount cgroup on "+m.dest+"/"+h.name, "cgroup", h.name, "cgroup", flags, h.data)
		for _, l := range h.links {
			c.Syscall("link "+m.dest+"/"+l, unix.SYS_SYMLINKAT, c.Str(h.name), tmpfs.Value(), c.Str(l))
		}
	}
	if flags&unix.MS_RDONLY != 0 {
		c.setAttributes("make "+m.dest+" read-only", tmpfs.Value(), unix.MOUNT_ATTR_RDONLY, 0, 0, false)
	}
}

// cgroups are the hierarchies of the host.
type cgroups struct {
	v1 []hierarchy // none where there is only the unified hierarchy
}

type hierarchy struct {
	name  string   // of the directory where the host has it
	data  string   // options that mount it
	links []string // other names: one for each of several controllers
}

// hostCgroups reads the host's hierarchies once: they are mounted when it boots.
var hostCgroups = sync.OnceValue(func() cgroups {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return cgroups{}
	}
	defer f.Close()
	return parseCgroups(f)
})

// parseCgroups finds the v1 hierarchies in a mountinfo file; proc_pid_mountinfo(5).
func parseCgroups(r io.Reader) cgroups {
	var found cgroups
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, super := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 6 || len(super) < 3 || super[0] != "cgroup" {
			continue
		}
		h := hierarchy{name: path.Base(fields[4])}
		var options []string
		for o := range strings.SplitSeq(super[2], ",") {
			switch {
			case o == "rw", o == "ro", o == "xattr", o == "clone_children", o == "noprefix", o == "cpuset_v2_mode",
				strings.HasPrefix(o, "release_agent="):
				continue
			case strings.HasPrefix(o, "name="):
				options = append([]string{"none"}, o)
			default:
				options = append(options, o)
				if o != h.name {
					h.links = append(h.links, o)
				}
			}
		}
		h.data = strings.Join(options, ",")
		known := slices.ContainsFunc(found.v1, func(x hierarchy) bool { return x.data == h.data || x.name == h.name })
		if len(options) > 0 && !known && !strings.Contains(h.name, "\\") {
			found.v1 = append(found.v1, h)
		}
	}
	return found
}
