package coracle_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// What the crash walk does to networks.

func networkScenarios() map[string]*walkScenario {
	on := func(spec coracle.ContainerSpec) coracle.ContainerSpec {
		spec.Networks, spec.Ports = onNetworks("app"), []coracle.Port{{Container: 80}}
		return spec
	}
	kept := on(coracle.ContainerSpec{Image: "tool", Args: []string{"exit", "3"}, Detached: true})
	long := coracle.ContainerSpec{Image: "tool", Args: []string{"stubborn"}, Detached: true, Networks: onNetworks(coracle.NetworkBridge)}
	elsewhere := obey
	elsewhere.Networks = onNetworks(coracle.NetworkBridge)
	return map[string]*walkScenario{
		"network-create": {root: "tool", beside: true, act: makeNetwork, state: hasNetwork, legal: []string{"no", "app:"}, end: "app:"},
		"network-remove": {root: "tool", beside: true, before: makeNetwork, act: both(useNetwork, removeNetwork), state: hasNetwork, legal: []string{"no", "app:"}, end: "no"},
		"network-start": {root: "tool", beside: true, timing: true, before: both(makeNetwork, drop("box"), create("box", on(obey))), act: both(start("box"), stop("box")),
			state: hasNetwork, legal: []string{"app:"}, end: "app:"},
		"network-close": {root: "tool", timing: true, before: both(makeNetwork, create("box", on(obey)), start("box")), act: func(*walkWorld) error { return nil },
			state: hasNetwork, legal: []string{"app:"}, end: "app:"},
		"network-detached": {root: "tool", keeps: true, timing: true, before: both(makeNetwork, drop("kept")), act: both(create("kept", kept), start("kept"), waitKept(3)),
			state: hasNetwork, legal: []string{"app:"}, end: "app:"},
		"network-connect": {root: "tool", timing: true, before: both(makeNetwork, drop("box"), create("box", elsewhere), start("box")),
			act: both(connectTo("box"), disconnectFrom("box"), connectTo("box"), stop("box")), state: hasNetwork, legal: []string{"app:"}, end: "app:"},
		// A container that goes on when the program that connects it dies.
		"network-connect-detached": {root: "tool", keeps: true, timing: true, before: both(makeNetwork, create("kept", long), start("kept")),
			act: both(connectTo("kept"), disconnectFrom("kept"), connectTo("kept"), killKept), state: hasNetwork, legal: []string{"app:"}, end: "app:"},
		"network-part": {root: "tool", timing: true, before: both(makeNetwork, drop("box"), create("box", on(obey)), drop("box2"), create("box2", on(obey)), start("box")),
			act: both(part("box", "box2"), start("box2"), part("box", "box2"), healNetwork, part("box", "box2"), stop("box"), stop("box2")), state: hasNetwork, legal: []string{"app:"}, end: "app:"},
		"network-sweep": {root: "tool", opens: true, timing: true, before: leaveNetworks, act: openOrGoOn, state: hasNetwork, legal: []string{"app:"}, end: "app:"},
	}
}

func makeNetwork(w *walkWorld) error {
	_, err := w.eng.CreateNetwork(w.ctx, &coracle.NetworkSpec{Name: "app", IPv6: true})
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return err
}

// useNetwork brings it up.
func useNetwork(w *walkWorld) error {
	return w.eng.Run(w.ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"true"}, Networks: onNetworks("app")})
}

func removeNetwork(w *walkWorld) error {
	n, err := w.eng.Network(w.ctx, "app")
	if err == nil {
		err = n.Remove(w.ctx)
	}
	return err
}

// hasNetwork tells whether there is the network, and who is in it.
func hasNetwork(w *walkWorld) (string, error) {
	n, err := w.eng.Network(w.ctx, "app")
	if errors.Is(err, fs.ErrNotExist) {
		list, err := w.eng.Networks(w.ctx, nil)
		if slices.ContainsFunc(list, func(n *coracle.Network) bool { return n.Name() == "app" }) {
			return "listed, but not found", err
		}
		return "no", err
	}
	if err != nil {
		return "", err
	}
	info, err := n.Inspect(w.ctx)
	if err != nil {
		return "", err
	}
	var in []string
	for _, ep := range info.Endpoints {
		in = append(in, ep.Container)
	}
	return "app:" + strings.Join(in, " "), nil
}

// connectTo connects a container that runs, unless it is connected, and looks whether it has the interface.
func connectTo(name string) func(*walkWorld) error {
	return with(name, func(w *walkWorld, c *coracle.Container) error {
		n, err := w.eng.Network(w.ctx, "app")
		if err == nil {
			err = n.Connect(w.ctx, c, nil)
		}
		if errors.Is(err, fs.ErrExist) {
			err = nil
		}
		if err != nil {
			return err
		}
		return wantInterfaces(w, c, 2)
	})
}

func part(one, other string) func(*walkWorld) error {
	return with(one, func(w *walkWorld, a *coracle.Container) error {
		return with(other, func(w *walkWorld, b *coracle.Container) error {
			n, err := w.eng.Network(w.ctx, "app")
			if err == nil {
				err = n.Partition(w.ctx, []*coracle.Container{a}, []*coracle.Container{b})
			}
			return err
		})(w)
	})
}

func healNetwork(w *walkWorld) error {
	n, err := w.eng.Network(w.ctx, "app")
	if err == nil {
		err = n.Heal(w.ctx)
	}
	return err
}

