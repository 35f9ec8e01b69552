package coracle_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/registrytest"
)

// walkScenario is something that changes a root. All its functions may be called on what an earlier call left, whole or
// not: that is how a person would try again.
type walkScenario struct {
	root    string // which of prepareRoots; empty means none
	messy   bool   // makeMess works on the root first
	opens   bool   // act opens the engine itself
	damaged bool   // the root is damaged from the beginning
	found   bool   // act repairs that
	timing  bool   // what is done in the background may come first
	beside  bool   // also while another program works in the root
	keeps   bool   // detached containers outlive the program

	before func(*walkWorld) error // before the first step; may be nil
	act    func(*walkWorld) error
	// state tells what has become of it, in a word or a few; legal are the right ones, end the one after the last step.
	state func(*walkWorld) (string, error)
	legal []string
	end   string
}

func (s *walkScenario) prepare(w *walkWorld) error {
	if s.before == nil {
		return nil
	}
	return s.before(w)
}

// walkScenarios are set by init, as they refer to functions that refer to them.
var walkScenarios map[string]*walkScenario

func init() {
	doneOrNot := []string{"no", "yes"}
	walkScenarios = map[string]*walkScenario{
		"new-root": {opens: true, act: (*walkWorld).reopen, state: always, legal: []string{""}},
		"pull":     {beside: true, act: pull("app:v1"), state: hasImage("app:v1"), legal: doneOrNot, end: "yes"},
		"pull-moved": {root: "pulled", beside: true, act: pull("moving:latest"), state: hasImage("moving:latest", "top2"),
			legal: []string{"old", "yes"}, end: "yes"},
		"image-from-fs": {
			act: func(w *walkWorld) error {
				_, err := w.eng.ImageFromFS(w.ctx, "made", smallFS("made"), nil)
				return err
			},
			state: hasLocal("made"), legal: doneOrNot, end: "yes",
		},
		"tag":          {root: "pulled", beside: true, act: tag("other:v2"), state: hasLocal("other:v2"), legal: doneOrNot, end: "yes"},
		"retag":        {root: "pulled", before: tag("other:v2"), act: retag, state: always, legal: []string{""}},
		"untag":        {root: "pulled", before: tag("other:v2"), act: untag("other:v2"), state: hasLocal("other:v2"), legal: doneOrNot, end: "no"},
		"remove-image": {root: "pulled", beside: true, act: removeImage("app:v1"), state: hasImage("app:v1"), legal: doneOrNot, end: "no"},
		"prune-images": {root: "pulled", beside: true, before: create("keeps", coracle.ContainerSpec{Image: "moving:latest"}), act: pruneImages,
			state: pruned, legal: []string{"some", "kept"}, end: "kept"},
		"create":       {root: "small", beside: true, act: recreate, state: hasContainers("box"), legal: []string{"", "box created"}, end: "box created"},
		"create-spare": {root: "small", timing: true, before: makeSpare, act: recreate, state: hasContainers("box"), legal: []string{"", "box created"}, end: "box created"},
		"run": {root: "tool", beside: true, before: drop("run"),
			act: func(w *walkWorld) error {
				c, err := w.eng.Create(w.ctx, &coracle.ContainerSpec{Name: "run", Image: "tool", Args: []string{"exit", "3"}})
				if err == nil {
					err = c.Start(w.ctx)
				}
				if err != nil {
					return err
				}
				exit, err := c.Wait(w.ctx)
				if err == nil && exit.Code != 3 {
					err = fmt.Errorf("exit: %v", exit)
				}
				c.Cleaned()
				return err
			},
			state: hasContainers("run"), legal: []string{"", "run created", "run exited"}, end: "run exited"},
		"autoremove": {root: "tool", before: drop("auto"),
			act: func(w *walkWorld) error {
				return w.eng.Run(w.ctx, &coracle.ContainerSpec{Name: "auto", Image: "tool", Args: []string{"true"}})
			},
			state: hasContainers("auto"), legal: []string{""}},
		"start": {root: "tool", before: create("obey", obey), act: start("obey"),
			state: hasContainers("obey"), legal: []string{"", "obey created", "obey exited"}, end: "obey exited"},
		"start-nobodys": {root: "stopped", beside: true, before: create("obey", obey), act: start("obey"),
			state: hasContainers("obey"), legal: []string{"", "obey created", "obey exited"}, end: "obey exited"},
		"stop": {root: "tool", before: started("obey"), act: stop("obey"),
			state: hasContainers("obey"), legal: []string{"", "obey exited"}, end: "obey exited"},
		"rename": {root: "tool", beside: true, before: unless("new", create("old", obey)), act: renameContainer("old", "new"),
			state: hasContainers("old", "new"), legal: []string{"", "old created", "new created"}, end: "new created"},
		"rename-nobodys": {root: "stopped", beside: true, act: renameContainer("obey", "new"),
			state: hasContainers("obey", "new"), legal: []string{"obey created", "new created"}, end: "new created"},
		"rename-running": {root: "tool", timing: true, before: both(unless("new", create("old", obey)), either(start, "old", "new")), act: renameContainer("old", "new"),
			state: hasContainers("old", "new"), legal: []string{"", "old exited", "new exited"}, end: "new exited"},
		"pause": {root: "tool", before: started("obey"), act: both(pauseContainer("obey"), resumeContainer("obey"), pauseContainer("obey")),
			state: hasContainers("obey"), legal: []string{"", "obey exited"}, end: "obey exited"},
		"update": {root: "tool", timing: true, before: started("obey"), act: updateContainer("obey", 64<<20),
			state: limitOf("obey"), legal: []string{"", "obey 0", "obey 67108864"}, end: "obey 67108864"},
		"update-nobodys": {root: "stopped", beside: true, act: updateContainer("obey", 64<<20),
			state: limitOf("obey"), legal: []string{"obey 0", "obey 67108864"}, end: "obey 67108864"},
		"restart": {root: "tool", timing: true, before: started("obey"), act: restartContainer("obey"),
			state: hasContainers("obey"), legal: []string{"", "obey created", "obey exited"}, end: "obey exited"},
		"restart-autoremove": {root: "tool", timing: true, before: runningAuto, act: restartContainer("auto"),
			state: hasContainers("auto"), legal: []string{""}},
		"remove-created": {root: "small", beside: true, before: create("box", coracle.ContainerSpec{Image: "small"}), act: drop("box"),
			state: hasContainers("box"), legal: []string{"", "box created"}},
		"remove-exited":  {root: "tool", before: ended("box"), act: drop("box"), state: hasContainers("box"), legal: []string{"", "box exited"}},
		"remove-running": {root: "tool", timing: true, before: started("box"), act: drop("box"), state: hasContainers("box"), legal: []string{"", "box exited"}},
		"prune-containers": {root: "tool", timing: true, before: both(create("one", obey), create("two", obey), ended("three")), act: pruneContainers,
			state: hasContainers("one", "two", "three"), legal: []string{"", "one created", "two created", "three exited", "one created two created", "one created three exited", "two created three exited", "one created two created three exited"}},
		"close": {root: "tool", timing: true, before: both(started("one"), started("two"), create("three", obey), runningAuto), act: func(*walkWorld) error { return nil },
			state: hasContainers("one", "two", "three", "auto"), legal: []string{"three created", "one exited three created", "two exited three created", "one exited two exited three created"}, end: "one exited two exited three created"},
		"sweep": {root: "tool", messy: true, opens: true, act: (*walkWorld).reopen, state: containers,
			legal: []string{"created created, exited exited, removing created, starting created, starting2 created"}, end: "created created, exited exited, removing created, starting created, starting2 created"},
		"migration":        {root: "old", opens: true, act: (*walkWorld).reopen, state: hasLocal("small"), legal: []string{"yes"}, end: "yes"},
		"check":            {root: "damaged", damaged: true, act: check, state: hasLocal("app:v1"), legal: []string{"yes", "no"}, end: "yes"},
		"repair":           {root: "damaged", damaged: true, found: true, act: repair, state: hasLocal("app:v1"), legal: []string{"yes", "no"}, end: "yes"},
		"repair-index":     {root: "no-index", damaged: true, found: true, act: repair, state: always, legal: []string{""}},
		"repair-container": {root: "no-list", damaged: true, found: true, act: repair, state: hasContainers("box"), legal: []string{"box created"}, end: "box created"},
	}
	maps.Copy(walkScenarios, detachedScenarios())
	maps.Copy(walkScenarios, networkScenarios())
}

