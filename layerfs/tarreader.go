package layerfs

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// The reader of layer archives: ustar, PAX (POSIX.1-2001), GNU and star headers; sparse files in the old GNU format and PAX
// formats 0.0, 0.1 and 1.0. The standard library's archive/tar does not show where the holes of a sparse file are, so
// that a hole of terabytes would be read as zeros; here memory and time follow what the archive really holds
// (CVE-2025-58183).

const tarBlock = 512

// Types of entries.
const (
	tarReg      = '0'
	tarLink     = '1'
	tarSymlink  = '2'
	tarChar     = '3'
	tarBlockDev = '4'
	tarDir      = '5'
	tarFifo     = '6'
)

// tarEntry is one entry, with extended headers applied.
type tarEntry struct {
	name     string
	link     string
	kind     byte // one of the types above
	mode     uint32
	uid, gid uint32
	mtime    time.Time
	major    uint32
	minor    uint32
	size     int64 // apparent size
	// sparse lists the data of a sparse file in order; nil for an ordinary file. stored is how many bytes follow in
	// the archive.
	sparse   []tarSegment
	isSparse bool
	stored   int64
	xattrs   []tarXattr
}

type tarXattr struct{ name, value string }

// chunkSource gives the archive's bytes piece by piece, without copying.
type chunkSource interface {
	// next returns between 1 and n bytes, valid until the next call, or io.EOF.
	next(n int64) ([]byte, error)
}

type tarReader struct {
	src     chunkSource
	limits  *Limits
	block   [tarBlock]byte
	remain  int64 // data of the current entry that has not been read
	pad     int64 // padding behind it
	skipped int64 // content that was passed over
	entries int64
}

func invalidf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalidArchive, fmt.Sprintf(format, args...))
}

// fill reads exactly len(p) bytes; io.EOF means none at all.
func (t *tarReader) fill(p []byte) error {
	for got := 0; got < len(p); {
		b, err := t.src.next(int64(len(p) - got))
		if err == io.EOF && got > 0 {
			return invalidf("it ends in the middle of a header")
		}
		if err != nil {
			return err
		}
		got += copy(p[got:], b)
	}
	return nil
}

func (t *tarReader) discard(n int64) error {
	for n > 0 {
		b, err := t.src.next(n)
		if err == io.EOF {
			return invalidf("it ends in the middle of an entry")
		}
		if err != nil {
			return err
		}
		n -= int64(len(b))
	}
	return nil
}

// skip passes over content that nobody wants, as far as it may be written.
func (t *tarReader) skip(n int64) error {
	if n > t.limits.Bytes-t.skipped {
		return &LimitError{Limit: "Bytes", Max: t.limits.Bytes}
	}
	t.skipped += n
	return t.discard(n)
}

// data returns the next piece of the entry's stored bytes, or io.EOF behind the last.
func (t *tarReader) data() ([]byte, error) {
	if t.remain == 0 {
		return nil, io.EOF
	}
	b, err := t.src.next(t.remain)
	if err == io.EOF {
		return nil, invalidf("it ends in the middle of an entry")
	}
	if err != nil {
		return nil, err
	}
	t.remain -= int64(len(b))
	return b, nil
}

// readAll reads the whole data of an extended header.
func (t *tarReader) readAll(n int64, budget *int64) ([]byte, error) {
	if n < 0 || n > *budget {
		return nil, &LimitError{Limit: "Header", Max: t.limits.Header}
	}
	*budget -= n
	p := make([]byte, n)
	if err := t.fill(p); err == io.EOF {
		return nil, invalidf("it ends in the middle of a header")
	} else if err != nil {
		return nil, err
	}
	return p, t.discard(padding(n))
}

func padding(n int64) int64 { return -n & (tarBlock - 1) }

