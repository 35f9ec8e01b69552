package layerfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/crashpoint"
)

// stack is the layers of an image as snapshots use them. It is written once for each image; a snapshot then only names
// it, in the target of a symbolic link, which costs one system call.
type stack struct {
	Version int      `json:"version"`
	Keys    []string `json:"layers"` // lowest first, each once
	Root    RootAttr `json:"root"`

	id    string
	paths []string
	// uses is how many snapshots of it this process has made.
	uses atomic.Int64
}

// Snapshot is a root filesystem: layers that nobody changes, and a directory of its own that takes what is written.
// The handle holds nothing; any process may have one for the same snapshot.
type Snapshot struct {
	s        *Store
	id       string
	stack    *stack
	volatile bool
}

// The link "layers" in a snapshot's directory is made last: with it the snapshot is whole.
const stackLink = "layers"

func checkID(id string) error {
	if id == "" || len(id) > 128 {
		return fmt.Errorf("id %q must have 1 to 128 characters: %w", id, fs.ErrInvalid)
	}
	for i, c := range []byte(id) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', i > 0 && (c == '.' || c == '-'):
		default:
			return fmt.Errorf("id %q may have letters, digits, '_', '.' and '-', not first: %w", id, fs.ErrInvalid)
		}
	}
	return nil
}

// stackIDOf names the stack of some layers.
func stackIDOf(layers []Layer) string {
	var b strings.Builder
	for _, l := range layers {
		b.WriteString(l.Key)
		b.WriteByte('\n')
	}
	sum := sha256.Sum256([]byte(b.String()))
	return hex.EncodeToString(sum[:16])
}

// stackFor finds or writes the stack of some layers.
func (s *Store) stackFor(layers []Layer) (*stack, error) {
	id := stackIDOf(layers)
	s.stacksMu.Lock()
	defer s.stacksMu.Unlock()
	if st := s.stacks[id]; st != nil {
		if unix.Faccessat(s.stacksFD, id, unix.F_OK, 0) == nil {
			return st, nil
		}
		delete(s.stacks, id) // collected, as its layers were
	}
	st, err := s.loadStack(id)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return st, err
	}
	st = &stack{Version: recordVersion, Root: RootAttr{Mode: 0o755}} // where no layer says anything
	// The topmost of two equal layers counts: what the lower one has it has too. Overlay refuses a directory twice.
	seen := make(map[string]bool)
	for i := len(layers) - 1; i >= 0; i-- {
		key := layers[i].Key
		if !validKey(key) {
			return nil, fmt.Errorf("layer key %q: %w", key, fs.ErrInvalid)
		}
		if !seen[key] {
			seen[key] = true
			st.Keys = append([]string{key}, st.Keys...)
		}
	}
	for i := len(st.Keys) - 1; i >= 0; i-- {
		rec, err := s.readLayer(st.Keys[i])
		if err != nil {
			return nil, err
		}
		if rec.Root != nil {
			st.Root = *rec.Root
			break
		}
	}
	data, err := json.Marshal(st)
	if err != nil {
		return nil, err
	}
	if err := s.writeStack(id, data); err != nil {
		return nil, err
	}
	s.addStack(id, st)
	return st, nil
}

// writeStack may be called by many processes at once, which then write the same.
func (s *Store) writeStack(id string, data []byte) error {
	t, err := s.newTemp()
	if err != nil {
		return err
	}
	defer t.remove()
	if err := writeFileAt(t.fd, "stack", data, true); err != nil {
		return err
	}
	if err := unix.Renameat(t.fd, "stack", s.stacksFD, id); err != nil {
		return &fs.PathError{Op: "rename", Path: "stacks/" + id, Err: err}
	}
	crashpoint.At("snapshot: list of layers in sight")
	return syncDir(s.stacksFD)
}

// loadStack is called with stacksMu held.
func (s *Store) loadStack(id string) (*stack, error) {
	if st := s.stacks[id]; st != nil {
		return st, nil
	}
	st, err := s.readStack(id)
	if err != nil {
		return nil, err
	}
	s.addStack(id, st)
	return st, nil
}

func (s *Store) readStack(id string) (*stack, error) {
	data, err := readFileAt(s.stacksFD, id, 1<<20)
	if err != nil {
		return nil, err
	}
	st := new(stack)
	if err := json.Unmarshal(data, st); err != nil {
		return nil, fmt.Errorf("layer stack %s: %w: %w", id, ErrCorrupt, err)
	}
	if st.Version != recordVersion {
		return nil, fmt.Errorf("layer stack %s: %w: version %d", id, ErrFormat, st.Version)
	}
	for _, k := range st.Keys {
		if !validKey(k) {
			return nil, fmt.Errorf("layer stack %s: %w: key %q", id, ErrCorrupt, k)
		}
	}
	return st, nil
}

func (s *Store) addStack(id string, st *stack) {
	st.id = id
	for _, k := range st.Keys {
		st.paths = append(st.paths, s.dir+"/layers/"+k+"/fs")
	}
	s.stacks[id] = st
}

