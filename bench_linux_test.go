package coracle_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/internal/bench"
	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/nsexec"
	"github.com/coracle-dev/coracle/nsexec/seccomp"
)

// trueELF is a static /bin/true of one system call: what starts here is the container and not a language's runtime.
func trueELF(t testing.TB) []byte {
	t.Helper()
	p := &nsexec.Plan{}
	p.Syscall("exit", unix.SYS_EXIT_GROUP, nsexec.Const(0))
	b, err := p.ELF()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// benchLimits are limits of the kinds that most containers have.
var benchLimits = cgroup.Limits{Memory: 256 << 20, PIDs: 128, CPUShares: 512, CPUQuota: 50_000, CPUPeriod: 100_000}

func benchSpec(network string) *coracle.ContainerSpec {
	return &coracle.ContainerSpec{
		Image: "true", Args: []string{"/bin/true"}, Limits: benchLimits, Networks: []coracle.Attachment{{Network: network}},
		Log: coracle.LogSpec{Mode: coracle.LogNone}, // the others have their streams on /dev/null too
	}
}

func benchEngine(b *testing.B) *coracle.Engine {
	eng := engine(b)
	files := fstest.MapFS{"bin/true": {Data: trueELF(b), Mode: 0o755}, "bin/pause": {Data: pauseELF(b), Mode: 0o755}}
	for _, dir := range []string{"dev", "etc", "proc", "sys", "tmp"} {
		files[dir] = &fstest.MapFile{Mode: os.ModeDir | 0o755}
	}
	for _, name := range []string{"etc/hostname", "etc/hosts", "etc/resolv.conf"} { // as most images have them
		files[name] = &fstest.MapFile{Mode: 0o644}
	}
	if _, err := eng.ImageFromFS(b.Context(), "true", files, nil); err != nil {
		b.Fatal(err)
	}
	return eng
}

// life is what is measured: create, start, wait, remove.
func life(ctx context.Context, eng *coracle.Engine, spec *coracle.ContainerSpec) error {
	c, err := eng.Create(ctx, spec)
	if err != nil {
		return err
	}
	if err := c.Start(ctx); err != nil {
		return err
	}
	exit, err := c.Wait(ctx)
	if err != nil {
		return err
	}
	if !exit.Success() {
		return fmt.Errorf("the container ended with %v", exit)
	}
	return c.Remove(ctx, nil)
}

// benchContainer describes the same container to the floor and to the peers: they get the very spec that coracle ran.
func benchContainer(b *testing.B, eng *coracle.Engine, network string) *bench.Container {
	b.Helper()
	ctx := b.Context()
	c, err := eng.Create(ctx, benchSpec(network))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Remove(ctx, nil)
	if err := c.Start(ctx); err != nil {
		b.Fatal(err)
	}
	if _, err := c.Wait(ctx); err != nil {
		b.Fatal(err)
	}
	info, err := c.Inspect(ctx)
	if err != nil {
		b.Fatal(err)
	}
	filter, err := seccomp.Compile(info.OCI.Linux.Seccomp, nil)
	if err != nil {
		b.Fatal(err)
	}
	layers, err := filepath.Glob(filepath.Join(eng.Root(), "store", "layers", "d-*", "fs"))
	if err != nil || len(layers) == 0 {
		b.Fatalf("layers: %v, %v", layers, err)
	}
	slices.Reverse(layers)
	return &bench.Container{Spec: info.OCI, Lower: layers, Filter: filter.Bytes()}
}

// BenchmarkRun measures the life of a container that does nothing, with Docker's default isolation and limits, beside
// what the kernel alone takes for it (floor) and what other runtimes take for the same bundle. "isolated" leaves the
// machine idle for 50 ms before each start, as users do who start single containers.
func BenchmarkRun(b *testing.B) {
	eng := benchEngine(b)
	for _, network := range []string{coracle.NetworkNone, coracle.NetworkHost} {
		peer := benchContainer(b, eng, network)
		rootfs := peer.Lower[len(peer.Lower)-1]
		for _, mode := range []struct {
			name string
			gap  time.Duration
		}{{"", 0}, {"-isolated", 50 * time.Millisecond}} {
			b.Run(network+mode.name, func(b *testing.B) {
				b.Run("coracle", func(b *testing.B) {
					bench.Each(b, mode.gap, func() error { return life(b.Context(), eng, benchSpec(network)) })
				})
				b.Run("floor", func(b *testing.B) {
					c := *peer
					c.Gap = mode.gap
					bench.Floor(b, &c)
				})
				for _, program := range []string{"crun", "runc"} {
					b.Run(program, func(b *testing.B) {
						bench.Peer(b, program, bench.WriteBundle(b, peer.Spec, rootfs), "coracle-bench", mode.gap)
					})
				}
			})
		}
	}
}

// BenchmarkRunHeap is BenchmarkRun/none/coracle in a program with a heap of 1 GB, and the same without. Give it a -count:
// the figures of one turn differ by more than the heap does.
func BenchmarkRunHeap(b *testing.B) {
	eng := benchEngine(b)
	for _, size := range []int{0, 1 << 30} {
		b.Run(fmt.Sprintf("%dMB", size>>20), func(b *testing.B) {
			heap := make([]byte, size)
			for i := 0; i < len(heap); i += 4096 {
				heap[i] = 1
			}
			bench.Each(b, 0, func() error { return life(b.Context(), eng, benchSpec(coracle.NetworkNone)) })
			runtime.KeepAlive(heap)
		})
	}
}

// BenchmarkRunParallel starts containers from several goroutines at once.
func BenchmarkRunParallel(b *testing.B) {
	eng := benchEngine(b)
	peer := benchContainer(b, eng, coracle.NetworkNone)
	for _, n := range []int{1, 2, 4, 8} {
		b.Run(fmt.Sprintf("coracle/%d", n), func(b *testing.B) {
			b.SetParallelism(max(1, n/runtime.GOMAXPROCS(0)))
			if n < runtime.GOMAXPROCS(0) {
				for b.Loop() {
					if err := life(b.Context(), eng, benchSpec(coracle.NetworkNone)); err != nil {
						b.Fatal(err)
					}
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := life(b.Context(), eng, benchSpec(coracle.NetworkNone)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
		b.Run(fmt.Sprintf("floor/%d", n), func(b *testing.B) { bench.FloorParallel(b, peer, n) })
	}
}

// TestManyRuns leaves the host as it was after many containers, one after the other and at once.
func TestManyRuns(t *testing.T) {
	sequential, parallel := 1000, 500
	if testing.Short() || testutil.RaceEnabled {
		sequential, parallel = 50, 50
	}
	testutil.RequireRoot(t)
	root := t.TempDir()
	eng, err := coracle.Open(t.Context(), coracle.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{"bin/true": {Data: trueELF(t), Mode: 0o755}}
	if _, err := eng.ImageFromFS(t.Context(), "true", files, nil); err != nil {
		t.Fatal(err)
	}
	spec := benchSpec(coracle.NetworkNone)
	if err := life(t.Context(), eng, spec); err != nil { // what an engine opens once and keeps
		t.Fatal(err)
	}
	before := testutil.Resources()
	for range sequential {
		if err := life(t.Context(), eng, spec); err != nil {
			t.Fatal(err)
		}
	}
	errs := make(chan error)
	for range parallel {
		go func() { errs <- life(t.Context(), eng, spec) }()
	}
	for range parallel {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	testutil.Settled(t, before)
	prefix := eng.GroupPrefix()
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, root, prefix)
}
