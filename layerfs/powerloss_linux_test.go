package layerfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/powerloss"
)

// powerlossDisks are the filesystems on which the power is cut, and how often. Each fails in its own way: ext4 shows a
// rename whose data it has not written, xfs too and even where the rename replaces a file, and btrfs keeps of a directory
// that was not synced only what a synced file in it needs.
var powerlossDisks = []struct {
	fstype      string
	size        int64
	cuts, short int
}{
	{"ext4", 128 << 20, 200, 50},
	{"xfs", 320 << 20, 80, 20},
	{"btrfs", 256 << 20, 80, 20},
}

// storeWork is what a program does with a store before the power goes.
type storeWork struct {
	t     *testing.T
	disk  *powerloss.Disk
	root  string
	specs []LayerSpec
	blobs map[string][]byte
	noise int
}

func newStoreWork(t *testing.T) *storeWork {
	w := &storeWork{t: t, blobs: make(map[string][]byte)}
	for i, size := range []int{10, 5000, 300_000} {
		w.blobs[fmt.Sprint("blob", i)] = bytes.Repeat([]byte{byte('a' + i)}, size)
	}
	many := []ent{{name: "./"}, {name: "many/"}}
	for i := range 60 { // more than are synced one by one
		many = append(many, ent{name: fmt.Sprintf("many/dir%d/", i%7)}, ent{name: fmt.Sprintf("many/dir%d/file%d", i%7, i), data: strings.Repeat(fmt.Sprint(i), 700)})
	}
	for _, ents := range [][]ent{
		{{name: "./", mode: 0o751}, {name: "etc/"}, {name: "etc/conf", data: "x = 1\n", mode: 0o640, uid: 7, gid: 8},
			{name: "bin/"}, {name: "bin/tool", data: strings.Repeat("tool", 20_000), mode: 0o4755, pax: map[string]string{"SCHILY.xattr.user.note": "kept"}},
			{name: "bin/again", kind: tar.TypeLink, link: "bin/tool"}, {name: "bin/link", kind: tar.TypeSymlink, link: "tool"}, {name: "null", kind: tar.TypeChar, maj: 1, min: 3},
			{name: "pipe", kind: tar.TypeFifo}, {name: "empty", data: ""}},
		many,
		{{name: "./"}, {name: "etc/"}, {name: "etc/.wh.conf"}, {name: "etc/other", data: "y"}, {name: "opt/"}, {name: "opt/.wh..wh..opq"}},
		{{name: "./"}, {name: "etc/"}, {name: "etc/hard", kind: tar.TypeLink, link: "bin/tool"}}, // of another layer: it depends on the first
	} {
		archive := makeTar(t, ents...)
		w.specs = append(w.specs, specOf(archive, gz(t, archive)))
	}
	return w
}