// prepareRoots makes the roots that the scenarios begin with.
func prepareRoots(t *testing.T, dir string, reg *registrytest.Registry) map[string]string {
	t.Helper()
	roots := make(map[string]string)
	root := func(name string, fill func(*walkWorld) error) {
		t.Helper()
		w := &walkWorld{ctx: t.Context(), root: filepath.Join(dir, name), registry: reg.Host}
		err := w.open()
		if err == nil {
			err = errors.Join(fill(w), w.eng.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		roots[name] = w.root
	}
	broken := func(name, from string, damage func(root string)) {
		t.Helper()
		roots[name] = filepath.Join(dir, name)
		if err := cloneTree(roots[from], roots[name]); err != nil {
			t.Fatal(err)
		}
		damage(roots[name])
	}
	one := func(pattern string) string {
		t.Helper()
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %q, %v", pattern, found, err)
		}
		return found[0]
	}
	replace := func(path, content string) {
		t.Helper()
		os.Remove(path) // it may be linked
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}

	base := registrytest.NewLayer(ocispec.MediaTypeImageLayerGzip, registrytest.Tar(registrytest.File{Name: "./"}, registrytest.File{Name: "etc/"},
		registrytest.File{Name: "etc/dir/"}, registrytest.File{Name: "etc/dir/base", Content: strings.Repeat("base", 1000)}))
	middle := registrytest.NewLayer(ocispec.MediaTypeImageLayerZstd, registrytest.Tar(registrytest.File{Name: "middle", Content: strings.Repeat("middle", 1000)}))
	// What names no directory has those of the layers below.
	top := func(name string) registrytest.Layer {
		return registrytest.NewLayer(ocispec.MediaTypeImageLayerGzip, registrytest.Tar(registrytest.File{Name: "etc/dir/" + name, Content: name}))
	}
	reg.Push("app", "v1", registrytest.NewImage(base, middle, top("top")))
	reg.Push("moving", "latest", registrytest.NewImage(base, top("top1")))
	root("pulled", func(w *walkWorld) error {
		return errors.Join(pull("app:v1")(w), pull("moving:latest")(w))
	})
	moved := registrytest.NewImage(base, middle, top("top2"))
	moved.Config.Config.Labels = map[string]string{"is": "top2"}
	reg.Push("moving", "latest", moved)
	root("small", func(w *walkWorld) error {
		_, err := w.eng.ImageFromFS(w.ctx, "small", smallFS("small"), nil)
		return err
	})
	root("tool", func(w *walkWorld) error {
		toolImage(t, w.eng, nil)
		return nil
	})
	root("stopped", func(w *walkWorld) error {
		toolImage(t, w.eng, nil)
		return create("obey", obey)(w)
	})
	broken("old", "small", func(root string) {
		replace(root+"/store/format", `{"version":1,"xattrs":"trusted"}`)
		for _, dir := range []string{"leases", "damaged"} {
			if err := os.Remove(root + "/store/" + dir); err != nil {
				t.Fatal(err)
			}
		}
	})
	broken("damaged", "pulled", func(root string) {
		replace(root+"/store/layers/d-"+middle.DiffID.Encoded()+"/fs/middle", "rotten")
		replace(one(root+"/store/layers/c-*")+"/fs/etc/dir/more", "rotten")
		replace(root+"/store/blobs/sha256/"+base.Digest.Encoded(), "rotten")
	})
	broken("no-index", "small", func(root string) { replace(root+"/store/index.json", "{") })
	root("with-container", func(w *walkWorld) error {
		_, err := w.eng.ImageFromFS(w.ctx, "small", smallFS("small"), nil)
		return errors.Join(err, create("box", coracle.ContainerSpec{Image: "small"})(w))
	})
	broken("no-list", "with-container", func(root string) { replace(one(root+"/store/stacks/*"), "{") })
	return roots
}

func smallFS(content string) fstest.MapFS {
	return fstest.MapFS{"etc/" + content: {Data: []byte(strings.Repeat(content, 100)), Mode: 0o644}}
}

func (w *walkWorld) ref(name string) string { return w.registry + "/" + name }

func (w *walkWorld) reopen() error {
	if w.eng != nil {
		if err := w.eng.Close(); err != nil {
			return err
		}
	}
	return w.open()
}

func both(fs ...func(*walkWorld) error) func(*walkWorld) error {
	return func(w *walkWorld) error {
		for _, f := range fs {
			if err := f(w); err != nil {
				return err
			}
		}
		return nil
	}
}

func always(*walkWorld) (string, error) { return "", nil }

func pull(name string) func(*walkWorld) error {
	return func(w *walkWorld) error {
		_, err := w.eng.Pull(w.ctx, w.ref(name), nil)
		return err
	}
}

// hasImage tells whether an image is there; an image with a label may be there as it was before it had it. What is
// there can be used.
func hasImage(name string, label ...string) func(*walkWorld) (string, error) {
	return func(w *walkWorld) (string, error) {
		img, err := w.eng.Image(w.ctx, w.ref(name))
		if errors.Is(err, fs.ErrNotExist) {
			return "no", nil
		}
		if err != nil {
			return "", err
		}
		c, err := w.eng.Create(w.ctx, &coracle.ContainerSpec{Image: w.ref(name), Pull: coracle.PullNever, Args: []string{"/none"}})
		if err == nil {
			err = c.Remove(w.ctx, nil)
		}
		if len(label) > 0 && img.Config().Config.Labels["is"] != label[0] {
			return "old", err
		}
		return "yes", err
	}
}

// hasLocal is hasImage for one that was made here, or is of the registry.
func hasLocal(name string) func(*walkWorld) (string, error) {
	return func(w *walkWorld) (string, error) {
		if name == "app:v1" {
			_, err := w.eng.Image(w.ctx, w.ref(name))
			if errors.Is(err, fs.ErrNotExist) {
				return "no", nil
			}
			return "yes", err
		}
		_, err := w.eng.Image(w.ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			return "no", nil
		}
		return "yes", err
	}
}

func tag(name string) func(*walkWorld) error {
	return func(w *walkWorld) error {
		img, err := w.eng.Image(w.ctx, w.ref("app:v1"))
		if err == nil {
			err = img.Tag(w.ctx, name)
		}
		return err
	}
}

// retag gives a name to another image.
func retag(w *walkWorld) error {
	img, err := w.eng.Image(w.ctx, w.ref("moving:latest"))
	if err == nil {
		err = img.Tag(w.ctx, "other:v2")
	}
	return err
}

func untag(name string) func(*walkWorld) error {
	return func(w *walkWorld) error {
		img, err := w.eng.Image(w.ctx, name)
		if err == nil {
			err = img.Untag(w.ctx, name)
		}
		return err
	}
}

func removeImage(name string) func(*walkWorld) error {
	return func(w *walkWorld) error {
		img, err := w.eng.Image(w.ctx, w.ref(name))
		if err == nil {
			err = img.Remove(w.ctx, nil)
		}
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			// What a collection that was killed did not come to.
			_, err = w.eng.PruneImages(w.ctx, nil)
		}
		return err
	}
}

