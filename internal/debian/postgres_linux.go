package debian

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// PostgresVersion is the version of the fixture that [Postgres] returns. It changes when what is in it does.
const PostgresVersion = "v1"

// Postgres returns a reference of an image with Debian's PostgreSQL, in a registry on loopback that runs until the test
// ends: plain HTTP, host:port/debian:gzip. It is built where this machine has not yet done so (a minute or two). Below the
// postgresql layer is the minbase of [Image].
//
// The program is /usr/bin/postgres; a cluster that is ready to be served, whose superuser postgres anybody who comes from
// 127.0.0.1 may be, is in /var/lib/postgresql/data and belongs to the user postgres. It skips where it cannot be built: it
// needs root, debootstrap and docker-registry.
func Postgres(t testing.TB) string {
	t.Helper()
	if os.Getenv(testutil.VMEnv) != "" {
		t.Skip("the virtual machine has no Debian image")
	}
	testutil.RequireRoot(t)
	requireTools(t, "debootstrap", "docker-registry", "apt-get", "tar", "unshare")
	dir, err := CacheDir("postgres")
	if err != nil {
		t.Fatal(err)
	}
	dir, err = once(dir, PostgresVersion+"-"+runtime.GOARCH, func(tmp string) error { return buildPostgres(t.Context(), tmp) })
	if err != nil {
		t.Fatal(err)
	}
	return startRegistry(t, filepath.Join(dir, "registry")) + "/debian:gzip"
}

func buildPostgres(ctx context.Context, dir string) error {
	image, err := imageDir(ctx)
	if err != nil {
		return err
	}
	work := filepath.Join(dir, "work")
	base, upper := filepath.Join(work, "0"), filepath.Join(work, "1")
	for _, sub := range []string{base, upper, filepath.Join(work, "overlay"), filepath.Join(work, "merged")} {
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
	}
	defer os.RemoveAll(work)
	minbase := layerFiles(image)[0]
	if err := Extract(ctx, base, []string{minbase}); err != nil {
		return err
	}
	// The cluster that the package makes is Debian's own, with its configuration elsewhere and in the builder's locale.
	const cluster = `
		cd "$WORK/merged"
		rm -r var/lib/postgresql/*/main etc/postgresql/*/main
		ln -s "../lib/postgresql/$(ls usr/lib/postgresql)/bin/postgres" usr/bin/postgres
		chroot . setpriv --reuid postgres --regid postgres --clear-groups sh -euc '
			/usr/lib/postgresql/*/bin/initdb --pgdata=/var/lib/postgresql/data --auth=trust --username=postgres \
				--encoding=UTF8 --locale=C.UTF-8'
		rm -rf usr/share/doc/* usr/share/man/* usr/share/locale/* var/cache/apt/*.bin var/log/*.log var/log/apt var/log/postgresql/*
		`
	if err := install(ctx, work, base, upper, "postgresql", cluster); err != nil {
		return err
	}
	layer := filepath.Join(dir, "1-postgresql.tar")
	if err := packLayer(ctx, layer, upper); err != nil {
		return err
	}
	if err := fillRegistry(ctx, filepath.Join(dir, "registry"), work, []string{minbase, layer}, 1); err != nil {
		return err
	}
	return os.Remove(layer) // the registry has it
}
