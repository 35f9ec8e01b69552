package testtool

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/coracle-dev/coracle/internal/testutil"
)

var built struct {
	once sync.Once
	path string
	err  error
}

// Path returns the static program: the test binary itself, or one that is built for the run of the tests.
func Path(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		self, err := os.Executable()
		if err == nil && static(self) {
			built.path = self
			return
		}
		dir, err := os.MkdirTemp("", "coracle-testtool-")
		if err != nil {
			built.err = err
			return
		}
		built.path = filepath.Join(dir, Name)
		cmd := exec.Command("go", "build", "-o", built.path, "github.com/coracle-dev/coracle/internal/testtool/tool")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build the tool: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		testutil.Skip(t, built.err.Error())
	}
	return built.path
}

// Cleanup removes what Path built. Call it at the end of TestMain.
func Cleanup() {
	if self, _ := os.Executable(); built.path != "" && built.path != self {
		os.RemoveAll(filepath.Dir(built.path))
	}
}

// static reports whether a program needs no dynamic linker.
func static(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

// FS returns a root filesystem with nothing but the tool, as /tool and /bin/true, and the files of extra.
func FS(t testing.TB, extra fstest.MapFS) fstest.MapFS {
	t.Helper()
	b, err := os.ReadFile(Path(t))
	if err != nil {
		t.Fatal(err)
	}
	fsys := fstest.MapFS{
		Name:         {Data: b, Mode: 0o755},
		"etc/passwd": {Data: []byte("root:x:0:0:root:/root:/tool\nalice:x:1000:1000::/home/alice:/tool\n1001:x:0:0:the number is a name:/:/tool\nbroken:x:x:0::/:/tool\nhuge:x:4294967296:0::/:/tool\n"), Mode: 0o644},
		"etc/group":  {Data: []byte("root:x:0:\nalice:x:1000:\nwheel:x:10:alice\nstaff:x:50:alice,bob\n"), Mode: 0o644},
	}
	for name, f := range extra {
		fsys[name] = f
	}
	return fsys
}
