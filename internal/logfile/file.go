package logfile

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
)

// A file is one file of a log, read in windows.
//
// What makes reading beside the writer safe is the order of two calls: the size is asked for before the bytes are read,
// and a record counts only if it ends within that size. A record that the disk had no room for is cut off again and
// something else is written in its place, but such a record never had all its bytes, so it ended beyond every size that
// was ever seen.
type file struct {
	f    *os.File
	info fs.FileInfo // says which file it is, however it is called by now
	name string      // as it was opened

	size  int64  // when last asked
	buf   []byte // what stands at the offset at, read after size was asked for
	at    int64
	chunk int // how much hop reads next

	// The header of the last record that was delivered, at anchorAt. While it stands there, what follows it is what was
	// written after it. A file may be truncated and grow beyond where a reader is while it does not look.
	anchor   [HeaderSize]byte
	anchorAt int64
	anchored bool
	reads    int // counts calls that ask the file for anything
}

const (
	minChunk = 512
	midChunk = 32 << 10
	maxChunk = 128 << 10 // larger than a record
)

// errEnd: there is no whole record. errTruncated: the file is shorter than what was read of it.
var (
	errEnd       = errors.New("no whole record")
	errTruncated = errors.New("the file was truncated")
)

// openFile takes over the descriptor of f.
func openFile(f *os.File, name string) (*file, error) {
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open log", Path: name, Err: errors.New("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &file{f: f, info: info, name: name, size: info.Size(), chunk: maxChunk}, nil
}

func (f *file) close() error { return f.f.Close() }

// refresh asks for the size again and forgets what was read before.
func (f *file) refresh() error {
	info, err := f.f.Stat()
	if err != nil {
		return err
	}
	f.size, f.buf = info.Size(), f.buf[:0]
	f.reads++ // the file may be as long as before and another one
	return nil
}

// record is a record of a file. Its payload is valid until the next one is read.
type record struct {
	Header
	start, end int64
	data       []byte
}

// setAnchor notes the record, the last one that was read.
func (f *file) setAnchor(r *record) {
	f.anchored, f.anchorAt = true, r.start
	copy(f.anchor[:], f.buf[r.start-f.at:])
}

// record reads the record at off, or behind the hole at off. Without payload it reads little more than the header. The
// error is errTruncated if the file is not any more what it was when the anchor was set.
func (f *file) record(off int64, payload bool) (record, error) {
	reads := f.reads
	r, err := f.current(off, payload)
	if !f.anchored || f.reads == reads || err == errTruncated {
		return r, err
	}
	var now [HeaderSize]byte
	n, readErr := f.f.ReadAt(now[:], f.anchorAt)
	if readErr != nil && !errors.Is(readErr, io.EOF) {
		return r, readErr
	}
	if n < len(now) || now != f.anchor {
		return r, errTruncated
	}
	return r, err
}

// current is record without the anchor.
func (f *file) current(off int64, payload bool) (record, error) {
	r, err := f.parse(off, payload)
	if err == nil {
		return r, nil
	}
	// Of what stood here when the file was shorter, nothing counts. Nor does one look at what is no record: it may be one
	// that is being cut off.
	if err := f.refresh(); err != nil {
		return r, err
	}
	if f.size < off {
		return r, errTruncated
	}
	if r, err = f.parse(off, payload); err != nil {
		f.buf = f.buf[:0]
	}
	return r, err
}

// parse is record by the size that is known.
func (f *file) parse(off int64, payload bool) (r record, err error) {
	b, err := f.bytes(off, 1, payload)
	if err != nil {
		return r, err
	}
	if b[0] == 0 {
		if off, err = f.skipZeros(off); err != nil {
			return r, err
		}
	}
	if b, err = f.bytes(off, HeaderSize, payload); err != nil {
		return r, err
	}
	if wrong := r.decode(b); wrong != "" {
		return r, &CorruptError{File: f.name, Offset: off, Reason: wrong}
	}
	r.start, r.end = off, off+HeaderSize+int64(r.Length)
	if r.end > f.size {
		return r, errEnd
	}
	if payload {
		if b, err = f.bytes(off, HeaderSize+r.Length, true); err != nil {
			return r, err
		}
		r.data = b[HeaderSize:]
	}
	return r, nil
}

// bytes returns n bytes at off, at most maxChunk. They are valid until the next call.
func (f *file) bytes(off int64, n int, payload bool) ([]byte, error) {
	if i := off - f.at; i >= 0 && i+int64(n) <= int64(len(f.buf)) {
		return f.buf[i : i+int64(n)], nil
	}
	left := f.size - off
	if left < int64(n) {
		return nil, errEnd
	}
	want := midChunk
	switch {
	case payload && left > 2*midChunk:
		want = maxChunk
	case payload:
	case off > f.at+int64(len(f.buf)): // records are large: hop from header to header
		f.chunk = minChunk
		want = minChunk
	default:
		f.chunk = min(2*f.chunk, maxChunk)
		want = f.chunk
	}
	want = int(min(int64(max(want, n)), left))
	if cap(f.buf) < want {
		f.buf = make([]byte, max(want, midChunk))
	}
	f.reads++
	got, err := f.f.ReadAt(f.buf[:want], off)
	f.buf, f.at = f.buf[:got], off
	switch {
	case got >= n:
		return f.buf[:n], nil
	case err == nil || errors.Is(err, io.EOF):
		return nil, errEnd // truncated since
	}
	return nil, err
}

// skipZeros returns where the zeros at off end. A file has zeros where a writer goes on at its offset although somebody
// has truncated the file, and at its end after a power failure. How far they went is not kept: somebody may truncate the file
// again and write there.
func (f *file) skipZeros(off int64) (int64, error) {
	pos := off
	for {
		if data := nextData(f.f, pos); data > pos {
			pos = min(data, f.size)
		}
		left := f.size - pos
		if left <= 0 {
			return 0, errEnd
		}
		b, err := f.bytes(pos, int(min(left, midChunk)), true)
		if err != nil {
			return 0, err
		}
		if rest := bytes.TrimLeft(b, "\x00"); len(rest) > 0 {
			return pos + int64(len(b)-len(rest)), nil
		}
		pos += int64(len(b))
	}
}

// End returns where the last whole record of a file ends and its sequence number, both 0 if there is none. What follows,
// a record that was cut off or zeros, is of no use to anybody: the next writer truncates the file there.
//
// If the error matches ErrCorrupt, something else follows, and the values are those before it: no reader gets beyond it.
func End(f *os.File) (offset int64, lastSeq uint64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	lf := &file{f: f, info: info, name: f.Name(), size: info.Size(), chunk: maxChunk}
	return lf.end()
}

func (f *file) end() (offset int64, lastSeq uint64, err error) {
	for {
		r, err := f.record(offset, false)
		if err == errEnd || err == errTruncated {
			return offset, lastSeq, nil
		}
		if err != nil {
			return offset, lastSeq, err
		}
		offset, lastSeq = r.end, r.Seq
	}
}
