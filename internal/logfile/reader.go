package logfile

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"
)

// Options say what of a log is read. The zero Options read all of it.
type Options struct {
	// Since leaves out what was written before; zero leaves out nothing. The times are those of the host's clock, which
	// may have been set back in between: each record counts for itself.
	Since time.Time
	// Until leaves out, of the lines that Tail counts, what was written after. Next does not look at it: who waits for
	// new records has to look at a clock as well.
	Until time.Time
	// Tail begins with that many last lines. Zero means all, and a negative number none: what is written from now on.
	Tail int
	// Streams are the streams to read. Empty means all. Notes are always read.
	Streams []Stream
}

// wants says whether a record is read at all.
func (o *Options) wants(h *Header) bool {
	return (o.Since.IsZero() || !h.before(o.Since)) && (h.Stream == Notes || len(o.Streams) == 0 || slices.Contains(o.Streams, h.Stream))
}

// A Record is what Next returns.
type Record struct {
	Header
	// Data is the payload, valid until the next call of Next.
	Data []byte
	// Missed is how many records there were between the last record and this one that the reader did not see because they
	// had been rotated away, were dropped, or lie behind damage. It is a lower bound where starts of the container lie
	// between.
	Missed uint64
	// Truncated says that the file was truncated between the last record and this one.
	Truncated bool
}

// A Reader reads a log in the order in which it was written. It is not for use by several goroutines at once.
type Reader struct {
	dir  *os.Root
	opts Options

	cur  *file
	off  int64 // in cur, of the next record
	last uint64
	// floor is the sequence number up to which everything has been delivered before: after a truncation, some of it may
	// be met again.
	floor     uint64
	dead      bool // what follows in cur is damaged
	finishing bool // cur is not written any more, and was read once since that was known
	skip      [Notes]int
	missed    uint64
	truncated bool

	watch *watch
}

