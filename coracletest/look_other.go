//go:build !linux

package coracletest

import (
	"errors"

	"github.com/coracle-dev/coracle"
)

func fileExists(*coracle.Container, string) error { return errors.ErrUnsupported }

func listening(*coracle.Container, uint16, bool) error { return errors.ErrUnsupported }
