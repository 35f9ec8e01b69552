package coracle_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/coracle-dev/coracle"
)

// pulledExample opens an engine on a directory of its own with an image of two layers in it.
func pulledExample(ctx context.Context) (eng *coracle.Engine, img *coracle.Image, done func()) {
	reg := serveExample()
	eng, remove := openExample(ctx, coracle.Config{})
	img, err := eng.Pull(ctx, reg.Host+"/team/app:v1", &coracle.PullOptions{Credentials: &coracle.Credentials{}})
	if err != nil {
		log.Fatal(err)
	}
	return eng, img, func() {
		remove()
		reg.Close()
	}
}

func ExampleImage_Tag() {
	ctx := context.Background()
	eng, img, done := pulledExample(ctx)
	defer done()

	if err := img.Tag(ctx, "app:tested"); err != nil {
		log.Fatal(err)
	}
	same, err := eng.Image(ctx, "app:tested")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(same.Ref(), same.ID() == img.ID())
	// Output: docker.io/library/app:tested true
}

func ExampleImageRemoveOptions() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	if _, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "hello"}); err != nil {
		log.Fatal(err)
	}
	img, err := eng.Image(ctx, "hello")
	if err != nil {
		log.Fatal(err)
	}
	err = img.Remove(ctx, nil)
	fmt.Println("in use:", errors.Is(err, coracle.ErrInUse))
	// The container keeps its files.
	fmt.Println(img.Remove(ctx, &coracle.ImageRemoveOptions{Force: true}))
	// Output:
	// in use: true
	// <nil>
}

func ExampleInUseError() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	if _, err := eng.Create(ctx, &coracle.ContainerSpec{Name: "web", Image: "hello"}); err != nil {
		log.Fatal(err)
	}
	img, err := eng.Image(ctx, "hello")
	if err != nil {
		log.Fatal(err)
	}
	var inUse *coracle.InUseError
	if errors.As(img.Remove(ctx, nil), &inUse) {
		fmt.Println(inUse.Kind, inUse.Users)
	}
	// Output: container [web]
}

func ExampleImagePruneOptions() {
	ctx := context.Background()
	eng, _, done := pulledExample(ctx)
	defer done()

	report, err := eng.PruneImages(ctx, nil) // only those without a name
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(report.Images))
	report, err = eng.PruneImages(ctx, &coracle.ImagePruneOptions{All: true})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(report.Images), report.Layers)
	// Output:
	// 0
	// 1 2
}

func ExamplePruneFilter() {
	ctx := context.Background()
	eng, _, done := pulledExample(ctx)
	defer done()

	report, err := eng.PruneImages(ctx, &coracle.ImagePruneOptions{All: true, PruneFilter: coracle.PruneFilter{
		Until:     time.Now().Add(-24 * time.Hour),
		NotLabels: map[string]string{"keep": ""},
		Labels:    map[string]string{"team": "a"}, // which the image has not
	}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(report)
	// Output: 0 images, 0 containers, 0 layers and 0 blobs with 0 bytes
}

func ExampleContainerPruneOptions() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	for _, job := range []string{"old", "new"} {
		if _, err := eng.Create(ctx, &coracle.ContainerSpec{Name: job, Image: "hello", Labels: map[string]string{"job": job}}); err != nil {
			log.Fatal(err)
		}
	}
	report, err := eng.PruneContainers(ctx, &coracle.ContainerPruneOptions{PruneFilter: coracle.PruneFilter{Labels: map[string]string{"job": "old"}}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(report.Containers)
	// Output: [old]
}

func ExamplePruneReport() {
	ctx := context.Background()
	eng, img, done := pulledExample(ctx)
	defer done()

	if err := img.Untag(ctx, img.Ref()); err != nil {
		log.Fatal(err)
	}
	report, err := eng.PruneImages(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(report.Images[0] == string(img.Digest()), report.Layers, report.Blobs)
	// Output: true 2 4
}

func ExampleDiskUsage() {
	ctx := context.Background()
	eng, _, done := pulledExample(ctx)
	defer done()

	usage, err := eng.DiskUsage(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(usage.Images), usage.Layers, usage.Unused)
	// Output: 1 2000 0
}

func ExampleImageUsage() {
	ctx := context.Background()
	eng, img, done := pulledExample(ctx)
	defer done()

	usage, err := eng.DiskUsage(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, u := range usage.Images {
		fmt.Println(u.ID == img.ID(), u.Shared, u.Unique == u.Size, len(u.Containers))
	}
	// Output: true 0 true 0
}

func ExampleContainerUsage() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	if _, err := eng.Create(ctx, &coracle.ContainerSpec{Name: "idle", Image: "hello"}); err != nil {
		log.Fatal(err)
	}
	usage, err := eng.DiskUsage(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, u := range usage.Containers {
		fmt.Println(u.Name, "has written", u.Size)
	}
	// Output: idle has written 0
}

func ExampleCheckReport() {
	ctx := context.Background()
	eng, _, done := pulledExample(ctx)
	defer done()

	report, err := eng.Check(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(report.References, report.Blobs, report.Layers, len(report.Damage))
	// Output: 1 4 2 0
}

// loseBlob removes the blob of an image's configuration, as a careless administrator would.
func loseBlob(eng *coracle.Engine, img *coracle.Image) {
	if err := os.Remove(filepath.Join(eng.Root(), "store", "blobs", "sha256", img.ID().Encoded())); err != nil {
		log.Fatal(err)
	}
}

func ExampleDamage() {
	ctx := context.Background()
	eng, img, done := pulledExample(ctx)
	defer done()
	loseBlob(eng, img)

	report, err := eng.Check(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, d := range report.Damage {
		fmt.Println(d.Kind, d.Name == string(img.ID()), errors.Is(d, os.ErrNotExist))
	}
	// Output: image true true
}

func ExampleDamageKind() {
	ctx := context.Background()
	eng, img, done := pulledExample(ctx)
	defer done()
	loseBlob(eng, img)

	report, err := eng.Check(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, d := range report.Damage {
		switch d.Kind {
		case coracle.DamagedContainer, coracle.DamagedSnapshot:
			fmt.Println("a container is lost")
		default:
			fmt.Println("a pull may help")
		}
	}
	// Output: a pull may help
}

func ExampleRepairOptions() {
	ctx := context.Background()
	eng, img, done := pulledExample(ctx)
	defer done()
	loseBlob(eng, img)

	report, err := eng.Repair(ctx, &coracle.RepairOptions{Credentials: &coracle.Credentials{}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(report.Repaired), len(report.Failed))
	// Output: 1 0
}

func ExampleRepairReport() {
	ctx := context.Background()
	eng, _, done := pulledExample(ctx)
	defer done()

	report, err := eng.Repair(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, d := range report.Failed {
		fmt.Println("still damaged:", d)
	}
	fmt.Println(len(report.Repaired), len(report.Removed))
	// Output: 0 0
}
