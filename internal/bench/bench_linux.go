// Package bench has what a start of a container is measured against: the floor, a C program that makes the same system
// calls and nothing else, and other runtimes on the same OCI bundle. It is for benchmarks: it imports testing.
//
// All measure one thing, from the moment of asking to the moment when the program has ended and nothing of its
// container is left, one start after the other, and report the mean as ns/op and the median as median-ns/op. Compare
// figures of one run only.
package bench

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// A Container is what a benchmark starts.
type Container struct {
	// Spec is the runtime spec: its program, environment, limits, masked and read-only paths, host name and network
	// namespace are taken from here. The rest is Docker's default in every launcher.
	Spec *specs.Spec
	// Lower are the directories of the root filesystem, topmost first. The floor mounts an overlay of them; peers get
	// a plain directory, see [WriteBundle].
	Lower []string
	// Filter is the compiled seccomp profile, an array of struct sock_filter. The floor installs it, and peers compile
	// Spec.Linux.Seccomp by themselves. Empty means no filter.
	Filter []byte
	// Join is the pid of the first process of a container that is running: the floor then runs the program in there,
	// and makes nothing. Zero means a container of its own.
	Join int
	// Gap is how long the machine idles before each start. Zero means starts back to back. The kernel treats the two
	// differently: after some ten milliseconds of idleness a write to cgroup.procs waits for an RCU grace period. The
	// gap is not counted.
	Gap time.Duration
}

// Each calls op b.N times, sleeping for gap before each, and reports mean and median of op's own time.
func Each(b *testing.B, gap time.Duration, op func() error) {
	b.Helper()
	times, err := each(b.N, gap, op)
	if err != nil {
		b.Fatal(err)
	}
	report(b, times)
}

func each(n int, gap time.Duration, op func() error) ([]time.Duration, error) {
	times := make([]time.Duration, n)
	for i := range times {
		if gap > 0 {
			time.Sleep(gap)
		}
		start := time.Now()
		if err := op(); err != nil {
			return nil, err
		}
		times[i] = time.Since(start)
	}
	return times, nil
}

func report(b *testing.B, times []time.Duration) {
	var sum time.Duration
	for _, t := range times {
		sum += t
	}
	slices.Sort(times)
	b.ReportMetric(float64(sum.Nanoseconds())/float64(len(times)), "ns/op")
	b.ReportMetric(float64(times[len(times)/2].Nanoseconds()), "median-ns/op")
}

// WriteBundle writes an OCI bundle for peers: a copy of spec with the directory rootfs as its root, the three files of
// /etc as the bundle's own, and a cgroups path of its own. It returns the bundle's directory, which ends with the test.
// The version is 1.0.2: older peers refuse newer ones, and nothing newer is in a default spec.
func WriteBundle(t testing.TB, spec *specs.Spec, rootfs string) string {
	t.Helper()
	dir := t.TempDir()
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	var own specs.Spec
	if err := json.Unmarshal(data, &own); err != nil {
		t.Fatal(err)
	}
	own.Version = "1.0.2"
	own.Root = &specs.Root{Path: rootfs}
	own.Mounts = slices.DeleteFunc(own.Mounts, func(m specs.Mount) bool { return isEtc(m.Destination) })
	for name, text := range etcFiles {
		path := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		own.Mounts = append(own.Mounts, specs.Mount{Destination: name, Type: "bind", Source: path, Options: []string{"rbind", "rprivate"}})
	}
	if own.Linux != nil {
		own.Linux.CgroupsPath = "/coracle-peer-" + filepath.Base(filepath.Dir(dir)) + "-" + strconv.Itoa(os.Getpid())
	}
	if data, err = json.MarshalIndent(&own, "", "\t"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// etcFiles are as large as the floor's.
var etcFiles = map[string]string{
	"/etc/hostname":    "floor\n",
	"/etc/hosts":       "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.0.1\tfloor\n",
	"/etc/resolv.conf": "nameserver 127.0.0.1\n",
}

func isEtc(path string) bool {
	_, ok := etcFiles[path]
	return ok
}

// require skips a benchmark that cannot run here.
func require(t testing.TB) {
	t.Helper()
	if os.Getenv("CORACLE_TEST_VM") != "" {
		t.Skip("the virtual machine has neither a C compiler nor other runtimes")
	}
	testutil.RequireRoot(t)
}
