// Package statefile keeps small JSON files that are replaced as a whole: a reader sees the old content or the new one.
package statefile

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/coracle-dev/coracle/internal/crashpoint"
)

// Max is the largest file that Read accepts, in bytes.
const Max = 4 << 20

// Write replaces dir/name by the JSON of v. It does not sync: what must survive a power failure is synced by the caller.
func Write(dir, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Join(dir, name), err)
	}
	return WriteBytes(dir, name, b)
}

// WriteBytes replaces dir/name by b. One writer at a time: the caller holds the lock of what the file describes.
func WriteBytes(dir, name string, b []byte) error {
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		os.Remove(path + ".new")
		return err
	}
	crashpoint.At("write " + name + ": written")
	if err := os.Rename(path+".new", path); err != nil {
		os.Remove(path + ".new")
		return err
	}
	crashpoint.At("write " + name + ": renamed")
	return nil
}

// Read decodes dir/name into v.
func Read(dir, name string, v any) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, Max+1))
	if err != nil {
		return err
	}
	if len(b) > Max {
		return fmt.Errorf("decode %s: larger than %d bytes", f.Name(), Max)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode %s: %w", f.Name(), err)
	}
	return nil
}
