package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Puller pulls images into a directory.
type Puller struct {
	// Name is that of the system.
	Name string
	// Zstd says that it can unpack zstd layers.
	Zstd bool
	// Start makes it ready to pull into root, with its sockets and the like in work, which are not counted. It returns
	// nil where the system is not installed.
	Start func(root, work string) (*Pulling, error)
}

// A Pulling is a system that is ready to pull.
type Pulling struct {
	// Pull pulls; when it returns the image can be used.
	Pull func(ref string) error
	// Daemon is the process that works for Pull beside its children, or 0.
	Daemon int
	// Stop ends the daemon.
	Stop func() error
}

// PullPeers are Docker, podman and containerd, each with the driver that it has by default on ext4.
var PullPeers = []*Puller{
	{Name: "docker", Start: startDocker},
	{Name: "podman", Zstd: true, Start: startPodman},
	{Name: "containerd", Zstd: true, Start: startContainerd},
}

// Pull measures the pulls of an image by several systems. All take turns, each on a fresh filesystem. Of the first,
// which is what the benchmark is about, it reports the mean as ns/op, and for each: NAME-s, the median in seconds;
// NAME-cpu-s, what it and its daemon took of the processors; NAME-sync-s, what a sync takes that follows. The ratios
// NAME/FIRST say how many times faster the first is.
func Pull(b *testing.B, disk *Disk, ref string, zstd bool, systems ...*Puller) {
	b.Helper()
	type figures struct{ wall, cpu, sync []float64 }
	all := make([]figures, len(systems))
	for range b.N {
		for i, s := range systems {
			if zstd && !s.Zstd {
				continue
			}
			r, err := pullOnce(disk, ref, s, b.TempDir())
			if errors.Is(err, errNotInstalled) {
				b.Logf("%s is not installed and left out", s.Name)
				continue
			} else if err != nil {
				b.Fatalf("%s: %v", s.Name, err)
			}
			all[i].wall = append(all[i].wall, r.wall.Seconds())
			all[i].cpu = append(all[i].cpu, r.cpu.Seconds())
			all[i].sync = append(all[i].sync, r.sync.Seconds())
		}
	}
	var sum float64
	for _, t := range all[0].wall {
		sum += t
	}
	b.ReportMetric(sum*1e9/float64(len(all[0].wall)), "ns/op")
	for i, s := range systems {
		if len(all[i].wall) == 0 {
			continue
		}
		b.ReportMetric(median(all[i].wall), s.Name+"-s")
		b.ReportMetric(median(all[i].cpu), s.Name+"-cpu-s")
		b.ReportMetric(median(all[i].sync), s.Name+"-sync-s")
		if i > 0 {
			b.ReportMetric(median(all[i].wall)/median(all[0].wall), s.Name+"/"+systems[0].Name)
		}
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

var errNotInstalled = errors.New("not installed")

type pullFigures struct{ wall, cpu, sync time.Duration }

func pullOnce(disk *Disk, ref string, s *Puller, work string) (f pullFigures, err error) {
	root, err := disk.Mount()
	if err != nil {
		return f, err
	}
	p, err := s.Start(root, work)
	if err == nil && p == nil {
		err = errNotInstalled
	}
	if err == nil {
		err = f.measure(disk, ref, p)
		err = errors.Join(err, p.Stop())
	}
	return f, errors.Join(err, disk.Unmount())
}

func (f *pullFigures) measure(disk *Disk, ref string, p *Pulling) error {
	if err := disk.Sync(); err != nil {
		return err
	}
	before, err := cpuTime(p.Daemon)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := p.Pull(ref); err != nil {
		return err
	}
	f.wall = time.Since(start)
	after, err := cpuTime(p.Daemon)
	if err != nil {
		return err
	}
	f.cpu = after - before
	start = time.Now()
	err = disk.Sync()
	f.sync = time.Since(start)
	return err
}

// cpuTime is what the children of this process that have ended took, and a daemon with its own, running and ended.
func cpuTime(daemon int) (time.Duration, error) {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &usage); err != nil {
		return 0, err
	}
	total := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	if daemon == 0 {
		return total, nil
	}
	parents, ticks := make(map[int]int), make(map[int]int64)
	names, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		parents[pid], _ = strconv.Atoi(fields[1])
		for _, field := range fields[11:15] { // utime, stime, cutime, cstime
			n, _ := strconv.ParseInt(field, 10, 64)
			ticks[pid] += n
		}
	}
	for pid := range parents {
		for p := pid; p > 1; p = parents[p] {
			if p == daemon {
				total += time.Duration(ticks[pid]) * (time.Second / 100) // USER_HZ
				break
			}
		}
	}
	return total, nil
}

