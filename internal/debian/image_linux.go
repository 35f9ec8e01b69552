package debian

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// layerFiles names the layers' tars in a built fixture.
func layerFiles(dir string) []string {
	return []string{
		filepath.Join(dir, "0-minbase.tar"),
		filepath.Join(dir, "1-python.tar"),
		filepath.Join(dir, "2-nasty.tar"),
	}
}

// buildImage makes the layers and a registry's storage with the images in dir.
func buildImage(ctx context.Context, dir string) error {
	uri, codename, err := archive(ctx)
	if err != nil {
		return err
	}
	work := filepath.Join(dir, "work")
	base, python, nastyDir := filepath.Join(work, "0"), filepath.Join(work, "1"), filepath.Join(work, "2")
	for _, sub := range []string{base, python, nastyDir, filepath.Join(work, "overlay"), filepath.Join(work, "merged")} {
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
	}
	defer os.RemoveAll(work)
	tars := layerFiles(dir)

	if err := minbase(ctx, codename, base, uri); err != nil {
		return err
	}
	if err := packLayer(ctx, tars[0], base); err != nil {
		return err
	}

	if err := install(ctx, work, base, python, "python3-minimal", ""); err != nil {
		return err
	}
	if err := packLayer(ctx, tars[1], python); err != nil {
		return err
	}

	// A Go program cannot enter a mount namespace by itself, so the third layer is made in place, as an upper
	// directory: only what refers to lower layers goes through an overlay.
	const remove = `
		mount -t overlay -o "lowerdir=$BASE,upperdir=$UPPER,workdir=$WORK/overlay" overlay "$WORK/merged"
		cd "$WORK/merged"
		rm etc/debian_version usr/bin/whoami           # files gone
		rm -r usr/share/doc/apt                        # a directory gone
		rm -r usr/share/doc/bash; mkdir usr/share/doc/bash
		echo new >usr/share/doc/bash/only              # an opaque directory
		rm -r usr/share/doc/dpkg; ln -s bash usr/share/doc/dpkg     # directory to symbolic link
		rm etc/issue; mkdir etc/issue; echo x >etc/issue/x          # file to directory
		chmod 0711 usr/share/doc/tar                   # a directory's mode alone
		chown 7:8 etc/issue.net                        # a copied-up file
		ln etc/issue.net etc/issue.hardlink            # a hard link to a file of a lower layer
		`
	if err := inOverlay(ctx, work, python+":"+base, nastyDir, remove); err != nil {
		return err
	}
	if err := nasty(filepath.Join(nastyDir, "nasty")); err != nil {
		return fmt.Errorf("make the third layer: %w", err)
	}
	if err := packLayer(ctx, tars[2], nastyDir); err != nil {
		return err
	}
	return fillRegistry(ctx, filepath.Join(dir, "registry"), work, tars, gzip.BestSpeed)
}

// minbase is debootstrap's smallest system, without what is the machine's own configuration.
func minbase(ctx context.Context, codename, dir, uri string) error {
	if _, err := command(ctx, "", "debootstrap", "--variant=minbase", codename, dir, uri); err != nil {
		return err
	}
	// Empty, it is where the resolver is mounted when packages are installed.
	if err := os.WriteFile(filepath.Join(dir, "etc/resolv.conf"), nil, 0o644); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, "etc/hostname")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(filepath.Join(dir, "var/cache/apt/archives"))
}

// install installs packages over the directories lower, into upper, and starts nothing. The script, if there is one, then
// changes what is at "$WORK/merged".
func install(ctx context.Context, work, lower, upper, packages, script string) error {
	const text = `
		mount -t overlay -o "lowerdir=$BASE,upperdir=$UPPER,workdir=$WORK/overlay" overlay "$WORK/merged"
		mount --bind /etc/resolv.conf "$WORK/merged/etc/resolv.conf"
		mount -t proc proc "$WORK/merged/proc"
		printf 'exit 101\n' >"$WORK/merged/usr/sbin/policy-rc.d"
		chroot "$WORK/merged" apt-get -q update
		chroot "$WORK/merged" apt-get -q install -y --no-install-recommends %s
		chroot "$WORK/merged" apt-get clean
		rm -r "$WORK/merged/usr/sbin/policy-rc.d" "$WORK"/merged/var/lib/apt/lists/*_*
		`
	return inOverlay(ctx, work, lower, upper, fmt.Sprintf(text, packages)+script)
}

