package debian

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func hashOf(desc ocispec.Descriptor) (v1.Hash, error) { return v1.NewHash(desc.Digest.String()) }

// startRegistry serves a registry's storage on loopback until the test ends.
func startRegistry(t testing.TB, storage string) (host string) {
	t.Helper()
	host, stop, err := serveRegistry(t.Context(), storage)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return host
}

// serveRegistry runs Debian's docker-registry on a free port of 127.0.0.1. It dies with this process.
func serveRegistry(ctx context.Context, storage string) (host string, stop func(), err error) {
	for range 5 {
		if host, stop, err = tryRegistry(ctx, storage); err == nil {
			return host, stop, nil
		}
	}
	return "", nil, err
}

// tryRegistry fails when another process takes the port between its choice and its use.
func tryRegistry(ctx context.Context, storage string) (host string, stop func(), err error) {
	if err := os.MkdirAll(storage, 0o755); err != nil {
		return "", nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	host = listener.Addr().String()
	listener.Close()
	work, err := os.MkdirTemp("", "coracle-registry-")
	if err != nil {
		return "", nil, err
	}
	config := filepath.Join(work, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"+
		"storage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", storage, host)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		os.RemoveAll(work)
		return "", nil, err
	}
	var output strings.Builder
	cmd := exec.Command("docker-registry", "serve", config)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}

	// The signal comes when the thread that started the process ends, so one thread is kept for it.
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
		close(ended)
	}()
	if err := <-started; err != nil {
		os.RemoveAll(work)
		return "", nil, err
	}
	stop = func() {
		cmd.Process.Kill()
		<-ended
		os.RemoveAll(work)
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		response, err := client.Get("http://" + host + "/v2/")
		if err == nil {
			response.Body.Close()
			return host, stop, nil
		}
		select {
		case err := <-ended:
			os.RemoveAll(work)
			return "", nil, fmt.Errorf("docker-registry on %s ended: %w\n%s", host, err, output.String())
		case <-ctx.Done():
			stop()
			return "", nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
