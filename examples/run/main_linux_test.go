package main

import (
	"bytes"
	"errors"
	"os"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/registrytest"
	"github.com/coracle-dev/coracle/internal/testtool"
	"github.com/coracle-dev/coracle/internal/testutil"
)

func TestMain(m *testing.M) {
	testtool.Main()
	code := testutil.LeakCheck(m)
	testtool.Cleanup()
	os.Exit(code)
}

func TestRun(t *testing.T) {
	testutil.RequireRoot(t)
	tool, err := os.ReadFile(testtool.Path(t))
	if err != nil {
		t.Fatal(err)
	}
	reg := registrytest.New()
	defer reg.Close()
	img := registrytest.NewImage(registrytest.NewLayer(ocispec.MediaTypeImageLayerGzip,
		registrytest.Tar(registrytest.File{Name: "tool", Content: string(tool), Mode: 0o755})))
	img.Config.Config.Entrypoint = []string{"/tool"}
	reg.Push("tool", "v1", img)

	root := t.TempDir()
	var out bytes.Buffer
	spec := &coracle.ContainerSpec{Image: reg.Host + "/tool:v1", Args: []string{"echo", "pulled and run"}, Stdout: &out}
	if err := run(t.Context(), root, spec); err != nil || out.String() != "pulled and run\n" {
		t.Fatalf("%q, %v", out.String(), err)
	}
	var exit *coracle.ExitError
	spec.Args = []string{"exit", "7"}
	if err := run(t.Context(), root, spec); !errors.As(err, &exit) || exit.Code != 7 {
		t.Errorf("got %v", err)
	}
}
