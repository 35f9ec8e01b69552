//go:build unix

package logfile

import "syscall"

// openFlags: no link is followed, and a fifo does not block.
const openFlags = syscall.O_RDONLY | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
