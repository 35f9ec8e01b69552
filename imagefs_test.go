package coracle

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/coracle-dev/coracle/internal/testutil"
)

//go:embed imagefs.go imagefs_test.go
var embedded embed.FS

var elf = "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 100)

// unpacked is the directory of an image's only layer.
func unpacked(t *testing.T, img *Image) string {
	t.Helper()
	layers, err := img.layers(t.Context())
	if err != nil || len(layers) != 1 {
		t.Fatalf("layers %v, %v", layers, err)
	}
	return filepath.Join(img.eng.store.Dir(), "layers", layers[0].Key, "fs")
}

func TestImageFromFS(t *testing.T) {
	testutil.RequireRoot(t)
	noLeftGoroutines(t)
	e := newImageEngine(t, RegistryConfig{})
	files := fstest.MapFS{
		"bin/tool":     {Data: []byte(elf)},                              // a file system without modes
		"bin/ro":       {Data: []byte(elf), Mode: 0o444},                 // as embed.FS
		"bin/script":   {Data: []byte("#!/bin/sh\n"), Mode: 0o444},       // the same
		"etc/conf":     {Data: []byte("x = 1\n"), Mode: 0o444},           // no program
		"etc/secret":   {Data: []byte(elf), Mode: 0o600},                 // the file system says otherwise
		"bin/setuid":   {Data: []byte("x"), Mode: 0o755 | fs.ModeSetuid}, //
		"bin/link":     {Data: []byte("tool"), Mode: 0o777 | fs.ModeSymlink},
		"etc/absolute": {Data: []byte("/etc/conf"), Mode: 0o777 | fs.ModeSymlink},
		"tmp":          {Mode: 0o777 | fs.ModeDir | fs.ModeSticky},
		"empty":        {Mode: 0o644},
		"large":        {Data: bytes.Repeat([]byte("0123456789abcdef"), 100_000), Mode: 0o640, ModTime: time.Unix(12345, 0)},
	}
	opts := &ImageFSOptions{Config: ImageConfig{
		Entrypoint: []string{"/bin/tool"}, Cmd: []string{"-v"}, Env: []string{"A=b"}, WorkingDir: "/etc", User: "1:2",
		Labels: map[string]string{"k": "v"}, ExposedPorts: map[string]struct{}{"80/tcp": {}}, StopSignal: "SIGINT",
	}}
	img, err := e.ImageFromFS(t.Context(), "tool", files, opts)
	if err != nil {
		t.Fatal(err)
	}
	dir := unpacked(t, img)
	for name, want := range map[string]fs.FileMode{
		"bin/tool": 0o755, "bin/ro": 0o755, "bin/script": 0o755, "etc/conf": 0o644, "etc/secret": 0o600, "bin/setuid": 0o755 | fs.ModeSetuid,
		"bin": 0o755 | fs.ModeDir, "tmp": 0o777 | fs.ModeDir | fs.ModeSticky, "empty": 0o644, "large": 0o640,
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if info.Mode() != want {
			t.Errorf("%s: mode %v, want %v", name, info.Mode(), want)
		}
		if !info.ModTime().Equal(time.Unix(0, 0)) {
			t.Errorf("%s: time %v", name, info.ModTime())
		}
	}
	for name, f := range files {
		path := filepath.Join(dir, name)
		switch f.Mode.Type() {
		case fs.ModeSymlink:
			if got, err := os.Readlink(path); err != nil || got != string(f.Data) {
				t.Errorf("%s leads to %q, %v", name, got, err)
			}
		case 0:
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, f.Data) {
				t.Errorf("%s: other content, %v", name, err)
			}
		}
	}
	c := img.Config()
	if fmt.Sprint(c.Config) != fmt.Sprint(opts.Config) || img.Platform() != "linux/"+runtime.GOARCH || img.Ref() != "docker.io/library/tool:latest" {
		t.Errorf("%s %s %+v", img.Ref(), img.Platform(), c)
	}
	found, err := e.Image(t.Context(), "tool:latest")
	if err != nil || found.ID() != img.ID() {
		t.Errorf("%v, %v", found, err)
	}
	checkStore(t, e)
}

