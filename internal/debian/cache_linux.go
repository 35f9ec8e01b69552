// Package debian gets real inputs for tests from Debian's archive: packages, kernels, a Debian image in a registry on
// loopback, a busybox root filesystem. The archive is the one that the machine's own apt is configured for. What is
// built is kept in a cache directory, so that a machine builds it once.
package debian

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// CacheEnv is the variable that names the cache directory. Unset or empty means coracle-test in [os.UserCacheDir].
const CacheEnv = "CORACLE_TEST_CACHE"

// CacheDir returns the directory below the cache that belongs to name, made if it is missing.
func CacheDir(name string) (string, error) {
	base := os.Getenv(CacheEnv)
	if base == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("no cache directory: set %s: %w", CacheEnv, err)
		}
		base = filepath.Join(user, "coracle-test")
	}
	dir, err := filepath.Abs(filepath.Join(base, name))
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// once makes dir/key by calling build with a fresh temporary directory that becomes dir/key when build succeeds. Of
// several processes one builds and the others wait for it. What an interrupted build left is removed by the next.
func once(dir, key string, build func(tmp string) error) (string, error) {
	final := filepath.Join(dir, key)
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	lock, err := os.OpenFile(filepath.Join(dir, "."+key+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	tmp := filepath.Join(dir, "."+key+".tmp")
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return "", err
	}
	if err := build(tmp); err != nil {
		os.RemoveAll(tmp)
		return "", fmt.Errorf("build %s: %w", final, err)
	}
	return final, os.Rename(tmp, final)
}