// inOverlay runs a shell script in a mount namespace of its own, which takes its mounts along when it ends.
func inOverlay(ctx context.Context, work, lower, upper, script string) error {
	if err := os.RemoveAll(filepath.Join(work, "overlay")); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(work, "overlay"), 0o755); err != nil {
		return err
	}
	_, err := command(ctx, "", "env", "BASE="+lower, "UPPER="+upper, "WORK="+work,
		"unshare", "--mount", "--propagation", "private", "sh", "-euc", script)
	return err
}

// packLayer turns an upper directory into a layer: whiteouts and opaque directories as the image specification writes
// them (image-spec, layer.md), everything in PAX format with holes and extended attributes kept.
func packLayer(ctx context.Context, tar, dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		parent, base := filepath.Split(path)
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0:
			return keepTimes(parent, func() error {
				if err := os.Remove(path); err != nil {
					return err
				}
				return os.WriteFile(parent+".wh."+base, nil, 0o600)
			})
		case d.IsDir():
			var value [1]byte
			if n, err := unix.Lgetxattr(path, "trusted.overlay.opaque", value[:]); err == nil && n == 1 && value[0] == 'y' {
				return keepTimes(path, func() error { return os.WriteFile(path+"/.wh..wh..opq", nil, 0o600) })
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("turn %s into a layer: %w", dir, err)
	}
	_, err = command(ctx, "", "tar", "--create", "--file", tar, "--directory", dir, "--format=posix", "--sparse",
		"--numeric-owner", "--xattrs", "--xattrs-include=*", "--xattrs-exclude=trusted.overlay.*", "--sort=name",
		"--one-file-system", ".")
	return err
}

// keepTimes changes a directory's content and leaves its times.
func keepTimes(dir string, change func() error) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, dir, []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// fillRegistry writes the images as an OCI layout below work and pushes them into a registry with the given storage.
func fillRegistry(ctx context.Context, storage, work string, tars []string, gzipLevel int) error {
	path := filepath.Join(work, "layout")
	l := ociLayout{dir: path, gzipLevel: gzipLevel}
	if err := os.MkdirAll(filepath.Join(path, "blobs/sha256"), 0o755); err != nil {
		return err
	}
	gzipImage, err := l.image(ctx, tars, ocispec.MediaTypeImageLayerGzip)
	if err != nil {
		return err
	}
	zstdImage, err := l.image(ctx, tars, ocispec.MediaTypeImageLayerZstd)
	if err != nil {
		return err
	}
	if err := l.index(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{gzipImage, zstdImage},
	}); err != nil {
		return err
	}
	pushed, err := layout.ImageIndexFromPath(path)
	if err != nil {
		return err
	}
	host, stop, err := serveRegistry(ctx, storage)
	if err != nil {
		return err
	}
	defer stop()
	push := func(tag string, write func(name.Reference) error) error {
		ref, err := name.ParseReference(host + "/debian:" + tag)
		if err != nil {
			return err
		}
		return write(ref)
	}
	for tag, desc := range map[string]ocispec.Descriptor{"gzip": gzipImage, "zstd": zstdImage} {
		hash, err := hashOf(desc)
		if err != nil {
			return err
		}
		image, err := pushed.Image(hash)
		if err != nil {
			return err
		}
		if err := push(tag, func(ref name.Reference) error {
			return remote.Write(ref, image, remote.WithContext(ctx))
		}); err != nil {
			return err
		}
	}
	// The index has the gzip image for this platform alone.
	if err := l.index(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{gzipImage},
	}); err != nil {
		return err
	}
	if pushed, err = layout.ImageIndexFromPath(path); err != nil {
		return err
	}
	return push("latest", func(ref name.Reference) error {
		return remote.WriteIndex(ref, pushed, remote.WithContext(ctx))
	})
}

// An ociLayout writes an OCI image layout.
type ociLayout struct {
	dir       string
	gzipLevel int
}

