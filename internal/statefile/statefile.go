// Package statefile keeps small JSON files that are replaced as a whole: a reader sees the old content or the new one.
package statefile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/coracle-dev/coracle/internal/crashpoint"
)

// Max is the largest file that Read accepts, in bytes.
const Max = 4 << 20

// ErrTorn matches the error of Read for a file that is no JSON. Readers never see half a file, so this one was not synced
// before the power failed: filesystems then show the new name with an empty file, or one of zeros, behind it.
var ErrTorn = errors.New("the file is empty or cut off, as by a power failure")

// Write replaces dir/name by the JSON of v. It does not sync: after a power failure the file is the old one, the new one
// or torn.
func Write(dir, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Join(dir, name), err)
	}
	return WriteBytes(dir, name, b)
}

// WriteSynced is Write, and when it returns the file survives a power failure.
func WriteSynced(dir, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Join(dir, name), err)
	}
	path := filepath.Join(dir, name)
	if err = writeSynced(path+".new", b); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		os.Remove(path + ".new")
		return err
	}
	return syncDir(dir)
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// WriteBytes replaces dir/name by b. One writer at a time: the caller holds the lock of what the file describes.
func WriteBytes(dir, name string, b []byte) error {
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		os.Remove(path + ".new")
		return err
	}
	crashpoint.At("write " + step(name) + ": written")
	if err := os.Rename(path+".new", path); err != nil {
		os.Remove(path + ".new")
		return err
	}
	crashpoint.At("write " + step(name) + ": renamed")
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
		if !json.Valid(b) {
			err = fmt.Errorf("%w: %w", ErrTorn, err)
		}
		return fmt.Errorf("decode %s: %w", f.Name(), err)
	}
	return nil
}

// step is what tests call the writing of a file: one without an extension is named by an id.
func step(name string) string {
	if filepath.Ext(name) == "" {
		return "record"
	}
	return name
}
