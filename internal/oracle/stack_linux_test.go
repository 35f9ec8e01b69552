package oracle

import (
	"archive/tar"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/layerfs"
)

var workDir = flag.String("oracle.dir", "", "directory to work in, instead of a tmpfs")

// inNamespace says that this process is the one that tests, in a mount namespace of its own.
const inNamespace = "ORACLE_TEST_TMPFS"

// TestMain runs the tests as root in a mount namespace with a tmpfs, where thousands of stores are no load on a disk.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Geteuid() != 0 || *workDir != "" || os.Getenv(inNamespace) != "" {
		if dir := os.Getenv(inNamespace); dir != "" {
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
				fmt.Fprintln(os.Stderr, "mount tmpfs:", err)
				os.Exit(1)
			}
			*workDir = dir
		}
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "oracle-")
	must(err)
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	_ = os.Remove(dir)
	if err != nil {
		os.Exit(1)
	}
}

// gen makes layers over few names, so that they meet.
type gen struct {
	t     *rapid.T
	pool  []string // names so far
	dirs  []string // those of directories and links
	files []string // those of files
	clock int64
}

var components = []string{"a", "b", "c", "a", "b", "c", "d e", ".f", ".whx", "..g", "wh.h", "x.wh.y", "ü\n", strings.Repeat("n", 210)}

// name makes a name, mostly one where a name can be: most stacks shall not be refused.
func (g *gen) name() string {
	child := func(of []string) (string, bool) {
		if len(of) == 0 {
			return "", false
		}
		p := rapid.SampledFrom(of).Draw(g.t, "above")
		return p + "/" + rapid.SampledFrom(components).Draw(g.t, "child"), strings.Count(p, "/") < 5
	}
	switch rapid.IntRange(0, 19).Draw(g.t, "from") {
	case 0, 1, 2, 3, 4, 5:
		if len(g.pool) > 0 {
			return rapid.SampledFrom(g.pool).Draw(g.t, "name")
		}
	case 6, 7, 8, 9, 10, 11, 12, 13, 14:
		if p, ok := child(g.dirs); ok {
			return p
		}
	case 15:
		if p, ok := child(g.pool); ok {
			return p
		}
	}
	return strings.Join(rapid.SliceOfN(rapid.SampledFrom(components), 1, 3).Draw(g.t, "path"), "/")
}

