// Package hostile generates layer archives that attack whoever unpacks them, for every path that does. Nothing of it is
// stored as a file: the archives are made when they are asked for, and the large ones only while they are read.
//
// Each says how it must end. None of them may change anything outside the layer, which a [Canary] tells.
package hostile

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"
)

// Outcome is how unpacking must end.
type Outcome string

const (
	// Harmless archives are unpacked: what they aim at is inside the layer, or left out.
	Harmless Outcome = "harmless"
	// Invalid ones match layerfs.ErrInvalidArchive.
	Invalid Outcome = "invalid"
	// Corrupt ones match layerfs.ErrCorrupt.
	Corrupt Outcome = "corrupt"
	// Limited ones give a *layerfs.LimitError for the field that Archive.Limit names.
	Limited Outcome = "limited"
	// Refused ones are refused by the kernel or the file system: a *layerfs.EntryError with an errno.
	Refused Outcome = "refused"
	// HarmlessOrRefused depends on the file system.
	HarmlessOrRefused Outcome = "harmless or refused"
)

// Archive is one attack.
type Archive struct {
	Name  string
	Want  Outcome
	Limit string
	// Write writes the archive. It is the same each time.
	Write func(w io.Writer) error
	// Without are paths that must not be in the layer, where it is unpacked.
	Without []string
}

// Bytes is the whole archive, for those that are small.
func (a Archive) Bytes() []byte {
	var buf bytes.Buffer
	must(a.Write(&buf))
	return buf.Bytes()
}

// Reader streams the archive.
func (a Archive) Reader() io.ReadCloser {
	r, w := io.Pipe()
	go func() { w.CloseWithError(a.Write(w)) }()
	return r
}

const (
	symlink = tar.TypeSymlink
	link    = tar.TypeLink
)

// Archives are small ones, of a few megabytes at most. outside is the absolute path of a directory that they try to
// change, with a file victim in it.
func Archives(outside string) []Archive {
	var list []Archive
	add := func(want Outcome, name string, archive []byte, without ...string) {
		a := Archive{Name: name, Want: want, Without: without, Write: func(w io.Writer) error { _, err := w.Write(archive); return err }}
		if limit, ok := strings.CutPrefix(string(want), "limited by "); ok {
			a.Want, a.Limit = Limited, limit
		}
		list = append(list, a)
	}
	addPaths(add, outside)
	addLinks(add, outside)
	addKinds(add, outside)
	addHeaders(add)
	addSparse(add)
	return list
}

// adder takes "limited by FIELD" for a limit.
type adder func(want Outcome, name string, archive []byte, without ...string)

// wayOut is a relative path from anywhere in a layer to an absolute path of the host.
func wayOut(abs string) string {
	return strings.Repeat("../", 30) + strings.TrimPrefix(abs, "/")
}

