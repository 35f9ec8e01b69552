package coracle_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// hostileRun is a container that does its worst to whoever keeps it, and how it has to end.
type hostileRun struct {
	name string
	spec coracle.ContainerSpec
	args []string
	want string                                   // its exit status; empty means any, as its own runtime may fail first
	logs string                                   // what its log ends with
	then func(t *testing.T, c *coracle.Container) // what the test does while it runs
}

func hostileRuns() []hostileRun {
	kill := func(t *testing.T, c *coracle.Container) {
		if err := c.Stop(t.Context(), &coracle.StopOptions{Timeout: 20 * time.Millisecond}); err != nil {
			t.Error(err)
		}
	}
	ready := func(then func(*testing.T, *coracle.Container)) func(*testing.T, *coracle.Container) {
		return func(t *testing.T, c *coracle.Container) {
			eventually(t, "it is ready", func() bool { return strings.Contains(logged(t, c), "ready") })
			then(t, c)
		}
	}
	return []hostileRun{
		{name: "double fork", args: []string{"attack", "daemons"}, want: "exit status 23"},
		{name: "ignored signals", args: []string{"stubborn"}, want: "signal: killed", then: ready(kill)},
		{name: "closed streams", args: []string{"attack", "closed"}, want: "exit status 21"},
		{name: "closed input", spec: coracle.ContainerSpec{OpenStdin: true}, args: []string{"attack", "close-input"}, want: "exit status 22", logs: "closed\n", then: feedClosed},
		{name: "unread input", spec: coracle.ContainerSpec{OpenStdin: true}, args: []string{"attack", "never-read"}, want: "signal: killed", then: ready(feedUnread)},
		{name: "stops itself", args: []string{"attack", "stop"}, want: "exit status 24", logs: "before\nafter\n"},
		{name: "pipes", args: []string{"attack", "pipes"}, want: "exit status 25", logs: "\nend of pipes\n"},
		{name: "other's files", args: []string{"attack", "proc"}, want: "exit status 26", logs: "end of proc\n"},
		{name: "terminal", spec: coracle.ContainerSpec{TTY: true, OpenStdin: true}, args: []string{"attack", "terminal"}, want: "exit status 28", logs: "end of terminal\r\n"},
		{name: "kills all", args: []string{"attack", "kill-once"}, want: "exit status 29", logs: "killed\n"},
		{name: "kills on and on", args: []string{"attack", "kill-all"}, want: "signal: killed", then: ready(kill)},
		{name: "fork bomb", spec: coracle.ContainerSpec{Limits: cgroup.Limits{PIDs: 30}}, args: []string{"attack", "bomb-once"}, want: "exit status 30"},
		{name: "fork bomb on and on", spec: coracle.ContainerSpec{Limits: cgroup.Limits{PIDs: 50}}, args: []string{"attack", "bomb"}, then: ready(kill)},
		{name: "memory", spec: coracle.ContainerSpec{Limits: cgroup.Limits{Memory: 32 << 20}}, args: []string{"hog", "64"}, want: "signal: killed (out of memory)"},
		{name: "many followers", args: []string{"attack", "flood", "3000000", "31"}, want: "exit status 31", logs: "\nflooded\n", then: followMany},
	}
}

// feedClosed writes to an input that the container has closed: that is told, and nobody waits for ever.
func feedClosed(t *testing.T, c *coracle.Container) {
	eventually(t, "it has closed its input", func() bool { return strings.Contains(logged(t, c), "closed") })
	in, err := c.Input(t.Context())
	if err != nil {
		t.Error(err)
		return
	}
	defer in.Close()
	if _, err := in.Write(make([]byte, 1<<20)); !errors.Is(err, coracle.ErrNotRunning) {
		t.Errorf("writing to what nobody reads: %v", err)
	}
}

// feedUnread fills an input that nobody reads: the writer waits, and nobody else.
func feedUnread(t *testing.T, c *coracle.Container) {
	in, err := c.Input(t.Context())
	if err != nil {
		t.Error(err)
		return
	}
	defer in.Close()
	written := make(chan error, 1)
	go func() {
		_, err := in.Write(make([]byte, 8<<20))
		written <- err
	}()
	select {
	case err := <-written:
		t.Errorf("8 MB were written to what nobody reads: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if info := inspect(t, c); info.Status != coracle.StatusRunning {
		t.Errorf("it is %s", info.Status)
	}
	if err := c.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-written; !errors.Is(err, coracle.ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

// followMany reads the log a hundred times at once while the container ends.
func followMany(t *testing.T, c *coracle.Container) {
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			var n counter
			err := c.CopyLogs(t.Context(), &n, nil, &coracle.LogOptions{Follow: true})
			if want := counter(3_000_000 + len("\nflooded\n")); err != nil || n != want {
				t.Errorf("a follower has %d bytes of %d, %v", n, want, err)
			}
		})
	}
	wg.Wait()
}

