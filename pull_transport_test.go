package coracle

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle/internal/registrytest"
)

// TestPullFaults: a registry that misbehaves gives a typed error in bounded time and leaves nothing behind.
func TestPullFaults(t *testing.T) {
	notExist, permission, late := fs.ErrNotExist, fs.ErrPermission, os.ErrDeadlineExceeded
	tests := []pullFault{
		{"no such image", "/manifests/", registrytest.Status(404, ""), notExist, "manifest", 404},
		{"forbidden", "/manifests/", registrytest.Status(403, ""), permission, "manifest", 403},
		{"server error", "/manifests/", registrytest.Status(500, ""), nil, "manifest", 500},
		{"manifest altered", "/manifests/", registrytest.Altered, ErrCorrupt, "manifest", 0},
		{"manifest truncated", "/manifests/", registrytest.Truncated, nil, "manifest", 0},
		{"manifest short", "/manifests/", registrytest.ShortWithoutLength, ErrCorrupt, "manifest", 0},
		{"manifest endless", "/manifests/", registrytest.Endless, ErrInvalid, "manifest", 0},
		{"manifest hangs", "/manifests/", registrytest.Hang, late, "manifest", 0},
		{"manifest hangs half-way", "/manifests/", registrytest.HangBody, late, "manifest", 0},
		{"manifest trickles", "/manifests/", registrytest.SlowLoris(20 * time.Millisecond), late, "manifest", 0},
		{"manifest redirects for ever", "/manifests/", registrytest.RedirectLoop, nil, "manifest", 0},
		{"media type missing and contradicted", "/manifests/", registrytest.MediaType(ocispec.MediaTypeImageIndex), ErrInvalid, "manifest", 0},
		{"media type unknown", "/manifests/", registrytest.MediaType("application/vnd.oci.artifact+json"), ErrInvalid, "manifest", 0},
		{"config missing", "config", registrytest.Status(404, ""), notExist, "config", 404},
		{"config altered", "config", registrytest.Altered, ErrCorrupt, "config", 0},
		{"config endless", "config", registrytest.Endless, ErrCorrupt, "config", 0},
		{"config reset", "config", registrytest.Reset, nil, "config", 0},
		{"layer missing", "layer", registrytest.Status(404, ""), notExist, "layer", 404},
		{"layer altered", "layer", registrytest.Altered, ErrCorrupt, "layer", 0},
		{"layer truncated", "layer", registrytest.Truncated, nil, "layer", 0},
		{"layer short", "layer", registrytest.ShortWithoutLength, ErrCorrupt, "layer", 0},
		{"layer endless", "layer", registrytest.Endless, ErrCorrupt, "layer", 0},
		{"layer reset", "layer", registrytest.Reset, nil, "layer", 0},
		{"layer hangs", "layer", registrytest.Hang, late, "layer", 0},
		{"layer hangs half-way", "layer", registrytest.HangBody, late, "layer", 0},
		{"layer trickles", "layer", registrytest.SlowLoris(20 * time.Millisecond), late, "layer", 0},
		{"layer redirects for ever", "layer", registrytest.RedirectLoop, nil, "layer", 0},
		{"all layers missing", "/blobs/", registrytest.Status(404, ""), notExist, "config", 404},
		{"greeting fails", "/v2/", registrytest.Status(500, ""), nil, "registry", 500},
		{"greeting hangs", "/v2/", registrytest.Hang, late, "registry", 0},
		{"greeting endless", "/v2/", registrytest.Endless, nil, "manifest", 0},
		{"busy for too long", "/manifests/", registrytest.Status(429, "3600"), nil, "manifest", 429},
		{"busy again and again", "layer", registrytest.Status(503, "0"), nil, "layer", 503},
	}
	for _, tt := range tests {
		t.Run(tt.name, tt.run)
	}
}

// pullFault is a registry that misbehaves.
type pullFault struct {
	name   string
	path   string // of the requests that fail: manifests/, blobs/, or the config's or last layer's own
	fault  func(http.ResponseWriter, *http.Request, http.Handler)
	want   error // nil: any
	part   string
	status int
}

