package hostile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// Stream is a compressed form of an archive.
type Stream struct {
	Name  string
	Want  Outcome
	Limit string
	Blob  []byte
}

// Streams are compressed forms of an archive, honest and not. n is how often those repeat themselves that give nothing.
func Streams(archive []byte, n int) []Stream {
	half := len(archive) / 2
	a, b := archive[:half], archive[half:]
	empty := Member(nil, nil)
	skippable := []byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'}
	badSum := Member(archive, nil)
	badSum[len(badSum)-8] ^= 1
	badSize := Member(archive, nil)
	badSize[len(badSize)-4] ^= 1
	return []Stream{
		{"gzip of two members", Harmless, "", Cat(Member(a, nil), Member(b, nil))},
		{"gzip of a member for each byte", Harmless, "", byteMembers(archive)},
		{"gzip with empty members in front", Harmless, "", Cat(bytes.Repeat(empty, n), Member(archive, nil))},
		{"gzip with empty members behind", Harmless, "", Cat(Member(archive, nil), bytes.Repeat(empty, n))},
		{"gzip with empty blocks", Harmless, "", Member(archive, bytes.Repeat([]byte{0, 0, 0, 0xff, 0xff}, n))},
		{"gzip of nothing", Corrupt, "", empty},
		{"gzip with a wrong checksum", Corrupt, "", badSum},
		{"gzip with a wrong size", Corrupt, "", badSize},
		{"gzip with an endless name", Corrupt, "", Cat([]byte{0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 0xff}, bytes.Repeat([]byte("x"), 1<<20))},
		{"gzip with garbage behind", Corrupt, "", Cat(Member(archive, nil), []byte("garbage behind"))},
		{"gzip with a second member cut off", Corrupt, "", Cat(Member(a, nil), Member(b, nil)[:20])},
		{"gzip in gzip", Invalid, "", Member(Member(archive, nil), nil)},
		{"zstd of two frames", Harmless, "", Cat(frame(a), frame(b))},
		{"zstd behind skippable frames", Harmless, "", Cat(bytes.Repeat(skippable, n), frame(archive))},
		{"zstd in front of empty frames", Harmless, "", Cat(frame(archive), bytes.Repeat(emptyFrame, n))},
		{"zstd with a skippable frame of 4 GB", Corrupt, "", Cat([]byte{0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff}, frame(archive))},
		{"zstd with a window of 128 MB", Harmless, "", WindowFrame(27, archive)},
		{"zstd with a window of 256 MB", Limited, "Window", WindowFrame(28, archive)},
		{"zstd with a window of 1 TB", Limited, "Window", WindowFrame(40, archive)},
		{"zstd with a size of 8 EB", Corrupt, "", sizedFrame(1<<63-1, archive)},
		{"zstd with a dictionary", Corrupt, "", Cat([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x01, 0x38, 0x07}, []byte{0x01, 0, 0})},
		{"zstd cut off", Corrupt, "", frame(archive)[:len(frame(archive))/2]},
		{"zstd with garbage behind", Corrupt, "", Cat(frame(archive), []byte("garbage behind"))},
		{"xz", Invalid, "", Cat([]byte("\xfd7zXZ\x00"), make([]byte, 4*block))},
		{"bzip2", Invalid, "", Cat([]byte("BZh9"), make([]byte, 4*block))},
	}
}

// Member is a gzip member (RFC 1952) of stored and compressed blocks. blocks are put in front of those of the data.
func Member(data, blocks []byte) []byte {
	var buf bytes.Buffer
	buf.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff})
	buf.Write(blocks)
	w, err := flate.NewWriter(&buf, flate.BestSpeed)
	must(err)
	_, err = w.Write(data)
	must(err)
	must(w.Close())
	buf.Write(binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(data)))
	buf.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(data))))
	return buf.Bytes()
}

func byteMembers(data []byte) []byte {
	// Most bytes of an archive are zeros: only the start is cut up.
	const most = 600
	var parts [][]byte
	for i := range min(most, len(data)) {
		parts = append(parts, Member(data[i:i+1], nil))
	}
	return Cat(append(parts, Member(data[min(most, len(data)):], nil))...)
}

func frame(data []byte) []byte {
	w, err := zstd.NewWriter(nil)
	must(err)
	defer w.Close()
	return w.EncodeAll(data, nil)
}

// emptyFrame is a zstd frame (RFC 8878) of one raw block of no bytes, the last.
var emptyFrame = []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x00, 0x01, 0, 0}

// WindowFrame is a frame of raw blocks that asks for a window of 2^log bytes.
func WindowFrame(log int, data []byte) []byte {
	return Cat([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, byte(log-10) << 3}, rawBlocks(data))
}

// sizedFrame is a frame that says how large its content is, with a window of a megabyte.
func sizedFrame(size uint64, data []byte) []byte {
	return Cat([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xc0, 10 << 3}, binary.LittleEndian.AppendUint64(nil, size), rawBlocks(data))
}

func rawBlocks(data []byte) []byte {
	var parts [][]byte
	for len(data) > 0 {
		n := min(len(data), 64<<10)
		head := uint32(n) << 3
		if n == len(data) {
			head |= 1
		}
		parts = append(parts, []byte{byte(head), byte(head >> 8), byte(head >> 16)}, data[:n])
		data = data[n:]
	}
	return Cat(parts...)
}

// ZstdZeros is an archive of an end and so many zeros, in a frame of a few bytes for each hundred kilobytes.
func ZstdZeros(n int64) Blob {
	const size = 128 << 10
	buf := bytes.NewBuffer([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, (20 - 10) << 3})
	h, zeros := sha256.New(), make([]byte, size)
	blocks := n / size
	for i := range blocks {
		head := uint32(size)<<3 | 1<<1 // a block of one byte, repeated
		if i == blocks-1 {
			head |= 1
		}
		buf.Write([]byte{byte(head), byte(head >> 8), byte(head >> 16), 0})
		h.Write(zeros)
	}
	return Blob{buf.Bytes(), "sha256:" + hex.EncodeToString(h.Sum(nil)), blocks * size}
}
