package inroot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// openat2 repeats the calls that the kernel gives up on because of a rename or signal elsewhere: a bounded number of
// times, as an attacker may go on renaming.
func openat2(rootfd int, name string, flags, mode uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Mode: mode, Resolve: resolve}
	var err error
	for range 128 {
		var fd int
		fd, err = unix.Openat2(rootfd, name, &how)
		if err == nil {
			return fd, nil
		}
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
	}
	return -1, &fs.PathError{Op: "open in root", Path: name, Err: err}
}

// regular turns a descriptor into a file after checking what it is. O_NONBLOCK kept a fifo from blocking.
func regular(fd int, name string) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, &fs.PathError{Op: "stat in root", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, &NotRegularError{Path: name}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Open opens the regular file path inside the root directory rootfd for reading. A missing file is fs.ErrNotExist,
// anything but a regular file a *NotRegularError.
func Open(rootfd int, path string) (*os.File, error) {
	// What O_PATH finds is looked at before it is opened, so that no device node's open method ever runs.
	p, err := openat2(rootfd, path, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(p, &st)
	unix.Close(p)
	if err != nil {
		return nil, &fs.PathError{Op: "stat in root", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &NotRegularError{Path: path}
	}
	fd, err := openat2(rootfd, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	return regular(fd, path)
}

// OpenPath opens whatever path names inside rootfd with O_PATH: it can be looked at, and is not used. A link at the end is
// followed.
func OpenPath(rootfd int, path string) (*os.File, error) {
	fd, err := openat2(rootfd, path, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// ReadFile reads the regular file path inside rootfd, which must not be larger than max bytes (*TooLargeError).
func ReadFile(rootfd int, path string, max int64) ([]byte, error) {
	f, err := Open(rootfd, path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > max {
		return nil, &TooLargeError{Path: path, Max: max}
	}
	return data, nil
}

// WriteFile makes the regular file path inside rootfd, or replaces the content of the one that is there. A new file gets mode
// and, where uid or gid is not negative, the owner; one that was there keeps its own. The parent must exist.
func WriteFile(rootfd int, path string, data []byte, mode uint32, uid, gid int) error {
	fd, err := openat2(rootfd, path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, uint64(mode&0o7777))
	created := err == nil
	if errors.Is(err, fs.ErrExist) {
		if f, oerr := Open(rootfd, path); oerr != nil {
			return oerr
		} else {
			f.Close()
		}
		fd, err = openat2(rootfd, path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return err
	}
	f, err := regular(fd, path)
	if err != nil {
		return err
	}
	defer f.Close()
	if created {
		// fchmod undoes the umask; it comes after fchown, which clears setuid.
		if uid >= 0 || gid >= 0 {
			if err := unix.Fchown(fd, uid, gid); err != nil {
				return &fs.PathError{Op: "chown in root", Path: path, Err: err}
			}
		}
		if err := unix.Fchmod(fd, mode&0o7777); err != nil {
			return &fs.PathError{Op: "chmod in root", Path: path, Err: err}
		}
	} else if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Close()
}

// MkdirAll makes the directory path and its missing parents inside rootfd. Those it makes get mode and, where uid or
// gid is not negative, the owner; those that exist stay as they are. Symbolic links on the way are followed inside the
// root; a dangling one is an error.
func MkdirAll(rootfd int, name string, mode uint32, uid, gid int) error {
	clean := strings.Trim(path.Clean("/"+name), "/")
	if clean == "" {
		return nil
	}
	if fd, err := openat2(rootfd, clean, unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
		unix.Close(fd)
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parts := strings.Split(clean, "/")
	for i := range parts {
		parent, err := openat2(rootfd, "/"+strings.Join(parts[:i], "/"), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		err = mkdirOne(rootfd, parent, strings.Join(parts[:i+1], "/"), parts[i], mode, uid, gid)
		unix.Close(parent)
		if err != nil {
			return err
		}
	}
	return nil
}

func mkdirOne(rootfd, parent int, full, name string, mode uint32, uid, gid int) error {
	err := unix.Mkdirat(parent, name, mode&0o7777)
	if err == unix.EEXIST {
		fd, err := openat2(rootfd, full, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	if err != nil {
		return &fs.PathError{Op: "mkdir in root", Path: full, Err: err}
	}
	// The descriptor, not the name: between the two calls the name may have become a link.
	fd, err := unix.Openat2(parent, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return &fs.PathError{Op: "open in root", Path: full, Err: err}
	}
	defer unix.Close(fd)
	if uid >= 0 || gid >= 0 {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return fmt.Errorf("chown %s in root: %w", full, err)
		}
	}
	if err := unix.Fchmod(fd, mode&0o7777); err != nil {
		return fmt.Errorf("chmod %s in root: %w", full, err)
	}
	return nil
}
