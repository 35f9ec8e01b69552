package layerfs

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// rootAttr is what a layer says about the root directory.
func (d *dirNode) rootAttr() *RootAttr {
	r := &RootAttr{Mode: d.mode, UID: d.uid, GID: d.gid}
	// Others than these have no place in JSON, nor on most disks.
	if y := d.mtime.UTC().Year(); y > 0 && y < 10000 {
		r.ModTime = d.mtime.UTC()
	}
	for _, x := range d.xattrs {
		if xattrBelongs(x.name) {
			if r.Xattrs == nil {
				r.Xattrs = make(map[string][]byte, len(d.xattrs))
			}
			r.Xattrs[x.name] = []byte(x.value)
		}
	}
	return r
}

// finish gives a root directory, which has mode and owner, the extended attributes and last the time.
func (r *RootAttr) finish(dir int, name string) error {
	if len(r.Xattrs) > 0 {
		fd, err := openBeneath(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return fmt.Errorf("open %s: %w", name, err)
		}
		defer unix.Close(fd)
		for k, v := range r.Xattrs {
			// As when the layer was unpacked: a file system without them is no reason to fail.
			err := unix.Fsetxattr(fd, k, v, 0)
			if err != nil && err != unix.ENOTSUP && err != unix.EPERM {
				return fmt.Errorf("setxattr %s of %s: %w", k, name, err)
			}
		}
	}
	if r.ModTime.IsZero() {
		return nil
	}
	ts, err := unix.TimeToTimespec(r.ModTime)
	if err == nil {
		err = unix.UtimesNanoAt(dir, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("set time of %s: %w", name, err)
	}
	return nil
}

// xattrBelongs reports whether an extended attribute is any business of a layer: overlay's own would make holes into
// the layers below, and labels of security modules belong to the host.
func xattrBelongs(name string) bool {
	switch name {
	case "security.selinux", "security.evm", "security.SMACK64":
		return false
	}
	// Trusted.SGI_ACL_FILE and _DEFAULT are how xfs shows the ACLs that have names of their own.
	return !strings.HasPrefix(name, "trusted.SGI_ACL_") && !strings.HasPrefix(name, "trusted.overlay.") && !strings.HasPrefix(name, "user.overlay.")
}
