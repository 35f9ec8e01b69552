package netdrv

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// TestThreads: while containers are connected and things are done in namespaces without end, no goroutine finds itself in
// another namespace, and no thread stays in one.
func TestThreads(t *testing.T) {
	var driver Driver
	var n *Network
	onHost(t, func(host *Namespace) { // whose thread ends here: the driver works on, and holds the namespace by its sockets
		n = newNetwork(t, "bridge", "10.99.7.0/24", "fd00:99::/64")
		driver = up(t, n)
	})
	own, err := os.Readlink("/proc/self/ns/net")
	check(t, err)
	turns := 25
	if testutil.Short() {
		turns = 5
	}
	var done atomic.Bool
	var others, work sync.WaitGroup
	for range 4 { // the rest of the program
		others.Go(func() {
			for !done.Load() {
				// The look and what it is about have to be on one thread.
				runtime.LockOSThread()
				if at, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || at != own {
					t.Errorf("a goroutine is in %s, the program is in %s: %v", at, own, err)
					done.Store(true)
				}
				runtime.UnlockOSThread()
				runtime.Gosched()
			}
		})
	}
	for i := range 8 {
		work.Go(func() {
			for turn := 0; turn < turns && !done.Load(); turn++ {
				ep := endpoint(n, 10+i)
				ns, err := NewNamespace()
				if err == nil {
					err = driver.Connect(background, n, ep, ns)
				}
				if err == nil {
					err = ns.Do(func() error { runtime.Gosched(); time.Sleep(time.Millisecond); return nil })
				}
				if err == nil {
					_ = ns.Do(func() error { runtime.Goexit(); return nil })
					var second *Namespace
					if second, err = OpenNamespace(ns.File()); err == nil {
						_, err = driver.Counters(background, n, ep, second)
						err = errors.Join(err, second.Close(), driver.Disconnect(background, n, ep, ns))
					}
				}
				if err != nil {
					t.Error(err)
				}
				ns.Close()
			}
		})
	}
	work.Wait()
	done.Store(true)
	others.Wait()
	eventually(t, "all threads are in the program's namespace", func() bool { return strayThreads() == nil })
	check(t, driver.Down(background, n))
}

// TestMainThread: what has to be in a namespace is never put on the main thread, which could not be ended.
func TestMainThread(t *testing.T) {
	onHost(t, func(*Namespace) {})
	var busy sync.WaitGroup
	stop := make(chan struct{})
	for range 50 {
		busy.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					check(t, inside(func() error {
						if os.Getpid() == gettid() {
							t.Error("on the main thread")
						}
						return nil
					}))
				}
			}
		})
	}
	time.Sleep(200 * time.Millisecond)
	close(stop)
	busy.Wait()
}
