package cgroup

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Limits bounds what a container may use, in the terms of docker run. Zero means no limit everywhere. It is plain data:
// it survives JSON.
type Limits struct {
	// Memory is the most memory, in bytes; at least 6 MiB (docker run --memory).
	Memory int64 `json:",omitempty"`
	// MemorySwap is the most memory and swap space together, in bytes; -1 means as much swap as there is. Zero with a
	// Memory means twice that, as Docker has it, where swap is accounted (docker run --memory-swap).
	MemorySwap int64 `json:",omitempty"`
	// MemoryReservation is the memory, in bytes, that is spared when the host runs short (docker run --memory-reservation).
	MemoryReservation int64 `json:",omitempty"`

	// CPUs is how many processors' time may be used: 1.5 is one and a half (docker run --cpus). It excludes CPUQuota and
	// CPUPeriod.
	CPUs float64 `json:",omitempty"`
	// CPUQuota is the processor time in each CPUPeriod, in microseconds, at least 1000 (docker run --cpu-quota).
	CPUQuota int64 `json:",omitempty"`
	// CPUPeriod is the length of a period in microseconds, 1000 to 1000000; zero means 100000 (docker run --cpu-period).
	CPUPeriod int64 `json:",omitempty"`
	// CPUShares is the weight against others when processors are short, 2 to 262144; what has none set has 1024
	// (docker run --cpu-shares).
	CPUShares int64 `json:",omitempty"`
	// CPUSetCPUs are the processors that may be used, "0-2,5" (docker run --cpuset-cpus).
	CPUSetCPUs string `json:",omitempty"`
	// CPUSetMems are the memory nodes that may be used, "0-1" (docker run --cpuset-mems).
	CPUSetMems string `json:",omitempty"`

	// PIDs is the most processes and threads; -1 means no limit, like zero (docker run --pids-limit).
	PIDs int64 `json:",omitempty"`

	// BlkioWeight is the weight against others when a disk is busy, 10 to 1000 (docker run --blkio-weight).
	BlkioWeight uint16 `json:",omitempty"`
	// BlkioWeightDevice is the same for single disks (docker run --blkio-weight-device).
	BlkioWeightDevice []WeightDevice `json:",omitempty"`
	// BlkioDeviceReadBps and the others bound bytes and operations a second (docker run --device-read-bps...).
	BlkioDeviceReadBps   []ThrottleDevice `json:",omitempty"`
	BlkioDeviceWriteBps  []ThrottleDevice `json:",omitempty"`
	BlkioDeviceReadIOps  []ThrottleDevice `json:",omitempty"`
	BlkioDeviceWriteIOps []ThrottleDevice `json:",omitempty"`

	// HugepageLimits bounds the memory in huge pages, by their size.
	HugepageLimits []HugepageLimit `json:",omitempty"`

	// Unified sets files of the v2 group, "memory.high" to "1048576". It wants unified mode. Files of the cgroup core
	// ("cgroup.procs"...) cannot be set.
	Unified map[string]string `json:",omitempty"`
}

// WeightDevice is the weight of a container on one block device.
type WeightDevice struct {
	Major, Minor int64
	Weight       uint16 // 10 to 1000
}

// ThrottleDevice is a rate on one block device.
type ThrottleDevice struct {
	Major, Minor int64
	Rate         uint64 // a second
}

// HugepageLimit bounds the memory in huge pages of one size.
type HugepageLimit struct {
	PageSize string // "2MB", "1GB": as in the names of the kernel's files
	Limit    uint64 // bytes
}

const (
	minMemory     = 6 << 20
	defaultPeriod = 100_000
	minPeriod     = 1_000
	maxPeriod     = 1_000_000
	minShares     = 2
	maxShares     = 262_144
	maxList       = 4096 // the longest processor list, in bytes
	maxDevices    = 256  // the most entries of a list of devices
)

