package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

func TestMain(m *testing.M) {
	processMain()
	os.Exit(testutil.LeakCheck(m))
}

func open(t testing.TB, opts *Options) *Journal {
	t.Helper()
	j := New(filepath.Join(t.TempDir(), "events"), opts)
	t.Cleanup(func() { j.Close() })
	return j
}

func add(t testing.TB, j *Journal, payloads ...string) {
	t.Helper()
	for _, p := range payloads {
		if err := j.Append([]byte(p)); err != nil {
			t.Fatal(err)
		}
	}
}

// all reads what there is: payloads, and "gap" for a gap.
func all(t testing.TB, j *Journal, opts ReadOptions) (list []string, cursors []Cursor) {
	t.Helper()
	for rec, err := range j.Read(t.Context(), opts) {
		var gap *Gap
		switch {
		case errors.As(err, &gap):
			list = append(list, "gap")
			continue
		case err != nil:
			t.Fatal(err)
		}
		if rec.Lost > 0 {
			list = append(list, fmt.Sprintf("lost %d", rec.Lost))
		}
		list = append(list, string(rec.Payload))
		cursors = append(cursors, rec.Cursor)
	}
	return list, cursors
}

func want(t testing.TB, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}
}

// lastFile returns the path of the generation that is written to.
func lastFile(t testing.TB, j *Journal) string {
	t.Helper()
	list, err := j.generations()
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	return j.path(list[len(list)-1])
}

