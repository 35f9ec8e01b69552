//go:build !linux

package journal

import (
	"context"
	"errors"
	"os"
	"time"
)

func openFile(path string) (*os.File, error) { return os.Open(path) }

type watch struct{}

func newWatch(string) (*watch, error) { return nil, errors.ErrUnsupported }

func (*watch) wait(context.Context, time.Duration) bool { return false }

func (*watch) close() {}
