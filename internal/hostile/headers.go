package hostile

import (
	"bytes"
	"math"
	"strings"
)

// addHeaders: archives whose headers lie or never end.
func addHeaders(add adder) {
	file := Header("x", '0', 0, nil)
	add(Invalid, "negative size", Cat(Header("x", '0', 0, func(b []byte) { copy(b[124:136], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00") }), End))
	add("limited by FileBytes", "size of 8 EB", Cat(Header("x", '0', 0, func(b []byte) { base256(b[124:136], math.MaxInt64) }), End))
	add("limited by FileBytes", "PAX size of 8 EB", Cat(Extended("size", "9223372036854775807"), file, End))
	add(Invalid, "size that is no number", Cat(Header("x", '0', 0, func(b []byte) { copy(b[124:136], "0x7fffffff\x00\x00") }), End))
	add(Invalid, "bad checksum", Cat(file[:511], []byte{1}, End))
	add(Invalid, "ends in a header", file[:100])
	add(Invalid, "ends in data", Cat(Header("x", '0', 1000, nil), []byte("short")))
	add(Invalid, "ends in padding", Cat(Header("x", '0', 5, nil), []byte("short")))
	add(Harmless, "no end", file)
	add(Harmless, "nothing behind the end", Cat(file, End))
	add(Harmless, "another archive behind the end", Cat(file, End, Tar(Entry{Name: "evil", Data: "x"})), "evil")
	add(Invalid, "one zero block", Cat(make([]byte, block), file))
	add("limited by Header", "PAX header of 1 TB", Cat(Header("x", 'x', 1<<33-1, nil), End))
	add("limited by Header", "global PAX header of 1 TB", Cat(Header("x", 'g', 1<<33-1, nil), End))
	add("limited by Header", "long name of 1 TB", Cat(Header("x", 'L', 1<<33-1, nil), End))
	add("limited by Header", "long link of 1 TB", Cat(Header("x", 'K', 1<<33-1, nil), End))
	add("limited by Bytes", "volume label of 8 EB", Cat(Header("x", 'V', 0, func(b []byte) { base256(b[124:136], math.MaxInt64) }), file, End))
	add(Invalid, "PAX record lengths", Cat(Header("x", 'x', 20, nil), Padded("999999999999 path=x\n"), file, End))
	add(Invalid, "PAX record of length zero", Cat(Header("x", 'x', 9, nil), Padded("0 path=x\n"), file, End))
	add(Invalid, "PAX record without value", Cat(Header("x", 'x', 9, nil), Padded("9 path\nab"), file, End))
	add(Invalid, "PAX record without key", Cat(Header("x", 'x', 5, nil), Padded("5 =x\n"), file, End))
	add(Invalid, "PAX name with NUL", Cat(Extended("path", "a\x00b"), file, End))
	add(Invalid, "PAX owner of 2^32", Cat(Extended("uid", "4294967296"), file, End))
	add(Invalid, "PAX owner that is negative", Cat(Extended("uid", "-1"), file, End))
	add(Invalid, "owner of minus one", Cat(Extended("uid", "4294967295"), file, End))
	add(Invalid, "PAX time that is none", Cat(Extended("mtime", "1e9"), file, End))
	add(HarmlessOrRefused, "PAX time at the end of all time", Cat(Extended("mtime", "9223372036854775807.999999999"), file, End))
	add(HarmlessOrRefused, "PAX time before all time", Cat(Extended("mtime", "-9223372036854775808.999999999"), file, End))
	add("limited by Header", "headers without end", bytes.Repeat(Extended("comment", strings.Repeat("x", 480)), 3000))
	add(Invalid, "ends behind an extended header", Extended("path", "x"))
	// A reader that takes the size of the ustar header in place of the PAX record's sees the archive inside as entries
	// (CVE-2025-62518).
	inner := Tar(Entry{Name: "evil", Data: "x"})
	add(Harmless, "an archive as content, PAX size", Cat(Extended("size", itoa(len(inner))), file, Padded(string(inner)), Header("after", '0', 0, nil), End), "evil")
	// And one that gives content to what has none sees none behind it.
	add(Harmless, "directory with a size", Cat(Header("d/", '5', 512, nil), Header("f", '0', 0, nil), End))
	add(Harmless, "old directory with a size", Cat(Header("d/", 0, 512, nil), Header("f", '0', 0, nil), End))
	add(Harmless, "link with a size", Cat(Header("l", '2', 512, func(b []byte) { copy(b[157:], "x") }), Header("f", '0', 0, nil), End))
	add(Harmless, "names that disagree", Cat(longName('L', "gnu"), Extended("path", "pax"), Header("ustar", '0', 0, nil), End), "pax", "ustar")
	add(Invalid, "extended header of nothing", Cat(Extended("path", "x"), End[:block], file))
	add(Invalid, "random bytes", []byte(strings.Repeat("\xde\xad\xbe\xef", 1000)))
	add(Invalid, "no archive at all", []byte("<html>404</html>"))
}

// addSparse: the maps of sparse files in their three formats.
func addSparse(add adder) {
	v1 := func(size string) []byte {
		return Extended("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", size)
	}
	add("limited by FileBytes", "old sparse of 4 EB", OldSparse(1<<62, [2]int64{0, 0}))
	add(Invalid, "old sparse, overlapping", OldSparse(1000, [2]int64{0, 100}, [2]int64{50, 100}))
	add(Invalid, "old sparse, map outside", OldSparse(10, [2]int64{100, 5}))
	add(Invalid, "old sparse, map overflows", OldSparse(1000, [2]int64{1 << 62, 1 << 62}))
	add("limited by Header", "old sparse without end", Cat(Header("x", 'S', 0, func(b []byte) { copy(b[257:], "ustar  \x00"); b[482] = 1; copy(b[483:], "00000000010\x00") }),
		bytes.Repeat(append(make([]byte, 504), 1, 0, 0, 0, 0, 0, 0, 0), 5000)))
	add(Invalid, "old sparse in another format", Cat(Header("x", 'S', 0, nil), End))
	add("limited by Header", "sparse 1.0, many segments", Cat(v1("1"), Header("x", '0', 512, nil), Padded("99999999999\n"), End))
	add("limited by Header", "sparse 1.0, map without end", Cat(v1("1"), Header("x", '0', 1<<32, nil), []byte("262000\n"), bytes.Repeat([]byte("1\n12\n"), 1<<19)))
	add(Invalid, "sparse 1.0, map of a megabyte", Cat(v1("1"), Header("x", '0', 1<<32, nil), []byte("260000\n"), bytes.Repeat([]byte("0\n0\n"), 1<<19)))
	add(Invalid, "sparse 1.0, endless number", Cat(v1("1"), Header("x", '0', 1<<20, nil), bytes.Repeat([]byte("1"), 1<<20), End))
	add(Invalid, "sparse 1.0, map longer than the entry", Cat(v1("1"), Header("x", '0', 512, nil), Padded("100\n"+strings.Repeat("0\n0\n", 90)), End))
	add(Invalid, "sparse 1.0, negative segment", Cat(v1("10"), Header("x", '0', 512, nil), Padded("1\n-5\n0\n"), End))
	add(Invalid, "sparse 0.1, odd", Cat(Extended("GNU.sparse.map", "0,1,2", "GNU.sparse.size", "10"), Header("x", '0', 1, nil), Padded("x"), End))
	add("limited by FileBytes", "sparse 0.1, size too large", Cat(Extended("GNU.sparse.map", "0,0", "GNU.sparse.size", "9223372036854775807"), Header("x", '0', 0, nil), End))
	add(Invalid, "sparse 0.0, offset without length", Cat(Extended("GNU.sparse.size", "10", "GNU.sparse.offset", "0"), Header("x", '0', 0, nil), End))
	add(Invalid, "sparse without size", Cat(Extended("GNU.sparse.map", "0,1"), Header("x", '0', 1, nil), Padded("x"), End))
	add(Invalid, "sparse 2.0", Cat(Extended("GNU.sparse.major", "2", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "1"), Header("x", '0', 0, nil), End))
	add(Harmless, "hole of a terabyte", Cat(Extended("GNU.sparse.map", "1099511627770,5", "GNU.sparse.size", "1099511627775"), Header("hole", '0', 5, nil), Padded("hello"), End))
}