func (g *gen) entry() entry {
	g.clock++
	e := entry{name: g.name(), mode: 0o644, mtime: time.Unix(1e9+g.clock, g.clock*1_001_001)}
	if rapid.IntRange(0, 19).Draw(g.t, "odd time") == 0 {
		e.mtime = time.Unix(-g.clock, 7)
	}
	if rapid.Bool().Draw(g.t, "owned") {
		e.uid = rapid.SampledFrom([]int{1, 1000, 4_000_000_000}).Draw(g.t, "uid")
		e.gid = rapid.SampledFrom([]int{0, 5, 3_000_000_000}).Draw(g.t, "gid")
	}
	attribute := func(names ...string) {
		for _, n := range names {
			if rapid.IntRange(0, 3).Draw(g.t, n) == 0 {
				if e.xattrs == nil {
					e.xattrs = map[string]string{}
				}
				e.xattrs[n] = fmt.Sprint(n, g.clock)
			}
		}
	}
	switch rapid.IntRange(0, 21).Draw(g.t, "kind") {
	case 0, 1, 2, 3, 4:
		e.kind = tar.TypeDir
		e.mode = rapid.SampledFrom([]int64{0o755, 0o700, 0o1777, 0o2750, 0o555, 0}).Draw(g.t, "mode")
		attribute("user.d", "trusted.d")
	case 5, 6, 7, 8, 9:
		e.kind = tar.TypeReg
		e.mode = rapid.SampledFrom([]int64{0o644, 0o600, 0o4755, 0o6711, 0}).Draw(g.t, "mode")
		e.data = fmt.Sprint("data ", g.clock)
		attribute("user.f", "trusted.f")
		if rapid.IntRange(0, 5).Draw(g.t, "capable") == 0 {
			if e.xattrs == nil {
				e.xattrs = map[string]string{}
			}
			e.xattrs["security.capability"] = "\x01\x00\x00\x02" + string(rune(g.clock&0x7f)) + strings.Repeat("\x00", 15)
		}
	case 10, 11:
		e.kind = tar.TypeSymlink
		e.mode = 0o777
		e.link = rapid.SampledFrom([]string{"a", "b", "c", "/a", "/b/c", "../b", "../../a/c", "nowhere", "/", ".", "/../c", "d e/a", strings.Repeat("s/", 300)}).Draw(g.t, "target")
		attribute("trusted.l", "user.l")
	case 12:
		e.kind = tar.TypeLink
		if len(g.files) > 0 && rapid.IntRange(0, 9).Draw(g.t, "to a file") > 0 {
			e.link = rapid.SampledFrom(g.files).Draw(g.t, "file")
		} else {
			e.link = g.name()
		}
	case 13, 14, 15, 16:
		e.kind = tar.TypeReg
		dir, base := path.Split(e.name)
		e.name = dir + ".wh." + base
	case 17:
		e.kind = tar.TypeReg
		e.name += "/" + opaque
		if rapid.IntRange(0, 5).Draw(g.t, "root") == 0 {
			e.name = opaque
		}
	case 18:
		e.kind = rapid.SampledFrom([]byte{tar.TypeChar, tar.TypeBlock, tar.TypeFifo}).Draw(g.t, "node")
		if e.kind != tar.TypeFifo {
			e.major, e.minor = rapid.Int64Range(1, 400).Draw(g.t, "major"), rapid.Int64Range(0, 70_000).Draw(g.t, "minor")
		}
		e.mode = rapid.SampledFrom([]int64{0o666, 0o4600}).Draw(g.t, "mode")
		attribute("trusted.n", "user.n")
	case 19:
		e.kind = tar.TypeReg
		e.data = fmt.Sprint("sparse ", g.clock)
		e.holes = 1 << 20
		attribute("user.s")
	case 20:
		e.name, e.kind = ".", tar.TypeDir
		e.mode = rapid.SampledFrom([]int64{0o755, 0o711, 0o1777}).Draw(g.t, "mode")
		attribute("user.d", "trusted.d")
	default:
		e.kind = tar.TypeReg
		e.name = ".wh..wh.plnk" // aufs's own, which means nothing
	}
	if !strings.Contains(e.name, ".wh..") && e.name != "." {
		dir, base := path.Split(e.name)
		name := dir + strings.TrimPrefix(base, ".wh.")
		g.pool = append(g.pool, name)
		switch {
		case e.kind == tar.TypeDir:
			g.dirs = append(g.dirs, name)
		case e.kind == tar.TypeSymlink && len(e.link) < 10:
			g.dirs, g.files = append(g.dirs, name), append(g.files, name)
		case name == e.name:
			g.files = append(g.files, name)
		}
	}
	return e
}

// layer makes a layer as builders do, with entries for all directories on the way, or one without.
func (g *gen) layer() []entry {
	var out []entry
	complete := rapid.IntRange(0, 4).Draw(g.t, "complete") < 3
	made := map[string]bool{}
	for range rapid.IntRange(0, 7).Draw(g.t, "entries") {
		e := g.entry()
		if complete {
			for i, c := range e.name {
				if c == '/' && !made[e.name[:i]] {
					g.clock++
					made[e.name[:i]] = true
					out = append(out, entry{name: e.name[:i], kind: tar.TypeDir, mode: 0o751, uid: int(g.clock), mtime: time.Unix(1e9+g.clock, 1)})
				}
			}
		}
		made[e.name] = true
		out = append(out, e)
	}
	if rapid.IntRange(0, 4).Draw(g.t, "shuffle") == 0 {
		out = rapid.Permutation(out).Draw(g.t, "order")
	}
	return out
}

// image is a stack of layers of the pool.
type image struct {
	layers [][]entry
	specs  []layerfs.LayerSpec
	want   *outcome
	tar    map[string]file // by GNU tar, or nil
}

// outcome is what sequential extraction makes of an image.
type outcome struct {
	tree map[string]file
	tags map[string]int
	err  error
}

func specOf(archive []byte) layerfs.LayerSpec {
	d := digest.FromBytes(archive)
	return layerfs.LayerSpec{
		Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(archive))},
		DiffID:     d,
		Open:       func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil },
	}
}

// seen counts what the generated stacks hit.
type seen struct {
	stacks, refused, tar, shared, throughLinks int
	keys, stats                                map[string]int
}

