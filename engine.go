package coracle

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/filelock"
	"github.com/coracle-dev/coracle/internal/lockorder"
	"github.com/coracle-dev/coracle/internal/statefile"
	"github.com/coracle-dev/coracle/layerfs"
	"github.com/coracle-dev/coracle/nsexec"
)

// Config says where an engine keeps things and how it works. The zero Config works.
type Config struct {
	// Root is the directory of images, layers and containers. Any number of processes may open one root at once, all
	// on one host. Empty means /var/lib/coracle for root, and coracle below $XDG_DATA_HOME (or ~/.local/share) for
	// others.
	Root string
	// Run is the directory of what does not outlive the boot. Empty means /run/coracle for root, and coracle below
	// $XDG_RUNTIME_DIR for others. It is made when it is first needed.
	Run string
	// CgroupParent is the cgroup under which the containers' groups are made, as a path from the root of the
	// hierarchy ("/coracle"). Empty means the best place there is; see package cgroup.
	CgroupParent string
	// Driver is the name of the layerfs driver that makes root filesystems. Empty means "overlay".
	Driver string
	// UnpackLimits bound what one layer of an image may unpack to. Zero fields mean the defaults of layerfs.
	UnpackLimits layerfs.Limits
	// Registry says how images are pulled. The zero value works.
	Registry RegistryConfig
	// Logger receives what is worth knowing and is no error. Nil discards.
	Logger *slog.Logger
}

// An Engine is an open root: images and containers, and the means to make more. Its methods may be called from many
// goroutines. Close it in the end.
type Engine struct {
	config Config
	root   string
	log    *slog.Logger
	store  *layerfs.Store
	owner  *owner

	cgroups  *cgroup.Hierarchy
	launcher nsexec.Launcher

	pullState // image.go, pull.go
	events    eventLog
	watch     stateWatch

	commands  commands   // exectarget.go
	sockets   sockets    // dial.go
	listeners listeners  // listen.go
	nets      networking // networking.go

	mu     sync.Mutex
	owned  map[string]*Container // by id: those that this engine answers for
	closed bool
	busy   sync.WaitGroup // operations that Close waits for, see begin

	closing context.Context // done when Close begins
	close   context.CancelFunc
}

// rootFormat is the version of the directory layout. See state.go and sweep.go.
const rootFormat = 1

// rootRecord is engine.json of a root: what has to stay the same.
type rootRecord struct {
	Version int
	Host    string // see hostID
}

// Open opens the root, making it where it does not exist, and removes what engines left that were killed: see Close for
// what a program leaves that ends in order.
//
// Errors match fs.ErrPermission where the root cannot be used by this user, and errors.ErrUnsupported where the system
// has no containers. A root of another host, one on a shared network filesystem for example, is refused.
func Open(ctx context.Context, config Config) (*Engine, error) {
	e, err := open(ctx, config)
	if err != nil {
		return nil, &OpError{Op: "open", Kind: "engine", Name: config.Root, Err: err}
	}
	return e, nil
}

func open(ctx context.Context, config Config) (_ *Engine, err error) {
	if runtime.GOOS != "linux" {
		return nil, &UnsupportedError{Feature: "running containers on " + runtime.GOOS, Fix: "use Linux, or a virtual machine with it"}
	}
	if config.Root, err = rootDir(config.Root); err != nil {
		return nil, err
	}
	log := config.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{config: config, root: config.Root, log: log, owned: make(map[string]*Container)}
	e.closing, e.close = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			e.release()
		}
	}()
	for _, dir := range []string{e.root, e.containersDir(), e.namesDir(), e.ownersDir(), e.eventsDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		crashpoint.At("open: directory made")
	}
	if err := e.checkRoot(ctx); err != nil {
		return nil, err
	}
	e.openEvents()
	e.store, err = layerfs.OpenStore(filepath.Join(e.root, "store"), &layerfs.StoreOptions{Driver: config.Driver, Limits: config.UnpackLimits, Logger: log})
	if err != nil {
		return nil, err
	}
	e.cgroups, err = cgroup.Open(cgroup.Config{Parent: config.CgroupParent, Logger: log})
	if err != nil {
		return nil, err
	}
	if e.owner, err = newOwner(e.ownersDir()); err != nil {
		return nil, err
	}
	if err := e.sweep(ctx); err != nil {
		return nil, err
	}
	if run := runDir(config.Run); run != "" {
		e.launcher.Dir = filepath.Join(run, "plans", e.owner.id) // made only where it is needed
	}
	return e, nil
}

