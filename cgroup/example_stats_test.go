package cgroup_test

import (
	"fmt"
	"log"
	"time"

	"github.com/coracle-dev/coracle/cgroup"
)

// What docker stats shows of a group named "web".
func ExampleGroup_Stats() {
	h, err := cgroup.Open(cgroup.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	group, err := h.Load("web")
	if err != nil {
		log.Fatal(err)
	}
	before, err := group.Stats()
	if err != nil {
		log.Fatal(err)
	}
	time.Sleep(time.Second)
	s, err := group.Stats()
	if err != nil {
		log.Fatal(err)
	}
	if s.CPU != nil && before.CPU != nil {
		fmt.Printf("processors: %.2f\n", float64(s.CPU.Usage-before.CPU.Usage)/float64(s.Time.Sub(before.Time)))
	}
	if m := s.Memory; m != nil {
		fmt.Println("memory:", m.Usage-min(m.InactiveFile, m.Usage), "of", m.Limit)
	}
	if s.PIDs != nil {
		fmt.Println("tasks:", s.PIDs.Current)
	}
	for _, d := range s.IO {
		fmt.Printf("disk %d:%d: %d bytes read\n", d.Major, d.Minor, d.ReadBytes)
	}
	if s.Pressure != nil {
		fmt.Printf("waiting for memory: %.1f%%\n", s.Pressure.Memory.Some.Avg10)
	}
}

func ExampleMount() {
	for _, m := range []cgroup.Mount{
		{Path: "/sys/fs/cgroup/memory", Controllers: []string{"memory"}},
		{Path: "/sys/fs/cgroup/unified", V2: true},
	} {
		fmt.Println(m.Path, m.V2)
	}
	// Output:
	// /sys/fs/cgroup/memory false
	// /sys/fs/cgroup/unified true
}
