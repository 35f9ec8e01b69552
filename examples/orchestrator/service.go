package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/coracle-dev/coracle"
)

// The labels of a replica: its service, and the id of the image that it was to run.
const (
	labelService = "orchestrator.service"
	labelVersion = "orchestrator.version"
)

// service is what is to run.
type service struct {
	Name     string
	Image    string
	Args     []string
	Replicas int
	Health   *coracle.HealthSpec
	Patience time.Duration
}

// orchestrator looks after one service. What it remembers makes it faster, and is no loss: it is found out again.
type orchestrator struct {
	*service
	eng     *coracle.Engine
	good    map[string]bool // replicas that were healthy, by id
	failed  string          // the version whose roll was aborted
	changed chan struct{}

	mu  sync.Mutex
	out io.Writer
}

func (o *orchestrator) say(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	fmt.Fprintf(o.out, format+"\n", args...)
}

// watch prints events and tells of changes, until ctx is done.
func (o *orchestrator) watch(ctx context.Context) error {
	for ev, err := range o.eng.Events(ctx, &coracle.EventOptions{Follow: true}) {
		var gap *coracle.EventGapError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &gap): // something has happened that nobody tells of
		case err != nil:
			return err
		case ev.Type == coracle.EventContainer && ev.Attributes[labelService] != o.Name:
			continue
		default:
			o.say("event: %s %s %s", ev.Type, ev.Action, ev.Name)
		}
		select {
		case o.changed <- struct{}{}:
		default:
		}
	}
	return nil
}

// replica is a container of the service.
type replica struct {
	*coracle.Container
	info *coracle.ContainerInfo
}

func (r *replica) version() string { return r.info.Labels[labelVersion] }

// replicas lists what there is: that of a version, and the rest. What does not run is first in the rest.
func (o *orchestrator) replicas(ctx context.Context, version string) (current, others []*replica, err error) {
	list, err := o.eng.Containers(ctx, &coracle.ContainerFilter{Labels: map[string]string{labelService: o.Name}})
	if err != nil {
		return nil, nil, err
	}
	var running []*replica
	for _, c := range list {
		info, err := c.Inspect(ctx)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, nil, err
		case info.Labels[labelVersion] == version:
			current = append(current, &replica{c, info})
		case info.Status == coracle.StatusRunning:
			running = append(running, &replica{c, info})
		default:
			others = append(others, &replica{c, info})
		}
	}
	return current, append(others, running...), nil
}

