package coracle_test

import (
	"fmt"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/coracle-dev/coracle"
)

// TestNamesAfterRestart: whoever restarts a container, and however it runs, others find it where it is, by their name server or
// their hosts file.
func TestNamesAfterRestart(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	supervised(t, eng)
	createNetwork(t, eng, coracle.NetworkSpec{Name: "app"})
	resolving := startTool(t, eng, coracle.ContainerSpec{Networks: onNetworks("app")}, "sleep", "600000")
	following := startTool(t, eng, coracle.ContainerSpec{Networks: onNetworks("app"), Detached: true}, "sleep", "600000")
	restart := func(t *testing.T, c *coracle.Container) {
		if err := c.Restart(t.Context(), &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name    string
		spec    coracle.ContainerSpec
		restart func(*testing.T, *coracle.Container)
	}{
		{"attached", coracle.ContainerSpec{}, restart},
		{"detached", coracle.ContainerSpec{Detached: true}, restart},
		{"by-policy", coracle.ContainerSpec{Detached: true, Restart: coracle.RestartPolicy{Mode: coracle.RestartAlways}}, func(t *testing.T, c *coracle.Container) {
			before := inspect(t, c).PID
			if err := syscall.Kill(before, syscall.SIGKILL); err != nil { // Kill would be somebody's wish
				t.Fatal(err)
			}
			eventually(t, "it is started again", func() bool {
				info := inspect(t, c)
				return info.Status == coracle.StatusRunning && info.PID != before
			})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.spec.Name, test.spec.Networks = test.name, []coracle.Attachment{{Network: "app", Aliases: []string{"alias-" + test.name}}}
			c := startTool(t, eng, test.spec, "sleep", "600000")
			for range 3 {
				test.restart(t, c)
				addr := addressOf(t, c, "app").String()
				for _, name := range []string{test.name, "alias-" + test.name} {
					for _, from := range []*coracle.Container{resolving, following} {
						out, err := execIn(t, from, "lookup", name)
						wantOutput(t, name, out, err, addr)
					}
				}
				out, err := execIn(t, c, "lookup", strings.ToLower(following.Name()))
				wantOutput(t, "its own view", out, err, addressOf(t, following, "app").String())
			}
		})
	}
}

// TestNamesAfterRename: others find a container by the name with which it was started, until it is started again.
func TestNamesAfterRename(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	createNetwork(t, eng, coracle.NetworkSpec{Name: "app"})
	other := startTool(t, eng, coracle.ContainerSpec{Networks: onNetworks("app")}, "sleep", "600000")
	c := startTool(t, eng, coracle.ContainerSpec{Name: "before", Networks: onNetworks("app")}, "sleep", "600000")
	want := func(name, not string) {
		t.Helper()
		out, err := execIn(t, other, "lookup", name)
		wantOutput(t, name, out, err, addressOf(t, c, "app").String())
		if out, err := execIn(t, other, "lookup", not); err == nil {
			t.Errorf("%s leads to %s", not, out)
		}
	}
	if err := c.Rename(t.Context(), "after"); err != nil {
		t.Fatal(err)
	}
	want("before", "after")
	if err := c.Restart(t.Context(), &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
		t.Fatal(err)
	}
	want("after", "before")
}

// TestEventsOfNetworks: each thing that happens to a network is told once.
func TestEventsOfNetworks(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	n, err := eng.CreateNetwork(t.Context(), &coracle.NetworkSpec{Name: "app", Labels: map[string]string{"team": "a"}})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	add := func(action coracle.EventAction, container string) {
		want = append(want, fmt.Sprintf("%s %s %s bridge a", action, n.ID(), container))
	}
	add(coracle.ActionCreate, "")
	other := openAgain(t, eng.Root())
	for _, isDetached := range []bool{false, true} {
		c := startTool(t, eng, coracle.ContainerSpec{Networks: onNetworks("app"), Detached: isDetached}, "sleep", "600000")
		add(coracle.ActionConnect, c.ID())
		seen, err := other.Container(t.Context(), c.ID())
		if err != nil {
			t.Fatal(err)
		}
		foreign, err := other.Network(t.Context(), "app")
		if err != nil {
			t.Fatal(err)
		}
		if err := foreign.Disconnect(t.Context(), seen); err != nil {
			t.Fatal(err)
		}
		add(coracle.ActionDisconnect, c.ID())
		if err := foreign.Connect(t.Context(), seen, nil); err != nil {
			t.Fatal(err)
		}
		add(coracle.ActionConnect, c.ID())
		if err := c.Restart(t.Context(), &coracle.StopOptions{Timeout: coracle.StopAtOnce}); err != nil {
			t.Fatal(err)
		}
		add(coracle.ActionDisconnect, c.ID())
		add(coracle.ActionConnect, c.ID())
		if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		add(coracle.ActionDisconnect, c.ID())
	}
	if err := n.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	add(coracle.ActionDestroy, "")
	if err := n.Remove(t.Context()); err != nil { // nothing happens
		t.Fatal(err)
	}
	got := []string{}
	for _, ev := range events(t, eng, nil) {
		if ev.Type == coracle.EventNetwork {
			got = append(got, fmt.Sprintf("%s %s %s %s %s", ev.Action, ev.ID, ev.Attributes["container"], ev.Attributes["type"], ev.Attributes["team"]))
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
