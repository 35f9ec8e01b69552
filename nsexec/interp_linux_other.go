//go:build linux && !amd64 && !arm64

package nsexec

import (
	"errors"
	"fmt"
	"runtime"
)

var errNoInterpreter = fmt.Errorf("nsexec: no interpreter for %s: %w", runtime.GOARCH, errors.ErrUnsupported)

func interpreter() ([]byte, error) { return nil, errNoInterpreter }
