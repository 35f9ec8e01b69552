//go:build !unix

package filelock

import (
	"context"
	"errors"
	"os"
)

// Lock returns errors.ErrUnsupported.
func Lock(context.Context, *os.File) error { return errors.ErrUnsupported }

// TryLock returns errors.ErrUnsupported.
func TryLock(*os.File) (bool, error) { return false, errors.ErrUnsupported }

// RLock returns errors.ErrUnsupported.
func RLock(context.Context, *os.File) error { return errors.ErrUnsupported }

// TryRLock returns errors.ErrUnsupported.
func TryRLock(*os.File) (bool, error) { return false, errors.ErrUnsupported }

// Release closes the file.
func Release(f *os.File) error { return f.Close() }