type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// TestHostileRuns: whatever a container does, attached or detached, it ends with its exact status, its log is whole, and
// nothing is left of it: no process, no mount, no descriptor, no cgroup.
func TestHostileRuns(t *testing.T) {
	testutil.RequireRoot(t)
	root := t.TempDir()
	eng := openAgain(t, root)
	toolImage(t, eng, nil)
	for i := range 4 { // what an engine opens once, and keeps
		c, err := eng.Create(t.Context(), &coracle.ContainerSpec{Image: "tool", Args: []string{"true"}, Detached: i%2 == 0})
		if err == nil {
			err = c.Start(t.Context())
		}
		if err == nil {
			_, err = c.Wait(t.Context())
		}
		if err == nil {
			err = c.Remove(t.Context(), nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, run := range hostileRuns() {
		for _, isDetached := range []bool{false, true} {
			t.Run(run.name+map[bool]string{false: " attached", true: " detached"}[isDetached], func(t *testing.T) {
				checkHostileRun(t, eng, run, isDetached)
			})
		}
	}
	prefix := eng.GroupPrefix()
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, root, prefix)
}

func checkHostileRun(t *testing.T, eng *coracle.Engine, run hostileRun, isDetached bool) {
	before := testutil.Resources()
	spec := run.spec
	spec.Image, spec.Args, spec.Detached = "tool", run.args, isDetached
	c, err := eng.Create(t.Context(), &spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if run.then != nil {
		run.then(t, c)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	exit, err := c.Wait(ctx)
	if err != nil || run.want != "" && exit.String() != run.want {
		t.Errorf("it ended with %v, %v; want %s", exit, err, run.want)
	}
	if ctx.Err() == nil {
		if out := logged(t, c); !strings.HasSuffix(out, run.logs) {
			t.Errorf("its log has %d bytes and ends with %q", len(out), out[max(0, len(out)-100):])
		}
	}
	if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	eventually(t, "its processes are gone", func() bool { return len(processesOf(eng.GroupPrefix()+c.ID())) == 0 })
	if groups, _ := filepath.Glob("/sys/fs/cgroup/*/coracle/" + eng.GroupPrefix() + c.ID()); len(groups) > 0 {
		t.Errorf("cgroups left: %v", groups)
	}
	testutil.Settled(t, before)
}

// TestHostileFlood: a container that writes without a pause does not fill the disk, and its keeper's memory stays what it
// was. Who follows is told of what was rotated away before he came to it.
func TestHostileFlood(t *testing.T) {
	size := 1 << 30
	if testing.Short() || testutil.RaceEnabled {
		size = 50 << 20
	}
	const fileSize, files = 1 << 20, 3
	eng := engine(t)
	toolImage(t, eng, nil)
	for _, isDetached := range []bool{false, true} {
		t.Run(map[bool]string{false: "attached", true: "detached"}[isDetached], func(t *testing.T) {
			c := startTool(t, eng, coracle.ContainerSpec{Detached: isDetached, Log: coracle.LogSpec{MaxSize: fileSize, MaxFiles: files}},
				"attack", "flood", fmt.Sprint(size), "32")
			keeper := inspect(t, c).KeeperPID
			dir := filepath.Join(eng.Root(), "containers", c.ID(), "log")
			read := make(chan reading, 1)
			go func() { read <- readSlowly(t.Context(), c) }()
			over := make(chan struct{})
			var largest, memory int64
			var watch sync.WaitGroup
			watch.Go(func() {
				for {
					select {
					case <-over:
						return
					case <-time.After(20 * time.Millisecond):
					}
					largest = max(largest, dirSize(dir))
					if keeper != 0 && processLives(keeper) {
						memory = max(memory, pssOr0(keeper))
					}
				}
			})
			exit, err := c.Wait(t.Context())
			close(over)
			watch.Wait()
			if err != nil || exit.Code != 32 {
				t.Errorf("it ended with %v, %v", exit, err)
			}
			// One more may be there for a moment in a rotation, and a record may go over the end.
			if most := int64((files + 1) * (fileSize + 20<<10)); largest == 0 || largest > most {
				t.Errorf("the log had %d bytes, at most %d are right", largest, most)
			}
			if memory > 64<<10 {
				t.Errorf("the keeper held %d bytes", memory)
			}
			r := <-read
			t.Logf("log at most %d bytes, keeper %d kB, a slow reader had %d of %d bytes and missed %d records", largest, memory>>10, r.bytes, size, r.missed)
			if whole := r.bytes == size+len("\nflooded\n"); r.err != nil || whole != (r.missed == 0 && r.first == 1) || r.last-r.first+1 != r.records+r.missed {
				t.Errorf("the reader has %d of %d bytes, %d records, from %d to %d, was told that it missed %d, and %v", r.bytes, size, r.records, r.first, r.last, r.missed, r.err)
			}
			if out := logged(t, c); !strings.HasSuffix(out, "\nflooded\n") {
				t.Errorf("its last words: %q", out[max(0, len(out)-100):])
			}
		})
	}
}

// reading is what a reader had of a log.
type reading struct {
	bytes           int
	records, missed uint64
	first, last     uint64 // what is gone before a reader begins it has not missed
	err             error
}

// readSlowly follows a log slower than a container writes it.
func readSlowly(ctx context.Context, c *coracle.Container) (r reading) {
	for rec, err := range c.Logs(ctx, &coracle.LogOptions{Follow: true}) {
		if err != nil {
			r.err = err
			return r
		}
		if r.records == 0 {
			r.first = rec.Seq
		}
		r.bytes, r.records, r.missed, r.last = r.bytes+len(rec.Data), r.records+1, r.missed+rec.Missed, rec.Seq
		if r.records%64 == 0 {
			time.Sleep(20 * time.Millisecond)
		}
	}
	return r
}

func processLives(pid int) bool { return syscall.Kill(pid, 0) == nil }

// pssOr0 is pss for a process that may end.
func pssOr0(pid int) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	_, rest, ok := bytes.Cut(b, []byte("\nPss:"))
	if !ok {
		return 0
	}
	var kb int64
	fmt.Sscan(string(rest), &kb)
	return kb << 10
}

func dirSize(dir string) (sum int64) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			sum += info.Size()
		}
	}
	return sum
}

