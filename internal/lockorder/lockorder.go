// Package lockorder lists the locks of a root that processes share, in the order in which they may be taken, and lets
// tests enforce it.
//
// Whoever holds a lock may take only locks of a later rank. The ranks are few, and each is held as long as its comment
// says; the mutexes of one process (Container.op excepted, which goes with Operation) are held for a few instructions
// and never while waiting for any of these.
package lockorder

import (
	"bytes"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// Rank is a kind of lock.
type Rank int

// The kinds of locks, in order.
const (
	// Supervisor is supervisor.lock: held as long as a program supervises the root. What it does about containers it does in
	// other goroutines than the one that holds it.
	Supervisor Rank = iota + 1
	// Root is engine.lock or the store's .lock: held while a new root or store is made, or an old one brought to the
	// present format.
	Root
	// Sweep is sweep.lock: held while what dead engines left is removed.
	Sweep
	// Operation is the lock of a container's directory: held while the container starts, or is removed or marked.
	Operation
	// Network is the lock of a network's directory: held shared while an endpoint gets its addresses, and exclusively while
	// the network comes onto the host, goes from it or is removed.
	Network
	// HostNetwork is network.lock of the run directory, which all roots share: held while a network comes onto the host or
	// goes from it, and while a new one gets its subnets.
	HostNetwork
	// Keepers is keepers.lock: held shared from the making of the keepers' cgroup until a new keeper is in it, and
	// exclusively while the empty group is removed.
	Keepers
	// Image is locks/m-<manifest digest> of the store: held while one image is pulled, so that it is pulled once. The
	// registry is waited for meanwhile, by nobody but those who want the same image.
	Image
	// Chain is locks/c-<chain id> of the store: held while a layer is unpacked, its parents included.
	Chain
	// DiffID is locks/d-<diff id> of the store: held while a layer is unpacked, until it turns out to need its parents.
	DiffID
	// Turn is .turn of the store: whoever holds it is next to take Collection.
	Turn
	// Collection is .collection of the store: held shared while something that exists is made something that is used,
	// and exclusively while what is not used is taken away. Both take a few system calls.
	Collection
	// Index is locks/index of the store: held while index.json is replaced.
	Index
	// Journal is the lock of the directory of events: held while the journal's first file is made. Appending needs none.
	Journal
)

func (r Rank) String() string {
	names := [...]string{Supervisor: "supervisor", Root: "root", Sweep: "sweep", Operation: "operation", Network: "network", HostNetwork: "host network", Keepers: "keepers", Image: "image", Chain: "chain", DiffID: "diffID", Turn: "turn", Collection: "collection", Index: "index", Journal: "journal"}
	if r > 0 && int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("rank %d", int(r))
}

var enforcer atomic.Pointer[order]

// Taken says that the calling goroutine has taken a lock. The function that it returns says that the lock has been
// given back, by whichever goroutine.
func Taken(r Rank, name string) (released func()) {
	o := enforcer.Load()
	if o == nil {
		return nothing
	}
	return o.taken(r, name)
}

func nothing() {}

// Enforce calls report, with a sentence, whenever a goroutine takes a lock out of order, until stop is called. It is
// meant for TestMain.
func Enforce(report func(violation string)) (stop func()) {
	enforcer.Store(&order{report: report, held: make(map[string][]*lock)})
	return func() { enforcer.Store(nil) }
}

type lock struct {
	rank Rank
	name string
}

// order is what the goroutines hold.
type order struct {
	report func(string)
	mu     sync.Mutex
	held   map[string][]*lock // by goroutine
}

func (o *order) taken(r Rank, name string) func() {
	me, l := goroutine(), &lock{r, name}
	o.mu.Lock()
	var violation string
	for _, h := range o.held[me] {
		if h.rank >= r {
			violation = fmt.Sprintf("lock %s (%s) was taken by a goroutine that holds %s (%s): the order is in package lockorder", r, name, h.rank, h.name)
		}
	}
	o.held[me] = append(o.held[me], l)
	o.mu.Unlock()
	if violation != "" {
		o.report(violation)
	}
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		for i, h := range o.held[me] {
			if h == l {
				o.held[me] = append(o.held[me][:i], o.held[me][i+1:]...)
				break
			}
		}
		if len(o.held[me]) == 0 {
			delete(o.held, me)
		}
	}
}

// goroutine returns the number of the calling goroutine, which only the text of a stack tells.
func goroutine() string {
	var buf [64]byte
	text := buf[:runtime.Stack(buf[:], false)]
	text, _, _ = bytes.Cut(bytes.TrimPrefix(text, []byte("goroutine ")), []byte(" "))
	return string(text)
}
