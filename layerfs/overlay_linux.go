package layerfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

func builtinDriver(name string) OpenDriver {
	switch name {
	case "overlay":
		return func(c DriverConfig) (Driver, error) { return &overlayDriver{dir: c.Dir}, nil }
	case "copy":
		return func(c DriverConfig) (Driver, error) { return &copyDriver{}, nil }
	}
	return nil
}

// overlayDriver mounts the layers below a private upper directory.
//
//	snapshots/ID/upper  what was written
//	snapshots/ID/work   overlayfs's own
//
// There are three ways to hand many layers to overlayfs as a detached mount; fsconfig(2) takes strings of at most 255
// bytes:
//
//   - lowerdir+ one layer at a time, since Linux 6.8;
//   - lowerdir=10:11:12, names of descriptors relative to a working directory of /proc/thread-self/fd;
//   - a classic mount(2), with 4 kB of options, in a mount namespace of its own, cloned out of it by open_tree(2).
type overlayDriver struct {
	dir string
	// way forces one of the above, in tests.
	way mountWay
	// best is what turned out to work.
	best atomic.Int32

	// The thread whose working directory is /proc/thread-self/fd.
	threadOnce sync.Once
	closeOnce  sync.Once
	thread     chan func()
}

type mountWay int32

const (
	wayAuto mountWay = iota
	wayLowerPlus
	wayFDNames
	wayClassic
)

const maxFSConfig = 255

func (d *overlayDriver) Prepare(_ context.Context, s *SnapshotDir) error {
	if err := makeUpper(s); err != nil {
		return err
	}
	if err := unix.Mkdirat(s.Dir, "work", 0o700); err != nil {
		return fmt.Errorf("mkdir work: %w", err)
	}
	return nil
}

