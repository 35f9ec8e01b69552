package logfile

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// WriterOptions say how a Writer writes.
type WriterOptions struct {
	// Run is the number of the container's start, from 1. Zero means 1.
	Run uint64
	// MaxSize is the size in bytes at which a file is renamed and a new one begun. Zero or less means never.
	MaxSize int64
	// MaxFiles is how many files there are at most, at least 2 with a MaxSize. Zero means 4.
	MaxFiles int
	// Block waits for room when the disk is full. Otherwise what has no room is dropped, and so is in both cases what
	// cannot be written for another reason.
	Block bool
	// Pause is the time between two attempts to write to a full disk. Zero means 100 ms.
	Pause time.Duration
	// Now gives the time of a record. Nil means time.Now.
	Now func() time.Time
}

// A Writer writes a log as the keeper of a container does. There is one at a time for a directory.
type Writer struct {
	dir  *os.Root
	opts WriterOptions
	f    *os.File // nil when it was renamed, and no new one could be made
	off  int64
	n    uint64 // of the last record
	buf  []byte

	note    Note // to be written before the next record; Kind 0 means none
	stopped atomic.Bool
}

// NewWriter goes on with the log in the directory, or begins one. What stands behind the last whole record is cut off.
func NewWriter(dir string, opts WriterOptions) (*Writer, error) {
	if opts.Run == 0 {
		opts.Run = 1
	}
	if opts.MaxFiles == 0 {
		opts.MaxFiles = 4
	}
	if opts.MaxSize > 0 && opts.MaxFiles < 2 {
		return nil, errors.New("a log that is rotated has at least two files")
	}
	if opts.Pause == 0 {
		opts.Pause = 100 * time.Millisecond
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	w := &Writer{dir: root, opts: opts}
	if err = w.resume(); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (w *Writer) resume() (err error) {
	w.f, err = w.dir.OpenFile("0", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if w.off, _, err = End(w.f); err != nil && !errors.Is(err, ErrCorrupt) {
		return err
	}
	return w.f.Truncate(w.off)
}

// Close frees the descriptors.
func (w *Writer) Close() error {
	if w.f != nil {
		w.f.Close()
	}
	return w.dir.Close()
}

// Stop ends a Write that waits for room, and all that would. It may be called while Write runs.
func (w *Writer) Stop() { w.stopped.Store(true) }

// Write writes what was read from a stream, as one record for every 16 kB. It returns an error only if the disk is full
// and the Writer was stopped while it was blocked: what is dropped is told in the log.
func (w *Writer) Write(stream Stream, data []byte) error {
	for {
		part := data[:min(len(data), MaxWrite)]
		if err := w.writeOne(stream, part); err != nil {
			return err
		}
		if data = data[len(part):]; len(data) == 0 {
			return nil
		}
	}
}

// Dropped returns how many bytes and reads were dropped since that was last told in the log.
func (w *Writer) Dropped() (bytes, reads uint64) { return w.note.Bytes, w.note.Reads }

func (w *Writer) writeOne(stream Stream, data []byte) error {
	now, blocked := w.opts.Now(), false
	for {
		// What has not been told yet goes before the record, and not without it: room for a note is not room for output.
		w.buf = w.buf[:0]
		n := w.n
		if w.note.Kind != 0 {
			n++
			w.append(Notes, n, now, w.note.Append(nil))
		}
		n++
		w.append(stream, n, now, data)
		err := w.put()
		if err == nil {
			w.n, w.note = n, Note{}
			if blocked {
				w.note.Kind = NoteBlocked
				w.buf = w.buf[:0]
				w.append(Notes, n+1, w.opts.Now(), w.note.Append(nil))
				if w.put() == nil { // otherwise before the next record
					w.n, w.note = n+1, Note{}
				}
			}
			w.rotate()
			return nil
		}
		if !w.opts.Block || !full(err) {
			w.n++ // what is dropped has its number too: it is missing then
			w.note.Kind = NoteDropped
			w.note.Bytes += uint64(len(data))
			w.note.Reads++
			return nil
		}
		if w.stopped.Load() {
			return fmt.Errorf("stopped while the disk is full: %w", err)
		}
		blocked = true
		time.Sleep(w.opts.Pause)
	}
}

// append appends a record to what put writes.
func (w *Writer) append(stream Stream, n uint64, now time.Time, data []byte) {
	h := Header{Stream: stream, Length: len(data), Seq: Sequence(w.opts.Run, n), Sec: now.Unix(), Nsec: int64(now.Nanosecond())}
	w.buf = append(h.Append(w.buf), data...)
}

// put writes records at the offset, all of them or nothing.
func (w *Writer) put() error {
	if w.f == nil {
		f, err := w.dir.OpenFile("0", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		w.f, w.off = f, 0
	}
	if _, err := w.f.WriteAt(w.buf, w.off); err != nil {
		return errors.Join(err, w.f.Truncate(w.off))
	}
	w.off += int64(len(w.buf))
	return nil
}

// rotate makes room for a new file when the present one is large enough. It is never written again then.
func (w *Writer) rotate() {
	if w.opts.MaxSize <= 0 || w.off < w.opts.MaxSize {
		return
	}
	for i := w.opts.MaxFiles - 1; i > 0; i-- {
		w.dir.Rename(strconv.Itoa(i-1), strconv.Itoa(i)) // fails for those that do not exist yet
	}
	w.f.Close()
	w.f = nil
	// Where this fails, the next record is tried again.
	if f, err := w.dir.OpenFile("0", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
		w.f, w.off = f, 0
	}
}

// full reports whether an error says that there is no room.
func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }
