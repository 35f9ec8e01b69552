package coracle_test

import (
	"testing"

	"github.com/coracle-dev/coracle"
)

// What TestModel has found, each by itself.

// TestBlobOfLayerThatStayed: a container keeps the layers of an image that is removed, but not its blobs. When the image
// is made again all of it has to be there.
func TestBlobOfLayerThatStayed(t *testing.T) {
	ctx, eng := t.Context(), engine(t)
	img := toolImage(t, eng, nil)
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool"})
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Remove(ctx, &coracle.ImageRemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	toolImage(t, eng, nil)
	report, err := eng.Check(ctx)
	if err != nil || len(report.Damage) > 0 {
		t.Errorf("damage: %v, %v", report.Damage, err)
	}
	if err := c.Remove(ctx, nil); err != nil {
		t.Error(err)
	}
}
