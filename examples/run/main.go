// Run runs a command in a container of an image, as `docker run --rm` does, in its own process:
//
//	go run ./examples/run debian:12-slim cat /etc/os-release
//	go run ./examples/run -e NAME=value -v /tmp:/data:ro -network host alpine sh -c 'ls /data'
//
// The image is pulled if it is not there, with a progress bar for each layer. The program ends with the exit status of
// the container.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/coracle-dev/coracle"
)

func main() {
	spec := coracle.ContainerSpec{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	flag.Func("e", "`NAME=value` for the environment; may be repeated", func(s string) error {
		spec.Env = append(spec.Env, s)
		return nil
	})
	flag.Func("v", "`/host:/container[:ro]` to mount; may be repeated", func(s string) error {
		source, target, ok := strings.Cut(s, ":")
		if !ok {
			return errors.New("write it as /host:/container")
		}
		target, readOnly := strings.CutSuffix(target, ":ro")
		spec.Mounts = append(spec.Mounts, coracle.Mount{Source: source, Target: target, ReadOnly: readOnly})
		return nil
	})
	network := flag.String("network", coracle.NetworkNone, "`none` or host")
	root := flag.String("root", "", "`directory` of images and containers (default /var/lib/coracle)")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: run [flags] IMAGE [ARGS...]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(125)
	}
	if os.Geteuid() != 0 {
		fail(errors.New("root is missing: containers need CAP_SYS_ADMIN, so run it as root (sudo -E go run ./examples/run IMAGE)"))
	}
	spec.Image = flag.Arg(0)
	if flag.NArg() > 1 {
		spec.Args = flag.Args()[1:]
	}
	spec.Networks = []coracle.Attachment{{Network: *network}}

	// An interrupt ends the pull, or kills the container.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, *root, &spec)
	var exit *coracle.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.Signal != 0:
		os.Exit(128 + int(exit.Signal)) // as a shell would
	case errors.As(err, &exit) && !exit.Unknown:
		os.Exit(exit.Code)
	default:
		fail(err)
	}
}

func run(ctx context.Context, root string, spec *coracle.ContainerSpec) (err error) {
	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, eng.Close())
	}()
	if err := pull(ctx, eng, spec.Image); err != nil {
		return err
	}
	return eng.Run(ctx, spec)
}

// pull shows a bar for each layer that it has to fetch, if standard error is a terminal.
func pull(ctx context.Context, eng *coracle.Engine, image string) error {
	screen := mpb.New(mpb.WithOutput(os.Stderr), mpb.WithWidth(40))
	var bars []*mpb.Bar
	_, err := eng.Pull(ctx, image, &coracle.PullOptions{
		Policy: coracle.PullMissing,
		Progress: func(p coracle.Progress) {
			if p.Phase == coracle.PhaseWaiting { // each layer is announced, in order
				bars = append(bars, screen.AddBar(p.Total,
					mpb.PrependDecorators(decor.Name(p.Digest.Encoded()[:12]+" ")),
					mpb.AppendDecorators(decor.OnComplete(decor.CountersKibiByte(" % .1f / % .1f"), " done"))))
			}
			bar := bars[p.Index]
			if p.Phase == coracle.PhaseDone {
				bar.SetCurrent(p.Total)
			} else {
				bar.SetCurrent(min(p.Current, p.Total-1)) // it is full when it is unpacked
			}
		},
	})
	if err != nil {
		screen.Shutdown()
		return err
	}
	screen.Wait()
	return nil
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "run:", err)
	os.Exit(125)
}
