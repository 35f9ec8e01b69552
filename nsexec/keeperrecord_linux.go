package nsexec

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"time"
)

const (
	recordMagic       = 'C' | 'K'<<8 | 'R'<<16 | '1'<<24
	recordEnded       = 1
	recordStatusAt    = 8
	recordTimeAt      = 160
	recordOffsetAt    = 176
	recordSequenceAt  = 184
	recordCountersAt  = 192
	recordCounters    = 24
	recordMemoryLenAt = 216
	recordMemoryAt    = 224
	recordMemorySize  = 512
	recordSize        = 768
	recordFile        = 4096 // a block, so that the record never needs room that the disk has not
)

// PrepareRecord makes the file an empty record for [Keeper]: all of its blocks are written and synced, so that a full
// disk cannot lose the exit status.
func PrepareRecord(f *os.File) error {
	b := make([]byte, recordFile)
	binary.NativeEndian.PutUint32(b, recordMagic)
	if _, err := f.WriteAt(b, 0); err != nil {
		return fmt.Errorf("nsexec: make the exit record: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("nsexec: make the exit record: %w", err)
	}
	return nil
}

// ReadRecord reads a record. The error is or wraps ErrNoRecord if the file is none.
func ReadRecord(f io.ReaderAt) (Record, error) {
	var b [recordSize]byte
	if n, err := f.ReadAt(b[:], 0); err != nil && (err != io.EOF || n < len(b)) {
		if err == io.EOF {
			err = ErrNoRecord
		}
		return Record{}, fmt.Errorf("nsexec: read the exit record: %w", err)
	}
	word := func(at int) uint64 { return binary.NativeEndian.Uint64(b[at:]) }
	if uint32(word(0)) != recordMagic {
		return Record{}, ErrNoRecord
	}
	r := Record{DroppedBytes: word(recordCountersAt), DroppedReads: word(recordCountersAt + 8), LogFull: word(recordCountersAt+16) != 0}
	const ended = recordMagic | recordEnded<<32
	if word(0) != ended || word(recordSize-8) != ended {
		return r, nil
	}
	r.Ended = true
	r.Status = newStatus(b[recordStatusAt:])
	r.Finished = time.Unix(int64(word(recordTimeAt)), int64(word(recordTimeAt+8)))
	r.LogOffset, r.LogSequence = int64(word(recordOffsetAt)), word(recordSequenceAt)
	r.MemoryEvents = append([]byte(nil), b[recordMemoryAt:recordMemoryAt+min(word(recordMemoryLenAt), recordMemorySize)]...)
	return r, nil
}
