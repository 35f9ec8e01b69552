package oracle

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// entry is an entry of a layer's archive.
type entry struct {
	name         string // without a slash at the end
	kind         byte
	link         string
	data         string
	mode         int64
	uid, gid     int
	major, minor int64
	mtime        time.Time
	xattrs       map[string]string
	// holes makes a sparse file of this size: data stands at its beginning and once more before its end.
	holes int64
}

func (e entry) String() string {
	s := fmt.Sprintf("%c %q", e.kind, e.name)
	if e.link != "" {
		s += fmt.Sprintf(" -> %q", e.link)
	}
	s += fmt.Sprintf(" %o %d:%d %d.%09d", e.mode, e.uid, e.gid, e.mtime.Unix(), e.mtime.Nanosecond())
	for _, k := range slices.Sorted(maps.Keys(e.xattrs)) {
		s += fmt.Sprintf(" %s=%q", k, e.xattrs[k])
	}
	if e.holes > 0 {
		s += fmt.Sprintf(" sparse %d", e.holes)
	}
	return s
}

func dump(layers [][]entry) string {
	var b strings.Builder
	for i, l := range layers {
		fmt.Fprintf(&b, "layer %d\n", i)
		for _, e := range l {
			fmt.Fprintf(&b, "  %v\n", e)
		}
	}
	return b.String()
}

// archiveOf writes a layer as an archive in PAX format.
func archiveOf(layer ...entry) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range layer {
		if e.holes > 0 {
			must(w.Flush())
			writeSparse(&buf, e)
			continue
		}
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, Uid: e.uid, Gid: e.gid,
			Devmajor: e.major, Devminor: e.minor, ModTime: e.mtime, Size: int64(len(e.data)), Format: tar.FormatPAX}
		if e.kind == tar.TypeDir {
			h.Name += "/"
		}
		for k, v := range e.xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		must(w.WriteHeader(h))
		_, err := w.Write([]byte(e.data))
		must(err)
	}
	must(w.Close())
	return buf.Bytes()
}

// writeSparse writes an entry in GNU tar's PAX format 1.0 for sparse files, which archive/tar reads but does not write.
func writeSparse(buf *bytes.Buffer, e entry) {
	var records strings.Builder
	for _, r := range [][2]string{{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", e.name},
		{"GNU.sparse.realsize", fmt.Sprint(e.holes)}, {"mtime", paxTime(e.mtime)}, {"uid", fmt.Sprint(e.uid)}, {"gid", fmt.Sprint(e.gid)}} {
		records.WriteString(paxRecord(r[0], r[1]))
	}
	for _, k := range slices.Sorted(maps.Keys(e.xattrs)) {
		records.WriteString(paxRecord("SCHILY.xattr."+k, e.xattrs[k]))
	}
	// The first piece is a whole block: GNU tar makes no others but the last.
	first, n := pad(e.data), int64(len(e.data))
	sparse := pad(fmt.Sprintf("2\n0\n%d\n%d\n%d\n", len(first), e.holes-n, n))
	writeHeader(buf, "PaxHeaders.0/sparse", 'x', int64(records.Len()), 0o644)
	buf.WriteString(pad(records.String()))
	writeHeader(buf, "GNUSparseFile.0/sparse", tar.TypeReg, int64(len(sparse)+len(first))+n, e.mode)
	buf.WriteString(sparse)
	buf.WriteString(pad(first + e.data))
}

func paxTime(t time.Time) string {
	sec, ns := t.Unix(), int64(t.Nanosecond())
	if sec < 0 && ns > 0 {
		return fmt.Sprintf("-%d.%09d", -(sec + 1), 1e9-ns)
	}
	return fmt.Sprintf("%d.%09d", sec, ns)
}

func paxRecord(key, value string) string {
	rest := len(key) + len(value) + 3
	n := rest + len(fmt.Sprint(rest))
	if n = rest + len(fmt.Sprint(n)); len(fmt.Sprint(n))+rest != n {
		n++
	}
	return fmt.Sprintf("%d %s=%s\n", n, key, value)
}

func pad(s string) string { return s + strings.Repeat("\x00", -len(s)&511) }

func writeHeader(buf *bytes.Buffer, name string, kind byte, size, mode int64) {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00        %c", mode, 0, 0, size, 0, kind))
	copy(b[257:], "ustar\x0000")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	buf.Write(b)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
