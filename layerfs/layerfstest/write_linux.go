package layerfstest

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/layerfs"
)

// written is an image that the tests of writing change.
func (w *world) written(t *testing.T) stack {
	t.Helper()
	lower := []node{
		{name: "./", mode: 0o711}, {name: "f", data: "original", uid: 5}, {name: "g", data: "original"}, {name: "h", data: "original"}, {name: "l", data: "original"},
		{name: "d/", mode: 0o755}, {name: "d/x", data: "original"}, {name: "d/sub/"}, {name: "d/sub/y", data: "original"},
		{name: "e/"}, {name: "e/z", data: "original"}, {name: "s", kind: '2', link: "f"}, {name: "big", data: string(make([]byte, 300_000))},
	}
	if w.MaxLayers == 1 {
		return w.stack(t, lower)
	}
	return w.stack(t, lower, []node{{name: "g", data: "upper"}, {name: "e/"}, {name: "e/w", data: "upper"}})
}

// scribble does to a root what programs do.
func scribble(root string) error {
	write := func(name, data string, flags int) error {
		f, err := os.OpenFile(root+name, os.O_WRONLY|flags, 0o600)
		if err != nil {
			return err
		}
		_, err = f.WriteString(data)
		return errors.Join(err, f.Close())
	}
	return errors.Join(
		write("new", "new", os.O_CREATE|os.O_EXCL),
		write("f", " and more", os.O_APPEND),
		write("g", "changed", os.O_TRUNC),
		os.Truncate(root+"big", 100_000),
		os.Chown(root+"h", 3, 4), unix.Chmod(root+"h", 0o4700), os.Chtimes(root+"h", epoch, epoch),
		unix.Setxattr(root+"h", "trusted.text", []byte("set"), 0),
		os.Link(root+"l", root+"d/linked"),
		os.Remove(root+"d/x"), os.RemoveAll(root+"d/sub"), os.Mkdir(root+"d/sub", 0o700), write("d/sub/fresh", "fresh", os.O_CREATE),
		os.RemoveAll(root+"e"), write("e", "a file now", os.O_CREATE),
		os.Remove(root+"s"), os.Symlink("new", root+"s"),
		os.Rename(root+"new", root+"renamed"),
		unix.Mknod(root+"node", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))),
		os.Chmod(root, 0o700), os.Chown(root, 1, 2),
		os.MkdirAll(root+"closed/in", 0o700), write("closed/in/f", "f", os.O_CREATE), os.Chmod(root+"closed/in", 0), os.Chmod(root+"closed", 0),
	)
}

// wantScribbles looks for what scribble did.
func wantScribbles(t testing.TB, tree map[string]file) {
	t.Helper()
	for _, p := range []string{"d/x", "d/sub/y", "e/z", "e/w", "new"} {
		if f, ok := tree[p]; ok {
			t.Errorf("%q was deleted: %v", p, f)
		}
	}
	sizes := map[string]int64{"f": 17, "g": 7, "big": 100_000, "e": 10, "renamed": 3, "d/sub/fresh": 5, "closed/in/f": 1}
	for p, n := range sizes {
		if f := tree[p]; f.size != n || f.mode&unix.S_IFMT != unix.S_IFREG {
			t.Errorf("%q has %d bytes, not %d: %v", p, f.size, n, f)
		}
	}
	if f := tree["h"]; f.mode != unix.S_IFREG|0o4700 || f.uid != 3 || f.gid != 4 || !f.mtime.Equal(epoch) || f.xattrs != ` trusted.text="set"` {
		t.Errorf("h: %v", f)
	}
	if f := tree["f"]; f.uid != 5 {
		t.Errorf("f: %v", f)
	}
	if f := tree["."]; f.mode != unix.S_IFDIR|0o700 || f.uid != 1 || f.gid != 2 {
		t.Errorf("the root: %v", f)
	}
	if tree["s"].link != "new" || tree["node"].rdev != unix.Mkdev(1, 5) || tree["l"].same == "" || tree["l"].same != tree["d/linked"].same {
		t.Errorf("%v\n%v\n%v\n%v", tree["s"], tree["node"], tree["l"], tree["d/linked"])
	}
}

func testWrites(t *testing.T, w *world) {
	st := w.written(t)
	var layers []map[string]file
	for _, p := range st.paths {
		layers = append(layers, scan(t, p))
	}
	s := w.prepared(t, st, false)
	var now map[string]file
	s.withMount(t, layerfs.MountOptions{}, func(root *os.File) {
		if err := scribble(under(root, "")); err != nil {
			t.Fatal(err)
		}
		now = scan(t, under(root, ""))
		wantScribbles(t, now)
	})
	for _, o := range []layerfs.MountOptions{{}, {ReadOnly: true}, {}} {
		s.withMount(t, o, func(root *os.File) {
			compare(t, fmt.Sprintf("mounted again with %+v", o), now, scan(t, under(root, "")))
		})
	}
	// It can still be written.
	s.withMount(t, layerfs.MountOptions{}, func(root *os.File) {
		if err := errors.Join(os.WriteFile(under(root, "e"), []byte("once more"), 0o600), os.Remove(under(root, "renamed"))); err != nil {
			t.Error(err)
		}
	})
	s.withMount(t, layerfs.MountOptions{}, func(root *os.File) {
		tree := scan(t, under(root, ""))
		if _, ok := tree["renamed"]; ok || tree["e"].size != 9 {
			t.Errorf("%v", tree["e"])
		}
	})
	for i, p := range st.paths {
		sameFiles(t, fmt.Sprintf("layer %d", i), layers[i], scan(t, p))
	}
	s.remove(t)
	for i, p := range st.paths {
		sameFiles(t, fmt.Sprintf("layer %d after Remove", i), layers[i], scan(t, p))
	}
}

