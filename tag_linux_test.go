package coracle_test

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/registrytest"
)

// storeHolds counts what is below the directories of the store.
func storeHolds(t testing.TB, eng *coracle.Engine) (layers, blobs int) {
	t.Helper()
	ls, err := os.ReadDir(eng.Root() + "/store/layers")
	if err != nil {
		t.Fatal(err)
	}
	bs, err := os.ReadDir(eng.Root() + "/store/blobs/sha256")
	if err != nil {
		t.Fatal(err)
	}
	return len(ls), len(bs)
}

// madeImage makes an image of one small file, its name being that of the image.
func madeImage(t testing.TB, eng *coracle.Engine, ref string, opts *coracle.ImageFSOptions) *coracle.Image {
	t.Helper()
	img, err := eng.ImageFromFS(t.Context(), ref, fstest.MapFS{"f": {Data: []byte(ref)}}, opts)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func refsOf(t testing.TB, eng *coracle.Engine) (all []string) {
	t.Helper()
	list, err := eng.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		names := img.Refs()
		if len(names) == 0 {
			names = []string{"<none>"}
		}
		for _, n := range names {
			all = append(all, strings.TrimPrefix(n, "docker.io/library/"))
		}
	}
	return all
}

func TestTagUntagRemove(t *testing.T) {
	eng := engine(t)
	ctx := t.Context()
	a, b := madeImage(t, eng, "a", nil), madeImage(t, eng, "b", nil)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	wantRefs := func(want ...string) {
		t.Helper()
		if got := refsOf(t, eng); !slices.Equal(got, want) {
			t.Errorf("names %q, want %q", got, want)
		}
	}
	must(a.Tag(ctx, "second:v1"))
	wantRefs("a:latest", "second:v1", "b:latest")
	if img, err := eng.Image(ctx, "second:v1"); err != nil || img.ID() != a.ID() {
		t.Errorf("by its second name: %v, %v", img, err)
	}
	for _, ref := range []string{"", "UPPER", "x@" + string(a.Digest())} {
		if err := a.Tag(ctx, ref); !errors.Is(err, coracle.ErrInvalid) {
			t.Errorf("tag %q: %v", ref, err)
		}
	}
	// The name goes to b; a has its other one.
	must(b.Tag(ctx, "second:v1"))
	wantRefs("a:latest", "b:latest", "second:v1")
	if err := a.Untag(ctx, "second:v1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("untag a name of another image: %v", err)
	}
	must(a.Untag(ctx, "a"))
	wantRefs("<none>", "b:latest", "second:v1")
	if err := a.Untag(ctx, "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("untag twice: %v", err)
	}
	// Without a name it is found by its id, and containers are made of it.
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: a.ID().Encoded()[:12], Name: "user", Args: []string{"/f"}})
	must(err)
	again, err := eng.Image(ctx, string(a.ID()))
	must(err)
	if again.Ref() != "" || len(again.Refs()) != 0 || again.Digest() != a.Digest() {
		t.Errorf("%q %q", again.Ref(), again.Refs())
	}

	var inUse *coracle.InUseError
	if err := a.Remove(ctx, nil); !errors.Is(err, coracle.ErrInUse) || !errors.As(err, &inUse) || !slices.Equal(inUse.Users, []string{"user"}) {
		t.Errorf("remove an image that is in use: %v", err)
	}
	wantRefs("<none>", "b:latest", "second:v1")
	must(a.Remove(ctx, &coracle.ImageRemoveOptions{Force: true}))
	wantRefs("b:latest", "second:v1")
	if layers, blobs := storeHolds(t, eng); layers != 2 || blobs != 3 {
		t.Errorf("%d layers and %d blobs: a container still has one of the layers", layers, blobs)
	}
	if err := a.Remove(ctx, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("remove twice: %v", err)
	}
	if err := a.Tag(ctx, "back"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("tag an image that is gone: %v", err)
	}
	must(c.Remove(ctx, nil))
	must(b.Remove(ctx, nil))
	wantRefs()
	if layers, blobs := storeHolds(t, eng); layers != 0 || blobs != 0 {
		t.Errorf("%d layers and %d blobs left", layers, blobs)
	}
}

