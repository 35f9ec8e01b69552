// Package logfile is the format of containers' logs: a directory of files of records. docs/log-format.md describes it for
// programs that read it without this package.
//
// The writer in production is the keeper of a container, an interpreter of system calls (package nsexec). [Writer] does
// the same in Go, for tests and as the reference. [Reader] reads a log while it is written and rotated; any number of
// readers in any number of processes may.
//
// The directory belongs to coracle, but what stands in the files comes from containers and from disks: lengths are
// bounded, headers are checked, and no payload is ever searched for records, so that no output can pose as one.
package logfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

const (
	// HeaderSize is the size of a record's header in bytes.
	HeaderSize = 40
	// MaxPayload is the largest payload that a reader accepts, in bytes.
	MaxPayload = 64 << 10
	// MaxWrite is the largest payload that is written: what was read from the stream at once.
	MaxWrite = 16 << 10
	// NoteSize is the size of a note's payload.
	NoteSize = 24

	magic = "CLR1"

	// numberBits is how much of a sequence number counts within one start.
	numberBits = 40
	// maxSeconds is the end of the year 9999, up to which a time can be printed and stored as JSON.
	maxSeconds = 253402300799
)

// Stream says where a record's bytes come from.
type Stream uint8

// The streams of a log.
const (
	Stdout Stream = 1
	Stderr Stream = 2
	Notes  Stream = 3 // of the keeper: the payload is a [Note]
)

// Kinds of notes.
const (
	NoteDropped = 1 // output was dropped because the disk was full
	NoteBlocked = 2 // the container was blocked because the disk was full, and goes on now
)

// ErrCorrupt matches the error for bytes that are no record where one has to be.
var ErrCorrupt = errors.New("log is corrupt")

// A CorruptError says where a file has something else than a record. It matches ErrCorrupt.
type CorruptError struct {
	File   string // name of the file, as it was opened
	Offset int64  // in bytes
	Reason string
}

// Error names place and reason.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("log file %s is corrupt at offset %d: %s", e.File, e.Offset, e.Reason)
}

// Is makes the error match ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// Header is what stands before a record's payload.
type Header struct {
	Stream Stream
	Length int    // of the payload in bytes
	Seq    uint64 // see Sequence
	Sec    int64  // since the epoch, when the bytes were read from the stream
	Nsec   int64
}

// Time is when the bytes were read from the stream.
func (h *Header) Time() time.Time { return time.Unix(h.Sec, h.Nsec) }

// before and after compare the record's time.
func (h *Header) before(t time.Time) bool { return h.Time().Before(t) }
func (h *Header) after(t time.Time) bool  { return h.Time().After(t) }

// Sequence is the sequence number of the n-th record of the run-th start of a container, both from 1.
func Sequence(run, n uint64) uint64 { return run<<numberBits | n }

// SplitSequence is the inverse of Sequence.
func SplitSequence(seq uint64) (run, n uint64) { return seq >> numberBits, seq & (1<<numberBits - 1) }

// Append appends the header as it stands in a file.
func (h *Header) Append(b []byte) []byte {
	b = append(b, magic...)
	b = append(b, byte(h.Stream), 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.Length))
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, h.Seq)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.Sec))
	return binary.LittleEndian.AppendUint64(b, uint64(h.Nsec))
}

// decode reads a header of HeaderSize bytes, and says what is wrong with it, or nothing.
func (h *Header) decode(b []byte) (wrong string) {
	_ = b[HeaderSize-1]
	length, sec, nsec := binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint64(b[24:]), binary.LittleEndian.Uint64(b[32:])
	*h = Header{
		Stream: Stream(b[4]), Length: int(length), Seq: binary.LittleEndian.Uint64(b[16:]), Sec: int64(sec), Nsec: int64(nsec),
	}
	switch {
	case string(b[:4]) != magic:
		return "no record begins here"
	case h.Stream < Stdout || h.Stream > Notes:
		return "unknown stream"
	case length > MaxPayload:
		return "length out of range"
	case b[5]|b[6]|b[7]|b[12]|b[13]|b[14]|b[15] != 0:
		return "reserved bytes are not zero"
	case h.Seq == 0:
		return "no sequence number"
	case sec > maxSeconds || nsec >= 1e9:
		return "time out of range"
	}
	return ""
}

// Note is the payload of a record of the stream Notes.
type Note struct {
	Kind  uint64 // NoteDropped or NoteBlocked; others may come
	Bytes uint64 // dropped
	Reads uint64 // dropped, each of which has a sequence number that is missing
}

// Append appends the note as it stands in a file.
func (n *Note) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, n.Kind)
	b = binary.LittleEndian.AppendUint64(b, n.Bytes)
	return binary.LittleEndian.AppendUint64(b, n.Reads)
}

// ParseNote reads a note. What is missing at its end is zero, what follows it is not looked at.
func ParseNote(payload []byte) Note {
	var b [NoteSize]byte
	copy(b[:], payload)
	return Note{
		Kind: binary.LittleEndian.Uint64(b[0:]), Bytes: binary.LittleEndian.Uint64(b[8:]), Reads: binary.LittleEndian.Uint64(b[16:]),
	}
}