func pruneImages(w *walkWorld) error {
	_, err := w.eng.PruneImages(w.ctx, &coracle.ImagePruneOptions{All: true})
	return err
}

// pruned tells whether only the image of the container is left, and nothing that nobody needs.
func pruned(w *walkWorld) (string, error) {
	list, err := w.eng.Images(w.ctx)
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(list, func(i *coracle.Image) bool { return i.Ref() == w.ref("moving:latest") }) {
		return "the image of the container is gone", nil
	}
	usage, err := w.eng.DiskUsage(w.ctx)
	if err != nil || len(list) > 1 || usage.Unused > 0 {
		return "some", err
	}
	return "kept", nil
}

// obey may not have come to its signal handler when it is stopped, and is not waited for long.
var obey = coracle.ContainerSpec{Image: "tool", Args: []string{"obey"}, StopTimeout: 20 * time.Millisecond, Networks: onNetworks(coracle.NetworkNone)}

// create makes a container unless it is there.
func create(name string, spec coracle.ContainerSpec) func(*walkWorld) error {
	return func(w *walkWorld) error {
		if _, err := w.eng.Container(w.ctx, name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		spec := spec
		spec.Name, spec.Pull = name, coracle.PullNever
		if strings.Contains(spec.Image, ":") {
			spec.Image = w.ref(spec.Image)
		}
		if spec.Args == nil {
			spec.Args = []string{"/none"}
		}
		withoutNetwork(&spec)
		_, err := w.eng.Create(w.ctx, &spec)
		return err
	}
}

// drop removes a container if it is there.
func drop(name string) func(*walkWorld) error {
	return func(w *walkWorld) error {
		c, err := w.eng.Container(w.ctx, name)
		if err == nil {
			err = c.Remove(w.ctx, &coracle.RemoveOptions{Force: true})
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	}
}

func recreate(w *walkWorld) error {
	return both(drop("box"), create("box", coracle.ContainerSpec{Image: "small"}))(w)
}

// makeSpare removes containers of an image until their directories are kept for the next one.
func makeSpare(w *walkWorld) error {
	one := coracle.ContainerSpec{Image: "small"}
	return both(create("x", one), create("y", one), create("z", one), drop("x"), drop("y"), drop("z"), func(w *walkWorld) error {
		entries, err := os.ReadDir(filepath.Join(w.root, "store/tmp"))
		if err == nil && len(entries) == 0 {
			err = errors.New("no directory of spares")
		}
		return err
	})(w)
}

// start starts a container unless it runs.
func start(name string) func(*walkWorld) error {
	return func(w *walkWorld) error {
		c, err := w.eng.Container(w.ctx, name)
		if err == nil {
			err = c.Start(w.ctx)
		}
		if errors.Is(err, coracle.ErrRunning) {
			err = nil
		}
		return err
	}
}

func started(name string) func(*walkWorld) error { return both(create(name, obey), start(name)) }

func stop(name string) func(*walkWorld) error {
	return func(w *walkWorld) error {
		c, err := w.eng.Container(w.ctx, name)
		if err == nil {
			err = c.Stop(w.ctx, nil)
		}
		if err == nil {
			c.Cleaned()
		}
		return err
	}
}

func ended(name string) func(*walkWorld) error { return both(started(name), stop(name)) }

// runningAuto starts a container that is removed at its end.
func runningAuto(w *walkWorld) error {
	spec := obey
	spec.AutoRemove = true
	return both(create("auto", spec), start("auto"))(w)
}

func pruneContainers(w *walkWorld) error {
	_, err := w.eng.PruneContainers(w.ctx, nil)
	return err
}

// hasContainers tells the status of those containers that exist.
func hasContainers(names ...string) func(*walkWorld) (string, error) {
	return func(w *walkWorld) (string, error) {
		var found []string
		for _, name := range names {
			c, err := w.eng.Container(w.ctx, name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return "", err
			}
			info, err := c.Inspect(w.ctx)
			if err != nil {
				return "", err
			}
			found = append(found, name+" "+string(info.Status))
		}
		return strings.Join(found, " "), nil
	}
}

// containers tells the names and statuses of all.
func containers(w *walkWorld) (string, error) {
	list, err := w.eng.Containers(w.ctx, nil)
	if err != nil {
		return "", err
	}
	var found []string
	for _, c := range list {
		info, err := c.Inspect(w.ctx)
		if err != nil {
			return "", err
		}
		found = append(found, c.Name()+" "+string(info.Status))
	}
	slices.Sort(found)
	return strings.Join(found, ", "), nil
}

func check(w *walkWorld) error {
	_, err := w.eng.Check(w.ctx)
	return err
}

func repair(w *walkWorld) error {
	report, err := w.eng.Repair(w.ctx, nil)
	if err == nil && len(report.Failed) > 0 {
		err = fmt.Errorf("not repaired: %v", report.Failed)
	}
	return err
}

// messScenario is makeMess, as a program of its own.
const messScenario = "mess"

// makeMess leaves what a busy program does: containers that run, and others at every step of being made and removed.
// Each is the work of a goroutine that never goes on from its step.
func makeMess(order walkOrder) error {
	w := &walkWorld{ctx: context.Background(), root: order.Root, registry: order.Registry}
	if err := w.open(); err != nil {
		return err
	}
	if err := both(create("created", obey), ended("exited"), started("running"), runningAuto,
		create("removing", obey), create("removing2", obey), create("removing3", obey), create("removing4", obey), create("starting", obey), create("starting2", obey))(w); err != nil {
		return err
	}
	var where atomic.Pointer[string]
	there, failed := make(chan struct{}), make(chan error, 1)
	crashpoint.Observe(func(step string) {
		if s := where.Load(); s != nil && *s == step && where.CompareAndSwap(s, nil) {
			there <- struct{}{}
			select {}
		}
	})
	for _, stuck := range []struct {
		step string
		do   func(*walkWorld) error
	}{
		{"create: directory made", create("new1", obey)},
		{"create: state written", create("new2", obey)},
		{"create: container in sight", create("new3", obey)},
		{"create: named", create("new4", obey)},
		{"snapshot: directory made", create("new5", obey)},
		{"snapshot: prepared", create("new6", obey)},
		{"discard: cgroup gone", drop("removing")},
		{"discard: snapshot gone", drop("removing2")},
		{"discard: name gone", drop("removing3")},
		{"discard: container out of sight", drop("removing4")},
		{"start: program runs", start("starting")},
		{"write state.json: written", start("starting2")},
		{"unpack: archive applied", func(w *walkWorld) error {
			_, err := w.eng.ImageFromFS(w.ctx, "mess", smallFS("mess"), nil)
			return err
		}},
		{"write index.json: written", func(w *walkWorld) error {
			_, err := w.eng.ImageFromFS(w.ctx, "mess2", smallFS("mess2"), nil)
			return err
		}},
	} {
		where.Store(&stuck.step)
		go func() { failed <- fmt.Errorf("%s was not reached: %w", stuck.step, errors.Join(stuck.do(w))) }()
		select {
		case <-there:
		case err := <-failed:
			return err
		}
	}
	dieHere()
	return nil
}
