package coracle_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/registrytest"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// checkRoot is a root with something of everything in it.
type checkRoot struct {
	eng    *coracle.Engine
	reg    *registrytest.Registry
	pulled *registrytest.Image
	image  *coracle.Image // pulled
	local  *coracle.Image // made here
	c      *coracle.Container
}

func (r *checkRoot) path(parts ...string) string {
	return filepath.Join(append([]string{r.eng.Root()}, parts...)...)
}

func (r *checkRoot) blob(d digest.Digest) string {
	return r.path("store", "blobs", "sha256", d.Encoded())
}

// layer is the directory of the n-th layer of the pulled image.
func (r *checkRoot) layer(n int) string {
	return r.path("store", "layers", "d-"+r.pulled.Layers[n].DiffID.Encoded())
}

func newCheckRoot(t *testing.T) *checkRoot {
	r := &checkRoot{eng: engine(t), reg: registrytest.New()}
	t.Cleanup(r.reg.Close)
	r.pulled = registrytest.NewImage(
		registrytest.RandomLayer(1, ocispec.MediaTypeImageLayerGzip, 200_000),
		registrytest.RandomLayer(2, ocispec.MediaTypeImageLayerZstd, 3_000),
		registrytest.NewLayer(ocispec.MediaTypeImageLayer, registrytest.Tar(registrytest.File{Name: "bin/"}, registrytest.File{Name: "bin/true", Content: "no program", Mode: 0o755})))
	r.reg.Push("app", "v1", r.pulled)
	var err error
	if r.image, err = r.eng.Pull(t.Context(), r.reg.Host+"/app:v1", &coracle.PullOptions{Credentials: &coracle.Credentials{}}); err != nil {
		t.Fatal(err)
	}
	r.local = toolImage(t, r.eng, nil)
	if r.c, err = r.eng.Create(t.Context(), &coracle.ContainerSpec{Image: r.reg.Host + "/app:v1", Name: "c", Args: []string{"/bin/true"}}); err != nil {
		t.Fatal(err)
	}
	return r
}

func flip(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 1
	return os.WriteFile(path, b, 0o600)
}

func zero(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, make([]byte, len(b)), 0o600)
}

