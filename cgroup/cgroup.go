// Package cgroup makes the control group of a container: it sets limits, lets the container's first process join, reads
// what was used, and freezes, kills and removes what is left.
//
// It works with the unified hierarchy (v2), with the controllers' own hierarchies (v1), and with both at once (hybrid).
// Which of them there are is found out once, by [Open], which also makes the parent of all groups in each hierarchy and
// keeps it open. From then on a group costs one mkdir for each hierarchy and one write for each setting that was asked
// for.
//
// Where cgroups are missing or may not be written, [Open] does not fail: a group without limits is then a group that
// does nothing, and a limit is an [*UnsupportedError].
package cgroup

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// DefaultParent is the parent of all groups when [Config] names none.
const DefaultParent = "/coracle"

// Config says where a [Hierarchy] makes its groups. The zero value is useful.
type Config struct {
	// Parent is the cgroup below which groups are made, as a path from the root of each hierarchy. It is made if it is
	// missing. Empty means [DefaultParent].
	//
	// Where the root of a hierarchy may not be written, the same path is tried below each ancestor of the cgroup of this
	// process, from the top: that finds the group that systemd delegated to a user.
	Parent string

	// Logger hears of what is ignored: device rules that nothing can enforce, default swap limits where swap is not
	// accounted. Nil discards.
	Logger *slog.Logger
}

// Mode says which hierarchies a system has.
type Mode int

// The modes of a system.
const (
	ModeNone    Mode = iota // no cgroups are mounted
	ModeLegacy              // v1 hierarchies only
	ModeHybrid              // v1 hierarchies with the limits, and a v2 hierarchy
	ModeUnified             // the v2 hierarchy only
)

// String returns "none", "legacy", "hybrid" or "unified".
func (m Mode) String() string {
	switch m {
	case ModeNone:
		return "none"
	case ModeLegacy:
		return "legacy"
	case ModeHybrid:
		return "hybrid"
	case ModeUnified:
		return "unified"
	}
	return fmt.Sprintf("Mode(%d)", int(m))
}

// UnsupportedError says that something was asked of a controller that this system does not offer to this process. It
// matches [errors.ErrUnsupported], and the errno of the kernel where there is one.
type UnsupportedError struct {
	Controller string // "memory", "devices", "hugetlb"...; empty where no single one is concerned
	File       string // the file that would have been written, "memory.max"
	Remedy     string // what to do about it
	Err        error  // why; may be nil
}

// Error returns the whole story in one line.
func (e *UnsupportedError) Error() string {
	var b strings.Builder
	b.WriteString("cgroup: ")
	if e.File != "" {
		fmt.Fprintf(&b, "set %s: ", e.File)
	}
	if e.Controller != "" {
		fmt.Fprintf(&b, "the %s controller is not available", e.Controller)
	} else {
		b.WriteString("not available")
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Remedy != "" {
		fmt.Fprintf(&b, " (%s)", e.Remedy)
	}
	return b.String()
}

// Is reports whether target is [errors.ErrUnsupported].
func (e *UnsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }

// Unwrap returns the reason.
func (e *UnsupportedError) Unwrap() error { return e.Err }

// Stats is what a group has used. A figure that the system does not account is zero.
type Stats struct {
	Time   time.Time // when it was read
	CPU    CPUStats
	Memory MemoryStats
	PIDs   PIDsStats
	IO     []IOStats // for each block device that was used
}

// CPUStats is the time a group has spent on the processors.
type CPUStats struct {
	Usage            time.Duration // all of it
	User             time.Duration // of that, in programs
	System           time.Duration // of that, in the kernel
	Periods          uint64        // periods of the quota that have passed
	ThrottledPeriods uint64        // of those, periods in which the quota was used up
	Throttled        time.Duration // time for which something was runnable but not allowed to run
}

// MemoryStats is the memory of a group, in bytes.
type MemoryStats struct {
	Usage        uint64 // now, the page cache included
	Peak         uint64 // the most there was; 0 before Linux 5.19 in unified mode
	Limit        uint64 // 0 means no limit
	Swap         uint64 // swap space used
	Anon         uint64 // of Usage: anonymous memory
	File         uint64 // of Usage: page cache
	InactiveFile uint64 // of File: what is first reclaimed; docker stats shows Usage without it
	OOMKills     uint64 // processes that were killed for want of memory
}

// PIDsStats is the number of tasks (processes and threads) of a group.
type PIDsStats struct {
	Current uint64
	Limit   uint64 // 0 means no limit
}

// IOStats is what a group has read from and written to one block device.
type IOStats struct {
	Major, Minor          uint32
	ReadBytes, WriteBytes uint64
	Reads, Writes         uint64 // operations
}

// maxName is the longest name of a group, in bytes.
const maxName = 200

// checkName refuses the names that would not be one plain directory below the parent.
func checkName(name string) error {
	ok := name != "" && len(name) <= maxName && name[0] != '.' && name[0] != '-'
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.'
	}
	if ok {
		return nil
	}
	if len(name) > maxName {
		name = name[:maxName] + "..."
	}
	return fmt.Errorf("cgroup: %w: %q: a name is 1 to %d letters, digits, '_', '-' and '.', and begins with neither '.' nor '-'",
		ErrInvalidName, name, maxName)
}

// ErrInvalidName says that the name of a group is not a plain one.
var ErrInvalidName = errors.New("invalid name")
