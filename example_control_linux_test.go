package coracle_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
)

// exampleRunning starts a container in which /program waits for ever and /bin/hello says so.
func exampleRunning(ctx context.Context, spec coracle.ContainerSpec) (c *coracle.Container, done func()) {
	eng, done := exampleImages(ctx)
	spec.Image = "pause"
	c, err := eng.Create(ctx, &spec)
	if err == nil {
		err = c.Start(ctx)
	}
	if err != nil {
		log.Fatal(err)
	}
	return c, done
}

func ExampleContainer_Pause() {
	ctx := context.Background()
	c, done := exampleRunning(ctx, coracle.ContainerSpec{})
	defer done()
	if err := c.Pause(ctx); err != nil {
		log.Fatal(err)
	}
	info, err := c.Inspect(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Status, errors.Is(c.Pause(ctx), coracle.ErrPaused))
	if err := c.Resume(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: paused true
}

// A memory limit for a container that runs. What is not named stays.
func ExampleContainer_Update() {
	ctx := context.Background()
	c, done := exampleRunning(ctx, coracle.ContainerSpec{Limits: cgroup.Limits{PIDs: 100}})
	defer done()
	if err := c.Update(ctx, cgroup.Limits{Memory: 64 << 20}); err != nil {
		log.Fatal(err)
	}
	s, err := c.Stats(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(s.MemoryLimit>>20, "MB,", s.PIDs.Limit, "processes")
	// Output: 64 MB, 100 processes
}

func ExampleContainer_Rename() {
	ctx := context.Background()
	c, done := exampleRunning(ctx, coracle.ContainerSpec{Name: "web-new"})
	defer done()
	if err := c.Rename(ctx, "web"); err != nil {
		log.Fatal(err)
	}
	fmt.Println(c.Name())
	// Output: web
}

// Another goroutine, or another program, waits for the end of a container.
func ExampleCondition() {
	ctx := context.Background()
	c, done := exampleRunning(ctx, coracle.ContainerSpec{})
	defer done()
	if err := c.WaitFor(ctx, coracle.ConditionRunning); err != nil {
		log.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- c.WaitFor(ctx, coracle.ConditionExited) }()
	if err := c.Stop(ctx, &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
		log.Fatal(err)
	}
	fmt.Println(<-ended)
	// Output: <nil>
}

// With an init in front of it, the program is the container's second process.
func ExampleProcessInfo() {
	ctx := context.Background()
	c, done := exampleRunning(ctx, coracle.ContainerSpec{Init: true})
	defer done()
	processes, err := c.Top(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range processes {
		fmt.Printf("%d %q\n", p.ContainerPID, p.Command)
	}
	// Output:
	// 1 "coracle-init"
	// 2 "program"
}

// What a container uses, ten times a second.
func ExampleStats() {
	ctx := context.Background()
	c, done := exampleRunning(ctx, coracle.ContainerSpec{})
	defer done()
	n := 0
	for s, err := range c.StatsStream(ctx, 100*time.Millisecond) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(s.CPUPercent < 50, s.MemoryUsage > 0, s.PIDs.Current)
		if n++; n == 2 {
			break
		}
	}
	// Output:
	// true true 1
	// true true 1
}

func ExampleParseSignal() {
	for _, name := range []string{"SIGTERM", "hup", "9", "SIGNONSENSE"} {
		sig, err := coracle.ParseSignal(name)
		fmt.Println(int(sig), err)
	}
	// Output:
	// 15 <nil>
	// 1 <nil>
	// 9 <nil>
	// 0 invalid value: "SIGNONSENSE" is no signal
}
