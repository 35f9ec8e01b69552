package coracle_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/coracle-dev/coracle"
)

// exampleChecked starts a container with a health check and supervises it until done is called.
func exampleChecked(ctx context.Context, check *coracle.HealthSpec) (c *coracle.Container, done func()) {
	eng, closeAll := exampleImages(ctx)
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := eng.Supervise(ctx); err != nil {
			log.Fatal(err)
		}
	}()
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "pause", Health: check})
	if err == nil {
		err = c.Start(ctx)
	}
	if err != nil {
		log.Fatal(err)
	}
	return c, func() {
		stop()
		<-ended
		closeAll()
	}
}

// A program that supervises is what a daemon would be.
func ExampleEngine_Supervise() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	supervising, stop := context.WithCancel(ctx)
	ended := make(chan error)
	go func() { ended <- eng.Supervise(supervising) }()

	c, err := eng.Create(ctx, &coracle.ContainerSpec{
		Image: "hello", Detached: true, Restart: coracle.RestartPolicy{Mode: coracle.RestartAlways},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Remove(ctx, &coracle.RemoveOptions{Force: true})
	starts := 0
	events := eng.Events(ctx, &coracle.EventOptions{Follow: true, Filter: coracle.EventFilter{Actions: []coracle.EventAction{coracle.ActionStart}}})
	if err := c.Start(ctx); err != nil {
		log.Fatal(err)
	}
	for _, err := range events {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("started")
		if starts++; starts == 3 {
			break
		}
	}
	stop()
	fmt.Println(<-ended)
	// Output:
	// started
	// started
	// started
	// <nil>
}

func ExampleHealthSpec() {
	ctx := context.Background()
	c, done := exampleChecked(ctx, &coracle.HealthSpec{Test: []string{"CMD", "/bin/hello"}, Interval: 10 * time.Millisecond})
	defer done()
	if err := c.WaitFor(ctx, coracle.ConditionHealthy); err != nil {
		log.Fatal(err)
	}
	fmt.Println("it does what it is for")
	// Output: it does what it is for
}

func ExampleHealth() {
	ctx := context.Background()
	c, done := exampleChecked(ctx, &coracle.HealthSpec{Test: []string{"CMD", "/bin/hello"}, Interval: 10 * time.Millisecond})
	defer done()
	if err := c.WaitFor(ctx, coracle.ConditionHealthy); err != nil {
		log.Fatal(err)
	}
	info, err := c.Inspect(ctx)
	if err != nil {
		log.Fatal(err)
	}
	last := info.Health.Log[len(info.Health.Log)-1]
	fmt.Printf("%s: %s", info.Health.Status, last.Output)
	// Output: healthy: hello from a container
}

func ExampleHealthResult() {
	r := coracle.HealthResult{ExitCode: 1, Output: "connection refused\n"}
	fmt.Printf("exit code %d: %s", r.ExitCode, r.Output)
	// Output: exit code 1: connection refused
}

// What a health check has changed is an event too.
func ExampleHealthStatus() {
	ctx := context.Background()
	c, done := exampleChecked(ctx, &coracle.HealthSpec{Test: []string{"CMD", "/not/there"}, Interval: 10 * time.Millisecond, Retries: 2})
	defer done()
	for {
		info, err := c.Inspect(ctx)
		if err != nil {
			log.Fatal(err)
		}
		if info.Health.Status != coracle.HealthStarting {
			fmt.Printf("%s: %s\n", coracle.ActionHealthStatus, info.Health.Status)
			break
		}
		time.Sleep(time.Millisecond)
	}
	// Output: health_status: unhealthy
}

func ExampleRestartPolicy() {
	// As docker run --restart on-failure:3.
	spec := &coracle.ContainerSpec{
		Image: "web", Detached: true,
		Restart: coracle.RestartPolicy{Mode: coracle.RestartOnFailure, MaxRetries: 3},
	}
	fmt.Println(spec.Restart.Mode, spec.Restart.MaxRetries)
	// Output: on-failure 3
}

func ExampleRestartMode() {
	for _, mode := range []coracle.RestartMode{coracle.RestartNo, coracle.RestartOnFailure, coracle.RestartAlways, coracle.RestartUnlessStopped} {
		fmt.Println(mode)
	}
	// Output:
	// no
	// on-failure
	// always
	// unless-stopped
}