func blobDesc(data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// otherSync is another program that syncs a file of its own: the filesystem commits what the store has not synced,
// names without content for example.
func (w *storeWork) otherSync() {
	w.noise++
	f, err := os.Create(filepath.Join(filepath.Dir(w.root), fmt.Sprint("other", w.noise)))
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *storeWork) run() {
	t, ctx, d := w.t, w.t.Context(), w.disk
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := OpenStore(w.root, nil)
	check(err)
	defer s.Close()
	d.Mark("store")
	for _, name := range slices.Sorted(maps.Keys(w.blobs)) {
		desc := blobDesc(w.blobs[name])
		check(s.WriteBlob(ctx, desc, bytes.NewReader(w.blobs[name])))
		d.Mark("blob " + string(desc.Digest))
	}
	tag := func(ref, blob string) {
		t.Helper()
		check(s.Tag(ctx, ref, blobDesc(w.blobs[blob])))
		d.Mark("tag " + ref + " " + blob)
	}
	tag("first", "blob0")
	tag("moved", "blob1")
	unpack := func(i int) Layer {
		t.Helper()
		l, err := s.Unpack(ctx, w.specs[i])
		check(err)
		return l
	}
	// A blob that came with a layer, and then is asked for by itself.
	unpack(0)
	desc := w.specs[0].Descriptor
	check(s.WriteBlob(ctx, desc, nil))
	d.Mark("blob " + string(desc.Digest))
	w.otherSync()
	unpack(1)
	w.otherSync()
	layers, err := s.UnpackAll(ctx, w.specs, nil)
	check(err)
	tag("moved", "blob2")
	for i, l := range layers {
		d.Mark("layer " + l.Key)
		d.Mark("blob " + string(w.specs[i].Descriptor.Digest))
	}
	for i := range 3 {
		_, err := s.NewSnapshot(ctx, fmt.Sprint("snap", i), layers[:i+1], &SnapshotOptions{Volatile: i == 1})
		check(err)
		w.otherSync()
	}
	check(s.RemoveSnapshot(ctx, "snap0"))
	w.otherSync()
	tag("gone", "blob0")
	check(s.Untag(ctx, "gone", ""))
	d.Mark("untag gone")
	d.Mark("removing")
	check(s.Untag(ctx, "first", ""))
	check(s.RemoveLayer(ctx, layers[3].Key))
	check(s.RemoveBlob(w.specs[3].Descriptor.Digest))
	w.otherSync()
	check(s.RemoveSnapshot(ctx, "snap2"))
	_, err = s.Collect(ctx, func(c *Collection) error {
		c.KeepBlob(blobDesc(w.blobs["blob2"]).Digest)
		return c.RemoveManifests(func(d ocispec.Descriptor) bool { return refName(d) != "moved" })
	})
	check(err)
	w.otherSync()
}

// layerTree is what a layer has; whiteouts, which no archive gives a time, have none.
func layerTree(t testing.TB, s *Store, key string) map[string]fileInfo {
	tree := scan(t, layerDir(s, Layer{Key: key}))
	for name, f := range tree {
		if f.mode&unix.S_IFMT == unix.S_IFCHR && f.rdev == 0 {
			f.mtime = ""
			tree[name] = f
		}
	}
	return tree
}

// trees are the layers as they should be, by key.
func (w *storeWork) trees(t *testing.T) map[string]map[string]fileInfo {
	s := openTest(t, nil)
	layers, err := s.UnpackAll(t.Context(), w.specs, nil)
	if err != nil {
		t.Fatal(err)
	}
	trees := make(map[string]map[string]fileInfo)
	for _, l := range layers {
		trees[l.Key] = layerTree(t, s, l.Key)
	}
	return trees
}

// TestPowerLoss cuts the power of a disk on which a store is made and used, and opens what is left.
func TestPowerLoss(t *testing.T) {
	for _, kind := range powerlossDisks {
		t.Run(kind.fstype, func(t *testing.T) {
			w := newStoreWork(t)
			w.disk = powerloss.New(t, kind.size)
			w.root = filepath.Join(w.disk.Mount(kind.fstype), "store")
			w.run()
			trees := w.trees(t)
			n := kind.cuts
			if testing.Short() {
				n = kind.short
			}
			failed := 0
			for cut := range w.disk.Cuts(n, 1) {
				root := filepath.Join(cut.Mount(t), "store")
				errs := &cutErrors{T: t, cut: cut}
				w.verify(errs, cut, root, trees)
				if errs.n > 0 {
					if failed++; failed == 5 {
						t.Fatal("and so on")
					}
				}
			}
		})
	}
}

// cutErrors says with each error after which cut it was.
type cutErrors struct {
	*testing.T
	cut *powerloss.Cut
	n   int
}

func (e *cutErrors) Errorf(format string, args ...any) {
	e.T.Helper()
	if e.n++; e.n <= 10 {
		e.T.Errorf("%v:\n\t"+format, append([]any{e.cut}, args...)...)
	}
}

func (e *cutErrors) Error(args ...any) { e.T.Helper(); e.Errorf("%s", fmt.Sprintln(args...)) }
func (e *cutErrors) Fatal(args ...any) {
	e.T.Helper()
	e.T.Fatalf("%v:\n\t%s", e.cut, fmt.Sprintln(args...))
}

// verify opens a store after a cut, holds it against what was promised, and uses it.
func (w *storeWork) verify(t *cutErrors, cut *powerloss.Cut, root string, trees map[string]map[string]fileInfo) {
	var log bytes.Buffer
	s, err := OpenStore(root, &StoreOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Errorf("open: %v", err)
		return
	}
	defer s.Close()
	for _, dir := range []string{"tmp", "locks", "leases", "damaged"} {
		if names, err := os.ReadDir(filepath.Join(root, dir)); err != nil || len(names) > 0 {
			t.Errorf("%s after the sweep: %v, %v", dir, names, err)
		}
	}
	w.verifyNames(t, s)
	w.verifyRefs(t, cut, s)

	blobs, err := s.Blobs()
	if err != nil {
		t.Errorf("blobs: %v", err)
	}
	for _, d := range blobs {
		f, err := s.OpenBlob(d)
		if err != nil {
			t.Errorf("blob: %v", err)
			continue
		}
		got, err := digest.FromReader(f)
		f.Close()
		if err != nil || got != d {
			t.Errorf("blob %s has the content of %s, %v", d, got, err)
		}
	}
	for _, m := range cut.Marks() {
		kind, name, _ := strings.Cut(m, " ")
		removable := cut.Marked("removing") && name != string(blobDesc(w.blobs["blob2"]).Digest)
		switch {
		case removable:
		case kind == "blob" && !s.HasBlob(digest.Digest(name)):
			t.Errorf("blob %s was written, and is not there", name)
		case kind == "layer":
			if _, err := s.readLayer(name); err != nil {
				t.Errorf("layer %s was finished and tagged: %v", name, err)
			}
		}
	}
	keys, err := s.LayerKeys()
	if err != nil {
		t.Errorf("layers: %v", err)
	}
	for _, key := range keys {
		if _, err := s.readLayer(key); err != nil {
			t.Errorf("layer: %v", err)
		}
		compare(t, trees[key], layerTree(t, s, key))
	}
	w.verifySnapshots(t, cut, s)

	if cut.Index%4 == 0 {
		w.again(t, s, trees)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if log.Len() > 0 {
		t.Errorf("the store logs:\n%s", log.String())
	}
}

// again does all of it with what the cut left.
func (w *storeWork) again(t *cutErrors, s *Store, trees map[string]map[string]fileInfo) {
	ctx := t.Context()
	layers, err := s.UnpackAll(ctx, w.specs, nil)
	if err != nil {
		t.Errorf("unpack again: %v", err)
		return
	}
	for _, l := range layers {
		compare(t, trees[l.Key], layerTree(t, s, l.Key))
	}
	for name, data := range w.blobs {
		err := s.WriteBlob(ctx, blobDesc(data), bytes.NewReader(data))
		if err == nil {
			err = s.Tag(ctx, "again "+name, blobDesc(data))
		}
		if err != nil {
			t.Errorf("tag again: %v", err)
		}
	}
	snap, err := s.NewSnapshot(ctx, "after", layers, nil)
	if err == nil {
		err = mountAndRemove(ctx, snap)
	}
	if err != nil {
		t.Errorf("a snapshot after the cut: %v", err)
	}
}

func mountAndRemove(ctx context.Context, n *Snapshot) error {
	f, err := n.Mount(ctx, nil)
	if err != nil {
		return err
	}
	_, err = os.Stat(fmt.Sprintf("/proc/self/fd/%d/bin/tool", f.Fd()))
	f.Close()
	return errors.Join(err, n.Remove(ctx))
}

// verifyNames looks for files that nobody will ever remove.
func (w *storeWork) verifyNames(t *cutErrors, s *Store) {
	// What is overwritten by the next change of the same file may be there.
	known := []string{"index.json.new", ".lock", "oci-layout", "index.json", "format", "blobs", "layers", "snapshots", "stacks", "tmp", "locks", "leases", "damaged", "empty", ".collection", ".turn"}
	names, err := readNames(s.rootFD)
	if err != nil {
		t.Errorf("%v", err)
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			t.Errorf("left in the store's directory: %s", n)
		}
	}
	if names, err = readNames(s.stacksFD); err != nil {
		t.Errorf("%v", err)
	}
	for _, n := range names {
		if len(n) != 32 {
			t.Errorf("left in stacks: %s", n)
		}
	}
}

func (w *storeWork) verifyRefs(t *cutErrors, cut *powerloss.Cut, s *Store) {
	refs, err := s.List()
	if err != nil {
		t.Errorf("list: %v", err)
		return
	}
	got := make(map[string]digest.Digest)
	for _, r := range refs {
		got[r.Name] = r.Descriptor.Digest
	}
	for _, r := range refs {
		if !s.HasBlob(r.Descriptor.Digest) {
			t.Errorf("the index has %s (%q), which is not there", r.Descriptor.Digest, r.Name)
		}
	}
	want := func(ref string, blobs ...string) {
		for _, b := range blobs {
			if got[ref] == digest.FromBytes(w.blobs[b]) {
				return
			}
		}
		t.Errorf("%s stands for %q, and not for one of %v", ref, got[ref], blobs)
	}
	if cut.Marked("tag first blob0") && !cut.Marked("removing") {
		want("first", "blob0")
	}
	switch {
	case cut.Marked("tag moved blob2"):
		want("moved", "blob2")
	case cut.Marked("tag moved blob1"):
		want("moved", "blob1", "blob2")
	}
	if _, there := got["gone"]; there && cut.Marked("untag gone") {
		t.Errorf("a name is back that was removed")
	}
}

// verifySnapshots: one that can be opened is whole, and any can be removed.
func (w *storeWork) verifySnapshots(t *cutErrors, cut *powerloss.Cut, s *Store) {
	ctx := t.Context()
	ids, err := s.Snapshots()
	if err != nil {
		t.Errorf("snapshots: %v", err)
	}
	for _, id := range ids {
		n, err := s.OpenSnapshot(id)
		switch {
		case err == nil:
			var f *os.File
			if f, err = n.Mount(ctx, nil); err == nil {
				f.Close()
			} else if cut.Marked("removing") && errors.Is(err, fs.ErrNotExist) {
				err = nil // it was removed, and its layers were collected, and only the latter is durable
			}
		case errors.Is(err, fs.ErrNotExist): // half made
			err = nil
		}
		if err = errors.Join(err, s.RemoveSnapshot(ctx, id)); err != nil {
			t.Errorf("snapshot %s: %v", id, err)
		}
	}
	if ids, err := s.Snapshots(); err != nil || len(ids) > 0 {
		t.Errorf("snapshots after all were removed: %v, %v", ids, err)
	}
}
