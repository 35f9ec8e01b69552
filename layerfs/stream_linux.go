package layerfs

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// A layer passes through four goroutines:
//
//	fetch:      network -> sha-256 of the blob -> blob file
//	decompress: blob file (following fetch) -> chunks
//	hash:       chunks -> sha-256 of the archive, the diffID
//	apply:      chunks -> files
//
// The blob file between the first two means that the download never waits for the disk or for the layers below, with
// nothing held in memory; the chunks are a fixed set that goes around.
const (
	chunkSize  = 128 << 10
	chunkCount = 16
)

// follower reads a file while another goroutine is still writing it.
type follower struct {
	f    *os.File
	mu   sync.Mutex
	cond *sync.Cond
	// Guarded by mu: written bytes, and whether and why no more will come.
	written int64
	done    bool
	err     error

	off atomic.Int64
}

func newFollower(f *os.File) *follower {
	w := &follower{f: f}
	w.cond = sync.NewCond(&w.mu)
	return w
}

func (w *follower) add(n int) {
	w.mu.Lock()
	w.written += int64(n)
	w.mu.Unlock()
	w.cond.Signal()
}

// finish ends the stream; a nil error means a regular end.
func (w *follower) finish(err error) {
	w.mu.Lock()
	// An error ends also what has been written to its end: a stored blob may be hours of work that gives nothing.
	if !w.done || w.err == nil {
		w.done, w.err = true, err
	}
	w.mu.Unlock()
	w.cond.Broadcast()
}

func (w *follower) Read(p []byte) (int, error) {
	off := w.off.Load()
	w.mu.Lock()
	for w.written == off && !w.done {
		w.cond.Wait()
	}
	avail, err := w.written-off, w.err
	w.mu.Unlock()
	if avail == 0 || err != nil {
		if err == nil {
			err = io.EOF
		}
		return 0, err
	}
	n, err := w.f.ReadAt(p[:min(int64(len(p)), avail)], off)
	w.off.Add(int64(n))
	if n > 0 {
		err = nil
	}
	return n, err
}

// fetch copies a blob to the follower's file and checks it. progress may be nil.
func fetch(ctx context.Context, r io.Reader, w *follower, v *verifier, progress func(int64)) (err error) {
	defer func() { w.finish(err) }()
	buf := make([]byte, 256<<10)
	var idle idleReads
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := idle.check(r.Read(buf))
		if n > 0 {
			if _, err := v.Write(buf[:n]); err != nil {
				return err
			}
			if _, err := w.f.Write(buf[:n]); err != nil {
				return err
			}
			w.add(n)
			if progress != nil {
				progress(v.n)
			}
		}
		if err == io.EOF {
			return v.check()
		}
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("fetch blob %s after %d of %d bytes: %w", v.desc.Digest, v.n, v.desc.Size, err)
		}
	}
}

// idleReads makes an error of a source that gives neither bytes nor an error again and again, as bufio does.
type idleReads int

func (i *idleReads) check(n int, err error) (int, error) {
	if n > 0 || err != nil {
		*i = 0
		return n, err
	}
	if *i++; *i == 100 {
		return 0, io.ErrNoProgress
	}
	return 0, nil
}

// decompressor recognises what a stream is by its first bytes.
func decompressor(r io.Reader, limits *Limits) (io.Reader, func(), error) {
	// gzip's decoder has a faster loop for this very type.
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case len(magic) >= 3 && magic[0] == 0x1f && magic[1] == 0x8b && magic[2] == 8:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, damaged(err)
		}
		return &damageReader{z}, func() { _ = z.Close() }, nil
	case len(magic) == 4 && (magic[0] == 0x28 && magic[1] == 0xb5 && magic[2] == 0x2f && magic[3] == 0xfd ||
		magic[0]&0xf0 == 0x50 && magic[1] == 0x2a && magic[2] == 0x4d && magic[3] == 0x18):
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(uint64(limits.Window)), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, damaged(err)
		}
		return &damageReader{z}, z.Close, nil
	}
	return br, func() {}, nil
}

// damageReader types the errors of a decoder, unless they come from reading the blob.
type damageReader struct{ r io.Reader }

func (d *damageReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && err != io.EOF {
		err = damaged(err)
	}
	return n, err
}

// errDamaged marks a stream that cannot be decompressed.
type errDamaged struct{ err error }

func (e *errDamaged) Error() string   { return "decompress: " + e.err.Error() }
func (e *errDamaged) Unwrap() []error { return []error{ErrCorrupt, e.err} }

func damaged(err error) error {
	var errno interface{ Temporary() bool } // syscall.Errno
	if errors.As(err, &errno) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrCorrupt) {
		return err
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return &LimitError{Limit: "Window"}
	}
	return &errDamaged{err}
}

// chunk is a piece of the archive; the last of its two readers gives it back.
type chunk struct {
	buf  []byte
	n    int
	refs atomic.Int32
}

// chunks is the ring between decompress and its two readers. The channels have room for every chunk, so only taking a
// free one ever waits.
type chunks struct {
	free, toHash, toApply chan *chunk
	err                   error // of decompress, valid after toApply is closed
	ratioFree             int64 // bytes that come out before Limits.Ratio counts

	cur  *chunk
	rest []byte
}

func newChunks() *chunks {
	c := &chunks{ratioFree: 1 << 30, free: make(chan *chunk, chunkCount), toHash: make(chan *chunk, chunkCount), toApply: make(chan *chunk, chunkCount)}
	for range chunkCount {
		c.free <- &chunk{buf: make([]byte, chunkSize)}
	}
	return c
}

func (c *chunks) release(k *chunk) {
	if k.refs.Add(-1) == 0 {
		c.free <- k
	}
}

// decompress fills the ring until the end of the stream.
func (c *chunks) decompress(ctx context.Context, w *follower, limits *Limits) {
	defer close(c.toHash)
	defer close(c.toApply)
	r, closeReader, err := decompressor(w, limits)
	if err != nil {
		c.err = err
		return
	}
	defer closeReader()
	var total int64
	for {
		var k *chunk
		select {
		case k = <-c.free:
		case <-ctx.Done():
			c.err = context.Cause(ctx)
			return
		}
		n, err := readSome(r, k.buf)
		total += int64(n)
		if total > c.ratioFree && total/limits.Ratio > w.off.Load() {
			c.err = &LimitError{Limit: "Ratio", Max: limits.Ratio}
			return
		}
		if n > 0 {
			k.n = n
			k.refs.Store(2)
			c.toHash <- k
			c.toApply <- k
		}
		if err != nil {
			if err != io.EOF {
				c.err = err
				var le *LimitError
				if errors.As(err, &le) && le.Limit == "Window" {
					le.Max = limits.Window
				}
			}
			return
		}
	}
}

// readSome fills the buffer: decoders give little at a time.
func readSome(r io.Reader, p []byte) (int, error) {
	got := 0
	for got < len(p) {
		n, err := r.Read(p[got:])
		got += n
		if err != nil {
			return got, err
		}
	}
	return got, nil
}

func (c *chunks) hash() string {
	var h hash.Hash = sha256.New()
	for k := range c.toHash {
		h.Write(k.buf[:k.n])
		c.release(k)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// next implements chunkSource for apply.
func (c *chunks) next(n int64) ([]byte, error) {
	if len(c.rest) == 0 {
		if c.cur != nil {
			c.release(c.cur)
			c.cur = nil
		}
		k, ok := <-c.toApply
		if !ok {
			if c.err != nil {
				return nil, c.err
			}
			return nil, io.EOF
		}
		c.cur, c.rest = k, k.buf[:k.n]
	}
	b := c.rest[:min(n, int64(len(c.rest)))]
	c.rest = c.rest[len(b):]
	return b, nil
}

// drain reads what follows the end of the archive, which counts for the diffID, and nothing else: at most so many bytes.
func (c *chunks) drain(limits *Limits) error {
	for n := int64(0); ; {
		b, err := c.next(chunkSize)
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if n += int64(len(b)); n > limits.Bytes {
			return &LimitError{Limit: "Bytes", Max: limits.Bytes}
		}
	}
}
