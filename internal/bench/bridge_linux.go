package bench

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// DockerBridge measures `docker run --rm` of a program, on its default bridge and with a published port, by a daemon of its own
// in a network namespace of its own: the host's firewall is not touched.
func DockerBridge(b *testing.B, program []byte) {
	for _, name := range []string{"dockerd", "docker", "containerd", "unshare", "ip"} {
		if _, err := exec.LookPath(name); err != nil {
			b.Skipf("there is no %s", name)
		}
	}
	require(b)
	work, err := os.MkdirTemp("", "docker") // a socket's path is short
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(work) })
	disk := NewDisk(b, 1<<30)
	root, err := disk.Mount()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { disk.Unmount() })
	socket := "unix://" + work + "/docker.sock"
	daemon, err := startDaemon(work, []string{"dockerd"},
		[]string{"unshare", "--net", "sh", "-c", `ip link set lo up && exec "$0" "$@"`, "dockerd", "--host", socket, "--data-root", filepath.Join(root, "docker"),
			"--exec-root", work + "/exec", "--pidfile", work + "/pid", "--storage-driver", "overlay2"},
		[]string{"docker", "--host", socket, "version"}, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { daemon.Stop() })
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	if err := w.WriteHeader(&tar.Header{Name: "bin/true", Mode: 0o755, Size: int64(len(program)), Typeflag: tar.TypeReg}); err != nil {
		b.Fatal(err)
	}
	w.Write(program)
	w.Close()
	load := exec.Command("docker", "--host", socket, "import", "-", "true")
	load.Stdin = &image
	if out, err := load.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	Each(b, 0, func() error {
		out, err := exec.Command("docker", "--host", socket, "run", "--rm", "--publish", "127.0.0.1::80", "--memory", "256m", "--pids-limit", "128", "true", "/bin/true").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}