// Open opens the log in a directory. The error matches fs.ErrNotExist if there is no such directory; one without files
// is an empty log. The directory may be renamed and removed while it is read.
func Open(dir string, opts *Options) (*Reader, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	r := &Reader{dir: root}
	if opts != nil {
		r.opts = *opts
	}
	if err := r.begin(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Close frees the reader's descriptors.
func (r *Reader) Close() error {
	if r.cur != nil {
		r.cur.close()
		r.cur = nil
	}
	if r.watch != nil {
		r.watch.close()
		r.watch = nil
	}
	return r.dir.Close()
}

// Next returns the next record. The error is io.EOF if there is none at present; more may come, see Wait. If it matches
// ErrCorrupt, Next can be called again: it goes on with the next file. After other errors reading cannot go on.
func (r *Reader) Next() (Record, error) {
	for {
		rec, err := r.read()
		switch {
		case err == nil:
			if out, ok := r.take(&rec); ok {
				return out, nil
			}
		case errors.Is(err, ErrCorrupt):
			r.dead = true
			return Record{}, err
		case err == errTruncated:
			r.off, r.dead, r.truncated, r.floor, r.skip = 0, false, true, r.last, [Notes]int{}
			r.cur.anchored, r.cur.buf = false, nil
		case err == errEnd:
			more, err := r.advance()
			if err != nil {
				return Record{}, err
			}
			if !more {
				return Record{}, io.EOF
			}
		default:
			return Record{}, err
		}
	}
}

// read reads the next record of the present file.
func (r *Reader) read() (record, error) {
	if r.cur == nil {
		return record{}, errEnd
	}
	if r.dead {
		// Unless somebody has helped by truncating it.
		if err := r.cur.refresh(); err != nil {
			return record{}, err
		}
		if r.cur.size < r.off {
			return record{}, errTruncated
		}
		return record{}, errEnd
	}
	rec, err := r.cur.record(r.off, true)
	if err == nil {
		if rec.start > r.off {
			r.truncated = true // a hole
		}
		r.cur.setAnchor(&rec)
		r.off = rec.end
	}
	return rec, err
}

// take notes that the record was met and says whether it is to be delivered.
func (r *Reader) take(rec *record) (Record, bool) {
	if r.floor != 0 {
		if rec.Seq <= r.floor {
			return Record{}, false
		}
		r.floor = 0
	}
	r.missed += missing(r.last, rec.Seq)
	r.last = rec.Seq
	if !r.opts.wants(&rec.Header) {
		return Record{}, false
	}
	data := rec.data
	if rec.Stream != Notes {
		for skip := &r.skip[rec.Stream]; *skip > 0; *skip-- {
			i := bytes.IndexByte(data, '\n')
			if i < 0 {
				return Record{}, false
			}
			if data = data[i+1:]; len(data) == 0 {
				*skip--
				return Record{}, false
			}
		}
	}
	out := Record{Header: rec.Header, Data: data, Missed: r.missed, Truncated: r.truncated}
	r.missed, r.truncated = 0, false
	return out, true
}

// missing is how many records must have been between two.
func missing(last, seq uint64) uint64 {
	if last == 0 || seq <= last {
		return 0
	}
	lastRun, lastN := SplitSequence(last)
	run, n := SplitSequence(seq)
	if run == lastRun {
		return n - lastN - 1
	}
	return max(n, 1) - 1
}

// advance is called when the present file has been read to its end. It reports whether there may be more: in the same
// file or in another one.
func (r *Reader) advance() (bool, error) {
	if r.cur == nil {
		f, err := r.oldest(time.Time{})
		if f == nil {
			return false, err
		}
		r.use(f, 0)
		return true, nil
	}
	info, err := r.dir.Lstat("0")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err == nil && os.SameFile(info, r.cur.info) {
		return false, nil
	}
	if !r.finishing && !r.dead {
		// It was renamed, and is not written any more. What was written before that and after it was read comes first.
		r.finishing = true
		return true, nil
	}
	next, err := r.successor()
	if next == nil {
		return false, err
	}
	r.use(next, 0)
	return true, nil
}

// use makes f the file that is read.
func (r *Reader) use(f *file, off int64) {
	if r.cur != nil {
		r.cur.close()
	}
	r.cur, r.off, r.dead, r.finishing = f, off, false, false
}

// successor opens the file that follows the present one, or returns nil if there is none yet.
//
// Files move upwards, to higher names, and are looked at upwards: none is overlooked that is renamed meanwhile, though one
// may be seen twice. The oldest that is newer than the present one is the one.
func (r *Reader) successor() (*file, error) {
	var next *file
	err := r.upwards(func(f *file) (keep, more bool) {
		if os.SameFile(f.info, r.cur.info) {
			return false, false
		}
		if first, ok := f.first(); ok && first <= r.last {
			return false, false
		}
		if next != nil {
			next.close()
		}
		next = f
		return true, true
	})
	if err != nil && next != nil {
		next.close()
		return nil, err
	}
	return next, err
}

// oldest opens the oldest file that was written to at or after since, or returns nil if there is none.
func (r *Reader) oldest(since time.Time) (*file, error) {
	var found *file
	err := r.upwards(func(f *file) (keep, more bool) {
		if found != nil && !f.writtenSince(since) {
			return false, false
		}
		if found != nil {
			found.close()
		}
		found = f
		return true, true
	})
	if err != nil && found != nil {
		found.close()
		return nil, err
	}
	return found, err
}

// writtenSince goes by the file's time of modification, which the kernel takes from a coarser clock than records have.
func (f *file) writtenSince(t time.Time) bool {
	return t.IsZero() || !f.info.ModTime().Add(time.Second).Before(t)
}

// first returns the sequence number of the first record, if there is a whole one.
func (f *file) first() (uint64, bool) {
	rec, err := f.record(0, false)
	return rec.Seq, err == nil
}

// maxFiles is how many files of a log are looked at; far more than any log has.
const maxFiles = 10000

// upwards opens one file after the other, from the newest to the oldest, and calls visit, which says whether it keeps the
// file open and whether it wants more. While the files are renamed, one of the names may be missing.
func (r *Reader) upwards(visit func(*file) (keep, more bool)) error {
	highest := -1
	dir, err := r.dir.Open(".")
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed
		}
		return err
	}
	names, err := dir.Readdirnames(-1)
	dir.Close()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil && n >= 0 && n < maxFiles && strconv.Itoa(n) == name {
			highest = max(highest, n)
		}
	}
	for i := 0; i <= highest+1; i++ {
		f, err := r.open(strconv.Itoa(i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		highest = max(highest, min(i, maxFiles)) // one that is being renamed
		keep, more := visit(f)
		if !keep {
			f.close()
		}
		if !more {
			return nil
		}
	}
	return nil
}

// open opens a file of the directory by name.
func (r *Reader) open(name string) (*file, error) {
	f, err := r.dir.OpenFile(name, openFlags, 0)
	if err != nil {
		return nil, err
	}
	return openFile(f, name)
}

// Removed reports whether the directory is gone, and what the reader holds is not known to be all: size is the size at
// which files are rotated, and a file that has not reached it was the last one. Zero or less means that none is.
func (r *Reader) Removed(size int64) bool {
	if _, err := r.dir.Lstat("0"); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if r.cur == nil {
		return true
	}
	return size > 0 && (r.off >= size || r.dead)
}
