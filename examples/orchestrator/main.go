// Orchestrator keeps a number of replicas of a service running, and rolls them to a new image one by one:
//
//	go run ./examples/orchestrator -service web -image team/web:stable -replicas 3 -health '/bin/check --local'
//
// When the name of the image leads to another image (by a pull, a tag, or whatever else), a replica of the new image is
// started; when it is healthy an old one goes, and so on. If a new one does not become healthy it is removed, and what
// runs stays as it is until the name leads to yet another image.
//
// All that it knows is in the labels of the containers. It may be killed at any moment: the containers run on, and when it
// is started again it goes on where it was. It prints the events of its containers, and what it does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/coracle-dev/coracle"
)

func main() {
	root := flag.String("root", "", "`directory` of images and containers (default /var/lib/coracle)")
	svc := &service{Health: &coracle.HealthSpec{}}
	flag.StringVar(&svc.Name, "service", "service", "`name` of the service, and of its containers with a number")
	flag.StringVar(&svc.Image, "image", "", "`reference` of the image, which has to be here")
	flag.IntVar(&svc.Replicas, "replicas", 1, "how many are to run")
	flag.DurationVar(&svc.Patience, "patience", time.Minute, "how long a new replica may take to become healthy")
	health := flag.String("health", "", "`command` and arguments that check the health (default: the image's check)")
	flag.DurationVar(&svc.Health.Interval, "interval", 0, "time between two checks (default: the image's, or 30s)")
	flag.Parse()
	svc.Args = flag.Args()
	if *health != "" {
		svc.Health.Test = append([]string{"CMD"}, strings.Fields(*health)...)
	}
	if svc.Image == "" || svc.Replicas < 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *root, svc, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "orchestrator:", err)
		os.Exit(1)
	}
}

// run looks after the service until ctx is done, and leaves its containers as they are.
func run(ctx context.Context, root string, svc *service, out io.Writer) (err error) {
	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	o := &orchestrator{service: svc, eng: eng, out: out, good: make(map[string]bool), changed: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 2)
	// Health checks, and restarts of replicas that end: by this program, or by another one that supervises the root.
	go func() { ended <- eng.Supervise(ctx) }()
	go func() { ended <- o.watch(ctx) }()
	for ctx.Err() == nil {
		if err := o.reconcile(ctx); err != nil && ctx.Err() == nil {
			o.say("error: %v", err)
		}
		select {
		case <-o.changed:
		case <-time.After(lookAnyway):
		case err = <-ended:
			ended <- nil
			cancel()
		case <-ctx.Done():
		}
	}
	cancel()
	return errors.Join(err, <-ended, <-ended)
}

// lookAnyway is how soon the service is looked at where no event tells of a change.
const lookAnyway = 5 * time.Second
