//go:build linux

package cgroup

import (
	"testing"
	"time"
)

func TestParsePressure(t *testing.T) {
	got := parsePressure("some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=7\n")
	want := Pressure{
		Some: Stall{Avg10: 1.5, Avg60: 0.25, Total: 1234 * time.Microsecond},
		Full: Stall{Avg10: 0.5, Total: 7 * time.Microsecond},
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, data := range []string{"", "\n", "some", "full avg10", "some avg10=x total=-"} {
		if got := parsePressure(data); got.Some.Avg10 != 0 || got.Full.Avg10 != 0 {
			t.Errorf("%q: %+v", data, got)
		}
	}
}

func TestStatsField(t *testing.T) {
	data := []byte("oom 1\noom_kill 23\noom_group_kill 4\nusage_usec max\n")
	for name, want := range map[string]uint64{"oom": 1, "oom_kill": 23, "oom_group_kill": 4, "kill": 0, "usage_usec": 0, "none": 0} {
		if got := field(data, name); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
}