func writeRaw(t testing.TB, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func TestAppendRead(t *testing.T) {
	j := open(t, nil)
	got, _ := all(t, j, ReadOptions{})
	want(t, got)
	if end, err := j.End(); err != nil || end != (Cursor{}) {
		t.Errorf("end of nothing: %v, %v", end, err)
	}
	add(t, j, "one", "", "three")
	got, cursors := all(t, j, ReadOptions{})
	want(t, got, "one", "", "three")
	for i, c := range cursors {
		got, _ := all(t, j, ReadOptions{After: c})
		want(t, got, []string{"one", "", "three"}[i+1:]...)
		if back, err := ParseCursor(c.String()); err != nil || back != c {
			t.Errorf("cursor %v: %v, %v", c, back, err)
		}
	}
	if end, err := j.End(); err != nil || end != cursors[2] {
		t.Errorf("end: %v, %v; want %v", end, err, cursors[2])
	}
	if err := j.Append(make([]byte, MaxPayload+1)); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	if err := j.Append([]byte("a\nb")); !errors.Is(err, ErrNewline) {
		t.Error(err)
	}
	big := strings.Repeat("x", MaxPayload)
	add(t, j, big, big)
	got, _ = all(t, j, ReadOptions{After: cursors[2]})
	want(t, got, big, big)
	// One more process of the journal begins where the first one has come to, with the first one's bounds.
	k := New(j.dir, &Options{FileSize: 1, Files: 2})
	defer k.Close()
	add(t, k, "again")
	if got, _ = all(t, j, ReadOptions{}); len(got) != 6 || got[5] != "again" {
		t.Errorf("%d records", len(got))
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
	if err := j.Append(nil); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestCursors(t *testing.T) {
	list := []Cursor{{}, {1, 0}, {1, 15}, {1, 16}, {2, 0}, {255, 1 << 40}, {1 << 60, 1}}
	for i := range list {
		for k := range list {
			if got, want := strings.Compare(list[i].String(), list[k].String()), list[i].Compare(list[k]); got != want {
				t.Errorf("%v and %v: strings %d, cursors %d", list[i], list[k], got, want)
			}
		}
	}
	for _, bad := range []string{"", "-", "1-2", list[3].String() + "0", strings.ToUpper(Cursor{10, 11}.String()), "0000000000000001-ffffffffffffffff"} {
		if c, err := ParseCursor(bad); err == nil {
			t.Errorf("%q: %v", bad, c)
		}
	}
}

// TestTorn: what is torn or foreign costs only itself.
func TestTorn(t *testing.T) {
	good := string(frame(nil, 0, []byte("torn")))
	for name, text := range map[string]string{
		"nothing": "", "half a record": good[:len(good)/2], "without its newline": good[:len(good)-3], "zeros": strings.Repeat("\x00", 5000),
		"long line": strings.Repeat("x", 3*maxFrame+7), "longer than a chunk": strings.Repeat("y", 5*chunk), "newlines": "\n\n\n\n",
		"another's checksum": "\n00000000 0 x\n", "upper case": strings.ToUpper(good), "no count": "\n" + good[1:10] + "torn\n",
		"just too long": "\n" + strings.Repeat("z", maxFrame), "and one more": "\n" + strings.Repeat("z", maxFrame+1) + "\n",
		"a record twice as long as allowed": string(frame(nil, 0, bytes.Repeat([]byte("x"), 2*MaxPayload))),
	} {
		t.Run(name, func(t *testing.T) {
			j := open(t, nil)
			add(t, j, "before")
			writeRaw(t, lastFile(t, j), text)
			add(t, j, "after", "later")
			got, cursors := all(t, j, ReadOptions{})
			want(t, got, "before", "after", "later")
			for i, c := range cursors {
				got, _ := all(t, j, ReadOptions{After: c})
				want(t, got, []string{"before", "after", "later"}[i+1:]...)
			}
		})
	}
}

// TestRotation: the journal is bounded, and readers are told what they miss.
func TestRotation(t *testing.T) {
	j := open(t, &Options{FileSize: 100, Files: 3})
	var names []string
	for i := range 40 {
		names = append(names, fmt.Sprintf("record %02d", i)) // of 22 bytes: five in each file
		add(t, j, names[i])
	}
	list, err := j.generations()
	if err != nil || len(list) != 3 {
		t.Fatalf("generations: %d, %v", list, err)
	}
	for _, gen := range list {
		if info, err := os.Stat(j.path(gen)); err != nil || info.Size() > 100+22 {
			t.Errorf("generation %d: %v, %v", gen, info.Size(), err)
		}
	}
	got, cursors := all(t, j, ReadOptions{})
	want(t, got, names[25:]...)
	for i, c := range cursors {
		got, _ := all(t, j, ReadOptions{After: c})
		want(t, got, names[26+i:]...)
	}
	// From before the oldest file: one that was read to its end has missed nothing, any other has.
	got, _ = all(t, j, ReadOptions{After: Cursor{list[0] - 1, 110}})
	want(t, got, names[25:]...)
	for _, after := range []Cursor{{list[0] - 1, 88}, {list[0] - 2, 110}, {list[2], 1 << 20}, {1, 0}} {
		got, _ := all(t, j, ReadOptions{After: after})
		if len(got) < 1 || got[0] != "gap" {
			t.Errorf("after %v: %q", after, got)
		}
	}
	// From the future, as after the journal was removed and the clock set back.
	got, _ = all(t, j, ReadOptions{After: Cursor{1 << 62, 5}})
	want(t, got, append([]string{"gap"}, names[25:]...)...)
}

// TestStaleWriters: where files are as small as can be each record has its own, and the void ones do not count.
func TestStaleWriters(t *testing.T) {
	a := open(t, &Options{FileSize: 1, Files: 1000})
	b, c := New(a.dir, nil), New(a.dir, nil)
	defer b.Close()
	defer c.Close()
	add(t, a, "first")
	wanted := []string{"first"}
	for i := range 100 {
		w := []*Journal{a, b, c}[rand.IntN(3)]
		wanted = append(wanted, fmt.Sprint(i))
		// The look at the size before a write is only to spare void records: without it the outcome is the same.
		if i%2 == 0 && w.file != nil {
			if start, err := w.write(frame(nil, 0, []byte("void"))); err != nil || start < 1 {
				t.Fatal(start, err)
			}
		}
		add(t, w, fmt.Sprint(i))
	}
	got, _ := all(t, a, ReadOptions{})
	want(t, got, wanted...)
}

// TestStoppedWhileMaking: a process that was stopped before it made a generation, while others made and removed that and
// more, makes it again and must not write to it.
func TestStoppedWhileMaking(t *testing.T) {
	a := open(t, &Options{FileSize: 1, Files: 2})
	b := New(a.dir, nil)
	defer b.Close()
	add(t, b, "first")
	stale := b.gen + 1
	add(t, a, "1", "2", "3", "4", "5")
	if err := b.create(stale); err != nil {
		t.Fatal(err)
	}
	add(t, b, "6")
	got, _ := all(t, a, ReadOptions{})
	if got[len(got)-1] != "6" {
		t.Errorf("read %q", got)
	}
}

// TestMadeAgain: a generation that such a process has made again, for the moment until it takes it away, does not stand for
// the one that had its name: a slow reader is told of the gap.
func TestMadeAgain(t *testing.T) {
	j := open(t, &Options{FileSize: 1, Files: 2})
	add(t, j, "first")
	gen := j.gen
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	next, stop := iter.Pull2(j.Read(ctx, ReadOptions{Follow: true}))
	defer stop()
	if rec, err, _ := next(); err != nil || string(rec.Payload) != "first" {
		t.Fatalf("%q, %v", rec.Payload, err)
	}
	add(t, j, "1", "2", "3")
	if err := os.WriteFile(j.path(gen+1), nil, 0o600); err != nil { // it had "1"
		t.Fatal(err)
	}
	var gap *Gap
	if _, err, _ := next(); !errors.As(err, &gap) {
		t.Errorf("after %v: %v", gen, err)
	}
	for _, text := range []string{"2", "3"} {
		if rec, err, _ := next(); err != nil || string(rec.Payload) != text {
			t.Errorf("%q, %v, want %q", rec.Payload, err, text)
		}
	}
}

// TestNothingInMadeAgain: nobody appends to a generation that has been made again, though it was the last one when they
// looked: readers have passed it.
func TestNothingInMadeAgain(t *testing.T) {
	j := open(t, &Options{FileSize: 1, Files: 2})
	add(t, j, "first")
	gen := j.gen
	add(t, j, "1", "2", "3")
	if err := os.WriteFile(j.path(gen+1), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// As one who has listed the generations when it was the last one, and was stopped until now.
	if err := j.goOn(gen + 1); err != nil {
		t.Fatal(err)
	}
	if ok, err := j.writable(); ok || err != nil {
		t.Errorf("generation %d is written to: %v", j.gen, err)
	}
	add(t, j, "4", "5")
	if got, _ := all(t, j, ReadOptions{}); !slices.Equal(got, []string{"4", "5"}) {
		t.Errorf("got %q", got)
	}
}

// TestRemoved: a journal that somebody has removed begins anew.
func TestRemoved(t *testing.T) {
	j := open(t, nil)
	add(t, j, "one")
	_, cursors := all(t, j, ReadOptions{})
	time.Sleep(2 * time.Millisecond) // generations are named by the clock
	if err := os.RemoveAll(j.dir); err != nil {
		t.Fatal(err)
	}
	add(t, j, "two")
	got, _ := all(t, j, ReadOptions{})
	want(t, got, "two")
	got, _ = all(t, j, ReadOptions{After: cursors[0]})
	want(t, got, "gap", "two")
}

// TestEndWithinRecord: a reader that begins while a record is half written gets it.
func TestEndWithinRecord(t *testing.T) {
	j := open(t, nil)
	add(t, j, "one")
	path := lastFile(t, j)
	text := string(frame(nil, 0, []byte("half")))
	writeRaw(t, path, text[:12])
	end, err := j.End()
	if err != nil {
		t.Fatal(err)
	}
	got, _ := all(t, j, ReadOptions{}) // it is not there yet
	want(t, got, "one")
	writeRaw(t, path, text[12:])
	got, _ = all(t, j, ReadOptions{After: end})
	want(t, got, "half")
}

func TestHostileDirectory(t *testing.T) {
	j := open(t, nil)
	add(t, j, "one")
	last := filepath.Base(lastFile(t, j))
	for _, name := range []string{"zz", "0", "ffff", strings.Repeat("f", 17), "0000000000000000", "+000000000000001"} {
		if err := os.WriteFile(filepath.Join(j.dir, name), frame(nil, 0, []byte(name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, make := range map[string]func(string) error{
		"fifo": func(p string) error { return unix.Mkfifo(p, 0o600) }, "directory": func(p string) error { return os.Mkdir(p, 0o700) },
		"link": func(p string) error { return os.Symlink(last, p) },
	} {
		path := filepath.Join(j.dir, strings.Repeat("f", 15)+string("abc"[len(name)%3]))
		if err := make(path); err != nil {
			t.Fatal(name, err)
		}
		add(t, j, name)
		if got, _ := all(t, j, ReadOptions{}); got[len(got)-1] != name {
			t.Errorf("%s: read %q", name, got)
		}
		os.Remove(path)
	}
	// A journal of a later version is neither read nor written to.
	for _, record := range []string{`{"Version":2,"FileSize":10,"Files":3}`, `{"Version":1,"FileSize":-1,"Files":3}`, `{"Version":1,"FileSize":5,"Files":0}`} {
		if err := os.WriteFile(filepath.Join(j.dir, formatFile), []byte(record), 0o600); err != nil {
			t.Fatal(err)
		}
		k := New(j.dir, nil)
		if err := k.Append(nil); err == nil {
			t.Errorf("appended to %s", record)
		}
		for _, err := range k.Read(t.Context(), ReadOptions{}) {
			if err == nil {
				t.Errorf("read %s", record)
			}
		}
	}
}

// TestFullDisk: what cannot be written is counted, and what is torn by it costs only itself.
func TestFullDisk(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("coracle-test", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	j := New(filepath.Join(dir, "events"), nil)
	defer j.Close()
	fill := filepath.Join(dir, "fill")
	if err := os.WriteFile(fill, make([]byte, 24<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("x", 3000)
	var wrote []string
	for i := 0; ; i++ {
		name := fmt.Sprint(i, text)
		if err := j.Append([]byte(name)); errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil || i > 30 {
			t.Fatal(i, err)
		}
		wrote = append(wrote, name)
	}
	for range 4 {
		if err := j.Append([]byte(text)); !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	if j.Lost() != 5 {
		t.Errorf("lost %d", j.Lost())
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	add(t, j, "room", "again")
	got, _ := all(t, j, ReadOptions{})
	want(t, got, append(wrote, "lost 5", "room", "again")...)
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}

// TestFollow: a follower gets what is there, what comes, and the end of its context.
func TestFollow(t *testing.T) {
	j := open(t, &Options{FileSize: 200, Files: 100})
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("enough")
	got := make(chan string)
	go func() {
		defer close(got)
		for rec, err := range j.Read(ctx, ReadOptions{Follow: true}) {
			if err != nil {
				got <- err.Error()
				continue
			}
			got <- string(rec.Payload)
		}
	}()
	for i := range 50 {
		name := fmt.Sprint("record ", i)
		if i == 0 {
			time.Sleep(20 * time.Millisecond) // there is no directory yet
		}
		start := time.Now()
		add(t, j, name)
		if text := <-got; text != name {
			t.Fatalf("got %q, want %q", text, name)
		}
		if took := time.Since(start); i > 1 && took > 500*time.Millisecond {
			t.Errorf("record %d came after %v: the watch does not work", i, took)
		}
	}
	cancel(stop)
	if text := <-got; text != "enough" {
		t.Errorf("at the end: %q", text)
	}
	if _, more := <-got; more {
		t.Error("more after the end")
	}
}

// TestFollowUnwatched: without inotify, of which a user may have few, a follower looks by itself.
func TestFollowUnwatched(t *testing.T) {
	j := open(t, nil)
	add(t, j, "one")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := &reader{j: j, opts: ReadOptions{Follow: true}}
	defer r.close()
	w, err := newWatch(j.dir)
	if err != nil {
		t.Fatal(err)
	}
	w.close() // waiting fails from now on
	go func() {
		time.Sleep(10 * time.Millisecond)
		j.Append([]byte("two"))
	}()
	var got []string
	r.watch = w
	if err := r.wait(ctx); err != nil || r.watch != nil {
		t.Fatalf("waited without a watch: %v", err)
	}
	for rec, err := range j.Read(ctx, ReadOptions{Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, string(rec.Payload)); len(got) == 2 {
			break
		}
	}
	want(t, got, "one", "two")
}

// TestSince: files that were last written to before are not read.
func TestSince(t *testing.T) {
	j := open(t, &Options{FileSize: 30, Files: 10})
	add(t, j, "one", "two", "three", "four", "five")
	list, err := j.generations()
	if err != nil || len(list) != 3 {
		t.Fatal(list, err)
	}
	now := time.Now()
	if err := os.Chtimes(j.path(list[0]), now, now.Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	got, _ := all(t, j, ReadOptions{Since: now.Add(-time.Minute)})
	want(t, got, "three", "four", "five")
	got, _ = all(t, j, ReadOptions{Since: now.Add(-2 * time.Hour)})
	want(t, got, "one", "two", "three", "four", "five")
	got, _ = all(t, j, ReadOptions{Since: now.Add(time.Hour)}) // the last file in any case: whoever asks compares the times
	want(t, got, "five")
}

// FuzzRead: whatever a file holds, a reader ends, gives only what has its checksum, and the same from any of its cursors.
func FuzzRead(f *testing.F) {
	two := frame(frame(nil, 0, []byte(`{"a":1}`)), 7, []byte("x"))
	f.Add(two, 5)
	f.Add(two[:len(two)-3], 20)
	f.Add(append(slices.Clone(two[:9]), two...), 12)
	f.Add([]byte("\n\n\x00\n00000000 0 \n"), 1)
	f.Add(bytes.Repeat([]byte("\n"), 100), 50)
	f.Fuzz(func(t *testing.T, data []byte, at int) {
		const limit = 512
		read := func(off int64) (list []Record) {
			var s scanner
			if err := s.begin(bytes.NewReader(data), off); err != nil {
				t.Fatal(err)
			}
			for last := int64(-1); ; {
				rec, start, err := s.next(limit)
				if errors.Is(err, errMore) {
					continue
				}
				if err != nil {
					return list
				}
				if start >= limit || start < last || rec.Cursor.Offset <= start {
					t.Fatalf("a record from %d to %d after %d", start, rec.Cursor.Offset, last)
				}
				last = rec.Cursor.Offset - 1
				if text := frame(nil, rec.Lost, rec.Payload); !bytes.Contains(data, text[1:len(text)-1]) {
					t.Fatalf("%q is not in the file", text)
				}
				rec.Payload = bytes.Clone(rec.Payload)
				list = append(list, rec)
			}
		}
		same := func(a, b Record) bool {
			return a.Cursor == b.Cursor && a.Lost == b.Lost && bytes.Equal(a.Payload, b.Payload)
		}
		list := read(0)
		for i, rec := range list {
			if rest := read(rec.Cursor.Offset); !slices.EqualFunc(rest, list[i+1:], same) {
				t.Fatalf("after %v: %v, want %v", rec.Cursor, rest, list[i+1:])
			}
		}
		if at >= 0 && at <= len(data) {
			read(int64(at))
		}
	})
}

// BenchmarkAppend compares an append with a plain write of the same bytes.
func BenchmarkAppend(b *testing.B) {
	payload := []byte(`{"time":"2026-01-02T03:04:05.678901234Z","type":"container","action":"start","id":"` + strings.Repeat("0", 64) + `","name":"web","attributes":{"image":"docker.io/library/nginx:1.27","name":"web"}}`)
	b.Run("append", func(b *testing.B) {
		j := open(b, nil)
		add(b, j, "first")
		b.ReportAllocs()
		for b.Loop() {
			if err := j.Append(payload); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("write", func(b *testing.B) {
		f, err := os.OpenFile(filepath.Join(b.TempDir(), "f"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		bytes := frame(nil, 0, payload)
		for n := 0; b.Loop(); n++ {
			if _, err := f.Write(bytes); err != nil {
				b.Fatal(err)
			}
			if n%10000 == 0 {
				f.Truncate(0)
			}
		}
	})
}
