package cgroup

import (
	"testing"
)

func TestSmoke(t *testing.T) {
	h, err := Open(Config{Parent: "/coracle-test"})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	t.Log(h.Mode(), h.Controllers())
	r, err := Limits{Memory: 64 << 20, PIDs: 10, CPUs: 0.5, CPUShares: 512}.Resources()
	if err != nil {
		t.Fatal(err)
	}
	g, err := h.Create("x", r)
	if err != nil {
		t.Fatal(err)
	}
	s, err := g.Stats()
	t.Logf("%+v %+v %+v %v", s.CPU, s.Memory, s.PIDs, err)
	j, err := g.Join()
	t.Log(j, err)
	j.Close()
	if err := g.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
}