func makeUpper(s *SnapshotDir) error {
	if err := unix.Mkdirat(s.Dir, "upper", s.Root.Mode&0o7777); err != nil {
		return fmt.Errorf("mkdir upper: %w", err)
	}
	if uint32(os.Geteuid()) != s.Root.UID || uint32(os.Getegid()) != s.Root.GID {
		if err := unix.Fchownat(s.Dir, "upper", int(s.Root.UID), int(s.Root.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("chown upper: %w", err)
		}
	}
	// The umask may have taken something, and mkdir does not set setuid or setgid.
	if err := unix.Fchmodat(s.Dir, "upper", s.Root.Mode&0o7777, 0); err != nil {
		return fmt.Errorf("chmod upper: %w", err)
	}
	return s.Root.finish(s.Dir, "upper")
}

func (d *overlayDriver) Remove(_ context.Context, s *SnapshotDir) error {
	if err := emptyWork(s); err != nil {
		return err
	}
	return errors.Join(removeTree(s.Dir, "work"), removeTree(s.Dir, "upper"))
}

// recycle leaves work, which nothing but overlayfs itself has ever touched. Upper is made anew, however clean it looks:
// a descriptor that the former container gave away may still reach the old one through a mount that lives on.
func (d *overlayDriver) recycle(s *SnapshotDir) error {
	if err := emptyWork(s); err != nil {
		return err
	}
	if err := removeTree(s.Dir, "upper"); err != nil {
		return err
	}
	return makeUpper(s)
}

func emptyWork(s *SnapshotDir) error {
	// A container that wrote nothing is the common case: its directories are known, and no directory has to be read.
	for _, name := range [...]string{"work/work/incompat/volatile/dirty", "work/work/incompat/volatile", "work/work/incompat", "work/work"} {
		flag := unix.AT_REMOVEDIR
		if strings.HasSuffix(name, "/dirty") {
			if !s.Volatile {
				continue
			}
			flag = 0
		} else if strings.Contains(name, "/incompat") && !s.Volatile {
			continue
		}
		err := unix.Unlinkat(s.Dir, name, flag)
		if err == nil || err == unix.ENOENT {
			continue
		}
		if err := removeTree(s.Dir, name); err != nil {
			return err
		}
	}
	return nil
}

func (d *overlayDriver) Close() error {
	d.threadOnce.Do(func() {})
	if d.thread != nil {
		d.closeOnce.Do(func() { close(d.thread) })
	}
	return nil
}

// overlayPaths are what an overlay is made of, topmost first.
type overlayPaths struct {
	lower       []string
	upper, work string // empty when read-only
}

func (d *overlayDriver) Mount(_ context.Context, s *SnapshotDir, o *MountOptions) (*os.File, error) {
	p := overlayPaths{lower: make([]string, 0, len(s.LayerPaths)+2)}
	if o.ReadOnly {
		p.lower = append(p.lower, s.Path+"/upper")
	} else {
		p.upper, p.work = s.Path+"/upper", s.Path+"/work"
	}
	for i := len(s.LayerPaths) - 1; i >= 0; i-- {
		p.lower = append(p.lower, s.LayerPaths[i])
	}
	if len(s.LayerPaths) == 0 {
		p.lower = append(p.lower, d.dir+"/empty")
	}
	fd, step, err := d.mount(s, &p)
	if errors.Is(err, unix.EINVAL) && s.Volatile && p.upper != "" && unix.Faccessat(s.Dir, "work/work/incompat", unix.F_OK, 0) == nil {
		// The mark of an earlier volatile mount. Its content was written through the same page cache; only a crash of
		// the machine would have lost any, and what is volatile may be lost then.
		if err := removeTree(s.Dir, "work/work/incompat"); err != nil {
			return nil, err
		}
		fd, step, err = d.mount(s, &p)
	}
	if err != nil {
		return nil, overlayError(step, len(s.LayerPaths), s.Path, err)
	}
	return os.NewFile(uintptr(fd), "overlay of "+filepath.Base(s.Path)), nil
}

// mount tries the ways that fit, best first.
func (d *overlayDriver) mount(s *SnapshotDir, p *overlayPaths) (fd int, step string, err error) {
	switch d.way {
	case wayLowerPlus:
		return d.mountLowerPlus(s, p)
	case wayFDNames:
		return d.mountFDNames(s, p)
	case wayClassic:
		return d.mountClassic(s, p)
	}
	best := mountWay(d.best.Load())
	if best != wayFDNames {
		fd, step, err = d.mountLowerPlus(s, p)
		if err == nil && best == wayAuto {
			d.best.Store(int32(wayLowerPlus))
		}
		// A kernel without lowerdir+ says EINVAL, some only when all is put together. Once it has worked, EINVAL has
		// another reason.
		if err == nil || err != errTooLong && !(errors.Is(err, unix.EINVAL) && best == wayAuto) {
			return fd, step, err
		}
	}
	tooLong := err == errTooLong
	fd, step, err = d.mountFDNames(s, p)
	if err == nil && best == wayAuto && !tooLong {
		d.best.Store(int32(wayFDNames))
	}
	if err != errTooLong {
		return fd, step, err
	}
	return d.mountClassic(s, p)
}

var errTooLong = fmt.Errorf("options are longer than this way of mounting allows: %w", errors.ErrUnsupported)

const stepLowerPlus = "fsconfig lowerdir+"

// overlayFlags are the options that are always the same. They are explicit since a kernel or module option may have other
// defaults: a snapshot must not depend on them.
func overlayFlags(s *SnapshotDir, readOnly bool) (opts [][2]string, flags []string) {
	if s.UserXattrs {
		// userxattr implies redirect_dir=nofollow and metacopy=off.
		flags = append(flags, "userxattr")
	} else {
		opts = append(opts, [2]string{"metacopy", "off"}, [2]string{"redirect_dir", "nofollow"})
	}
	// Nobody decodes file handles of these mounts, so no UUID is written into upper (Linux 6.6 does by default).
	opts = append(opts, [2]string{"index", "off"}, [2]string{"uuid", "off"})
	if s.Volatile && !readOnly {
		flags = append(flags, "volatile")
	}
	return opts, flags
}

// fsMount opens a file system context, lets configure set it up, and mounts it.
func fsMount(s *SnapshotDir, readOnly bool, configure func(fd int) (string, error)) (_ int, step string, err error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, "fsopen", err
	}
	defer unix.Close(fd)
	opts, flags := overlayFlags(s, readOnly)
	for _, o := range opts {
		if err := unix.FsconfigSetString(fd, o[0], o[1]); err != nil {
			return -1, "fsconfig " + o[0], err
		}
	}
	for _, f := range flags {
		if err := unix.FsconfigSetFlag(fd, f); err != nil {
			return -1, "fsconfig " + f, err
		}
	}
	if step, err := configure(fd); err != nil {
		return -1, step, err
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return -1, "fsconfig create", withLog(fd, err)
	}
	mfd, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, "fsmount", err
	}
	return mfd, "", nil
}