// reconcile makes one step after the other until what runs is what is to run. It decides by nothing but what it finds:
// so it goes on with what another one, which was killed, has begun.
func (o *orchestrator) reconcile(ctx context.Context) error {
	for ctx.Err() == nil {
		img, err := o.eng.Image(ctx, o.Image)
		if err != nil {
			return err
		}
		version := img.ID().String()
		current, others, err := o.replicas(ctx, version)
		if err != nil {
			return err
		}
		if step := o.next(version, current, others); step == nil {
			return nil
		} else if err := step(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

type step func(context.Context) error

// next is the next step, or nil if there is none.
func (o *orchestrator) next(version string, current, others []*replica) step {
	for _, r := range current {
		if !o.good[r.ID()] {
			return func(ctx context.Context) error { return o.admit(ctx, r, len(others) > 0) }
		}
	}
	all := append(others, current...)
	for _, r := range all {
		if step := o.mend(r); step != nil {
			return step
		}
	}
	surplus := len(all) > o.Replicas
	switch {
	case surplus && len(others) > 0: // and what takes its place is healthy
		return func(ctx context.Context) error { return o.remove(ctx, others[0]) }
	case surplus:
		return func(ctx context.Context) error { return o.remove(ctx, current[len(current)-1]) }
	case version != o.failed && len(current) < o.Replicas:
		return func(ctx context.Context) error { return o.add(ctx, version) }
	case len(all) < o.Replicas && len(others) > 0: // one of those that stay was removed
		return func(ctx context.Context) error { return o.add(ctx, others[0].version()) }
	}
	return nil
}

// mend starts what was stopped, and restarts what is not healthy any more. What ends by itself is the supervisor's business.
func (o *orchestrator) mend(r *replica) step {
	switch h := r.info.Health; {
	case r.info.Status == coracle.StatusCreated, r.info.Status == coracle.StatusExited && !r.info.Restarting:
		return func(ctx context.Context) error { return r.start(ctx) }
	case r.info.Status == coracle.StatusRunning && h != nil && h.Status == coracle.HealthUnhealthy:
		return func(ctx context.Context) error {
			o.say("unhealthy, restarting: %s", r.Name())
			return r.Restart(ctx, nil)
		}
	}
	return nil
}

// start starts a replica, unless somebody else has done so.
func (r *replica) start(ctx context.Context) error {
	if err := r.Start(ctx); err != nil && !errors.Is(err, coracle.ErrRunning) {
		return err
	}
	return nil
}

// add makes a replica and starts it.
func (o *orchestrator) add(ctx context.Context, version string) error {
	for n := 0; ; n++ {
		c, err := o.eng.Create(ctx, &coracle.ContainerSpec{
			Name: fmt.Sprintf("%s-%d", o.Name, n), Image: version, Pull: coracle.PullNever, Args: o.Args, Health: o.Health, Detached: true,
			Labels:  map[string]string{labelService: o.Name, labelVersion: version},
			Restart: coracle.RestartPolicy{Mode: coracle.RestartAlways},
		})
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		o.say("new: %s", c.Name())
		return c.Start(ctx)
	}
}

// remove stops a replica and removes it.
func (o *orchestrator) remove(ctx context.Context, r *replica) error {
	o.say("old: %s", r.Name())
	delete(o.good, r.ID())
	if err := r.Stop(ctx, nil); err != nil {
		return err
	}
	return r.Remove(ctx, &coracle.RemoveOptions{Force: true})
}

// admit waits until a replica of the new version is healthy. If it does not become so the roll is aborted.
func (o *orchestrator) admit(ctx context.Context, r *replica, roll bool) error {
	err := o.healthy(ctx, r)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		o.say("healthy: %s", r.Name())
		o.good[r.ID()] = true
		return nil
	case errors.Is(err, fs.ErrNotExist): // somebody has removed it
		return nil
	}
	o.failed = r.version()
	if roll {
		o.say("aborted: %s: %v", r.Name(), err)
	} else {
		o.say("failed: %s: %v", r.Name(), err)
	}
	return o.remove(ctx, r)
}

// healthy waits until a replica is healthy. One without a health check has to run.
func (o *orchestrator) healthy(ctx context.Context, r *replica) error {
	ctx, cancel := context.WithTimeoutCause(ctx, o.Patience, errors.New("it took too long"))
	defer cancel()
	// From now on, so that nothing is missed after the first look.
	events := o.eng.Events(ctx, &coracle.EventOptions{Follow: true, Filter: coracle.EventFilter{Containers: []string{r.ID()}}})
	if r.info.Status != coracle.StatusRunning {
		if err := r.start(ctx); err != nil {
			return err
		}
	}
	ready := func() (bool, error) {
		info, err := r.Inspect(ctx)
		switch {
		case err != nil:
			return false, err
		case info.Health == nil:
			return info.Status == coracle.StatusRunning, nil
		case info.Health.Status == coracle.HealthUnhealthy:
			last := info.Health.Log[len(info.Health.Log)-1]
			return false, fmt.Errorf("unhealthy: exit code %d: %.200s", last.ExitCode, last.Output)
		case info.RestartCount > restartsAllowed:
			return false, fmt.Errorf("it ends again and again, the last time with %v", info.Exit)
		}
		return info.Status == coracle.StatusRunning && info.Health.Status == coracle.HealthHealthy, nil
	}
	if ok, err := ready(); ok || err != nil {
		return err
	}
	for _, err := range events {
		var gap *coracle.EventGapError
		if err != nil && !errors.As(err, &gap) {
			break
		}
		if ok, err := ready(); ok || err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// restartsAllowed is how often a new replica may end before it is given up.
const restartsAllowed = 2