func startDocker(root, work string) (*Pulling, error) {
	socket := "unix://" + work + "/docker.sock"
	return startDaemon(work, []string{"dockerd", "docker", "containerd"},
		[]string{"dockerd", "--host", socket, "--data-root", root + "/docker", "--exec-root", work + "/exec", "--pidfile", work + "/pid",
			"--bridge", "none", "--iptables=false", "--ip-forward=false", "--storage-driver", "overlay2"},
		[]string{"docker", "--host", socket, "version"},
		[]string{"docker", "--host", socket, "pull", "--quiet"})
}

func startContainerd(root, work string) (*Pulling, error) {
	config := work + "/containerd.toml"
	text := "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n"
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	socket := work + "/containerd.sock"
	return startDaemon(work, []string{"containerd", "ctr"},
		[]string{"containerd", "--config", config, "--root", root + "/containerd", "--state", work + "/state", "--address", socket, "--log-level", "warn"},
		[]string{"ctr", "--address", socket, "version"},
		[]string{"ctr", "--address", socket, "image", "pull", "--plain-http", "--snapshotter", "overlayfs"})
}

// startDaemon starts a program and waits until a command succeeds.
func startDaemon(work string, needs, daemon, ready, pull []string) (*Pulling, error) {
	for _, program := range needs {
		if _, err := exec.LookPath(program); err != nil {
			return nil, nil
		}
	}
	log, err := os.Create(work + "/log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	failed := func(err error) error {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%w\n%s", err, text)
	}
	cmd := exec.Command(daemon[0], daemon[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop := func() error {
		cmd.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			cmd.Process.Kill()
			<-ended
		}
		return nil
	}
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := exec.Command(ready[0], ready[1:]...).Run()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			stop()
			return nil, failed(fmt.Errorf("%s does not answer", daemon[0]))
		}
	}
	return &Pulling{Daemon: cmd.Process.Pid, Stop: stop, Pull: func(ref string) error {
		if _, err := run(append(slices.Clone(pull), ref)...); err != nil {
			return failed(err)
		}
		return nil
	}}, nil
}

func startPodman(root, work string) (*Pulling, error) {
	if _, err := exec.LookPath("podman"); err != nil {
		return nil, nil
	}
	// A trust policy of our own: the machine need not have one.
	policy := work + "/policy.json"
	if err := os.WriteFile(policy, []byte(`{"default": [{"type": "insecureAcceptAnything"}]}`), 0o644); err != nil {
		return nil, err
	}
	// Blobs that are large go through TMPDIR.
	tmp := root + "/tmp"
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return nil, err
	}
	podman := []string{"env", "TMPDIR=" + tmp, "podman", "--root", root + "/podman", "--runroot", work + "/run", "--tmpdir", work + "/libpod",
		"--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "none"}
	// The first command makes the store.
	if _, err := run(append(slices.Clone(podman), "info")...); err != nil {
		return nil, err
	}
	return &Pulling{Stop: func() error { return nil }, Pull: func(ref string) error {
		_, err := run(append(slices.Clone(podman), "pull", "--quiet", "--tls-verify=false", "--signature-policy", policy, ref)...)
		return err
	}}, nil
}
