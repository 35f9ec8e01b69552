package layerfs

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// model is a plain file system in memory that archives are extracted into one after another: what the OCI image
// specification says a stack of layers means, without any of this package's code.
type model struct {
	root *mnode
}

type mnode struct {
	kind  byte // 'd', 'f', 'l'
	data  string
	mode  int64
	kids  map[string]*mnode
	layer int // that made or changed the name last
}

func newDirNode(layer int) *mnode {
	return &mnode{kind: 'd', mode: 0o755, kids: map[string]*mnode{}, layer: layer}
}

// parent resolves the directory of a path, following links in the root, making what is missing. nil means that a file
// is in the way.
func (m *model) parent(comps []string, layer int) *mnode {
	stack := []*mnode{m.root}
	links := 0
	for len(comps) > 0 {
		c := comps[0]
		comps = comps[1:]
		cur := stack[len(stack)-1]
		switch c {
		case "", ".":
			continue
		case "..":
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
			continue
		}
		k := cur.kids[c]
		if k == nil {
			k = newDirNode(layer)
			cur.kids[c] = k
		}
		switch k.kind {
		case 'd':
			k.layer = layer
			stack = append(stack, k)
		case 'l':
			if links++; links > 40 {
				return nil
			}
			if strings.HasPrefix(k.data, "/") {
				stack = stack[:1]
			}
			comps = append(strings.Split(k.data, "/"), comps...)
		default:
			return nil
		}
	}
	return stack[len(stack)-1]
}

// apply extracts an archive. ok is false where an honest extractor gives up.
func (m *model) apply(ents []ent, layer int) (ok bool) {
	for _, e := range ents {
		comps := strings.Split(strings.Trim(e.name, "/"), "/")
		base := comps[len(comps)-1]
		dir := m.parent(comps[:len(comps)-1], layer)
		if dir == nil {
			return false
		}
		if base == whOpaque {
			m.hide(dir, layer)
			continue
		}
		if name, ok := strings.CutPrefix(base, ".wh."); ok {
			if k := dir.kids[name]; k != nil {
				if k.layer != layer {
					delete(dir.kids, name)
				} else {
					m.hide(k, layer)
				}
			}
			continue
		}
		old := dir.kids[base]
		switch {
		case e.kind == tar.TypeDir:
			if old == nil || old.kind != 'd' {
				old = newDirNode(layer)
				dir.kids[base] = old
			}
			old.mode, old.layer = e.mode, layer
		case e.kind == tar.TypeSymlink:
			dir.kids[base] = &mnode{kind: 'l', data: e.link, layer: layer}
		case e.kind == tar.TypeLink:
			tc := strings.Split(e.link, "/")
			if old != nil && old.kind == 'd' {
				delete(dir.kids, base)
			}
			td := m.parent(tc[:len(tc)-1], layer)
			if td == nil {
				return false
			}
			t := td.kids[tc[len(tc)-1]]
			if t == nil || t.kind == 'd' {
				return false
			}
			// Both names are in this layer from now on.
			t.layer = layer
			dir.kids[base] = t
		default:
			dir.kids[base] = &mnode{kind: 'f', data: e.data, mode: e.mode, layer: layer}
		}
	}
	return true
}

// hide removes what other layers have in a directory.
func (m *model) hide(d *mnode, layer int) {
	for name, k := range d.kids {
		if k.layer != layer {
			delete(d.kids, name)
		} else if k.kind == 'd' {
			m.hide(k, layer)
		}
	}
}

func (m *model) list() map[string]string {
	out := map[string]string{}
	first := map[*mnode]string{}
	var walk func(string, *mnode)
	walk = func(p string, n *mnode) {
		if p != "" {
			same := ""
			if n.kind == 'f' {
				if f, ok := first[n]; ok {
					same = "=" + f
				} else {
					first[n] = p
				}
			}
			mode := n.mode
			if n.kind == 'l' {
				mode = 0o777
			}
			out[p] = fmt.Sprintf("%c %o %q%s", n.kind, mode, n.data, same)
		}
		for _, k := range slices.Sorted(maps.Keys(n.kids)) {
			walk(path.Join(p, k), n.kids[k])
		}
	}
	walk("", m.root)
	return out
}

