package coracle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/crashpoint"
)

// Update changes limits of the container, at once if it runs, and for its next starts, whoever owns it. As with docker
// update, fields that are zero stay as they are. -1 lifts Memory, with MemorySwap, CPUs, CPUQuota and PIDs; MemorySwap of
// -1 means unlimited swap, as ever. Devices cannot be updated. In a running container these overwrite what Customize has
// made of the same limits.
//
// It is all or nothing: if it fails the old limits stand, in the kernel and on the disk. The error matches ErrInvalid or
// is a *cgroup.InvalidError for limits that make no sense together with those that stay, is a *cgroup.LimitError if the
// kernel refused a value, among them a memory limit below what the container's processes hold (syscall.EBUSY), is a
// *cgroup.UnsupportedError if there is no such limit here, and matches fs.ErrNotExist if the container was removed.
func (c *Container) Update(ctx context.Context, limits cgroup.Limits) error {
	return c.fail("update", c.update(ctx, limits))
}

func (c *Container) update(ctx context.Context, change cgroup.Limits) error {
	e := c.eng
	if len(change.Devices) > 0 {
		return fmt.Errorf("%w: Devices: the devices of a container cannot be updated", ErrInvalid)
	}
	_, st, end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if !e.whole(st) {
		return fmt.Errorf("it is still being made: %w", fs.ErrNotExist)
	}
	old := st.Spec.Limits
	merged, resources, err := updatedLimits(old, change)
	if err != nil {
		return err
	}
	var group *cgroup.Group
	if alive(st) {
		if group, err = e.group(st.ID); errors.Is(err, fs.ErrNotExist) {
			// There are no cgroups, or it has just ended: the next start says whether there can be such limits.
			group, err = nil, nil
		}
		if err != nil {
			return err
		}
	}
	if group != nil {
		if err := fits(group, resources); err != nil {
			return err
		}
		err := group.Update(resources)
		if err != nil && !alive(st) {
			group, err = nil, nil // it has ended meanwhile, and its group is gone or on its way
		}
		if err != nil {
			return err
		}
	}
	crashpoint.At("update: limits set")
	if err := e.change(st.ID, func(ch *containerChanges) { ch.Limits = &merged }); err != nil {
		if group != nil {
			// The other way round, which lifts what was not limited.
			err = errors.Join(err, group.Update(undoLimits(old, change)))
		}
		return err
	}
	crashpoint.At("update: noted")
	e.emitContainer(st, ActionUpdate)
	return nil
}

// fits refuses a memory limit below what the container holds and the kernel cannot take away: version 2 would kill
// processes until it fits.
func fits(group *cgroup.Group, r *specs.LinuxResources) error {
	if r.Memory == nil || r.Memory.Limit == nil || *r.Memory.Limit < 0 {
		return nil
	}
	s, err := group.Stats()
	if err != nil || s.Memory == nil {
		return nil // the update says what is wrong
	}
	cache := s.Memory.File - min(s.Memory.File, s.Memory.Shmem)
	if held := s.Memory.Usage - min(s.Memory.Usage, cache); held > uint64(*r.Memory.Limit) {
		return &cgroup.LimitError{Feature: "memory limit", File: "memory.max", Value: fmt.Sprint(*r.Memory.Limit),
			Err: fmt.Errorf("%d bytes are held by its processes: %w", held, syscall.EBUSY)}
	}
	return nil
}

const lift = -1 // as a limit in an update

// updatedLimits lays a change on top of limits: the result, and what has to be written to a group for it.
func updatedLimits(old, change cgroup.Limits) (cgroup.Limits, *specs.LinuxResources, error) {
	m := old
	if change.Memory != 0 || change.MemorySwap != 0 || change.MemoryReservation != 0 {
		setIf(&m.Memory, change.Memory)
		setIf(&m.MemorySwap, change.MemorySwap)
		setIf(&m.MemoryReservation, change.MemoryReservation)
		if m.Memory == lift {
			m.Memory, m.MemorySwap = 0, 0
		}
	}
	switch {
	case change.CPUs != 0:
		m.CPUs, m.CPUQuota = change.CPUs, change.CPUQuota // both is an error of Validate
	case change.CPUQuota != 0:
		m.CPUs, m.CPUQuota = 0, change.CPUQuota
	}
	if m.CPUs == lift {
		m.CPUs = 0
	}
	if m.CPUQuota == lift {
		m.CPUQuota = 0
	}
	setIf(&m.CPUPeriod, change.CPUPeriod)
	setIf(&m.CPUShares, change.CPUShares)
	setIf(&m.CPUSetCPUs, change.CPUSetCPUs)
	setIf(&m.CPUSetMems, change.CPUSetMems)
	setIf(&m.PIDs, change.PIDs)
	if m.PIDs == lift {
		m.PIDs = 0
	}
	setIf(&m.BlkioWeight, change.BlkioWeight)
	setThrottles(&m.BlkioDeviceReadBps, change.BlkioDeviceReadBps)
	setThrottles(&m.BlkioDeviceWriteBps, change.BlkioDeviceWriteBps)
	setThrottles(&m.BlkioDeviceReadIOps, change.BlkioDeviceReadIOps)
	setThrottles(&m.BlkioDeviceWriteIOps, change.BlkioDeviceWriteIOps)
	if len(change.HugepageLimits) > 0 {
		list := append([]specs.LinuxHugepageLimit(nil), m.HugepageLimits...)
		for _, h := range change.HugepageLimits {
			list = replace(list, h, func(a, b specs.LinuxHugepageLimit) bool { return a.Pagesize == b.Pagesize })
		}
		m.HugepageLimits = list
	}
	if len(change.Unified) > 0 {
		u := make(map[string]string, len(m.Unified)+len(change.Unified))
		for k, v := range m.Unified {
			u[k] = v
		}
		for k, v := range change.Unified {
			u[k] = v
		}
		m.Unified = u
	}
	if err := m.Validate(); err != nil {
		return m, nil, err
	}
	r, err := writtenLimits(m, change)
	return m, r, err
}

