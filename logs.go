package coracle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path/filepath"
	"time"

	"github.com/coracle-dev/coracle/internal/logfile"
)

// LogMode says whether a container's output is kept in a log.
type LogMode string

// The modes of a log.
const (
	// LogAuto, the zero value, keeps a log of containers that may still be there when somebody asks: of all but those
	// that are removed when they have ended (AutoRemove) and are attached.
	LogAuto LogMode = ""
	// LogNone keeps none.
	LogNone LogMode = "none"
	// LogFile keeps one.
	LogFile LogMode = "file"
)

// LogFull says what becomes of output for which the disk has no room.
type LogFull string

const (
	// LogDrop drops it, and tells in the log how much that was when there is room again. The container goes on. So does
	// Docker, which does not tell. The zero value means LogDrop.
	LogDrop LogFull = "drop"
	// LogBlock lets the container wait in its write until there is room, and tells that in the log. Nothing is lost.
	LogBlock LogFull = "block"
)

// LogSpec says what log a container keeps of its output. The zero LogSpec keeps at most 64 MB of most containers.
//
// A log has what a container writes to the streams that the spec does not take itself by Stdout and Stderr. Its format is
// in docs/log-format.md.
type LogSpec struct {
	// Mode says whether there is a log. The zero value is LogAuto.
	Mode LogMode `json:",omitempty"`
	// MaxSize is the size in bytes at which a file is full and the next one is begun. Zero means 16 MiB; negative means
	// never: the log grows without bound.
	MaxSize int64 `json:",omitempty"`
	// MaxFiles is how many files are kept; the oldest goes when another one is begun. Zero means 4, else 2 to 100.
	MaxFiles int `json:",omitempty"`
	// Full says what happens when the disk is full. The zero value means LogDrop.
	Full LogFull `json:",omitempty"`
}

const (
	defaultLogSize  = 16 << 20
	defaultLogFiles = 4
	maxLogFiles     = 100
)

// size is the size in bytes at which files are rotated, 0 for never.
func (s *LogSpec) size() int64 {
	switch {
	case s.MaxSize == 0:
		return defaultLogSize
	case s.MaxSize < 0:
		return 0
	}
	return s.MaxSize
}

// files is how many files are kept.
func (s *LogSpec) files() int {
	if s.MaxFiles == 0 {
		return defaultLogFiles
	}
	return s.MaxFiles
}

func (s *LogSpec) validate() error {
	switch {
	case s.Mode != LogAuto && s.Mode != LogNone && s.Mode != LogFile:
		return fmt.Errorf("the Mode %q is unknown", s.Mode)
	case s.Full != "" && s.Full != LogDrop && s.Full != LogBlock:
		return fmt.Errorf("the policy Full %q is unknown", s.Full)
	case s.MaxFiles < 0 || s.MaxFiles == 1 || s.MaxFiles > maxLogFiles:
		return fmt.Errorf("%d MaxFiles: a log has 2 to %d files; a negative MaxSize keeps it in one", s.MaxFiles, maxLogFiles)
	}
	return nil
}

// keepsLog says whether the container has a log.
func (s *ContainerSpec) keepsLog() bool {
	return s.Log.Mode == LogFile || s.Log.Mode == LogAuto && (!s.AutoRemove || s.Detached || s.TTY && !s.takesStreams())
}

// logged says which streams go to the log. A terminal has but one.
func (s *ContainerSpec) logged() (stdout, stderr bool) {
	switch {
	case !s.keepsLog() || s.TTY && s.takesStreams():
		return false, false
	case s.TTY:
		return true, false
	}
	return s.Stdout == nil, s.Stderr == nil
}

// takesStreams says whether the importing program has streams of the container.
func (s *ContainerSpec) takesStreams() bool {
	return s.Stdin != nil || s.Stdout != nil || s.Stderr != nil
}

// LogStream is where a record of a log comes from.
type LogStream uint8

// The streams of a log.
const (
	LogStdout LogStream = LogStream(logfile.Stdout)
	LogStderr LogStream = LogStream(logfile.Stderr)
	// LogNotes are records about the log itself, see LogNote.
	LogNotes LogStream = LogStream(logfile.Notes)
)

