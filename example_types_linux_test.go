package coracle_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"testing/fstest"
	"time"

	"github.com/coracle-dev/coracle"
)

func ExamplePullPolicy() {
	ctx := context.Background()
	reg := serveExample()
	defer reg.Close()
	eng, remove := openExample(ctx, coracle.Config{})
	defer remove()

	for _, policy := range []coracle.PullPolicy{coracle.PullNever, coracle.PullMissing, coracle.PullNever} {
		_, err := eng.Pull(ctx, reg.Host+"/team/app:v1", &coracle.PullOptions{Policy: policy, Credentials: &coracle.Credentials{}})
		fmt.Printf("%s: missing: %t\n", policy, errors.Is(err, fs.ErrNotExist))
	}
	// Output:
	// never: missing: true
	// missing: missing: false
	// never: missing: false
}

// Two programs that make an image of the same files get the same one, unless it is dated.
func ExampleImageFSOptions() {
	ctx := context.Background()
	eng, remove := openExample(ctx, coracle.Config{})
	defer remove()

	files := fstest.MapFS{"index.html": {Data: []byte("<h1>boat</h1>"), ModTime: time.Now()}}
	var ids []string
	for _, opts := range []*coracle.ImageFSOptions{
		{Platform: "linux/arm64"},
		{Platform: "linux/arm64"},
		{Platform: "linux/arm64", Created: time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)},
	} {
		img, err := eng.ImageFromFS(ctx, "site", files, opts)
		if err != nil {
			log.Fatal(err)
		}
		ids = append(ids, img.ID().String())
	}
	fmt.Println(ids[0] == ids[1], ids[0] == ids[2])
	// Output: true false
}

func ExampleImageConfig() {
	ctx := context.Background()
	eng, remove := openExample(ctx, coracle.Config{})
	defer remove()

	files := fstest.MapFS{"bin/serve": {Data: []byte("#!/bin/sh\n"), Mode: 0o755}}
	img, err := eng.ImageFromFS(ctx, "web", files, &coracle.ImageFSOptions{Config: coracle.ImageConfig{
		Entrypoint:   []string{"/bin/serve"},
		Cmd:          []string{"--port", "8080"}, // ContainerSpec.Args takes its place
		Env:          []string{"LANG=C.UTF-8"},
		User:         "1000:1000",
		ExposedPorts: map[string]struct{}{"8080/tcp": {}},
		StopSignal:   "SIGINT",
	}})
	if err != nil {
		log.Fatal(err)
	}
	config := img.Config().Config
	fmt.Println(config.Entrypoint, config.Cmd, config.User, config.StopSignal)
	// Output: [/bin/serve] [--port 8080] 1000:1000 SIGINT
}

// tokens is a keychain: a token for each registry.
type tokens map[string]string

func (t tokens) Credentials(_ context.Context, ref coracle.Reference) (coracle.Credentials, error) {
	return coracle.Credentials{RegistryToken: t[ref.Registry]}, nil
}

func ExampleKeychain() {
	// For coracle.Config{Registry: coracle.RegistryConfig{Keychain: keys}}.
	var keys coracle.Keychain = tokens{"registry.example": "secret"}
	for _, name := range []string{"registry.example/team/app:v1", "alpine"} {
		ref, err := coracle.ParseReference(name)
		if err != nil {
			log.Fatal(err)
		}
		creds, err := keys.Credentials(context.Background(), ref)
		fmt.Println(ref.Registry, creds, err)
	}
	// Output:
	// registry.example redacted <nil>
	// docker.io anonymous <nil>
}

func ExampleProgressPhase() {
	ctx := context.Background()
	reg := serveExample()
	defer reg.Close()
	eng, remove := openExample(ctx, coracle.Config{})
	defer remove()

	phases := map[int]coracle.ProgressPhase{} // by layer
	_, err := eng.Pull(ctx, reg.Host+"/team/app:v1", &coracle.PullOptions{
		Credentials: &coracle.Credentials{},
		Progress:    func(p coracle.Progress) { phases[p.Index] = p.Phase },
	})
	fmt.Println(phases, err)
	// Output: map[0:done 1:done] <nil>
}
