// Package inroot works on files inside a root filesystem that strangers wrote. Every path is resolved by the kernel
// with the root filesystem as its root (openat2 RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS): absolute symbolic links
// stay inside, and nothing, raced or not, leads out. Only regular files are opened, without following a fifo or device
// into a hang, and reads are bounded (CVE-2024-9676).
package inroot

import "fmt"

// TooLargeError says that a file is larger than the reader allows.
type TooLargeError struct {
	// Path is the file inside the root, Max the bound in bytes.
	Path string
	Max  int64
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s is larger than the %d bytes allowed", e.Path, e.Max)
}

// NotRegularError says that a path names something else than a regular file.
type NotRegularError struct {
	// Path is the name inside the root.
	Path string
}

func (e *NotRegularError) Error() string { return e.Path + " is not a regular file" }
