package coracle_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/testtool"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// startDockerd runs Debian's dockerd, without network and below a directory of its own, until the test ends. It returns
// a function that runs the docker command.
func startDockerd(t *testing.T) func(stdin []byte, args ...string) string {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.NotInVM(t, "there is no Docker")
	for _, program := range []string{"dockerd", "docker", "containerd"} {
		if _, err := exec.LookPath(program); err != nil {
			testutil.Skip(t, "needs Docker: "+err.Error())
		}
	}
	dir := t.TempDir()
	socket := "unix://" + dir + "/docker.sock"
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	daemon := exec.Command("dockerd", "--host", socket, "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid",
		"--bridge", "none", "--iptables=false", "--ip-forward=false", "--storage-driver", "vfs", "--cgroup-parent", "/coracle-docker-test")
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		daemon.Process.Signal(os.Interrupt)
		ended := make(chan error, 1)
		go func() { ended <- daemon.Wait() }()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			daemon.Process.Kill()
			<-ended
		}
		for _, pattern := range []string{"/sys/fs/cgroup/*/coracle-docker-test", "/sys/fs/cgroup/coracle-docker-test"} {
			groups, _ := filepath.Glob(pattern)
			for _, g := range groups {
				os.Remove(g)
			}
		}
	})
	docker := func(stdin []byte, args ...string) (string, error) {
		cmd := exec.Command("docker", append([]string{"--host", socket}, args...)...)
		cmd.Stdin = bytes.NewReader(stdin)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return stderr.String(), err
		}
		return string(out), nil
	}
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := docker(nil, "version"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			b, _ := os.ReadFile(dir + "/log")
			t.Fatalf("dockerd does not answer:\n%s", b)
		}
	}
	return func(stdin []byte, args ...string) string {
		t.Helper()
		out, err := docker(stdin, args...)
		if err != nil {
			b, _ := os.ReadFile(dir + "/log")
			t.Fatalf("docker %q: %v\n%s\n%s", args, err, out, b)
		}
		return out
	}
}

// tarOf archives a tree.
func tarOf(t *testing.T, fsys fs.FS) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(fsys); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestLikeDocker runs the same program in a container of Docker and in one of ours and compares what it sees.
func TestLikeDocker(t *testing.T) {
	docker := startDockerd(t)
	docker(tarOf(t, testtool.FS(t, nil)), "import", "-", "tool")
	// What Docker 20.10 masks and makes read-only, and what it leaves alone.
	paths := []string{
		"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
		"/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
		"/proc", "/sys", "/sys/fs/cgroup", "/dev", "/dev/shm", "/dev/mqueue", "/dev/pts", "/dev/null", "/dev/console", "/dev/fuse",
		"/proc/meminfo", "/proc/self", "/proc/sys/kernel", "/sys/kernel", "/sys/class", "/etc/hosts", "/",
	}
	eng := engine(t)
	toolImage(t, eng, nil)
	for _, test := range []struct {
		name   string
		spec   coracle.ContainerSpec
		docker []string
	}{
		{"default", coracle.ContainerSpec{}, nil},
		{"user", coracle.ContainerSpec{User: "alice"}, []string{"--user", "alice"}},
		{"user and group", coracle.ContainerSpec{User: "4711:50"}, []string{"--user", "4711:50"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := append([]string{"run", "--rm", "--network", "none", "--cgroupns", "private", "--hostname", "boat"}, test.docker...)
			var theirs testtool.Report
			out := docker(nil, append(append(args, "tool", "/tool", "report"), paths...)...)
			if err := json.Unmarshal([]byte(out), &theirs); err != nil {
				t.Fatal(err)
			}
			test.spec.Hostname = "boat"
			ours := report(t, eng, test.spec, paths...)

			for _, field := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Seccomp", "NoNewPrivs", "SigIgn", "SigBlk", "Uid", "Gid", "Groups"} {
				if ours.Status[field] != theirs.Status[field] {
					t.Errorf("%s is %s, Docker has %s", field, ours.Status[field], theirs.Status[field])
				}
			}
			for _, path := range paths {
				if a, b := ours.MaskedOrRO[path], theirs.MaskedOrRO[path]; a != b && !stricter(path, a, b) {
					t.Errorf("%s is %s, Docker has it %s", path, a, b)
				}
			}
			if !slices.Equal(ours.FDs, theirs.FDs) || ours.PID != theirs.PID || ours.SID != theirs.SID || ours.Umask != theirs.Umask ||
				ours.Cwd != theirs.Cwd || ours.Hostname != theirs.Hostname || !slices.Equal(ours.Processes, theirs.Processes) {
				t.Errorf("we: fds %v pid %d sid %d umask %o cwd %s host %s processes %v\nDocker: fds %v pid %d sid %d umask %o cwd %s host %s processes %v",
					ours.FDs, ours.PID, ours.SID, ours.Umask, ours.Cwd, ours.Hostname, ours.Processes,
					theirs.FDs, theirs.PID, theirs.SID, theirs.Umask, theirs.Cwd, theirs.Hostname, theirs.Processes)
			}
			slices.Sort(ours.Env)
			slices.Sort(theirs.Env)
			if !slices.Equal(ours.Env, theirs.Env) {
				t.Errorf("environment %q, Docker's %q", ours.Env, theirs.Env)
			}
			for i, m := range theirs.Mounts {
				// The one difference that is meant, see stricter.
				theirs.Mounts[i] = strings.Replace(m, " /sys/fs/cgroup rw,", " /sys/fs/cgroup ro,", 1)
			}
			if a, b := mountPoints(ours.Mounts), mountPoints(theirs.Mounts); !slices.Equal(a, b) {
				t.Errorf("mounts\n%s\nDocker's\n%s", strings.Join(a, "\n"), strings.Join(b, "\n"))
			}
		})
	}
}

// stricter reports whether a difference is the one that is meant: with a private cgroup namespace and cgroup v1, Docker
// 20.10 leaves the tmpfs that holds the hierarchies' mount points writable although its mount says "ro".
func stricter(path, ours, theirs string) bool {
	return path == "/sys/fs/cgroup" && ours == "read-only" && theirs == "writable"
}

// mountPoints lists where something is mounted, of what type and with which flags, but for masks and read-only paths,
// which are compared by what they do.
func mountPoints(mountinfo []string) []string {
	var points []string
	for _, line := range mountinfo {
		f := strings.Fields(line)
		dash := slices.Index(f, "-")
		if dash < 0 || len(f) < dash+2 {
			continue
		}
		point, flags, kind := f[4], f[5], f[dash+1]
		if point == "/" || strings.HasPrefix(point, "/proc/") || strings.HasPrefix(point, "/sys/firmware") || strings.HasPrefix(point, "/sys/devices") {
			continue
		}
		if strings.HasPrefix(point, "/etc/") {
			kind = "file" // the filesystem of whoever keeps it
		}
		points = append(points, point+" "+kind+" "+flags)
	}
	slices.Sort(points)
	return points
}
