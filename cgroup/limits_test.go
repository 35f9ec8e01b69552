package cgroup

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestLimitsResources(t *testing.T) {
	for _, tt := range []struct {
		name   string
		limits Limits
		want   string // as JSON of the runtime spec
	}{
		{"nothing", Limits{}, `{}`},
		{"swap is twice the memory", Limits{Memory: 1 << 20}, `{"memory":{"limit":1048576,"swap":2097152}}`},
		{"no swap", Limits{Memory: 1 << 20, MemorySwap: 1 << 20}, `{"memory":{"limit":1048576,"swap":1048576}}`},
		{"all swap", Limits{Memory: 1 << 20, MemorySwap: -1}, `{"memory":{"limit":1048576,"swap":-1}}`},
		{"more memory than half of what a number holds", Limits{Memory: math.MaxInt64}, `{"memory":{"limit":9223372036854775807}}`},
		{"reservation alone", Limits{MemoryReservation: 4096}, `{"memory":{"reservation":4096}}`},
		{"half a processor", Limits{CPUs: 0.5}, `{"cpu":{"quota":50000,"period":100000}}`},
		{"processors in a short period", Limits{CPUs: 1.5, CPUPeriod: 10000}, `{"cpu":{"quota":15000,"period":10000}}`},
		{"quota and set", Limits{CPUQuota: 2000, CPUShares: 512, CPUSetCPUs: "0", CPUSetMems: "0"},
			`{"cpu":{"shares":512,"quota":2000,"cpus":"0","mems":"0"}}`},
		{"pids", Limits{PIDs: 7}, `{"pids":{"limit":7}}`},
		{"pids without limit", Limits{PIDs: -1}, `{"pids":{"limit":-1}}`},
		{"blkio", Limits{BlkioWeight: 10, BlkioDeviceReadBps: throttleOf(8, 0, 4096)},
			`{"blockIO":{"weight":10,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":4096}]}}`},
		{"pages and files", Limits{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 0}}, Unified: map[string]string{"memory.high": "1"}},
			`{"hugepageLimits":[{"pageSize":"2MB","limit":0}],"unified":{"memory.high":"1"}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := tt.limits.Resources()
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			data, err := json.Marshal(tt.limits)
			if err != nil {
				t.Fatal(err)
			}
			var back Limits
			if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(back, tt.limits) {
				t.Errorf("through JSON: %+v, %v", back, err)
			}
		})
	}
}

func throttleOf(major, minor int64, rate uint64) []specs.LinuxThrottleDevice {
	return []specs.LinuxThrottleDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: major, Minor: minor}, Rate: rate}}
}

func TestLimitsValidate(t *testing.T) {
	for _, tt := range []struct {
		limits Limits
		field  string
	}{
		{Limits{Memory: -5}, "Memory"},
		{Limits{MemorySwap: 1}, "MemorySwap"},
		{Limits{Memory: 1, MemorySwap: -2}, "MemorySwap"},
		{Limits{Memory: 2, MemorySwap: 1}, "MemorySwap"},
		{Limits{MemoryReservation: -1}, "MemoryReservation"},
		{Limits{Memory: 1, MemoryReservation: 2}, "MemoryReservation"},
		{Limits{CPUs: -1}, "CPUs"},
		{Limits{CPUs: math.NaN()}, "CPUs"},
		{Limits{CPUs: math.Inf(1)}, "CPUs"},
		{Limits{CPUs: 0.001}, "CPUs"},
		{Limits{CPUs: 0.5, CPUPeriod: 1000}, "CPUs"},
		{Limits{CPUs: 1, CPUQuota: 1000}, "CPUs"},
		{Limits{CPUQuota: -1}, "CPUQuota"},
		{Limits{CPUQuota: 999}, "CPUQuota"},
		{Limits{CPUPeriod: 999}, "CPUPeriod"},
		{Limits{CPUPeriod: 1000001}, "CPUPeriod"},
		{Limits{CPUShares: 1}, "CPUShares"},
		{Limits{CPUShares: 262145}, "CPUShares"},
		{Limits{CPUSetCPUs: "all"}, "CPUSetCPUs"},
		{Limits{CPUSetMems: "0 1"}, "CPUSetMems"},
		{Limits{PIDs: -2}, "PIDs"},
		{Limits{BlkioWeight: 1001}, "BlkioWeight"},
		{Limits{BlkioDeviceWriteBps: throttleOf(-1, 0, 1)}, "BlkioDeviceWriteBps[0]"},
	} {
		r, err := tt.limits.Resources()
		var invalid *InvalidError
		if r != nil || !errors.As(err, &invalid) || invalid.Field != tt.field {
			t.Errorf("%+v: %v, want an *InvalidError about %s", tt.limits, err, tt.field)
		}
	}
}
