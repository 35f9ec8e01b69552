package coracle_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"testing/fstest"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/registrytest"
)

// openExample opens an engine on a directory of its own, and returns what removes both.
func openExample(ctx context.Context, config coracle.Config) (*coracle.Engine, func()) {
	dir, err := os.MkdirTemp("", "coracle-example-")
	if err != nil {
		log.Fatal(err)
	}
	config.Root = dir
	eng, err := coracle.Open(ctx, config)
	if err != nil {
		log.Fatal(err)
	}
	return eng, func() {
		if err := errors.Join(eng.Close(), os.RemoveAll(dir)); err != nil {
			log.Fatal(err)
		}
	}
}

// serveExample is a registry with an image, on this machine.
func serveExample() *registrytest.Registry {
	reg := registrytest.New()
	reg.Push("team/app", "v1", registrytest.RandomImage(1, 2, 1000))
	return reg
}

func ExampleEngine_Pull() {
	ctx := context.Background()
	reg := serveExample()
	defer reg.Close()
	eng, remove := openExample(ctx, coracle.Config{})
	defer remove()

	img, err := eng.Pull(ctx, reg.Host+"/team/app:v1", &coracle.PullOptions{Credentials: &coracle.Credentials{}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(img.Layers()), "layers")

	_, err = eng.Pull(ctx, reg.Host+"/team/app:v2", &coracle.PullOptions{Credentials: &coracle.Credentials{}})
	fmt.Println("no such tag:", errors.Is(err, fs.ErrNotExist))
	// Output:
	// 2 layers
	// no such tag: true
}

func ExamplePullOptions() {
	ctx := context.Background()
	reg := serveExample()
	defer reg.Close()
	eng, remove := openExample(ctx, coracle.Config{})
	defer remove()

	done := 0
	_, err := eng.Pull(ctx, reg.Host+"/team/app:v1", &coracle.PullOptions{
		Policy:      coracle.PullMissing,
		Credentials: &coracle.Credentials{}, // anonymous
		Progress: func(p coracle.Progress) {
			if p.Phase == coracle.PhaseDone {
				done++
			}
		},
	})
	fmt.Println(done, "layers are done,", err)
	// Output: 2 layers are done, <nil>
}

func ExampleProgress() {
	show := func(p coracle.Progress) {
		fmt.Printf("layer %d of %d: %s, %d of %d bytes\n", p.Index+1, p.Layers, p.Phase, p.Current, p.Total)
	}
	show(coracle.Progress{Index: 1, Layers: 3, Phase: coracle.PhaseDownloading, Current: 512, Total: 2048})
	// Output: layer 2 of 3: downloading, 512 of 2048 bytes
}

func ExampleRegistryConfig() {
	ctx := context.Background()
	reg := serveExample()
	defer reg.Close()
	reg.RequireBasic("me", "secret")
	eng, remove := openExample(ctx, coracle.Config{Registry: coracle.RegistryConfig{
		// In place of what docker login stored.
		Keychain: coracle.KeychainFunc(func(_ context.Context, ref coracle.Reference) (coracle.Credentials, error) {
			if ref.Registry == reg.Host {
				return coracle.Credentials{Username: "me", Password: "secret"}, nil
			}
			return coracle.Credentials{}, nil
		}),
	}})
	defer remove()

	_, err := eng.Pull(ctx, reg.Host+"/team/app:v1", nil)
	fmt.Println(err)
	// Output: <nil>
}

func ExamplePullError() {
	ctx := context.Background()
	reg := serveExample()
	defer reg.Close()
	reg.RequireBasic("me", "secret")
	eng, remove := openExample(ctx, coracle.Config{})
	defer remove()

	_, err := eng.Pull(ctx, reg.Host+"/team/app:v1", &coracle.PullOptions{Credentials: &coracle.Credentials{}})
	var pe *coracle.PullError
	if errors.As(err, &pe) {
		fmt.Println(pe.Part, pe.Status, errors.Is(err, fs.ErrPermission))
	}
	// Output: manifest 401 true
}

func ExamplePlatformError() {
	ctx := context.Background()
	reg := serveExample()
	defer reg.Close()
	eng, remove := openExample(ctx, coracle.Config{})
	defer remove()

	_, err := eng.Pull(ctx, reg.Host+"/team/app:v1", &coracle.PullOptions{Platform: "linux/s390x", Credentials: &coracle.Credentials{}})
	var pe *coracle.PlatformError
	if errors.As(err, &pe) {
		fmt.Println("there is no", pe.Want)
	}
	// Output: there is no linux/s390x
}

func ExampleMediaTypeError() {
	ctx := context.Background()
	reg := serveExample()
	defer reg.Close()
	reg.PutManifest("charts/web", "v1", "application/vnd.oci.image.manifest.v1+json",
		[]byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json"},"layers":[]}`))
	eng, remove := openExample(ctx, coracle.Config{})
	defer remove()

	_, err := eng.Pull(ctx, reg.Host+"/charts/web:v1", &coracle.PullOptions{Credentials: &coracle.Credentials{}})
	var me *coracle.MediaTypeError
	if errors.As(err, &me) {
		fmt.Println(me)
	}
	// Output: config of media type "application/vnd.cncf.helm.config.v1+json": this is no container image
}

func ExampleDockerKeychain() {
	dir, err := os.MkdirTemp("", "coracle-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	config := []byte(`{"auths": {"registry.example": {"auth": "bWU6c2VjcmV0"}}}`)
	if err := os.WriteFile(dir+"/config.json", config, 0o600); err != nil {
		log.Fatal(err)
	}
	ref, err := coracle.ParseReference("registry.example/app")
	if err != nil {
		log.Fatal(err)
	}
	creds, err := coracle.DockerKeychain{Dir: dir}.Credentials(context.Background(), ref)
	fmt.Println(creds.Username, creds, err)
	// Output: me redacted <nil>
}

func ExampleCredentials() {
	c := coracle.Credentials{Username: "me", Password: "secret"}
	fmt.Println(c, coracle.Credentials{})
	// Output: redacted anonymous
}

func ExampleKeychainFunc() {
	var keys coracle.Keychain = coracle.KeychainFunc(func(context.Context, coracle.Reference) (coracle.Credentials, error) {
		return coracle.Credentials{RegistryToken: os.Getenv("CI_TOKEN")}, nil
	})
	creds, err := keys.Credentials(context.Background(), coracle.Reference{Registry: "quay.io", Repository: "app"})
	fmt.Println(creds, err)
	// Output: anonymous <nil>
}

// ImageFromFS needs root at present, as the files of an image belong to root.
func ExampleEngine_ImageFromFS() {
	ctx := context.Background()
	eng, err := coracle.Open(ctx, coracle.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer eng.Close()

	files := fstest.MapFS{ // or an embed.FS, os.DirFS("dir"), a zip.Reader
		"bin/hello": {Data: []byte("#!/bin/sh\necho hello\n")},
	}
	img, err := eng.ImageFromFS(ctx, "hello:v1", files, &coracle.ImageFSOptions{
		Config: coracle.ImageConfig{Entrypoint: []string{"/bin/hello"}, Env: []string{"LANG=C"}},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(img.Ref(), img.Platform(), img.Config().Config.Entrypoint)
}

func ExampleImage() {
	ctx := context.Background()
	reg := serveExample()
	defer reg.Close()
	eng, remove := openExample(ctx, coracle.Config{})
	defer remove()
	pulled, err := eng.Pull(ctx, reg.Host+"/team/app:v1", &coracle.PullOptions{Credentials: &coracle.Credentials{}})
	if err != nil {
		log.Fatal(err)
	}

	img, err := eng.Image(ctx, pulled.ID().Encoded()[:12]) // by the beginning of its id
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(img.Refs()), len(img.Layers()), img.Digest() == pulled.Digest())

	_, err = eng.Image(ctx, "other")
	fmt.Println(errors.Is(err, fs.ErrNotExist))
	// Output:
	// 1 2 true
	// true
}

func ExampleEngine_Images() {
	ctx := context.Background()
	reg := serveExample()
	defer reg.Close()
	eng, remove := openExample(ctx, coracle.Config{})
	defer remove()
	if _, err := eng.Pull(ctx, reg.Host+"/team/app:v1", &coracle.PullOptions{Credentials: &coracle.Credentials{}}); err != nil {
		log.Fatal(err)
	}
	images, err := eng.Images(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, img := range images {
		fmt.Println(img.Ref() == reg.Host+"/team/app:v1")
	}
	// Output: true
}
