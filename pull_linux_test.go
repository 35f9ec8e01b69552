package coracle

import (
	"errors"
	"log/slog"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/registrytest"
	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/layerfs"
)

// TestPullFullDisk: no space is an error that says so, leaves nothing, and is over when there is space.
func TestPullFullDisk(t *testing.T) {
	testutil.RequireRoot(t)
	noLeftGoroutines(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512k,mode=700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	store, err := layerfs.OpenStore(dir+"/store", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	e := &Engine{config: Config{Registry: RegistryConfig{Keychain: anonymous}}, log: slog.New(slog.DiscardHandler), store: store}
	reg := newRegistry(t)
	reg.Push("app", "v1", registrytest.RandomImage(90, 2, 500_000))
	if _, err := e.Pull(t.Context(), reg.Host+"/app:v1", nil); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
	checkUntouched(t, e)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=64m,mode=700"); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Pull(t.Context(), reg.Host+"/app:v1", nil); err != nil {
		t.Error(err)
	}
	checkStore(t, e)
}