// entry returns the next entry, or io.EOF at the end of the archive.
func (t *tarReader) entry() (*tarEntry, error) {
	if err := t.skip(t.remain); err != nil {
		return nil, err
	}
	if err := t.discard(t.pad); err != nil {
		return nil, err
	}
	t.remain, t.pad = 0, 0
	budget := t.limits.Header
	var pax map[string]string
	var paxSparse []tarSegment // format 0.0, whose keys repeat
	var gnuName, gnuLink string
	for {
		if t.entries++; t.entries > t.limits.Entries {
			return nil, &LimitError{Limit: "Entries", Max: t.limits.Entries}
		}
		if err := t.fill(t.block[:]); err == io.EOF && (pax != nil || gnuName != "" || gnuLink != "") {
			return nil, invalidf("it ends behind an extended header")
		} else if err != nil {
			return nil, err
		}
		b := &t.block
		if *b == [tarBlock]byte{} {
			if err := t.fill(b[:]); err != nil {
				return nil, err
			}
			if *b != [tarBlock]byte{} {
				return nil, invalidf("one block of zeros between entries")
			}
			return nil, io.EOF
		}
		if err := checkSum(b); err != nil {
			return nil, err
		}
		size, err := parseNumber(b[124:136])
		if err != nil || size < 0 {
			return nil, invalidf("size of an entry")
		}
		switch b[156] {
		case 'x':
			data, err := t.readAll(size, &budget)
			if err != nil {
				return nil, err
			}
			if pax == nil {
				pax = make(map[string]string, 8)
			}
			if paxSparse, err = parsePAX(string(data), pax, paxSparse); err != nil {
				return nil, err
			}
		case 'g':
			// Global records (git archive's commit id) say nothing about the files of a layer.
			if _, err := t.readAll(size, &budget); err != nil {
				return nil, err
			}
		case 'L', 'K':
			data, err := t.readAll(size, &budget)
			if err != nil {
				return nil, err
			}
			if b[156] == 'L' {
				gnuName = cString(data)
			} else {
				gnuLink = cString(data)
			}
		case 'V': // volume label
			if err := t.skip(size); err != nil {
				return nil, err
			}
			if err := t.discard(padding(size)); err != nil {
				return nil, err
			}
		default:
			e, err := t.parseHeader(size)
			if err != nil {
				return nil, err
			}
			// Who writes both is not to be trusted; archive/tar, and with it Docker, takes GNU's.
			if gnuName != "" || gnuLink != "" {
				if pax == nil {
					pax = make(map[string]string, 2)
				}
				if gnuName != "" {
					pax["path"] = gnuName
				}
				if gnuLink != "" {
					pax["linkpath"] = gnuLink
				}
			}
			if err := t.finish(e, b[156], pax, paxSparse, &budget); err != nil {
				return nil, &EntryError{Op: "read", Entry: e.name, Err: err}
			}
			return e, nil
		}
	}
}

func (t *tarReader) parseHeader(size int64) (*tarEntry, error) {
	b := &t.block
	e := &tarEntry{name: cString(b[0:100]), link: cString(b[157:257]), size: size}
	mode, err1 := parseNumber(b[100:108])
	uid, err2 := parseNumber(b[108:116])
	gid, err3 := parseNumber(b[116:124])
	mtime, err4 := parseNumber(b[136:148])
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, &EntryError{Op: "read header of", Entry: e.name, Err: invalidf("%v", err)}
	}
	e.mode = uint32(mode & 0o7777)
	e.mtime = time.Unix(mtime, 0)
	// The values of PAX records replace these, so their range is checked later.
	e.uid, e.gid = clampID(uid), clampID(gid)
	magic := string(b[257:265])
	switch {
	case magic[:6] == "ustar\x00": // any version, as all readers do
		prefix := b[345:500]
		if string(b[508:512]) == "tar\x00" {
			prefix = b[345:476] // star
		}
		if p := cString(prefix); p != "" {
			e.name = p + "/" + e.name
		}
	case magic == "ustar  \x00":
		// Before Go 1.8 archive/tar, with which layers were made that are still in use, wrote a prefix here too (Go issue
		// 12594): as that is where GNU keeps times, it is one where no number can be read.
		for _, f := range [][]byte{b[345:357], b[357:369]} {
			if f[0] == 0 {
				continue
			}
			if _, err := parseNumber(f); err != nil {
				if p := cString(b[345:500]); p != "" && isASCII(p) {
					e.name = p + "/" + e.name
				}
				break
			}
		}
	default: // before POSIX: no device numbers, no prefix
		return e, nil
	}
	major, err1 := parseNumber(b[329:337])
	minor, err2 := parseNumber(b[337:345])
	if b[156] == tarChar || b[156] == tarBlockDev {
		if err := errors.Join(err1, err2); err != nil || major < 0 || minor < 0 || major > 0xfff || minor > 0xfffff {
			return nil, &EntryError{Op: "read header of", Entry: e.name, Err: invalidf("device number")}
		}
		e.major, e.minor = uint32(major), uint32(minor)
	}
	return e, nil
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0
}

