package nsexec

import "fmt"

// A SpecError says which field of a runtime spec cannot be compiled, and why. What the package does not implement
// matches errors.ErrUnsupported: an option that would have to be dropped silently is an error.
type SpecError struct {
	Field string // JSON path in config.json, such as "process.user.uid" or "mounts[2].options[0]"
	Err   error
}

// Error names the field and the reason.
func (e *SpecError) Error() string { return fmt.Sprintf("nsexec: spec: %s: %v", e.Field, e.Err) }

// Unwrap returns the reason.
func (e *SpecError) Unwrap() error { return e.Err }
