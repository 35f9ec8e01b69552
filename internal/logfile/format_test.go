package logfile

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// TestFormat compares the documented example with what is written, and decoding with encoding.
func TestFormat(t *testing.T) {
	testutil.NotInVM(t, "there is no documentation")
	doc, err := os.ReadFile("../../docs/log-format.md")
	if err != nil {
		t.Fatal(err)
	}
	when := time.Date(2001, 9, 9, 1, 46, 40, 5e8, time.UTC)
	h := Header{Stream: Stdout, Length: 6, Seq: Sequence(1, 2), Sec: when.Unix(), Nsec: int64(when.Nanosecond())}
	b := append(h.Append(nil), "hello\n"...)
	for line := range strings.Lines(hex.Dump(b)) {
		if !strings.Contains(string(doc), line) {
			t.Errorf("the documentation lacks %q", line)
		}
	}
	var got Header
	if wrong := got.decode(b); wrong != "" || got != h || !got.Time().Equal(when) {
		t.Errorf("%q, %+v", wrong, got)
	}
	if run, n := SplitSequence(h.Seq); run != 1 || n != 2 {
		t.Errorf("%d, %d", run, n)
	}
	note := Note{Kind: NoteDropped, Bytes: 1 << 40, Reads: 7}
	if got := ParseNote(note.Append(nil)); got != note {
		t.Errorf("%+v", got)
	}
	if got := ParseNote([]byte{2}); got != (Note{Kind: NoteBlocked}) {
		t.Errorf("%+v", got)
	}
}