func (tt pullFault) run(t *testing.T) {
	noLeftGoroutines(t)
	reg := newRegistry(t)
	e := newImageEngine(t, RegistryConfig{IdleTimeout: 300 * time.Millisecond})
	src := registrytest.RandomImage(30, 3, 20_000)
	reg.Push("app", "v1", src)
	m, _ := src.Manifest()
	path := tt.path
	var wantDigest digest.Digest
	switch path {
	case "config":
		path, wantDigest = string(m.Config.Digest), m.Config.Digest
	case "layer":
		path, wantDigest = string(m.Layers[2].Digest), m.Layers[2].Digest
	}
	reg.Inject(path, -1, tt.fault)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := e.Pull(ctx, reg.Host+"/app:v1", nil)
	var op *OpError
	if !errors.As(err, &op) || op.Op != "pull" || op.Kind != "image" || op.Name != reg.Host+"/app:v1" {
		t.Fatalf("got %v", err)
	}
	t.Log(err)
	if tt.want != nil && !errors.Is(err, tt.want) {
		t.Errorf("%v does not match %v", err, tt.want)
	}
	var pe *PullError
	if !errors.As(err, &pe) {
		t.Fatalf("%v is no PullError", err)
	}
	if pe.Registry != reg.Host || pe.Part != tt.part || pe.Status != tt.status {
		t.Errorf("%+v", pe)
	}
	if wantDigest != "" && !strings.Contains(err.Error(), string(wantDigest)) {
		t.Errorf("the error does not name %s", wantDigest)
	}
	if ctx.Err() != nil {
		t.Error("it took until the context ended")
	}
	checkUntouched(t, e)

	// Once the registry is well again the same engine gets the image.
	reg.Heal()
	if _, err := e.Pull(t.Context(), reg.Host+"/app:v1", nil); err != nil {
		t.Error(err)
	}
	checkStore(t, e)
}

// TestPullRetries: a registry that says when to come back is asked again.
func TestPullRetries(t *testing.T) {
	reg := newRegistry(t)
	e := newImageEngine(t, RegistryConfig{})
	reg.Push("app", "v1", registrytest.RandomImage(40, 1, 1000))
	for _, path := range []string{"/manifests/", "/blobs/"} {
		for _, status := range []int{429, 503} {
			reg.Inject(path, 1, registrytest.Status(status, "0"))
		}
	}
	if _, err := e.Pull(t.Context(), reg.Host+"/app:v1", nil); err != nil {
		t.Error(err)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tests := []struct {
		header string
		wait   time.Duration
		ok     bool
	}{
		{"", 0, false}, {"x", 0, false}, {"-1", 0, false}, {"99999999999999999999", 0, false},
		{"0", 0, true}, {"7", 7 * time.Second, true}, {"31", 31 * time.Second, false},
		{"Fri, 02 Jan 2026 03:04:15 GMT", 10 * time.Second, true}, {"Fri, 02 Jan 2026 03:04:00 GMT", 0, true},
		{"Fri, 02 Jan 2026 04:04:00 GMT", 59*time.Minute + 55*time.Second, false},
	}
	for _, tt := range tests {
		if wait, ok := retryAfter(tt.header, now); ok != tt.ok || ok && wait != tt.wait {
			t.Errorf("%q: %v, %v", tt.header, wait, ok)
		}
	}
}

func TestPullUnreachable(t *testing.T) {
	noLeftGoroutines(t)
	reg := newRegistry(t)
	e := newImageEngine(t, RegistryConfig{})
	reg.Close()
	_, err := e.Pull(t.Context(), reg.Host+"/app:v1", nil)
	var pe *PullError
	if !errors.As(err, &pe) || pe.Part != "registry" {
		t.Errorf("got %v", err)
	}
}

// TestPlainHTTP: nothing is said in clear to another machine, unless it is named.
func TestPlainHTTP(t *testing.T) {
	reg := newRegistry(t)
	reg.Push("app", "v1", registrytest.RandomImage(60, 1, 100))
	// Every host name leads to the registry, as a proxy would have it.
	to := &http.Transport{DialContext: dialer(reg.Host)}
	t.Cleanup(to.CloseIdleConnections)
	tests := []struct {
		name, host string
		config     RegistryConfig
		opts       PullOptions
		ok         bool
	}{
		{"loopback", reg.Host, RegistryConfig{}, PullOptions{}, true},
		{"localhost", reg.Localhost(), RegistryConfig{}, PullOptions{}, true},
		{"other loopback address", "127.8.8.8:80", RegistryConfig{}, PullOptions{}, true},
		{"IPv6 loopback", "[::1]:80", RegistryConfig{}, PullOptions{}, true},
		{"private address", "10.1.2.3:80", RegistryConfig{}, PullOptions{}, false},
		{"name", "registry.example:80", RegistryConfig{}, PullOptions{}, false},
		{"name below localhost", "a.localhost:80", RegistryConfig{}, PullOptions{}, false},
		{"allowed for the engine", "registry.example:80", RegistryConfig{PlainHTTP: []string{"registry.example:80"}}, PullOptions{}, true},
		{"other one allowed", "registry.example:80", RegistryConfig{PlainHTTP: []string{"registry.example"}}, PullOptions{}, false},
		{"allowed for the call", "registry.example:80", RegistryConfig{}, PullOptions{PlainHTTP: true}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.config.Transport = to
			e := newImageEngine(t, tt.config)
			reg.Requests()
			_, err := e.Pull(t.Context(), tt.host+"/app:v1", &tt.opts)
			if (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
			if !tt.ok {
				if q := reg.Requests(); len(q) != 0 {
					t.Errorf("it was asked in clear: %v", q)
				}
			}
		})
	}
}
