package powerloss

import (
	"encoding/binary"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

type recordKind uint32

const (
	recWrite recordKind = 1 + iota
	recZero             // a write of zeros, whose data is not stored
	recFlush            // all writes before it are durable
	recMark             // the test has seen something succeed
)

// record is one entry of the log. In the log it is this header and the data.
type record struct {
	Kind recordKind
	_    uint32
	Off  int64 // on the disk
	Len  int64
}

const recordSize = 24

// recorder is the disk of the server: its content, and the log of how it came about. Both are in memory.
type recorder struct {
	mu    sync.Mutex
	image []byte
	log   int // memfd, shared with the test
	end   int64
}

func newRecorder(size int64, log int) (*recorder, error) {
	image, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("memory for the disk: %w", err)
	}
	return &recorder{image: image, log: log}, nil
}

// add appends a record. The caller holds mu.
func (r *recorder) add(rec record, data []byte) error {
	head, err := binary.Append(nil, binary.NativeEndian, rec)
	if err != nil {
		return err
	}
	n, err := unix.Pwritev(r.log, [][]byte{head, data}, r.end)
	if err == nil && n != len(head)+len(data) {
		err = unix.ENOSPC
	}
	if err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	r.end += int64(n)
	return nil
}

func (r *recorder) size() int64 { return int64(len(r.image)) }

func (r *recorder) read(p []byte, off int64) { copy(p, r.image[off:]) }

func (r *recorder) write(p []byte, off int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(r.image[off:], p)
	return r.add(record{Kind: recWrite, Off: off, Len: int64(len(p))}, p)
}

func (r *recorder) zero(off, n int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.image[off : off+n])
	return r.add(record{Kind: recZero, Off: off, Len: n}, nil)
}

func (r *recorder) flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.add(record{Kind: recFlush}, nil)
}

func (r *recorder) mark(name []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.add(record{Kind: recMark, Len: int64(len(name))}, name)
}

// entry is a record as the test reads it.
type entry struct {
	record
	data []byte // of a write: part of the log
	mark string
}

// parseLog reads the whole log.
func parseLog(log []byte) ([]entry, error) {
	var list []entry
	for len(log) > 0 {
		var e entry
		n, err := binary.Decode(log, binary.NativeEndian, &e.record)
		if err != nil {
			return nil, fmt.Errorf("the log's record %d: %w", len(list), err)
		}
		log = log[n:]
		if e.Kind == recWrite || e.Kind == recMark {
			if e.Len > int64(len(log)) {
				return nil, fmt.Errorf("the log's record %d is cut off", len(list))
			}
			e.data, log = log[:e.Len:e.Len], log[e.Len:]
		}
		if e.Kind == recMark {
			e.mark = string(e.data)
		}
		list = append(list, e)
	}
	return list, nil
}