// TestCheckAndRepair damages everything that can be damaged, one at a time.
func TestCheckAndRepair(t *testing.T) {
	testutil.NotInVM(t, "it depends on no kernel, and is done outside, ten times as fast")
	type outcome string
	const (
		repaired outcome = "repaired"
		failed   outcome = "failed"
	)
	for name, test := range map[string]struct {
		damage func(*checkRoot) error
		kind   coracle.DamageKind
		is     error
		named  func(*checkRoot) string
		want   outcome
		lost   func(*checkRoot) error // checked after a repair that fails was done with Remove
	}{
		"a bit of a layer's blob": {
			damage: func(r *checkRoot) error { return flip(r.blob(r.pulled.Layers[0].Digest)) },
			kind:   coracle.DamagedBlob, is: coracle.ErrCorrupt, named: func(r *checkRoot) string { return string(r.pulled.Layers[0].Digest) }, want: repaired,
		},
		"a layer's blob cut": {
			damage: func(r *checkRoot) error { return os.Truncate(r.blob(r.pulled.Layers[1].Digest), 10) },
			kind:   coracle.DamagedBlob, is: coracle.ErrCorrupt, want: repaired,
		},
		"a layer's blob gone": {
			damage: func(r *checkRoot) error { return os.Remove(r.blob(r.pulled.Layers[1].Digest)) },
			kind:   coracle.DamagedBlob, is: fs.ErrNotExist, want: repaired,
		},
		"the manifest": {
			damage: func(r *checkRoot) error { return zero(r.blob(r.image.Digest())) },
			kind:   coracle.DamagedImage, is: coracle.ErrCorrupt, named: func(r *checkRoot) string { return string(r.image.Digest()) }, want: repaired,
		},
		"the config gone": {
			damage: func(r *checkRoot) error { return os.Remove(r.blob(r.image.ID())) },
			kind:   coracle.DamagedImage, is: fs.ErrNotExist, named: func(r *checkRoot) string { return string(r.image.ID()) }, want: repaired,
		},
		"a bit of a layer's file": {
			damage: func(r *checkRoot) error { return flip(r.layer(0) + "/fs/file-1") },
			kind:   coracle.DamagedLayer, is: coracle.ErrCorrupt, named: func(r *checkRoot) string { return string(r.pulled.Layers[0].DiffID) }, want: repaired,
		},
		"a layer's file gone": {
			damage: func(r *checkRoot) error { return os.Remove(r.layer(1) + "/fs/file-2") },
			kind:   coracle.DamagedLayer, is: coracle.ErrCorrupt, want: repaired,
		},
		"a layer's record of zeros": {
			damage: func(r *checkRoot) error { return zero(r.layer(2) + "/layer.json") },
			kind:   coracle.DamagedLayer, is: coracle.ErrCorrupt, want: repaired,
		},
		"a layer gone that a container has": {
			damage: func(r *checkRoot) error { return os.RemoveAll(r.layer(0)) },
			kind:   coracle.DamagedSnapshot, is: coracle.ErrCorrupt, want: repaired,
		},
		"a layer and its blob": {
			damage: func(r *checkRoot) error {
				return errors.Join(flip(r.layer(0)+"/fs/file-1"), flip(r.blob(r.pulled.Layers[0].Digest)))
			},
			kind: coracle.DamagedBlob, is: coracle.ErrCorrupt, want: repaired,
		},
		"the list of a snapshot's layers": {
			damage: func(r *checkRoot) error {
				stacks, err := filepath.Glob(r.path("store", "stacks", "*"))
				return errors.Join(err, zero(stacks[0]))
			},
			kind: coracle.DamagedSnapshot, is: coracle.ErrCorrupt, want: repaired,
		},
		"a snapshot that is nobody's": {
			damage: func(r *checkRoot) error {
				return os.Mkdir(r.path("store", "snapshots", strings.Repeat("a", 64)), 0o700)
			},
			kind: coracle.DamagedSnapshot, is: coracle.ErrCorrupt, want: repaired,
		},
		"a name that leads nowhere": {
			damage: func(r *checkRoot) error { return os.Symlink(strings.Repeat("b", 64), r.path("names", "ghost")) },
			kind:   coracle.DamagedName, is: coracle.ErrCorrupt, named: func(*checkRoot) string { return "ghost" }, want: repaired,
		},
		"the index": {
			damage: func(r *checkRoot) error { return zero(r.path("store", "index.json")) },
			kind:   coracle.DamagedIndex, is: coracle.ErrCorrupt, want: repaired,
		},
		"an image that no registry has": {
			damage: func(r *checkRoot) error { return flip(r.blob(r.local.ID())) },
			kind:   coracle.DamagedImage, is: coracle.ErrCorrupt, want: failed,
			lost: func(r *checkRoot) error { _, err := r.eng.Image(t.Context(), "tool"); return err },
		},
		"a layer whose registry is gone": {
			damage: func(r *checkRoot) error {
				r.reg.RemoveBlob(r.pulled.Layers[0].Digest)
				return errors.Join(flip(r.layer(0)+"/fs/file-1"), os.Remove(r.blob(r.pulled.Layers[0].Digest)))
			},
			kind: coracle.DamagedBlob, is: fs.ErrNotExist, want: failed,
			lost: func(r *checkRoot) error { _, err := r.eng.Image(t.Context(), r.reg.Host+"/app:v1"); return err },
		},
		"a container's record": {
			damage: func(r *checkRoot) error {
				// Its owner, this engine, has it in memory; whoever comes after has not.
				return errors.Join(zero(r.path("containers", r.c.ID(), "state.json")))
			},
			kind: coracle.DamagedContainer, is: coracle.ErrCorrupt, named: func(r *checkRoot) string { return r.c.ID() }, want: failed,
			lost: func(r *checkRoot) error { _, err := os.Lstat(r.path("containers", r.c.ID())); return err },
		},
		"a container's root filesystem": {
			damage: func(r *checkRoot) error {
				return errors.Join(r.eng.Close(), os.RemoveAll(r.path("store", "snapshots", r.c.ID())))
			},
			kind: coracle.DamagedSnapshot, is: fs.ErrNotExist, want: failed,
			lost: func(r *checkRoot) error { _, err := os.Lstat(r.path("containers", r.c.ID())); return err },
		},
	} {
		if testutil.Short() && len(name)%3 != 0 {
			continue // each makes a root, pulls and hashes: one in three will do
		}
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			r := newCheckRoot(t)
			report, err := r.eng.Check(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if len(report.Damage) > 0 || report.References != 2 || report.Blobs != 8 || report.Layers != 4 || report.Snapshots != 1 || report.Containers != 1 || len(report.Unverified) > 0 {
				t.Fatalf("before: %+v", report)
			}
			if err := test.damage(r); err != nil {
				t.Fatal(err)
			}
			if closedBy(r.eng) {
				eng, err := coracle.Open(ctx, coracle.Config{Root: r.eng.Root()})
				if err != nil {
					t.Fatal(err)
				}
				defer eng.Close()
				r.eng = eng
			}
			if report, err = r.eng.Check(ctx); err != nil {
				t.Fatal(err)
			}
			found := false
			for _, d := range report.Damage {
				if d.Kind == test.kind && errors.Is(d, test.is) && (test.named == nil || d.Name == test.named(r)) {
					found = true
				}
				if d.Error() == "" {
					t.Error("damage without words")
				}
			}
			if !found {
				t.Fatalf("the damage is not seen: %v", report.Damage)
			}
			repair, err := r.eng.Repair(ctx, &coracle.RepairOptions{Credentials: &coracle.Credentials{}})
			if err != nil {
				t.Fatal(err)
			}
			if test.want == failed {
				if len(repair.Failed) == 0 {
					t.Fatalf("repaired %v, and failed at nothing", repair.Repaired)
				}
				if repair, err = r.eng.Repair(ctx, &coracle.RepairOptions{Remove: true, Credentials: &coracle.Credentials{}}); err != nil {
					t.Fatal(err)
				}
				if len(repair.Removed) == 0 {
					t.Errorf("with Remove: %+v", repair)
				}
				if err := test.lost(r); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("with Remove it is still there: %v", err)
				}
			}
			if len(repair.Failed) > 0 {
				t.Errorf("not repaired: %v", repair.Failed)
			}
			if report, err = r.eng.Check(ctx); err != nil || len(report.Damage) > 0 {
				t.Errorf("after: %v, %v", report.Damage, err)
			}
			// A damaged layer stays aside as long as a container is made of it, and an old index for ever.
			if names, err := os.ReadDir(r.path("store", "damaged")); err != nil || len(names) > 0 && !strings.HasPrefix(names[0].Name(), "d-") && test.kind != coracle.DamagedIndex {
				t.Errorf("left over: %v, %v", names, err)
			}
			if test.want == failed || test.kind == coracle.DamagedIndex {
				return
			}
			// All is as before, and can be used.
			if _, err := r.eng.Create(ctx, &coracle.ContainerSpec{Image: r.reg.Host + "/app:v1", Pull: coracle.PullNever, Args: []string{"/bin/true"}}); err != nil {
				t.Error(err)
			}
			if out := output(t, r.eng, coracle.ContainerSpec{}, "echo", "well"); out != "well\n" {
				t.Errorf("%q", out)
			}
		})
	}
}

