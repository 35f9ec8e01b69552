package cgroup

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A setting is one write to a file of a group. Resources are translated to settings first, without a look at the
// machine, and then written.
type setting struct {
	controller string
	file       string
	value      string
	feature    string // for errors

	// orElse is another file for the same thing, where file is missing.
	orElse, orElseValue string
	// optional settings may fail for want of the file.
	optional bool
	// keepFirst settings say nothing about the first word of the file: an update leaves it.
	keepFirst bool
	// impossible settings have no file: the version of cgroups lacks the feature. The text says what to do.
	impossible string
}

func itoa[T int64 | uint64 | uint32 | uint16 | int](n T) string {
	if n < 0 {
		return strconv.FormatInt(int64(n), 10)
	}
	return strconv.FormatUint(uint64(n), 10)
}

// orMax is a number of version 2, where "max" means no limit.
func orMax(n int64) string {
	if n < 0 {
		return "max"
	}
	return itoa(n)
}

// dockerSwap reports whether the limit of swap is the one that follows from the memory limit: nobody asked for it, and
// a kernel that does not count swap may go without.
func dockerSwap(m *specs.LinuxMemory) bool {
	return m.Swap != nil && m.Limit != nil && *m.Limit > 0 && *m.Limit <= math.MaxInt64/2 && *m.Swap == 2**m.Limit
}

// settings translates all but device rules. legacy reports whether a controller has a hierarchy of version 1: then its
// limits go there, and otherwise to the tree of version 2.
func settings(r *specs.LinuxResources, swapFirst bool, legacy func(controller string) bool) []setting {
	var s []setting
	for _, x := range settingsV1(r, swapFirst) {
		if legacy(x.controller) {
			s = append(s, x)
		}
	}
	for _, x := range settingsV2(r) {
		controller := x.controller
		if controller == "io" {
			controller = "blkio"
		}
		switch {
		case !legacy(controller):
			s = append(s, x)
		case r.Unified[x.file] != "" && x.feature == x.file:
			x.impossible = "the controller is in a hierarchy of version 1 here: use the other limits"
			s = append(s, x)
		}
	}
	return s
}

// settingsV1 translates all but device rules and Unified to version 1.
//
// swapFirst says that the limit of memory and swap together is to be written before that of memory, which it must
// never be below: right where limits grow.
func settingsV1(r *specs.LinuxResources, swapFirst bool) []setting {
	s := make([]setting, 0, 12)
	add := func(controller, file, value, feature string) *setting {
		s = append(s, setting{controller: controller, file: file, value: value, feature: feature})
		return &s[len(s)-1]
	}
	if m := r.Memory; m != nil {
		swap := func() {
			if m.Swap != nil && *m.Swap != 0 {
				add("memory", "memory.memsw.limit_in_bytes", itoa(*m.Swap), "swap limit").optional = dockerSwap(m) || *m.Swap < 0
			}
		}
		if swapFirst {
			swap()
		}
		if m.Limit != nil && *m.Limit != 0 {
			add("memory", "memory.limit_in_bytes", itoa(*m.Limit), "memory limit")
		}
		if !swapFirst {
			swap()
		}
		if m.Reservation != nil && *m.Reservation != 0 {
			add("memory", "memory.soft_limit_in_bytes", itoa(*m.Reservation), "memory reservation")
		}
		if m.Kernel != nil && *m.Kernel != 0 {
			add("memory", "memory.kmem.limit_in_bytes", itoa(*m.Kernel), "kernel memory limit")
		}
		if m.KernelTCP != nil && *m.KernelTCP != 0 {
			add("memory", "memory.kmem.tcp.limit_in_bytes", itoa(*m.KernelTCP), "limit of TCP buffers")
		}
		if m.Swappiness != nil {
			add("memory", "memory.swappiness", itoa(*m.Swappiness), "swappiness")
		}
		if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
			add("memory", "memory.oom_control", "1", "switch of the OOM killer")
		}
	}
	if c := r.CPU; c != nil {
		if c.Shares != nil && *c.Shares != 0 {
			add("cpu", "cpu.shares", itoa(*c.Shares), "cpu shares")
		}
		if c.Period != nil && *c.Period != 0 {
			add("cpu", "cpu.cfs_period_us", itoa(*c.Period), "cpu period")
		}
		if c.Quota != nil && *c.Quota != 0 {
			add("cpu", "cpu.cfs_quota_us", itoa(*c.Quota), "cpu quota")
		}
		if c.Burst != nil {
			add("cpu", "cpu.cfs_burst_us", itoa(*c.Burst), "cpu burst")
		}
		if c.RealtimePeriod != nil && *c.RealtimePeriod != 0 {
			add("cpu", "cpu.rt_period_us", itoa(*c.RealtimePeriod), "realtime period")
		}
		if c.RealtimeRuntime != nil && *c.RealtimeRuntime != 0 {
			add("cpu", "cpu.rt_runtime_us", itoa(*c.RealtimeRuntime), "realtime runtime")
		}
		if c.Idle != nil {
			add("cpu", "cpu.idle", itoa(*c.Idle), "cpu idle class")
		}
		if c.Cpus != "" {
			add("cpuset", "cpuset.cpus", c.Cpus, "cpuset")
		}
		if c.Mems != "" {
			add("cpuset", "cpuset.mems", c.Mems, "cpuset")
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		add("pids", "pids.max", orMax(*r.Pids.Limit), "pids limit")
	}
	if b := r.BlockIO; b != nil {
		if b.Weight != nil {
			x := add("blkio", "blkio.bfq.weight", itoa(*b.Weight), "blkio weight")
			x.orElse, x.orElseValue = "blkio.weight", x.value
		}
		if b.LeafWeight != nil {
			add("blkio", "blkio.leaf_weight", itoa(*b.LeafWeight), "blkio leaf weight")
		}
		for _, d := range b.WeightDevice {
			if d.Weight != nil {
				x := add("blkio", "blkio.bfq.weight_device", deviceLine(d.Major, d.Minor, uint64(*d.Weight)), "blkio weight of a device")
				x.orElse, x.orElseValue = "blkio.weight_device", x.value
			}
			if d.LeafWeight != nil {
				add("blkio", "blkio.leaf_weight_device", deviceLine(d.Major, d.Minor, uint64(*d.LeafWeight)), "blkio leaf weight of a device")
			}
		}
		for _, t := range throttles(b) {
			for _, d := range t.devices {
				add("blkio", t.v1, deviceLine(d.Major, d.Minor, d.Rate), "blkio throttle")
			}
		}
	}
	for _, p := range r.HugepageLimits {
		add("hugetlb", "hugetlb."+p.Pagesize+".limit_in_bytes", itoa(p.Limit), "huge page limit")
		add("hugetlb", "hugetlb."+p.Pagesize+".rsvd.limit_in_bytes", itoa(p.Limit), "huge page limit").optional = true
	}
	for _, name := range sortedKeys(r.Rdma) {
		add("rdma", "rdma.max", rdmaLine(name, r.Rdma[name]), "rdma limit")
	}
	if n := r.Network; n != nil {
		if n.ClassID != nil && *n.ClassID != 0 {
			add("net_cls", "net_cls.classid", itoa(*n.ClassID), "network class")
		}
		for _, p := range n.Priorities {
			add("net_prio", "net_prio.ifpriomap", p.Name+" "+itoa(p.Priority), "network priority")
		}
	}
	return s
}

