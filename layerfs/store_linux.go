package layerfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/lockorder"
)

// formatVersion is the version of what a store has beside the OCI image layout. Version 1 had no leases and nowhere to
// put what is damaged.
const formatVersion = 2

// recordVersion is the version of layer records and stacks.
const recordVersion = 1

// storeDirs are the directories of a store of the present format, beside blobs/sha256.
var storeDirs = []string{"layers", "snapshots", "stacks", "tmp", "locks", "leases", "damaged", "empty"}

// storeFormat is the content of the file "format", the last one written when a store is made.
type storeFormat struct {
	Version int `json:"version"`
	// Xattrs is the flavour of overlay attributes, "trusted" or "user", for ever.
	Xattrs string `json:"xattrs"`
}

// Store is an image store on disk. Its methods may be called from many goroutines, and many processes may have the
// same store open.
type Store struct {
	dir        string
	limits     Limits
	log        *slog.Logger
	driver     Driver
	userXattrs bool

	// Directory descriptors, open until Close.
	rootFD, blobsFD, layersFD, snapsFD, stacksFD, tmpFD, locksFD, leasesFD, damagedFD int

	calls calls

	trash  trash
	syncer *syncer

	stacksMu sync.Mutex
	stacks   map[string]*stack // by id
}

// OpenStore opens the store in dir, making it where dir does not exist, is empty, or is an OCI image layout made by
// another tool. Any number of processes may have it open. What dead processes left half-made is removed. A nil opts
// means the defaults.
func OpenStore(dir string, opts *StoreOptions) (*Store, error) {
	var o StoreOptions
	if opts != nil {
		o = *opts
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	open, err := findDriver(o.Driver)
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("layerfs: open store %s: %w", dir, err)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, fmt.Errorf("layerfs: open store: %w", err)
	}
	s := &Store{dir: abs, limits: o.Limits.withDefaults(), log: o.Logger, stacks: map[string]*stack{},
		rootFD: -1, blobsFD: -1, layersFD: -1, snapsFD: -1, stacksFD: -1, tmpFD: -1, locksFD: -1, leasesFD: -1, damagedFD: -1}
	if err := s.open(o.UserXattrs || os.Geteuid() != 0); err != nil {
		s.closeFDs()
		return nil, fmt.Errorf("layerfs: open store %s: %w", abs, err)
	}
	if s.driver, err = open(DriverConfig{Dir: abs, Logger: o.Logger}); err != nil {
		s.closeFDs()
		return nil, fmt.Errorf("layerfs: open store %s: snapshot driver: %w", abs, err)
	}
	if err := s.sweep(); err != nil {
		s.log.Warn("sweeping the store", "dir", abs, "error", err)
	}
	return s, nil
}

func (s *Store) open(userXattrs bool) error {
	var err error
	if s.rootFD, err = openDir(unix.AT_FDCWD, s.dir); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(s.rootFD, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	// Others must not reach setuid programs in the layers (CVE-2021-41091).
	if st.Mode&0o077 != 0 {
		if err := unix.Fchmod(s.rootFD, 0o700); err != nil {
			return fmt.Errorf("the store's directory is open to others and cannot be closed (chmod 0700): %w", err)
		}
	}
	format, err := s.readFormat()
	if errors.Is(err, fs.ErrNotExist) || err == nil && format.Version < formatVersion {
		if err = s.create(userXattrs); err == nil {
			format, err = s.readFormat()
		}
	}
	if err != nil {
		return err
	}
	s.userXattrs = format.Xattrs == "user"
	s.syncer = newSyncer(s.rootFD)
	for _, d := range []struct {
		fd   *int
		name string
	}{{&s.blobsFD, "blobs/sha256"}, {&s.layersFD, "layers"}, {&s.snapsFD, "snapshots"}, {&s.stacksFD, "stacks"}, {&s.tmpFD, "tmp"}, {&s.locksFD, "locks"},
		{&s.leasesFD, "leases"}, {&s.damagedFD, "damaged"}} {
		// A layout that another tool made may come from anywhere: sweeping what a link in it leads to would delete the
		// files of the host.
		if *d.fd, err = openBeneath(s.rootFD, d.name, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
			return &fs.PathError{Op: "open", Path: d.name, Err: err}
		}
	}
	return nil
}

func (s *Store) readFormat() (storeFormat, error) {
	var f storeFormat
	data, err := readFileAt(s.rootFD, "format", 4096)
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return f, fmt.Errorf("%w: file format: %w", ErrFormat, err)
	}
	if f.Version < 1 || f.Version > formatVersion {
		return f, fmt.Errorf("%w: it has version %d, this program knows those up to %d: use a newer version of this package or another directory", ErrFormat, f.Version, formatVersion)
	}
	if f.Xattrs != "trusted" && f.Xattrs != "user" {
		return f, fmt.Errorf("%w: xattr flavour %q", ErrFormat, f.Xattrs)
	}
	return f, nil
}

