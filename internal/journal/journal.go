// Package journal is a log of small records that any number of processes append to and read, in the files of one
// directory. It is bounded: the oldest file goes when there are too many.
//
// # Files
//
// A file is a generation, named by its number in 16 hexadecimal digits. Generations follow each other without holes, the
// last one is written to. The file journal.json says how large a generation becomes, for all processes alike.
//
// A record is a line of its own, with an empty one before it:
//
//	"\n" crc " " lost " " payload "\n"
//
// crc is the CRC-32C of what follows it up to the newline, in 8 hexadecimal digits; lost is how many records the writer
// could not write before this one, as on a full disk. What is torn damages nothing but itself: its neighbours begin on a line
// of their own, and its checksum does not fit.
//
// # Why no lock is needed
//
// A record is appended by one write to a descriptor with O_APPEND, which the kernel does as a whole: the offset of the
// descriptor tells afterwards where the record begins. The rule is that a record counts if it begins before the size
// limit of its generation. So writer and readers agree about every record with nothing to agree on: who finds
// that its record begins at the limit or after it makes the next generation, or finds that somebody has, and appends the
// record there once more. By then all records that count are whole in the file before. A process that is stopped anywhere
// in this holds nobody up, and a generation outgrows its limit by no more than a record of each process.
//
// A reader leaves a generation when it has seen that there is a later one, and then has come to the end of the earlier.
package journal

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coracle-dev/coracle/internal/filelock"
	"github.com/coracle-dev/coracle/internal/lockorder"
	"github.com/coracle-dev/coracle/internal/statefile"
)

// MaxPayload is the largest payload of a record, in bytes.
const MaxPayload = 16 << 10

// maxFrame bounds what is around a payload: newlines, checksum, and a count of up to 20 digits.
const maxFrame = MaxPayload + 2 + 8 + 1 + 20 + 1

// The bounds of a new journal, where Options does not say others.
const (
	DefaultFileSize = 4 << 20
	DefaultFiles    = 4
)

// Errors of Append.
var (
	ErrTooLarge = errors.New("journal: the payload is larger than MaxPayload")
	ErrNewline  = errors.New("journal: the payload has a newline")
	ErrClosed   = errors.New("journal: closed")
)

// Options are the bounds of a journal that does not exist yet. One that exists keeps those that it was made with.
type Options struct {
	// FileSize is the size at which a file is full, in bytes. Zero means DefaultFileSize.
	FileSize int64
	// Files is how many files are kept, at least 2. Zero means DefaultFiles.
	Files int
}

// format is journal.json.
type format struct {
	Version  int
	FileSize int64
	Files    int
}

const (
	formatVersion = 1
	formatFile    = "journal.json"
)

// A Journal appends to the files of a directory and reads them. Its methods may be called from many goroutines.
type Journal struct {
	dir  string
	opts Options

	mu     sync.Mutex
	format *format  // nil until it is needed
	file   *os.File // the generation that this process appends to, or nil
	gen    uint64
	lost   uint64 // records that could not be written since the last that was
	closed bool
	buf    []byte
}

// New returns the journal of a directory. It touches nothing: the files are made and opened when they are needed.
func New(dir string, opts *Options) *Journal {
	j := &Journal{dir: dir}
	if opts != nil {
		j.opts = *opts
	}
	return j
}

// Append adds a record. After an error the record is lost, and the next one that is written says so.
func (j *Journal) Append(payload []byte) error {
	switch {
	case len(payload) > MaxPayload:
		return ErrTooLarge
	case bytes.IndexByte(payload, '\n') >= 0:
		return ErrNewline
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return ErrClosed
	}
	j.buf = frame(j.buf[:0], j.lost, payload)
	if err := j.append(j.buf); err != nil {
		j.lost++
		return fmt.Errorf("append to the journal %s: %w", j.dir, err)
	}
	j.lost = 0
	return nil
}

// Lost returns how many records could not be written since the last one that was.
func (j *Journal) Lost() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lost
}

// Close closes the file that is appended to. Readers go on until their contexts end.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}

var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// frame appends the bytes of a record to b.
func frame(b []byte, lost uint64, payload []byte) []byte {
	const digits = "0123456789abcdef"
	start := len(b)
	b = append(b, "\n........ "...)
	b = strconv.AppendUint(b, lost, 10)
	b = append(b, ' ')
	b = append(b, payload...)
	crc := crc32.Checksum(b[start+10:], castagnoli())
	for i := 8; i >= 1; i-- {
		b[start+i] = digits[crc&15]
		crc >>= 4
	}
	return append(b, '\n')
}