func (s *seen) String() string {
	return fmt.Sprintf("%d stacks, %d of them refused, %d by GNU tar too, %d with layers of the stack before, %d through links; layers %v; %v",
		s.stacks, s.refused, s.tar, s.shared, s.throughLinks, s.keys, s.stats)
}

// TestStacks is the comparison; see the package documentation.
func TestStacks(t *testing.T) {
	testutil.RequireRoot(t)
	if _, err := exec.LookPath("tar"); err != nil {
		testutil.Skip(t, "needs GNU tar")
	}
	must(log.SetLevel("error")) // containerd warns of every trusted attribute
	for _, flavour := range []string{"trusted", "user"} {
		t.Run(flavour, func(t *testing.T) {
			saw := &seen{keys: map[string]int{}, stats: map[string]int{}}
			rapid.Check(t, func(rt *rapid.T) { check(rt, flavour == "user", saw) })
			t.Log(saw)
			if saw.keys["d"] == 0 || saw.keys["c"] == 0 || saw.shared == 0 || saw.tar == 0 || saw.throughLinks == 0 || saw.stats["layers at once"] == 0 {
				t.Errorf("the stacks miss what they are for: %v", saw)
			}
			if saw.refused*2 > saw.stacks {
				t.Errorf("most stacks are refused: %v", saw)
			}
		})
	}
}

