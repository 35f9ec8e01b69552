//go:build !linux

package coracle

import (
	"context"
	"errors"
)

func readProcesses(context.Context, []int) (map[int]ProcessInfo, error) {
	return nil, errors.ErrUnsupported
}
