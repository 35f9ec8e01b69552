package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"time"
)

// A Record is what one Append has added.
type Record struct {
	// Cursor is the place after the record.
	Cursor Cursor
	// Lost is how many records its writer could not write before this one.
	Lost uint64
	// Payload is valid until the iteration goes on.
	Payload []byte
}

// A Gap says that records between two places were removed before they were read, or that the journal was made anew. It is
// no end: the iteration goes on with the oldest record that there is. After a power failure some records may come again.
type Gap struct {
	// After is the place that was read last.
	After Cursor
}

// Error says where the gap is.
func (g *Gap) Error() string {
	return fmt.Sprintf("journal: records after %v were removed before they were read", g.After)
}

// ReadOptions say what to read. The zero value means all records that there are.
type ReadOptions struct {
	// After is where to begin. The zero Cursor is before the oldest record that there is.
	After Cursor
	// Follow waits for further records.
	Follow bool
	// Since allows to leave out generations to which nothing was written since. Zero leaves out none.
	Since time.Time
}

// poll is how often a follower looks for what nobody has told it of.
const (
	pollWatched   = time.Second
	pollUnwatched = 50 * time.Millisecond
)

// Read goes through the records in the order in which they were appended; those of one writer are in the order of its calls.
// What is torn or damaged is left out. An error that is no *Gap is the last thing that is given: with Follow, and when
// the context ends, it is that of the context.
func (j *Journal) Read(ctx context.Context, opts ReadOptions) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		r := &reader{j: j, opts: opts}
		defer r.close()
		if err := r.run(ctx, yield); err != nil {
			yield(Record{}, err)
		}
	}
}

// reader is one iteration.
type reader struct {
	j    *Journal
	opts ReadOptions
	end  Cursor // without Follow: what comes after is not read

	limit int64 // of a generation
	watch *watch
	scan  scanner
	gen   uint64   // of file
	file  *os.File // or nil
}

func (r *reader) close() {
	if r.file != nil {
		r.file.Close()
	}
	if r.watch != nil {
		r.watch.close()
	}
}

// run returns nil when the iteration is over or was broken off.
func (r *reader) run(ctx context.Context, yield func(Record, error) bool) (err error) {
	if r.opts.Follow {
		// Before the first look, so that nothing comes between the two. Without it a follower looks more often.
		r.watch, _ = newWatch(r.j.dir)
	} else if r.end, err = r.j.End(); err != nil {
		return err
	}
	for r.file == nil {
		more, err := r.begin(yield)
		if err != nil || !more {
			return err
		}
		if r.file == nil && !r.opts.Follow {
			return nil
		}
		if r.file == nil {
			if err := r.wait(ctx); err != nil {
				return err
			}
		}
	}
	for looked := false; ; {
		more, err := r.records(ctx, yield)
		if err != nil || !more {
			return err
		}
		next, err := r.later()
		switch {
		case err != nil:
			return err
		case next != 0 && !looked:
			looked = true // what came to the earlier one before there was a later one
		case next != 0:
			looked = false
			if more, err := r.move(next, yield); err != nil || !more {
				return err
			}
		case !r.opts.Follow:
			return nil
		default:
			if err := r.wait(ctx); err != nil {
				return err
			}
		}
	}
}

// begin opens the generation to begin with. Where there is none yet the file stays nil.
func (r *reader) begin(yield func(Record, error) bool) (more bool, err error) {
	f, err := r.j.bounds(false)
	if f == nil || err != nil {
		return true, err
	}
	r.limit = f.FileSize
	after := r.opts.After
	for r.file == nil {
		list, err := r.j.generations()
		if err != nil || len(list) == 0 {
			return true, err
		}
		gen := r.first(list)
		if gen == 0 {
			// The journal was made anew, with the clock set back.
			r.opts.After = Cursor{}
			if gen = r.first(list); !yield(Record{}, &Gap{After: after}) {
				return false, nil
			}
			after = Cursor{}
		}
		if err := r.open(gen); err != nil && !errors.Is(err, fs.ErrNotExist) { // else it was removed since it was listed
			return false, err
		}
	}
	if after == (Cursor{}) {
		return true, nil
	}
	missed := r.gen != after.Generation+1 || after.Offset < r.limit
	if r.gen == after.Generation {
		info, err := r.file.Stat()
		if err != nil {
			return false, err
		}
		if missed = info.Size() < after.Offset; !missed {
			return true, r.scan.begin(r.file, after.Offset)
		}
	}
	if missed {
		return yield(Record{}, &Gap{After: after}), nil
	}
	return true, nil
}

// first chooses the generation to begin with, or 0 if all are from before the place to begin at.
func (r *reader) first(list []uint64) uint64 {
	for i, gen := range list {
		if gen >= r.opts.After.Generation && (r.opts.After != (Cursor{}) || i == len(list)-1 || !r.older(gen)) {
			return gen
		}
	}
	return 0
}

// older says whether nothing was written to a generation since the time that is asked for. The time of a file is as coarse as
// the kernel's tick, and clocks are set.
func (r *reader) older(gen uint64) bool {
	if r.opts.Since.IsZero() {
		return false
	}
	info, err := os.Lstat(r.j.path(gen))
	return err == nil && info.ModTime().Before(r.opts.Since.Add(-10*time.Second))
}