func disconnectFrom(name string) func(*walkWorld) error {
	return with(name, func(w *walkWorld, c *coracle.Container) error {
		n, err := w.eng.Network(w.ctx, "app")
		if err == nil {
			err = n.Disconnect(w.ctx, c)
		}
		if err != nil {
			return err
		}
		return wantInterfaces(w, c, 1)
	})
}

func wantInterfaces(w *walkWorld, c *coracle.Container, want int) error {
	info, err := c.Inspect(w.ctx)
	if err != nil {
		return err
	}
	out, err := c.Command("/tool", "interfaces").Output(w.ctx)
	if n := strings.Count(string(out), "\n"); err != nil || n != want || len(info.Networks) != want {
		return fmt.Errorf("%d interfaces instead of %d: %s, %v; %+v", n, want, out, err, info.Networks)
	}
	return nil
}

var killKept = with("kept", func(w *walkWorld, c *coracle.Container) error {
	return c.Stop(w.ctx, &coracle.StopOptions{Timeout: coracle.StopAtOnce})
})

// leaveNetworks leaves what programs do that die with containers on networks, and no engine.
func leaveNetworks(w *walkWorld) error {
	if w.eng != nil {
		return nil
	}
	out, state, err := walkOrder{Scenario: "network-start", Root: w.root, Cut: "network: named #1"}.program()
	if err == nil && state.Success() {
		err = fmt.Errorf("the program has not died: %s", out)
	}
	return err
}

// foreignScenario is a program that connects and disconnects a container of another one.
const foreignScenario = "network-foreign"

var foreignConnect = &walkScenario{act: both(connectTo("box"), disconnectFrom("box"), connectTo("box"))}

// TestConnectorKilled: a program dies at each step of connecting and disconnecting a container that another one runs. The
// container goes on, and can be connected and disconnected. Nothing is left.
func TestConnectorKilled(t *testing.T) {
	for _, isDetached := range []bool{false, true} {
		t.Run(fmt.Sprint("detached ", isDetached), func(t *testing.T) {
			eng := engine(t)
			toolImage(t, eng, nil)
			w := &walkWorld{ctx: t.Context(), root: eng.Root(), eng: eng}
			if err := makeNetwork(w); err != nil {
				t.Fatal(err)
			}
			spec := obey
			spec.Detached, spec.Networks = isDetached, onNetworks(coracle.NetworkBridge)
			if err := both(create("box", spec), start("box"))(w); err != nil {
				t.Fatal(err)
			}
			pid := func() int {
				c, err := eng.Container(t.Context(), "box")
				if err != nil {
					t.Fatal(err)
				}
				return inspect(t, c).PID
			}
			before := pid()
			out, _, err := walkOrder{Scenario: foreignScenario, Root: w.root}.program()
			var steps []string
			if err == nil {
				err = json.Unmarshal(out, &steps)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := wantConnected(w, true); err != nil { // the program has ended in order: it stays
				t.Error(err)
			}
			for i, step := range cuts(steps) {
				if testutil.InVM() && i%4 != 0 {
					continue
				}
				if err := wantConnected(w, false); err != nil {
					t.Fatalf("before %s: %v", step, err)
				}
				out, state, err := walkOrder{Scenario: foreignScenario, Root: w.root, Cut: step}.program()
				if err != nil {
					t.Fatal(err)
				}
				if !state.Success() {
					killed(t, out)
				}
				begin := time.Now()
				other := &walkWorld{ctx: t.Context(), root: w.root}
				if err := other.open(); err != nil {
					t.Fatalf("open after %s: %v", step, err)
				}
				if d := time.Since(begin); d > 5*time.Second {
					t.Errorf("open after %s takes %v", step, d)
				}
				err = errors.Join(other.eng.Close(), connectTo("box")(w), wantConnected(w, false))
				if err != nil || pid() != before {
					t.Errorf("after %s: %v", step, err)
				}
			}
			if err := both(drop("box"), removeNetwork)(w); err != nil {
				t.Error(err)
			}
		})
	}
}

// wantConnected looks whether the container is connected, and its place free when it is disconnected.
func wantConnected(w *walkWorld, stays bool) error {
	c, err := w.eng.Container(w.ctx, "box")
	if err != nil {
		return err
	}
	if stays {
		return wantInterfaces(w, c, 2)
	}
	n, err := w.eng.Network(w.ctx, "app")
	if err != nil {
		return err
	}
	if err := n.Disconnect(w.ctx, c); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, dir := range []string{"endpoints", "addresses", "names", "followers"} {
		if left, err := os.ReadDir(filepath.Join(w.root, "networks", n.ID(), dir)); err == nil && len(left) > 0 {
			return fmt.Errorf("left in %s: %v", dir, left)
		}
	}
	return wantInterfaces(w, c, 1)
}

// TestSharedNetworkOutlived: another container, which shares the network of one that has ended, does not keep its address.
func TestSharedNetworkOutlived(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	createNetwork(t, eng, coracle.NetworkSpec{Name: "fixed", Subnets: []coracle.Subnet{{Prefix: netip.MustParsePrefix("10.213.9.0/29")}}})
	spec := coracle.ContainerSpec{Name: "first", Networks: []coracle.Attachment{{Network: "fixed", IPv4: netip.MustParseAddr("10.213.9.3")}}}
	first := startTool(t, eng, spec, "sleep", "600000")
	sharing := startTool(t, eng, coracle.ContainerSpec{Networks: onNetworks("container:first")}, "sleep", "600000")
	if err := first.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	spec.Name = "second"
	startTool(t, eng, spec, "true")
	if out, err := execIn(t, sharing, "interfaces"); err != nil || out != "" {
		t.Errorf("%q, %v", out, err)
	}
}
