package coracle_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/netdrv"
)

// crosses dials a port of one container from inside another one.
func crosses(t testing.TB, from, to *coracle.Container, network string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := from.DialContext(ctx, "tcp", addressOf(t, to, network).String()+":80")
	if err != nil {
		return err
	}
	return conn.Close()
}

// cut expects that nothing gets from one container to another.
func cut(t testing.TB, from, to *coracle.Container, network string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	conn, err := from.DialContext(ctx, "tcp", addressOf(t, to, network).String()+":80")
	if err == nil {
		conn.Close()
	}
	var failed net.Error
	if !errors.As(err, &failed) || !failed.Timeout() {
		t.Errorf("from %s to %s: %v, want a time-out", from.Name(), to.Name(), err)
	}
}

func TestPartition(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	n := createNetwork(t, eng, coracle.NetworkSpec{Name: "app"})
	spec := func(name string, isDetached bool) coracle.ContainerSpec {
		return coracle.ContainerSpec{Name: name, Networks: onNetworks("app"), Detached: isDetached}
	}
	// Of this program, of nobody, and of another one.
	a, b := serving(t, eng, spec("a", false), "tcp", "0.0.0.0:80"), serving(t, eng, spec("b", true), "tcp", "0.0.0.0:80")
	elsewhere := openAgain(t, eng.Root())
	c := serving(t, elsewhere, spec("c", false), "tcp", "0.0.0.0:80")
	all := []*coracle.Container{a, b, c}
	reach := func(pairs ...[2]*coracle.Container) {
		t.Helper()
		for _, from := range all {
			for _, to := range all {
				if from == to {
					continue
				}
				if slices.ContainsFunc(pairs, func(p [2]*coracle.Container) bool { return p[0] == from && p[1] == to || p[0] == to && p[1] == from }) {
					cut(t, from, to, "app")
				} else if err := crosses(t, from, to, "app"); err != nil {
					t.Errorf("from %s to %s: %v", from.Name(), to.Name(), err)
				}
			}
		}
	}
	reach()
	if err := n.Partition(t.Context(), all[:1], all[1:]); err != nil {
		t.Fatal(err)
	}
	reach([2]*coracle.Container{a, b}, [2]*coracle.Container{a, c})
	// Another one comes on top, by another program, and one that starts again is where it was.
	again, err := elsewhere.Network(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Partition(t.Context(), []*coracle.Container{b}, []*coracle.Container{c}); err != nil {
		t.Fatal(err)
	}
	if err := b.Restart(t.Context(), &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "b listens again", func() bool {
		conn, err := net.DialTimeout("tcp", addressOf(t, b, "app").String()+":80", time.Second) // the host is in no partition
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	reach([2]*coracle.Container{a, b}, [2]*coracle.Container{a, c}, [2]*coracle.Container{b, c})
	g, err := n.Graph(t.Context())
	if err != nil || len(g.Parted) != 3 || strings.Count(g.DOT(), "label=parted") != 3 {
		t.Errorf("the graph: %+v, %v", g, err)
	}
	if err := again.Heal(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	reach([2]*coracle.Container{a, b})
	for range 2 {
		if err := n.Heal(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	reach()
	objects, err := netdrv.FirewallObjects(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if strings.HasPrefix(o.Table, "coracle-parted-"+n.ID()[:12]) {
			t.Errorf("left: %+v", o)
		}
	}
	// A container that is not there any more has no part in anything.
	d := serving(t, eng, spec("d", false), "tcp", "0.0.0.0:80")
	if err := n.Partition(t.Context(), []*coracle.Container{d}, all); err != nil {
		t.Fatal(err)
	}
	cut(t, a, d, "app")
	addr := addressOf(t, d, "app")
	if err := d.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	successor := spec("e", false)
	successor.Networks = []coracle.Attachment{{Network: "app", IPv4: addr}}
	e := serving(t, eng, successor, "tcp", "0.0.0.0:80")
	if err := crosses(t, a, e, "app"); err != nil {
		t.Errorf("who has the address after: %v", err)
	}
}

func TestPartitionErrors(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	n := createNetwork(t, eng, coracle.NetworkSpec{Name: "app"})
	in := startTool(t, eng, coracle.ContainerSpec{Networks: onNetworks("app")}, "sleep", "60000")
	out := startTool(t, eng, coracle.ContainerSpec{Networks: onNetworks("none")}, "sleep", "60000")
	stopped, err := eng.Create(t.Context(), &coracle.ContainerSpec{Image: "tool", Args: []string{"true"}, Networks: onNetworks("app")})
	if err != nil {
		t.Fatal(err)
	}
	removed, err := eng.Create(t.Context(), &coracle.ContainerSpec{Image: "tool", Args: []string{"true"}, Networks: onNetworks("app")})
	if err != nil {
		t.Fatal(err)
	}
	if err := removed.Remove(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	group := func(list ...*coracle.Container) []*coracle.Container { return list }
	for _, test := range []struct {
		what   string
		groups [][]*coracle.Container
		want   error
	}{
		{"no group", nil, coracle.ErrInvalid},
		{"one group", [][]*coracle.Container{group(in, stopped)}, coracle.ErrInvalid},
		{"in two groups", [][]*coracle.Container{group(in), group(stopped, in)}, coracle.ErrInvalid},
		{"not connected", [][]*coracle.Container{group(in), group(out)}, fs.ErrNotExist},
		{"removed", [][]*coracle.Container{group(in), group(removed)}, fs.ErrNotExist},
	} {
		err := n.Partition(t.Context(), test.groups...)
		var op *coracle.OpError
		if !errors.Is(err, test.want) || !errors.As(err, &op) || op.Kind != "network" {
			t.Errorf("%s: %v", test.what, err)
		}
	}
	if err := n.Partition(t.Context(), group(in), group(stopped)); err != nil {
		t.Errorf("one that does not run yet: %v", err)
	}
	if err := n.SetFaults(t.Context(), stopped, netdrv.Faults{Rate: 1e6}); !errors.Is(err, coracle.ErrNotRunning) {
		t.Errorf("faults of one that does not run: %v", err)
	}
	if err := n.SetFaults(t.Context(), out, netdrv.Faults{Rate: 1e6}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("faults of one that is not connected: %v", err)
	}
	gone := createNetwork(t, eng, coracle.NetworkSpec{Name: "gone"})
	if err := gone.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(gone.Partition(t.Context(), group(in), group(stopped))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a network that is gone: %v", err)
	}
}

// TestSetFaults: a rate, which every kernel has, and what only some have.
func TestSetFaults(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	n := createNetwork(t, eng, coracle.NetworkSpec{Name: "app"})
	c := serving(t, eng, coracle.ContainerSpec{Networks: onNetworks("app")}, "tcp", "0.0.0.0:80")
	d := startTool(t, eng, coracle.ContainerSpec{Networks: onNetworks("app")}, "sleep", "60000")
	took := func() time.Duration {
		began := time.Now()
		if err := crosses(t, d, c, "app"); err != nil {
			t.Error(err)
		}
		return time.Since(began)
	}
	took() // what there is to be learned once
	if err := n.SetFaults(t.Context(), c, netdrv.Faults{Rate: 100e6}); err != nil {
		t.Fatal(err)
	}
	took()
	const late = 40 * time.Millisecond
	switch err := n.SetFaults(t.Context(), c, netdrv.Faults{Latency: late}); {
	case errors.Is(err, errors.ErrUnsupported):
		t.Log(err)
	case err != nil:
		t.Fatal(err)
	default:
		if got := took(); got < 2*late {
			t.Errorf("there and back, each %v late, takes %v", late, got)
		}
		if err := n.SetFaults(t.Context(), c, netdrv.Faults{Loss: 1}); err != nil {
			t.Fatal(err)
		}
		cut(t, d, c, "app")
	}
	if err := n.SetFaults(t.Context(), c, netdrv.Faults{}); err != nil {
		t.Fatal(err)
	}
	took()
	var invalid *netdrv.InvalidError
	if err := n.SetFaults(t.Context(), c, netdrv.Faults{Loss: 2}); !errors.As(err, &invalid) {
		t.Errorf("twice all that is sent: %v", err)
	}
}
