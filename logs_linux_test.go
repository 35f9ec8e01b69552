package coracle_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/logfile"
)

// logWriter writes the log of a container in the place of its keeper.
func logWriter(t testing.TB, eng *coracle.Engine, c *coracle.Container, opts logfile.WriterOptions) *logfile.Writer {
	t.Helper()
	dir := filepath.Join(eng.Root(), "containers", c.ID(), "log")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w, err := logfile.NewWriter(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func logContainer(t testing.TB, eng *coracle.Engine, spec coracle.ContainerSpec) *coracle.Container {
	t.Helper()
	spec.Image = "tool"
	c, err := eng.Create(t.Context(), &spec)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// readLog returns the records as "stream:text".
func readLog(ctx context.Context, c *coracle.Container, opts *coracle.LogOptions) (list []string, err error) {
	for rec, recErr := range c.Logs(ctx, opts) {
		if err = recErr; err != nil {
			continue
		}
		text := string(rec.Data)
		if rec.Stream == coracle.LogNotes {
			text = rec.Note.String()
		}
		list = append(list, fmt.Sprintf("%v:%s", rec.Stream, text))
	}
	return list, err
}

func TestLogs(t *testing.T) {
	eng, ctx := engine(t), t.Context()
	toolImage(t, eng, nil)
	c := logContainer(t, eng, coracle.ContainerSpec{})
	if got, err := readLog(ctx, c, &coracle.LogOptions{Follow: true}); err != nil || len(got) != 0 {
		t.Errorf("before the first start: %q, %v", got, err)
	}
	now := time.Unix(1_000_000_000, 0)
	w := logWriter(t, eng, c, logfile.WriterOptions{Now: func() time.Time { now = now.Add(time.Second); return now }})
	w.Write(logfile.Stdout, []byte("a\nb"))
	w.Write(logfile.Stderr, []byte("x\r\n"))
	w.Write(logfile.Stdout, []byte("c\nd\n"))
	w.Write(logfile.Stderr, []byte("unfinished"))

	whole := []string{"stdout:a\nb", "stderr:x\r\n", "stdout:c\nd\n", "stderr:unfinished"}
	at := func(n int64) time.Time { return time.Unix(1_000_000_000+n, 0) }
	for _, tt := range []struct {
		name string
		opts *coracle.LogOptions
		want []string
	}{
		{"all", nil, whole},
		{"follow", &coracle.LogOptions{Follow: true}, whole},
		{"both", &coracle.LogOptions{Stdout: true, Stderr: true}, whole},
		{"stdout", &coracle.LogOptions{Stdout: true}, []string{whole[0], whole[2]}},
		{"stderr", &coracle.LogOptions{Stderr: true}, []string{whole[1], whole[3]}},
		{"since", &coracle.LogOptions{Since: at(3)}, whole[2:]},
		{"until", &coracle.LogOptions{Until: at(2)}, whole[:2]},
		{"between", &coracle.LogOptions{Since: at(2), Until: at(3), Follow: true}, whole[1:3]},
		{"tail", &coracle.LogOptions{Tail: 2}, []string{"stdout:d\n", "stderr:unfinished"}},
		{"none", &coracle.LogOptions{Tail: -1}, nil},
	} {
		if got, err := readLog(ctx, c, tt.opts); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}
	var lines []string
	for l, err := range c.LogLines(ctx, nil) {
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%d %v:%s %t", l.Time.Unix()-1_000_000_000, l.Stream, l.Text, l.Partial))
	}
	if want := []string{"1 stdout:a false", "2 stderr:x false", "1 stdout:bc false", "3 stdout:d false", "4 stderr:unfinished true"}; !slices.Equal(lines, want) {
		t.Errorf("lines %q, want %q", lines, want)
	}
	var out, errs bytes.Buffer
	if err := c.CopyLogs(ctx, &out, &errs, nil); err != nil || out.String() != "a\nbc\nd\n" || errs.String() != "x\r\nunfinished" {
		t.Errorf("copied %q and %q, %v", out.String(), errs.String(), err)
	}
	out.Reset()
	if err := c.CopyLogs(ctx, &out, nil, &coracle.LogOptions{Stderr: true}); err != nil || out.Len() > 0 {
		t.Errorf("copied %q, %v", out.String(), err)
	}
	broken := errors.New("broken")
	if err := c.CopyLogs(ctx, failingWriter{broken}, nil, nil); !errors.Is(err, broken) {
		t.Errorf("a writer that fails: %v", err)
	}
	for range c.Logs(ctx, nil) {
		break
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := readLog(gone, c, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that is done: %v", err)
	}

	// What a bad disk makes of it.
	file := filepath.Join(eng.Root(), "containers", c.ID(), "log", "0")
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("?"), logfile.HeaderSize+3)
	f.Close()
	got, err := readLog(ctx, c, nil)
	var op *coracle.OpError
	if !errors.Is(err, coracle.ErrCorrupt) || !errors.As(err, &op) || len(got) != 1 {
		t.Errorf("damaged: %q, %v", got, err)
	}
	out.Reset()
	if err := c.CopyLogs(ctx, &out, &errs, nil); !errors.Is(err, coracle.ErrCorrupt) || out.String() != "a\nb" {
		t.Errorf("damaged: copied %q, %v", out.String(), err)
	}

	if err := c.Remove(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := readLog(ctx, c, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a removed container: %v", err)
	}
	for _, spec := range []coracle.ContainerSpec{{AutoRemove: true}, {Log: coracle.LogSpec{Mode: coracle.LogNone}}} {
		c := logContainer(t, eng, spec)
		var unsupported *coracle.UnsupportedError
		if _, err := readLog(ctx, c, nil); !errors.As(err, &unsupported) || !errors.Is(err, errors.ErrUnsupported) || unsupported.Fix == "" {
			t.Errorf("without a log: %v", err)
		}
	}
}

// TestLogsFollow: a follower gets what is written while the container runs, and ends with it.
func TestLogsFollow(t *testing.T) {
	eng := engine(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	toolImage(t, eng, nil)
	c := logContainer(t, eng, coracle.ContainerSpec{Args: []string{"cat"}, OpenStdin: true, Log: coracle.LogSpec{Mode: coracle.LogFile, MaxSize: 100}})
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	in, err := c.Input(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	write := func() {
		if _, err := fmt.Fprint(in, len(want)); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprintf("stdout:%d", len(want)))
	}
	write()
	var got []string
	for rec, err := range c.Logs(ctx, &coracle.LogOptions{Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%v:%s", rec.Stream, rec.Data))
		switch {
		case len(want) < 20:
			write()
		case len(want) == 20:
			write()
			if err := in.End(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}

	// Until ends the waiting, and so does the context.
	if _, err := c.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := readLog(ctx, c, &coracle.LogOptions{Follow: true, Until: start.Add(50 * time.Millisecond)}); err != nil || time.Since(start) < 50*time.Millisecond {
		t.Errorf("until: %v after %v", err, time.Since(start))
	}
	short, cancelShort := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancelShort()
	if _, err := readLog(short, c, &coracle.LogOptions{Follow: true}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a deadline: %v", err)
	}
	// Another handle, as another program has it, and the removal.
	time.AfterFunc(50*time.Millisecond, func() { c.Remove(ctx, &coracle.RemoveOptions{Force: true}) })
	if _, err := readLog(ctx, c, &coracle.LogOptions{Follow: true}); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed: %v", err)
	}
}

func TestLogLines(t *testing.T) {
	eng, ctx := engine(t), t.Context()
	toolImage(t, eng, nil)
	c := logContainer(t, eng, coracle.ContainerSpec{})
	w := logWriter(t, eng, c, logfile.WriterOptions{})
	const bound = 64 << 10
	long := strings.Repeat("l", bound)
	for _, text := range []string{long + "\n", long + "more\n", "\n", "a\r", "\n", "end"} {
		w.Write(logfile.Stdout, []byte(text))
	}
	var got []coracle.LogLine
	for l, err := range c.LogLines(ctx, nil) {
		if err != nil {
			t.Fatal(err)
		}
		l.Time, l.Stream = time.Time{}, 0
		got = append(got, l)
	}
	want := []coracle.LogLine{{Text: long}, {Text: long, Partial: true}, {Text: "more"}, {}, {Text: "a"}, {Text: "end", Partial: true}}
	if !slices.Equal(got, want) {
		t.Errorf("got %.200v", got)
	}
}

func TestLogSpec(t *testing.T) {
	eng, ctx := engine(t), t.Context()
	toolImage(t, eng, nil)
	for _, bad := range []coracle.LogSpec{{Mode: "journald"}, {Full: "panic"}, {MaxFiles: 1}, {MaxFiles: -1}, {MaxFiles: 101}} {
		if _, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Log: bad}); !errors.Is(err, coracle.ErrInvalid) || !strings.Contains(err.Error(), "Log") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	spec := coracle.ContainerSpec{Image: "x", Log: coracle.LogSpec{Mode: coracle.LogFile, MaxSize: -1, MaxFiles: 2, Full: coracle.LogBlock}}
	b, err := json.Marshal(spec)
	var again coracle.ContainerSpec
	if err == nil {
		err = json.Unmarshal(b, &again)
	}
	if err != nil || again.Log != spec.Log {
		t.Errorf("%v, %s", err, b)
	}
}
