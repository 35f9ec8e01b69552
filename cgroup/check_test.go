package cgroup

import (
	"errors"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "web-1", "0123456789abcdef-web_1.x", "a:b@c", strings.Repeat("x", 200), "cgroups"} {
		if err := checkName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{
		"", ".", "..", "../x", "a/b", "/a", "a/", ".hidden", "-a", "a b", "a\nb", "a\x00b", "ä",
		strings.Repeat("x", 201), "cgroup.procs", "memory.max", "cpuset.cpus", "tasks", "release_agent", "notify_on_release",
	} {
		var invalid *InvalidError
		if err := checkName(name); !errors.As(err, &invalid) || invalid.Field != "name" {
			t.Errorf("%q: %v, want an *InvalidError", name, err)
		}
	}
}

func TestCheckResources(t *testing.T) {
	at := func(n int64) *int64 { return &n }
	weight := func(n uint16) *uint16 { return &n }
	disk := func(major, minor int64) specs.LinuxBlockIODevice {
		return specs.LinuxBlockIODevice{Major: major, Minor: minor}
	}
	device := func(d specs.LinuxDeviceCgroup) *specs.LinuxResources {
		return &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{d}}
	}
	cpus := func(list string) *specs.LinuxResources {
		return &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: list}}
	}
	pages := func(size string) *specs.LinuxResources {
		return &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: size}}}
	}
	unified := func(file, value string) *specs.LinuxResources {
		return &specs.LinuxResources{Unified: map[string]string{file: value}}
	}
	for _, tt := range []struct {
		name  string
		r     *specs.LinuxResources
		field string // of the error; empty: none
	}{
		{"nil", nil, ""},
		{"empty", &specs.LinuxResources{}, ""},
		{"device", device(specs.LinuxDeviceCgroup{Type: "c", Major: at(1), Minor: at(3), Access: "rwm"}), ""},
		{"device, every number", device(specs.LinuxDeviceCgroup{Type: "b", Major: at(-1)}), ""},
		{"device of no kind", device(specs.LinuxDeviceCgroup{Type: "c\na"}), "Devices[0].Type"},
		{"access of a wrong letter", device(specs.LinuxDeviceCgroup{Access: "rx"}), "Devices[0].Access"},
		{"access with a second line", device(specs.LinuxDeviceCgroup{Access: "r\nw"}), "Devices[0].Access"},
		{"device number beyond 31 bits", device(specs.LinuxDeviceCgroup{Major: at(1 << 32)}), "Devices[0]"},
		{"cpus", cpus("0-2,7"), ""},
		{"cpus with a second line", cpus("0\n1"), "CPUSetCPUs"},
		{"cpus without end", cpus(strings.Repeat("0,", 4096)), "CPUSetCPUs"},
		{"pages", pages("2MB"), ""},
		{"pages of a path", pages("../../2MB"), "HugepageLimits[0].Pagesize"},
		{"pages of no unit", pages("2"), "HugepageLimits[0].Pagesize"},
		{"pages of nothing", pages("MB"), "HugepageLimits[0].Pagesize"},
		{"pages of zero", pages("0MB"), "HugepageLimits[0].Pagesize"},
		{"unified", unified("memory.high", "1G"), ""},
		{"unified, of the group itself", unified("cgroup.max.depth", "3"), ""},
		{"unified path", unified("../memory.high", "1"), "Unified"},
		{"unified without controller", unified(".high", "1"), "Unified"},
		{"unified, moves processes", unified("cgroup.procs", "1"), "Unified"},
		{"unified, kills", unified("cgroup.kill", "1"), "Unified"},
		{"unified value with a zero byte", unified("memory.high", "1\x00"), "Unified"},
		{"unified value without end", unified("memory.high", strings.Repeat("1", 4097)), "Unified"},
		{"swap without memory", &specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: at(1)}}, "Memory.Swap"},
		{"swap below memory", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: at(2), Swap: at(1)}}, "Memory.Swap"},
		{"weight", &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: weight(10)}}, ""},
		{"weight too small", &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: weight(9)}}, "BlkioWeight"},
		{"weight of no device", &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
			WeightDevice: []specs.LinuxWeightDevice{{LinuxBlockIODevice: disk(-1, 0)}}}}, "BlockIO.WeightDevice[0]"},
		{"throttle of no device", &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
			ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: disk(8, -1)}}}}, "BlkioDeviceWriteIOps[0]"},
		{"rdma of a line", &specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"a b": {}}}, "Rdma"},
		{"priority of a path", &specs.LinuxResources{Network: &specs.LinuxNetwork{
			Priorities: []specs.LinuxInterfacePriority{{Name: "a/b"}}}}, "Network.Priorities"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := checkResources(tt.r)
			var invalid *InvalidError
			switch {
			case tt.field == "" && err != nil:
				t.Error(err)
			case tt.field != "" && (!errors.As(err, &invalid) || invalid.Field != tt.field):
				t.Errorf("%v, want an *InvalidError about %s", err, tt.field)
			}
		})
	}
}
