package coracle_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/powerloss"
	"github.com/coracle-dev/coracle/internal/registrytest"
)

// engineWork is what a program does with an engine before the power goes.
type engineWork struct {
	t        *testing.T
	disk     *powerloss.Disk
	root     string
	registry *registrytest.Registry
	run      string
	noise    int
}

// otherSync is another program that syncs a file of its own: the filesystem commits what the engine has not synced,
// names without content for example.
func (w *engineWork) otherSync() {
	w.noise++
	f, err := os.Create(filepath.Join(filepath.Dir(w.root), fmt.Sprint("other", w.noise)))
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *engineWork) open(ctx context.Context, root string, log *slog.Logger) (*coracle.Engine, error) {
	return coracle.Open(ctx, coracle.Config{Root: root, Run: w.run, Logger: log, Registry: coracle.RegistryConfig{
		Keychain: coracle.KeychainFunc(func(context.Context, coracle.Reference) (coracle.Credentials, error) {
			return coracle.Credentials{}, nil
		}),
	}})
}

// twice is an image of the registry that moves on.
const twice = "team/app"

func (w *engineWork) ref() string { return w.registry.Host + "/" + twice + ":v1" }

func (w *engineWork) do() {
	t, ctx := w.t, w.t.Context()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	eng, err := w.open(ctx, w.root, nil)
	check(err)
	defer eng.Close()
	w.disk.Mark("open")
	w.otherSync()

	first := registrytest.RandomImage(1, 3, 40_000)
	first.Config.Config.Cmd = []string{"/bin/true"}
	w.registry.Push(twice, "v1", first)
	pull := func() {
		t.Helper()
		img, err := eng.Pull(ctx, w.ref(), nil)
		check(err)
		w.disk.Mark("image " + w.ref() + " " + string(img.Digest()))
	}
	pull()
	create := func(spec coracle.ContainerSpec) *coracle.Container {
		t.Helper()
		c, err := eng.Create(ctx, &spec)
		check(err)
		w.otherSync()
		return c
	}
	create(coracle.ContainerSpec{Name: "one", Image: w.ref()})
	made, err := eng.ImageFromFS(ctx, "made", fstest.MapFS{"file": {Data: []byte("content")}, "bin/large": {Data: bytes.Repeat([]byte("0123456789"), 20_000)}},
		&coracle.ImageFSOptions{Config: coracle.ImageConfig{Cmd: []string{"/file"}}})
	check(err)
	w.disk.Mark("image made " + string(made.Digest()))
	create(coracle.ContainerSpec{Image: "made"})
	gone := create(coracle.ContainerSpec{Name: "gone", Image: "made", AutoRemove: true})
	check(gone.Remove(ctx, nil))
	w.otherSync()

	toolImage(t, eng, nil)
	_, err = eng.Output(ctx, &coracle.ContainerSpec{Name: "ran", Image: "tool", Args: []string{"true"}})
	check(err)
	w.otherSync()
	exited := create(coracle.ContainerSpec{Name: "exited", Image: "tool", Args: []string{"true"}})
	check(exited.Start(ctx))
	w.otherSync()
	_, err = exited.Wait(ctx)
	check(err)
	w.otherSync()
	running := create(coracle.ContainerSpec{Name: "running", Image: "tool", Args: []string{"sleep", "600000"}})
	check(running.Start(ctx))
	w.otherSync()

	second := registrytest.RandomImage(2, 2, 40_000)
	second.Layers = append(second.Layers, first.Layers[0])
	second = registrytest.NewImage(second.Layers...)
	second.Config.Config.Cmd = []string{"/bin/true"}
	w.registry.Push(twice, "v1", second)
	w.disk.Mark("moving")
	pull()
	create(coracle.ContainerSpec{Name: "last", Image: w.ref()})
	check(eng.Close())
	w.disk.Mark("closed")
	w.otherSync()
}

// TestPowerLoss cuts the power of a disk on which an engine is used, and opens what is left.
func TestPowerLoss(t *testing.T) {
	for _, kind := range []struct {
		fstype      string
		size        int64
		cuts, short int
	}{
		{"ext4", 192 << 20, 200, 40},
		{"xfs", 320 << 20, 60, 10},
		{"btrfs", 256 << 20, 60, 10},
	} {
		t.Run(kind.fstype, func(t *testing.T) {
			w := &engineWork{t: t, run: t.TempDir(), registry: registrytest.New()}
			defer w.registry.Close()
			w.disk = powerloss.New(t, kind.size)
			w.root = filepath.Join(w.disk.Mount(kind.fstype), "root")
			w.do()
			n := kind.cuts
			if testing.Short() {
				n = kind.short
			}
			failed := 0
			for cut := range w.disk.Cuts(n, 1) {
				dir := cut.Mount(t)
				errs := w.verify(t.Context(), cut, filepath.Join(dir, "root"))
				for _, err := range errs {
					t.Errorf("%v:\n\t%v", cut, err)
				}
				if len(errs) > 0 {
					if failed++; failed == 5 {
						t.Fatal("and so on")
					}
				}
			}
		})
	}
}

