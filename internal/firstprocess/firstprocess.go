// Package firstprocess lets packages of this module look at the first process of a container as the root package does: by a
// descriptor that is of this process or of none, never by a number that may have passed to another one.
package firstprocess

import "os"

// Open returns the directory of /proc of the first process of a *coracle.Container: what is below it is of that process.
// The error matches coracle.ErrNotRunning if there is none. The root package sets it.
var Open func(container any) (*os.File, error)
