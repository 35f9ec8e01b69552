package seccomp

import "fmt"

// A KernelVersion is the start of a kernel's release name: {5, 14} for "5.14.0-503.el9".
type KernelVersion struct{ Major, Minor int }

// String returns "5.14".
func (v KernelVersion) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }
