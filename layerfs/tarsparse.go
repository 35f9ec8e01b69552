package layerfs

import (
	"bytes"
	"errors"
	"strings"
)

// The maps of sparse files in their three formats.

type tarSegment struct{ off, n int64 }

func checkSparse(e *tarEntry) error {
	var end, sum int64
	for _, s := range e.sparse {
		if s.off < end || s.n < 0 || s.off > e.size || s.n > e.size-s.off {
			return invalidf("sparse map")
		}
		end = s.off + s.n
		sum += s.n
	}
	if sum != e.stored {
		return invalidf("sparse map of %d bytes for %d bytes of data", sum, e.stored)
	}
	return nil
}

// oldSparse reads the map of a GNU 'S' entry: four segments in the header, 21 in each block that may follow it.
func (t *tarReader) oldSparse(budget *int64) ([]tarSegment, int64, error) {
	realSize, err := parseNumber(t.block[483:495])
	if err != nil || realSize < 0 {
		return nil, 0, invalidf("size of a sparse file")
	}
	var segs []tarSegment
	add := func(p []byte) error {
		for ; len(p) >= 24; p = p[24:] {
			if p[0] == 0 && p[12] == 0 {
				return nil
			}
			off, err1 := parseNumber(p[:12])
			n, err2 := parseNumber(p[12:24])
			if errors.Join(err1, err2) != nil || off < 0 || n < 0 {
				return invalidf("sparse map")
			}
			segs = append(segs, tarSegment{off, n})
		}
		return nil
	}
	if err := add(t.block[386:482]); err != nil {
		return nil, 0, err
	}
	var ext [tarBlock]byte
	for more := t.block[482] != 0; more; more = ext[504] != 0 {
		if *budget -= tarBlock; *budget < 0 {
			return nil, 0, &LimitError{Limit: "Header", Max: t.limits.Header}
		}
		if err := t.fill(ext[:]); err != nil {
			return nil, 0, unexpected(err)
		}
		if err := add(ext[:504]); err != nil {
			return nil, 0, err
		}
	}
	return segs, realSize, nil
}

// sparse10 reads the map that PAX format 1.0 puts in front of the data: decimal numbers, one a line, padded to a block.
func (t *tarReader) sparse10(e *tarEntry, budget *int64) ([]tarSegment, error) {
	var buf []byte
	number := func() (int64, error) {
		for {
			if i := bytes.IndexByte(buf, '\n'); i >= 0 {
				n, err := parseDecimal(string(buf[:i]))
				buf = buf[i+1:]
				return n, err
			}
			if len(buf) > 20 || t.remain < tarBlock {
				return 0, invalidf("sparse map")
			}
			if *budget -= tarBlock; *budget < 0 {
				return 0, &LimitError{Limit: "Header", Max: t.limits.Header}
			}
			var b [tarBlock]byte
			if err := t.fill(b[:]); err != nil {
				return 0, unexpected(err)
			}
			t.remain -= tarBlock
			e.stored -= tarBlock
			buf = append(buf, b[:]...)
		}
	}
	wrap := func(err error) error {
		var le *LimitError
		if errors.As(err, &le) || errors.Is(err, ErrInvalidArchive) {
			return err
		}
		return invalidf("sparse map: %v", err)
	}
	count, err := number()
	if err != nil {
		return nil, wrap(err)
	}
	if count < 0 || count > t.limits.Header/4 { // "0\n0\n"
		return nil, &LimitError{Limit: "Header", Max: t.limits.Header}
	}
	segs := make([]tarSegment, 0, min(count, 1024))
	for range count {
		off, err := number()
		if err != nil {
			return nil, wrap(err)
		}
		n, err := number()
		if err != nil {
			return nil, wrap(err)
		}
		segs = append(segs, tarSegment{off, n})
	}
	return segs, nil
}

func parseSparseList(s string) ([]tarSegment, error) {
	segs := []tarSegment{}
	if s == "" {
		return segs, nil
	}
	for s != "" {
		var a, b string
		var ok bool
		if a, s, ok = strings.Cut(s, ","); !ok {
			return nil, errors.New("odd number of values")
		}
		b, s, _ = strings.Cut(s, ",")
		off, err1 := parseDecimal(a)
		n, err2 := parseDecimal(b)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		segs = append(segs, tarSegment{off, n})
	}
	return segs, nil
}
