package registrytest_test

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/coracle-dev/coracle/internal/registrytest"
)

// TestAgainstClient: a client that is not ours finds nothing to complain about in an image that is served.
func TestAgainstClient(t *testing.T) {
	for _, docker := range []bool{false, true} {
		reg := registrytest.New()
		t.Cleanup(reg.Close)
		src := registrytest.RandomImage(1, 2, 1000)
		src.Layers = src.Layers[:1] // the library knows gzip only
		src.Config.RootFS.DiffIDs = src.Config.RootFS.DiffIDs[:1]
		src.Docker = docker
		desc := reg.Push("a/b", "v1", src)
		reg.PushIndex("a/b", "v2", desc)
		for _, tag := range []string{"v1", "v2"} {
			ref, err := name.ParseReference(reg.Host + "/a/b:" + tag)
			if err != nil {
				t.Fatal(err)
			}
			img, err := remote.Image(ref, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Image(img); err != nil {
				t.Error(err)
			}
			if d, err := img.Digest(); err != nil || d.String() != string(desc.Digest) {
				t.Errorf("digest %v, %v", d, err)
			}
		}
	}
}

// TestFaultsEnd: a fault that was injected a number of times is over after that.
func TestFaultsEnd(t *testing.T) {
	reg := registrytest.New()
	t.Cleanup(reg.Close)
	reg.Inject("/v2/", 1, registrytest.Status(503, "7"))
	for _, want := range []int{503, 200, 200} {
		resp, err := http.Get(reg.URL() + "/v2/")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("status %d, want %d", resp.StatusCode, want)
		}
	}
}

func Example() {
	reg := registrytest.New()
	defer reg.Close()
	reg.Push("team/app", "v1", registrytest.RandomImage(1, 3, 1000))
	reg.Inject("/blobs/", 1, registrytest.Truncated) // the first blob comes half-way

	resp, err := http.Get(reg.URL() + "/v2/team/app/manifests/v1")
	if err != nil {
		fmt.Println(err)
		return
	}
	resp.Body.Close()
	fmt.Println(resp.StatusCode, resp.Header.Get("Content-Type"))
	// Output: 200 application/vnd.oci.image.manifest.v1+json
}