// later returns the generation after the one that is being read, or 0.
func (r *reader) later() (uint64, error) {
	list, err := r.j.generations()
	for _, gen := range list {
		if gen > r.gen && (r.opts.Follow || gen <= r.end.Generation) {
			// A long directory is listed in parts: what was made between two may be missing.
			if _, err := os.Lstat(r.j.path(r.gen + 1)); err == nil {
				gen = r.gen + 1
			}
			return gen, nil
		}
	}
	if r.opts.Follow && len(list) > 0 && list[len(list)-1] < r.gen {
		return list[0], nil // the journal was made anew, with the clock set back
	}
	return 0, err
}

// move goes on to a later generation.
func (r *reader) move(next uint64, yield func(Record, error) bool) (more bool, err error) {
	after := Cursor{r.gen, r.scan.off}
	// A generation is full when the next one is made. One that is not is a writer's who was stopped for so long that the
	// generation had come and gone before he made it.
	full := r.scan.off+int64(len(r.scan.buf)) >= r.limit
	if err := r.open(next); errors.Is(err, fs.ErrNotExist) {
		return true, nil // removed since it was listed: there are later ones
	} else if err != nil {
		return false, err
	}
	if next != after.Generation+1 || !full {
		return yield(Record{}, &Gap{After: after}), nil
	}
	return true, nil
}

// open takes a generation in place of the present one, if there is such a file.
func (r *reader) open(gen uint64) error {
	f, err := openFile(r.j.path(gen))
	if err != nil {
		return err
	}
	if r.file != nil {
		r.file.Close()
	}
	r.file, r.gen = f, gen
	return r.scan.begin(f, 0)
}

// records gives the records that are there.
func (r *reader) records(ctx context.Context, yield func(Record, error) bool) (more bool, err error) {
	for {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		rec, start, err := r.scan.next(r.limit)
		switch {
		case errors.Is(err, io.EOF):
			return true, nil
		case errors.Is(err, errMore):
			continue
		case err != nil:
			return false, err
		}
		rec.Cursor.Generation = r.gen
		if !r.opts.Follow && (Cursor{r.gen, start}).Compare(r.end) >= 0 {
			return false, nil
		}
		if !yield(rec, nil) {
			return false, nil
		}
	}
}

// wait waits for a change of the journal.
func (r *reader) wait(ctx context.Context) error {
	if r.watch == nil {
		r.watch, _ = newWatch(r.j.dir) // the directory may be there by now
		if r.watch != nil {
			return context.Cause(ctx) // look once more: the watch is newer than the last look
		}
	}
	if r.watch != nil {
		if r.watch.wait(ctx, pollWatched) {
			return context.Cause(ctx)
		}
		r.watch.close()
		r.watch = nil
	}
	timer := time.NewTimer(pollUnwatched)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return context.Cause(ctx)
}

// scanner finds the records in a file that may grow. It needs memory for one record, whatever is in the file.
type scanner struct {
	file io.ReaderAt
	off  int64  // of buf in the file
	buf  []byte // read and not used yet
	skip bool   // what comes up to the next newline is of a line that is too long
	mem  []byte
}

// chunk is how much is read at once.
const chunk = 32 << 10

// errMore means that a part of the file was passed over without a record in it.
var errMore = errors.New("go on")

// begin makes the scanner begin at an offset, or before it where that is within a line: End may have given a place in the
// middle of a record that was being written.
func (s *scanner) begin(file io.ReaderAt, off int64) error {
	*s = scanner{file: file, mem: s.mem}
	if s.mem == nil {
		s.mem = make([]byte, 0, chunk+maxFrame)
	}
	s.buf = s.mem
	if off <= 0 {
		return nil
	}
	from := max(off-maxFrame, 0)
	b := make([]byte, off-from)
	if n, err := file.ReadAt(b, from); n < len(b) && err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
		s.off = from + int64(i) + 1
	} else {
		s.off, s.skip = off, true
	}
	return nil
}

// next returns the next record that counts and where it begins, io.EOF at the present end, or errMore.
func (s *scanner) next(limit int64) (Record, int64, error) {
	for {
		i := bytes.IndexByte(s.buf, '\n')
		if i < 0 {
			if len(s.buf) > maxFrame || s.skip {
				s.skip = true
				s.off += int64(len(s.buf))
				s.buf = s.buf[:0]
			}
			more, err := s.fill(limit)
			switch {
			case err != nil:
				return Record{}, 0, err
			case !more:
				return Record{}, 0, io.EOF
			case s.skip:
				return Record{}, 0, errMore
			}
			continue
		}
		line, start := s.buf[:i], s.off-1 // the record begins with the newline before its line
		s.buf = s.buf[i+1:]
		s.off += int64(i) + 1
		if s.skip {
			s.skip = false
			continue
		}
		if start >= limit {
			s.buf = s.buf[:0]
			return Record{}, 0, io.EOF
		}
		if lost, payload, ok := parse(line); ok {
			return Record{Cursor: Cursor{Offset: s.off}, Lost: lost, Payload: payload}, start, nil
		}
	}
}

// fill reads on. What no record that counts can reach is not read.
func (s *scanner) fill(limit int64) (more bool, err error) {
	n := copy(s.mem[:cap(s.mem)], s.buf)
	s.buf = s.mem[:n]
	at := s.off + int64(n)
	room := min(int64(cap(s.mem)-n), limit+maxFrame-at)
	if room <= 0 {
		return false, nil
	}
	got, err := s.file.ReadAt(s.mem[n:n+int(room)], at)
	s.buf = s.mem[:n+got]
	if got > 0 || errors.Is(err, io.EOF) {
		err = nil
	}
	return got > 0, err
}
