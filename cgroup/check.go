package cgroup

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// checkResources rejects what would turn into a different file, a different line or a different number than meant.
// What a kernel may refuse or not is left to it.
func checkResources(r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	for i := range r.Devices {
		if err := checkDevice(fmt.Sprintf("Devices[%d]", i), &r.Devices[i]); err != nil {
			return err
		}
	}
	if m := r.Memory; m != nil && m.Swap != nil && *m.Swap > 0 {
		if m.Limit == nil || *m.Limit <= 0 {
			return invalid("Memory.Swap", *m.Swap, "needs a memory limit")
		}
		if *m.Swap < *m.Limit {
			return invalid("Memory.Swap", *m.Swap, "must not be less than the memory limit: it includes it")
		}
	}
	if c := r.CPU; c != nil {
		if err := checkList("CPUSetCPUs", c.Cpus); err != nil {
			return err
		}
		if err := checkList("CPUSetMems", c.Mems); err != nil {
			return err
		}
	}
	if b := r.BlockIO; b != nil {
		if b.Weight != nil && (*b.Weight < 10 || *b.Weight > 1000) {
			return invalid("BlkioWeight", *b.Weight, "must be 10 to 1000")
		}
		for i, d := range b.WeightDevice {
			field := fmt.Sprintf("BlockIO.WeightDevice[%d]", i)
			if d.Weight != nil && (*d.Weight < 10 || *d.Weight > 1000) {
				return invalid(field+".Weight", *d.Weight, "must be 10 to 1000")
			}
			if err := checkNumber(field, d.Major, d.Minor); err != nil {
				return err
			}
		}
		for _, list := range throttles(b) {
			for i, d := range list.devices {
				if err := checkNumber(fmt.Sprintf("%s[%d]", list.field, i), d.Major, d.Minor); err != nil {
					return err
				}
			}
		}
	}
	for i, p := range r.HugepageLimits {
		if !validPageSize(p.Pagesize) {
			return invalid(fmt.Sprintf("HugepageLimits[%d].Pagesize", i), p.Pagesize, `must be like "2MB" or "1GB"`)
		}
	}
	for name := range r.Rdma {
		if name == "" || strings.ContainsFunc(name, unprintable) || len(name) > 64 {
			return invalid("Rdma", name, "is no device name")
		}
	}
	if r.Network != nil {
		for _, p := range r.Network.Priorities {
			if p.Name == "" || strings.ContainsFunc(p.Name, unprintable) || len(p.Name) > 15 {
				return invalid("Network.Priorities", p.Name, "is no interface name")
			}
		}
	}
	for file, value := range r.Unified {
		controller, _, ok := strings.Cut(file, ".")
		if !ok || controller == "" || len(file) > 128 || strings.ContainsFunc(file, func(c rune) bool {
			return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_')
		}) {
			return invalid("Unified", file, "is no name of a cgroup file")
		}
		// Processes, controllers and the state of the group are not limits, and the library's own business.
		if controller == "cgroup" && file != "cgroup.max.descendants" && file != "cgroup.max.depth" && file != "cgroup.pressure" {
			return invalid("Unified", file, "is no limit")
		}
		if len(value) > 4096 || strings.IndexByte(value, 0) >= 0 {
			return invalid("Unified", file, "has a value of more than 4096 bytes or with a zero byte")
		}
	}
	return nil
}

func unprintable(c rune) bool { return c <= ' ' || c == 0x7f || c == '/' || c == '=' }

// checkList accepts the list format of cpuset(7).
func checkList(field, list string) error {
	if len(list) > 4096 || strings.ContainsFunc(list, func(c rune) bool {
		return !(c >= '0' && c <= '9' || c == ',' || c == '-' || c == ':' || c == '/')
	}) {
		return invalid(field, list, `must be a list like "0-2,7"`)
	}
	return nil
}

func checkNumber(field string, major, minor int64) error {
	if major < 0 || minor < 0 || major > math.MaxUint32 || minor > math.MaxUint32 {
		return invalid(field, fmt.Sprintf("%d:%d", major, minor), "is no device number")
	}
	return nil
}

// checkDevice checks a rule. Absent and negative numbers both mean every one (config-linux, Allowed Device list).
func checkDevice(field string, d *specs.LinuxDeviceCgroup) error {
	switch d.Type {
	case "", "a", "b", "c":
	default:
		return invalid(field+".Type", d.Type, `must be "a", "b" or "c"`)
	}
	if len(d.Access) > 16 || strings.Trim(d.Access, "rwm") != "" {
		return invalid(field+".Access", d.Access, `must be of the letters r, w and m`)
	}
	for _, n := range []*int64{d.Major, d.Minor} {
		if n != nil && *n > math.MaxInt32 {
			return invalid(field, *n, "is no device number")
		}
	}
	return nil
}

func validPageSize(s string) bool {
	number, unit := "", ""
	for _, u := range []string{"KB", "MB", "GB"} {
		if n, ok := strings.CutSuffix(s, u); ok {
			number, unit = n, u
		}
	}
	n, err := strconv.ParseUint(number, 10, 16)
	return unit != "" && err == nil && n > 0 && number[0] != '0' && number[0] != '+'
}

// checkName accepts what can be one directory in every hierarchy.
func checkName(name string) error {
	switch {
	case name == "":
		return invalid("name", name, "must not be empty")
	case len(name) > 200:
		return invalid("name", name[:40]+"...", "must not be longer than 200 bytes")
	case name[0] == '.' || name[0] == '-':
		return invalid("name", name, "must not begin with a dot or a dash")
	case strings.ContainsFunc(name, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-' || c == ':' || c == '@')
	}):
		return invalid("name", name, "must be of letters, digits and . _ - : @")
	}
	// What could be a file of the kernel's, now or in a later version.
	if prefix, _, ok := strings.Cut(name, "."); ok {
		switch prefix {
		case "cgroup", "cpu", "cpuset", "cpuacct", "memory", "io", "pids", "hugetlb", "rdma", "misc", "blkio", "devices",
			"freezer", "perf_event", "net_cls", "net_prio", "irq", "dmem":
			return invalid("name", name, "could be a file of the kernel's")
		}
	}
	if name == "tasks" || name == "notify_on_release" || name == "release_agent" {
		return invalid("name", name, "is a file of the kernel's")
	}
	return nil
}

type throttle struct {
	field   string // in specs.LinuxBlockIO
	v1      string // file of version 1
	v2      string // key in io.max
	devices []specs.LinuxThrottleDevice
}

func throttles(b *specs.LinuxBlockIO) [4]throttle {
	return [4]throttle{
		{"BlkioDeviceReadBps", "blkio.throttle.read_bps_device", "rbps", b.ThrottleReadBpsDevice},
		{"BlkioDeviceWriteBps", "blkio.throttle.write_bps_device", "wbps", b.ThrottleWriteBpsDevice},
		{"BlkioDeviceReadIOps", "blkio.throttle.read_iops_device", "riops", b.ThrottleReadIOPSDevice},
		{"BlkioDeviceWriteIOps", "blkio.throttle.write_iops_device", "wiops", b.ThrottleWriteIOPSDevice},
	}
}