// image writes the blobs of an image with the given kind of layers and returns its descriptor.
func (l *ociLayout) image(ctx context.Context, tars []string, mediaType string) (ocispec.Descriptor, error) {
	created := time.Unix(1_700_000_000, 0).UTC()
	config := ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config: ocispec.ImageConfig{
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd: []string{"bash"},
		},
		RootFS: ocispec.RootFS{Type: "layers"},
	}
	if runtime.GOARCH == "arm64" {
		config.Variant = "v8"
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, tar := range tars {
		desc, diffID, err := l.layer(ctx, tar, mediaType)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		config.History = append(config.History, ocispec.History{CreatedBy: filepath.Base(tar)})
		manifest.Layers = append(manifest.Layers, desc)
	}
	var err error
	if manifest.Config, err = l.json(config, ocispec.MediaTypeImageConfig); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := l.json(manifest, ocispec.MediaTypeImageManifest)
	desc.Platform = &config.Platform
	return desc, err
}

// layer compresses a tar into a blob.
func (l *ociLayout) layer(ctx context.Context, tar, mediaType string) (ocispec.Descriptor, digest.Digest, error) {
	fail := func(err error) (ocispec.Descriptor, digest.Digest, error) { return ocispec.Descriptor{}, "", err }
	src, err := os.Open(tar)
	if err != nil {
		return fail(err)
	}
	defer src.Close()
	tmp, err := os.CreateTemp(l.dir, "blob-")
	if err != nil {
		return fail(err)
	}
	defer tmp.Close()
	blob, diff := sha256.New(), sha256.New()
	out := io.MultiWriter(tmp, blob)
	var compressor io.WriteCloser
	if mediaType == ocispec.MediaTypeImageLayerZstd {
		compressor, err = zstd.NewWriter(out)
	} else {
		compressor, err = gzip.NewWriterLevel(out, l.gzipLevel)
	}
	if err != nil {
		return fail(err)
	}
	if _, err := io.Copy(io.MultiWriter(compressor, diff), src); err != nil {
		return fail(err)
	}
	if err := compressor.Close(); err != nil {
		return fail(err)
	}
	size, err := tmp.Seek(0, io.SeekCurrent)
	if err != nil {
		return fail(err)
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.NewDigest(digest.SHA256, blob), Size: size}
	if err := os.Rename(tmp.Name(), l.blob(desc.Digest)); err != nil {
		return fail(err)
	}
	return desc, digest.NewDigest(digest.SHA256, diff), ctx.Err()
}

func (l *ociLayout) blob(d digest.Digest) string {
	return filepath.Join(l.dir, "blobs", d.Algorithm().String(), d.Encoded())
}

// json writes a value as a blob.
func (l *ociLayout) json(v any, mediaType string) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return desc, os.WriteFile(l.blob(desc.Digest), data, 0o644)
}

func (l *ociLayout) index(index ocispec.Index) error {
	if err := os.WriteFile(filepath.Join(l.dir, ocispec.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
		return err
	}
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.dir, ocispec.ImageIndexFile), data, 0o644)
}

