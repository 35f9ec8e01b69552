package journal

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The test binary is a writer or a follower of a journal where this is set: "write DIR NAME COUNT" or "follow DIR".
const processEnv = "CORACLE_TEST_JOURNAL"

func processMain() {
	args := strings.Fields(os.Getenv(processEnv))
	if len(args) == 0 {
		return
	}
	j := New(args[1], nil)
	var err error
	switch args[0] {
	case "write":
		count, _ := strconv.Atoi(args[3])
		err = write(j, args[2], count)
	case "follow":
		err = follow(j)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// write appends numbered records, from two goroutines, and a byte on its output for each that is done.
func write(j *Journal, name string, count int) error {
	errs := make(chan error)
	for half := range 2 {
		go func() {
			pad := bytes.Repeat([]byte("."), 9000)
			for i := range count {
				n := rand.IntN(100)
				if rand.IntN(10) == 0 {
					n = rand.IntN(len(pad)) // over pages: what a signal tears
				}
				if err := j.Append(fmt.Appendf(nil, "%s%c %d %s", name, 'a'+half, i, pad[:n])); err != nil {
					errs <- err
					return
				}
				os.Stdout.Write([]byte{byte('a' + half)})
			}
			errs <- nil
		}()
	}
	return errors.Join(<-errs, <-errs)
}

// follow writes what it gets, without the padding, until the record "end".
func follow(j *Journal) error {
	w := bufio.NewWriter(os.Stdout)
	for rec, err := range j.Read(context.Background(), ReadOptions{Follow: true}) {
		var gap *Gap
		if errors.As(err, &gap) {
			fmt.Fprintln(w, "gap")
			continue
		}
		if err != nil {
			return err
		}
		text, _, _ := strings.Cut(string(rec.Payload), " .")
		fmt.Fprintln(w, strings.TrimSpace(text))
		if text == "end" {
			break
		}
	}
	return w.Flush()
}

func process(t *testing.T, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), processEnv+"="+strings.Join(args, " "))
	cmd.Stderr = os.Stderr
	return cmd
}

// counter counts what a writer says it has done, by goroutine.
type counter struct{ done [2]atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) {
	for _, b := range p {
		c.done[b-'a'].Add(1)
	}
	return len(p), nil
}

// checkWriters looks at what a reader got: the records of each goroutine of each writer, in their order, each once. Records
// may be missing only where there was a gap, at the start if the reader has begun when some were gone already, and the last of a writer that was killed only if it had not said so.
func checkWriters(t *testing.T, who string, list []string, begun bool, writers map[string]*counter, killed map[string]bool, total int) {
	t.Helper()
	next := make(map[string]int)
	gap := make(map[string]bool) // by goroutine: whether records may be missing before its next
	all := func() {
		for name := range writers {
			gap[name+"a"], gap[name+"b"] = true, true
		}
	}
	if begun {
		all()
	}
	for _, line := range list {
		name, number, _ := strings.Cut(line, " ")
		switch i, err := strconv.Atoi(number); {
		case line == "gap":
			all()
		case err != nil || writers[strings.TrimRight(name, "ab")] == nil:
			t.Errorf("%s got %q", who, line)
		case i != next[name] && !(gap[name] && i > next[name]):
			t.Fatalf("%s got record %d of %s, not %d", who, i, name, next[name])
		default:
			next[name], gap[name] = i+1, false
		}
	}
	for name, c := range writers {
		for half := range 2 {
			done := int(c.done[half].Load())
			goroutine := name + string(rune('a'+half))
			if !killed[name] && done != total {
				t.Errorf("writer %s has done %d", goroutine, done)
			}
			if got := next[goroutine]; !gap[goroutine] && (got < done || got > done+1) {
				t.Errorf("%s got %d records of writer %s, which has done %d", who, got, goroutine, done)
			}
		}
	}
}

// TestManyProcesses: many processes append and follow, files are full all the time, writers are stopped and killed at
// random. Nothing of those that live is lost, doubled, torn or out of order.
func TestManyProcesses(t *testing.T) {
	for _, test := range []struct {
		name  string
		opts  Options
		count int
	}{
		{"tiny files", Options{FileSize: 300, Files: 1 << 20}, 300},
		{"small files", Options{FileSize: 20 << 10, Files: 1 << 20}, 1000},
		{"few tiny files", Options{FileSize: 1000, Files: 2}, 300},
		{"few small files", Options{FileSize: 50 << 10, Files: 3}, 1000},
	} {
		t.Run(test.name, func(t *testing.T) { manyProcesses(t, test.opts, test.count) })
	}
}

func manyProcesses(t *testing.T, opts Options, count int) {
	j := open(t, &opts)
	if _, err := j.bounds(true); err != nil { // before the others, which have the usual ones
		t.Fatal(err)
	}
	var followers []*exec.Cmd
	outs := make([]bytes.Buffer, 3)
	for i := range outs {
		cmd := process(t, "follow", j.dir)
		cmd.Stdout = &outs[i]
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		followers = append(followers, cmd)
	}
	var wg sync.WaitGroup
	writers, killed := make(map[string]*counter), make(map[string]bool)
	for i := range 6 {
		name, victim, c := fmt.Sprint("w", i), i%3 == 0, &counter{}
		writers[name], killed[name] = c, victim
		cmd := process(t, "write", j.dir, name, strconv.Itoa(count))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			done := make(chan struct{})
			read := make(chan struct{})
			go func() {
				defer close(read)
				io.Copy(c, out)
			}()
			go func() {
				defer close(done)
				if victim {
					for c.done[0].Load() < int64(count/4+rand.IntN(count/2)) {
						time.Sleep(100 * time.Microsecond)
					}
					cmd.Process.Kill()
					return
				}
				// Stopped at random, for long enough that others fill files.
				for range 10 {
					time.Sleep(time.Duration(rand.IntN(5000)) * time.Microsecond)
					cmd.Process.Signal(syscall.SIGSTOP)
					time.Sleep(time.Duration(rand.IntN(5000)) * time.Microsecond)
					cmd.Process.Signal(syscall.SIGCONT)
				}
			}()
			<-done
			<-read
			if err := cmd.Wait(); err != nil && !victim {
				t.Errorf("writer %s: %v", name, err)
			}
		})
	}
	wg.Wait()
	add(t, j, "end")
	got, _ := all(t, j, ReadOptions{})
	for i, line := range got {
		line, _, _ := strings.Cut(line, " .")
		got[i] = strings.TrimSpace(line)
	}
	if got[len(got)-1] != "end" {
		t.Fatalf("the last record is %.40q", got[len(got)-1])
	}
	bounded := opts.Files < 1000
	if !bounded {
		checkWriters(t, "a reader", got[:len(got)-1], false, writers, killed, count)
	}
	gens, err := j.generations()
	// Each of the two that were killed may have made a file and not removed another. The next one that is made mends that.
	if err != nil || bounded && len(gens) > opts.Files+2 || !bounded && len(gens) < 10 {
		t.Errorf("%d files, %v", len(gens), err)
	}
	for i, cmd := range followers {
		if err := cmd.Wait(); err != nil {
			t.Fatalf("follower %d: %v", i, err)
		}
		lines := strings.Split(strings.TrimSpace(outs[i].String()), "\n")
		if !bounded && len(lines) != len(got) {
			t.Errorf("follower %d got %d records, there are %d", i, len(lines), len(got))
		}
		checkWriters(t, fmt.Sprintf("follower %d", i), lines[:len(lines)-1], bounded, writers, killed, count)
	}
}
