package logfile

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// followEnv makes the test binary a program that follows a log.
const followEnv = "CORACLE_TEST_FOLLOW"

func TestMain(m *testing.M) {
	if dir := os.Getenv(followEnv); dir != "" {
		follow(dir)
	}
	flag.Parse()
	os.Exit(testutil.LeakCheck(m))
}

// follow reads the log to its end, which it is told on its standard input, and says what it got: for each record its
// sequence number, what it missed and a digest of what it is.
func follow(dir string) {
	ctx, ended := context.Background(), make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	out := bufio.NewWriter(os.Stdout)
	r, err := Open(dir, nil)
	fmt.Println("open")
	for last := false; err == nil; {
		var rec Record
		rec, err = r.Next()
		switch {
		case err == io.EOF && last:
			out.Flush()
			os.Exit(0)
		case err == io.EOF:
			select {
			case <-ended:
				last, err = true, nil
			default:
				err = r.Wait(ctx, ended)
			}
		case err == nil:
			fmt.Fprintf(out, "%d %d %t %x\n", rec.Seq, rec.Missed, rec.Truncated, digest(rec.Stream, rec.Data))
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func digest(stream Stream, data []byte) []byte {
	sum := sha256.Sum256(append([]byte{byte(stream)}, data...))
	return sum[:8]
}

// follower is that program.
type follower struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   bytes.Buffer
	lines *bufio.Reader
	done  chan error
}

func startFollower(t testing.TB, dir string) *follower {
	t.Helper()
	f := &follower{cmd: exec.Command("/proc/self/exe"), done: make(chan error, 1)}
	f.cmd.Env = append(os.Environ(), followEnv+"="+dir)
	f.cmd.Stderr = os.Stderr
	stdout, err := f.cmd.StdoutPipe()
	if err == nil {
		f.stdin, err = f.cmd.StdinPipe()
	}
	if err == nil {
		err = f.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	f.lines = bufio.NewReader(stdout)
	if line, err := f.lines.ReadString('\n'); line != "open\n" {
		t.Fatalf("the follower says %q, %v", line, err)
	}
	go func() {
		_, err := io.Copy(&f.out, f.lines)
		f.done <- errors.Join(err, f.cmd.Wait())
	}()
	return f
}

// finish says that the log has ended, and returns what the follower got.
func (f *follower) finish() (string, error) {
	f.stdin.Close()
	select {
	case err := <-f.done:
		return f.out.String(), err
	case <-time.After(time.Minute):
		f.cmd.Process.Kill()
		return f.out.String(), errors.Join(errors.New("the follower does not end"), <-f.done)
	}
}

// TestManyFollowers: without rotation every follower, in a program of its own, gets every byte; with it, all that was not
// rotated away before it could be read, in order, and knows what it missed.
func TestManyFollowers(t *testing.T) {
	records, followers := 20000, 6
	if testutil.Short() {
		records, followers = 2000, 3
	}
	for _, size := range []int64{0, 64 << 10, 1 << 20} {
		t.Run(fmt.Sprintf("files of %d", size), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			rng := rand.New(rand.NewPCG(1, uint64(size)))
			w := newWriter(t, dir, WriterOptions{MaxSize: size, MaxFiles: 3, Now: time.Now})
			var list []*follower
			want := make(map[uint64]string)
			var order []uint64
			payload := make([]byte, MaxWrite)
			for i := range payload {
				payload[i] = byte(rng.Uint32())
			}
			for i := range records {
				if i%(records/(4*followers)) == 0 && len(list) < followers {
					list = append(list, startFollower(t, dir))
				}
				if i%(records/6) == records/7 { // the next start
					run := w.opts.Run + 1
					w.Close()
					w = newWriter(t, dir, WriterOptions{Run: run, MaxSize: size, MaxFiles: 3, Now: time.Now})
				}
				n := rng.IntN(200)
				if rng.IntN(10) == 0 {
					n = rng.IntN(MaxWrite + 1)
				}
				binary.LittleEndian.PutUint64(payload, uint64(i))
				stream := Stream(1 + rng.IntN(2))
				seq := Sequence(w.opts.Run, w.n+1)
				want[seq], order = fmt.Sprintf("%x", digest(stream, payload[:n])), append(order, seq)
				if err := w.Write(stream, payload[:n]); err != nil {
					t.Fatal(err)
				}
				if rng.IntN(500) == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			for i, f := range list {
				got, err := f.finish()
				if err != nil {
					t.Error(err)
				}
				seen, at := 0, -1
				for line := range strings.Lines(got) {
					var seq, missed uint64
					var truncated bool
					var sum string
					if _, err := fmt.Sscan(line, &seq, &missed, &truncated, &sum); err != nil {
						t.Fatalf("%q: %v", line, err)
					}
					if sum != want[seq] || truncated {
						t.Fatalf("follower %d: record %x: %s, want %s; truncated %t", i, seq, sum, want[seq], truncated)
					}
					next := at + 1
					for order[next] != seq {
						next++ // fails if it is not behind the last one
					}
					if at >= 0 && order[at]>>numberBits == seq>>numberBits && missed != uint64(next-at-1) {
						t.Fatalf("follower %d: missed %d, says %d", i, next-at-1, missed)
					}
					at = next
					seen++
				}
				if size == 0 && seen != records || at != records-1 {
					t.Errorf("follower %d got %d of %d records, the last one %d", i, seen, records, at)
				}
				t.Logf("follower %d: %d of %d records", i, seen, records)
			}
		})
	}
}

// TestModel: random writes, rotations, truncations, starts and torn ends against a model of what a reader that looks after
// each step, and one that looks now and then, must get.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "logfile")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		size := rapid.SampledFrom([]int64{0, 300, 5000}).Draw(rt, "size")
		var w *Writer
		run := uint64(0)
		start := func() {
			if w != nil {
				w.Close()
			}
			run++
			if w, err = NewWriter(dir, WriterOptions{Run: run, MaxSize: size, MaxFiles: 3}); err != nil {
				rt.Fatal(err)
			}
		}
		start()
		defer func() { w.Close() }()
		read := func(r *Reader) (list []string) {
			for {
				rec, err := r.Next()
				if err == io.EOF {
					return list
				}
				if err != nil {
					rt.Fatal(err)
				}
				list = append(list, fmt.Sprintf("%d:%s", rec.Stream, rec.Data))
			}
		}
		prompt, err := Open(dir, nil)
		if err != nil {
			rt.Fatal(err)
		}
		defer prompt.Close()
		lazy, err := Open(dir, nil)
		if err != nil {
			rt.Fatal(err)
		}
		defer lazy.Close()
		var written []string           // since lazy looked
		truncated, cut := false, false // since lazy looked, and ever
		n := 0
		write := func() {
			n++
			stream := Stream(rapid.IntRange(1, 2).Draw(rt, "stream"))
			text := fmt.Sprintf("%d ", n) + strings.Repeat("x", rapid.SampledFrom([]int{0, 10, 300, MaxWrite - 20}).Draw(rt, "length"))
			if err := w.Write(stream, []byte(text)); err != nil {
				rt.Fatal(err)
			}
			want := fmt.Sprintf("%d:%s", stream, text)
			written = append(written, want)
			if got := read(prompt); len(got) != 1 || got[0] != want {
				rt.Fatalf("got %.80q, want %.80q", got, want)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(*rapid.T) { write() },
			"write more": func(*rapid.T) {
				for range 10 {
					write()
				}
			},
			"truncate": func(*rapid.T) {
				// Anywhere but within a header: what is left of one is damage.
				starts := []int64{0}
				for off := int64(0); ; {
					rec, err := (&file{f: w.f, size: w.off, chunk: maxChunk}).parse(off, false)
					if err != nil {
						break
					}
					starts = append(starts, rec.start, rec.start+HeaderSize, rec.end)
					off = rec.end
				}
				if err := os.Truncate(filepath.Join(dir, "0"), rapid.SampledFrom(starts).Draw(rt, "to")); err != nil {
					rt.Fatal(err)
				}
				truncated, cut = true, true
				if got := read(prompt); len(got) != 0 {
					rt.Fatalf("got %.80q after a truncation", got)
				}
			},
			"tear": func(*rapid.T) {
				h := Header{Stream: Stdout, Length: 50, Seq: Sequence(run, w.n+1)}
				torn := append(h.Append(nil), make([]byte, 50)...)[:rapid.IntRange(0, HeaderSize+49).Draw(rt, "torn at")]
				if _, err := w.f.WriteAt(torn, w.off); err != nil {
					rt.Fatal(err)
				}
				if got := read(prompt); len(got) != 0 {
					rt.Fatalf("got %.80q of a torn record", got)
				}
				start()
			},
			"start": func(*rapid.T) { start() },
			"look": func(*rapid.T) {
				got := read(lazy)
				// All of it, unless something was rotated or truncated away: then some of it, in order, to the end. A record
				// whose payload was cut off by a truncation, and which is whole again by the hole that follows, has zeros.
				got = slices.DeleteFunc(got, func(g string) bool { return cut && len(strings.TrimRight(g, "\x00")) == 2 })
				i := 0
				for _, g := range got {
					for i < len(written) && written[i] != g {
						i++
					}
					if i == len(written) {
						rt.Fatalf("got %.300q of %.300q", got, written)
					}
					i++
				}
				if size == 0 && !truncated && len(got) != len(written) {
					rt.Fatalf("got %.300q, want %.300q", got, written)
				}
				if len(written) > 0 && !truncated && i != len(written) {
					rt.Fatalf("the end is missing: got %.300q of %.300q", got, written)
				}
				written, truncated = nil, false
			},
		})
	})
}

