package layerfs

import (
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dirStamp is all that there is to an empty directory but its name and the time it was last read. It is comparable.
type dirStamp struct {
	ino, dev     uint64
	mode         uint32
	uid, gid     uint32
	size         int64
	mtime, ctime unix.Timespec
	flags        uint32 // chattr(1); 0 where the filesystem has none
	attr         fsxattr
	xattrs       string
}

// fsxattr is struct fsxattr of <linux/fs.h>.
type fsxattr struct {
	xflags, extsize, nextents, projid, cowextsize uint32
	_                                             [8]byte
}

const fsIOCFSGetXattr = 0x801c581f // the same on all architectures but alpha, mips, powerpc and sparc

// stampDir describes a directory; one with anything in it is ENOTEMPTY. The time of change alone would not do: it
// moves in steps of some milliseconds, and a container can be faster.
func stampDir(at int, name string) (dirStamp, error) {
	var d dirStamp
	fd, err := openBeneath(at, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return d, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		return d, err
	}
	if _, count, _ := unix.ParseDirent(buf[:n], -1, nil); count > 0 {
		return d, unix.ENOTEMPTY
	}
	if n, err = unix.Getdents(fd, buf); err != nil || n > 0 {
		return d, unix.ENOTEMPTY // two names in one call are all that an empty directory has
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return d, err
	}
	d = dirStamp{ino: st.Ino, dev: st.Dev, mode: st.Mode, uid: st.Uid, gid: st.Gid, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
	if flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS); err == nil {
		d.flags = flags
	}
	var attr fsxattr
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIOCFSGetXattr, uintptr(unsafe.Pointer(&attr))); errno == 0 {
		d.attr = attr
	}
	xs, err := allXattrs(fd)
	if err != nil {
		return d, err
	}
	slices.Sort(xs)
	d.xattrs = strings.Join(xs, "\x00")
	return d, nil
}

// allXattrs returns every extended attribute as name, NUL and value.
func allXattrs(fd int) ([]string, error) {
	list := make([]byte, 4096)
	n, err := unix.Flistxattr(fd, list)
	if err == unix.ENOTSUP || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var xs []string
	value := make([]byte, 4096)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		n, err := unix.Fgetxattr(fd, name, value)
		if err != nil {
			return nil, err
		}
		xs = append(xs, name+"\x00"+string(value[:n]))
	}
	return xs, nil
}