// String returns "stdout", "stderr" or "note".
func (s LogStream) String() string {
	switch s {
	case LogStdout:
		return "stdout"
	case LogStderr:
		return "stderr"
	case LogNotes:
		return "note"
	}
	return fmt.Sprintf("stream %d", uint8(s))
}

// LogNoteKind says what a note is about.
type LogNoteKind uint64

// The kinds of notes. There may be more in later versions.
const (
	LogDropped LogNoteKind = logfile.NoteDropped // output was dropped because the disk was full
	LogBlocked LogNoteKind = logfile.NoteBlocked // the container was blocked because the disk was full, and goes on
)

// A LogNote tells what happened to a log.
type LogNote struct {
	Kind LogNoteKind
	// Bytes and Reads are how much was dropped: bytes, and how many records they would have been.
	Bytes, Reads uint64
}

// String tells it in a sentence.
func (n LogNote) String() string {
	switch n.Kind {
	case LogDropped:
		return fmt.Sprintf("%d bytes of output were dropped: the disk was full", n.Bytes)
	case LogBlocked:
		return "the container was blocked: the disk was full"
	}
	return fmt.Sprintf("note of kind %d", n.Kind)
}

// A LogRecord is what a container wrote to a stream, as it was read at once: part of a line, or several.
type LogRecord struct {
	// Time is when it was read, by the host's clock.
	Time   time.Time
	Stream LogStream
	// Data are the exact bytes, at most 16 kB as written by this version. They are valid until the loop goes on: clone
	// what is to stay. Nil for notes.
	Data []byte
	// Run is the number of the container's start, from 1, and Seq the record's number in it, from 1, over both streams.
	Run, Seq uint64
	// Missed is how many records before this one are lost to the reader: rotated away before it came to them, dropped
	// (a note follows these) or in a damaged part.
	Missed uint64
	// Truncated says that somebody truncated the log before this record, other than by rotation.
	Truncated bool
	// Note is what a record of the stream LogNotes says.
	Note LogNote
}

// LogOptions say what of a log is read; nil means all that there is.
type LogOptions struct {
	// Follow goes on with what the container writes until it has ended, as `docker logs -f` does: what another start
	// writes is not waited for. Of a container that is not running there is nothing to wait for.
	Follow bool
	// Since and Until leave out what was written before and after. Zero leaves out nothing. With Follow, Until ends the
	// waiting.
	Since, Until time.Time
	// Tail begins with that many last lines, both streams together. Zero means all lines, a negative number none. Finding
	// them takes reading the headers of the newest file: some milliseconds for a log of the default size, and a second
	// or so for a file of 10 GB that is never rotated. A line of one stream that began more than 128 kB of log earlier
	// than the other lines may lack its beginning.
	Tail int
	// Stdout and Stderr choose streams; both false means both. Notes are in any case among the records.
	Stdout, Stderr bool

	opened func() // called when it is settled which record is the first
}

// streams are the streams to read; nil means all.
func (o *LogOptions) streams() []logfile.Stream {
	switch {
	case o.Stdout == o.Stderr:
		return nil
	case o.Stdout:
		return []logfile.Stream{logfile.Stdout}
	}
	return []logfile.Stream{logfile.Stderr}
}

// Logs reads the container's log: records of both streams in the order in which they were written, whether the container
// runs or not and whichever program runs it. Any number of readers may read at once, none takes anything from another,
// and none slows the container down. A reader needs the same memory however long the log is.
//
// An error is the last that a loop is given, but for one that matches ErrCorrupt: a loop that goes on after it gets what
// follows the damaged part. The error matches fs.ErrNotExist if the container was removed, also while it was read unless
// all had been read by then, errors.ErrUnsupported if it keeps no log, and is that of ctx when that is done.
func (c *Container) Logs(ctx context.Context, opts *LogOptions) iter.Seq2[LogRecord, error] {
	return func(yield func(LogRecord, error) bool) {
		for rec, err := range c.logs(ctx, opts) {
			if !yield(rec, c.fail("read the log of", err)) {
				return
			}
		}
	}
}

