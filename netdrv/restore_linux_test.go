package netdrv

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// logBuffer is what many have logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) warnings() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.buf.String(), "level=WARN")
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// hostLock is the lock that programs share. It tells when a monitor asks for it, and when one has had it.
type hostLock struct {
	held       chan struct{} // has an element while somebody holds it
	asked, had chan struct{}
}

func newHostLock() *hostLock {
	return &hostLock{held: make(chan struct{}, 1), asked: make(chan struct{}, 1000), had: make(chan struct{}, 1000)}
}

func (l *hostLock) lock(ctx context.Context) (func(), error) {
	l.asked <- struct{}{}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; l.had <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// looked waits until a monitor has looked at what was just changed.
func (l *hostLock) looked() {
	<-l.asked
	<-l.had
}

// openLocked opens the bridge driver as one of several programs.
func openLocked(t testing.TB, l *hostLock, log *logBuffer) Driver {
	t.Helper()
	d, err := Open("bridge", Config{Root: t.TempDir(), Run: t.TempDir(), Lock: l.lock, Logger: slog.New(slog.NewTextHandler(log, nil))})
	check(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

// guarded are the host's ends that the tables of a network check.
func guarded(t testing.TB, n *Network) map[string]bool {
	t.Helper()
	nf, err := openNF()
	check(t, err)
	defer nf.Close()
	elements, err := nf.elements(unix.NFPROTO_BRIDGE, tableName(n), &setSpec{name: "ports", key: []nfType{typeIfname}})
	check(t, err)
	ports := map[string]bool{}
	for _, e := range elements {
		ports[cString(e.key)] = true
	}
	return ports
}

// TestRestoreTogether: when somebody flushes the tables, each program puts back what they have about its own containers. That
// they were gone is said once.
func TestRestoreTogether(t *testing.T) {
	onHost(t, func(host *Namespace) {
		l, log := newHostLock(), &logBuffer{}
		n := newNetwork(t, "bridge", "10.88.5.0/24")
		var ends []string
		for i := range 3 {
			d, ep := openLocked(t, l, log), endpoint(n, 2+i)
			check(t, d.Up(background, n))
			container(t, d, n, ep)
			ends = append(ends, ep.HostInterface)
		}
		if got := guarded(t, n); len(got) != len(ends) {
			t.Fatalf("%v is guarded at first", got)
		}
		check(t, flushTables(t))
		eventually(t, "all are guarded again", func() bool {
			got := guarded(t, n)
			return got[ends[0]] && got[ends[1]] && got[ends[2]]
		})
		if log.warnings() != 1 {
			t.Errorf("want one warning:\n%s", log)
		}
	})
}

// TestUpIsNoLoss: where another program takes a network down and is killed while it brings it up again, nobody has lost
// anything, and nobody says so.
func TestUpIsNoLoss(t *testing.T) {
	onHost(t, func(host *Namespace) {
		l, log := newHostLock(), &logBuffer{}
		n := newNetwork(t, "bridge", "10.88.5.0/24")
		d := openLocked(t, l, log)
		check(t, d.Up(background, n))
		container(t, d, n, endpoint(n, 2)).Close()
		other := open(t, "bridge").(*bridgeDriver)

		l.looked()
		l.held <- struct{}{}
		check(t, other.Down(background, n))
		<-l.asked
		_, err := other.makeBridge(n)
		check(t, err)
		<-l.held
		<-l.had
		nf, err := openNF()
		check(t, err)
		defer nf.Close()
		if have, err := nf.table(unix.NFPROTO_INET, tableName(n)); err != nil || have != nil {
			t.Errorf("it made the tables of a network that it does not know to be up: %v, %v", have, err)
		}

		check(t, other.Up(background, n))
		l.looked()
		if got := guarded(t, n); len(got) > 0 {
			t.Errorf("what was connected before the network was taken down is guarded: %v", got)
		}
		if log.warnings() > 0 {
			t.Errorf("it complains:\n%s", log)
		}
		// Who has it up again knows of it.
		check(t, other.Close())
		check(t, d.Up(background, n))
		check(t, flushTables(t))
		eventually(t, "the loss is said", func() bool { return log.warnings() > 0 })
		if have, err := nf.table(unix.NFPROTO_INET, tableName(n)); err != nil || have == nil {
			t.Errorf("the tables that somebody flushed: %v, %v", have, err)
		}
	})
}

// TestCloseWhileLocked: a program can close its driver while another one has the lock.
func TestCloseWhileLocked(t *testing.T) {
	onHost(t, func(host *Namespace) {
		l, log := newHostLock(), &logBuffer{}
		n := newNetwork(t, "bridge", "10.88.5.0/24")
		d := openLocked(t, l, log)
		check(t, d.Up(background, n))
		l.looked()
		l.held <- struct{}{}
		check(t, flushTables(t))
		<-l.asked
		check(t, d.Close())
		<-l.held
		if log.warnings() > 0 {
			t.Errorf("it complains:\n%s", log)
		}
	})
}