// NewSnapshot makes a snapshot of layers, lowest first; none at all gives an empty root. The id, of letters, digits,
// '_', '.' and '-', is the caller's; one that is in use is fs.ErrExist. Nothing is synced: a snapshot made right
// before a power cut may be half there, and is then none (see RemoveSnapshot).
func (s *Store) NewSnapshot(ctx context.Context, id string, layers []Layer, opts *SnapshotOptions) (*Snapshot, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	fail := func(err error) (*Snapshot, error) {
		return nil, fmt.Errorf("layerfs: new snapshot %s: %w", id, err)
	}
	if err := checkID(id); err != nil {
		return fail(err)
	}
	st, err := s.stackFor(layers)
	if err != nil {
		return fail(err)
	}
	n := &Snapshot{s: s, id: id, stack: st}
	target := "s:" + st.id
	if opts != nil && opts.Volatile {
		n.volatile = true
		target = "v:" + st.id
	}
	if st.uses.Add(1) > 1 {
		if made, err := s.takeSpare(target, id); err != nil {
			return fail(err)
		} else if made {
			return n, nil
		}
	}
	if err := unix.Mkdirat(s.snapsFD, id, 0o700); err != nil {
		return fail(&fs.PathError{Op: "mkdir", Path: "snapshots/" + id, Err: err})
	}
	crashpoint.At("snapshot: directory made")
	dir, err := n.openDir()
	if err == nil {
		sd := n.snapshotDir(dir)
		if err = s.driver.Prepare(ctx, sd); err == nil {
			crashpoint.At("snapshot: prepared")
			err = unix.Symlinkat(target, dir, stackLink)
			crashpoint.At("snapshot: complete")
		}
		unix.Close(dir)
	}
	if err != nil {
		if rerr := removeTree(s.snapsFD, id); rerr != nil {
			s.log.Warn("removing a half-made snapshot", "id", id, "error", rerr)
		}
		return fail(err)
	}
	return n, nil
}

func (n *Snapshot) openDir() (int, error) {
	fd, err := openatRetry(n.s.snapsFD, n.id, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: "snapshots/" + n.id, Err: err}
	}
	return fd, nil
}

func (n *Snapshot) snapshotDir(dir int) *SnapshotDir {
	return &SnapshotDir{Dir: dir, Path: n.s.dir + "/snapshots/" + n.id, LayerPaths: n.stack.paths, Root: n.stack.Root,
		UserXattrs: n.s.userXattrs, Volatile: n.volatile}
}

// OpenSnapshot finds a snapshot by id. One that does not exist, or was never completed, is fs.ErrNotExist.
func (s *Store) OpenSnapshot(id string) (*Snapshot, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	if err := checkID(id); err != nil {
		return nil, fmt.Errorf("layerfs: open snapshot: %w", err)
	}
	target, err := readlinkAt(s.snapsFD, id+"/"+stackLink)
	if err != nil {
		return nil, fmt.Errorf("layerfs: open snapshot %s: %w", id, err)
	}
	kind, stackID, ok := strings.Cut(target, ":")
	if raw, err := hex.DecodeString(stackID); !ok || kind != "s" && kind != "v" || err != nil || len(raw) != 16 {
		return nil, fmt.Errorf("layerfs: open snapshot %s: %w: layers %q", id, ErrCorrupt, target)
	}
	s.stacksMu.Lock()
	st, err := s.loadStack(stackID)
	s.stacksMu.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		// The snapshot was completed, so it is none that may be taken for half-made.
		err = fmt.Errorf("%w: its list of layers is gone", ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("layerfs: open snapshot %s: %w", id, err)
	}
	return &Snapshot{s: s, id: id, stack: st, volatile: kind == "v"}, nil
}

// Snapshots returns the ids of all snapshots, half-made ones too, in no order.
func (s *Store) Snapshots() ([]string, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	names, err := readNames(s.snapsFD)
	if err != nil {
		return nil, fmt.Errorf("layerfs: list snapshots: %w", err)
	}
	return names, nil
}

// RemoveSnapshot removes a snapshot by id, whole or half-made. A missing one is no error.
func (s *Store) RemoveSnapshot(ctx context.Context, id string) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if err := checkID(id); err != nil {
		return fmt.Errorf("layerfs: remove snapshot: %w", err)
	}
	return s.removeSnapshot(ctx, id)
}

// ID returns the id the snapshot was made with.
func (n *Snapshot) ID() string { return n.id }

// Mount returns a detached mount of the root filesystem: an O_PATH-like descriptor that move_mount(2) attaches (once),
// and *at calls and openat2 work below. The mount lives as long as the descriptor, or where it was moved to. The caller
// closes it, and sees to it that a snapshot is mounted writable once at a time: overlayfs does not.
func (n *Snapshot) Mount(ctx context.Context, opts *MountOptions) (*os.File, error) {
	if err := n.s.enter(); err != nil {
		return nil, err
	}
	defer n.s.leave()
	var o MountOptions
	if opts != nil {
		o = *opts
	}
	dir, err := n.openDir()
	if err != nil {
		return nil, fmt.Errorf("layerfs: mount snapshot: %w", err)
	}
	defer unix.Close(dir)
	f, err := n.s.driver.Mount(ctx, n.snapshotDir(dir), &o)
	if err != nil {
		return nil, fmt.Errorf("layerfs: mount snapshot %s: %w", n.id, err)
	}
	return f, nil
}

// Remove removes the snapshot and all that was written into it. It is gone when Remove returns; its files are deleted
// after, its empty directories may serve another snapshot, and all is gone when Close returns. No process may be using it. That it is gone already is no error.
func (n *Snapshot) Remove(ctx context.Context) error {
	if err := n.s.enter(); err != nil {
		return err
	}
	defer n.s.leave()
	return n.s.removeSnapshot(ctx, n.id)
}

// removeSnapshot does not look at ctx: callers clean up with one that is over, and a rename waits for nothing.
func (s *Store) removeSnapshot(_ context.Context, id string) error {
	err := s.discard(id)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("layerfs: remove snapshot %s: %w", id, err)
	}
	return nil
}