// settingsV2 translates all but device rules to version 2, as the runtime spec and crun's cgroup-v2 document say.
func settingsV2(r *specs.LinuxResources) []setting {
	s := make([]setting, 0, 8)
	add := func(controller, file, value, feature string) *setting {
		s = append(s, setting{controller: controller, file: file, value: value, feature: feature})
		return &s[len(s)-1]
	}
	missing := func(controller, feature, fix string) {
		s = append(s, setting{controller: controller, feature: feature, impossible: fix})
	}
	if m := r.Memory; m != nil {
		if m.Limit != nil && *m.Limit != 0 {
			add("memory", "memory.max", orMax(*m.Limit), "memory limit")
		}
		if m.Swap != nil && *m.Swap != 0 {
			value := "max"
			if *m.Swap > 0 && m.Limit != nil {
				value = itoa(*m.Swap - *m.Limit) // in version 2 swap is counted by itself
			}
			add("memory", "memory.swap.max", value, "swap limit").optional = dockerSwap(m) || *m.Swap < 0
		}
		if m.Reservation != nil && *m.Reservation != 0 {
			add("memory", "memory.low", orMax(*m.Reservation), "memory reservation")
		}
		if m.Kernel != nil && *m.Kernel > 0 {
			missing("memory", "kernel memory limit", "cgroup v2 counts kernel memory in the memory limit")
		}
		if m.KernelTCP != nil && *m.KernelTCP > 0 {
			missing("memory", "limit of TCP buffers", "cgroup v2 counts them in the memory limit")
		}
		if m.Swappiness != nil {
			missing("memory", "swappiness", "cgroup v2 has none for a group")
		}
		if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
			missing("memory", "switch of the OOM killer", "cgroup v2 has none; set memory.high through Unified instead of a limit")
		}
	}
	if c := r.CPU; c != nil {
		if c.Idle != nil {
			add("cpu", "cpu.idle", itoa(*c.Idle), "cpu idle class")
		}
		// The kernel refuses a weight for a group of the idle class.
		if c.Shares != nil && *c.Shares != 0 && (c.Idle == nil || *c.Idle == 0) {
			add("cpu", "cpu.weight", itoa(cpuWeight(*c.Shares)), "cpu shares")
		}
		if c.Quota != nil && *c.Quota != 0 || c.Period != nil && *c.Period != 0 {
			value := "max"
			if c.Quota != nil && *c.Quota > 0 {
				value = itoa(*c.Quota) // by itself it keeps the period
			}
			if c.Period != nil && *c.Period != 0 {
				value += " " + itoa(*c.Period)
			}
			add("cpu", "cpu.max", value, "cpu quota").keepFirst = c.Quota == nil || *c.Quota == 0
		}
		if c.Burst != nil {
			add("cpu", "cpu.max.burst", itoa(*c.Burst), "cpu burst")
		}
		if c.RealtimePeriod != nil && *c.RealtimePeriod != 0 || c.RealtimeRuntime != nil && *c.RealtimeRuntime != 0 {
			missing("cpu", "realtime runtime", "cgroup v2 has none")
		}
		if c.Cpus != "" {
			add("cpuset", "cpuset.cpus", c.Cpus, "cpuset")
		}
		if c.Mems != "" {
			add("cpuset", "cpuset.mems", c.Mems, "cpuset")
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		add("pids", "pids.max", orMax(*r.Pids.Limit), "pids limit")
	}
	if b := r.BlockIO; b != nil {
		if b.Weight != nil {
			x := add("io", "io.bfq.weight", itoa(*b.Weight), "blkio weight")
			x.orElse, x.orElseValue = "io.weight", "default "+itoa(ioWeight(*b.Weight))
		}
		if b.LeafWeight != nil {
			missing("io", "blkio leaf weight", "cgroup v2 has none")
		}
		for _, d := range b.WeightDevice {
			if d.Weight != nil {
				x := add("io", "io.bfq.weight", deviceLine(d.Major, d.Minor, uint64(*d.Weight)), "blkio weight of a device")
				x.orElse, x.orElseValue = "io.weight", deviceLine(d.Major, d.Minor, ioWeight(*d.Weight))
			}
			if d.LeafWeight != nil {
				missing("io", "blkio leaf weight of a device", "cgroup v2 has none")
			}
		}
		for _, t := range throttles(b) {
			for _, d := range t.devices {
				rate := itoa(d.Rate)
				if d.Rate == 0 {
					rate = "max"
				}
				add("io", "io.max", itoa(d.Major)+":"+itoa(d.Minor)+" "+t.v2+"="+rate, "blkio throttle")
			}
		}
	}
	for _, p := range r.HugepageLimits {
		add("hugetlb", "hugetlb."+p.Pagesize+".max", itoa(p.Limit), "huge page limit")
		add("hugetlb", "hugetlb."+p.Pagesize+".rsvd.max", itoa(p.Limit), "huge page limit").optional = true
	}
	for _, name := range sortedKeys(r.Rdma) {
		add("rdma", "rdma.max", rdmaLine(name, r.Rdma[name]), "rdma limit")
	}
	if n := r.Network; n != nil && (n.ClassID != nil && *n.ClassID != 0 || len(n.Priorities) > 0) {
		missing("", "network class or priority", "cgroup v2 has none; use traffic control")
	}
	return append(s, settingsUnified(r)...)
}