func TestImageFromFSDeterministic(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	for name, content := range map[string]string{"b": "2", "a/x": "1"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	made := fstest.MapFS{"b": {Data: []byte("2"), Mode: 0o644, ModTime: time.Now()}, "a/x": {Data: []byte("1"), Mode: 0o444}}
	first, second := newImageEngine(t, RegistryConfig{}), newImageEngine(t, RegistryConfig{})
	a, err := first.ImageFromFS(t.Context(), "a", os.DirFS(dir), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := second.ImageFromFS(t.Context(), "b:1", made, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.Digest() != b.Digest() || a.ID() != b.ID() {
		t.Errorf("the same files gave %s and %s", a.Digest(), b.Digest())
	}
	kept, err := second.ImageFromFS(t.Context(), "b:2", os.DirFS(dir), &ImageFSOptions{KeepTimes: true})
	if err != nil {
		t.Fatal(err)
	}
	if kept.Digest() == b.Digest() {
		t.Error("KeepTimes kept nothing")
	}
	want, err := os.Stat(filepath.Join(dir, "b"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.Stat(filepath.Join(unpacked(t, kept), "b")); err != nil || !got.ModTime().Equal(want.ModTime()) {
		t.Errorf("time %v, want %v (%v)", got.ModTime(), want.ModTime(), err)
	}
}

func TestImageFromEmbed(t *testing.T) {
	testutil.RequireRoot(t)
	e := newImageEngine(t, RegistryConfig{})
	img, err := e.ImageFromFS(t.Context(), "source", embedded, nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(unpacked(t, img), "imagefs.go"))
	if err != nil || info.Mode() != 0o644 {
		t.Errorf("%v, %v", info, err)
	}
}

// strangeFS answers Open of one name with a file of its own.
type strangeFS struct {
	fstest.MapFS
	open func() (fs.File, error)
}

func (s strangeFS) Open(name string) (fs.File, error) {
	if name == "strange" {
		return s.open()
	}
	return s.MapFS.Open(name)
}

// changing is a file whose content differs from what was announced, or from the last reading.
type changing struct {
	fs.FileInfo
	io.Reader
}

func (c changing) Stat() (fs.FileInfo, error) { return c.FileInfo, nil }
func (c changing) Close() error               { return nil }

func TestImageFromFSFails(t *testing.T) {
	testutil.RequireRoot(t)
	base := fstest.MapFS{"strange": {Data: []byte("12345")}}
	info, err := base.Stat("strange")
	if err != nil {
		t.Fatal(err)
	}
	serve := func(contents ...string) fs.FS {
		n := -1
		return strangeFS{base, func() (fs.File, error) {
			n = min(n+1, len(contents)-1)
			return changing{info, strings.NewReader(contents[n])}, nil
		}}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name string
		ctx  context.Context
		ref  string
		fsys fs.FS
		opts *ImageFSOptions
		want error // nil: any
	}{
		{"device", nil, "x", fstest.MapFS{"dev": {Mode: fs.ModeDevice}}, nil, errors.ErrUnsupported},
		{"pipe", nil, "x", fstest.MapFS{"fifo": {Mode: fs.ModeNamedPipe}}, nil, errors.ErrUnsupported},
		{"no root", nil, "x", os.DirFS(filepath.Join(t.TempDir(), "nothing")), nil, fs.ErrNotExist},
		{"unreadable", nil, "x", strangeFS{base, func() (fs.File, error) { return nil, fs.ErrPermission }}, nil, fs.ErrPermission},
		{"shorter than announced", nil, "x", serve("123"), nil, io.ErrUnexpectedEOF},
		{"longer than announced", nil, "x", serve("123456789"), nil, nil},
		{"changes between the readings", nil, "x", serve("12345", "54321"), nil, ErrCorrupt},
		{"shrinks between the readings", nil, "x", serve("12345", "1"), nil, io.ErrUnexpectedEOF},
		{"no reference", nil, "UPPER", base, nil, ErrInvalid},
		{"digest", nil, "x@" + someDigest, base, nil, ErrInvalid},
		{"no file system", nil, "x", nil, nil, ErrInvalid},
		{"platform", nil, "x", base, &ImageFSOptions{Platform: "windows/amd64"}, errors.ErrUnsupported},
		{"cancelled", cancelled, "x", base, nil, context.Canceled},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			noLeftGoroutines(t)
			e := newImageEngine(t, RegistryConfig{})
			ctx := tt.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			_, err := e.ImageFromFS(ctx, tt.ref, tt.fsys, tt.opts)
			var op *OpError
			if !errors.As(err, &op) || op.Op != "make" || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %v", err)
			}
			checkUntouched(t, e)
		})
	}
}

func TestImageFindAndList(t *testing.T) {
	testutil.RequireRoot(t)
	e := newImageEngine(t, RegistryConfig{})
	if list, err := e.Images(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	byID := map[string]*Image{}
	make1 := func(ref, content string) *Image {
		t.Helper()
		img, err := e.ImageFromFS(t.Context(), ref, fstest.MapFS{"f": {Data: []byte(content)}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		byID[img.ID().Encoded()] = img
		return img
	}
	a := make1("a", "1")
	make1("quay.io/x/a:2", "1")
	// So many that two ids begin with the same digit.
	for i := range 17 {
		make1(fmt.Sprintf("n:%d", i), fmt.Sprint("n", i))
	}
	for _, name := range []string{"a", "a:latest", "docker.io/library/a", "quay.io/x/a:2", string(a.ID()), a.ID().Encoded(), a.ID().Encoded()[:20], "docker.io/library/a@" + string(a.Digest())} {
		img, err := e.Image(t.Context(), name)
		if err != nil || img.ID() != a.ID() {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if refs := strings.Join(img.Refs(), " "); !strings.Contains(refs, "docker.io/library/a:latest") || !strings.Contains(refs, "quay.io/x/a:2") {
			t.Errorf("%s: names %s", name, refs)
		}
	}
	if img, err := e.Image(t.Context(), "quay.io/x/a:2"); err != nil || img.Ref() != "quay.io/x/a:2" {
		t.Errorf("%v, %v", img, err)
	}
	for name, want := range map[string]error{
		"missing": fs.ErrNotExist, "a:2": fs.ErrNotExist, "quay.io/y/a@" + string(a.Digest()): fs.ErrNotExist,
		strings.Repeat("0", 64): fs.ErrNotExist, "": ErrInvalid, "a b": ErrInvalid,
	} {
		_, err := e.Image(t.Context(), name)
		var op *OpError
		if !errors.As(err, &op) || op.Op != "find" || !errors.Is(err, want) {
			t.Errorf("%q: %v", name, err)
		}
	}
	counts := map[byte]int{}
	for id := range byID {
		counts[id[0]]++
	}
	for first, n := range counts {
		_, err := e.Image(t.Context(), string(first))
		if first == 'a' {
			continue // the name of an image, which comes before the prefix of an id
		}
		if n > 1 && !errors.Is(err, ErrInvalid) || n == 1 && err != nil {
			t.Errorf("prefix %c of %d images: %v", first, n, err)
		}
	}
	list, err := e.Images(t.Context())
	if err != nil || len(list) != 18 || list[0].Ref() != "docker.io/library/a:latest" {
		t.Errorf("%d images, %v", len(list), err)
	}
}

// TestImageLayersComeBack: a layer that was removed is unpacked again from its blob.
func TestImageLayersComeBack(t *testing.T) {
	testutil.RequireRoot(t)
	e := newImageEngine(t, RegistryConfig{})
	img, err := e.ImageFromFS(t.Context(), "a", fstest.MapFS{"f": {Data: []byte("1")}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := e.store.LayerKeys()
	if err != nil || len(keys) != 1 {
		t.Fatalf("%v, %v", keys, err)
	}
	if err := e.store.RemoveLayer(t.Context(), keys[0]); err != nil {
		t.Fatal(err)
	}
	_, _, release, err := e.imageFor(t.Context(), &ContainerSpec{Image: "a"})
	if err != nil {
		t.Fatal(err)
	}
	release()
	if got, err := os.ReadFile(filepath.Join(unpacked(t, img), "f")); err != nil || string(got) != "1" {
		t.Errorf("%q, %v", got, err)
	}
}

// BenchmarkImageFromFS makes an image of a 3 MB program, which differs each time.
func BenchmarkImageFromFS(b *testing.B) {
	program := append([]byte(elf), make([]byte, 3<<20)...)
	testutil.RequireRoot(b)
	for _, again := range []bool{false, true} {
		b.Run(fmt.Sprintf("again=%v", again), func(b *testing.B) {
			e := newImageEngine(b, RegistryConfig{})
			b.SetBytes(int64(len(program)))
			n := 0
			for b.Loop() {
				if !again {
					n++
				}
				copy(program[1000:], fmt.Sprint(n))
				if _, err := e.ImageFromFS(b.Context(), "bench", fstest.MapFS{"program": {Data: program}}, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