// create makes the store's files, or those that an older format did not have; "format", whose version says that all of
// that version are there, is the last. A program of an older version that has the store open meanwhile goes on, but
// knows nothing of leases.
func (s *Store) create(userXattrs bool) error {
	names, err := readNames(s.rootFD)
	if err != nil {
		return err
	}
	known := map[string]bool{".lock": true, "oci-layout": true, "index.json": true, "blobs": true, "ingest": true}
	isLayout := false
	for _, n := range names {
		isLayout = isLayout || n == "oci-layout" || n == ".lock"
	}
	for _, n := range names {
		if !isLayout && !known[n] {
			return fmt.Errorf("%w: the directory holds other files (%s): choose an empty one", ErrFormat, n)
		}
	}
	l, err := lockFile(context.Background(), lockorder.Root, s.rootFD, ".lock", true)
	if err != nil {
		return err
	}
	defer l.release()
	// The name .lock says that all others are ours: after a power cut none may be there without it.
	if err := syncDir(s.rootFD); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	old, err := s.readFormat()
	if err == nil && old.Version == formatVersion || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	layout, err := readFileAt(s.rootFD, "oci-layout", 4096)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := writeFileAt(s.rootFD, "oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`), true); err != nil {
			return err
		}
	case err != nil:
		return err
	case !bytes.Contains(layout, []byte(`"1.0.0"`)):
		return fmt.Errorf("%w: oci-layout says %q", ErrFormat, layout)
	}
	if err := unix.Faccessat(s.rootFD, "index.json", unix.F_OK, 0); err == unix.ENOENT {
		if err := writeFileAt(s.rootFD, "index.json", emptyIndex(), true); err != nil {
			return err
		}
	}
	// "blobs" may be a link of somebody else's, see open.
	if err := unix.Mkdirat(s.rootFD, "blobs", 0o700); err != nil && err != unix.EEXIST {
		return fmt.Errorf("mkdir blobs: %w", err)
	}
	blobs, err := openBeneath(s.rootFD, "blobs", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return &fs.PathError{Op: "open", Path: "blobs", Err: err}
	}
	defer unix.Close(blobs)
	if err := unix.Mkdirat(blobs, "sha256", 0o700); err != nil && err != unix.EEXIST {
		return fmt.Errorf("mkdir blobs/sha256: %w", err)
	}
	for _, d := range storeDirs {
		if err := unix.Mkdirat(s.rootFD, d, 0o700); err != nil && err != unix.EEXIST {
			return fmt.Errorf("mkdir %s: %w", d, err)
		}
		crashpoint.At("store: directory made")
	}
	// "empty" is a lower directory of snapshots without layers: its mode shows nowhere.
	flavour := "trusted"
	if userXattrs {
		flavour = "user"
	}
	if old.Xattrs != "" {
		flavour = old.Xattrs
	}
	data, err := json.Marshal(storeFormat{Version: formatVersion, Xattrs: flavour})
	if err != nil {
		return err
	}
	// The directories in blobs too: syncing the one above says nothing about them.
	if err := unix.Syncfs(s.rootFD); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return writeFileAt(s.rootFD, "format", data, true)
}

// Dir returns the absolute path of the store.
func (s *Store) Dir() string { return s.dir }

// Close waits for the calls in progress, and until the files of removed snapshots are gone, and frees what the store
// holds in this process. Mounts made by it stay.
func (s *Store) Close() error {
	if !s.calls.close() {
		return nil
	}
	s.closeTrash()
	s.syncer.close()
	err := s.driver.Close()
	s.closeFDs()
	return err
}

func (s *Store) closeFDs() {
	for _, fd := range []int{s.rootFD, s.blobsFD, s.layersFD, s.snapsFD, s.stacksFD, s.tmpFD, s.locksFD, s.leasesFD, s.damagedFD} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// calls counts the public calls in progress, which Close waits for. They may be nested.
type calls struct {
	mu     sync.Mutex
	n      int
	closed bool
	idle   chan struct{} // made by close, closed when n is 0
}

func (c *calls) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.n++
	return true
}

