package coracle

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// CopyLogs writes the container's log to two writers, its standard output to the one and its standard error to the other,
// as `docker logs` does. A nil writer leaves its stream out. Notes are left out: Logs has them.
//
// It goes on behind damaged parts of the log and returns an error that matches ErrCorrupt in the end. Other errors are
// those of Logs, and the first one of a writer.
func (c *Container) CopyLogs(ctx context.Context, stdout, stderr io.Writer, opts *LogOptions) error {
	return c.fail("copy the log of", c.copyLogs(ctx, stdout, stderr, opts))
}

func (c *Container) copyLogs(ctx context.Context, stdout, stderr io.Writer, opts *LogOptions) error {
	if opts == nil {
		opts = &LogOptions{}
	}
	streams := *opts
	both := opts.Stdout == opts.Stderr
	streams.Stdout, streams.Stderr = stdout != nil && (both || opts.Stdout), stderr != nil && (both || opts.Stderr)
	if !streams.Stdout && !streams.Stderr {
		return nil
	}
	var damage error
	for rec, err := range c.logs(ctx, &streams) {
		switch {
		case errors.Is(err, ErrCorrupt):
			if damage == nil {
				damage = err
			}
		case err != nil:
			return errors.Join(err, damage)
		case rec.Stream == LogStdout:
			if _, err := stdout.Write(rec.Data); err != nil {
				return err
			}
		case rec.Stream == LogStderr:
			if _, err := stderr.Write(rec.Data); err != nil {
				return err
			}
		}
	}
	return damage
}

// A LogLine is a line that a container wrote.
type LogLine struct {
	// Time is when the first bytes of it were read, by the host's clock.
	Time   time.Time
	Stream LogStream
	// Text is the line without its end ("\n" or "\r\n"), at most 64 kB. It may be no valid UTF-8. Of a note it is what
	// LogNote.String returns.
	Text string
	// Partial says that the line does not end here: it is longer than 64 kB, its rest is missing, or the container has not
	// written it.
	Partial bool
}

// maxLogLine bounds what is kept of a line that has not ended.
const maxLogLine = 64 << 10

// LogLines is Logs by lines: parts of a line are joined, while the other stream's lines may come in between. What is
// written of a line is kept back until the line, or the log, has ended.
func (c *Container) LogLines(ctx context.Context, opts *LogOptions) iter.Seq2[LogLine, error] {
	return func(yield func(LogLine, error) bool) {
		var pending [LogNotes]lineBuffer
		flush := func() bool {
			for s := range pending {
				if b := &pending[s]; len(b.text) > 0 && !yield(b.take(LogStream(s), true), nil) {
					return false
				}
			}
			return true
		}
		for rec, err := range c.Logs(ctx, opts) {
			if err != nil || rec.Missed > 0 || rec.Truncated {
				if !flush() {
					return
				}
			}
			switch {
			case err != nil:
				if !yield(LogLine{}, err) {
					return
				}
			case rec.Stream == LogNotes:
				if !yield(LogLine{Time: rec.Time, Stream: LogNotes, Text: rec.Note.String()}, nil) {
					return
				}
			default:
				if !pending[rec.Stream].add(&rec, yield) {
					return
				}
			}
		}
		flush()
	}
}

// lineBuffer is what has been read of a line.
type lineBuffer struct {
	time time.Time
	text []byte
}

func (b *lineBuffer) take(stream LogStream, partial bool) LogLine {
	text := b.text
	if !partial {
		text = bytes.TrimSuffix(text, []byte("\r"))
	}
	line := LogLine{Time: b.time, Stream: stream, Text: string(text), Partial: partial}
	b.text = b.text[:0]
	return line
}

// add takes a record and yields the lines that it ends.
func (b *lineBuffer) add(rec *LogRecord, yield func(LogLine, error) bool) bool {
	for data := rec.Data; len(data) > 0; {
		if len(b.text) == 0 {
			b.time = rec.Time
		}
		part, ended := data, false
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			part, ended = data[:i], true
		}
		room := maxLogLine - len(b.text)
		if len(part) > room {
			part, ended = part[:room], false
		}
		b.text = append(b.text, part...)
		data = data[len(part):]
		if ended {
			data = data[1:]
		}
		if ended || len(b.text) == maxLogLine && len(data) > 0 {
			if !yield(b.take(rec.Stream, !ended), nil) {
				return false
			}
		}
	}
	return true
}