// writtenLimits is what of the limits m belongs to the fields that the change names.
func writtenLimits(m, change cgroup.Limits) (*specs.LinuxResources, error) {
	part := cgroup.Limits{
		BlkioDeviceReadBps: change.BlkioDeviceReadBps, BlkioDeviceWriteBps: change.BlkioDeviceWriteBps,
		BlkioDeviceReadIOps: change.BlkioDeviceReadIOps, BlkioDeviceWriteIOps: change.BlkioDeviceWriteIOps,
		HugepageLimits: change.HugepageLimits, Unified: change.Unified,
	}
	memory := change.Memory != 0 || change.MemorySwap != 0 || change.MemoryReservation != 0
	quota := change.CPUs != 0 || change.CPUQuota != 0 || change.CPUPeriod != 0
	if memory {
		part.Memory, part.MemorySwap, part.MemoryReservation = m.Memory, m.MemorySwap, m.MemoryReservation
	}
	if quota {
		part.CPUs, part.CPUQuota, part.CPUPeriod = m.CPUs, m.CPUQuota, m.CPUPeriod
	}
	if change.CPUShares != 0 {
		part.CPUShares = m.CPUShares
	}
	if change.CPUSetCPUs != "" {
		part.CPUSetCPUs = m.CPUSetCPUs
	}
	if change.CPUSetMems != "" {
		part.CPUSetMems = m.CPUSetMems
	}
	if change.PIDs != 0 {
		part.PIDs = m.PIDs
		if part.PIDs == 0 {
			part.PIDs = lift
		}
	}
	if change.BlkioWeight != 0 {
		part.BlkioWeight = m.BlkioWeight
	}
	r, err := part.Resources()
	if err != nil {
		return nil, err
	}
	if memory && m.Memory == 0 && change.Memory != 0 {
		// The limit of memory with swap cannot stay below that of memory.
		none, swap := int64(lift), int64(lift)
		if r.Memory == nil {
			r.Memory = &specs.LinuxMemory{}
		}
		r.Memory.Limit, r.Memory.Swap = &none, &swap
	}
	if quota && m.CPUs == 0 && m.CPUQuota == 0 && (change.CPUs != 0 || change.CPUQuota != 0) {
		none := int64(lift)
		if r.CPU == nil {
			r.CPU = &specs.LinuxCPU{}
		}
		r.CPU.Quota = &none
	}
	return r, nil
}

// undoLimits is what brings a group back to the old limits after a change. Lists of processors and weights that nobody
// had limited stay changed until the container ends: nothing says what they were.
func undoLimits(old, change cgroup.Limits) *specs.LinuxResources {
	lifted := change
	if change.Memory != 0 && old.Memory == 0 {
		lifted.Memory = lift
	}
	r, err := writtenLimits(old, lifted)
	if err != nil {
		return &specs.LinuxResources{}
	}
	return r
}

func setIf[T comparable](to *T, v T) {
	var zero T
	if v != zero {
		*to = v
	}
}

func setThrottles(to *[]specs.LinuxThrottleDevice, change []specs.LinuxThrottleDevice) {
	if len(change) == 0 {
		return
	}
	list := append([]specs.LinuxThrottleDevice(nil), *to...)
	for _, d := range change {
		list = replace(list, d, func(a, b specs.LinuxThrottleDevice) bool { return a.Major == b.Major && a.Minor == b.Minor })
	}
	*to = list
}

// replace puts v in the place of what is the same thing, or at the end.
func replace[T any](list []T, v T, same func(a, b T) bool) []T {
	for i := range list {
		if same(list[i], v) {
			list[i] = v
			return list
		}
	}
	return append(list, v)
}
