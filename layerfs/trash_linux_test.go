package layerfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// TestSnapshotDirectoriesAreUsedAgain lets containers do things to their roots and looks at what the next one gets.
func TestSnapshotDirectoriesAreUsedAgain(t *testing.T) {
	testutil.RequireRoot(t)
	s := openTest(t, nil)
	ls := unpackAll(t, s,
		makeTar(t, ent{name: "./", mode: 0o750, uid: 7, pax: map[string]string{"SCHILY.xattr.trusted.test": "value"}}, ent{name: "d/"}, ent{name: "d/f", data: "f"}))
	other := unpackAll(t, s, makeTar(t, ent{name: "other"}))
	upper := func(n *Snapshot) map[string]fileInfo { return scan(t, s.Dir()+"/snapshots/"+n.ID()+"/upper") }
	volatile := &SnapshotOptions{Volatile: true}
	life := func(id string, layers []Layer, o *SnapshotOptions, do func(root string) error) map[string]fileInfo {
		t.Helper()
		n, err := s.NewSnapshot(t.Context(), id, layers, o)
		if err != nil {
			t.Fatal(err)
		}
		d := upper(n)
		f := mount(t, n, nil)
		if do != nil {
			if err := do(under(f, ".")); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
		if again, err := s.OpenSnapshot(id); err != nil || again.volatile != (o == volatile) {
			t.Errorf("the snapshot is not whole: %v", err)
		}
		if _, err := s.NewSnapshot(t.Context(), id, layers, o); !errors.Is(err, fs.ErrExist) {
			t.Errorf("the same id again: %v", err)
		}
		if err := n.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.waitTrash()
		return d
	}
	first := life("first", ls, volatile, nil)
	if len(first) != 1 {
		t.Fatalf("%v", first)
	}
	life("second", ls, volatile, nil)
	for _, test := range []struct {
		name string
		do   func(root string) error
	}{
		{"nothing", nil},
		{"a file", func(root string) error { return os.WriteFile(root+"/x", nil, 0o600) }},
		{"a file that is gone", func(root string) error {
			return errors.Join(os.WriteFile(root+"/x", nil, 0o600), os.Remove(root+"/x"))
		}},
		{"a file that is gone, and the old time", func(root string) error {
			return errors.Join(os.WriteFile(root+"/x", nil, 0o600), os.Remove(root+"/x"), os.Chtimes(root, testTime, testTime))
		}},
		{"a deletion", func(root string) error { return os.RemoveAll(root + "/d") }},
		{"the mode", func(root string) error { return os.Chmod(root, 0o777) }},
		{"the owner", func(root string) error { return os.Chown(root, 1, 1) }},
		{"an attribute", func(root string) error { return unix.Setxattr(root, "trusted.secret", []byte("x"), 0) }},
		{"another value", func(root string) error { return unix.Setxattr(root, "trusted.test", []byte("VALUE"), 0) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			life("c", ls, volatile, test.do)
			compare(t, first, life("c", ls, volatile, nil))
		})
	}
	life("durable", ls, nil, nil)
	if d := life("other", other, volatile, nil); d["."].uid == 7 {
		t.Errorf("an image got the directory of another: %+v", d)
	}
	t.Run("a descriptor that was given away", func(t *testing.T) {
		n, err := s.NewSnapshot(t.Context(), "former", ls, volatile)
		if err != nil {
			t.Fatal(err)
		}
		old := mount(t, n, nil)
		if err := n.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.waitTrash()
		spares := s.trash.nSpares
		if n, err = s.NewSnapshot(t.Context(), "next", ls, volatile); err != nil {
			t.Fatal(err)
		}
		if s.trash.nSpares != spares-1 {
			t.Errorf("no directory is used again: this test shows nothing")
		}
		f := mount(t, n, nil)
		for _, name := range []string{"x", "d/x"} {
			_ = os.WriteFile(under(old, name), nil, 0o600)
			if _, err := os.Lstat(under(f, name)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what the former mount wrote is in the next container: %v", err)
			}
		}
		_ = os.Chmod(under(old, "."), 0o777)
		compare(t, first, upper(n))
		f.Close()
		old.Close()
		if err := n.Remove(t.Context()); err != nil {
			t.Error(err)
		}
		s.waitTrash()
	})
	// More than are kept, at once.
	var snaps []*Snapshot
	for i := range 2 * maxSpares {
		n, err := s.NewSnapshot(t.Context(), fmt.Sprint(i), ls, volatile)
		if err != nil {
			t.Fatal(err)
		}
		snaps = append(snaps, n)
	}
	for _, n := range snaps {
		if err := n.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}
	s.waitTrash()
	if names, err := readNames(s.trash.dir.fd); err != nil || len(names) != maxSpares {
		t.Errorf("%d directories are kept, %v", len(names), err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if names, err := os.ReadDir(filepath.Join(s.Dir(), "tmp")); err != nil || len(names) > 0 {
		t.Errorf("%v are left, %v", names, err)
	}
}