func check(t *rapid.T, userXattrs bool, saw *seen) {
	start := time.Now().Add(-time.Second) // the clock that files get is coarse
	dir, err := os.MkdirTemp(*workDir, "stack-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	g := &gen{t: t}
	var pool [][]entry
	for range rapid.IntRange(1, 6).Draw(t, "layers") {
		pool = append(pool, g.layer())
	}
	images := []*image{{layers: pool}}
	if rapid.Bool().Draw(t, "second image") {
		// The same layers upon others.
		images = append(images, &image{layers: rapid.SliceOfN(rapid.SampledFrom(pool), 1, 6).Draw(t, "stack")})
		saw.shared++
	}
	known := []time.Time{}
	for i, img := range images {
		extract(t, fmt.Sprintf("%s/%d", dir, i), img, saw)
		for _, l := range img.layers {
			img.specs = append(img.specs, specOf(archiveOf(l...)))
			for _, e := range l {
				known = append(known, e.mtime)
			}
		}
	}
	order := rapid.Permutation(images).Draw(t, "order of images")
	parallel := rapid.IntRange(1, 4).Draw(t, "parallelism")
	together := rapid.Bool().Draw(t, "together")
	stores := map[string]*layerfs.Store{}
	for _, driver := range []string{"overlay", "copy"} {
		st, err := layerfs.OpenStore(dir+"/store", &layerfs.StoreOptions{Driver: driver, UserXattrs: userXattrs})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		stores[driver] = st
	}
	layers := make([][]layerfs.Layer, len(order))
	errs := make([]error, len(order))
	var wg sync.WaitGroup
	for i, img := range order {
		one := func() { layers[i], errs[i] = unpack(stores["overlay"], img.specs, parallel) }
		if together {
			wg.Go(one)
		} else {
			one()
		}
	}
	wg.Wait()
	for i, img := range order {
		saw.stacks++
		if (errs[i] == nil) != (img.want.err == nil) {
			t.Fatalf("layerfs: %v\ncontainerd: %v\n%s", errs[i], img.want.err, dump(img.layers))
		}
		if errs[i] != nil {
			saw.refused++
			continue
		}
		for _, l := range layers[i] {
			saw.keys[l.Key[:1]]++
		}
		for driver, st := range stores {
			got, err := mounted(st, fmt.Sprint(driver, i), layers[i])
			if err != nil {
				t.Fatalf("%s: %v\n%s", driver, err, dump(img.layers))
			}
			for _, f := range got {
				if f.size == 1<<20 && f.blocks*512 > f.size/2 {
					t.Errorf("%s: a sparse file has no holes: %v", driver, f)
				}
			}
			diffs := compare(img.want.tree, got, img.want.tags, start, known, true)
			if img.tar != nil {
				saw.tar++
				for _, d := range compare(img.tar, got, img.want.tags, start, known, false) {
					diffs = append(diffs, "GNU tar: "+d)
				}
			}
			if len(diffs) > 0 {
				keys := ""
				for _, l := range layers[i] {
					keys += l.Key[:1]
				}
				t.Fatalf("%s (order %d of %d, keys %s):\n%s\n%s", driver, i+1, len(order), keys, strings.Join(diffs, "\n"), dump(img.layers))
			}
		}
	}
}

// extract asks the oracles.
func extract(t *rapid.T, dir string, img *image, saw *seen) {
	root, byTar := dir+"/containerd", dir+"/tar"
	for _, d := range []string{root, byTar} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := newSequence(root)
	img.want = &outcome{tags: s.tags}
	tarOK := true
	for _, l := range img.layers {
		tarOK = tarOK && tarCan(l)
		if img.want.err = s.apply(t.Context(), l); img.want.err != nil {
			break
		}
	}
	for k, n := range s.stats {
		saw.stats[k] += n
	}
	if s.through {
		saw.throughLinks++
	}
	if img.want.err != nil {
		return
	}
	var err error
	if img.want.tree, err = scan(root); err != nil {
		t.Fatal(err)
	}
	if !tarOK || s.through || s.setgid {
		return
	}
	for _, l := range img.layers {
		if err := gnuTar(t.Context(), byTar, l); err != nil {
			t.Fatalf("GNU tar, but not containerd: %v\n%s", err, dump(img.layers))
		}
	}
	if img.tar, err = scan(byTar); err != nil {
		t.Fatal(err)
	}
}

// unpack unpacks an image's layers, all at once or, with parallel 1, one after another.
func unpack(st *layerfs.Store, specs []layerfs.LayerSpec, parallel int) ([]layerfs.Layer, error) {
	ctx := context.Background()
	if parallel > 1 {
		return st.UnpackAll(ctx, specs, &layerfs.UnpackOptions{Parallelism: parallel})
	}
	var layers []layerfs.Layer
	for _, spec := range specs {
		spec.Parents = layers
		l, err := st.Unpack(ctx, spec)
		if err != nil {
			return nil, err
		}
		layers = append(slices.Clip(layers), l)
	}
	return layers, nil
}

func mounted(st *layerfs.Store, id string, layers []layerfs.Layer) (map[string]file, error) {
	ctx := context.Background()
	snap, err := st.NewSnapshot(ctx, id, layers, &layerfs.SnapshotOptions{Volatile: true})
	if err != nil {
		return nil, err
	}
	defer snap.Remove(ctx)
	f, err := snap.Mount(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return scan(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// compare returns what is different.
func compare(want, got map[string]file, tags map[string]int, start time.Time, known []time.Time, containerd bool) (diffs []string) {
	tag := func(p string) int { return tags[p] }
	wantGroups := groups(want, tag)
	gotGroups := groups(got, func(string) int { return 0 })
	names := maps.Clone(want)
	maps.Copy(names, got)
	for _, p := range slices.Sorted(maps.Keys(names)) {
		w, wok := want[p]
		g, gok := got[p]
		switch {
		case !wok:
			diffs = append(diffs, fmt.Sprintf("%q should not be there: %v", p, g))
			continue
		case !gok:
			diffs = append(diffs, fmt.Sprintf("%q is missing: %v", p, w))
			continue
		}
		if p == "." && containerd {
			continue
		}
		if wantGroups[p] != gotGroups[p] {
			diffs = append(diffs, fmt.Sprintf("%q is the same as %q, not as %q", p, gotGroups[p], wantGroups[p]))
		}
		if w.isDir() && g.isDir() && w.mtime.After(start) {
			if !g.mtime.After(start) && !slices.ContainsFunc(known, g.mtime.Equal) {
				diffs = append(diffs, fmt.Sprintf("%q has a time from nowhere: %v", p, g))
			}
			g.mtime = w.mtime
		}
		if containerd {
			for _, f := range []*file{&w, &g} {
				if f.mtime.Unix() < 0 {
					f.mtime = time.Unix(0, 0)
				}
			}
			g.xattrs = slices.DeleteFunc(slices.Clone(g.xattrs), func(x string) bool { return strings.HasPrefix(x, "trusted.") })
		}
		if ws, gs := w.String(), g.String(); ws != gs {
			diffs = append(diffs, fmt.Sprintf("%q\n   got %s\n  want %s", p, gs, ws))
		}
	}
	return diffs
}
