package coracle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/statefile"
	"github.com/coracle-dev/coracle/layerfs"
)

// A container is a directory, containers/<id>. It appears by a rename when its state is in it, and everything else that
// belongs to the container (name, snapshot, cgroup) is made after it and removed before it. So whatever has no
// directory is left over, and whatever has one has an owner.
//
//	containers/<id>/state.json    containerState
//	containers/<id>/changes.json  what Rename, Update and Stop changed since: containerChanges
//	containers/<id>/health.json   what health checks have found: healthRecord
//	containers/<id>/config.json   the OCI runtime spec of the last start
//	containers/<id>/hosts, hostname, resolv.conf
//	containers/.<owner>.<id>      being made or removed by that owner
//	containers/<id>/log/          what the container wrote, see docs/log-format.md
//	containers/<id>/stdin, control  what others write to it, with OpenStdin
//	containers/<id>/keeper        the exit record of a detached container, see detached.go
//	names/<name>                  symbolic link to the id
//	owners/<owner>                locked while that engine is open

// ContainerStatus is where a container is in its life.
type ContainerStatus string

// The statuses of a container.
const (
	StatusCreated ContainerStatus = "created" // never started
	StatusRunning ContainerStatus = "running"
	StatusPaused  ContainerStatus = "paused" // running, but stopped by Pause
	StatusExited  ContainerStatus = "exited" // started and ended
)

// containerState is state.json.
type containerState struct {
	Version int
	ID      string
	Name    string
	Owner   string          // of the engine that answers for it, or empty
	Status  ContainerStatus // StatusRunning also of one that is paused: the kernel knows that, see Engine.status

	Spec     ContainerSpec
	Resolved resolvedSpec
	ImageID  digest.Digest
	Layers   []layerfs.Layer

	Created  time.Time
	Started  time.Time
	Finished time.Time

	// PID is the first process's; BootID and StartTime tell it from a later process with the same number.
	PID       int
	BootID    string
	StartTime uint64
	Exit      *ExitStatus
	// KeeperPID is the process that keeps a detached container, from its start until its end is noted; KeeperStart
	// tells it from a later one with the same number.
	KeeperPID   int    `json:",omitempty"`
	KeeperStart uint64 `json:",omitempty"`
	// Starts counts the starts, the present one included.
	Starts int `json:",omitempty"`
	// Restarts counts those that its restart policy has made since somebody started it, and Backoff is how long the last one
	// of them has waited.
	Restarts int           `json:",omitempty"`
	Backoff  time.Duration `json:",omitempty"`
	// Customized says that the spec has a Customize function, which only the program that created the container has.
	Customized bool `json:",omitempty"`

	spec    *specs.Spec // of the last start by this engine; others read config.json
	stopped *stopMark   // of changes.json
}

const stateVersion = 1

// readState reads the state of a container by id. The error matches fs.ErrNotExist if there is none.
func (e *Engine) readState(id string) (*containerState, error) {
	if !validID(id) {
		return nil, fmt.Errorf("no container has the id %q: %w", id, fs.ErrNotExist)
	}
	st := &containerState{}
	if err := statefile.Read(filepath.Join(e.containersDir(), id), "state.json", st); err != nil {
		return nil, err
	}
	if st.Version != stateVersion || st.ID != id {
		return nil, fmt.Errorf("state of container %s (version %d, id %q): %w", id, st.Version, st.ID, ErrCorrupt)
	}
	if err := e.applyChanges(st); err != nil {
		return nil, err
	}
	return st, nil
}

// addState makes the container's directory.
func (e *Engine) addState(st *containerState) error {
	making := e.transientDir(e.owner.id, st.ID)
	if err := os.Mkdir(making, 0o700); err != nil {
		return err
	}
	crashpoint.At("create: directory made")
	b, err := json.Marshal(st)
	if err == nil {
		err = os.WriteFile(filepath.Join(making, "state.json"), b, 0o600) // nobody sees it before the rename
	}
	if err == nil {
		crashpoint.At("create: state written")
		err = os.Rename(making, e.containerDir(st.ID))
		crashpoint.At("create: container in sight")
	}
	if err != nil {
		os.RemoveAll(making)
	}
	return err
}

// removeState removes the container's directory, and calls gone when it is out of sight.
func (e *Engine) removeState(id string, gone func()) error {
	removing := e.transientDir(e.owner.id, id)
	err := os.Rename(e.containerDir(id), removing)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	crashpoint.At("discard: container out of sight")
	if err == nil {
		gone()
	}
	err = os.RemoveAll(removing)
	crashpoint.At("discard: container gone")
	return err
}

func (e *Engine) containerDir(id string) string { return filepath.Join(e.containersDir(), id) }

// transientDir is where an owner makes and removes a container's directory.
func (e *Engine) transientDir(owner, id string) string {
	return filepath.Join(e.containersDir(), "."+owner+"."+id)
}

// addName reserves the name for the container. The error matches fs.ErrExist if another one has it.
func (e *Engine) addName(name, id string) error {
	err := os.Symlink(id, filepath.Join(e.namesDir(), name))
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("the name %q is taken: %w: remove that container or choose another name", name, fs.ErrExist)
	}
	return err
}

// removeName frees the name if it is the container's.
func (e *Engine) removeName(name, id string) error {
	if name == "" || e.nameOf(name) != id {
		return nil
	}
	if err := os.Remove(filepath.Join(e.namesDir(), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// nameOf returns the id of the container with the name, or an empty string.
func (e *Engine) nameOf(name string) string {
	if !validName(name) {
		return ""
	}
	id, err := os.Readlink(filepath.Join(e.namesDir(), name))
	if err != nil || !validID(id) {
		return ""
	}
	return id
}

const idLength = 64

func validID(id string) bool {
	return len(id) == idLength && strings.Trim(id, "0123456789abcdef") == ""
}

// validName is Docker's rule, with a bound.
func validName(name string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	return name != "" && len(name) <= 128 && strings.ContainsRune(letters, rune(name[0])) && strings.Trim(name, letters+"_.-") == ""
}
