//go:build !linux

package coracle

import "context"

func linkExists(string) bool { return false }

func awaitLinkGone(context.Context, string) error { return nil }