func listTree(t testing.TB, root string) map[string]string {
	out := map[string]string{}
	for p, f := range scan(t, root) {
		if p == "." {
			continue
		}
		var data string
		kind := 'f'
		switch f.mode & unix.S_IFMT {
		case unix.S_IFDIR:
			kind = 'd'
		case unix.S_IFLNK:
			kind, data = 'l', f.link
		case unix.S_IFREG:
			b, err := os.ReadFile(path.Join(root, p))
			if err != nil {
				t.Fatal(err)
			}
			data = string(b)
		default:
			kind = '?'
		}
		same := ""
		if kind == 'f' && f.same != "" && f.same != p {
			same = "=" + f.same
		}
		out[p] = fmt.Sprintf("%c %o %q%s", kind, f.mode&0o7777, data, same)
	}
	return out
}

// genEntry makes entries over few names, so that they meet.
func genEntry(t *rapid.T, layer, i int) ent {
	name := rapid.SampledFrom([]string{"a", "b", "c"})
	parts := rapid.SliceOfN(name, 1, 3).Draw(t, "path")
	p := strings.Join(parts, "/")
	switch rapid.IntRange(0, 11).Draw(t, "kind") {
	case 0, 1, 2, 3:
		return ent{name: p + "/", kind: tar.TypeDir, mode: rapid.SampledFrom([]int64{0o755, 0o700, 0o1777}).Draw(t, "mode")}
	case 4, 5, 6:
		return ent{name: p, kind: tar.TypeReg, mode: rapid.SampledFrom([]int64{0o644, 0o600}).Draw(t, "mode"), data: fmt.Sprintf("%d.%d", layer, i)}
	case 7:
		target := rapid.SampledFrom([]string{"a", "b", "c", "/a", "/b/c", "../b", "../../a/c", "nowhere"}).Draw(t, "target")
		return ent{name: p, kind: tar.TypeSymlink, link: target}
	case 8:
		return ent{name: p, kind: tar.TypeLink, link: strings.Join(rapid.SliceOfN(name, 1, 3).Draw(t, "link"), "/")}
	case 9, 10:
		parts[len(parts)-1] = ".wh." + parts[len(parts)-1]
		return ent{name: strings.Join(parts, "/"), kind: tar.TypeReg}
	default:
		return ent{name: p + "/" + whOpaque, kind: tar.TypeReg}
	}
}

// Layers unpacked here and stacked by overlayfs are what extracting them one after another gives. A layer that an extractor
// refuses must be refused here, and the other way round.
func TestStackEqualsSequentialExtraction(t *testing.T) {
	testutil.RequireRoot(t)
	s := openTest(t, nil)
	n := 0
	kinds := map[byte]int{}
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{root: newDirNode(0)}
		var specs []LayerSpec
		var all [][]ent
		ok := true
		for l := range rapid.IntRange(1, 4).Draw(rt, "layers") {
			count := rapid.IntRange(1, 8).Draw(rt, "entries")
			var ents []ent
			for i := range count {
				ents = append(ents, genEntry(rt, l, i))
			}
			if !unordered(ents) {
				rt.Skip("the meaning depends on the order of whiteouts")
			}
			all = append(all, ents)
			archive := makeTar(t, ents...)
			specs = append(specs, specOf(archive, archive))
			if ok = m.apply(ents, l+1); !ok {
				break
			}
		}
		layers, err := s.UnpackAll(t.Context(), specs, nil)
		if (err == nil) != ok {
			rt.Fatalf("unpack: %v, extraction is possible: %v\n%s", err, ok, dumpLayers(all))
		}
		if err != nil {
			return
		}
		for _, l := range layers {
			kinds[l.Key[0]]++
		}
		n++
		snap, err := s.NewSnapshot(t.Context(), fmt.Sprintf("s%d", n), layers, &SnapshotOptions{Volatile: true})
		if err != nil {
			rt.Fatal(err)
		}
		f, err := snap.Mount(t.Context(), nil)
		if err != nil {
			rt.Fatal(err)
		}
		got := listTree(t, fmt.Sprintf("/proc/self/fd/%d/", f.Fd()))
		f.Close()
		if err := snap.Remove(t.Context()); err != nil {
			rt.Fatal(err)
		}
		if want := m.list(); !maps.Equal(want, got) {
			rt.Fatalf("%s\n got %v\nwant %v", dumpLayers(all), got, want)
		}
	})
	if kinds['d'] == 0 || kinds['c'] == 0 {
		t.Errorf("layers of one kind only: %v", kinds)
	}
	wantEmpty(t, s, "tmp", "locks", "snapshots")
}

