package coracle_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/bench"
)

// BenchmarkRunBridge is BenchmarkRun with the default network and a published port, beside the same without a network and
// docker run. "clean-ms" is how long after Remove has returned the kernel has removed the container's interface.
func BenchmarkRunBridge(b *testing.B) {
	eng := benchEngine(b)
	bridged := benchSpec(coracle.NetworkBridge)
	bridged.Ports = []coracle.Port{{Container: 80}}
	b.Run("none", func(b *testing.B) {
		bench.Each(b, 0, func() error { return life(b.Context(), eng, benchSpec(coracle.NetworkNone)) })
	})
	b.Run("bridge", func(b *testing.B) {
		bench.Each(b, 0, func() error { return life(b.Context(), eng, bridged) })
		start := time.Now()
		for vethsOnHost(b) > 0 {
			time.Sleep(time.Millisecond)
		}
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "clean-ms")
	})
	b.Run("docker", func(b *testing.B) { bench.DockerBridge(b, trueELF(b)) })
}

// vethsOnHost counts the host's ends of containers' interfaces.
func vethsOnHost(t testing.TB) (n int) {
	list, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if strings.HasPrefix(i.Name, "corv") {
			n++
		}
	}
	return n
}