// verifyStore looks for what must not be in a root that has just been opened, whatever happened to it before.
func verifyStore(ctx context.Context, eng *coracle.Engine) (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	images, err := eng.Images(ctx)
	if err != nil {
		fail("images: %w", err)
	}
	for _, img := range images {
		root, remove, err := eng.MountImage(ctx, img) // unpacks again what is not there
		if err != nil {
			fail("image %s: %w", img.Ref(), err)
			continue
		}
		if err := errors.Join(root.Close(), remove()); err != nil {
			fail("image %s: %w", img.Ref(), err)
		}
	}
	containers, err := eng.Containers(ctx, nil)
	if err != nil {
		fail("containers: %w", err)
	}
	ids := make(map[string]bool)
	for _, c := range containers {
		ids[c.ID()] = true
		info, err := c.Inspect(ctx)
		if err != nil {
			fail("container %s: %w", c.Name(), err)
			continue
		}
		if info.Status == coracle.StatusRunning {
			fail("container %s is said to run", c.Name())
		}
		if c.Name() == c.ID()[:12] {
			continue
		}
		if found, err := eng.Container(ctx, c.Name()); err != nil || found.ID() != c.ID() {
			fail("the name %s does not find its container: %v", c.Name(), err)
		}
	}
	for dir, name := range map[string]func(string) string{
		"containers":      func(n string) string { return n },
		"store/snapshots": func(n string) string { return n },
		"names":           func(n string) string { id, _ := os.Readlink(filepath.Join(eng.Root(), "names", n)); return id },
	} {
		entries, err := os.ReadDir(filepath.Join(eng.Root(), dir))
		if err != nil {
			fail("%w", err)
		}
		for _, e := range entries {
			if !ids[name(e.Name())] {
				fail("%s/%s belongs to no container", dir, e.Name())
			}
		}
	}
	if entries, err := os.ReadDir(filepath.Join(eng.Root(), "owners")); err != nil || len(entries) != 1 {
		fail("owners: %v, %v", entries, err)
	}
	return errs
}

// verify opens a root after a cut and holds it against what was promised.
func (w *engineWork) verify(ctx context.Context, cut *powerloss.Cut, root string) (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	// The power was gone, so this is another boot.
	if _, err := os.Stat(filepath.Join(root, "boot.json")); err == nil {
		if err := os.WriteFile(filepath.Join(root, "boot.json"), []byte(`{"ID":"the boot before"}`), 0o600); err != nil {
			return []error{err}
		}
	}
	var log bytes.Buffer
	eng, err := w.open(ctx, root, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return []error{err}
	}
	defer eng.Close()
	errs = append(errs, verifyStore(ctx, eng)...)

	last := make(map[string][]string) // what each name may stand for
	for _, m := range cut.Marks() {
		if rest, ok := strings.CutPrefix(m, "image "); ok {
			ref, digest, _ := strings.Cut(rest, " ")
			last[ref] = []string{digest}
		}
		if m == "moving" {
			last[w.ref()] = append(last[w.ref()], "moved")
		}
	}
	for ref, digests := range last {
		img, err := eng.Image(ctx, ref)
		if err != nil {
			fail("image %s was there: %w", ref, err)
		} else if !slices.Contains(digests, string(img.Digest())) && !slices.Contains(digests, "moved") {
			fail("image %s is %s, want %v", ref, img.Digest(), digests)
		}
	}
	if log.Len() > 0 {
		fail("the engine logs:\n%s", log.String())
	}

	// All can be used: what is listed starts or says why not, and goes.
	containers, err := eng.Containers(ctx, nil)
	if err != nil {
		fail("containers: %w", err)
	}
	for _, c := range containers {
		if c.Name() == "exited" && cut.Index%4 == 0 {
			err := c.Start(ctx)
			if err == nil {
				_, err = c.Wait(ctx)
			}
			if err != nil {
				fail("start %s again: %w", c.Name(), err)
			}
		}
		if err := c.Remove(ctx, nil); err != nil {
			fail("remove %s: %w", c.Name(), err)
		}
	}
	if cut.Index%4 == 0 {
		_, err := eng.Pull(ctx, w.ref(), nil)
		if err == nil {
			var c *coracle.Container
			if c, err = eng.Create(ctx, &coracle.ContainerSpec{Name: "one", Image: w.ref()}); err == nil {
				err = c.Remove(ctx, nil)
			}
		}
		if err != nil {
			fail("pull and create after the cut: %w", err)
		}
	}
	if err := eng.Close(); err != nil {
		fail("close: %w", err)
	}
	for _, dir := range []string{"containers", "names", "owners", "store/snapshots", "store/tmp", "store/locks"} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			fail("%w", err)
		}
		for _, e := range entries {
			fail("left in %s: %s", dir, e.Name())
		}
	}
	return errs
}