// parse is the opposite of frame, for a line without its newline.
func parse(line []byte) (lost uint64, payload []byte, ok bool) {
	if len(line) < 11 || line[8] != ' ' {
		return 0, nil, false
	}
	// One spelling: what frame does not write is none of ours.
	want, err := strconv.ParseUint(string(line[:8]), 16, 32)
	if err != nil || uint32(want) != crc32.Checksum(line[9:], castagnoli()) || bytes.ContainsAny(line[:8], "ABCDEF+_") {
		return 0, nil, false
	}
	count, payload, found := bytes.Cut(line[9:], []byte{' '})
	if !found || len(payload) > MaxPayload {
		return 0, nil, false
	}
	lost, err = strconv.ParseUint(string(count), 10, 64)
	if err != nil || strconv.FormatUint(lost, 10) != string(count) {
		return 0, nil, false
	}
	return lost, payload, true
}

// A Cursor is a place in a journal: after one record and before the next. The zero Cursor is before all records.
type Cursor struct {
	Generation uint64
	Offset     int64
}

// String spells the cursor so that the order of strings is that of cursors.
func (c Cursor) String() string { return fmt.Sprintf("%016x-%016x", c.Generation, uint64(c.Offset)) }

// Compare orders cursors.
func (c Cursor) Compare(d Cursor) int {
	return cmp.Or(cmp.Compare(c.Generation, d.Generation), cmp.Compare(c.Offset, d.Offset))
}

// ParseCursor reads what String has written.
func ParseCursor(s string) (Cursor, error) {
	g, o, _ := strings.Cut(s, "-")
	gen, err := strconv.ParseUint(g, 16, 64)
	off, err2 := strconv.ParseUint(o, 16, 63)
	c := Cursor{gen, int64(off)}
	if err != nil || err2 != nil || c.String() != s {
		return Cursor{}, fmt.Errorf("%q is no position of a journal", s)
	}
	return c, nil
}

func (j *Journal) path(gen uint64) string { return filepath.Join(j.dir, fmt.Sprintf("%016x", gen)) }

// generations lists the generations that there are, in order.
func (j *Journal) generations() ([]uint64, error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var list []uint64
	for _, e := range entries {
		if gen, err := strconv.ParseUint(e.Name(), 16, 64); err == nil && gen > 0 && fmt.Sprintf("%016x", gen) == e.Name() && e.Type().IsRegular() {
			list = append(list, gen)
		}
	}
	slices.Sort(list)
	return list, nil
}

// End returns the place after the last record. Records that others are appending may come before it or after it.
func (j *Journal) End() (Cursor, error) {
	for {
		list, err := j.generations()
		if err != nil || len(list) == 0 {
			return Cursor{}, err
		}
		last := list[len(list)-1]
		info, err := os.Lstat(j.path(last))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Cursor{}, err
		}
		return Cursor{last, info.Size()}, nil
	}
}

// bounds returns the format of the journal. Without make it is nil for a journal that has not been begun.
func (j *Journal) bounds(make bool) (*format, error) {
	var f format
	err := statefile.Read(j.dir, formatFile, &f)
	if err != nil && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, statefile.ErrTorn)) {
		if !make {
			return nil, nil
		}
		err = j.begin(func() error {
			// Somebody may have been faster.
			if err := statefile.Read(j.dir, formatFile, &f); err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, statefile.ErrTorn) {
				return err
			}
			f = format{formatVersion, cmp.Or(j.opts.FileSize, DefaultFileSize), cmp.Or(j.opts.Files, DefaultFiles)}
			return statefile.WriteSynced(j.dir, formatFile, f)
		})
	}
	if err != nil {
		return nil, err
	}
	if f.Version != formatVersion || f.FileSize < 1 || f.FileSize > 1<<40 || f.Files < 2 {
		return nil, fmt.Errorf("journal %s has format %d (%d files of %d bytes), which this program does not know", j.dir, f.Version, f.Files, f.FileSize)
	}
	return &f, nil
}

// begin calls f with the lock of the journal's directory, which is there then.
func (j *Journal) begin(f func() error) error {
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return err
	}
	dir, err := os.Open(j.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	// Whoever has it makes one file. Somebody may have been stopped in that.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := filelock.Lock(ctx, dir); err != nil {
		return err
	}
	defer lockorder.Taken(lockorder.Journal, j.dir)()
	return f()
}
