package coracle

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// linkExists reports whether the host has an interface of that name.
func linkExists(name string) bool {
	if name == "" {
		return false
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true // nobody can tell
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	return err != nil || unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr) == nil
}

// linkWait bounds how long the kernel may take to remove the interface of a container that is gone.
const linkWait = 2 * time.Second

// awaitLinkGone waits until the kernel has removed the host's end of a container's interface. The error is errLinkStays if
// it does not, since another process has the container's network namespace.
func awaitLinkGone(ctx context.Context, name string) error {
	for end, pause := time.Now().Add(linkWait), 4*time.Millisecond; linkExists(name); pause = min(2*pause, 64*time.Millisecond) {
		if time.Now().After(end) {
			return errLinkStays
		}
		if !sleep(ctx, pause) {
			return context.Cause(ctx)
		}
	}
	return nil
}