func addPaths(add adder, outside string) {
	rel, victim := wayOut(outside), outside+"/victim"
	inside := strings.TrimPrefix(victim, "/")
	add(Invalid, "dot dot", Tar(Entry{Name: rel + "/evil", Data: "x"}))
	add(Invalid, "dot dot inside", Tar(Entry{Name: "a/../../" + rel + "/evil", Data: "x"}))
	add(Invalid, "dot dot at the end", Tar(Entry{Name: "a/b/..", Type: tar.TypeDir, Mode: 0o777}))
	add(Invalid, "only dot dot", Tar(Entry{Name: "..", Type: tar.TypeDir, Mode: 0o777}))
	add(Harmless, "absolute name", Tar(Entry{Name: victim, Data: "overwritten"}))
	add(Harmless, "absolute name with many slashes", Cat(Header("///"+inside, '0', 11, nil), Padded("overwritten"), End))
	add(Invalid, "dot dot in the ustar prefix", Cat(Header("evil", '0', 0, func(b []byte) { copy(b[345:500], strings.Repeat("../", 40)) }), End))
	add(Invalid, "dot dot in a PAX path", Cat(Extended("path", rel+"/evil"), Header("harmless", '0', 0, nil), End))
	add(Invalid, "dot dot in a GNU long name", Cat(longName('L', rel+"/evil"), Header("harmless", '0', 0, nil), End))
	add(Invalid, "dot dot in a sparse name", Cat(Extended("GNU.sparse.name", rel+"/evil", "GNU.sparse.map", "0,0", "GNU.sparse.size", "0"), Header("harmless", '0', 0, nil), End))
	// Global headers say nothing about the files of a layer.
	add(Harmless, "path in a global header", Cat(extended('g', "path", rel+"/evil", "linkpath", victim), Header("f", '0', 0, nil), End), "evil")
	add(Harmless, "odd spellings of one path", Tar(Entry{Name: "./a//b/./c", Data: "x"}, Entry{Name: "a/b/c", Data: "y"}, Entry{Name: "/a/b/c", Data: "z"}))
	add(Invalid, "empty name", Cat(Header("", '0', 0, nil), End))
	add(Invalid, "root is a link", Tar(Entry{Name: ".", Type: symlink, Link: outside}, Entry{Name: "evil", Data: "x"}))
	add(Invalid, "root is a link, with a slash", Tar(Entry{Name: "./", Type: symlink, Link: outside}, Entry{Name: "evil", Data: "x"}))
	add(Invalid, "root is a file", Cat(Header("/", '7', 0, nil), End))
	add(Invalid, "root is a hard link", Tar(Entry{Name: ".", Type: link, Link: "x"}))
	add(Invalid, "root is a device", Tar(Entry{Name: ".", Type: tar.TypeBlock, Major: 8}))
	add(Harmless, "root without any permission", Tar(Entry{Name: "./", Mode: 0o1}, Entry{Name: "f", Data: "x"}))
	add(Refused, "component too long", Tar(Entry{Name: strings.Repeat("x", 256), Data: "x"}))
	add("limited by Depth", "path too deep", Tar(Entry{Name: strings.Repeat("d/", 600) + "f", Data: "x"}))
	add(Harmless, "path as deep as may be", Tar(Entry{Name: strings.Repeat("d/", 511) + "f", Data: "x"}))
	add("limited by Depth", "path made deep by links", deepByLinks())
	add("limited by Header", "path of two megabytes", Cat(longName('L', strings.Repeat("d/", 1<<20)), Header("x", '0', 0, nil), End))
	add(Harmless, "path of nothing but dots and slashes", Cat(longName('L', strings.Repeat("./", 10_000)+"f"), Header("x", '0', 0, nil), End))
	add(Harmless, "case, spaces and control characters", Tar(Entry{Name: " ", Data: "x"}, Entry{Name: "...", Data: "x"}, Entry{Name: ". ", Data: "x"},
		Entry{Name: "A", Data: "x"}, Entry{Name: "a", Data: "y"}, Entry{Name: "new\nline\x1b[31m", Data: "x"}, Entry{Name: "right\u202eleft", Data: "x"}))
	add(Harmless, "name that is no UTF-8", Cat(Header("\xff\xfe\x80", '0', 0, nil), End))
	add(Refused, "a file as parent", Tar(Entry{Name: "f", Data: "x"}, Entry{Name: "f/g", Data: "x"}))
	add(Harmless, "the same entry often", Tar(append([]Entry{{Name: "d/"}}, many(500, func(i int) Entry { return Entry{Name: "d/f", Data: fmt.Sprint(i)} })...)...))
	add(Refused, "file and directory by turn", Tar(many(200, func(i int) Entry {
		if i%2 == 0 {
			return Entry{Name: "x", Data: "f"}
		}
		return Entry{Name: "x/y/z/", Mode: 0o700}
	})...))
	add(Harmless, "directory replaced, then used", Tar(Entry{Name: "d/"}, Entry{Name: "d/e/"}, Entry{Name: "d", Type: symlink, Link: "n"}, Entry{Name: "n/"}, Entry{Name: "d/e/x", Data: "x"}))
	add(Refused, "directory replaced by a file, then used", Tar(Entry{Name: "d/"}, Entry{Name: "d/e/"}, Entry{Name: "d", Data: "file"}, Entry{Name: "d/e/x", Data: "x"}))
	// The names that removing a deep tree gives to what it moves up.
	deep := many(130, func(i int) Entry { return Entry{Name: strings.Repeat("d/", i+1)} })
	for i := range 50 {
		deep = append(deep, Entry{Name: fmt.Sprintf("d/.coracle-removing-%d/", i)}, Entry{Name: fmt.Sprintf(".coracle-removing-%d", i), Type: symlink, Link: outside})
	}
	add(Harmless, "names of the remover", Tar(deep...))
}

