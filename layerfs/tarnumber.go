package layerfs

import (
	"bytes"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

// What stands in the fields of headers: PAX records, numbers in octal and base 256, times, checksums.

// badID marks an owner that no file can have.
const badID = math.MaxUint32

func clampID(v int64) uint32 {
	if v < 0 || v >= badID {
		return badID
	}
	return uint32(v)
}

// parsePAX reads records "LENGTH KEY=VALUE\n" into m. The keys of sparse format 0.0 repeat and go to segs.
func parsePAX(s string, m map[string]string, segs []tarSegment) ([]tarSegment, error) {
	bad := invalidf("PAX record")
	pendingOff := int64(-1)
	for s != "" {
		sp := strings.IndexByte(s, ' ')
		if sp <= 0 || sp > 9 {
			return nil, bad
		}
		n, err := strconv.ParseUint(s[:sp], 10, 31)
		if err != nil || int(n) <= sp+1 || int(n) > len(s) || s[n-1] != '\n' {
			return nil, bad
		}
		rec := s[sp+1 : n-1]
		s = s[n:]
		k, v, ok := strings.Cut(rec, "=")
		if !ok || k == "" || strings.IndexByte(k, 0) >= 0 {
			return nil, bad
		}
		switch k {
		case "GNU.sparse.offset":
			off, err := parseDecimal(v)
			if err != nil || pendingOff >= 0 {
				return nil, bad
			}
			pendingOff = off
		case "GNU.sparse.numbytes":
			n, err := parseDecimal(v)
			if err != nil || pendingOff < 0 {
				return nil, bad
			}
			segs = append(segs, tarSegment{pendingOff, n})
			pendingOff = -1
		default:
			if v == "" {
				delete(m, k) // POSIX: an empty value takes back an earlier record
				if strings.HasPrefix(k, "SCHILY.xattr.") {
					m[k] = v
				}
				continue
			}
			m[k] = v
		}
	}
	if pendingOff >= 0 {
		return nil, bad
	}
	return segs, nil
}

func parseDecimal(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, err
	}
	if n < 0 {
		return 0, errors.New("negative number")
	}
	return n, nil
}

// parsePAXTime reads "-12.345": seconds with a fraction, of which nine digits count.
func parsePAXTime(s string) (time.Time, error) {
	whole, frac, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	var ns int64
	if frac != "" {
		if len(frac) > 9 {
			for _, c := range frac[9:] {
				if c < '0' || c > '9' {
					return time.Time{}, errors.New("fraction of a second")
				}
			}
			frac = frac[:9]
		}
		u, err := strconv.ParseUint(frac, 10, 64)
		if err != nil {
			return time.Time{}, err
		}
		ns = int64(u)
		for range 9 - len(frac) {
			ns *= 10
		}
	}
	if strings.HasPrefix(whole, "-") {
		ns = -ns
	}
	return time.Unix(sec, ns), nil
}

// parseNumber reads a numeric field: octal text, or base 256 with the first bit set.
func parseNumber(b []byte) (int64, error) {
	if len(b) > 0 && b[0]&0x80 != 0 {
		var inv byte // two's complement: negative numbers are inverted
		if b[0]&0x40 != 0 {
			inv = 0xff
		}
		var x uint64
		for i, c := range b {
			c ^= inv
			if i == 0 {
				c &= 0x7f
			}
			if x>>56 > 0 {
				return 0, errors.New("number out of range")
			}
			x = x<<8 | uint64(c)
		}
		if x>>63 > 0 {
			return 0, errors.New("number out of range")
		}
		if inv == 0xff {
			return ^int64(x), nil
		}
		return int64(x), nil
	}
	start := 0
	for start < len(b) && (b[start] == ' ' || b[start] == 0) {
		start++
	}
	var n int64
	for i := start; i < len(b); i++ {
		c := b[i]
		if c == 0 || c == ' ' {
			break
		}
		if c < '0' || c > '7' || n > math.MaxInt64>>3 {
			return 0, errors.New("number is not octal")
		}
		n = n<<3 | int64(c-'0')
	}
	return n, nil
}

func checkSum(b *[tarBlock]byte) error {
	want, err := parseNumber(b[148:156])
	if err != nil {
		return invalidf("checksum of a header")
	}
	var unsigned, signed int64
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c)) // as some old writers computed it
	}
	if want != unsigned && want != signed {
		return invalidf("checksum of a header")
	}
	return nil
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