// testIsolation mounts two snapshots of the same layers at the same time.
func testIsolation(t *testing.T, w *world) {
	st := w.written(t)
	one, two := w.prepared(t, st, false), w.prepared(t, st, false)
	a, b := one.mount(t, layerfs.MountOptions{}), two.mount(t, layerfs.MountOptions{})
	before := scan(t, under(b, ""))
	if err := scribble(under(a, "")); err != nil {
		t.Fatal(err)
	}
	compare(t, "the other", before, scan(t, under(b, "")))
	// The other can still change the same files.
	if err := os.WriteFile(under(b, "f"), []byte("other"), 0o600); err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(under(a, "f")); err != nil || string(data) != "original and more" {
		t.Errorf("%q, %v", data, err)
	}
	a.Close()
	one.remove(t)
	if data, err := os.ReadFile(under(b, "f")); err != nil || string(data) != "other" {
		t.Errorf("after the removal of the first: %q, %v", data, err)
	}
	third := w.prepared(t, st, false)
	third.withMount(t, layerfs.MountOptions{}, func(root *os.File) {
		compare(t, "one made afterwards", before, scan(t, under(root, "")))
	})
}

func testReadOnly(t *testing.T, w *world) {
	st := w.written(t)
	s := w.prepared(t, st, false)
	refuse := func(root *os.File) {
		t.Helper()
		r := under(root, "")
		for what, err := range map[string]error{
			"create":      os.WriteFile(r+"new", nil, 0o600),
			"write":       os.WriteFile(r+"f", []byte("x"), 0o600),
			"mkdir":       os.Mkdir(r+"newdir", 0o700),
			"remove":      os.Remove(r + "f"),
			"chmod":       os.Chmod(r+"f", 0o777),
			"chown root":  os.Chown(r, 9, 9),
			"set time":    os.Chtimes(r+"f", epoch, epoch),
			"setxattr":    unix.Setxattr(r+"f", "trusted.text", nil, 0),
			"rename":      os.Rename(r+"f", r+"other"),
			"link":        os.Link(r+"f", r+"other"),
			"mknod":       unix.Mknod(r+"newnode", unix.S_IFIFO|0o600, 0),
			"open for it": func() error { f, err := os.OpenFile(r+"g", os.O_RDWR, 0); f.Close(); return err }(),
		} {
			if !errors.Is(err, unix.EROFS) {
				t.Errorf("%s in a read-only mount: %v", what, err)
			}
		}
	}
	options := []layerfs.MountOptions{{ReadOnly: true}}
	if w.ReadOnly {
		options = append(options, layerfs.MountOptions{})
	}
	var before map[string]file
	for _, o := range options {
		s.withMount(t, o, func(root *os.File) {
			before = scan(t, under(root, ""))
			if before["f"].size != 8 {
				t.Errorf("%v", before["f"])
			}
			refuse(root)
			compare(t, "after the attempts", before, scan(t, under(root, "")))
		})
	}
	if w.ReadOnly {
		return
	}
	s.withMount(t, layerfs.MountOptions{}, func(root *os.File) {
		compare(t, "writable", before, scan(t, under(root, "")))
		if err := scribble(under(root, "")); err != nil {
			t.Fatal(err)
		}
	})
	// Several readers at a time.
	a, b := s.mount(t, layerfs.MountOptions{ReadOnly: true}), s.mount(t, layerfs.MountOptions{ReadOnly: true})
	for _, root := range []*os.File{a, b} {
		wantScribbles(t, scan(t, under(root, "")))
		refuse(root)
	}
	a.Close()
	b.Close()
	s.remove(t)
}

// testVolatile: what is volatile is lost when the machine crashes, and at no other time.
func testVolatile(t *testing.T, w *world) {
	s := w.prepared(t, w.written(t), true)
	s.withMount(t, layerfs.MountOptions{}, func(root *os.File) {
		if err := scribble(under(root, "")); err != nil {
			t.Fatal(err)
		}
	})
	for i := range 3 {
		s.withMount(t, layerfs.MountOptions{ReadOnly: i == 1}, func(root *os.File) { wantScribbles(t, scan(t, under(root, ""))) })
	}
	s.remove(t)
}
