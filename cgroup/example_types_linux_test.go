package cgroup_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"os"
	"time"

	"github.com/coracle-dev/coracle/cgroup"
)

func ExampleConfig() {
	h, err := cgroup.Open(cgroup.Config{
		Parent: fmt.Sprintf("/example-%d", os.Getpid()),
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	names, err := h.Names()
	fmt.Println(len(names), "groups,", err)
	// Output: 0 groups, <nil>
}

// A whole controller may be missing, so each pointer is looked at.
func ExampleStats() {
	h, err := cgroup.Open(cgroup.Config{Parent: fmt.Sprintf("/example-%d", os.Getpid())})
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	group, err := h.Create("web", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer group.Remove(context.Background())
	s, err := group.Stats()
	if err != nil {
		log.Fatal(err)
	}
	var tasks uint64
	if s.PIDs != nil {
		tasks = s.PIDs.Current
	}
	fmt.Println(tasks, "tasks")
	// Output: 0 tasks
}

func ExampleCPUStats() {
	// Both are of Group.Stats, one second apart.
	before := cgroup.CPUStats{Usage: 10 * time.Second, Periods: 100, Throttled: 5}
	after := cgroup.CPUStats{Usage: 11500 * time.Millisecond, Periods: 110, Throttled: 9}
	fmt.Printf("processors: %.1f\n", (after.Usage - before.Usage).Seconds())
	fmt.Printf("out of quota: %d of %d periods\n", after.Throttled-before.Throttled, after.Periods-before.Periods)
	// Output:
	// processors: 1.5
	// out of quota: 4 of 10 periods
}

func ExampleMemoryStats() {
	m := cgroup.MemoryStats{Usage: 96 << 20, InactiveFile: 32 << 20, Limit: 256 << 20} // of Group.Stats
	used := m.Usage - min(m.InactiveFile, m.Usage)                                     // as docker stats has it
	fmt.Printf("%d MiB", used>>20)
	if m.Limit > 0 { // zero means none
		fmt.Printf(", %d%%", 100*used/m.Limit)
	}
	// Output: 64 MiB, 25%
}

func ExamplePIDStats() {
	p := cgroup.PIDStats{Current: 32, Limit: 32, LimitHits: 3} // of Group.Stats
	if p.LimitHits > 0 {
		fmt.Printf("%d of %d tasks, %d were refused\n", p.Current, p.Limit, p.LimitHits)
	}
	// Output: 32 of 32 tasks, 3 were refused
}

func ExampleIOStats() {
	s := cgroup.Stats{IO: []cgroup.IOStats{ // of Group.Stats
		{Major: 8, Minor: 0, ReadBytes: 4 << 20, WriteBytes: 1 << 20},
		{Major: 8, Minor: 16, ReadBytes: 2 << 20},
	}}
	var read, written uint64
	for _, d := range s.IO {
		read += d.ReadBytes
		written += d.WriteBytes
	}
	fmt.Printf("%d MiB read, %d MiB written\n", read>>20, written>>20)
	// Output: 6 MiB read, 1 MiB written
}

func ExampleHugepageStats() {
	s := cgroup.Stats{Hugepage: []cgroup.HugepageStats{{PageSize: "2MB", Usage: 8 << 20, Limit: 64 << 20}}} // of Group.Stats
	for _, p := range s.Hugepage {
		fmt.Printf("pages of %s: %d of %d MiB\n", p.PageSize, p.Usage>>20, p.Limit>>20)
	}
	// Output: pages of 2MB: 8 of 64 MiB
}

func ExamplePressureStats() {
	p := cgroup.PressureStats{ // of Group.Stats
		CPU:    cgroup.Pressure{Some: cgroup.Stall{Avg10: 1.5}},
		Memory: cgroup.Pressure{Some: cgroup.Stall{Avg10: 40}, Full: cgroup.Stall{Avg10: 25}},
	}
	if p.Memory.Full.Avg10 > 10 {
		fmt.Printf("nothing ran for %.0f%% of the time, for want of memory\n", p.Memory.Full.Avg10)
	}
	// Output: nothing ran for 25% of the time, for want of memory
}

func ExamplePressure() {
	p := cgroup.Pressure{Some: cgroup.Stall{Avg60: 12}, Full: cgroup.Stall{Avg60: 3}} // of PressureStats
	fmt.Printf("some waited for %.0f%% of the last minute, all for %.0f%%\n", p.Some.Avg60, p.Full.Avg60)
	// Output: some waited for 12% of the last minute, all for 3%
}

func ExampleStall() {
	// Both are of Group.Stats. The averages lag behind; the difference of totals is exact.
	before := cgroup.Stall{Total: 2 * time.Second}
	after := cgroup.Stall{Total: 2250 * time.Millisecond}
	fmt.Println("waited for", after.Total-before.Total)
	// Output: waited for 250ms
}
