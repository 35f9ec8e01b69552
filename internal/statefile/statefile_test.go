package statefile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/coracle-dev/coracle/internal/statefile"
)

type record struct{ A, B int }

func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	var got record
	if err := statefile.Read(dir, "x.json", &got); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("missing file: %v", err)
	}
	for i := range 3 {
		if err := statefile.Write(dir, "x.json", record{i, -i}); err != nil {
			t.Fatal(err)
		}
		if err := statefile.Read(dir, "x.json", &got); err != nil || got != (record{i, -i}) {
			t.Fatalf("got %v, %v", got, err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestReadersSeeWholeFiles(t *testing.T) {
	dir := t.TempDir()
	if err := statefile.Write(dir, "x.json", record{}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 500 {
			if err := statefile.Write(dir, "x.json", record{i, i}); err != nil {
				t.Error(err)
			}
		}
	})
	for range 500 {
		var r record
		if err := statefile.Read(dir, "x.json", &r); err != nil || r.A != r.B {
			t.Fatalf("read %v, %v", r, err)
		}
	}
	wg.Wait()
}

func TestHostileFiles(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string][]byte{"empty": nil, "cut": []byte(`{"A":1,`), "huge": make([]byte, statefile.Max+1)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
		var r record
		if err := statefile.Read(dir, name, &r); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := statefile.Write(filepath.Join(dir, "missing"), "x", record{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

func TestTorn(t *testing.T) {
	dir := t.TempDir()
	for content, torn := range map[string]bool{"": true, `{"A":`: true, "\x00\x00\x00": true, `{"A":"no number"}`: false, `[]`: false} {
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		var v struct{ A int }
		if err := statefile.Read(dir, "f", &v); err == nil || errors.Is(err, statefile.ErrTorn) != torn {
			t.Errorf("%q: %v", content, err)
		}
	}
	if err := statefile.WriteSynced(dir, "f", map[string]int{"A": 5}); err != nil {
		t.Fatal(err)
	}
	var v struct{ A int }
	if err := statefile.Read(dir, "f", &v); err != nil || v.A != 5 {
		t.Errorf("%v, %v", v, err)
	}
	if err := statefile.WriteSynced(filepath.Join(dir, "missing"), "f", v); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
}