func (c *Container) logs(ctx context.Context, opts *LogOptions) iter.Seq2[LogRecord, error] {
	if opts == nil {
		opts = &LogOptions{}
	}
	return func(yield func(LogRecord, error) bool) {
		if err := ctx.Err(); err != nil {
			yield(LogRecord{}, err)
			return
		}
		var ended <-chan struct{}
		if opts.Follow {
			// Before the log is opened: what is written when the end is known, is there.
			var stop func()
			ended, stop = c.logEnded(ctx)
			defer stop()
		}
		r, st, err := c.openLog(opts)
		if err != nil {
			yield(LogRecord{}, err)
			return
		}
		if opts.opened != nil {
			opts.opened()
		}
		if r == nil {
			return
		}
		defer r.Close()
		until := opts.Until
		last := !opts.Follow // no more is written than what is read now
		for {
			rec, err := r.Next()
			switch {
			case err == nil && !until.IsZero() && rec.Time().After(until):
				return
			case err == nil:
				if ctx.Err() != nil {
					yield(LogRecord{}, ctx.Err())
					return
				}
				if !yield(newLogRecord(&rec), nil) {
					return
				}
			case errors.Is(err, logfile.ErrCorrupt):
				if !yield(LogRecord{}, errors.Join(ErrCorrupt, err)) {
					return
				}
			case err != io.EOF:
				yield(LogRecord{}, err)
				return
			case last:
				if err := c.logComplete(r, st); err != nil {
					yield(LogRecord{}, err)
				}
				return
			case isClosed(ended) || !until.IsZero() && time.Now().After(until):
				last = true
			default:
				if err := waitForLog(ctx, r, ended, until); err != nil {
					yield(LogRecord{}, err)
					return
				}
			}
		}
	}
}

// waitForLog waits until there may be more, or until is over.
func waitForLog(ctx context.Context, r *logfile.Reader, ended <-chan struct{}, until time.Time) error {
	if until.IsZero() {
		return r.Wait(ctx, ended)
	}
	bounded, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	r.Wait(bounded, ended)
	return ctx.Err()
}

func newLogRecord(rec *logfile.Record) LogRecord {
	out := LogRecord{Time: rec.Time(), Stream: LogStream(rec.Stream), Data: rec.Data, Missed: rec.Missed, Truncated: rec.Truncated}
	out.Run, out.Seq = logfile.SplitSequence(rec.Seq)
	if rec.Stream == logfile.Notes {
		n := logfile.ParseNote(rec.Data)
		out.Data, out.Note = nil, LogNote{Kind: LogNoteKind(n.Kind), Bytes: n.Bytes, Reads: n.Reads}
	}
	return out
}

// openLog opens the container's log, or returns nil if nothing was written yet and nothing can be waited for.
func (c *Container) openLog(opts *LogOptions) (*logfile.Reader, *containerState, error) {
	st, err := c.current()
	if err != nil {
		return nil, nil, err
	}
	r, err := logfile.Open(c.logDir(), &logfile.Options{Since: opts.Since, Until: opts.Until, Tail: opts.Tail, Streams: opts.streams()})
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return r, st, err
	}
	if _, err := c.eng.readState(c.id); err != nil {
		return nil, nil, err // removed
	}
	if !st.Spec.keepsLog() {
		return nil, nil, &UnsupportedError{Feature: "reading the output of a container without a log", Fix: "set Log.Mode to LogFile when it is made"}
	}
	return nil, st, nil // never started
}

// logComplete is called when the log has been read to its end. It returns an error if the container was removed and there
// may have been more.
func (c *Container) logComplete(r *logfile.Reader, st *containerState) error {
	if !r.Removed(st.Spec.Log.size()) {
		return nil
	}
	_, err := c.eng.readState(c.id)
	return err
}

// logDir is the directory of the container's log.
func (c *Container) logDir() string { return filepath.Join(c.eng.containerDir(c.id), "log") }

// logEnded returns a channel that is closed when the container is not running, and with that all that its log will get
// is in it. It is not closed because ctx is done. stop frees what it takes to know.
func (c *Container) logEnded(ctx context.Context) (ended <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ch, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		if c.wait(ctx); ctx.Err() == nil {
			close(ch)
		}
	}()
	return ch, func() {
		cancel()
		<-done
	}
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
