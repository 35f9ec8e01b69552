package coracle_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
)

// manyDetached is how many containers the benchmark of detached ones has.
func manyDetached() int {
	if os.Getenv("CORACLE_BENCH_LARGE") == "1" {
		return 1000
	}
	return 50
}

// eachAtOnce calls do for each of n from a few goroutines, and returns the first error.
func eachAtOnce(n, goroutines int, do func(i int) error) error {
	var wg sync.WaitGroup
	next, errs := make(chan int), make(chan error, n)
	for range goroutines {
		wg.Go(func() {
			for i := range next {
				if err := do(i); err != nil {
					errs <- err
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	close(errs)
	return <-errs
}

// createDetached makes n detached containers of an image.
func createDetached(tb testing.TB, eng *coracle.Engine, n int, image string, args ...string) []*coracle.Container {
	tb.Helper()
	list := make([]*coracle.Container, n)
	for i := range list {
		c, err := eng.Create(tb.Context(), &coracle.ContainerSpec{Image: image, Args: args, Detached: true})
		if err != nil {
			tb.Fatal(err)
		}
		list[i] = c
	}
	return list
}

// pss returns the proportional set size of a process in bytes.
func pss(tb testing.TB, pid int) int64 {
	tb.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pss:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
			if err != nil {
				tb.Fatal(err)
			}
			return kb << 10
		}
	}
	tb.Fatalf("no Pss in %s", b)
	return 0
}

// keepersMemory is what the kernel charges to the group of a root's keepers, with the kernel's own memory for them;
// 0 where there is no such group.
func keepersMemory(eng *coracle.Engine) (bytes int64) {
	for _, pattern := range []string{"/sys/fs/cgroup/memory/coracle/%skeepers/memory.usage_in_bytes", "/sys/fs/cgroup/coracle/%skeepers/memory.current"} {
		files, _ := filepath.Glob(fmt.Sprintf(pattern, eng.GroupPrefix()))
		for _, f := range files {
			b, _ := os.ReadFile(f)
			bytes, _ = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		}
	}
	return bytes
}

// memAvailable is MemAvailable of /proc/meminfo, in bytes.
func memAvailable() int64 {
	b, _ := os.ReadFile("/proc/meminfo")
	_, rest, _ := bytes.Cut(b, []byte("MemAvailable:"))
	kb, _ := strconv.ParseInt(strings.Fields(string(rest))[0], 10, 64)
	return kb << 10
}

// BenchmarkDetached measures many idle detached containers: how fast they start, from four goroutines; what each costs
// in memory (the keeper's proportional set, what the kernel charges to the keepers' group, and what the whole machine has
// less, which is the container's too); and how long stopping and removing all of them takes. CORACLE_BENCH_LARGE=1 makes
// them 1,000.
func BenchmarkDetached(b *testing.B) {
	n := manyDetached()
	eng := benchEngine(b)
	toolImage(b, eng, nil)
	idle := benchIdle(b, eng)
	for b.Loop() {
		list := createDetached(b, eng, n, idle, "/pause")
		before := memAvailable()
		start := time.Now()
		if err := eachAtOnce(n, 4, func(i int) error { return list[i].Start(b.Context()) }); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(n)/time.Since(start).Seconds(), "starts/s")
		var sum, most int64
		for _, c := range list {
			size := pss(b, inspect(b, c).KeeperPID)
			sum, most = sum+size, max(most, size)
		}
		b.ReportMetric(float64(sum)/float64(n)/1024, "keeper-PSS-kB")
		b.ReportMetric(float64(most)/1024, "keeper-PSS-max-kB")
		b.ReportMetric(float64(keepersMemory(eng))/float64(n)/1024, "keeper-charged-kB")
		b.ReportMetric(float64(before-memAvailable())/float64(n)/1024, "machine-kB")
		start = time.Now()
		if err := eachAtOnce(n, n, func(i int) error { return stopAndRemove(b, list[i]) }); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "s-stop-and-remove")
	}
}

// benchIdle makes an image whose program waits, and does not react to signals, without a language's runtime.
func benchIdle(b testing.TB, eng *coracle.Engine) string {
	b.Helper()
	if _, err := eng.ImageFromFS(b.Context(), "idle", controlModelFS(), nil); err != nil {
		b.Fatal(err)
	}
	return "idle"
}

func stopAndRemove(b testing.TB, c *coracle.Container) error {
	if err := c.Stop(b.Context(), &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
		return err
	}
	return c.Remove(b.Context(), nil)
}

// BenchmarkDetachedStop measures stopping and removing 100 detached containers at once: those that end at SIGTERM, and
// those that ignore every signal and are killed.
func BenchmarkDetachedStop(b *testing.B) {
	eng := engine(b)
	toolImage(b, eng, nil)
	const n = 100
	for _, command := range []string{"obey", "stubborn"} {
		b.Run(command, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				list := createDetached(b, eng, n, "tool", command)
				if err := eachAtOnce(n, 4, func(i int) error { return list[i].Start(b.Context()) }); err != nil {
					b.Fatal(err)
				}
				for _, c := range list {
					eventually(b, "it is ready", func() bool { return logged(b, c) != "" })
				}
				b.StartTimer()
				err := eachAtOnce(n, n, func(i int) error {
					opts := &coracle.StopOptions{Timeout: coracle.StopAtOnce}
					if command == "obey" {
						opts = nil
					}
					if err := list[i].Stop(b.Context(), opts); err != nil {
						return err
					}
					return list[i].Remove(b.Context(), nil)
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRunLog is BenchmarkRun of coracle with the log that containers have by default, of one that writes nothing.
func BenchmarkRunLog(b *testing.B) {
	eng := benchEngine(b)
	for name, mode := range map[string]coracle.LogMode{"none": coracle.LogNone, "file": coracle.LogFile} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				spec := benchSpec(coracle.NetworkNone)
				spec.Log.Mode = mode
				if err := life(b.Context(), eng, spec); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestDetachedMemory: a keeper holds at most 64 kB, with the spec that containers have by default, with input and a
// terminal, and also when much output has gone through it.
func TestDetachedMemory(t *testing.T) {
	const most = 64 << 10
	eng := engine(t)
	toolImage(t, eng, nil)
	for name, spec := range map[string]coracle.ContainerSpec{
		"default": {}, "input": {OpenStdin: true}, "terminal": {TTY: true, OpenStdin: true},
	} {
		t.Run(name, func(t *testing.T) {
			c := detached(t, eng, spec, "attack", "flood", "2000000", "0", "wait")
			eventually(t, "it has written all", func() bool { return strings.HasSuffix(strings.TrimSpace(logged(t, c)), "flooded") })
			size := pss(t, inspect(t, c).KeeperPID)
			t.Logf("%d kB", size>>10)
			if size > most {
				b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", inspect(t, c).KeeperPID))
				t.Errorf("the keeper holds %d bytes:\n%s", size, b)
			}
		})
	}
}