// unordered reports whether no whiteout of the layer touches a name that the same layer has too: the specification
// leaves the meaning to their order, and extractors differ.
func unordered(ents []ent) bool {
	for i, w := range ents {
		dir, base := path.Split(strings.TrimSuffix(w.name, "/"))
		if !strings.HasPrefix(base, ".wh.") {
			continue
		}
		hidden := strings.TrimSuffix(dir, "/")
		if base != whOpaque {
			hidden = dir + strings.TrimPrefix(base, ".wh.")
		}
		for j, e := range ents {
			n := strings.Trim(e.name, "/")
			if i != j && (n == hidden || strings.HasPrefix(n, hidden+"/") || strings.HasPrefix(hidden, n+"/") && e.kind != tar.TypeDir || e.kind == tar.TypeSymlink || e.kind == tar.TypeLink) {
				return false
			}
		}
	}
	return true
}

func dumpLayers(all [][]ent) string {
	var b strings.Builder
	for i, ents := range all {
		for _, e := range ents {
			fmt.Fprintf(&b, "layer %d: %c %s %s %o\n", i, e.kind, e.name, e.link, e.mode)
		}
	}
	return b.String()
}

// TestWhatStacksMean has the stacks that were wrong once; package internal/oracle found most of them.
func TestWhatStacksMean(t *testing.T) {
	testutil.RequireRoot(t)
	opq := ent{name: whOpaque}
	for _, test := range []struct {
		name   string
		layers [][]ent
		want   map[string]string // nil: it makes no sense
	}{
		{"an opaque marker in the root", [][]ent{
			{{name: "d/"}, {name: "d/old"}, {name: "f"}}, {opq, {name: "d/"}, {name: "d/new"}}, {{name: "g"}},
		}, map[string]string{"d": `d 755 ""`, "d/new": `f 644 ""`, "g": `f 644 ""`}},
		{"a root that is opaque twice", [][]ent{{{name: "a"}}, {opq}, {{name: "b"}}, {opq}}, map[string]string{}},
		{"a whiteout before what the layer has in the directory", [][]ent{
			{{name: "d/", mode: 0o700}, {name: "d/old"}}, {{name: ".wh.d"}, {name: "d/e/f"}},
		}, map[string]string{"d": `d 755 ""`, "d/e": `d 755 ""`, "d/e/f": `f 644 ""`}},
		{"a whiteout behind what the layer has in the directory", [][]ent{
			{{name: "d/", mode: 0o700}, {name: "d/e/", mode: 0o711}, {name: "d/old"}}, {{name: "d/e/f"}, {name: ".wh.d"}},
		}, map[string]string{"d": `d 755 ""`, "d/e": `d 755 ""`, "d/e/f": `f 644 ""`}},
		{"an opaque marker behind what the layer has in the directory", [][]ent{
			{{name: "d/", mode: 0o700}, {name: "d/e/", mode: 0o711}}, {{name: "d/e/f"}, {name: "d/" + whOpaque}},
		}, map[string]string{"d": `d 700 ""`, "d/e": `d 755 ""`, "d/e/f": `f 644 ""`}},
		{"an opaque marker, and a whiteout of the directory", [][]ent{
			{{name: "d/", mode: 0o700}, {name: "d/e/"}}, {{name: "d/" + whOpaque}, {name: ".wh.d"}},
		}, map[string]string{"d": `d 755 ""`}},
		{"an opaque marker, and a whiteout above the directory", [][]ent{
			{{name: "d/"}, {name: "d/e/", mode: 0o700}}, {{name: "d/e/" + whOpaque}, {name: ".wh.d"}},
		}, map[string]string{"d": `d 755 ""`, "d/e": `d 755 ""`}},
		{"a link to what the layer then deletes", [][]ent{
			{{name: "a", data: "x"}}, {{name: "b", kind: tar.TypeLink, link: "a"}, {name: ".wh.a"}},
		}, map[string]string{"b": `f 644 "x"`}},
		{"a link to what the layer then hides", [][]ent{
			{{name: "d/"}, {name: "d/a", data: "x"}}, {{name: "b", kind: tar.TypeLink, link: "d/a"}, {name: "d/" + whOpaque}},
		}, map[string]string{"b": `f 644 "x"`, "d": `d 755 ""`}},
		{"a link to what the layer then replaces by a directory, and hides", [][]ent{
			{{name: "d/"}, {name: "d/a", data: "x"}}, {{name: "b", kind: tar.TypeLink, link: "d/a"}, {name: "d/a/"}, {name: "d/" + whOpaque}},
		}, map[string]string{"b": `f 644 "x"`, "d": `d 755 ""`, "d/a": `d 755 ""`}},
		{"a link to a file in what the layer then deletes", [][]ent{
			{{name: "d/"}, {name: "d/e/"}, {name: "d/e/a", data: "x"}}, {{name: "b", kind: tar.TypeLink, link: "d/e/a"}, {name: ".wh.d"}},
		}, map[string]string{"b": `f 644 "x"`}},
		{"a link to a file in what the layer then hides", [][]ent{
			{{name: "d/"}, {name: "d/e/"}, {name: "d/e/a", data: "x"}}, {{name: "b", kind: tar.TypeLink, link: "d/e/a"}, {name: "d/" + whOpaque}},
		}, map[string]string{"b": `f 644 "x"`, "d": `d 755 ""`}},
		{"a link to a file, a whiteout of its directory, and a directory in its place", [][]ent{
			{{name: "d/"}, {name: "d/e/"}, {name: "d/e/a", data: "x"}}, {{name: "b", kind: tar.TypeLink, link: "d/e/a"}, {name: "d/f"}, {name: ".wh.d"}, {name: "d/e/a/b/"}},
		}, map[string]string{"b": `f 644 "x"`, "d": `d 755 ""`, "d/e": `d 755 ""`, "d/e/a": `d 755 ""`, "d/e/a/b": `d 755 ""`, "d/f": `f 644 ""`}},
		{"a link in the place of the directory that it names", [][]ent{
			{{name: "a", data: "x"}}, {{name: "a/"}, {name: "a", kind: tar.TypeLink, link: "a"}},
		}, nil},
		{"a link in the place of the directory that its target is in", [][]ent{
			{{name: "a/"}, {name: "a/b"}}, {{name: "a/"}, {name: "a", kind: tar.TypeLink, link: "a/b"}},
		}, nil},
		{"a path whose link becomes a directory", [][]ent{
			{{name: "c/"}, {name: "l", kind: tar.TypeSymlink, link: "c"}, {name: "l/x", data: "1"}, {name: "l/"}, {name: "l/x", data: "2"}},
		}, map[string]string{"c": `d 755 ""`, "c/x": `f 644 "1"`, "l": `d 755 ""`, "l/x": `f 644 "2"`}},
		{"a path whose link, of a lower layer, becomes a directory", [][]ent{
			{{name: "c/"}, {name: "l", kind: tar.TypeSymlink, link: "c"}}, {{name: "l/x", data: "1"}, {name: ".wh.l"}, {name: "l/x", data: "2"}},
		}, map[string]string{"c": `d 755 ""`, "c/x": `f 644 "1"`, "l": `d 755 ""`, "l/x": `f 644 "2"`}},
		{"a link in the place of another directory", [][]ent{
			{{name: "f", data: "x"}}, {{name: "a/"}, {name: "a/b"}, {name: "a", kind: tar.TypeLink, link: "f"}},
		}, map[string]string{"a": `f 644 "x"`, "f": `f 644 "x"=a`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := openTest(t, nil)
			var specs []LayerSpec
			for _, l := range test.layers {
				archive := makeTar(t, l...)
				specs = append(specs, specOf(archive, archive))
			}
			ls, err := s.UnpackAll(t.Context(), specs, nil)
			if test.want == nil {
				if !errors.Is(err, ErrInvalidArchive) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			n, err := s.NewSnapshot(t.Context(), "c", ls, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := listTree(t, under(mount(t, n, nil), "")); !maps.Equal(got, test.want) {
				t.Errorf("\n got %v\nwant %v", got, test.want)
			}
		})
	}
}

// TestLinkToWhatIsBelow: the file that a hard link takes along from a lower layer keeps all that it had.
func TestLinkToWhatIsBelow(t *testing.T) {
	testutil.RequireRoot(t)
	s := openTest(t, nil)
	attr := map[string]string{"SCHILY.xattr.trusted.test": "x"}
	files := []ent{
		{name: "./"},
		{name: "file", data: "f", mode: 0o4711, uid: 3, pax: attr},
		{name: "link", kind: tar.TypeSymlink, link: "file", uid: 4, pax: attr},
		{name: "node", kind: tar.TypeChar, maj: 1, min: 3, mode: 0o600, gid: 5, pax: attr},
		{name: "fifo", kind: tar.TypeFifo, pax: attr},
	}
	var links []ent
	for _, f := range files[1:] {
		links = append(links, ent{name: "l-" + f.name, kind: tar.TypeLink, link: f.name})
	}
	n, err := s.NewSnapshot(t.Context(), "c", unpackAll(t, s, makeTar(t, files...), makeTar(t, links...)), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := scan(t, layerDir(s, unpackAll(t, s, makeTar(t, append(files, links...)...))[0]))
	compare(t, want, scan(t, under(mount(t, n, nil), "")))
}