func addLinks(add adder, outside string) {
	rel, victim := wayOut(outside), outside+"/victim"
	write := func(name string) Entry { return Entry{Name: name, Data: "overwritten", Mode: 0o777} }
	add(Harmless, "absolute link as parent", Tar(Entry{Name: "l", Type: symlink, Link: outside}, write("l/victim")))
	add(Harmless, "link with a slash as parent", Tar(Entry{Name: "l/", Type: symlink, Link: outside}, write("l/victim")))
	add(Harmless, "relative link as parent", Tar(Entry{Name: "d/"}, Entry{Name: "d/l", Type: symlink, Link: "../" + rel}, write("d/l/victim")))
	add(Harmless, "link chain as parent", Tar(Entry{Name: "a", Type: symlink, Link: "b"}, Entry{Name: "b", Type: symlink, Link: outside}, write("a/victim")))
	add(Refused, "link loop as parent", Tar(Entry{Name: "a", Type: symlink, Link: "b"}, Entry{Name: "b", Type: symlink, Link: "a"}, write("a/x")))
	add(Refused, "link to itself as parent", Tar(Entry{Name: "a", Type: symlink, Link: "a/b"}, write("a/x")))
	add(Harmless, "link to the root as parent", Tar(Entry{Name: "a", Type: symlink, Link: "/"}, write("a/a/a/x")))
	add(Harmless, "link through proc as parent", Tar(Entry{Name: "l", Type: symlink, Link: "/proc/self/root" + outside}, write("l/victim")))
	add(Harmless, "file over a link", Tar(Entry{Name: "v", Type: symlink, Link: victim}, write("v")))
	add(Harmless, "directory over a link", Tar(Entry{Name: "o", Type: symlink, Link: outside}, Entry{Name: "o/", Mode: 0o777}, Entry{Name: "o/evil", Data: "x"}))
	add(Harmless, "fifo over a link", Tar(Entry{Name: "v", Type: symlink, Link: victim}, Entry{Name: "v", Type: tar.TypeFifo, Mode: 0o777}))
	add(Harmless, "metadata of a link", Tar(Entry{Name: "v", Type: symlink, Link: victim, Mode: 0o777, UID: 7, GID: 7, Time: time.Unix(5, 0)}))
	add(HarmlessOrRefused, "attributes of a link", Tar(Entry{Name: "v", Type: symlink, Link: victim, PAX: map[string]string{"SCHILY.xattr.trusted.x": "y", "SCHILY.xattr.user.x": "y"}}))
	add(Harmless, "a link replaced mid-way", Tar(Entry{Name: "d/"}, Entry{Name: "d/x", Data: "1"}, Entry{Name: "d", Type: symlink, Link: outside}, write("d/victim")))
	add(Harmless, "times and modes by a late link", Tar(Entry{Name: "d/", Mode: 0o777, Time: time.Unix(1, 0)}, Entry{Name: "d", Type: symlink, Link: outside}))
	add(Invalid, "link without a target", Cat(Header("l", '2', 0, nil), End))
	add(Refused, "link with a target too long", Cat(longName('K', strings.Repeat("x/", 3000)), Header("l", '2', 0, nil), End))
	add(Invalid, "link with NUL in its target", Cat(Extended("linkpath", "a\x00b"), Header("l", '2', 0, nil), End))
	add(Harmless, "link target that climbs for ever", Tar(Entry{Name: "l", Type: symlink, Link: strings.Repeat("../", 1300)}, write("l/x")))

	add(Invalid, "hard link outside", Tar(Entry{Name: "v", Type: link, Link: victim}, write("v")))
	add(Invalid, "hard link outside, relative", Tar(Entry{Name: "v", Type: link, Link: rel + "/victim"}, write("v")))
	add(Invalid, "hard link outside, by a PAX record", Cat(Extended("linkpath", rel+"/victim"), Header("v", '1', 0, func(b []byte) { copy(b[157:], "f") }), End))
	add(Invalid, "hard link through a link", Tar(Entry{Name: "o", Type: symlink, Link: outside}, Entry{Name: "v", Type: link, Link: "o/victim"}, write("v")))
	add(Harmless, "hard link to a link, then file", Tar(Entry{Name: "s", Type: symlink, Link: victim}, Entry{Name: "v", Type: link, Link: "s"}, write("v")))
	add(Harmless, "hard link to a link as parent", Tar(Entry{Name: "s", Type: symlink, Link: outside}, Entry{Name: "v", Type: link, Link: "s"}, write("v/victim")))
	add(Harmless, "metadata of a hard link to a link", Tar(Entry{Name: "l", Type: symlink, Link: victim}, Entry{Name: "h", Type: link, Link: "l", Mode: 0o777, UID: 7, Time: time.Unix(5, 0)}))
	add(Invalid, "hard link to itself", Tar(Entry{Name: "v", Type: link, Link: "v"}))
	add(Invalid, "hard link to a directory", Tar(Entry{Name: "d/"}, Entry{Name: "v", Type: link, Link: "d"}))
	add(Invalid, "hard link to the root", Tar(Entry{Name: "v", Type: link, Link: "/"}))
	add(Invalid, "hard link without a target", Cat(Header("v", '1', 0, nil), End))
	add(Invalid, "hard link before its target", Tar(Entry{Name: "v", Type: link, Link: "t"}, write("t")))
	add(Invalid, "hard link to a whiteout", Tar(Entry{Name: ".wh.t"}, Entry{Name: "v", Type: link, Link: "t"}))
	add(Harmless, "hard links to node and fifo", Tar(Entry{Name: "n", Type: tar.TypeChar, Major: 1, Minor: 3}, Entry{Name: "m", Type: link, Link: "n"},
		Entry{Name: "p", Type: tar.TypeFifo}, Entry{Name: "q", Type: link, Link: "p"}, write("q"), write("m")))
	add(Harmless, "a thousand hard links", Tar(append([]Entry{write("t")}, many(1000, func(i int) Entry { return Entry{Name: fmt.Sprint("h", i), Type: link, Link: "t"} })...)...))
}

