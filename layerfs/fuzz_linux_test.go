package layerfs

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle/internal/hostile"
)

// FuzzUnpack applies foreign archives to a real directory, on a layer that has ways out. Outside nothing changes, and of
// what fails nothing is left.
func FuzzUnpack(f *testing.F) {
	canary := hostile.NewCanary(f)
	for _, a := range hostile.Archives(canary.Dir) {
		if b := a.Bytes(); len(b) < 20<<10 {
			f.Add(b)
		}
	}
	f.Add(makeTar(f, ent{name: "d/"}, ent{name: "d/f", data: "x"}, ent{name: "d/.wh.g"}, ent{name: "l", kind: '2', link: "d"}, ent{name: "l/h", kind: '1', link: "d/f"}))
	dir := f.TempDir()
	if os.Geteuid() == 0 {
		dir = tmpfs(f)
	}
	s, err := OpenStore(dir+"/store", &StoreOptions{Limits: Limits{Bytes: 1 << 20, FileBytes: 1 << 30, Entries: 1000, Depth: 40, Header: 64 << 10}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	base := makeTar(f, own(ent{name: "d/"}, ent{name: "d/f", data: "x"}, ent{name: "out", kind: '2', link: canary.Dir})...)
	parent, err := s.Unpack(context.Background(), specOf(base, base))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		data = withSums(data)
		spec := LayerSpec{Descriptor: ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}, DiffID: digest.FromBytes(data), Parents: []Layer{parent},
			Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}
		l, err := s.Unpack(t.Context(), spec)
		canary.Check(t)
		if err != nil {
			if got, _ := outcome(err); got == "an untyped error" {
				t.Errorf("%T: %v", err, err)
			}
			wantEmpty(t, s, "tmp", "locks")
			return
		}
		checkLayer(t, layerDir(s, l))
		if l.Key != parent.Key {
			_ = s.RemoveLayer(t.Context(), l.Key)
			_ = s.RemoveBlob(spec.Descriptor.Digest)
		}
	})
}

func FuzzIndex(f *testing.F) {
	f.Add(emptyIndex())
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:x","size":-1}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		idx, err := parseIndex(data)
		if err != nil {
			return
		}
		d := ocispec.Descriptor{Digest: digest.FromString("x"), Size: 1}
		setRef(&idx, "name", d)
		found := 0
		for _, m := range idx.Manifests {
			if refName(m) == "name" {
				found++
			}
		}
		if found != 1 || !dropRef(&idx, "name") || dropRef(&idx, "name") {
			t.Errorf("%d entries of one name", found)
		}
	})
}

// FuzzRecords feeds foreign bytes to what reads the store's own files: the record of a layer, a stack and the format.
func FuzzRecords(f *testing.F) {
	s, err := OpenStore(f.TempDir()+"/store", nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	key := "d-" + digest.FromString("x").Encoded()
	if err := os.MkdirAll(s.Dir()+"/layers/"+key+"/fs", 0o700); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"version":1,"key":"` + key + `","root":{"mode":493,"uid":0,"gid":0,"modTime":"2021-03-04T05:06:07Z","xattrs":{"user.x":"eA=="}}}`))
	f.Add([]byte(`{"version":1,"layers":["` + key + `"],"root":{"mode":4294967295}}`))
	f.Add([]byte(`{"version":1,"layers":["../../../etc"]}`))
	f.Add([]byte(`{"version":1,"xattrs":"user"}`))
	const id = "0123456789abcdef0123456789abcdef"
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, file := range []string{"layers/" + key + "/layer.json", "stacks/" + id} {
			if err := os.WriteFile(s.Dir()+"/"+file, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if rec, err := s.readLayer(key); err == nil && (rec.Key != key || rec.Version != formatVersion) {
			t.Fatalf("%+v", rec)
		}
		s.stacksMu.Lock()
		delete(s.stacks, id)
		st, err := s.loadStack(id)
		s.stacksMu.Unlock()
		if err == nil {
			for _, k := range st.Keys {
				if !validKey(k) {
					t.Fatalf("accepted the key %q", k)
				}
			}
		}
	})
}
