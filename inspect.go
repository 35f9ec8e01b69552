package coracle

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/internal/statefile"
)

// ContainerInfo is what there is to know about a container at one moment.
type ContainerInfo struct {
	ID     string
	Name   string
	Status ContainerStatus
	PID    int // of the first process, in the importing program's pid namespace; 0 if it is not running
	// KeeperPID is the process that keeps a detached container while it runs, or 0.
	KeeperPID int
	Image     string        // as in the spec
	ImageID   digest.Digest // of the image's configuration
	Labels    map[string]string

	Created  time.Time
	Started  time.Time // zero if it was never started
	Finished time.Time // zero if it is running or was never started
	Exit     *ExitStatus
	// Health is what health checks have found, or nil without any.
	Health *Health
	// RestartCount is how often the restart policy has started the container since a program did. Restarting says that it has
	// ended and that its policy wants it to be started again: whoever supervises the root does, after a pause.
	RestartCount int
	Restarting   bool
	// LogDroppedBytes is how much of the output of a detached container was lost since its last start because the disk
	// was full, and LogFull whether it is at present.
	LogDroppedBytes uint64
	LogFull         bool

	// Networks are where the container is connected while it runs, and Ports what is published of it.
	Networks []EndpointInfo
	Ports    []PublishedPort

	// Spec is what Create was given.
	Spec ContainerSpec
	// OCI is the final runtime spec of the last start, after Customize; nil before the first, and where a power failure
	// has taken it.
	OCI *specs.Spec
}

// Inspect tells what there is to know about the container. The error matches fs.ErrNotExist if it was removed.
func (c *Container) Inspect(ctx context.Context) (*ContainerInfo, error) {
	st, err := c.current()
	if err != nil {
		return nil, c.fail("inspect", err)
	}
	info := &ContainerInfo{
		ID: st.ID, Name: st.Name, Status: c.eng.status(st), PID: st.PID, Image: st.Spec.Image, ImageID: st.ImageID,
		Labels: st.Resolved.Labels, Created: st.Created, Started: st.Started, Finished: st.Finished, Exit: st.Exit,
		Spec: st.Spec, OCI: st.spec, RestartCount: st.Restarts,
	}
	info.Restarting, _, _ = st.restart()
	if info.Health, err = c.eng.health(st); err != nil {
		return nil, c.fail("inspect", err)
	}
	if st.kept() {
		info.KeeperPID = st.KeeperPID
	}
	if st.Spec.Detached && st.Status != StatusCreated {
		if r, err := c.eng.keeperRecord(c.id); err == nil {
			info.LogDroppedBytes, info.LogFull = r.DroppedBytes, r.LogFull
		}
	}
	if st.Status == StatusRunning {
		list, err := c.eng.endpointsOf(st.ID)
		if err != nil {
			return nil, c.fail("inspect", err)
		}
		for _, one := range list {
			info.Networks = append(info.Networks, one.state.info(one.network))
			info.Ports = append(info.Ports, one.state.Ports...)
		}
	}
	if info.OCI == nil && st.Status != StatusCreated {
		spec := &specs.Spec{}
		err := statefile.Read(c.eng.containerDir(c.id), "config.json", spec)
		if err == nil {
			info.OCI = spec
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, statefile.ErrTorn) { // it is not synced
			return nil, c.fail("inspect", err)
		}
	}
	return info, nil
}

// containers implements Containers.
func (e *Engine) containers(filter *ContainerFilter) ([]*Container, error) {
	if err := e.use(); err != nil {
		return nil, err
	}
	ids, err := e.containerIDs()
	if err != nil {
		return nil, err
	}
	type found struct {
		c       *Container
		created time.Time
	}
	var all []found
	for _, id := range ids {
		c, err := e.handle(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		st, err := c.current()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if filter.matches(st, e.status) {
			all = append(all, found{c, st.Created})
		}
	}
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.c.id, b.c.id))
	})
	list := make([]*Container, len(all))
	for i, f := range all {
		list[i] = f.c
	}
	return list, nil
}

func (f *ContainerFilter) matches(st *containerState, status func(*containerState) ContainerStatus) bool {
	if f == nil {
		return true
	}
	for k, want := range f.Labels {
		if v, ok := st.Resolved.Labels[k]; !ok || want != "" && v != want {
			return false
		}
	}
	return (f.Status == "" || f.Status == status(st)) && (f.Image == "" || f.Image == st.Spec.Image)
}
