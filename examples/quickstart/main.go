// Quickstart makes an image from its own binary, starts a container from it and removes everything again. It needs no
// network, no registry and no other program:
//
//	go run ./examples/quickstart
//
// In the container it looks around and reports what it sees.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "inside" {
		lookAround()
		return
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "quickstart: root is missing: containers need CAP_SYS_ADMIN, so run it as root (sudo -E go run ./examples/quickstart)")
		os.Exit(1)
	}
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	root, err := os.MkdirTemp("", "coracle-quickstart-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	var steps stopwatch

	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		return err
	}
	defer eng.Close()
	steps.lap("open an engine")

	files, err := selfFS(root)
	if err != nil {
		return err
	}
	img, err := eng.ImageFromFS(ctx, "quickstart:latest", files, &coracle.ImageFSOptions{
		Config: coracle.ImageConfig{Entrypoint: []string{"/quickstart"}, Cmd: []string{"inside"}},
	})
	if err != nil {
		return err
	}
	steps.lap("make an image of this program")

	c, err := eng.Create(ctx, &coracle.ContainerSpec{
		Name:   "hello",
		Image:  img.ID().String(),
		Env:    []string{"GREETING=hello from a container"},
		Limits: cgroup.Limits{Memory: 64 << 20, PIDs: 32},
		Stdout: os.Stdout,
		Stderr: os.Stderr,
	})
	if err != nil {
		return err
	}
	steps.lap("create the container")

	if err := c.Start(ctx); err != nil {
		return err
	}
	steps.lap("start it")

	exit, err := c.Wait(ctx)
	if err != nil {
		return err
	}
	steps.lap("wait for its end (" + exit.String() + ")")

	if err := c.Remove(ctx, nil); err != nil {
		return err
	}
	steps.lap("remove it")
	steps.print()
	if !exit.Success() {
		return fmt.Errorf("the container ended with %v", exit)
	}
	return nil
}

// stopwatch notes how long each step took.
type stopwatch struct {
	names []string
	times []time.Duration
	last  time.Time
}

func (s *stopwatch) lap(name string) {
	now := time.Now()
	if s.last.IsZero() {
		s.last = started
	}
	s.names, s.times, s.last = append(s.names, name), append(s.times, now.Sub(s.last)), now
}

var started = time.Now()

func (s *stopwatch) print() {
	fmt.Println("\nfrom the outside:")
	for i, name := range s.names {
		fmt.Printf("  %-40s %8.2f ms\n", name, float64(s.times[i].Microseconds())/1000)
	}
}