func addKinds(add adder, outside string) {
	rel := wayOut(outside)
	add(Invalid, "whiteout outside", Tar(Entry{Name: rel + "/.wh.victim"}))
	add(Harmless, "whiteout through a link", Tar(Entry{Name: "o", Type: symlink, Link: outside}, Entry{Name: "o/.wh.victim"}))
	add(Harmless, "opaque through a link", Tar(Entry{Name: "o", Type: symlink, Link: outside}, Entry{Name: "o/.wh..wh..opq"}))
	add(Harmless, "opaque root", Tar(Entry{Name: ".wh..wh..opq"}))
	add(Invalid, "whiteout of dot", Tar(Entry{Name: ".wh.."}))
	add(Invalid, "whiteout of dot dot", Tar(Entry{Name: ".wh..."}))
	add(Invalid, "whiteout of nothing", Tar(Entry{Name: ".wh."}))
	add(Invalid, "whiteout of a path", Tar(Entry{Name: ".wh.a/b", Data: "x"}))
	add(Harmless, "whiteout that is a link", Tar(Entry{Name: ".wh.victim", Type: symlink, Link: outside}))
	add(Harmless, "whiteout that is a hard link", Tar(Entry{Name: "f", Data: "x"}, Entry{Name: ".wh.victim", Type: link, Link: "f"}))
	add(Harmless, "whiteout with content", Tar(Entry{Name: ".wh.x", Data: strings.Repeat("x", 10_000)}, Entry{Name: "after", Data: "x"}))
	add(Harmless, "whiteout of a link of this layer", Tar(Entry{Name: "l", Type: symlink, Link: outside}, Entry{Name: ".wh.l"}))
	add(Harmless, "book-keeping of aufs", Tar(Entry{Name: ".wh..wh.plnk/"}, Entry{Name: ".wh..wh.plnk/1.2", Type: link, Link: outside + "/victim"}, Entry{Name: ".wh..wh.aufs", Data: "x"}), ".wh..wh.plnk", ".wh..wh.aufs")
	add(Harmless, "overlay attributes", Tar(
		Entry{Name: "d/", PAX: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/../../etc", "SCHILY.xattr.user.overlay.metacopy": "", "SCHILY.xattr.trusted.overlay.opaque": "y"}},
		Entry{Name: "d/f", PAX: map[string]string{"SCHILY.xattr.trusted.overlay.metacopy": "x", "SCHILY.xattr.trusted.overlay.redirect": "/etc/shadow"}},
		Entry{Name: "d/n/", PAX: map[string]string{"SCHILY.xattr.trusted.overlay.overlay.opaque": "y", "SCHILY.xattr.user.overlay.whiteouts": "y", "SCHILY.xattr.user.overlay.opaque": "x"}}))
	add(Harmless, "labels of security modules", Tar(Entry{Name: "f", PAX: map[string]string{"SCHILY.xattr.security.selinux": "system_u:object_r:shadow_t:s0", "SCHILY.xattr.security.evm": "x", "SCHILY.xattr.security.SMACK64": "x"}}))
	add(Harmless, "attribute of an unknown kind", Tar(Entry{Name: "f", PAX: map[string]string{"SCHILY.xattr.strange.name": "x"}}))
	add(Refused, "attribute without a name", Cat(Extended("SCHILY.xattr.", "x"), Header("f", '0', 0, nil), End))
	add(Refused, "attribute with a name too long", Tar(Entry{Name: "f", PAX: map[string]string{"SCHILY.xattr.user." + strings.Repeat("x", 300): "x"}}))
	add(Refused, "attribute too large", Tar(Entry{Name: "f", PAX: map[string]string{"SCHILY.xattr.trusted.x": strings.Repeat("x", 100_000)}}))
	add(Refused, "ten thousand attributes", Tar(Entry{Name: "f", PAX: manyAttributes(10_000)}))
	add(Refused, "capabilities that are none", Tar(Entry{Name: "f", PAX: map[string]string{"SCHILY.xattr.security.capability": "x"}}))
	add(HarmlessOrRefused, "ACL that is none", Tar(Entry{Name: "f", PAX: map[string]string{"SCHILY.xattr.system.posix_acl_access": "x"}}))
	add(Harmless, "whiteout device", Tar(Entry{Name: "dev", Type: tar.TypeChar}))
	add(Harmless, "fifo, then written", Tar(Entry{Name: "p", Type: tar.TypeFifo}, Entry{Name: "p", Data: "would block"}))
	add(Harmless, "device, then written", Tar(Entry{Name: "full", Type: tar.TypeChar, Major: 1, Minor: 7}, Entry{Name: "full", Data: "x"}))
	add(Refused, "fifo as parent", Tar(Entry{Name: "p", Type: tar.TypeFifo}, Entry{Name: "p/f", Data: "x"}))
	add(Harmless, "device over a directory", Tar(Entry{Name: "d/"}, Entry{Name: "d/e/f", Data: "x"}, Entry{Name: "d", Type: tar.TypeBlock, Major: 8, Mode: 0o666}))
	add(Harmless, "setuid of another owner", Tar(Entry{Name: "su", Data: "x", Mode: 0o6777, UID: 1000, GID: 1000}))
	add(Invalid, "sparse device", Cat(Header("x", '3', 0, func(b []byte) { copy(b[329:], "7777777\x007777777\x00") }), End))
	add(Invalid, "unknown type", Cat(Header("x", 'Z', 0, nil), End))
	add(Invalid, "multi-volume continuation", Cat(Header("x", 'M', 0, nil), End))
	add(Harmless, "volume label", Cat(Header("label", 'V', 600, nil), make([]byte, 1024), Header("f", '0', 0, nil), End), "label")
}

func manyAttributes(n int) map[string]string {
	m := make(map[string]string, n)
	for i := range n {
		m[fmt.Sprintf("SCHILY.xattr.trusted.%d", i)] = "x"
	}
	return m
}

// deepByLinks makes directories below each other through links, each name short enough by itself.
func deepByLinks() []byte {
	var entries []Entry
	for i := range 20 {
		prefix := ""
		if i > 0 {
			prefix = fmt.Sprintf("l%d/", i-1)
		}
		entries = append(entries, Entry{Name: prefix + strings.Repeat("d/", 100) + "x/"},
			Entry{Name: fmt.Sprintf("l%d", i), Type: symlink, Link: prefix + strings.Repeat("d/", 100) + "x"})
	}
	return Tar(entries...)
}
