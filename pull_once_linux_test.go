package coracle_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/lockorder"
	"github.com/coracle-dev/coracle/internal/registrytest"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// pullEnv makes the test binary a program that pulls.
const pullEnv = "CORACLE_TEST_PULL"

type pullConfig struct{ Root, Registry, Ref string }

// pullMain is that program. It says "ready", waits for a line, pulls, and says how many layers it has unpacked.
func pullMain() {
	env := os.Getenv(pullEnv)
	if env == "" {
		return
	}
	die := func(err any) {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	var config pullConfig
	if err := json.Unmarshal([]byte(env), &config); err != nil {
		die(err)
	}
	lockorder.Enforce(func(violation string) { die(violation) })
	ctx := context.Background()
	eng, err := coracle.Open(ctx, modelEngine(config.Root, config.Registry, nil))
	if err != nil {
		die(err)
	}
	var unpacked atomic.Int64
	crashpoint.Observe(func(step string) {
		if step == "unpack: layer in sight" {
			unpacked.Add(1)
		}
	})
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	if _, err := eng.Pull(ctx, config.Ref, nil); err != nil {
		die(err)
	}
	if err := eng.Close(); err != nil {
		die(err)
	}
	fmt.Println("unpacked", unpacked.Load())
	os.Exit(0)
}

// puller is such a program.
type puller struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
}

func newPuller(t *testing.T, root string, reg *registrytest.Registry, ref string) *puller {
	t.Helper()
	b, err := json.Marshal(pullConfig{root, reg.Host, reg.Host + "/" + ref})
	if err != nil {
		t.Fatal(err)
	}
	p := &puller{cmd: exec.Command("/proc/self/exe")}
	p.cmd.Env = append(os.Environ(), pullEnv+"="+string(b))
	p.cmd.Stderr = os.Stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdout = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	})
	return p
}

func (p *puller) line() string {
	line, err := p.stdout.ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

// pullers starts programs, one for each reference, and returns when all are ready.
func pullers(t *testing.T, root string, reg *registrytest.Registry, refs ...string) []*puller {
	t.Helper()
	var list []*puller
	for _, ref := range refs {
		list = append(list, newPuller(t, root, reg, ref))
	}
	for _, p := range list {
		if line := p.line(); line != "ready" {
			t.Fatalf("a program says: %s", line)
		}
	}
	return list
}

// pullTogether lets programs pull at the same moment and returns how many layers they have unpacked, all together.
func pullTogether(t *testing.T, list []*puller) int {
	t.Helper()
	var wg sync.WaitGroup
	var total atomic.Int64
	for _, p := range list {
		wg.Go(func() {
			fmt.Fprintln(p.stdin)
			line := p.line()
			var n int64
			if _, err := fmt.Sscanf(line, "unpacked %d", &n); err != nil {
				t.Errorf("a program says: %s", line)
			}
			total.Add(n)
			if err := p.cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	return int(total.Load())
}

// TestPullOnce: what 20 programs pull at once is downloaded and unpacked once.
func TestPullOnce(t *testing.T) {
	testutil.RequireRoot(t)
	root := t.TempDir()
	reg := registrytest.New()
	t.Cleanup(reg.Close)
	one := registrytest.RandomImage(1, 4, 300_000)
	// Another image with three of the layers.
	two := registrytest.NewImage(one.Layers[3], one.Layers[1], one.Layers[0], registrytest.RandomLayer(99, one.Layers[0].MediaType, 300_000))
	reg.Push("app", "one", one)
	reg.Push("app", "two", two)
	blobs := map[digest.Digest]bool{}
	for _, img := range []*registrytest.Image{one, two} {
		m, _ := img.Manifest()
		blobs[m.Config.Digest] = true
		for _, l := range m.Layers {
			blobs[l.Digest] = true
		}
	}
	var refs []string
	for i := range 20 {
		refs = append(refs, "app:"+[]string{"one", "one", "two"}[i%3])
	}
	list := pullers(t, root, reg, refs...)
	if n := pullTogether(t, list); n != 5 {
		t.Errorf("%d layers were unpacked, there are 5", n)
	}
	requests := reg.Requests()
	for d := range blobs {
		if n := registrytest.Count(requests, "/blobs/"+string(d)); n != 1 {
			t.Errorf("%s was asked for %d times", d, n)
		}
	}
}

// TestPullOnceKilled: the program that does the work for all is killed in the middle of a download; another one takes
// over, and fetches that blob once more.
func TestPullOnceKilled(t *testing.T) {
	testutil.RequireRoot(t)
	root := t.TempDir()
	reg := registrytest.New()
	t.Cleanup(reg.Close)
	img := registrytest.RandomImage(2, 3, 300_000)
	reg.Push("app", "one", img)
	slow := img.Layers[1].Digest
	half := make(chan struct{})
	reg.Inject("/blobs/"+string(slow), 1, func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		close(half)
		registrytest.HangBody(w, req, next)
	})
	refs := make([]string, 20)
	for i := range refs {
		refs[i] = "app:one"
	}
	list := pullers(t, root, reg, refs...)
	first := list[0]
	fmt.Fprintln(first.stdin)
	<-half
	done := make(chan int)
	go func() { done <- pullTogether(t, list[1:]) }()
	// Those that have come so far wait for the first one.
	first.cmd.Process.Kill()
	first.cmd.Wait()
	if n := <-done; n < 1 || n > 3 {
		t.Errorf("%d layers were unpacked by the others, of 3", n)
	}
	requests := reg.Requests()
	for _, l := range img.Layers {
		n := registrytest.Count(requests, "/blobs/"+string(l.Digest))
		if l.Digest == slow && n != 2 || n < 1 || n > 2 {
			t.Errorf("layer %s was asked for %d times", l.Digest, n)
		}
	}
	m, _ := img.Manifest()
	if n := registrytest.Count(requests, "/blobs/"+string(m.Config.Digest)); n < 1 || n > 2 {
		t.Errorf("the config was asked for %d times", n)
	}
}
