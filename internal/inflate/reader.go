// Package inflate decodes gzip (RFC 1952) and the DEFLATE data in it (RFC 1951), at about twice the speed of other
// decoders in Go: it is what pulling an image spends its time on.
//
// [Reader.Read] is an [io.Reader] as compress/gzip has one. [Reader.ReadChunk] decodes into memory of the caller, which
// saves the copy.
package inflate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	// History is how far back a match can reach, and the room that [Reader.ReadChunk] wants in front of a chunk.
	History = 32 << 10

	// MinBuffer is the smallest buffer that [Reader.ReadChunk] takes.
	MinBuffer = History + 4<<10

	inSize  = 64 << 10
	outSize = History + 128<<10

	// The longest header of a block (RFC 1951, section 3.2.7), in bytes: 17 bits, 19 code lengths of 3 bits, and 286+30 codes of
	// up to 7 bits with up to 7 bits more.
	maxBlockHeader = (17+19*3+(numLit+numDist)*14)/8 + 1

	// maxEmptyReads is how often the source may return neither data nor an error, as in package bufio.
	maxEmptyReads = 100
)

var (
	// ErrHeader is in the error for what does not begin with the header of a gzip member, or has one whose checksum is wrong.
	ErrHeader = errors.New("invalid header")

	// ErrChecksum is in the error for decoded data of another length or checksum than the member's trailer says.
	ErrChecksum = errors.New("invalid checksum")

	errBlockType = errors.New("invalid block type")
	errStored    = errors.New("invalid length of a stored block")
	errLengths   = errors.New("invalid code lengths")
	errCode      = errors.New("invalid code")
	errDistance  = errors.New("distance reaches before the beginning")
)

// CorruptError says that the input is not what a compressor wrote. An input that only ends too early is
// [io.ErrUnexpectedEOF] instead.
type CorruptError struct {
	Offset int64 // in the input, of the symbol or the field that is wrong, or a few bytes behind it
	Err    error // ErrHeader, ErrChecksum, or what is wrong with the compressed data
}

// Error implements error.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("inflate: %v at byte %d", e.Err, e.Offset)
}

// Unwrap returns Err.
func (e *CorruptError) Unwrap() error { return e.Err }

// state is what comes next in the input.
type state uint8

const (
	atHeader state = iota // of another member, or the end
	atBlock
	inStored
	inCodes
	atTrailer
)

// Reader decodes a gzip stream of any number of members, one after the other. Like compress/gzip it wants nothing behind
// the last one, not even zeros.
//
// It reads from the source in large pieces, also beyond the end of a member, but never before it has returned what can be
// decoded without. Data is to be taken as tentative until [io.EOF]: checksums come last.
type Reader struct {
	src    io.Reader
	srcErr error // after the input that is there
	err    error // what all further calls return

	in           []byte // input in [inPos, inEnd)
	inPos, inEnd int
	consumed     int64  // input before in[0]
	b, n         uint64 // see decodeFast
	state        state
	final        bool // the block is the last of its member
	storedLeft   int
	codes        *codes
	dynamic      codes
	lengths      [numLit + numDist]uint8
	crc, size    uint32 // of the member
	out          []byte
	pos          int    // in out
	low          int    // how far back in out a match may reach: History, or the begin of the member
	summed       int    // out[:summed] is in crc
	tail         []byte // of the last chunk: what the next matches may refer to
	buf, rest    []byte // of Read
}

// NewReader reads the header of the first member, and returns [io.EOF] if there is nothing at all.
func NewReader(r io.Reader) (*Reader, error) {
	z := new(Reader)
	if err := z.Reset(r); err != nil {
		return nil, err
	}
	return z, nil
}

// Reset makes z read from r, as if it came from [NewReader], with the memory that it has. A nil r drops the references to
// the source and to the last chunk.
func (z *Reader) Reset(r io.Reader) error {
	if z.in == nil {
		z.in = make([]byte, inSize)
	}
	z.src, z.srcErr, z.err = r, nil, nil
	z.inPos, z.inEnd, z.consumed = 0, 0, 0
	z.b, z.n = 0, 0
	z.out, z.tail, z.rest = nil, nil, nil
	z.state = atHeader
	if r == nil {
		z.err = io.EOF
		return nil
	}
	z.err = z.header()
	return z.err
}

// Read implements [io.Reader].
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(z.rest) == 0 {
		if z.buf == nil {
			z.buf = make([]byte, outSize)
		}
		var err error
		if z.rest, err = z.ReadChunk(z.buf); err != nil {
			return 0, err
		}
	}
	n := copy(p, z.rest)
	z.rest = z.rest[n:]
	return n, nil
}

