package debian

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// LargeEnv is the variable that, set to anything, lets benchmarks use [LargeImage], which takes minutes to build and a
// download of some 300 MB. Without it they use the small fixture of [Image].
const LargeEnv = "CORACLE_BENCH_LARGE"

// largeLayers are the packages of each layer but the first, which is debootstrap's minbase, and the one without
// packages, which is smallFiles. Together: about 1.2 GB and 53,000 entries, a third of that as gzip or zstd.
var largeLayers = []struct{ name, packages string }{
	{"0-minbase", ""},
	{"1-compiler", "g++"},
	{"2-java", "default-jre-headless"},
	{"3-small-files", ""},
	{"4-clang", "clang"},
	{"5-icons", "adwaita-icon-theme fonts-dejavu-core"},
}

// LargeImage returns an image as services have them: six layers of very unequal size, one of them with 30,000 small
// files. Otherwise it is like [Image]; IndexRef and the nasty layer are not part of it.
func LargeImage(t testing.TB) *Fixture {
	t.Helper()
	if os.Getenv("CORACLE_TEST_VM") != "" {
		t.Skip("the virtual machine has no Debian image")
	}
	if os.Getenv(LargeEnv) == "" {
		t.Skip("a large image takes minutes to build: set " + LargeEnv + "=1")
	}
	testutil.RequireRoot(t)
	requireTools(t, "debootstrap", "docker-registry", "apt-get", "tar", "unshare")
	dir, err := CacheDir("large-image")
	if err != nil {
		t.Fatal(err)
	}
	dir, err = once(dir, "v1-"+runtime.GOARCH, func(tmp string) error { return buildLarge(t.Context(), tmp) })
	if err != nil {
		t.Fatal(err)
	}
	host := startRegistry(t, filepath.Join(dir, "registry"))
	return &Fixture{GzipRef: host + "/debian:gzip", ZstdRef: host + "/debian:zstd", Layers: largeFiles(dir)}
}

// largeFiles names the layers' tars in a built large image.
func largeFiles(dir string) []string {
	var files []string
	for _, l := range largeLayers {
		files = append(files, filepath.Join(dir, l.name+".tar"))
	}
	return files
}

func buildLarge(ctx context.Context, dir string) error {
	uri, codename, err := archive(ctx)
	if err != nil {
		return err
	}
	work := filepath.Join(dir, "work")
	for _, sub := range []string{"overlay", "merged"} {
		if err := os.MkdirAll(filepath.Join(work, sub), 0o755); err != nil {
			return err
		}
	}
	defer os.RemoveAll(work)
	tars := largeFiles(dir)
	var lower string
	for i, l := range largeLayers {
		upper := filepath.Join(work, l.name)
		if err := os.Mkdir(upper, 0o755); err != nil {
			return err
		}
		switch {
		case i == 0:
			err = minbase(ctx, codename, upper, uri)
		case l.packages == "":
			err = smallFiles(filepath.Join(upper, "srv"), filepath.Join(work, largeLayers[1].name), filepath.Join(work, largeLayers[2].name))
		default:
			err = install(ctx, work, lower, upper, l.packages, "")
		}
		if err != nil {
			return fmt.Errorf("layer %s: %w", l.name, err)
		}
		if lower == "" {
			lower = upper
		} else {
			lower = upper + ":" + lower
		}
	}
	// Only now, as packing turns what is special in an upper directory into files of a layer's form.
	for i, l := range largeLayers {
		if err := packLayer(ctx, tars[i], filepath.Join(work, l.name)); err != nil {
			return err
		}
	}
	// Docker and BuildKit push with this level.
	return fillRegistry(ctx, filepath.Join(dir, "registry"), work, tars, gzip.DefaultCompression)
}

// smallFiles fills a new directory with 29,500 files of up to 17 kB, some 260 MB in all, in 290 directories, as package
// managers of languages leave them. What is in them is cut from the files of other trees, so that it compresses as
// files do.
func smallFiles(dir string, from ...string) error {
	r := rand.New(rand.NewPCG(1, 2))
	var content io.Reader = &treeReader{roots: from}
	buf := make([]byte, 17<<10)
	for d := range 290 {
		sub := filepath.Join(dir, fmt.Sprintf("modules/module-%02d/part-%d", d/10, d%10))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		for f := range 29_500 / 290 {
			p := buf[:r.IntN(len(buf))]
			if _, err := io.ReadFull(content, p); err != nil {
				return fmt.Errorf("content of small files: %w", err)
			}
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("file-%d.txt", f)), p, 0o644); err != nil {
				return err
			}
		}
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = os.Chtimes(path, time.Unix(1_700_000_000, 0), time.Unix(1_700_000_000, 0))
		}
		return err
	})
}

// A treeReader reads all files of some trees as one stream, again and again.
type treeReader struct {
	roots []string
	files []string
	open  *bytes.Reader
}

func (r *treeReader) Read(p []byte) (int, error) {
	for r.open == nil || r.open.Len() == 0 {
		if len(r.files) == 0 {
			for _, root := range r.roots {
				if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
					if err == nil && d.Type().IsRegular() {
						r.files = append(r.files, path)
					}
					return err
				}); err != nil {
					return 0, err
				}
			}
		}
		if len(r.files) == 0 {
			return 0, io.ErrUnexpectedEOF
		}
		data, err := os.ReadFile(r.files[0])
		if err != nil {
			return 0, err
		}
		r.open, r.files = bytes.NewReader(data), r.files[1:]
	}
	return r.open.Read(p)
}
