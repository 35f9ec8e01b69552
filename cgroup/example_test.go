package cgroup_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"syscall"

	"github.com/coracle-dev/coracle/cgroup"
)

// A group is made, joined by a process that is started meanwhile, measured and removed. It needs root.
func Example() {
	ctx := context.Background()
	h, err := cgroup.Open(cgroup.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	resources, err := cgroup.Limits{Memory: 64 << 20, PIDs: 32, CPUs: 0.5}.Resources()
	if err != nil {
		log.Fatal(err)
	}
	group, err := h.Create("example", resources)
	if err != nil {
		log.Fatal(err)
	}
	defer group.Remove(ctx)
	join, err := group.Join()
	if err != nil {
		log.Fatal(err)
	}
	// join.Dir goes to clone3, and the new process writes "0" to each of join.Tasks.
	join.Close()
	if s, err := group.Stats(); err == nil && s.Memory != nil {
		fmt.Println(s.Memory.Usage, "of", s.Memory.Limit, "bytes")
	}
	if err := group.Kill(ctx); err != nil {
		log.Print(err)
	}
}

func ExampleLimits() {
	r, err := cgroup.Limits{Memory: 256 << 20, CPUs: 1.5}.Resources()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(*r.Memory.Limit, *r.Memory.Swap, *r.CPU.Quota, *r.CPU.Period)
	// Output: 268435456 536870912 150000 100000
}

func ExampleInvalidError() {
	err := cgroup.Limits{Memory: -5}.Validate()
	var invalid *cgroup.InvalidError
	if errors.As(err, &invalid) {
		fmt.Println(invalid.Field)
	}
	fmt.Println(err)
	// Output:
	// Memory
	// cgroup: Memory "-5": must not be negative
}

func ExampleUnsupportedError() {
	var err error = &cgroup.UnsupportedError{
		Feature: "memory limit", File: "/sys/fs/cgroup/memory", Fix: "mount it writable", Err: syscall.EROFS,
	}
	fmt.Println(errors.Is(err, errors.ErrUnsupported), errors.Is(err, syscall.EROFS))
	// Output: true true
}

func ExampleLimitError() {
	var err error = &cgroup.LimitError{Feature: "cpuset", File: "cpuset.cpus", Value: "99", Err: syscall.EINVAL}
	fmt.Println(errors.Is(err, errors.ErrUnsupported), errors.Is(err, syscall.EINVAL))
	// Output: false true
}

func ExampleMode() {
	fmt.Println(cgroup.None, cgroup.V1, cgroup.Hybrid, cgroup.V2)
	// Output: none v1 hybrid v2
}

func ExampleHierarchy() {
	h, err := cgroup.Open(cgroup.Config{Parent: "/coracle"})
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	fmt.Println(h.Mode(), h.Controllers())
	for _, m := range h.Mounts() {
		fmt.Println(m.Path, m.Controllers)
	}
}

func ExampleGroup_OOMKills() {
	h, err := cgroup.Open(cgroup.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	group, err := h.Load("web")
	if err != nil {
		log.Fatal(err)
	}
	n, err := group.OOMKills()
	if err == nil && n > 0 {
		fmt.Println("the memory limit was too small")
	}
}

func ExampleJoin() {
	var join cgroup.Join // where there are no cgroups
	fmt.Println(join.Dir == nil, len(join.Tasks), join.Close())
	// Output: true 0 <nil>
}
