package coracle_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing/fstest"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/lockorder"
)

// modelEnv makes the test binary one of the processes of TestModel.
const modelEnv = "CORACLE_TEST_MODEL"

// modelConfig is what such a process is told.
type modelConfig struct {
	Root, Registry     string
	Seed               uint64
	Index, Incarnation int
}

// modelEngine is how the processes of the model open the root.
func modelEngine(root, registry string, logger *slog.Logger) coracle.Config {
	nobody := coracle.KeychainFunc(func(context.Context, coracle.Reference) (coracle.Credentials, error) {
		return coracle.Credentials{}, nil
	})
	return coracle.Config{Root: root, Logger: logger, Registry: coracle.RegistryConfig{Keychain: nobody, PlainHTTP: []string{registry}}}
}

// modelMain is that process: it does one thing after another at random until its input ends, and writes what it does, a
// line that begins with ">" before and one with "<" after. What must not be it says with "!", and ends.
func modelMain() {
	env := os.Getenv(modelEnv)
	if env == "" {
		return
	}
	w := &modelWorker{out: os.Stdout, own: make(map[string]*ownContainer)}
	if err := json.Unmarshal([]byte(env), &w.modelConfig); err != nil {
		w.fail("%v", err)
	}
	w.rnd = rand.New(rand.NewPCG(w.Seed, uint64(w.Index)<<32|uint64(w.Incarnation)))
	lockorder.Enforce(func(violation string) { w.fail("%s", violation) })
	var over atomic.Bool
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			var steps int64
			if _, err := fmt.Sscanf(lines.Text(), "die %d", &steps); err == nil {
				dieAfter(steps)
			}
		}
		over.Store(true)
	}()
	w.open()
	for !over.Load() {
		w.step()
	}
	w.close()
	os.Exit(0)
}

