package layerfs

import (
	"errors"
	"fmt"
)

var (
	// ErrCorrupt is matched by errors about content that differs from its digest, size or diffID.
	ErrCorrupt = errors.New("content does not match its digest")
	// ErrInvalidArchive is matched by errors about a layer archive that is malformed, or asks for what no layer may:
	// a path outside its root, a link to nothing.
	ErrInvalidArchive = errors.New("invalid layer archive")
	// ErrClosed is matched by the error of any call on a closed store.
	ErrClosed = errors.New("store is closed")
	// ErrFormat is matched by the error of opening a directory that holds something else than a store of a version
	// this package knows.
	ErrFormat = errors.New("not a store this version can use")
)

// LimitError says which of [Limits] a layer exceeded.
type LimitError struct {
	// Limit is the name of the field of Limits: "Bytes", "Entries", ...
	Limit string
	// Max is its value.
	Max int64
	// Entry is the path in the archive where it happened, or empty.
	Entry string
}

// Error names the limit, its value, the entry and the field that raises it.
func (e *LimitError) Error() string {
	at := ""
	if e.Entry != "" {
		at = fmt.Sprintf(" at entry %q", e.Entry)
	}
	return fmt.Sprintf("layer exceeds the limit of %d for %s%s: raise Limits.%s if the image is trusted", e.Max, e.Limit, at, e.Limit)
}

// EntryError says which entry of a layer's archive could not be applied.
type EntryError struct {
	// Op is what was tried: "create", "link", "set owner of", ...
	Op string
	// Entry is the path in the archive.
	Entry string
	// Err is why: an errno, ErrInvalidArchive, ...
	Err error
}

// Error names operation, entry and cause.
func (e *EntryError) Error() string { return fmt.Sprintf("%s %q: %v", e.Op, e.Entry, e.Err) }

// Unwrap returns Err.
func (e *EntryError) Unwrap() error { return e.Err }

// OverlayError says that overlayfs refused a snapshot, and what can be done.
type OverlayError struct {
	// Step is the mount operation that failed.
	Step string
	// Layers is the number of layers.
	Layers int
	// Fix is what the user can do about it.
	Fix string
	// Err is the cause, an errno; errors.Is(e, errors.ErrUnsupported) holds where overlay cannot work at all there.
	Err error
	// Unsupported says that overlay cannot work at all on this kernel or filesystem.
	Unsupported bool
}

// Error names the number of layers, the step, the cause and the remedy.
func (e *OverlayError) Error() string {
	return fmt.Sprintf("overlay mount of %d layers: %s: %v: %s", e.Layers, e.Step, e.Err, e.Fix)
}

// Unwrap returns Err.
func (e *OverlayError) Unwrap() error { return e.Err }

// Is reports errors.ErrUnsupported where Unsupported is set.
func (e *OverlayError) Is(target error) bool {
	return e.Unsupported && target == errors.ErrUnsupported
}
