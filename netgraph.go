package coracle

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A NetworkGraph is what is connected to a network: plain data, for JSON or, by DOT, for Graphviz.
type NetworkGraph struct {
	ID       string         `json:"id"`
	Name     string         `json:"name"`
	Driver   string         `json:"driver"`
	Internal bool           `json:"internal,omitempty"`
	Isolated bool           `json:"isolated,omitempty"`
	Subnets  []netip.Prefix `json:"subnets"`
	// Containers are those that run and are connected, by name.
	Containers []NetworkGraphNode `json:"containers"`
	// Parted are the ids of two of them each that [Network.Partition] keeps from each other.
	Parted [][2]string `json:"parted,omitempty"`
}

// A NetworkGraphNode is a container in a NetworkGraph.
type NetworkGraphNode struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Interface string          `json:"interface"`
	Addresses []netip.Prefix  `json:"addresses"`
	Names     []string        `json:"names,omitempty"` // under which others find it
	Published []PublishedPort `json:"published,omitempty"`
	// Networks are the other networks that the container is connected to, by name.
	Networks []string `json:"networks,omitempty"`
}

// Graph tells who is connected to the network at this moment. The error matches fs.ErrNotExist if it was removed.
func (n *Network) Graph(ctx context.Context) (*NetworkGraph, error) {
	st, err := n.eng.readNetwork(n.id)
	if err != nil {
		return nil, n.fail("draw", err)
	}
	g := &NetworkGraph{ID: st.ID, Name: st.Name, Driver: st.driver(), Internal: st.Spec.Internal, Isolated: st.Spec.Isolated, Containers: []NetworkGraphNode{}}
	for _, s := range st.Subnets {
		g.Subnets = append(g.Subnets, s.Prefix)
	}
	endpoints, err := n.eng.endpoints(st.ID)
	if err != nil {
		return nil, n.fail("draw", err)
	}
	for _, ep := range endpoints {
		if !ep.Connected || ep.over {
			continue
		}
		node := NetworkGraphNode{ID: ep.Container, Name: ep.ContainerName, Interface: ep.Endpoint.Interface, Addresses: ep.Endpoint.Addresses, Names: ep.Names, Published: ep.Ports}
		for _, other := range n.eng.resolvable(ep.Container) {
			if other.id != st.ID {
				node.Networks = append(node.Networks, other.name)
			}
		}
		g.Containers = append(g.Containers, node)
	}
	parted, err := n.eng.parted(st.ID)
	if err != nil {
		return nil, n.fail("draw", err)
	}
	for _, p := range parted { // in the order of their names
		if !slices.ContainsFunc(p[:], func(id string) bool {
			return !slices.ContainsFunc(g.Containers, func(c NetworkGraphNode) bool { return c.ID == id })
		}) {
			g.Parted = append(g.Parted, p)
		}
	}
	slices.SortFunc(g.Containers, func(a, b NetworkGraphNode) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
	})
	return g, nil
}

// DOT is the graph in the language of Graphviz.
func (g *NetworkGraph) DOT() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	label := []string{g.Name, g.Driver}
	for _, s := range g.Subnets {
		label = append(label, s.String())
	}
	q := strconv.Quote
	line("graph %s {", q(g.Name))
	line("\t%s [shape=box,label=%s];", q("network "+g.Name), q(strings.Join(label, "\n")))
	host, others := false, make(map[string]bool)
	for _, c := range g.Containers {
		line("\t%s [shape=ellipse,label=%s];", q(c.ID), q(c.Name))
		var at []string
		for _, a := range c.Addresses {
			at = append(at, a.Addr().String())
		}
		line("\t%s -- %s [label=%s];", q("network "+g.Name), q(c.ID), q(strings.Join(at, "\n")))
		for _, p := range c.Published {
			host = true
			line("\t%s -- %s [style=dashed,label=%s];", q("host"), q(c.ID), q(p.String()))
		}
		for _, name := range c.Networks {
			others[name] = true
			line("\t%s -- %s [style=dotted];", q("network "+name), q(c.ID))
		}
	}
	for _, p := range g.Parted {
		line("\t%s -- %s [style=bold,color=red,label=parted];", q(p[0]), q(p[1]))
	}
	if host {
		line("\t%s [shape=box3d];", q("host"))
	}
	for _, name := range slices.Sorted(maps.Keys(others)) {
		line("\t%s [shape=box,style=dotted,label=%s];", q("network "+name), q(name))
	}
	line("}")
	return b.String()
}