// Close ends the engine's running containers (they are attached to it) and waits for them, removes those that have
// AutoRemove set, and frees everything. Containers that were created or have stopped stay in the root; so do images.
// Further calls do nothing.
//
// A program that ends without Close, or is killed, takes its running containers with it too: the kernel sees to that.
// The next Open of the root then removes what is left of them.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	e.mu.Unlock()
	e.close()
	e.busy.Wait()
	e.listeners.close()
	e.mu.Lock()
	owned := slices.Collect(maps.Values(e.owned))
	e.mu.Unlock()

	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for _, c := range owned {
		wg.Go(func() {
			if err := c.shutDown(); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := e.release(); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return &OpError{Op: "close", Kind: "engine", Name: e.root, Err: errors.Join(errs...)}
	}
	return nil
}

// release frees what open took, in the opposite order.
func (e *Engine) release() error {
	e.close()
	var errs []error
	errs = append(errs, e.launcher.Close())
	e.commands.close()
	if e.launcher.Dir != "" {
		errs = append(errs, os.RemoveAll(e.launcher.Dir))
	}
	errs = append(errs, e.nets.close(e), e.closeEvents())
	if e.owner != nil {
		errs = append(errs, e.owner.close())
	}
	if e.cgroups != nil {
		errs = append(errs, e.removeKeepers())
		errs = append(errs, e.cgroups.Close())
	}
	if e.store != nil {
		errs = append(errs, e.store.Close())
	}
	return errors.Join(errs...)
}

// Root returns the absolute path of the engine's root.
func (e *Engine) Root() string { return e.root }

func (e *Engine) containersDir() string { return filepath.Join(e.root, "containers") }
func (e *Engine) namesDir() string      { return filepath.Join(e.root, "names") }
func (e *Engine) ownersDir() string     { return filepath.Join(e.root, "owners") }

// checkRoot refuses a root of another host or of a later version.
func (e *Engine) checkRoot(ctx context.Context) error {
	var r rootRecord
	err := statefile.Read(e.root, "engine.json", &r)
	if errors.Is(err, os.ErrNotExist) {
		// Two programs may come here at once: the first one's record stands.
		lock, lockErr := os.OpenFile(filepath.Join(e.root, "engine.lock"), os.O_RDWR|os.O_CREATE, 0o600)
		if lockErr != nil {
			return lockErr
		}
		defer lock.Close()
		if lockErr := filelock.Lock(ctx, lock); lockErr != nil {
			return lockErr
		}
		defer lockorder.Taken(lockorder.Root, "engine.lock")()
		if err = statefile.Read(e.root, "engine.json", &r); errors.Is(err, os.ErrNotExist) {
			r = rootRecord{Version: rootFormat, Host: hostID()}
			err = statefile.WriteSynced(e.root, "engine.json", r) // a torn one would close the root for ever
		}
	}
	switch {
	case err != nil:
		return err
	case r.Version != rootFormat:
		return fmt.Errorf("%w: the root has format %d, this program knows %d: use the version of coracle that made it, or another root", ErrInvalid, r.Version, rootFormat)
	case r.Host != hostID():
		return fmt.Errorf("%w: the root belongs to another host (%s, this is %s): locks and processes are not shared between hosts; use another root", ErrInvalid, r.Host, hostID())
	}
	return nil
}

// hostID names the host: its machine-id where it has one, else its host name.
func hostID() string {
	if b, err := os.ReadFile("/etc/machine-id"); err == nil && len(b) >= 32 {
		return string(b[:32])
	}
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return "name:" + name
}

func rootDir(dir string) (string, error) {
	if dir != "" {
		return filepath.Abs(dir)
	}
	if os.Geteuid() == 0 {
		return "/var/lib/coracle", nil
	}
	if data := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(data) {
		return filepath.Join(data, "coracle"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find a place for the root: %w: set Config.Root", err)
	}
	return filepath.Join(home, ".local", "share", "coracle"), nil
}

func runDir(dir string) string {
	if dir != "" {
		return dir
	}
	if os.Geteuid() == 0 {
		return "/run/coracle"
	}
	if run := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(run) {
		return filepath.Join(run, "coracle")
	}
	return ""
}

// use returns ErrClosed once the engine is closed.
func (e *Engine) use() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return ErrClosed
	}
	return nil
}

// begin is use for an operation that makes or changes a container: Close cancels its context and waits until done is
// called.
func (e *Engine) begin(ctx context.Context) (_ context.Context, done func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, nil, ErrClosed
	}
	e.busy.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(e.closing, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
		e.busy.Done()
	}, nil
}

// newID returns n random bytes in hexadecimal.
func newID(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}
