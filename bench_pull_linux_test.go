package coracle_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/bench"
	"github.com/coracle-dev/coracle/internal/debian"
)

const (
	// benchPullEnv makes the test binary a program that pulls an image, so that its memory is that of a pull: a root
	// and a reference.
	benchPullEnv = "CORACLE_BENCH_PULL"
	// benchProfileEnv is a directory into which that program writes a profile of its processor time.
	benchProfileEnv = "CORACLE_BENCH_PROFILE"
)

func init() {
	if root, ref, ok := strings.Cut(os.Getenv(benchPullEnv), " "); ok {
		if err := benchPull(root, ref); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// benchPull writes the most memory that the process has had, in bytes, to its standard output.
func benchPull(root, ref string) error {
	if dir := os.Getenv(benchProfileEnv); dir != "" {
		f, err := os.Create(filepath.Join(dir, "pull-"+strconv.Itoa(os.Getpid())+".pprof"))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	ctx := context.Background()
	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		return err
	}
	defer eng.Close()
	if _, err := eng.Pull(ctx, ref, nil); err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kB, err := strconv.ParseInt(strings.Fields(text)[0], 10, 64)
			if err != nil {
				return err
			}
			return json.NewEncoder(os.Stdout).Encode(kB << 10)
		}
	}
	return fmt.Errorf("no VmHWM in /proc/self/status")
}

// BenchmarkPull pulls and unpacks a Debian image, with gzip and with zstd layers, from a registry on loopback: coracle,
// and whatever there is of Docker, podman and containerd, in turns, each onto a fresh ext4. See [bench.Pull] for the
// figures; peak-MB is the most memory of coracle's process. The time of all includes the start of a program, and
// coracle's a sync of all that it wrote, which the others leave to the kernel: add NAME-sync-s for what is comparable.
//
// The image is the small fixture of the tests, so that each benchmark can run once in CI. The figures that count are
// those of the large one, built at its first use:
//
//	CORACLE_BENCH_LARGE=1 go test -run '^$' -bench BenchmarkPull -benchtime 3x -timeout 60m .
func BenchmarkPull(b *testing.B) {
	fixture, size := debian.Image, int64(1500<<20)
	if os.Getenv(debian.LargeEnv) != "" {
		fixture, size = debian.LargeImage, 6<<30
	}
	image := fixture(b)
	disk := bench.NewDisk(b, size)
	var peak int64
	pull := &bench.Puller{Name: "coracle", Zstd: true, Start: func(root, _ string) (*bench.Pulling, error) {
		exe, err := os.Executable()
		return &bench.Pulling{Stop: func() error { return nil }, Pull: func(ref string) error {
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), benchPullEnv+"="+root+"/coracle "+ref)
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				return err
			}
			var used int64
			err = json.Unmarshal(out, &used)
			peak = max(peak, used)
			return err
		}}, err
	}}
	systems := append([]*bench.Puller{pull}, bench.PullPeers...)
	for _, c := range []struct{ name, ref string }{{"gzip", image.GzipRef}, {"zstd", image.ZstdRef}} {
		b.Run(c.name, func(b *testing.B) {
			peak = 0
			bench.Pull(b, disk, c.ref, c.name == "zstd", systems...)
			b.ReportMetric(float64(peak)/(1<<20), "peak-MB")
		})
	}
}
