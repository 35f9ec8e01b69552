package netdrv

import (
	"context"
	"time"
)

// Faults are what a test does to an endpoint, in both directions. Zero: nothing.
type Faults struct {
	// Loss is how many packets of one are lost: 0.1 is one in ten. From 0 to 1.
	Loss float64 `json:"loss,omitempty"`
	// Latency is what each packet is late, and Jitter by how much that may be more or less. Each direction has them: a
	// round trip takes twice as long.
	Latency time.Duration `json:"latency,omitempty"`
	Jitter  time.Duration `json:"jitter,omitempty"`
	// Rate is what goes through at most, in bits in a second; 0 means no limit.
	Rate uint64 `json:"rate,omitempty"`
}

// A Faulter is a [Driver] that can make faults.
type Faulter interface {
	// SetFaults replaces the faults of an endpoint. An error about what the kernel cannot do matches errors.ErrUnsupported: then no
	// faults are left.
	SetFaults(ctx context.Context, n *Network, ep *Endpoint, ns *Namespace, f Faults) error
}

// check finds what makes no sense.
func (f *Faults) check() error {
	switch {
	case !(f.Loss >= 0 && f.Loss <= 1): // NaN too
		return invalid("Faults.Loss", f.Loss, "it is from 0 to 1")
	case f.Latency < 0 || f.Latency > time.Hour:
		return invalid("Faults.Latency", f.Latency, "it is from 0 to an hour")
	case f.Jitter < 0 || f.Jitter > f.Latency:
		return invalid("Faults.Jitter", f.Jitter, "it is from 0 to the latency")
	case f.Rate != 0 && f.Rate < 8000:
		return invalid("Faults.Rate", f.Rate, "it is 0 or at least 8000 bits in a second")
	}
	return nil
}
