package layerfstest

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/layerfs"
)

// Values of attributes: cap_net_bind_service+ep, revision 2; and user 1000 may read and write.
const (
	capability = "\x01\x00\x00\x02\x00\x04" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	acl        = "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x06\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x06\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff"
)

var long = strings.Repeat("n", 255)

// base is a layer with one of everything, whose content is itself.
func base() []node {
	deep := ""
	nodes := []node{
		{name: "plain", data: "plain", uid: 7, gid: 8, mode: 0o640},
		{name: "empty"},
		{name: "unreadable", data: "x", mode: 0o4},
		{name: "setuid", data: "s", mode: 0o4755, uid: 1000},
		{name: "setgid", data: "s", mode: 0o2711, gid: 4_000_000_000},
		{name: "able", data: "c", uid: 5, xattrs: map[string]string{"security.capability": capability}},
		{name: "attributes", data: "a", xattrs: map[string]string{"user.text": "bin\x00ary=\n", "trusted.text": "t"}},
		{name: "access", data: "l", mode: 0o664, xattrs: map[string]string{"system.posix_acl_access": acl}},
		{name: "first", data: "linked"},
		{name: "old", data: "o", time: time.Unix(-1000, 7)},
		{name: "big", data: strings.Repeat("0123456789abcdef", 20_000)},
		{name: "sym", kind: tar.TypeSymlink, link: "dir/file", uid: 3, xattrs: map[string]string{"trusted.text": "s"}},
		{name: "dangling", kind: tar.TypeSymlink, link: strings.Repeat("x/", 500)}, // xfs takes 1,024 bytes
		{name: "null", kind: tar.TypeChar, major: 1, minor: 3, mode: 0o666, xattrs: map[string]string{"trusted.text": "n"}},
		{name: "disk", kind: tar.TypeBlock, major: 259, minor: 70_000, mode: 0o4600, gid: 6},
		{name: "fifo", kind: tar.TypeFifo, mode: 0o622},
		{name: "dir/", mode: 0o1777, uid: 9, time: epoch.Add(time.Hour), xattrs: map[string]string{"user.text": "d", "trusted.text": "d"}},
		{name: "dir/file", data: "in", time: epoch.Add(2 * time.Hour)},
		{name: "dir/second", kind: tar.TypeLink, link: "first"},
		{name: "closed/", mode: 0o40, gid: 1},
		{name: "closed/in/", mode: 0o2750},
		{name: "closed/in/third", kind: tar.TypeLink, link: "first"},
		{name: "inherits/", xattrs: map[string]string{"system.posix_acl_default": acl}},
		{name: "inherits/fifo", kind: tar.TypeFifo, mode: 0o644},
		{name: "inherits/file", data: "i", mode: 0o600},
		{name: "odd \n\\name\xff", data: "?"},
		{name: strings.Repeat("m", 255), data: "long"},
	}
	for range 10 {
		deep += long + "/"
		nodes = append(nodes, node{name: deep, mode: 0o711})
	}
	return append(nodes, node{name: deep + "file", data: "deep"})
}

// wanted says what a tree of these nodes looks like.
func wanted(nodes []node) map[string]file {
	tree := map[string]file{}
	names := map[string][]string{} // of the files that have several
	for _, n := range nodes {
		n = n.withDefaults()
		name := strings.TrimSuffix(n.name, "/")
		if n.kind == tar.TypeLink {
			names[n.link] = append(names[n.link], name)
			continue
		}
		f := file{mode: uint32(n.mode), uid: uint32(n.uid), gid: uint32(n.gid), mtime: n.time}
		switch n.kind {
		case tar.TypeDir:
			f.mode |= unix.S_IFDIR
		case tar.TypeReg:
			f.mode |= unix.S_IFREG
			f.size, f.sum = int64(len(n.data)), fmt.Sprintf("%x", sha256.Sum256([]byte(n.data)))
		case tar.TypeSymlink:
			f.mode |= unix.S_IFLNK
			f.link = n.link
		case tar.TypeChar:
			f.mode |= unix.S_IFCHR
			f.rdev = unix.Mkdev(uint32(n.major), uint32(n.minor))
		case tar.TypeBlock:
			f.mode |= unix.S_IFBLK
			f.rdev = unix.Mkdev(uint32(n.major), uint32(n.minor))
		case tar.TypeFifo:
			f.mode |= unix.S_IFIFO
		}
		for _, k := range []string{"security.capability", "system.posix_acl_access", "system.posix_acl_default", "trusted.text", "user.text"} {
			if v, ok := n.xattrs[k]; ok {
				f.xattrs += fmt.Sprintf(" %s=%q", k, v)
			}
		}
		tree[name] = f
	}
	for target, links := range names {
		f := tree[target]
		f.same = min(target, slices.Min(links))
		for _, name := range append(links, target) {
			tree[name] = f
		}
	}
	return tree
}

