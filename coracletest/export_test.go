package coracletest

import (
	"context"
	"path/filepath"
)

var (
	Require   = require
	HasPort   = hasPort
	Printable = printable
	NameFor   = nameFor
)

// SweepAgain sweeps the shared engine's root as another test binary does.
func SweepAgain(ctx context.Context) error {
	mark, err := newMark(filepath.Dir(shared.mark.Name()))
	if err != nil {
		return err
	}
	defer removeMark(mark)
	return sweep(ctx, shared.eng, mark)
}