// TestHostileGive: a container that has passed its output to a process of the host ends nevertheless, and so does its
// keeper.
func TestHostileGive(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	dir := t.TempDir()
	for _, isDetached := range []bool{false, true} {
		t.Run(map[bool]string{false: "attached", true: "detached"}[isDetached], func(t *testing.T) {
			name := filepath.Join(dir, fmt.Sprint("socket", isDetached))
			l, err := net.Listen("unix", name)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c := startTool(t, eng, coracle.ContainerSpec{Detached: isDetached, Mounts: []coracle.Mount{{Type: coracle.MountBind, Source: name, Target: "/socket"}}},
				"attack", "give", "/socket")
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			oob := make([]byte, 256)
			_, n, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), oob)
			if err != nil {
				t.Fatal(err)
			}
			messages, err := unix.ParseSocketControlMessage(oob[:n])
			if err != nil || len(messages) != 1 {
				t.Fatalf("%v, %v", messages, err)
			}
			fds, err := unix.ParseUnixRights(&messages[0])
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				for _, fd := range fds {
					unix.Close(fd)
				}
			}()
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() { // and who has it writes on
				syscall.SetNonblock(fds[1], true)
				for {
					select {
					case <-stop:
						return
					default:
						unix.Write(fds[1], []byte("from outside\n"))
						time.Sleep(10 * time.Microsecond)
					}
				}
			})
			if _, err := io.WriteString(conn, "x"); err != nil {
				t.Error(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			exit, err := c.Wait(ctx)
			close(stop)
			wg.Wait()
			if err != nil || exit.Code != 27 {
				t.Errorf("it ended with %v, %v", exit, err)
			}
			if out := logged(t, c); !strings.Contains(out, "given\n") {
				t.Errorf("%d bytes of log without its last words", len(out))
			}
			conn.Close()
		})
	}
}