// supports leaves out of nodes the attributes that the filesystem of the store does not take.
func (w *world) supports(t *testing.T, nodes []node) []node {
	t.Helper()
	probe := w.dir + "/tmp/attributes"
	if err := os.Mkdir(probe, 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(probe)
	lacks := map[string]bool{}
	for k, v := range map[string]string{"user.text": "x", "trusted.text": "x", "system.posix_acl_access": acl, "system.posix_acl_default": acl} {
		lacks[k] = errors.Is(unix.Setxattr(probe, k, []byte(v), 0), unix.ENOTSUP)
	}
	for i := range nodes {
		for k := range nodes[i].xattrs {
			if lacks[k] {
				t.Logf("the filesystem has no %s", k)
				delete(nodes[i].xattrs, k)
			}
		}
	}
	return nodes
}

// rest removes the root, whose attributes are a test of their own.
func rest(tree map[string]file) map[string]file {
	delete(tree, ".")
	return tree
}

func testContent(t *testing.T, w *world) {
	t.Run("one layer", func(t *testing.T) {
		nodes := w.supports(t, base())
		st := w.stack(t, nodes)
		layer := scan(t, st.paths[0])
		s := w.prepared(t, st, false)
		s.withMount(t, layerfs.MountOptions{}, func(root *os.File) {
			compare(t, "mounted", wanted(nodes), rest(scan(t, under(root, ""))))
		})
		sameFiles(t, "layer", layer, scan(t, st.paths[0]))
		s.remove(t)
	})
	t.Run("a sparse file", func(t *testing.T) {
		st := w.stack(t, []node{{name: "sparse", data: strings.Repeat("\x00", 64)}})
		// As an archive with holes leaves it; that is a matter of the store's own tests.
		f, err := os.OpenFile(st.paths[0]+"/sparse", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte("end"), 64<<20)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		s := w.prepared(t, st, false)
		s.withMount(t, layerfs.MountOptions{}, func(root *os.File) {
			f := scan(t, under(root, ""))["sparse"]
			if f.size != 64<<20+3 || f.blocks*512 > 1<<20 {
				t.Errorf("%d bytes use %d kB", f.size, f.blocks/2)
			}
		})
		s.remove(t)
	})
	if w.MaxLayers > 0 && w.MaxLayers < 4 {
		return
	}
	t.Run("four layers", func(t *testing.T) {
		lower := w.supports(t, base())
		kept := func(names ...string) (out []node) {
			for _, n := range lower {
				for _, name := range names {
					if n.name == name {
						out = append(out, n)
					}
				}
			}
			return out
		}
		wh := func(name string) node { return node{name: name} }
		second := []node{
			wh(".wh.plain"), wh(".wh.closed"), wh(".wh." + long), wh(".wh.never was"), // a file, directories, nothing
			{name: "dir/", mode: 0o750, gid: 2, xattrs: map[string]string{"trusted.text": "2"}}, // other attributes
			wh("dir/.wh.second"),
			{name: "dir/new/"}, {name: "dir/new/file", data: "new"},
			{name: "empty", kind: tar.TypeSymlink, link: "big"},            // a link in the place of a file
			{name: "sym/", mode: 0o700}, {name: "sym/inside", data: "dir"}, // a directory in the place of a link
			{name: "inherits", data: "file"}, // a file in the place of a directory
		}
		third := []node{
			{name: "dir/"}, wh("dir/.wh..wh..opq"), {name: "dir/only", data: "3"}, // all that was in it is hidden
			{name: "plain", data: "back"},            // what was deleted
			{name: "closed/"}, {name: "closed/file"}, // the directory, but not what was in it
			wh(".wh.sym"),                                 // what replaced something
			{name: "inherits/"}, {name: "inherits/again"}, // a directory again
		}
		fourth := []node{{name: "opaque/"}, wh("opaque/.wh..wh..opq"), {name: "opaque/x"}, {name: "whites/"}, wh("whites/.wh.x"), {name: "whites/y"}}
		want := kept("unreadable", "setuid", "setgid", "able", "attributes", "access", "first", "old", "big", "dangling", "null", "disk", "fifo", "odd \n\\name\xff", strings.Repeat("m", 255))
		want = append(want, second[8], third[0], third[2], third[3], third[4], third[5], third[7], third[8])
		want = append(want, fourth[0], fourth[2], fourth[3], fourth[5])
		st := w.stack(t, lower, second, third, fourth)
		var layers []map[string]file
		for _, p := range st.paths {
			layers = append(layers, scan(t, p))
		}
		s := w.prepared(t, st, false)
		for _, o := range []layerfs.MountOptions{{}, {ReadOnly: true}} {
			s.withMount(t, o, func(root *os.File) {
				got := rest(scan(t, under(root, "")))
				// first has lost its other names.
				f := got["first"]
				f.same = ""
				got["first"] = f
				compare(t, fmt.Sprintf("%+v", o), wanted(want), got)
			})
		}
		for i, p := range st.paths {
			sameFiles(t, fmt.Sprintf("layer %d", i), layers[i], scan(t, p))
		}
		s.remove(t)
	})
	t.Run("an opaque root", func(t *testing.T) {
		st := w.stack(t, []node{{name: "gone"}, {name: "d/"}, {name: "d/gone"}}, []node{{name: ".wh..wh..opq"}, {name: "d/"}, {name: "d/here"}}, []node{{name: "top"}})
		s := w.prepared(t, st, false)
		s.withMount(t, layerfs.MountOptions{}, func(root *os.File) {
			compare(t, "mounted", wanted([]node{{name: "d/"}, {name: "d/here"}, {name: "top"}}), rest(scan(t, under(root, ""))))
		})
	})
}

// testRoot: the topmost layer that has an entry for the root says what it is.
func testRoot(t *testing.T, w *world) {
	root := w.supports(t, []node{{name: "./", mode: 0o2711, uid: 11, gid: 12, time: time.Unix(1e9, 5), xattrs: map[string]string{"trusted.text": "root", "user.text": "root"}}})[0]
	lower := node{name: "./", mode: 0o700, uid: 1, xattrs: map[string]string{"trusted.text": "lower"}}
	want := wanted([]node{root})["."]
	for name, layers := range map[string][][]node{
		"of one layer":            {{root, {name: "f"}}},
		"of the upper one":        {{lower, {name: "f"}}, {root, {name: "g"}}},
		"below one that has none": {{lower}, {root, {name: "f"}}, {{name: "g"}}},
	} {
		if w.MaxLayers > 0 && len(layers) > w.MaxLayers {
			continue
		}
		t.Run(name, func(t *testing.T) {
			s := w.prepared(t, w.stack(t, layers...), false)
			s.withMount(t, layerfs.MountOptions{}, func(f *os.File) {
				if got := scan(t, under(f, ""))["."]; got.String() != want.String() {
					t.Errorf("\n got %v\nwant %v", got, want)
				}
			})
			s.remove(t)
		})
	}
	t.Run("of none", func(t *testing.T) {
		began := time.Now().Add(-time.Second) // the clock of files is coarse
		st := w.stack(t, []node{{name: "f"}})
		s := w.prepared(t, st, false)
		s.withMount(t, layerfs.MountOptions{}, func(f *os.File) {
			if got := scan(t, under(f, ""))["."]; got.mode != unix.S_IFDIR|0o755 || got.uid != 0 || got.gid != 0 || got.mtime.Before(began) {
				t.Errorf("%v", got)
			}
		})
	})
}

// testNumbers stacks more layers than one mount option can name.
func testNumbers(t *testing.T, w *world) {
	var layers [][]node
	for i := range 120 {
		layers = append(layers, []node{{name: "d/"}, {name: fmt.Sprintf("d/f%03d", i)}, {name: "top", data: fmt.Sprint(i)}})
	}
	for _, n := range []int{0, 1, 2, 30, 120} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s := w.empty(t, w.stack(t, layers[:n]...), false)
			var root *os.File
			err := w.driver.Prepare(t.Context(), &s.SnapshotDir)
			if err == nil {
				root, err = w.driver.Mount(t.Context(), &s.SnapshotDir, &layerfs.MountOptions{})
			}
			if w.MaxLayers > 0 && n > w.MaxLayers {
				if !errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("more than %d layers: %v", w.MaxLayers, err)
				}
				s.remove(t)
				return
			}
			if w.MaxLayers > 0 && n == 0 && errors.Is(err, errors.ErrUnsupported) {
				s.remove(t)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			want := 0
			if n > 0 {
				want = 2
				if data, err := os.ReadFile(under(root, "top")); err != nil || string(data) != fmt.Sprint(n-1) {
					t.Errorf("%q, %v", data, err)
				}
				if ents, err := os.ReadDir(under(root, "d")); err != nil || len(ents) != n {
					t.Errorf("%d files, %v", len(ents), err)
				}
			}
			if ents, err := os.ReadDir(under(root, "")); err != nil || len(ents) != want {
				t.Errorf("%v, %v", ents, err)
			}
			root.Close()
			s.remove(t)
		})
	}
}
