package cgroup

import (
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Limits bound what a group may use, in the words of docker run. The zero value of each field bounds nothing, and so
// do the zero Limits.
type Limits struct {
	// Memory is the limit of memory in bytes, page cache included. Zero means none.
	Memory int64 `json:",omitempty"`
	// MemorySwap is the limit of memory and swap together in bytes. Zero means twice Memory, -1 means none. Equal to
	// Memory, it forbids swap. It needs Memory.
	MemorySwap int64 `json:",omitempty"`
	// MemoryReservation is a soft limit of memory in bytes, below Memory. Zero means none.
	MemoryReservation int64 `json:",omitempty"`

	// CPUs is the number of processors whose time the group may use; 0.5 is half of one. Zero means all. It stands for
	// CPUQuota and excludes it.
	CPUs float64 `json:",omitempty"`
	// CPUShares is the weight against other groups where processors are busy, 2 to 262144. Zero means 1024.
	CPUShares uint64 `json:",omitempty"`
	// CPUQuota is the processor time in microseconds that the group gets in each period, at least 1000. Zero means all.
	CPUQuota int64 `json:",omitempty"`
	// CPUPeriod is the length of a period in microseconds, 1000 to 1000000. Zero means 100000.
	CPUPeriod uint64 `json:",omitempty"`
	// CPUSetCPUs are the processors that the group may use ("0-2,7"). Empty means all.
	CPUSetCPUs string `json:",omitempty"`
	// CPUSetMems are the memory nodes that the group may use ("0,1"). Empty means all.
	CPUSetMems string `json:",omitempty"`

	// PIDs is the number of processes and threads that may exist at once. Zero and -1 mean no limit.
	PIDs int64 `json:",omitempty"`

	// BlkioWeight is the weight against other groups where block devices are busy, 10 to 1000. Zero means the kernel's
	// default.
	BlkioWeight uint16 `json:",omitempty"`
	// BlkioDeviceReadBps bound the bytes read each second, by device.
	BlkioDeviceReadBps []specs.LinuxThrottleDevice `json:",omitempty"`
	// BlkioDeviceWriteBps bound the bytes written each second, by device.
	BlkioDeviceWriteBps []specs.LinuxThrottleDevice `json:",omitempty"`
	// BlkioDeviceReadIOps bound the reads each second, by device.
	BlkioDeviceReadIOps []specs.LinuxThrottleDevice `json:",omitempty"`
	// BlkioDeviceWriteIOps bound the writes each second, by device.
	BlkioDeviceWriteIOps []specs.LinuxThrottleDevice `json:",omitempty"`

	// HugepageLimits bound huge pages in bytes, by page size ("2MB", "1GB").
	HugepageLimits []specs.LinuxHugepageLimit `json:",omitempty"`

	// Devices are rules of what devices may be used; the last that matches decides. A list that begins with an allow
	// rule forbids what no rule names, one that begins with a deny rule allows it. Empty means all devices.
	Devices []specs.LinuxDeviceCgroup `json:",omitempty"`

	// Unified are files of cgroup version 2 and what to write to them ("memory.high": "1G"), after everything else.
	Unified map[string]string `json:",omitempty"`
}

const (
	defaultPeriod = 100000 // µs
	unlimited     = -1
)

// Resources says the same as the OCI runtime spec does (config-linux, Control groups). It is never nil without an error,
// which is that of Validate. The result shares slices and maps with l.
func (l Limits) Resources() (*specs.LinuxResources, error) {
	if err := l.Validate(); err != nil {
		return nil, err
	}
	return l.resources(), nil
}

func (l Limits) resources() *specs.LinuxResources {
	r := &specs.LinuxResources{HugepageLimits: l.HugepageLimits, Devices: l.Devices, Unified: l.Unified}
	if l.Memory != 0 || l.MemorySwap != 0 || l.MemoryReservation != 0 {
		r.Memory = &specs.LinuxMemory{}
		if l.Memory != 0 {
			r.Memory.Limit = &l.Memory
		}
		if l.MemoryReservation != 0 {
			r.Memory.Reservation = &l.MemoryReservation
		}
		swap := l.MemorySwap
		if swap == 0 && l.Memory > 0 && l.Memory <= math.MaxInt64/2 {
			swap = 2 * l.Memory
		}
		if swap != 0 {
			r.Memory.Swap = &swap
		}
	}
	if l.CPUs != 0 || l.CPUShares != 0 || l.CPUQuota != 0 || l.CPUPeriod != 0 || l.CPUSetCPUs != "" || l.CPUSetMems != "" {
		c := &specs.LinuxCPU{Cpus: l.CPUSetCPUs, Mems: l.CPUSetMems}
		r.CPU = c
		if l.CPUShares != 0 {
			c.Shares = &l.CPUShares
		}
		quota, period := l.CPUQuota, l.CPUPeriod
		if l.CPUs != 0 {
			if period == 0 {
				period = defaultPeriod
			}
			quota = int64(math.Round(l.CPUs * float64(period)))
		}
		if quota != 0 {
			c.Quota = &quota
		}
		if period != 0 {
			c.Period = &period
		}
	}
	if l.PIDs != 0 {
		r.Pids = &specs.LinuxPids{Limit: &l.PIDs}
	}
	b := specs.LinuxBlockIO{
		ThrottleReadBpsDevice:   l.BlkioDeviceReadBps,
		ThrottleWriteBpsDevice:  l.BlkioDeviceWriteBps,
		ThrottleReadIOPSDevice:  l.BlkioDeviceReadIOps,
		ThrottleWriteIOPSDevice: l.BlkioDeviceWriteIOps,
	}
	if l.BlkioWeight != 0 {
		b.Weight = &l.BlkioWeight
	}
	if b.Weight != nil || len(b.ThrottleReadBpsDevice)+len(b.ThrottleWriteBpsDevice)+
		len(b.ThrottleReadIOPSDevice)+len(b.ThrottleWriteIOPSDevice) > 0 {
		r.BlockIO = &b
	}
	return r
}

// Validate says what makes no sense on any machine, as an *InvalidError.
func (l Limits) Validate() error {
	switch {
	case l.Memory < 0:
		return invalid("Memory", l.Memory, "must not be negative")
	case l.MemorySwap < unlimited:
		return invalid("MemorySwap", l.MemorySwap, "must not be negative, but for -1")
	case l.MemorySwap != 0 && l.Memory == 0:
		return invalid("MemorySwap", l.MemorySwap, "needs Memory")
	case l.MemorySwap > 0 && l.MemorySwap < l.Memory:
		return invalid("MemorySwap", l.MemorySwap, "must not be less than Memory: it includes it")
	case l.MemoryReservation < 0:
		return invalid("MemoryReservation", l.MemoryReservation, "must not be negative")
	case l.Memory != 0 && l.MemoryReservation > l.Memory:
		return invalid("MemoryReservation", l.MemoryReservation, "must not be more than Memory")
	case !(l.CPUs >= 0) || l.CPUs > 1e6:
		return invalid("CPUs", l.CPUs, "must be a number of processors")
	case l.CPUs != 0 && l.CPUQuota != 0:
		return invalid("CPUs", l.CPUs, "excludes CPUQuota, which says the same")
	case l.CPUs != 0 && l.CPUs*float64(max(l.CPUPeriod, 1000)) < 1000 && l.CPUPeriod != 0, l.CPUs != 0 && l.CPUs < 0.01:
		return invalid("CPUs", l.CPUs, "must be 0.01 or more, and 1000 µs in each period")
	case l.CPUQuota != 0 && l.CPUQuota < 1000:
		return invalid("CPUQuota", l.CPUQuota, "must be 1000 µs or more")
	case l.CPUPeriod != 0 && (l.CPUPeriod < 1000 || l.CPUPeriod > 1000000):
		return invalid("CPUPeriod", l.CPUPeriod, "must be 1000 to 1000000 µs")
	case l.CPUShares != 0 && (l.CPUShares < 2 || l.CPUShares > 262144):
		return invalid("CPUShares", l.CPUShares, "must be 2 to 262144")
	case l.PIDs < unlimited:
		return invalid("PIDs", l.PIDs, "must not be negative, but for -1")
	}
	return checkResources(l.resources())
}
