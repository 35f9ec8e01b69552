package netdrv

// A FirewallObject is something of ours in nf_tables.
type FirewallObject struct {
	// Family is that of the table: "inet", "bridge", "ip", "ip6".
	Family string `json:"family"`
	// Table is the name of the table. One that does not begin with "coracle-" is somebody else's, with a rule of ours.
	Table string `json:"table"`
	// Kind is "table", "chain", "rule", "set", "map" or "element".
	Kind string `json:"kind"`
	// Name is that of the chain or set; of a rule or an element, that of the chain or set that it is in. Empty for tables.
	Name string `json:"name,omitempty"`
	// Text is the rule as nft(8) writes it, where it is short enough to be kept with it, or what the element says. Empty for others.
	Text string `json:"text,omitempty"`
	// Reason is why it is there.
	Reason string `json:"reason"`
}

// A HostChange is a setting of the host that was changed so that containers reach the outside. It is undone when the last
// network is removed, unless others may rely on it meanwhile.
type HostChange struct {
	// Setting is its name: "net.ipv4.ip_forward".
	Setting string `json:"setting"`
	// Was is the value before.
	Was string `json:"was"`
	// Is is the value that we gave it.
	Is string `json:"is"`
	// Reason is why.
	Reason string `json:"reason"`
}
