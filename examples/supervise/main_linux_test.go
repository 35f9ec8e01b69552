package main

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/testtool"
	"github.com/coracle-dev/coracle/internal/testutil"
)

func TestMain(m *testing.M) {
	testtool.Main()
	code := testutil.LeakCheck(m)
	testtool.Cleanup()
	os.Exit(code)
}

// TestSupervise: a container that ends is started again, and runs on when the program has ended.
func TestSupervise(t *testing.T) {
	testutil.RequireRoot(t)
	root := t.TempDir()
	eng, err := coracle.Open(t.Context(), coracle.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer eng.Close()
	if _, err := eng.ImageFromFS(t.Context(), "tool", testtool.FS(t, nil), nil); err != nil {
		t.Fatal(err)
	}
	c, err := eng.Create(t.Context(), &coracle.ContainerSpec{
		Image: "tool", Args: []string{"/tool", "sleep", "600000"}, Detached: true, Restart: coracle.RestartPolicy{Mode: coracle.RestartAlways},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Remove(context.Background(), &coracle.RemoveOptions{Force: true})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	info, err := c.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, root, slog.New(slog.DiscardHandler)) }()
	first, err := os.FindProcess(info.PID)
	if err == nil {
		err = first.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
	for ev, err := range eng.Events(t.Context(), &coracle.EventOptions{Follow: true, Since: info.Started}) {
		if err != nil {
			t.Fatal(err)
		}
		if ev.Action == coracle.ActionStart && ev.Time.After(info.Started) {
			if now, err := c.Inspect(t.Context()); err == nil && now.RestartCount == 1 {
				break
			}
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if now, err := c.Inspect(t.Context()); err != nil || now.Status != coracle.StatusRunning || now.PID == info.PID {
		t.Errorf("after its end: %+v, %v", now, err)
	}
}

// TestUnit: what the unit file must say.
func TestUnit(t *testing.T) {
	testutil.NotInVM(t, "there is no source")
	b, err := os.ReadFile("coracle.service")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	for _, want := range []string{
		"[Unit]", "[Service]", "Type=exec", "ExecStart=/usr/local/bin/coracle-supervise -root /var/lib/coracle", "Restart=always",
		"KillMode=process", "Delegate=yes", "StartLimitIntervalSec=0", "[Install]", "WantedBy=multi-user.target",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("the unit has no line %q", want)
		}
	}
	for _, line := range lines {
		for _, bad := range []string{"ProtectSystem=", "PrivateMounts=", "PrivateTmp=", "ProtectHome=", "ReadOnlyPaths=", "MountFlags=", "OOMScoreAdjust=", "LimitNOFILE=", "Nice="} {
			if strings.HasPrefix(line, bad) {
				t.Errorf("the unit has %q: its containers would inherit that", line)
			}
		}
	}
}