// Validate returns an error that names the first field that makes no sense by itself. What this machine has, it does not
// know: a processor that does not exist is found by [Hierarchy.Create].
func (l *Limits) Validate() error {
	bad := func(field, format string, args ...any) error {
		return fmt.Errorf("cgroup: Limits.%s: %s", field, fmt.Sprintf(format, args...))
	}
	switch {
	case l.Memory < 0 || l.Memory > 0 && l.Memory < minMemory:
		return bad("Memory", "%d: want at least %d bytes (6 MiB), or 0 for no limit", l.Memory, minMemory)
	case l.MemorySwap < -1:
		return bad("MemorySwap", "%d: want the sum of memory and swap in bytes, -1 for no limit, or 0", l.MemorySwap)
	case l.MemorySwap > 0 && l.Memory == 0:
		return bad("MemorySwap", "is the sum of memory and swap: set Memory too")
	case l.MemorySwap > 0 && l.MemorySwap < l.Memory:
		return bad("MemorySwap", "%d is less than Memory, %d: it is the sum of memory and swap", l.MemorySwap, l.Memory)
	case l.MemoryReservation < 0:
		return bad("MemoryReservation", "%d is negative", l.MemoryReservation)
	case l.Memory > 0 && l.MemoryReservation > l.Memory:
		return bad("MemoryReservation", "%d is more than Memory, %d", l.MemoryReservation, l.Memory)
	case math.IsNaN(l.CPUs) || l.CPUs < 0 || l.CPUs > 1<<20 || l.CPUs > 0 && l.CPUs < 0.01:
		return bad("CPUs", "%v: want at least 0.01, or 0 for no limit", l.CPUs)
	case l.CPUs > 0 && (l.CPUQuota != 0 || l.CPUPeriod != 0):
		return bad("CPUs", "excludes CPUQuota and CPUPeriod: it is their ratio")
	case l.CPUQuota < -1 || l.CPUQuota > 0 && l.CPUQuota < minPeriod || l.CPUQuota > math.MaxInt64/1000:
		return bad("CPUQuota", "%d: want at least %d microseconds, or 0 for no limit", l.CPUQuota, minPeriod)
	case l.CPUPeriod != 0 && (l.CPUPeriod < minPeriod || l.CPUPeriod > maxPeriod):
		return bad("CPUPeriod", "%d: want %d to %d microseconds, or 0 for %d", l.CPUPeriod, minPeriod, maxPeriod, defaultPeriod)
	case l.CPUShares != 0 && (l.CPUShares < minShares || l.CPUShares > maxShares):
		return bad("CPUShares", "%d: want %d to %d, or 0", l.CPUShares, minShares, maxShares)
	case !validList(l.CPUSetCPUs):
		return bad("CPUSetCPUs", "%.64q: want numbers and ranges, such as \"0-2,5\"", l.CPUSetCPUs)
	case !validList(l.CPUSetMems):
		return bad("CPUSetMems", "%.64q: want numbers and ranges, such as \"0-1\"", l.CPUSetMems)
	case l.PIDs < -1:
		return bad("PIDs", "%d: want a number, or 0 for no limit", l.PIDs)
	case l.BlkioWeight != 0 && !validWeight(l.BlkioWeight):
		return bad("BlkioWeight", "%d: want 10 to 1000, or 0", l.BlkioWeight)
	}
	if len(l.BlkioWeightDevice) > maxDevices {
		return bad("BlkioWeightDevice", "%d devices: more than %d", len(l.BlkioWeightDevice), maxDevices)
	}
	for i, d := range l.BlkioWeightDevice {
		if !validWeight(d.Weight) || !validDevice(d.Major, d.Minor) {
			return bad("BlkioWeightDevice", "entry %d: %d:%d %d: want a device number and a weight of 10 to 1000", i, d.Major, d.Minor, d.Weight)
		}
	}
	for _, list := range []struct {
		name    string
		devices []ThrottleDevice
	}{
		{"BlkioDeviceReadBps", l.BlkioDeviceReadBps}, {"BlkioDeviceWriteBps", l.BlkioDeviceWriteBps},
		{"BlkioDeviceReadIOps", l.BlkioDeviceReadIOps}, {"BlkioDeviceWriteIOps", l.BlkioDeviceWriteIOps},
	} {
		if len(list.devices) > maxDevices {
			return bad(list.name, "%d devices: more than %d", len(list.devices), maxDevices)
		}
		for i, d := range list.devices {
			if d.Rate == 0 || d.Rate > math.MaxInt64 || !validDevice(d.Major, d.Minor) {
				return bad(list.name, "entry %d: %d:%d %d: want a device number and a rate above 0", i, d.Major, d.Minor, d.Rate)
			}
		}
	}
	for i, p := range l.HugepageLimits {
		if !validPageSize(p.PageSize) {
			return bad("HugepageLimits", "entry %d: page size %.32q: want one such as \"2MB\" or \"1GB\"", i, p.PageSize)
		}
	}
	for file, value := range l.Unified {
		if err := checkUnified(file, value); err != nil {
			return bad("Unified", "%v", err)
		}
	}
	return nil
}

