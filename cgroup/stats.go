package cgroup

import "time"

// Stats are what a group uses and has used. What this machine does not count is zero, and a nil pointer where a whole
// controller is missing. A limit of zero means that there is none.
type Stats struct {
	Time     time.Time // when they were read
	CPU      *CPUStats
	Memory   *MemoryStats
	PIDs     *PIDStats
	IO       []IOStats // by device
	Hugepage []HugepageStats
	Pressure *PressureStats // version 2 only, where the kernel measures it
}

// CPUStats are uses of processors.
type CPUStats struct {
	Usage, User, System time.Duration // in all, and of it in user and kernel mode
	Periods, Throttled  uint64        // periods in all, and those in which the quota ran out
	ThrottledTime       time.Duration // time for which processes were kept from running
}

// MemoryStats are uses of memory, in bytes.
type MemoryStats struct {
	Usage     uint64 // page cache included
	MaxUsage  uint64 // the most that it was
	Limit     uint64
	Swap      uint64 // use of swap
	SwapLimit uint64 // of swap alone

	Anon         uint64 // memory of processes
	File         uint64 // page cache
	InactiveFile uint64 // page cache that was not used lately; docker stats shows Usage less this
	Kernel       uint64 // kernel memory; version 2 only
	Shmem        uint64 // shared memory and tmpfs

	PageFaults, MajorFaults uint64
	LimitHits               uint64 // how often the limit was met; newer kernels count it in version 2 only
	OOMKills                uint64 // processes killed for want of memory
}

// PIDStats count processes and threads.
type PIDStats struct {
	Current, Limit uint64
	LimitHits      uint64 // how often a new one was refused
}

// IOStats are uses of a block device.
type IOStats struct {
	Major, Minor          uint64
	ReadBytes, WriteBytes uint64
	Reads, Writes         uint64
}

// HugepageStats are uses of huge pages of a size, in bytes.
type HugepageStats struct {
	PageSize  string // "2MB"
	Usage     uint64
	Limit     uint64
	LimitHits uint64
}

// PressureStats say how long processes waited for want of something.
type PressureStats struct {
	CPU, Memory, IO Pressure
}

// Pressure says how long at least one process (Some) and how long all of them at once (Full) waited.
type Pressure struct {
	Some, Full Stall
}

// Stall is a share of time spent waiting, in percent over the last 10, 60 and 300 seconds, and all of the time waited.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                time.Duration
}