// settingsUnified are the files of version 2 that were named outright.
func settingsUnified(r *specs.LinuxResources) []setting {
	var s []setting
	for _, file := range sortedKeys(r.Unified) {
		controller, _, _ := strings.Cut(file, ".")
		if controller == "cgroup" {
			controller = ""
		}
		for line := range strings.SplitSeq(r.Unified[file], "\n") {
			if line != "" {
				s = append(s, setting{controller: controller, file: file, value: line, feature: file})
			}
		}
	}
	return s
}

func sortedKeys[V any](m map[string]V) []string {
	if len(m) == 0 {
		return nil
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func deviceLine(major, minor int64, n uint64) string {
	return itoa(major) + ":" + itoa(minor) + " " + itoa(n)
}

func rdmaLine(name string, l specs.LinuxRdma) string {
	if l.HcaHandles != nil {
		name += fmt.Sprintf(" hca_handle=%d", *l.HcaHandles)
	}
	if l.HcaObjects != nil {
		name += fmt.Sprintf(" hca_object=%d", *l.HcaObjects)
	}
	return name
}

// cpuWeight is cpu.weight (1 to 10000, default 100) for cpu.shares (2 to 262144, default 1024): the curve through the
// two ends and the defaults that crun and runc agreed on in 2025. The straight line that was used before made 39 of
// the default, and so a container weaker than everything else on the machine.
func cpuWeight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// ioWeight is io.weight (1 to 10000) for a blkio weight (10 to 1000).
func ioWeight(weight uint16) uint64 {
	return 1 + (uint64(max(weight, 10))-10)*9999/990
}