// kernelMessage is an errno with what the kernel had to say about it.
type kernelMessage struct {
	unix.Errno
	text string
}

func (m *kernelMessage) Error() string { return m.Errno.Error() + " (" + m.text + ")" }
func (m *kernelMessage) Unwrap() error { return m.Errno }

// withLog keeps the errno comparable and puts the kernel's message into logs for overlayError.
func withLog(fd int, err error) error {
	errno, ok := err.(unix.Errno)
	if !ok {
		return err
	}
	buf := make([]byte, 512)
	n, rerr := unix.Read(fd, buf)
	if rerr != nil || n <= 0 {
		return err
	}
	return &kernelMessage{errno, strings.TrimSpace(string(buf[:n]))}
}

func (d *overlayDriver) mountLowerPlus(s *SnapshotDir, p *overlayPaths) (int, string, error) {
	for _, l := range append([]string{p.upper, p.work}, p.lower...) {
		if len(l) > maxFSConfig {
			return -1, "", errTooLong
		}
	}
	return fsMount(s, p.upper == "", func(fd int) (string, error) {
		for _, l := range p.lower {
			if err := unix.FsconfigSetString(fd, "lowerdir+", l); err != nil {
				return stepLowerPlus, err
			}
		}
		return setUpper(fd, p.upper, p.work)
	})
}

func setUpper(fd int, upper, work string) (string, error) {
	if upper == "" {
		return "", nil
	}
	if err := unix.FsconfigSetString(fd, "upperdir", upper); err != nil {
		return "fsconfig upperdir", err
	}
	if err := unix.FsconfigSetString(fd, "workdir", work); err != nil {
		return "fsconfig workdir", err
	}
	return "", nil
}

// openAll opens the directories and returns their descriptors' numbers as overlay options want them.
func (p *overlayPaths) openAll() (lower, upper, work string, closeAll func(), err error) {
	var fds []int
	closeAll = func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	open := func(path string) string {
		if err != nil || path == "" {
			return ""
		}
		var fd int
		if fd, err = openatRetry(unix.AT_FDCWD, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			err = &os.PathError{Op: "open", Path: path, Err: err}
			return ""
		}
		fds = append(fds, fd)
		return strconv.Itoa(fd)
	}
	names := make([]string, len(p.lower))
	for i, l := range p.lower {
		names[i] = open(l)
	}
	upper, work = open(p.upper), open(p.work)
	if err != nil {
		closeAll()
		return "", "", "", nil, err
	}
	return strings.Join(names, ":"), upper, work, closeAll, nil
}

func (d *overlayDriver) mountFDNames(s *SnapshotDir, p *overlayPaths) (fd int, step string, err error) {
	lower, upper, work, closeAll, err := p.openAll()
	if err != nil {
		return -1, "open layers", err
	}
	defer closeAll()
	if len(lower) > maxFSConfig {
		return -1, "", errTooLong
	}
	run := d.fdThread()
	if run == nil {
		return -1, "unshare", errTooLong
	}
	done := make(chan struct{})
	run <- func() {
		defer close(done)
		fd, step, err = fsMount(s, p.upper == "", func(fd int) (string, error) {
			if err := unix.FsconfigSetString(fd, "lowerdir", lower); err != nil {
				return "fsconfig lowerdir", err
			}
			return setUpper(fd, upper, work)
		})
	}
	<-done
	return fd, step, err
}

