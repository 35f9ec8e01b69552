package coracle

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// A ProgressPhase is what happens to a layer at present.
type ProgressPhase string

const (
	// PhaseWaiting: nothing has been received yet. Every layer is announced with it, before the first bytes of any.
	PhaseWaiting ProgressPhase = "waiting"
	// PhaseDownloading: the layer is being received, verified and unpacked, in one pass.
	PhaseDownloading ProgressPhase = "downloading"
	// PhaseUnpacking: all of it is here; the rest of the unpacking goes on.
	PhaseUnpacking ProgressPhase = "unpacking"
	// PhaseDone: the image is complete. It is reported for each layer, at the end of the pull.
	PhaseDone ProgressPhase = "done"
)

// Progress is how far a pull has come with one layer. It is plain data.
type Progress struct {
	// Reference is the image in full: "docker.io/library/alpine:latest".
	Reference string
	// Digest is the layer's, as in the manifest. An image may have the same layer twice.
	Digest digest.Digest
	// Index is the place of the layer in the image, from 0 for the lowest; Layers is how many there are.
	Index, Layers int
	// Phase is what happens to it.
	Phase ProgressPhase
	// Current and Total are bytes of the compressed layer: received so far, and altogether.
	Current, Total int64
}

// progressInterval is the least time between two reports of one layer within a phase.
const progressInterval = 50 * time.Millisecond

// progressReporter turns what the layers report, each from its own goroutine, into a sequence of calls.
type progressReporter struct {
	call func(Progress)

	mu     sync.Mutex
	layers []Progress
	last   []time.Time
}

func newProgressReporter(call func(Progress), ref string, digests []digest.Digest, sizes []int64) *progressReporter {
	if call == nil {
		return nil
	}
	p := &progressReporter{call: call, layers: make([]Progress, len(digests)), last: make([]time.Time, len(digests))}
	for i := range digests {
		p.layers[i] = Progress{Reference: ref, Digest: digests[i], Index: i, Layers: len(digests), Phase: PhaseWaiting, Total: sizes[i]}
		call(p.layers[i])
	}
	return p
}

// layer returns what counts the received bytes of one layer, or nil if nobody wants to know.
func (p *progressReporter) layer(i int) func(n int64) {
	if p == nil {
		return nil
	}
	return func(n int64) {
		p.mu.Lock()
		defer p.mu.Unlock()
		l := &p.layers[i]
		phase := PhaseDownloading
		if n >= l.Total {
			phase = PhaseUnpacking
		}
		now := time.Now()
		if phase == l.Phase && (now.Sub(p.last[i]) < progressInterval || phase == PhaseUnpacking) {
			return
		}
		p.last[i] = now
		l.Phase, l.Current = phase, n
		p.call(*l)
	}
}

// done reports every layer as complete.
func (p *progressReporter) done() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.layers {
		l := &p.layers[i]
		l.Phase, l.Current = PhaseDone, l.Total
		p.call(*l)
	}
}