// finish applies the extended headers and finds out what data follows.
func (t *tarReader) finish(e *tarEntry, flag byte, pax map[string]string, paxSparse []tarSegment, budget *int64) error {
	realSize := int64(-1)
	sparse := paxSparse
	hasSparse := sparse != nil
	for k, v := range pax {
		var err error
		switch k {
		case "path":
			if _, other := pax["GNU.sparse.name"]; !other {
				e.name = v
			}
		case "GNU.sparse.name":
			e.name = v
		case "linkpath":
			e.link = v
		case "size":
			e.size, err = parseDecimal(v)
		case "GNU.sparse.size", "GNU.sparse.realsize":
			realSize, err = parseDecimal(v)
		case "GNU.sparse.map":
			hasSparse = true
			sparse, err = parseSparseList(v)
		case "GNU.sparse.major", "GNU.sparse.minor":
			hasSparse = true
		case "uid", "gid":
			var n int64
			if n, err = parseDecimal(v); err == nil {
				if k == "uid" {
					e.uid = clampID(n)
				} else {
					e.gid = clampID(n)
				}
			}
		case "mtime":
			e.mtime, err = parsePAXTime(v)
		default:
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				e.xattrs = append(e.xattrs, tarXattr{name, v})
			}
		}
		if err != nil {
			return invalidf("PAX record %s: %v", k, err)
		}
	}
	if e.uid == badID || e.gid == badID {
		return invalidf("owner out of range")
	}
	if strings.IndexByte(e.name, 0) >= 0 || strings.IndexByte(e.link, 0) >= 0 {
		return invalidf("NUL in a name")
	}
	switch flag {
	case 0:
		e.kind = tarReg
		if strings.HasSuffix(e.name, "/") {
			e.kind = tarDir
		}
	case tarReg, '7', 'S':
		e.kind = tarReg
	case tarLink, tarSymlink, tarChar, tarBlockDev, tarDir, tarFifo:
		e.kind = flag
	default:
		return invalidf("unknown type %q", flag)
	}
	if e.kind != tarReg {
		// Whatever size says: these have no data (POSIX pax, and what every other reader does).
		e.size = 0
		return nil
	}
	t.remain, t.pad = e.size, padding(e.size)
	e.stored = e.size
	var err error
	switch {
	case flag == 'S':
		if string(t.block[257:265]) != "ustar  \x00" {
			return invalidf("sparse file in an archive that is not GNU's")
		}
		e.isSparse = true
		if e.sparse, realSize, err = t.oldSparse(budget); err != nil {
			return err
		}
	case hasSparse && pax["GNU.sparse.major"] == "1" && pax["GNU.sparse.minor"] == "0":
		e.isSparse = true
		if e.sparse, err = t.sparse10(e, budget); err != nil {
			return err
		}
	case hasSparse && (pax["GNU.sparse.major"] == "" || pax["GNU.sparse.major"] == "0"):
		e.isSparse = true
		e.sparse = sparse
	case hasSparse:
		return invalidf("sparse format %s.%s", pax["GNU.sparse.major"], pax["GNU.sparse.minor"])
	}
	if e.isSparse {
		if realSize < 0 {
			return invalidf("sparse file without its size")
		}
		e.size = realSize
		if err := checkSparse(e); err != nil {
			return err
		}
	}
	if e.size > t.limits.FileBytes {
		return &LimitError{Limit: "FileBytes", Max: t.limits.FileBytes, Entry: e.name}
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return invalidf("it ends in the middle of an entry")
	}
	return err
}