// dieAfter makes the process kill itself at one of the next steps.
func dieAfter(steps int64) {
	var n atomic.Int64
	crashpoint.Observe(func(string) {
		if n.Add(1) == steps {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
}

type modelWorker struct {
	modelConfig
	rnd *rand.Rand
	eng *coracle.Engine
	n   atomic.Int64

	mu  sync.Mutex
	out *os.File

	// own are the containers that this process's engine owns, and nobody else can remove.
	own map[string]*ownContainer
}

type ownContainer struct {
	*coracle.Container
	spec    *coracle.ContainerSpec
	running bool // until somebody kills it
}

func (w *modelWorker) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(w.out, "%s\n", strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", `\n`))
}

func (w *modelWorker) fail(format string, args ...any) {
	w.say("! "+format, args...)
	os.Exit(1)
}

// Enabled, Handle, WithAttrs and WithGroup make it a slog.Handler: what an engine warns of must not be either, but for
// what others do meanwhile.
func (w *modelWorker) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (w *modelWorker) WithAttrs([]slog.Attr) slog.Handler           { return w }
func (w *modelWorker) WithGroup(string) slog.Handler                { return w }

func (w *modelWorker) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	if r.Level >= slog.LevelWarn && !strings.HasPrefix(r.Message, "an entry of the store's index is no usable image") { // removed while images are listed
		w.fail("the engine warns: %s", text)
	}
	w.say("  log: %s", text)
	return nil
}

func (w *modelWorker) open() {
	eng, err := coracle.Open(context.Background(), modelEngine(w.Root, w.Registry, slog.New(w)))
	if err != nil {
		w.fail("open: %v", err)
	}
	w.eng = eng
}

func (w *modelWorker) close() {
	if err := w.eng.Close(); err != nil {
		w.fail("close: %v", err)
	}
	clear(w.own)
}

// modelOp is one thing to do. It draws all that it needs from rnd, and returns an error that is not what it may be.
type modelOp struct {
	name   string
	weight int
	alone  bool // it changes or looks at w.own
	do     func(w *modelWorker, ctx context.Context, rnd *rand.Rand) error
	// may are the errors that are right, as others may do anything at any moment; those of the context are where it is
	// a short one.
	may []error
}

var modelOpList = []modelOp{
	{"image from files", 8, false, (*modelWorker).imageFromFS, nil},
	{"pull", 10, false, (*modelWorker).pull, nil},
	// The image or the name may be gone, or stand for another image.
	{"tag", 6, false, (*modelWorker).tag, []error{fs.ErrNotExist}},
	{"untag", 5, false, (*modelWorker).untag, []error{fs.ErrNotExist}},
	// Gone already, or a container is made of it.
	{"remove image", 5, false, (*modelWorker).removeImage, []error{fs.ErrNotExist, coracle.ErrInUse}},
	{"prune images", 4, false, (*modelWorker).pruneImages, nil},
	{"list", 6, false, (*modelWorker).list, nil},
	{"usage", 3, false, (*modelWorker).usage, nil},
	{"check", 2, false, (*modelWorker).check, nil},
	// No such image, or the name is taken.
	{"create", 18, true, (*modelWorker).create, []error{fs.ErrNotExist, fs.ErrExist}},
	// One of its own can always be started, if it is not running.
	{"start", 8, true, (*modelWorker).start, nil},
	// Another's may be removed, owned or running.
	{"start any", 4, true, (*modelWorker).startAny, []error{fs.ErrNotExist, coracle.ErrInUse, coracle.ErrRunning}},
	{"remove", 7, true, (*modelWorker).remove, nil},
	{"remove any", 5, true, (*modelWorker).removeAny, []error{coracle.ErrInUse, coracle.ErrRunning}},
	{"prune containers", 3, true, (*modelWorker).pruneContainers, nil},
	{"reopen", 4, true, (*modelWorker).reopen, nil},
}

func pickOp(rnd *rand.Rand, alone bool) *modelOp {
	for {
		total := 0
		for _, op := range modelOpList {
			total += op.weight
		}
		n := rnd.IntN(total)
		for i := range modelOpList {
			op := &modelOpList[i]
			if n -= op.weight; n < 0 {
				if op.alone && !alone {
					break
				}
				return op
			}
		}
	}
}

// step does one thing, or several at once.
func (w *modelWorker) step() {
	if w.rnd.IntN(8) > 0 {
		w.run(pickOp(w.rnd, true), w.rnd)
		return
	}
	var wg sync.WaitGroup
	for range 3 {
		op, rnd := pickOp(w.rnd, false), rand.New(rand.NewPCG(w.rnd.Uint64(), 0))
		wg.Go(func() { w.run(op, rnd) })
	}
	wg.Wait()
}

func (w *modelWorker) run(op *modelOp, rnd *rand.Rand) {
	n := w.n.Add(1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// A context that ends soon, most often in the middle.
	short := rnd.IntN(8) == 0
	if short {
		d := time.Duration(rnd.Int64N(int64(10 * time.Millisecond)))
		if rnd.IntN(2) == 0 {
			ctx, cancel = context.WithTimeout(ctx, d)
			defer cancel()
		} else {
			defer time.AfterFunc(d, cancel).Stop()
		}
	}
	w.say("> %d %s, short %v", n, op.name, short)
	err := op.do(w, ctx, rnd)
	allowed := err == nil || short && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded))
	for _, may := range op.may {
		allowed = allowed || errors.Is(err, may)
	}
	if !allowed {
		w.fail("%d %s, short %v: %v (%T)", n, op.name, short, err, err)
	}
	w.say("< %d %s: %v", n, op.name, err)
}

// name is a name that images may have, most of them only for a while.
func (w *modelWorker) name(rnd *rand.Rand) string {
	kind := []string{"app:%d", "fs:%d", "tag:%d"}[rnd.IntN(3)]
	return w.Registry + "/" + fmt.Sprintf(kind, rnd.IntN(modelTags))
}

func (w *modelWorker) imageFromFS(ctx context.Context, rnd *rand.Rand) error {
	// Four images, two and two of the same files.
	i := rnd.IntN(4)
	files := make(fstest.MapFS)
	for _, f := range modelPrograms(fmt.Sprint(i % 2)) {
		if !strings.HasSuffix(f.Name, "/") {
			files[f.Name] = &fstest.MapFile{Data: []byte(f.Content), Mode: fs.FileMode(max(f.Mode, 0o644))}
		}
	}
	img, err := w.eng.ImageFromFS(ctx, fmt.Sprintf("%s/fs:%d", w.Registry, rnd.IntN(modelTags)), files,
		&coracle.ImageFSOptions{Config: coracle.ImageConfig{Labels: map[string]string{"model": fmt.Sprint(i / 2)}}})
	if err == nil && len(img.Layers()) != 1 {
		w.fail("image of files: %v", img.Layers())
	}
	return err
}

func (w *modelWorker) pull(ctx context.Context, rnd *rand.Rand) error {
	policy := []coracle.PullPolicy{coracle.PullAlways, coracle.PullMissing}[rnd.IntN(2)]
	_, err := w.eng.Pull(ctx, fmt.Sprintf("%s/app:%d", w.Registry, rnd.IntN(modelTags)), &coracle.PullOptions{Policy: policy})
	return err
}

func (w *modelWorker) tag(ctx context.Context, rnd *rand.Rand) error {
	img, err := w.eng.Image(ctx, w.name(rnd))
	if err != nil {
		return err
	}
	return img.Tag(ctx, fmt.Sprintf("%s/tag:%d", w.Registry, rnd.IntN(modelTags)))
}

func (w *modelWorker) untag(ctx context.Context, rnd *rand.Rand) error {
	img, err := w.eng.Image(ctx, w.name(rnd))
	if err != nil {
		return err
	}
	return img.Untag(ctx, img.Ref())
}

func (w *modelWorker) removeImage(ctx context.Context, rnd *rand.Rand) error {
	img, err := w.eng.Image(ctx, w.name(rnd))
	if err != nil {
		return err
	}
	return img.Remove(ctx, &coracle.ImageRemoveOptions{Force: rnd.IntN(2) == 0})
}

func (w *modelWorker) pruneImages(ctx context.Context, rnd *rand.Rand) error {
	opts := &coracle.ImagePruneOptions{All: rnd.IntN(3) == 0}
	if rnd.IntN(3) == 0 {
		opts.Labels = map[string]string{"model": ""}
	}
	if rnd.IntN(3) == 0 {
		opts.Until = time.Now()
	}
	_, err := w.eng.PruneImages(ctx, opts)
	return err
}

func (w *modelWorker) list(ctx context.Context, rnd *rand.Rand) error {
	images, err := w.eng.Images(ctx)
	if err != nil {
		return err
	}
	seen := make(map[string]bool)
	for _, img := range images {
		if d := string(img.Digest()); seen[d] {
			w.fail("image %s is listed twice", d)
		} else {
			seen[d] = true
		}
	}
	_, err = w.eng.Containers(ctx, nil)
	return err
}

func (w *modelWorker) usage(ctx context.Context, rnd *rand.Rand) error {
	_, err := w.eng.DiskUsage(ctx)
	return err
}

func (w *modelWorker) check(ctx context.Context, rnd *rand.Rand) error {
	report, err := w.eng.Check(ctx)
	if err != nil {
		return err
	}
	for _, d := range report.Damage {
		w.fail("check: %v", d)
	}
	return nil
}

func (w *modelWorker) create(ctx context.Context, rnd *rand.Rand) error {
	spec := &coracle.ContainerSpec{Image: w.name(rnd), Args: []string{"/exit"}, AutoRemove: rnd.IntN(4) == 0, Labels: make(map[string]string)}
	if rnd.IntN(3) == 0 {
		spec.Args = []string{"/pause"}
	}
	if rnd.IntN(2) == 0 {
		spec.Name = fmt.Sprintf("name-%d", rnd.IntN(12))
	}
	if rnd.IntN(4) == 0 {
		spec.Labels["keep"] = "yes"
	}
	c, err := w.eng.Create(ctx, spec)
	if err != nil {
		return err
	}
	w.own[c.ID()] = &ownContainer{Container: c, spec: spec}
	w.lookAfter()
	return nil
}

// lookAfter looks for this process's containers, which are all there, and reachable by name and id.
func (w *modelWorker) lookAfter() {
	ctx := context.Background()
	list, err := w.eng.Containers(ctx, nil)
	if err != nil {
		w.fail("list containers: %v", err)
	}
	for id, c := range w.own {
		if c.spec.AutoRemove && c.running {
			continue // somebody may kill it, and it is gone then
		}
		if !slices.ContainsFunc(list, func(l *coracle.Container) bool { return l.ID() == id }) {
			w.fail("container %s is not listed", id)
		}
		for _, key := range []string{id, c.spec.Name} {
			if key == "" {
				continue
			}
			if found, err := w.eng.Container(ctx, key); err != nil || found.ID() != id {
				w.fail("container %s by %q: %v, %v", id, key, found, err)
			}
		}
	}
}

// pickOwn picks a container of its own, in the order of their creation, as the seed is to decide which one.
func (w *modelWorker) pickOwn(rnd *rand.Rand) *ownContainer {
	if len(w.own) == 0 {
		return nil
	}
	var list []*ownContainer
	for _, c := range w.own {
		list = append(list, c)
	}
	created := func(c *ownContainer) time.Time {
		info, err := c.Inspect(context.Background())
		if err != nil && !(c.spec.AutoRemove && errors.Is(err, fs.ErrNotExist)) {
			w.fail("inspect %s: %v", c.ID(), err)
		}
		if err != nil {
			return time.Time{}
		}
		return info.Created
	}
	slices.SortFunc(list, func(a, b *ownContainer) int { return created(a).Compare(created(b)) })
	return list[rnd.IntN(len(list))]
}

func (w *modelWorker) start(ctx context.Context, rnd *rand.Rand) error {
	c := w.pickOwn(rnd)
	if c == nil {
		return nil
	}
	return w.startOwn(ctx, rnd, c)
}

func (w *modelWorker) startOwn(ctx context.Context, rnd *rand.Rand, c *ownContainer) error {
	err := c.Start(ctx)
	if c.running && (errors.Is(err, coracle.ErrRunning) || c.spec.AutoRemove && errors.Is(err, fs.ErrNotExist)) {
		return nil
	}
	if err != nil {
		return err
	}
	c.running = true
	return w.end(rnd, c)
}

// end waits for a container that was just started, unless it goes on.
func (w *modelWorker) end(rnd *rand.Rand, c *ownContainer) error {
	pauses := c.spec.Args[0] == "/pause"
	if pauses && rnd.IntN(2) == 0 {
		return nil
	}
	ctx := context.Background()
	if pauses {
		if err := c.Kill(ctx); err != nil && !errors.Is(err, coracle.ErrNotRunning) { // another process may have
			return err
		}
	}
	exit, err := c.Wait(ctx)
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	killed := exit.Signal == syscall.SIGKILL // by another process
	if !killed && (pauses || exit.Code != modelExit) {
		w.fail("container %s %v: %v", c.ID(), c.spec.Args, exit)
	}
	c.running = false
	if c.spec.AutoRemove {
		delete(w.own, c.ID())
	}
	return nil
}

// pickAny picks any container of the root.
func (w *modelWorker) pickAny(ctx context.Context, rnd *rand.Rand) (*coracle.Container, error) {
	list, err := w.eng.Containers(ctx, nil)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[rnd.IntN(len(list))], nil
}

func (w *modelWorker) startAny(ctx context.Context, rnd *rand.Rand) error {
	c, err := w.pickAny(ctx, rnd)
	if err != nil || c == nil {
		return err
	}
	if own := w.own[c.ID()]; own != nil {
		return w.startOwn(ctx, rnd, own)
	}
	info, err := c.Inspect(ctx)
	if err != nil {
		return err
	}
	if err := c.Start(ctx); err != nil {
		return err
	}
	own := &ownContainer{Container: c, spec: &info.Spec, running: true}
	w.own[c.ID()] = own
	return w.end(rnd, own)
}

func (w *modelWorker) remove(ctx context.Context, rnd *rand.Rand) error {
	c := w.pickOwn(rnd)
	if c == nil {
		return nil
	}
	return w.removeOwn(ctx, c, rnd.IntN(2) == 0)
}

func (w *modelWorker) removeOwn(ctx context.Context, c *ownContainer, force bool) error {
	err := c.Remove(ctx, &coracle.RemoveOptions{Force: force})
	if c.running && !force && errors.Is(err, coracle.ErrRunning) {
		return nil
	}
	if err != nil {
		if force && c.running && c.spec.AutoRemove {
			delete(w.own, c.ID()) // killed, and the rest goes by itself
		}
		return err
	}
	delete(w.own, c.ID())
	if _, err := w.eng.Container(context.Background(), c.ID()); !errors.Is(err, fs.ErrNotExist) {
		w.fail("container %s was removed: %v", c.ID(), err)
	}
	return nil
}

func (w *modelWorker) removeAny(ctx context.Context, rnd *rand.Rand) error {
	force := rnd.IntN(2) == 0
	c, err := w.pickAny(ctx, rnd)
	if err != nil || c == nil {
		return err
	}
	if own := w.own[c.ID()]; own != nil {
		return w.removeOwn(ctx, own, force)
	}
	return c.Remove(ctx, &coracle.RemoveOptions{Force: force})
}

func (w *modelWorker) pruneContainers(ctx context.Context, rnd *rand.Rand) error {
	opts := &coracle.ContainerPruneOptions{}
	if rnd.IntN(4) > 0 {
		opts.NotLabels = map[string]string{"keep": ""}
	}
	_, err := w.eng.PruneContainers(ctx, opts)
	for id, c := range w.own {
		if c.spec.Labels["keep"] != "" && opts.NotLabels != nil {
			continue // lookAfter finds it
		}
		switch _, findErr := w.eng.Container(context.Background(), id); {
		case errors.Is(findErr, fs.ErrNotExist):
			delete(w.own, id)
		case err == nil && !c.running:
			w.fail("container %s was not pruned: %v", id, findErr)
		}
	}
	w.lookAfter()
	return err
}

func (w *modelWorker) reopen(context.Context, *rand.Rand) error {
	w.close()
	w.open()
	return nil
}