// nasty fills a new directory with what extraction easily loses.
func nasty(dir string) error {
	long := strings.Repeat("n", 255)
	deep := dir + strings.Repeat("/"+strings.Repeat("d", 100), 12)
	if err := os.MkdirAll(deep, 0o755); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		text string
		mode uint32
		uid  int
		gid  int
	}{
		{"setuid", "#!/bin/sh\n", 0o4755, 0, 0},
		{"setgid", "#!/bin/sh\n", 0o2711, 0, 42},
		{"setuid-of-other", "#!/bin/sh\n", 0o6755, 1234, 5678},
		{"unreadable", "secret", 0, 0, 0},
		{"big-ids", "", 0o644, 2_000_000_000, 4_000_000_000},
		{"empty", "", 0o600, 0, 0},
		{"space and \t tab", "x", 0o644, 0, 0},
		{"new\nline", "x", 0o644, 0, 0},
		{"naïve-日本", "x", 0o644, 0, 0},
		{"latin1-\xe9", "x", 0o644, 0, 0},
		{"-rf", "x", 0o644, 0, 0},
		{`back\slash`, "x", 0o644, 0, 0},
		{long, "x", 0o644, 0, 0},
		{strings.TrimPrefix(deep, dir+"/") + "/file", "x", 0o644, 0, 0},
		{"capability", "#!/bin/sh\n", 0o755, 0, 0},
		{"attributes", "x", 0o644, 0, 0},
		{"times", "x", 0o644, 0, 0},
		{"old", "x", 0o644, 0, 0},
		{"future", "x", 0o644, 0, 0},
		{"linked", "x", 0o4755, 0, 0},
	} {
		path := filepath.Join(dir, f.name)
		if err := os.WriteFile(path, []byte(f.text), 0o600); err != nil {
			return err
		}
		if err := os.Lchown(path, f.uid, f.gid); err != nil {
			return err
		}
		if err := unix.Chmod(path, f.mode); err != nil {
			return err
		}
	}

	for _, d := range []struct {
		name string
		mode uint32
	}{{"sticky", 0o1777}, {"setgid-dir", 0o2775}, {"closed", 0}, {"private", 0o700}} {
		if err := unix.Mkdir(filepath.Join(dir, d.name), 0o755); err != nil {
			return err
		}
		if err := unix.Chmod(filepath.Join(dir, d.name), d.mode); err != nil {
			return err
		}
	}
	for _, n := range []struct {
		name string
		mode uint32
		dev  uint64
	}{
		{"null", unix.S_IFCHR | 0o666, unix.Mkdev(1, 3)},
		{"disk", unix.S_IFBLK | 0o660, unix.Mkdev(259, 70_000)},
		{"fifo", unix.S_IFIFO | 0o640, 0},
	} {
		if err := unix.Mknod(filepath.Join(dir, n.name), n.mode, int(n.dev)); err != nil {
			return fmt.Errorf("mknod %s: %w", n.name, err)
		}
		if err := unix.Chmod(filepath.Join(dir, n.name), n.mode&0o7777); err != nil { // against the umask
			return err
		}
	}
	for link, target := range map[string]string{
		"absolute": "/etc/passwd", "dangling": "nowhere", "up": "../../../../../../etc/passwd", "self": "self",
		"long-target": strings.Repeat("t/", 1000), "to-dir": "sticky",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			return err
		}
	}
	for _, name := range []string{"a-link", "sticky/z-link"} {
		if err := os.Link(filepath.Join(dir, "linked"), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := os.Link(filepath.Join(dir, "dangling"), filepath.Join(dir, "dangling-link")); err != nil {
		return err
	}

	// struct vfs_cap_data, revision 2 with the effective bit: CAP_NET_RAW (13) permitted.
	capability := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if err := unix.Setxattr(filepath.Join(dir, "capability"), "security.capability", capability, 0); err != nil {
		return fmt.Errorf("set a file capability: %w", err)
	}
	for name, value := range map[string][]byte{
		"user.text": []byte("value"), "user.empty": nil, "user.binary": {0, 1, '\n', '=', 255}, "trusted.note": []byte("t"),
	} {
		if err := unix.Setxattr(filepath.Join(dir, "attributes"), name, value, 0); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	if err := unix.Setxattr(filepath.Join(dir, "private"), "user.dir", []byte("value"), 0); err != nil {
		return fmt.Errorf("set user.dir: %w", err)
	}

	if err := sparse(filepath.Join(dir, "sparse")); err != nil {
		return err
	}

	for _, s := range []struct {
		name      string
		sec, nsec int64
	}{
		{"times", 1_600_000_000, 123_456_789}, {"old", -86_400, 250_000_000}, {"future", 4_200_000_000, 999_999_999},
		{"dangling", 1_500_000_000, 1}, {"sticky", 1_400_000_000, 987_654_321}, {".", 1_300_000_000, 5},
	} {
		ts := unix.Timespec{Sec: s.sec, Nsec: s.nsec}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, s.name), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set the time of %s: %w", s.name, err)
		}
	}
	return nil
}

// sparse writes a file of 64 MiB with data at the start, in the middle and a hole at its end.
func sparse(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, offset := range []int64{0, 1 << 20, 33 << 20} {
		if _, err := f.WriteAt(bytes.Repeat([]byte("data"), 1024), offset); err != nil {
			return err
		}
	}
	if err := f.Truncate(64 << 20); err != nil {
		return err
	}
	return f.Close()
}