// fdThread starts the thread that has /proc/thread-self/fd as its working directory, and lives until Close.
func (d *overlayDriver) fdThread() chan<- func() {
	d.threadOnce.Do(func() {
		work, ready := make(chan func()), make(chan error)
		go onOwnThread(func() {
			err := unix.Unshare(unix.CLONE_FS)
			if err == nil {
				err = unix.Chdir("/proc/thread-self/fd")
			}
			ready <- err
			if err == nil {
				for f := range work {
					f()
				}
			}
		})
		if <-ready == nil {
			d.thread = work
		}
	})
	return d.thread
}

// mountClassic works with any number of layers on any kernel. Its thread gets a mount namespace of its own, in which
// changes of the host still arrive but from which none leave, and ends with the call.
func (d *overlayDriver) mountClassic(s *SnapshotDir, p *overlayPaths) (fd int, step string, err error) {
	fd = -1
	onOwnThread(func() {
		if err = unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			step = "unshare"
			return
		}
		if err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			step = "make mounts private"
			return
		}
		// Opened here: overlayfs wants layers that are mounted in the mounter's own namespace.
		lower, upper, work, closeAll, oerr := p.openAll()
		if oerr != nil {
			step, err = "open layers", oerr
			return
		}
		defer closeAll()
		if err = unix.Chdir("/proc/thread-self/fd"); err != nil {
			step = "chdir /proc/thread-self/fd"
			return
		}
		data := "lowerdir=" + lower
		if upper != "" {
			data += ",upperdir=" + upper + ",workdir=" + work
		}
		opts, flags := overlayFlags(s, upper == "")
		for _, o := range opts {
			data += "," + o[0] + "=" + o[1]
		}
		for _, f := range flags {
			data += "," + f
		}
		if len(data) > os.Getpagesize()-1 {
			step, err = "mount options", errTooLong
			return
		}
		// Upon any directory: nobody else sees it.
		target := d.dir + "/empty"
		if err = unix.Mount("overlay", target, "overlay", 0, data); err != nil {
			step = "mount"
			return
		}
		if fd, err = unix.OpenTree(unix.AT_FDCWD, target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
			fd, step = -1, "open_tree"
		}
		_ = unix.Unmount(target, unix.MNT_DETACH)
	})
	return fd, step, err
}

const (
	overlaySuperMagic = 0x794c7630
	eCryptfsMagic     = 0xf15f
	nfsMagic          = 0x6969
	fuseMagic         = 0x65735546
)

// overlayError finds out what a user can do about a failed mount.
func overlayError(step string, layers int, path string, err error) error {
	e := &OverlayError{Step: step, Layers: layers, Err: err}
	var st unix.Statfs_t
	_ = unix.Statfs(path, &st)
	switch {
	case errors.Is(err, unix.ENODEV):
		e.Unsupported, e.Fix = true, "load the kernel module overlay (modprobe overlay), or use the driver \"copy\""
	case errors.Is(err, unix.EPERM):
		e.Fix = "mounting needs CAP_SYS_ADMIN: run as root or inside a user namespace, and look for a seccomp filter or security module that forbids mount"
	case errors.Is(err, unix.ENOSYS):
		e.Unsupported, e.Fix = true, "Linux 5.14 or newer is needed, and a seccomp filter that knows fsopen(2)"
	case errors.Is(err, unix.EINVAL) && (st.Type == overlaySuperMagic || st.Type == eCryptfsMagic || st.Type == nfsMagic || st.Type == fuseMagic):
		e.Unsupported, e.Fix = true, "the store lies on a filesystem that overlay cannot write to (overlay itself, as inside a container, or a network filesystem): put it on ext4, xfs, btrfs or tmpfs, for instance a volume, or use the driver \"copy\""
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
		e.Fix = "a layer is missing from the store: pull the image again"
	case errors.Is(err, errTooLong):
		e.Fix = "before Linux 6.8 the layers of a mount must fit a page: use fewer layers, a newer kernel, or the driver \"copy\""
	default:
		e.Fix = "the kernel log (dmesg) may say more; the driver \"copy\" works on any filesystem"
	}
	return e
}
