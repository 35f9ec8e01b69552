package layerfs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/bench"
	"github.com/coracle-dev/coracle/internal/debian"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// benchArchive looks like a layer: many small files, some large ones, of content that compresses like programs do.
func benchArchive(b *testing.B) []byte {
	if os.Getenv(debian.LargeEnv) != "" {
		data, err := os.ReadFile(debian.LargeImage(b).Layers[3])
		if err != nil {
			b.Fatal(err)
		}
		return data
	}
	r := rand.New(rand.NewPCG(1, 2))
	word := func() string { return fmt.Sprintf("%x ", r.IntN(1<<20)) }
	var ents []ent
	for d := range 100 {
		ents = append(ents, ent{name: fmt.Sprintf("usr/lib/d%d/", d)})
		for f := range 40 {
			var buf bytes.Buffer
			size := r.IntN(12 << 10)
			if f == 0 {
				size = 300 << 10
			}
			for buf.Len() < size {
				buf.WriteString(word())
			}
			ents = append(ents, ent{name: fmt.Sprintf("usr/lib/d%d/f%d", d, f), data: buf.String()})
		}
	}
	return makeTar(b, append([]ent{{name: "usr/"}, {name: "usr/lib/"}}, ents...)...)
}

// BenchmarkUnpack unpacks a layer of 4,100 entries, or with CORACLE_BENCH_LARGE=1 the one of 30,000 small files of
// [debian.LargeImage], beside decompression with tar -x, and syncfs for both. Each run is on a fresh filesystem.
func BenchmarkUnpack(b *testing.B) {
	testutil.RequireRoot(b)
	archive := benchArchive(b)
	blobs := map[string][]byte{"gzip": gz(b, archive), "zstd": zst(b, archive)}
	disk := bench.NewDisk(b, max(512<<20, 3*int64(len(archive))))
	fresh := func(b *testing.B) string {
		dir, err := disk.Mount()
		if err != nil {
			b.Fatal(err)
		}
		return dir
	}
	for _, c := range []string{"gzip", "zstd"} {
		blob := blobs[c]
		b.Run("coracle/"+c, func(b *testing.B) {
			b.SetBytes(int64(len(archive)))
			for b.Loop() {
				b.StopTimer()
				s, err := OpenStore(filepath.Join(fresh(b), "store"), nil)
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if _, err := s.Unpack(b.Context(), specOf(archive, blob)); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
	for _, c := range []struct{ name, blob, script string }{
		{"pigz and tar", "gzip", "pigz -dc | tar -x && sync -f ."},
		{"gzip and tar", "gzip", "gzip -dc | tar -x && sync -f ."},
		{"zstd and tar", "zstd", "zstd -dc | tar -x && sync -f ."},
	} {
		b.Run(c.name, func(b *testing.B) {
			if _, err := exec.LookPath(c.name[:4]); err != nil {
				testutil.Skip(b, c.name[:4]+" is not installed")
			}
			b.SetBytes(int64(len(archive)))
			for b.Loop() {
				b.StopTimer()
				dir := fresh(b)
				b.StartTimer()
				cmd := exec.Command("sh", "-c", c.script)
				cmd.Dir, cmd.Stdin = dir, bytes.NewReader(blobs[c.blob])
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v\n%s", err, out)
				}
			}
		})
	}
}

// BenchmarkSnapshotMount is what a container's start and end cost here: make, mount, close and remove a snapshot.
func BenchmarkSnapshotMount(b *testing.B) {
	testutil.RequireRoot(b)
	s := openTest(b, nil)
	var archives [][]byte
	for i := range 5 {
		archives = append(archives, makeTar(b, ent{name: "d/"}, ent{name: fmt.Sprintf("d/f%d", i)}))
	}
	ls := unpackAll(b, s, archives...)
	run := func(b *testing.B, o *SnapshotOptions) {
		for b.Loop() {
			n, err := s.NewSnapshot(b.Context(), "bench", ls, o)
			if err != nil {
				b.Fatal(err)
			}
			f, err := n.Mount(b.Context(), nil)
			if err != nil {
				b.Fatal(err)
			}
			f.Close()
			if err := n.Remove(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, name := range []string{"auto", "descriptor names", "classic"} {
		withWay(s, mountWays[name])
		b.Run(name+"/volatile", func(b *testing.B) { run(b, &SnapshotOptions{Volatile: true}) })
	}
	withWay(s, wayAuto)
	b.Run("auto/durable", func(b *testing.B) { run(b, nil) })
	b.Run("floor/three mkdir and rmdir", func(b *testing.B) {
		for b.Loop() {
			for _, d := range []string{"x", "x/upper", "x/work"} {
				_ = unix.Mkdirat(s.snapsFD, d, 0o700)
			}
			for _, d := range []string{"x/upper", "x/work", "x"} {
				_ = unix.Unlinkat(s.snapsFD, d, unix.AT_REMOVEDIR)
			}
		}
	})
}
