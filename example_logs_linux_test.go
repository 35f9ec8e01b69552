package coracle_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/logfile"
)

// exampleLog makes a container that has written a little.
func exampleLog(ctx context.Context, spec coracle.LogSpec) (*coracle.Container, func()) {
	eng, done := exampleImages(ctx)
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "hello", Log: spec})
	if err != nil {
		log.Fatal(err)
	}
	dir := filepath.Join(eng.Root(), "containers", c.ID(), "log")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		log.Fatal(err)
	}
	now := time.Date(2025, 1, 2, 3, 4, 0, 0, time.UTC)
	w, err := logfile.NewWriter(dir, logfile.WriterOptions{Now: func() time.Time { now = now.Add(time.Second); return now }})
	if err != nil {
		log.Fatal(err)
	}
	w.Write(logfile.Stdout, []byte("listening\nrea"))
	w.Write(logfile.Stderr, []byte("no config: using defaults\n"))
	w.Write(logfile.Stdout, []byte("dy\n"))
	w.Close()
	return c, done
}

func ExampleContainer_Logs() {
	ctx := context.Background()
	c, done := exampleLog(ctx, coracle.LogSpec{})
	defer done()
	for rec, err := range c.Logs(ctx, &coracle.LogOptions{Follow: true}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s %v %q\n", rec.Time.UTC().Format(time.TimeOnly), rec.Stream, rec.Data)
	}
	// Output:
	// 03:04:01 stdout "listening\nrea"
	// 03:04:02 stderr "no config: using defaults\n"
	// 03:04:03 stdout "dy\n"
}

func ExampleContainer_LogLines() {
	ctx := context.Background()
	c, done := exampleLog(ctx, coracle.LogSpec{})
	defer done()
	for line, err := range c.LogLines(ctx, &coracle.LogOptions{Stdout: true}) {
		if err != nil {
			log.Fatal(err)
		}
		if strings.HasPrefix(line.Text, "ready") {
			fmt.Println("it is ready")
			break
		}
	}
	// Output: it is ready
}

// The last two lines, each to where it belongs.
func ExampleContainer_CopyLogs() {
	ctx := context.Background()
	c, done := exampleLog(ctx, coracle.LogSpec{})
	defer done()
	if err := c.CopyLogs(ctx, os.Stdout, os.Stderr, &coracle.LogOptions{Tail: 2}); err != nil {
		log.Fatal(err)
	}
	// Output: ready
}

func ExampleLogOptions() {
	ctx := context.Background()
	c, done := exampleLog(ctx, coracle.LogSpec{})
	defer done()
	minute := time.Date(2025, 1, 2, 3, 4, 0, 0, time.UTC)
	err := c.CopyLogs(ctx, os.Stdout, nil, &coracle.LogOptions{Since: minute.Add(2 * time.Second), Until: minute.Add(time.Minute)})
	fmt.Println(err)
	// Output:
	// dy
	// <nil>
}

func ExampleLogRecord() {
	ctx := context.Background()
	c, done := exampleLog(ctx, coracle.LogSpec{})
	defer done()
	var kept []coracle.LogRecord
	for rec, err := range c.Logs(ctx, nil) {
		if err != nil {
			log.Fatal(err)
		}
		rec.Data = append([]byte(nil), rec.Data...) // valid only until the loop goes on
		kept = append(kept, rec)
	}
	last := kept[len(kept)-1]
	fmt.Printf("record %d of start %d, %d missed before it: %q\n", last.Seq, last.Run, last.Missed, last.Data)
	// Output: record 3 of start 1, 0 missed before it: "dy\n"
}

func ExampleLogLine() {
	ctx := context.Background()
	c, done := exampleLog(ctx, coracle.LogSpec{})
	defer done()
	for line, err := range c.LogLines(ctx, nil) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%v: %s\n", line.Stream, line.Text)
	}
	// Output:
	// stdout: listening
	// stderr: no config: using defaults
	// stdout: ready
}

// A log that loses nothing and keeps all.
func ExampleLogSpec() {
	ctx := context.Background()
	c, done := exampleLog(ctx, coracle.LogSpec{Mode: coracle.LogFile, MaxSize: -1, Full: coracle.LogBlock})
	defer done()
	info, err := c.Inspect(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Spec.Log.Mode, info.Spec.Log.Full)
	// Output: file block
}

func ExampleLogMode() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "hello", Log: coracle.LogSpec{Mode: coracle.LogNone}})
	if err != nil {
		log.Fatal(err)
	}
	err = c.CopyLogs(ctx, os.Stdout, os.Stderr, nil)
	fmt.Println(errors.Is(err, errors.ErrUnsupported))
	// Output: true
}

func ExampleLogFull() {
	for _, full := range []coracle.LogFull{coracle.LogDrop, coracle.LogBlock} {
		spec := coracle.ContainerSpec{Image: "hello", Log: coracle.LogSpec{Full: full}}
		fmt.Println(spec.Log.Full)
	}
	// Output:
	// drop
	// block
}

func ExampleLogStream() {
	fmt.Println(coracle.LogStdout, coracle.LogStderr, coracle.LogNotes)
	// Output: stdout stderr note
}

func ExampleLogNote() {
	// As in a LogRecord whose Stream is LogNotes.
	note := coracle.LogNote{Kind: coracle.LogDropped, Bytes: 4096, Reads: 3}
	fmt.Println(note)
	// Output: 4096 bytes of output were dropped: the disk was full
}

func ExampleLogNoteKind() {
	for _, kind := range []coracle.LogNoteKind{coracle.LogDropped, coracle.LogBlocked} {
		fmt.Println(coracle.LogNote{Kind: kind})
	}
	// Output:
	// 0 bytes of output were dropped: the disk was full
	// the container was blocked: the disk was full
}
