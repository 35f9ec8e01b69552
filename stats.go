package coracle

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/netdrv"
)

// Stats are what a running container uses, all its processes together. What this machine does not count is zero, or a
// nil pointer.
type Stats struct {
	// Stats are the figures of its cgroup, which this adds to.
	cgroup.Stats

	// MemoryUsage is what docker stats shows: memory in bytes less page cache that was not used lately, which the kernel
	// can take back at any time.
	MemoryUsage uint64
	// MemoryLimit is the limit of memory in bytes, or 0 if there is none.
	MemoryLimit uint64
	// MemoryPercent is MemoryUsage in percent of MemoryLimit, or 0 without a limit.
	MemoryPercent float64

	// Networks is what went through the interfaces of the container's own network namespace, by their names and without
	// loopback. Nil for a container with the network of the host or of another container.
	Networks map[string]netdrv.Counters

	// Interval is the time since the sample before, and CPUPercent the processor time used in it, in percent of one
	// processor: two busy processors are 200. Both are 0 in a single sample.
	Interval   time.Duration
	CPUPercent float64
	// OnlineCPUs is the number of processors that this program may use, as a measure for CPUPercent.
	OnlineCPUs int
}

// newStats makes what docker stats shows of the figures of a group, and of those before.
func newStats(s *cgroup.Stats, before *Stats) *Stats {
	st := &Stats{Stats: *s, OnlineCPUs: runtime.NumCPU()}
	if m := s.Memory; m != nil {
		st.MemoryUsage, st.MemoryLimit = m.Usage-min(m.Usage, m.InactiveFile), m.Limit
		if m.Limit > 0 {
			st.MemoryPercent = 100 * float64(st.MemoryUsage) / float64(m.Limit)
		}
	}
	if before == nil {
		return st
	}
	st.Interval = s.Time.Sub(before.Time)
	if s.CPU != nil && before.CPU != nil && st.Interval > 0 && s.CPU.Usage > before.CPU.Usage {
		st.CPUPercent = 100 * float64(s.CPU.Usage-before.CPU.Usage) / float64(st.Interval)
	}
	return st
}

// Stats reads once what the container uses, whoever runs it. It may be paused. The error matches ErrNotRunning if it is
// not running.
func (c *Container) Stats(ctx context.Context) (*Stats, error) {
	s, err := c.stats(nil)
	return s, c.fail("measure", err)
}

func (c *Container) stats(before *Stats) (*Stats, error) {
	st, err := c.current()
	if err != nil {
		return nil, err
	}
	if st.Status != StatusRunning {
		return nil, ErrNotRunning
	}
	networks := c.networkStats(st)
	group, err := c.eng.group(st.ID)
	var s *cgroup.Stats
	if err == nil {
		s, err = group.Stats()
	}
	if !alive(st) { // looked at last: the figures are those of a running container
		return nil, ErrNotRunning
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &UnsupportedError{Feature: "measuring a container without a cgroup", Fix: "mount cgroups that this program may write"}
	}
	if err != nil {
		return nil, err
	}
	out := newStats(s, before)
	out.Networks = networks
	return out, nil
}

// networkStats reads the counters of the container's interfaces. What cannot be read is not there.
func (c *Container) networkStats(st *containerState) map[string]netdrv.Counters {
	if mode, _ := st.Spec.networkMode(); mode != "" && mode != NetworkNone {
		return nil
	}
	p, err := openProcess(st.PID, st.BootID, st.StartTime)
	if err != nil {
		return nil
	}
	defer p.close()
	dir, err := p.openDir(st.PID)
	if err != nil {
		return nil
	}
	defer dir.Close()
	f, err := openIn(dir, "net/dev")
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil
	}
	return parseNetDev(b)
}

// parseNetDev reads /proc/PID/net/dev, proc_pid_net(5): two lines of titles, then a line of sixteen numbers for each
// interface.
func parseNetDev(b []byte) map[string]netdrv.Counters {
	counters := make(map[string]netdrv.Counters)
	for line := range strings.Lines(string(b)) {
		name, rest, ok := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || len(fields) < 12 || name == "lo" {
			continue
		}
		number := func(i int) uint64 {
			n, _ := strconv.ParseUint(fields[i], 10, 64)
			return n
		}
		counters[name] = netdrv.Counters{
			RxBytes: number(0), RxPackets: number(1), RxErrors: number(2), RxDropped: number(3),
			TxBytes: number(8), TxPackets: number(9), TxErrors: number(10), TxDropped: number(11),
		}
	}
	return counters
}

// StatsStream measures the container again and again, with the use of processors between two samples. The first Stats
// come after one interval; zero or less means a second.
//
// The sequence ends without an error when the container does, or has been removed. With an error it ends when ctx does,
// and when the container is not running at its beginning: that matches ErrNotRunning.
func (c *Container) StatsStream(ctx context.Context, interval time.Duration) iter.Seq2[*Stats, error] {
	if interval <= 0 {
		interval = time.Second
	}
	return func(yield func(*Stats, error) bool) {
		fail := func(err error) { yield(nil, c.fail("measure", err)) }
		before, err := c.stats(nil)
		if err != nil {
			fail(err)
			return
		}
		ended := make(chan struct{})
		waiting, stop := context.WithCancel(ctx)
		defer stop()
		go func() {
			defer close(ended)
			c.waitFor(waiting, ConditionExited)
		}()
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ended:
				if err := ctx.Err(); err != nil {
					fail(err)
				}
				return
			}
			s, err := c.stats(before)
			switch {
			case errors.Is(err, ErrNotRunning), errors.Is(err, fs.ErrNotExist):
				return
			case err != nil:
				fail(err)
				return
			case !yield(s, nil):
				return
			}
			before = s
		}
	}
}