func (c *calls) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 && c.closed {
		close(c.idle)
	}
}

// close lets nobody in any more and waits for those inside. It returns false to all but the first.
func (c *calls) close() bool {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return false
	}
	c.closed, c.idle = true, make(chan struct{})
	if c.n == 0 {
		close(c.idle)
	}
	c.mu.Unlock()
	<-c.idle
	return true
}

// enter begins a public call, which must end with leave.
func (s *Store) enter() error {
	if !s.calls.enter() {
		return fmt.Errorf("layerfs: store %s: %w", s.dir, ErrClosed)
	}
	return nil
}

func (s *Store) leave() { s.calls.leave() }

// tempDir is a directory under tmp that its maker holds an flock on. Whoever can take the lock knows that the maker is
// dead.
type tempDir struct {
	s    *Store
	name string
	fd   int
}

func (s *Store) newTemp() (*tempDir, error) {
	for {
		name := randomName()
		if err := unix.Mkdirat(s.tmpFD, name, 0o700); err == unix.EEXIST {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("make temporary directory in %s/tmp: %w", s.dir, err)
		}
		crashpoint.At("temporary directory: made")
		fd, err := openDir(s.tmpFD, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a sweeper was faster
		} else if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		if flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil && unix.Fstat(fd, &st) == nil && st.Nlink > 0 {
			return &tempDir{s: s, name: name, fd: fd}, nil
		}
		unix.Close(fd) // a sweeper holds it, and removes it
	}
}

func (t *tempDir) path() string { return t.s.dir + "/tmp/" + t.name }

func (t *tempDir) remove() {
	if err := removeTree(t.s.tmpFD, t.name); err != nil {
		t.s.log.Warn("removing a temporary directory: the next open tries again", "dir", t.path(), "error", err)
	}
	unix.Close(t.fd)
	crashpoint.At("temporary directory: gone")
}

// sweep removes temporary directories, leases and lock files whose owner is dead.
func (s *Store) sweep() error {
	names, err := readNames(s.tmpFD)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		fd, err := openDir(s.tmpFD, n)
		if err != nil {
			continue
		}
		if flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			errs = append(errs, removeTree(s.tmpFD, n))
			crashpoint.At("sweep: a temporary directory is gone")
		}
		unix.Close(fd)
	}
	for _, dir := range []int{s.locksFD, s.leasesFD} {
		if names, err = readNames(dir); err != nil {
			return err
		}
		for _, n := range names {
			if l, err := tryLockFile(dir, n, false); err == nil && l != nil {
				l.release()
				crashpoint.At("sweep: a lock or lease is gone")
			}
		}
	}
	if unix.Faccessat(s.rootFD, "index.json.new", unix.F_OK, 0) == nil {
		if l, err := tryLockFile(s.locksFD, "index", false); err == nil && l != nil {
			errs = append(errs, removeTree(s.rootFD, "index.json.new")) // nobody is writing it
			l.release()
			crashpoint.At("sweep: a half-written index is gone")
		}
	}
	return errors.Join(errs...)
}

func openDir(at int, name string) (int, error) {
	fd, err := openatRetry(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

func openatRetry(at int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(at, name, flags, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// readFileAt reads a whole small file of the store.
func readFileAt(at int, name string, max int64) ([]byte, error) {
	fd, err := openatRetry(at, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, max)
	}
	return data, nil
}

// writeFileAt replaces a file of the store by rename. With sync it survives a power cut, old or new, never half. One
// writer at a time: what a killed one left is overwritten by the next.
func writeFileAt(at int, name string, data []byte, sync bool) error {
	tmp := name + ".new"
	fd, err := openatRetry(at, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return &fs.PathError{Op: "create", Path: tmp, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(data)
	if err == nil && sync {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		crashpoint.At("write " + name + ": written")
		if err = unix.Renameat(at, tmp, at, name); err != nil {
			err = &fs.PathError{Op: "rename", Path: name, Err: err}
		}
	}
	if err != nil {
		_ = unix.Unlinkat(at, tmp, 0)
		return err
	}
	crashpoint.At("write " + name + ": renamed")
	if sync {
		return syncDir(at)
	}
	return nil
}

// syncDir makes the names in a directory durable.
func syncDir(fd int) error {
	for {
		if err := unix.Fsync(fd); err != unix.EINTR {
			return err
		}
	}
}

func readNames(dirFD int) ([]string, error) {
	fd, err := openDir(dirFD, ".") // a file position of our own
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "directory")
	defer f.Close()
	return f.Readdirnames(-1)
}
