package hostile

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
)

// Bombs are archives that are small while they are compressed. They are made while they are read. n is their number of
// entries. What ends them is the limit that they name, where the store has one that is low enough.
func Bombs(n int) []Archive {
	repeat := func(make func(i int) []byte) func(io.Writer) error {
		return func(w io.Writer) error {
			for i := range n {
				if _, err := w.Write(make(i)); err != nil {
					return err
				}
			}
			_, err := w.Write(End)
			return err
		}
	}
	same := Header("same", '0', 0, nil)
	long := strings.Repeat("x", 1<<19)
	comment := Extended("comment", long)
	attribute := Extended("SCHILY.xattr.user.x", strings.Repeat("x", 1<<16))
	content := Padded(strings.Repeat("x", 1<<20))
	return []Archive{
		{Name: "empty files", Want: Limited, Limit: "Entries", Write: repeat(func(i int) []byte { return Header(fmt.Sprint(i), '0', 0, nil) })},
		{Name: "directories", Want: Limited, Limit: "Entries", Write: repeat(func(i int) []byte { return Header(fmt.Sprint(i), '5', 0, nil) })},
		{Name: "directories by the way", Want: Limited, Limit: "Entries", Write: repeat(func(i int) []byte { return Header(fmt.Sprintf("%d/a/b/c/d/e/f/g/f", i), '0', 0, nil) })},
		{Name: "whiteouts", Want: Limited, Limit: "Entries", Write: repeat(func(i int) []byte { return Header(fmt.Sprint(".wh.", i), '0', 0, nil) })},
		{Name: "the same empty file", Want: Limited, Limit: "Entries", Write: repeat(func(int) []byte { return same })},
		{Name: "global headers", Want: Limited, Limit: "Entries", Write: repeat(func(int) []byte { return extended('g', "comment", "x") })},
		{Name: "large headers", Want: Limited, Limit: "Entries", Write: repeat(func(i int) []byte { return Cat(comment, same) })},
		{Name: "directories with large headers", Want: Limited, Limit: "Entries", Write: repeat(func(i int) []byte {
			return Cat(Extended("comment", long, "path", fmt.Sprintf("short-%d/", i)), Header("d", '5', 0, nil))
		})},
		{Name: "directories with large attributes", Want: Limited, Limit: "Header", Write: repeat(func(i int) []byte {
			return Cat(attribute, Header(fmt.Sprintf("%d/", i), '5', 0, nil))
		})},
		{Name: "content", Want: Limited, Limit: "Bytes", Write: repeat(func(i int) []byte { return Cat(Header(fmt.Sprint(i), '0', 1<<20, nil), content) })},
		{Name: "content of what is skipped", Want: Limited, Limit: "Bytes", Write: repeat(func(i int) []byte { return Cat(Header(fmt.Sprint(".wh.", i), '0', 1<<20, nil), content) })},
		{Name: "content of labels", Want: Limited, Limit: "Bytes", Write: repeat(func(int) []byte { return Cat(Header("label", 'V', 1<<20, nil), content) })},
		{Name: "content behind the end", Want: Limited, Limit: "Bytes", Write: func(w io.Writer) error {
			if _, err := w.Write(End); err != nil {
				return err
			}
			return repeat(func(int) []byte { return content })(w)
		}},
	}
}

// Blob is a compressed archive with what a descriptor says of it.
type Blob struct {
	Data []byte
	// DiffID is the digest of the archive, "sha256:…".
	DiffID string
	// Size is that of the archive.
	Size int64
}

// Gzip compresses an archive while it is written.
func (a Archive) Gzip() Blob {
	var buf bytes.Buffer
	h := sha256.New()
	z, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	must(err)
	n := &counter{}
	must(a.Write(io.MultiWriter(z, h, n)))
	must(z.Close())
	return Blob{buf.Bytes(), "sha256:" + hex.EncodeToString(h.Sum(nil)), n.n}
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}
