package hostile

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"
)

// Entry is an entry of an archive that archive/tar can write.
type Entry struct {
	Name string
	// Type as in archive/tar; zero means a directory for a name with a trailing slash, else a file.
	Type byte
	Link string
	Data string
	// Mode zero means 0644, or 0755 for a directory.
	Mode         int64
	UID, GID     int
	Major, Minor int64
	PAX          map[string]string
	Time         time.Time
}

const block = 512

// End is what ends an archive.
var End = make([]byte, 2*block)

// Tar makes an archive. It panics where archive/tar refuses an entry: that is a mistake in the test.
func Tar(entries ...Entry) []byte {
	var buf bytes.Buffer
	WriteTar(&buf, entries...)
	buf.Write(End)
	return buf.Bytes()
}

// WriteTar writes entries without the end of an archive.
func WriteTar(to io.Writer, entries ...Entry) {
	w := tar.NewWriter(to)
	for _, e := range entries {
		h := &tar.Header{Name: e.Name, Typeflag: e.Type, Linkname: e.Link, Mode: e.Mode, Uid: e.UID, Gid: e.GID, Devmajor: e.Major, Devminor: e.Minor,
			ModTime: e.Time, PAXRecords: e.PAX, Format: tar.FormatPAX}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.Name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1e9, 0)
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(e.Data))
		}
		must(w.WriteHeader(h))
		_, err := io.WriteString(w, e.Data[:h.Size])
		must(err)
	}
	must(w.Flush())
}

// Header makes a header block that archive/tar would not write: any name, type and size, and edit may change the rest.
// The checksum is right.
func Header(name string, kind byte, size int64, edit func(b []byte)) []byte {
	b := make([]byte, block)
	copy(b, name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], "00000000000\x00")
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	if edit != nil {
		edit(b)
	}
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// Padded is data as it stands in an archive.
func Padded(data string) []byte {
	return append([]byte(data), make([]byte, -len(data)&(block-1))...)
}

// Cat joins the parts of an archive.
func Cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// Records are PAX records of the keys and values, with their lengths.
func Records(kv ...string) string {
	var b strings.Builder
	for i := 0; i < len(kv); i += 2 {
		rec := " " + kv[i] + "=" + kv[i+1] + "\n"
		n := len(rec) + 1
		for n != len(rec)+len(fmt.Sprint(n)) {
			n++
		}
		fmt.Fprintf(&b, "%d%s", n, rec)
	}
	return b.String()
}

// Extended is an extended header ('x') with its records.
func Extended(kv ...string) []byte { return extended('x', kv...) }

func extended(kind byte, kv ...string) []byte {
	records := Records(kv...)
	return Cat(Header("pax", kind, int64(len(records)), nil), Padded(records))
}

// longName is GNU's header ('L', 'K') for a name that is too long for the field.
func longName(kind byte, name string) []byte {
	return Cat(Header("././@LongLink", kind, int64(len(name)+1), nil), Padded(name+"\x00"))
}

// base256 writes a number as GNU does where octal has no room.
func base256(field []byte, n int64) {
	clear(field)
	field[0] = 0x80
	for i := range 8 {
		field[len(field)-1-i] = byte(n >> (8 * i))
	}
}

// OldSparse is a GNU sparse entry ('S') of that size with up to four segments of offset and length.
func OldSparse(size int64, segments ...[2]int64) []byte {
	return Cat(Header("x", 'S', 0, func(b []byte) {
		copy(b[257:], "ustar  \x00")
		base256(b[483:495], size)
		for i, s := range segments {
			base256(b[386+24*i:398+24*i], s[0])
			base256(b[398+24*i:410+24*i], s[1])
		}
	}), End)
}

func many(n int, f func(int) Entry) []Entry {
	out := make([]Entry, n)
	for i := range out {
		out[i] = f(i)
	}
	return out
}

// must is for errors that only a mistake in this package can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func itoa(n int) string { return fmt.Sprint(n) }
