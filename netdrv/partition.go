package netdrv

import "context"

// A Partitioner is a [Driver] that can keep endpoints of a network from each other.
type Partitioner interface {
	// Partition keeps the two endpoints of each pair from each other, in both directions and whatever is under way between them. ARP and
	// neighbour discovery go on, so that what is sent is lost and not refused. It lasts until Heal, or until one of the two is disconnected or
	// forgotten. What is parted already stays so. Either all pairs are parted or none is.
	Partition(ctx context.Context, n *Network, pairs [][2]*Endpoint) error
	// Heal ends what Partition did. Pairs that are not parted are no error.
	Heal(ctx context.Context, n *Network, pairs [][2]*Endpoint) error
}
