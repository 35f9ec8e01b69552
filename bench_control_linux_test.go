package coracle_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
)

// BenchmarkStats measures one-shot statistics, by the engine that runs the container and by another one, in the same run as
// the plain reading of one of the files that they come from.
func BenchmarkStats(b *testing.B) {
	eng := engine(b)
	toolImage(b, eng, nil)
	c := runningContainer(b, eng, coracle.ContainerSpec{Limits: cgroup.Limits{Memory: 256 << 20}}, "obey")
	theirs := as(b, another(b, eng), c)
	for name, c := range map[string]*coracle.Container{"own": c, "another's": theirs} {
		b.Run(name, func(b *testing.B) {
			var longest time.Duration
			for b.Loop() {
				start := time.Now()
				if _, err := c.Stats(b.Context()); err != nil {
					b.Fatal(err)
				}
				longest = max(longest, time.Since(start))
			}
			b.ReportMetric(float64(longest.Microseconds()), "max-µs")
		})
	}
	b.Run("one file", func(b *testing.B) {
		file := groupFile(b, eng, c, "memory.stat")
		for b.Loop() {
			if _, err := os.ReadFile(file); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// groupFile finds a file of the container's cgroup.
func groupFile(b testing.TB, eng *coracle.Engine, c *coracle.Container, name string) string {
	b.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/unified/coracle/", "/sys/fs/cgroup/*/coracle/", "/sys/fs/cgroup/coracle/"} {
		if files, _ := filepath.Glob(pattern + eng.GroupPrefix() + c.ID() + "/" + name); len(files) > 0 {
			return files[0]
		}
	}
	b.Fatalf("no file %s", name)
	return ""
}

// BenchmarkPause measures a pause and the resuming, and in the same run two raw writes to the freezer, with the waiting
// for what they do.
func BenchmarkPause(b *testing.B) {
	eng := engine(b)
	toolImage(b, eng, nil)
	c := runningContainer(b, eng, coracle.ContainerSpec{}, "obey")
	theirs := as(b, another(b, eng), c)
	for name, c := range map[string]*coracle.Container{"own": c, "another's": theirs} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := c.Pause(b.Context()); err != nil {
					b.Fatal(err)
				}
				if err := c.Resume(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("raw", func(b *testing.B) {
		file, on, off := groupFile(b, eng, c, "cgroup.freeze"), "1", "0"
		events, err := os.Open(filepath.Join(filepath.Dir(file), "cgroup.events"))
		if err != nil {
			b.Fatal(err)
		}
		defer events.Close()
		buf := make([]byte, 256)
		set := func(value string) {
			if err := os.WriteFile(file, []byte(value), 0); err != nil {
				b.Fatal(err)
			}
			want := "frozen " + value
			for wait := 1; ; {
				n, _ := events.ReadAt(buf, 0)
				if strings.Contains(string(buf[:n]), want) {
					return
				}
				unix.Poll([]unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}, wait)
			}
		}
		for b.Loop() {
			set(on)
			set(off)
		}
	})
}

// BenchmarkStopAtOnce measures the end of 100 containers that ignore every signal.
func BenchmarkStopAtOnce(b *testing.B) {
	eng := engine(b)
	toolImage(b, eng, nil)
	const n = 100
	for b.Loop() {
		b.StopTimer()
		var list []*coracle.Container
		for i := range n {
			c, err := eng.Create(b.Context(), &coracle.ContainerSpec{Name: fmt.Sprint("c", i), Image: "tool", Args: []string{"stubborn"}})
			if err != nil {
				b.Fatal(err)
			}
			if err := c.Start(b.Context()); err != nil {
				b.Fatal(err)
			}
			list = append(list, c)
		}
		b.StartTimer()
		errs := make(chan error, n)
		for _, c := range list {
			go func() {
				err := c.Stop(b.Context(), &coracle.StopOptions{Timeout: coracle.StopAtOnce})
				if err == nil {
					err = c.Remove(b.Context(), nil)
				}
				errs <- err
			}()
		}
		for range n {
			if err := <-errs; err != nil {
				b.Fatal(err)
			}
		}
	}
}