// closedBy says whether an engine was closed.
func closedBy(eng *coracle.Engine) bool {
	_, err := eng.Images(context.Background())
	return errors.Is(err, coracle.ErrClosed)
}

// TestDamagedLayerIsNotMounted: what Check has found is used no more, by nobody, until it has been made again; a
// container that runs on it goes on.
func TestDamagedLayerIsNotMounted(t *testing.T) {
	eng := engine(t)
	ctx := t.Context()
	img := toolImage(t, eng, nil)
	running, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Name: "running", Args: []string{"obey"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := running.Start(ctx); err != nil {
		t.Fatal(err)
	}
	stopped, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Name: "stopped", Args: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(eng.Root(), "store", "layers", "d-"+img.Layers()[0].Encoded())
	if err := os.Chmod(filepath.Join(dir, "fs", "tool"), 0o700); err != nil {
		t.Fatal(err)
	}
	report, err := eng.Check(ctx)
	if err != nil || len(report.Damage) == 0 || len(report.Damage[0].Containers) != 2 {
		t.Fatalf("%+v, %v", report, err)
	}
	if err := stopped.Start(ctx); err == nil {
		t.Fatal("a container was started on a damaged layer")
	}
	// Whoever makes another container gets a good layer; so does the first one.
	if out := output(t, eng, coracle.ContainerSpec{}, "echo", "again"); out != "again\n" {
		t.Errorf("%q", out)
	}
	if err := stopped.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if exit, err := stopped.Wait(ctx); err != nil || exit.Code != 0 {
		t.Errorf("%v, %v", exit, err)
	}
	if _, err := eng.PruneImages(ctx, nil); err != nil {
		t.Fatal(err)
	}
	// The damaged files are there as long as somebody may run on them.
	if names, err := os.ReadDir(filepath.Join(eng.Root(), "store", "damaged")); err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
	if info, err := running.Inspect(ctx); err != nil || info.Status != coracle.StatusRunning {
		t.Errorf("%v, %v", info, err)
	}
	if err := errors.Join(running.Remove(ctx, &coracle.RemoveOptions{Force: true}), stopped.Remove(ctx, nil)); err != nil {
		t.Fatal(err)
	}
	if err := img.Remove(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(filepath.Join(eng.Root(), "store", "damaged")); err != nil || len(names) != 0 {
		t.Errorf("%v, %v", names, err)
	}
}

// TestCheckUnverified: a layer without an image has no blob to be compared with.
func TestCheckUnverified(t *testing.T) {
	eng := engine(t)
	ctx := t.Context()
	img := toolImage(t, eng, nil)
	if _, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Args: []string{"true"}}); err != nil {
		t.Fatal(err)
	}
	if err := img.Remove(ctx, &coracle.ImageRemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	report, err := eng.Check(ctx)
	if err != nil || len(report.Damage) > 0 || len(report.Unverified) != 1 {
		t.Errorf("%+v, %v", report, err)
	}
}
