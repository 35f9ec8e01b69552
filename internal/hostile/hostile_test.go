package hostile_test

import (
	"archive/tar"
	"bytes"
	"io"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/coracle-dev/coracle/internal/hostile"
)

// TestRecords: the generators write what other readers take for what it says.
func TestRecords(t *testing.T) {
	for _, n := range []int{0, 1, 80, 88, 89, 90, 91, 92, 93, 94, 95, 985, 986, 987, 988, 989, 990, 991, 9980, 9990, 100_000} {
		value := string(bytes.Repeat([]byte("v"), n)) + "v"
		archive := hostile.Cat(hostile.Extended("comment", value), hostile.Header("f", '0', 0, nil), hostile.End)
		h, err := tar.NewReader(bytes.NewReader(archive)).Next()
		if err != nil || h.PAXRecords["comment"] != value {
			t.Errorf("a record of %d bytes: %v", n, err)
		}
	}
}

func TestMember(t *testing.T) {
	data := bytes.Repeat([]byte("some data "), 1000)
	blob := hostile.Cat(hostile.Member(data, []byte{0, 0, 0, 0xff, 0xff}), hostile.Member(nil, nil))
	r, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestArchivesAreTheSame: what is generated twice has one digest, and every attack a name of its own.
func TestArchivesAreTheSame(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range append(hostile.Archives("/outside"), hostile.Bombs(10)...) {
		if seen[a.Name] {
			t.Errorf("two are called %q", a.Name)
		}
		seen[a.Name] = true
		r := a.Reader()
		streamed, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(streamed, a.Bytes()) {
			t.Errorf("%s: %d bytes, %v", a.Name, len(streamed), err)
		}
		if (a.Want == hostile.Limited) != (a.Limit != "") {
			t.Errorf("%s: %s by %q", a.Name, a.Want, a.Limit)
		}
	}
	if len(seen) < 120 {
		t.Errorf("only %d", len(seen))
	}
}
