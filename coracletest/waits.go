package coracletest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coracle-dev/coracle"
)

// ForLog waits until the text has been in n lines of the container's log, of either stream; n below 1 means 1. It follows
// the log and sees each line once it has ended. The container may have ended by then.
func ForLog(text string, n int) Wait {
	return logWait{fmt.Sprintf("%q", text), func(line string) bool { return strings.Contains(line, text) }, n}
}

// ForLogMatch is [ForLog] for lines that match an expression.
func ForLogMatch(re *regexp.Regexp, n int) Wait {
	return logWait{fmt.Sprintf("/%s/", re), re.MatchString, n}
}

type logWait struct {
	what  string
	match func(line string) bool
	times int
}

func (w logWait) Wait(ctx context.Context, c *coracle.Container) error {
	began := time.Now()
	limited, cancel := bounded(ctx)
	defer cancel()
	seen, damage := w.read(limited, c)
	for seen < w.want() && limited.Err() == nil && damage == nil && restarts(limited, c) {
		// The log ends with each run of the container.
		select {
		case <-time.After(longestPause):
		case <-limited.Done():
		}
		if again, err := w.read(limited, c); again > seen || err != nil {
			seen, damage = again, err
		}
	}
	if seen >= w.want() {
		return nil
	}
	what, last := "a log line with "+w.what, damage
	if w.want() > 1 {
		what = fmt.Sprintf("%d log lines with %s", w.want(), w.what)
		last = errors.Join(fmt.Errorf("%d so far", seen), damage)
	}
	cause := limited.Err()
	if cause == nil && damage == nil { // all has been read
		exit, err := c.Wait(limited)
		if cause = err; err == nil {
			cause = &coracle.ExitError{ExitStatus: exit, Container: c.Name()}
		}
	}
	return newWaitError(ctx, c, what, time.Since(began), cause, last)
}

func (w logWait) want() int { return max(w.times, 1) }

// read follows the log to the end of the container's run, and returns how many lines match: not more than it takes.
func (w logWait) read(ctx context.Context, c *coracle.Container) (seen int, damage error) {
	for line, err := range c.LogLines(ctx, &coracle.LogOptions{Follow: true}) {
		switch {
		case err != nil: // the loop goes on behind damage only
			if ctx.Err() == nil {
				damage = err
			}
		case line.Stream != coracle.LogNotes && w.match(line.Text):
			seen++
		}
		if seen == w.want() {
			break
		}
	}
	return seen, damage
}

// ForExec waits until a command in the container ends with code 0. The program and its arguments are as in
// [coracle.Container.Command]; who needs more of that uses a [WaitFunc]. A program that is not there may still come.
func ForExec(program string, args ...string) Wait { return execWait{program, args} }

type execWait struct {
	program string
	args    []string
}

func (w execWait) Wait(ctx context.Context, c *coracle.Container) error {
	what := "the command " + strings.Join(append([]string{w.program}, w.args...), " ")
	return poll(ctx, c, what, func(ctx context.Context) error {
		cmd := c.Command(w.program, w.args...)
		said := &tail{}
		cmd.Stdout, cmd.Stderr = said, said
		cmd.WaitDelay = time.Second
		err := cmd.Run(ctx)
		if text := strings.TrimSpace(string(said.bytes)); err != nil && text != "" {
			return fmt.Errorf("%w: %s", err, text)
		}
		return err
	})
}

// tail keeps the last bytes written to it.
type tail struct{ bytes []byte }

func (t *tail) Write(p []byte) (int, error) {
	const room = 400
	t.bytes = append(t.bytes, p[max(0, len(p)-room):]...)
	t.bytes = t.bytes[max(0, len(t.bytes)-room):]
	return len(p), nil
}

// ForFile waits until there is something at an absolute path of the container, of whatever kind. Links are followed inside
// the container, never out of it. What its processes see counts, with all that they have mounted.
func ForFile(path string) Wait { return fileWait(path) }

type fileWait string

func (w fileWait) Wait(ctx context.Context, c *coracle.Container) error {
	return poll(ctx, c, "the file "+string(w), func(ctx context.Context) error {
		// A filesystem that a process of the container serves need not answer.
		found := make(chan error, 1)
		go func() { found <- fileExists(c, string(w)) }()
		select {
		case err := <-found:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

// ForPort waits until a process of the container's network namespace listens on a port: "5432", "5432/tcp" or "53/udp",
// with IPv4 or IPv6, on whichever of its addresses. It looks at what the kernel lists and does not connect. With
// NetworkHost any process of the host counts.
func ForPort(port string) Wait { return portWait(port) }

type portWait string

func (w portWait) Wait(ctx context.Context, c *coracle.Container) error {
	return poll(ctx, c, "port "+string(w), func(context.Context) error {
		number, protocol, _ := strings.Cut(string(w), "/")
		port, err := strconv.ParseUint(number, 10, 16)
		if err != nil || port == 0 || !slices.Contains([]string{"", "tcp", "udp"}, protocol) || strings.HasSuffix(string(w), "/") {
			return errUseless{fmt.Errorf("%w: %q is no port: it has to be like 5432/tcp", coracle.ErrInvalid, string(w))}
		}
		return listening(c, uint16(port), protocol == "udp")
	})
}

// errSilent is how a look for a port fails.
var errSilent = errors.New("nobody listens")

// ForHealthy waits until the container's health check succeeds, which some program has to run: [Run] and the like see to
// that. A container without one is coracle.ErrInvalid.
func ForHealthy() Wait { return healthWait{} }

type healthWait struct{}

func (healthWait) Wait(ctx context.Context, c *coracle.Container) error {
	return await(ctx, c, "its health", func(ctx context.Context) error {
		err := c.WaitFor(ctx, coracle.ConditionHealthy)
		if err == nil || ctx.Err() == nil {
			return err
		}
		info, inspectErr := c.Inspect(context.WithoutCancel(ctx))
		if inspectErr != nil || info.Health == nil || len(info.Health.Log) == 0 {
			return err
		}
		last := info.Health.Log[len(info.Health.Log)-1]
		return fmt.Errorf("it is %s, the check ended with %d: %s", info.Health.Status, last.ExitCode, strings.TrimSpace(last.Output))
	})
}

// ForExit waits until the container has ended with one of the codes; none stand for code 0. If it ends otherwise, the
// error's Err is a *coracle.ExitError.
func ForExit(codes ...int) Wait { return exitWait(codes) }

type exitWait []int

func (w exitWait) Wait(ctx context.Context, c *coracle.Container) error {
	began := time.Now()
	limited, cancel := bounded(ctx)
	defer cancel()
	exit, err := c.Wait(limited)
	switch {
	case err != nil:
	case exit.Signal == 0 && !exit.Unknown && (slices.Contains(w, exit.Code) || len(w) == 0 && exit.Code == 0):
		return nil
	default:
		err = &coracle.ExitError{ExitStatus: exit, Container: c.Name()}
	}
	return newWaitError(ctx, c, "its end", time.Since(began), limited.Err(), err)
}
