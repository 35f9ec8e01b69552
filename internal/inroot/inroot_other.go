//go:build !linux

package inroot

import (
	"errors"
	"os"
)

// Open opens a regular file for reading.
func Open(rootfd int, path string) (*os.File, error) { return nil, errors.ErrUnsupported }

// OpenPath opens whatever there is with O_PATH.
func OpenPath(rootfd int, path string) (*os.File, error) { return nil, errors.ErrUnsupported }

// ReadFile reads a regular file of at most max bytes.
func ReadFile(rootfd int, path string, max int64) ([]byte, error) { return nil, errors.ErrUnsupported }

// WriteFile makes or replaces the content of a regular file.
func WriteFile(rootfd int, path string, data []byte, mode uint32, uid, gid int) error {
	return errors.ErrUnsupported
}

// MkdirAll makes a directory and its missing parents.
func MkdirAll(rootfd int, path string, mode uint32, uid, gid int) error { return errors.ErrUnsupported }
