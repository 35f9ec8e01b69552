package logfile

import (
	"bytes"
	"errors"
	"math"
)

// begin finds the place in the log at which the options say that reading begins.
func (r *Reader) begin() error {
	if r.opts.Tail != 0 {
		return r.tail(max(r.opts.Tail, 0))
	}
	f, err := r.oldest(r.opts.Since)
	if f == nil || err != nil {
		return err
	}
	r.use(f, 0)
	if r.opts.Since.IsZero() {
		return nil
	}
	for {
		rec, err := f.record(r.off, false)
		if err != nil || !rec.before(r.opts.Since) {
			return startError(err)
		}
		r.off, r.last = rec.end, rec.Seq
	}
}

// startError is the error of looking for the beginning: Next meets damage again and reports it.
func startError(err error) error {
	if err == errEnd || err == errTruncated || errors.Is(err, ErrCorrupt) {
		return nil
	}
	return err
}

// tail begins with the n last lines.
//
// Records have no marks by which they could be found backwards, and their payloads must not be searched for them. So of
// each file, the newest first, the headers are read forwards, noting where each part of at least markStep bytes begins,
// then the lines are counted part by part from the end. For a log of the default size that is some milliseconds; for a
// file without rotation it takes as long as it takes to read all its headers. Memory is bounded by maxMarks.
func (r *Reader) tail(n int) error {
	if n == 0 {
		return r.atEnd()
	}
	lines := 0
	var seen [Notes]bool // streams of which the last byte is known
	before := uint64(math.MaxUint64)
	done := false
	var failed error
	err := r.upwards(func(f *file) (keep, more bool) {
		first, ok := f.first()
		if ok && first >= before || !ok && r.cur != nil {
			return false, true // seen before it was renamed, or empty
		}
		if r.cur != nil && !f.writtenSince(r.opts.Since) {
			return false, false
		}
		before = first
		if !ok {
			before = math.MaxUint64
		}
		r.use(f, 0)
		marks, err := f.marks()
		if err != nil {
			failed = err
			return true, false
		}
		for i := len(marks) - 2; i >= 0; i-- {
			part := r.count(f, marks[i], marks[i+1])
			for s := range seen {
				if part.used[s] && !seen[s] {
					seen[s] = true
					if part.open[s] && lines < n {
						lines++ // a line that has not ended yet
					}
				}
			}
			if lines += part.lines; lines > n {
				r.off, done = marks[i], true
				r.skipLines(f, marks[i], lines-n)
				return true, false
			}
		}
		return true, true
	})
	if err == nil {
		err = failed
	}
	if err == nil && !done && r.cur != nil {
		r.off = 0
	}
	return err
}

// atEnd begins behind the last record.
func (r *Reader) atEnd() error {
	return r.upwards(func(f *file) (keep, more bool) {
		off, last, _ := f.end() // what is damaged is met again by Next
		r.use(f, off)
		r.last = last
		return true, false
	})
}

const (
	markStep = 128 << 10
	maxMarks = 512
)

// marks returns where parts of the file begin, and where the last one ends.
func (f *file) marks() ([]int64, error) {
	step, marks := int64(markStep), []int64{0}
	for off := int64(0); ; {
		rec, err := f.record(off, false)
		if err != nil {
			return append(marks, off), startError(err)
		}
		off = rec.end
		if off-marks[len(marks)-1] >= step {
			marks = append(marks, off)
		}
		if len(marks) == maxMarks { // twice as far apart from here on
			for i := range maxMarks / 2 {
				marks[i] = marks[2*i]
			}
			marks, step = marks[:maxMarks/2], 2*step
		}
	}
}

// part is what count finds.
type part struct {
	lines int         // that end in the part
	used  [Notes]bool // streams that have bytes there
	open  [Notes]bool // streams whose last byte there ends no line
}

// count counts the lines between two offsets of a file.
func (r *Reader) count(f *file, from, to int64) (p part) {
	r.each(f, from, to, func(rec *record) bool {
		p.lines += bytes.Count(rec.data, newline)
		if n := len(rec.data); n > 0 {
			p.used[rec.Stream], p.open[rec.Stream] = true, rec.data[n-1] != '\n'
		}
		return true
	})
	return p
}

var newline = []byte{'\n'}

// skipLines makes the reader leave out the first n lines of those that end behind from. Each stream then begins at the
// beginning of a line, unless that is of a line that began before from.
func (r *Reader) skipLines(f *file, from int64, n int) {
	r.each(f, from, f.size, func(rec *record) bool {
		lines := min(bytes.Count(rec.data, newline), n)
		r.skip[rec.Stream] += lines
		n -= lines
		return n > 0
	})
}

// each calls fn with the records of output that are wanted, between two offsets of a file.
func (r *Reader) each(f *file, from, to int64, fn func(*record) bool) {
	var rec record // once: fn takes its address
	for from < to {
		var err error
		if rec, err = f.record(from, true); err != nil {
			return // truncated meanwhile
		}
		from = rec.end
		if rec.Stream == Notes || !r.opts.wants(&rec.Header) || !r.opts.Until.IsZero() && rec.after(r.opts.Until) {
			continue
		}
		if !fn(&rec) {
			return
		}
	}
}
