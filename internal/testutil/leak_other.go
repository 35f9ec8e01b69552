//go:build !linux

package testutil

import "testing"

// LeakCheck runs the tests.
func LeakCheck(m *testing.M) int { return m.Run() }
