package logfile

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// FuzzLog feeds foreign bytes to everything that reads logs: whatever stands in two files, reading ends, and what is
// delivered stands in them.
func FuzzLog(f *testing.F) {
	f.Fuzz(func(t *testing.T, older, newer []byte, tail int, since int64) {
		dir := t.TempDir()
		for name, b := range map[string][]byte{"1": older, "0": newer} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, opts := range []*Options{nil, {Tail: tail}, {Since: time.Unix(since, 0)}, {Tail: tail, Since: time.Unix(since, 0), Streams: []Stream{Stderr}}} {
			r, err := Open(dir, opts)
			if err != nil {
				t.Fatal(err)
			}
			// A record has a header, and each file is given up once.
			most := (len(older)+len(newer))/HeaderSize + 2
			damaged := 0
			for n := 0; ; n++ {
				rec, err := r.Next()
				if err == io.EOF {
					break
				}
				if n > most {
					t.Fatalf("more than %d records", most)
				}
				if errors.Is(err, ErrCorrupt) {
					if damaged++; damaged > 2 {
						t.Fatal("damage in more than two files")
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if len(rec.Data) > rec.Length || rec.Length > MaxPayload || !bytes.Contains(older, rec.Data) && !bytes.Contains(newer, rec.Data) {
					t.Fatalf("delivers %d bytes that are in no file", len(rec.Data))
				}
				if rec.Stream == Notes {
					ParseNote(rec.Data)
				}
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
		file, err := os.Open(filepath.Join(dir, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		off, _, err := End(file)
		if err != nil && !errors.Is(err, ErrCorrupt) || off < 0 || off > int64(len(newer)) {
			t.Fatalf("end %d of %d, %v", off, len(newer), err)
		}
	})
}
