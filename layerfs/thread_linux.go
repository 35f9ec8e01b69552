package layerfs

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// onOwnThread runs f on an OS thread that nothing else will ever run on, so that f may change the thread's working
// directory, umask and mount namespace after unshare(2). It returns when f has.
//
// The thread ends with f: a goroutine that exits while locked takes its thread along. The process's first thread cannot
// end and stands for the process in /proc, so f never gets that one.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			onOwnThread(f) // while this goroutine keeps the first thread busy
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}
