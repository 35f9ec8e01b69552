//go:build !race

package testutil

// RaceEnabled says whether the race detector, which slows everything down, is compiled in.
const RaceEnabled = false