// Resources returns the limits as the runtime specification has them (config-linux.md, "Control groups"). It never
// returns nil without an error.
func (l *Limits) Resources() (*specs.LinuxResources, error) {
	if err := l.Validate(); err != nil {
		return nil, err
	}
	r := &specs.LinuxResources{}
	if l.Memory > 0 || l.MemorySwap != 0 || l.MemoryReservation > 0 {
		r.Memory = &specs.LinuxMemory{}
		if l.Memory > 0 {
			r.Memory.Limit = new(l.Memory)
		}
		switch {
		case l.MemorySwap != 0:
			r.Memory.Swap = new(l.MemorySwap)
		case l.Memory > math.MaxInt64/2:
			r.Memory.Swap = new(int64(-1))
		case l.Memory > 0:
			r.Memory.Swap = new(2 * l.Memory)
		}
		if l.MemoryReservation > 0 {
			r.Memory.Reservation = new(l.MemoryReservation)
		}
	}
	cpu := specs.LinuxCPU{Cpus: l.CPUSetCPUs, Mems: l.CPUSetMems}
	if l.CPUs > 0 {
		cpu.Quota, cpu.Period = new(int64(math.Round(l.CPUs*defaultPeriod))), new(uint64(defaultPeriod))
	}
	if l.CPUQuota > 0 {
		cpu.Quota = new(l.CPUQuota)
	}
	if l.CPUPeriod > 0 {
		cpu.Period = new(uint64(l.CPUPeriod))
	}
	if l.CPUShares > 0 {
		cpu.Shares = new(uint64(l.CPUShares))
	}
	if cpu != (specs.LinuxCPU{}) {
		r.CPU = &cpu
	}
	if l.PIDs > 0 {
		r.Pids = &specs.LinuxPids{Limit: new(l.PIDs)}
	}
	var io specs.LinuxBlockIO
	if l.BlkioWeight > 0 {
		io.Weight = new(l.BlkioWeight)
	}
	for _, d := range l.BlkioWeightDevice {
		w := specs.LinuxWeightDevice{Weight: new(d.Weight)}
		w.Major, w.Minor = d.Major, d.Minor
		io.WeightDevice = append(io.WeightDevice, w)
	}
	io.ThrottleReadBpsDevice = throttles(l.BlkioDeviceReadBps)
	io.ThrottleWriteBpsDevice = throttles(l.BlkioDeviceWriteBps)
	io.ThrottleReadIOPSDevice = throttles(l.BlkioDeviceReadIOps)
	io.ThrottleWriteIOPSDevice = throttles(l.BlkioDeviceWriteIOps)
	if io.Weight != nil || len(io.WeightDevice)+len(io.ThrottleReadBpsDevice)+len(io.ThrottleWriteBpsDevice)+
		len(io.ThrottleReadIOPSDevice)+len(io.ThrottleWriteIOPSDevice) > 0 {
		r.BlockIO = &io
	}
	for _, p := range l.HugepageLimits {
		r.HugepageLimits = append(r.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: p.PageSize, Limit: p.Limit})
	}
	if len(l.Unified) > 0 {
		r.Unified = make(map[string]string, len(l.Unified))
		for file, value := range l.Unified {
			r.Unified[file] = value
		}
	}
	return r, nil
}

func throttles(list []ThrottleDevice) []specs.LinuxThrottleDevice {
	var out []specs.LinuxThrottleDevice
	for _, d := range list {
		t := specs.LinuxThrottleDevice{Rate: d.Rate}
		t.Major, t.Minor = d.Major, d.Minor
		out = append(out, t)
	}
	return out
}

// validList reports whether s is a list of processors or memory nodes (cpuset(7), "List format"), or empty.
func validList(s string) bool {
	if s == "" {
		return true
	}
	if len(s) > maxList {
		return false
	}
	for _, part := range strings.Split(s, ",") {
		first, last, ranged := strings.Cut(part, "-")
		a, err := strconv.ParseUint(first, 10, 16)
		if err != nil || first[0] == '+' {
			return false
		}
		if ranged {
			b, err := strconv.ParseUint(last, 10, 16)
			if err != nil || b < a || last[0] == '+' {
				return false
			}
		}
	}
	return true
}

func validWeight(w uint16) bool { return w >= 10 && w <= 1000 }

// validDevice reports whether the numbers fit the kernel's dev_t: 12 and 20 bits.
func validDevice(major, minor int64) bool {
	return major >= 0 && major < 1<<12 && minor >= 0 && minor < 1<<20
}

// validPageSize reports whether s is a size as the hugetlb files have it: "64KB", "2MB", "1GB".
func validPageSize(s string) bool {
	digits, ok := strings.CutSuffix(s, "B")
	if !ok || len(digits) < 2 || len(digits) > 8 || !slices.Contains([]byte("KMG"), digits[len(digits)-1]) {
		return false
	}
	n, err := strconv.ParseUint(digits[:len(digits)-1], 10, 16)
	return err == nil && n > 0 && digits[0] != '+' && digits[0] != '0'
}

// checkUnified refuses what is not a file of a controller, and what could move or kill processes.
func checkUnified(file, value string) error {
	controller, rest, ok := strings.Cut(file, ".")
	valid := ok && controller != "" && rest != "" && len(file) <= 64 && controller != "cgroup"
	for i := 0; valid && i < len(file); i++ {
		c := file[i]
		valid = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.'
	}
	if !valid {
		return fmt.Errorf("file %.64q: want a file of a controller, such as \"memory.high\"", file)
	}
	if len(value) > 4096 || strings.Contains(value, "\x00") {
		return fmt.Errorf("file %q: the value is longer than a page or holds a zero byte", file)
	}
	return nil
}