// TestManyWaiters: all readers of a process share one inotify instance, and it goes with the last of them.
func TestManyWaiters(t *testing.T) {
	before := testutil.Resources()
	instances := func() (n int) {
		links, _ := filepath.Glob("/proc/self/fd/*")
		for _, link := range links {
			if to, _ := os.Readlink(link); to == "anon_inode:inotify" {
				n++
			}
		}
		return n
	}
	base := t.TempDir()
	const logs = 40
	var writers []*Writer
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var waiting sync.WaitGroup
	for i := range logs {
		dir := filepath.Join(base, fmt.Sprint(i))
		os.Mkdir(dir, 0o700)
		writers = append(writers, newWriter(t, dir, WriterOptions{}))
		for range 3 {
			waiting.Add(1)
			wg.Go(func() {
				r, err := Open(dir, nil)
				if err != nil {
					t.Error(err)
					return
				}
				defer r.Close()
				r.Wait(ctx, nil)
				if r.watch.changes == nil {
					t.Error("no inotify")
				}
				waiting.Done()
				for err := io.EOF; err == io.EOF; _, err = r.Next() {
					if err := r.Wait(ctx, nil); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	waiting.Wait()
	if n := instances(); n != 1 {
		t.Errorf("%d inotify instances", n)
	}
	for _, w := range writers {
		write(t, w, Stdout, "x")
	}
	wg.Wait()
	if n := instances(); n != 0 {
		t.Errorf("%d inotify instances left", n)
	}
	for _, w := range writers {
		w.Close()
	}
	testutil.Settled(t, before)
}

// TestHoleTwice: a hole is not where it was before the file was truncated once more.
func TestHoleTwice(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, WriterOptions{Run: 1})
	r, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	wrote := 0
	write := func(n int) {
		for range n {
			wrote++
			text := fmt.Sprint("text ", wrote)
			if err := w.Write(Stdout, []byte(text)); err != nil {
				t.Fatal(err)
			}
			if rec, err := r.Next(); err != nil || string(rec.Data) != text {
				t.Fatalf("got %q, %v, want %q", rec.Data, err, text)
			}
		}
	}
	truncate := func(size int64) {
		if err := os.Truncate(filepath.Join(dir, "0"), size); err != nil {
			t.Fatal(err)
		}
		if rec, err := r.Next(); err != io.EOF {
			t.Fatalf("after a truncation: %q, %v", rec.Data, err)
		}
	}
	write(10)
	end := w.off
	truncate(HeaderSize) // the first record's payload is a part of the hole that follows
	write(10)
	truncate(end)
	w.Close()
	w = newWriter(t, dir, WriterOptions{Run: 2})
	write(1)
	truncate(HeaderSize)
	write(10)
	truncate(end + HeaderSize + 7)
}
