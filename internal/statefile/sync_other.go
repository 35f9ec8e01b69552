//go:build !unix

package statefile

// syncDir does nothing: elsewhere directories cannot be opened as files are.
func syncDir(string) error { return nil }
