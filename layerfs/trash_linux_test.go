package layerfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

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
	upper := func(n *Snapshot) dirStamp {
		t.Helper()
		d, err := stampDir(s.snapsFD, n.ID()+"/upper")
		if err != nil {
			t.Fatalf("upper: %v", err)
		}
		return d
	}
	volatile := &SnapshotOptions{Volatile: true}
	life := func(id string, layers []Layer, o *SnapshotOptions, do func(root string) error) dirStamp {
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
			before := life("c", ls, volatile, test.do)
			after := life("c", ls, volatile, nil)
			if test.do == nil && before != after {
				t.Errorf("an untouched directory was not used again:\n%+v\n%+v", before, after)
			}
			if before.xattrs != first.xattrs || before.mode != first.mode || before.uid != 7 || before.mtime != first.mtime || !time.Unix(before.mtime.Unix()).Equal(testTime) {
				t.Errorf("before: %+v", before)
			}
			before.ino, before.ctime, after.ino, after.ctime = 0, unix.Timespec{}, 0, unix.Timespec{}
			if before != after {
				t.Errorf("the next container gets\n%+v instead of\n%+v", after, before)
			}
		})
	}
	durable := life("durable", ls, nil, nil)
	if d := life("other", other, volatile, nil); d == durable || d.uid == 7 {
		t.Errorf("an image got the directory of another: %+v", d)
	}
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