// ReadChunk decodes into buf[History:] and returns what it has decoded, at least one byte unless there is an error. It
// fills the buffer as far as the input goes that the source has given without another read.
//
// The chunk of the previous call must not be changed before this call returns, as matches refer to it: its end is copied to
// buf[:History]. buf may be the same buffer. Read and ReadChunk must not be mixed.
func (z *Reader) ReadChunk(buf []byte) ([]byte, error) {
	if len(buf) < MinBuffer {
		return nil, io.ErrShortBuffer
	}
	if z.err != nil {
		return nil, z.err
	}
	z.out, z.pos, z.summed = buf, History, History
	z.low = History - copy(buf[History-len(z.tail):], z.tail)
	err := z.decode()
	z.sum()
	z.out = nil
	z.tail = buf[max(z.low, z.pos-History):z.pos]
	if err != nil {
		z.err = err
		if z.pos == History {
			return nil, err
		}
	}
	return buf[History:z.pos:z.pos], nil
}

// sum adds what was decoded to the member's checksum.
func (z *Reader) sum() {
	p := z.out[z.summed:z.pos]
	z.crc = crc32.Update(z.crc, crc32.IEEETable, p)
	z.size += uint32(len(p))
	z.summed = z.pos
}

// decode goes on until z.out is full, or until there is something in it and more input is needed.
func (z *Reader) decode() error {
	for {
		some := z.pos > History
		switch z.state {
		case atHeader:
			if some {
				return nil
			}
			if err := z.header(); err != nil {
				return err
			}
		case atBlock:
			if some && z.inEnd-z.inPos < maxBlockHeader {
				return nil
			}
			if err := z.blockHeader(); err != nil {
				return err
			}
		case inStored:
			if z.storedLeft == 0 {
				z.endBlock()
				continue
			}
			if z.pos == len(z.out) {
				return nil
			}
			if z.inPos == z.inEnd {
				if some {
					return nil
				}
				if err := z.fill(); err != nil {
					return noEOF(err)
				}
			}
			n := min(z.storedLeft, z.inEnd-z.inPos)
			n = copy(z.out[z.pos:], z.in[z.inPos:z.inPos+n])
			z.pos += n
			z.inPos += n
			z.storedLeft -= n
		case inCodes:
			end, err := z.decodeFast()
			var more bool
			if !end && err == nil {
				end, more, err = z.decodeSlow()
			}
			switch {
			case err != nil:
				return z.corrupt(err)
			case end:
				z.endBlock()
			case more:
				if z.pos > History {
					return nil
				}
				if err := z.fill(); err != nil {
					return noEOF(err)
				}
			default:
				return nil // no room
			}
		case atTrailer:
			if some && z.inEnd-z.inPos < 8 {
				return nil
			}
			if err := z.trailer(); err != nil {
				return err
			}
		}
	}
}

func (z *Reader) endBlock() {
	z.state = atBlock
	if z.final {
		z.state = atTrailer
		z.align()
	}
}

// header reads the header of a member (RFC 1952, section 2.3) or finds the end.
func (z *Reader) header() error {
	var h [10]byte
	if err := z.full(h[:]); err != nil {
		return err // io.EOF if there is nothing
	}
	if h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 {
		return z.corrupt(ErrHeader)
	}
	digest := crc32.ChecksumIEEE(h[:])
	next := func(p []byte) error {
		err := z.full(p)
		digest = crc32.Update(digest, crc32.IEEETable, p)
		return noEOF(err)
	}
	const hcrc, extra, name, comment = 1 << 1, 1 << 2, 1 << 3, 1 << 4
	c := h[:1]
	if h[3]&extra != 0 {
		if err := next(h[4:6]); err != nil {
			return err
		}
		for range binary.LittleEndian.Uint16(h[4:]) {
			if err := next(c); err != nil {
				return err
			}
		}
	}
	for _, flag := range []byte{name, comment} {
		for c[0] = 1; h[3]&flag != 0 && c[0] != 0; {
			if err := next(c); err != nil {
				return err
			}
		}
	}
	if h[3]&hcrc != 0 {
		want := uint16(digest)
		if err := next(h[4:6]); err != nil {
			return err
		}
		if binary.LittleEndian.Uint16(h[4:]) != want {
			return z.corrupt(ErrHeader)
		}
	}
	z.crc, z.size = 0, 0
	z.low = z.pos // no match reaches into another member
	z.tail = nil
	z.state = atBlock
	return nil
}

// trailer checks the member (RFC 1952, section 2.3.1).
func (z *Reader) trailer() error {
	z.sum()
	var t [8]byte
	if err := z.full(t[:]); err != nil {
		return noEOF(err)
	}
	if binary.LittleEndian.Uint32(t[:]) != z.crc || binary.LittleEndian.Uint32(t[4:]) != z.size {
		return z.corrupt(ErrChecksum)
	}
	z.state = atHeader
	return nil
}

// corrupt says where err is.
func (z *Reader) corrupt(err error) error {
	return &CorruptError{Offset: z.consumed + int64(z.inPos) - int64(z.n>>3), Err: err}
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
