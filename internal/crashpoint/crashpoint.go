// Package crashpoint names the steps of what changes a root on disk, so that tests can end a program at each of them.
// In any other program a step costs one atomic load.
package crashpoint

import "sync/atomic"

var observer atomic.Pointer[func(step string)]

// At says that the program has come to a step: what is named has just been done.
func At(step string) {
	if f := observer.Load(); f != nil {
		(*f)(step)
	}
}

// Observe calls f at every step from now on, from whichever goroutine comes to it. Nil ends that.
func Observe(f func(step string)) {
	if f == nil {
		observer.Store(nil)
		return
	}
	observer.Store(&f)
}
