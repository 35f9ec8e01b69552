package coracle_test

import (
	"context"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/bench"
	"github.com/coracle-dev/coracle/nsexec"
	"github.com/coracle-dev/coracle/nsexec/seccomp"
)

// pauseELF is a program that waits to be killed.
func pauseELF(t testing.TB) []byte {
	t.Helper()
	p := &nsexec.Plan{}
	p.Syscall("wait", unix.SYS_PPOLL, nsexec.Const(0), nsexec.Const(0), nsexec.Const(0), nsexec.Const(0), nsexec.Const(8))
	b, err := p.ELF()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// benchExec makes a running container, and describes it to the floor and to the peers.
func benchExec(b *testing.B) (*coracle.Container, *bench.Container) {
	b.Helper()
	ctx, eng := b.Context(), benchEngine(b)
	spec := benchSpec(coracle.NetworkNone)
	spec.Args = []string{"/bin/pause"}
	spec.Limits.CPUQuota, spec.Limits.CPUPeriod = 0, 0 // or what is measured is the quota
	c := running(b, eng, *spec)
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
	return c, &bench.Container{Spec: info.OCI, Lower: layers, Filter: filter.Bytes(), Join: info.PID}
}

// BenchmarkExec measures a command that does nothing in a running container, from asking to its end, beside what the
// kernel alone takes for it (floor) and what other runtimes take in a container of the same bundle.
func BenchmarkExec(b *testing.B) {
	c, peer := benchExec(b)
	b.Run("coracle", func(b *testing.B) {
		bench.Each(b, 0, func() error { return c.Command("/bin/true").Run(b.Context()) })
	})
	b.Run("floor", func(b *testing.B) {
		of := *peer
		spec := *of.Spec
		process := *spec.Process
		process.Args = []string{"/bin/true"}
		spec.Process = &process
		of.Spec = &spec
		bench.Floor(b, &of)
	})
	for _, program := range []string{"crun", "runc"} {
		b.Run(program, func(b *testing.B) {
			bench.PeerExec(b, program, bench.WriteBundle(b, peer.Spec, peer.Lower[0]), "coracle-bench", "/bin/true")
		})
	}
}

// BenchmarkExecParallel runs commands from several goroutines at once.
func BenchmarkExecParallel(b *testing.B) {
	c, _ := benchExec(b)
	for _, n := range []int{2, 8, 50} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			b.SetParallelism(max(1, n/runtime.GOMAXPROCS(0)))
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := c.Command("/bin/true").Run(context.Background()); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
