// Supervise looks after the containers of a root, as a daemon would: it runs their health checks, starts them again as
// their restart policies say, also after a boot, and notes how they end.
//
//	go run ./examples/supervise -root /var/lib/coracle
//
// It may be stopped and started, or killed, at any time: the containers run on. Where several run, one works and the
// others wait for its end. coracle.service makes it a service of the machine.
package main

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/coracle-dev/coracle"
)

func main() {
	root := flag.String("root", "", "`directory` of images and containers (default /var/lib/coracle)")
	flag.Parse()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *root, log); err != nil {
		log.Error("supervise", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root string, log *slog.Logger) error {
	eng, err := coracle.Open(ctx, coracle.Config{Root: root, Logger: log})
	if err != nil {
		return err
	}
	defer eng.Close()
	return eng.Supervise(ctx)
}