// TestRemoveShared: layers, and even blobs, that another image has stay.
func TestRemoveShared(t *testing.T) {
	eng := engine(t)
	ctx := t.Context()
	reg := registrytest.New()
	defer reg.Close()
	base := registrytest.RandomLayer(1, ocispec.MediaTypeImageLayerGzip, 1000)
	one := registrytest.NewImage(base, registrytest.RandomLayer(2, ocispec.MediaTypeImageLayerZstd, 1000))
	two := registrytest.NewImage(base, registrytest.RandomLayer(3, ocispec.MediaTypeImageLayer, 1000))
	reg.Push("app", "one", one)
	reg.Push("app", "two", two)
	anonymous := &coracle.PullOptions{Credentials: &coracle.Credentials{}}
	var images [2]*coracle.Image
	for i, tag := range []string{"one", "two"} {
		var err error
		if images[i], err = eng.Pull(ctx, reg.Host+"/app:"+tag, anonymous); err != nil {
			t.Fatal(err)
		}
	}
	if layers, blobs := storeHolds(t, eng); layers != 3 || blobs != 7 {
		t.Fatalf("%d layers, %d blobs", layers, blobs)
	}
	if err := images[0].Remove(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if layers, blobs := storeHolds(t, eng); layers != 2 || blobs != 4 {
		t.Errorf("%d layers, %d blobs after one of two was removed", layers, blobs)
	}
	reg.Requests()
	report, err := eng.Check(ctx)
	if err != nil || len(report.Damage) > 0 {
		t.Errorf("%v, %v", report, err)
	}
	if _, err := eng.Pull(ctx, reg.Host+"/app:one", anonymous); err != nil {
		t.Fatal(err)
	}
	for _, r := range reg.Requests() {
		if strings.HasSuffix(r.Path, string(base.Digest)) {
			t.Errorf("the shared layer was fetched again")
		}
	}
}

func TestPrune(t *testing.T) {
	eng := engine(t)
	ctx := t.Context()
	old, young := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	make := func(ref string, created time.Time, labels map[string]string) *coracle.Image {
		return madeImage(t, eng, ref, &coracle.ImageFSOptions{Created: created, Config: coracle.ImageConfig{Labels: labels}})
	}
	nameless := func(ref string, created time.Time, labels map[string]string) digest.Digest {
		img := make(ref, created, labels)
		if err := img.Untag(ctx, ref); err != nil {
			t.Fatal(err)
		}
		return img.Digest()
	}
	make("named", old, nil)
	plain := nameless("plain", old, nil)
	recent := nameless("recent", young, map[string]string{"team": "a"})
	kept := nameless("kept", old, map[string]string{"keep": "yes"})
	used := make("used", old, nil)
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "used", Name: "c", Args: []string{"/f"}, Labels: map[string]string{"job": "1"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := used.Untag(ctx, "used"); err != nil {
		t.Fatal(err)
	}
	prune := func(opts *coracle.ImagePruneOptions, want ...string) *coracle.PruneReport {
		t.Helper()
		r, err := eng.PruneImages(ctx, opts)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(r.Images, want) {
			t.Errorf("%+v took %q, want %q", opts, r.Images, want)
		}
		return r
	}
	prune(&coracle.ImagePruneOptions{PruneFilter: coracle.PruneFilter{Labels: map[string]string{"team": "b"}}})
	prune(&coracle.ImagePruneOptions{PruneFilter: coracle.PruneFilter{Until: old}})
	r := prune(&coracle.ImagePruneOptions{PruneFilter: coracle.PruneFilter{Until: old.Add(1), NotLabels: map[string]string{"keep": ""}}}, string(plain))
	if r.Layers != 1 || r.Blobs != 3 || r.Bytes < 1000 || !strings.Contains(r.String(), "1 images") {
		t.Errorf("report %+v, %s", r, r)
	}
	prune(&coracle.ImagePruneOptions{PruneFilter: coracle.PruneFilter{Labels: map[string]string{"team": ""}}}, string(recent))
	prune(nil, string(kept))
	prune(nil)
	prune(&coracle.ImagePruneOptions{All: true}, "docker.io/library/named:latest")

	containers := func(opts *coracle.ContainerPruneOptions, want ...string) {
		t.Helper()
		r, err := eng.PruneContainers(ctx, opts)
		if err != nil || !slices.Equal(r.Containers, want) {
			t.Errorf("%+v took %v, %v", opts, r, err)
		}
	}
	containers(&coracle.ContainerPruneOptions{PruneFilter: coracle.PruneFilter{Labels: map[string]string{"job": "2"}}})
	containers(&coracle.ContainerPruneOptions{PruneFilter: coracle.PruneFilter{Until: time.Now().Add(-time.Hour)}})
	other, err := coracle.Open(ctx, coracle.Config{Root: eng.Root()})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := other.PruneContainers(ctx, nil); err != nil || len(r.Containers) != 0 {
		t.Errorf("a container of another program: %v, %v", r, err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	containers(nil, "c")
	if _, err := c.Inspect(ctx); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after pruning: %v", err)
	}
	prune(nil, string(used.Digest()))
	if layers, blobs := storeHolds(t, eng); layers != 0 || blobs != 0 {
		t.Errorf("%d layers and %d blobs left", layers, blobs)
	}
}

// TestPruneTakesFailedPulls: what a pull got before it failed serves the next one, or goes with a pruning.
func TestPruneTakesFailedPulls(t *testing.T) {
	eng := engine(t)
	ctx := t.Context()
	reg := registrytest.New()
	defer reg.Close()
	img := registrytest.RandomImage(7, 2, 5000)
	reg.Push("app", "v1", img)
	reg.RemoveBlob(img.Layers[1].Digest)
	anonymous := &coracle.PullOptions{Credentials: &coracle.Credentials{}}
	if _, err := eng.Pull(ctx, reg.Host+"/app:v1", anonymous); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	// The first layer may have been cancelled by the failure of the second.
	_, before := storeHolds(t, eng)
	u, err := eng.DiskUsage(ctx)
	if err != nil || (u.Unused > 0) != (before > 0) || len(u.Images) != 0 {
		t.Errorf("usage %+v, %v, with %d blobs", u, err, before)
	}
	if _, err := eng.PruneImages(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if layers, blobs := storeHolds(t, eng); layers != 0 || blobs != 0 {
		t.Errorf("%d layers and %d blobs left", layers, blobs)
	}
}

func TestDiskUsage(t *testing.T) {
	eng := engine(t)
	ctx := t.Context()
	reg := registrytest.New()
	defer reg.Close()
	base := registrytest.RandomLayer(1, ocispec.MediaTypeImageLayer, 10_000)
	top := registrytest.RandomLayer(2, ocispec.MediaTypeImageLayer, 5_000)
	reg.Push("app", "one", registrytest.NewImage(base, top))
	reg.Push("app", "two", registrytest.NewImage(base))
	anonymous := &coracle.PullOptions{Credentials: &coracle.Credentials{}}
	for _, tag := range []string{"one", "two"} {
		if _, err := eng.Pull(ctx, reg.Host+"/app:"+tag, anonymous); err != nil {
			t.Fatal(err)
		}
	}
	toolImage(t, eng, nil)
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool", Name: "writer", Args: []string{"write", "/new", strings.Repeat("x", 3000)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if exit, err := c.Wait(ctx); err != nil || exit.Code != 0 {
		t.Fatalf("%v, %v", exit, err)
	}
	u, err := eng.DiskUsage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	byRef := map[string]coracle.ImageUsage{}
	var sum int64
	for _, i := range u.Images {
		if i.Size != i.Shared+i.Unique {
			t.Errorf("%v: %d is not %d and %d", i.Refs, i.Size, i.Shared, i.Unique)
		}
		_, tag, _ := strings.Cut(strings.TrimPrefix(i.Refs[0], reg.Host), ":")
		byRef[tag] = i
		sum += i.Unique
	}
	shared := base.Size + 10_000
	if one := byRef["one"]; one.Shared != shared || one.Unique < top.Size+5_000 || one.Unique > top.Size+5_000+4_000 {
		t.Errorf("one: %+v", one)
	}
	if two := byRef["two"]; two.Shared != shared || two.Unique > 4_000 {
		t.Errorf("two: %+v", two)
	}
	if tool := byRef["latest"]; tool.Shared != 0 || !slices.Equal(tool.Containers, []string{"writer"}) {
		t.Errorf("tool: %+v", tool)
	}
	if sum+shared != u.Blobs+u.Layers || u.Unused != 0 {
		t.Errorf("the images have %d bytes, the store %d and %d, of which %d unused", sum+shared, u.Blobs, u.Layers, u.Unused)
	}
	if len(u.Containers) != 1 || u.Containers[0].Name != "writer" || u.Containers[0].Size != 3000 {
		t.Errorf("containers %+v", u.Containers)
	}
}
