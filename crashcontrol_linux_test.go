package coracle_test

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
)

// What the crash walk does to containers that it controls.

// with finds a container and does something to it.
func with(name string, do func(*walkWorld, *coracle.Container) error) func(*walkWorld) error {
	return func(w *walkWorld) error {
		c, err := w.eng.Container(w.ctx, name)
		if err != nil {
			return err
		}
		return do(w, c)
	}
}

// renameContainer renames a container, unless it has the new name.
func renameContainer(from, to string) func(*walkWorld) error {
	return func(w *walkWorld) error {
		c, err := w.eng.Container(w.ctx, to)
		if errors.Is(err, fs.ErrNotExist) {
			c, err = w.eng.Container(w.ctx, from)
		}
		if err != nil {
			return err
		}
		return c.Rename(w.ctx, to)
	}
}

// unless does something only where there is no container of the name.
func unless(name string, do func(*walkWorld) error) func(*walkWorld) error {
	return func(w *walkWorld) error {
		if _, err := w.eng.Container(w.ctx, name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return do(w)
	}
}

// either does something to the container that has one of two names.
func either(do func(name string) func(*walkWorld) error, a, b string) func(*walkWorld) error {
	return func(w *walkWorld) error {
		if _, err := w.eng.Container(w.ctx, a); err == nil {
			return do(a)(w)
		}
		return do(b)(w)
	}
}

func pauseContainer(name string) func(*walkWorld) error {
	return with(name, func(w *walkWorld, c *coracle.Container) error { return c.Pause(w.ctx) })
}

func resumeContainer(name string) func(*walkWorld) error {
	return with(name, func(w *walkWorld, c *coracle.Container) error { return c.Resume(w.ctx) })
}

func updateContainer(name string, memory int64) func(*walkWorld) error {
	return with(name, func(w *walkWorld, c *coracle.Container) error {
		return c.Update(w.ctx, cgroup.Limits{Memory: memory})
	})
}

func restartContainer(name string) func(*walkWorld) error {
	return with(name, func(w *walkWorld, c *coracle.Container) error {
		return c.Restart(w.ctx, &coracle.StopOptions{Timeout: coracle.StopAtOnce})
	})
}

// limitOf tells the memory limit of a container that exists.
func limitOf(name string) func(*walkWorld) (string, error) {
	return func(w *walkWorld) (string, error) {
		c, err := w.eng.Container(w.ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		info, err := c.Inspect(w.ctx)
		if err != nil {
			return "", err
		}
		return fmt.Sprint(name, " ", info.Spec.Limits.Memory), nil
	}
}
