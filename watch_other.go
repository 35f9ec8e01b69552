//go:build !linux

package coracle

import "errors"

type stateWatch struct{}

type watched struct{}

func (*stateWatch) join(string, string) (*watched, error) { return nil, errors.ErrUnsupported }

func (*stateWatch) leave(*watched) {}

func (*stateWatch) changed(*watched) <-chan struct{} { return nil }

func (*stateWatch) process(*watched, *containerState) <-chan struct{} { return nil }
