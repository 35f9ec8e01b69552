package coracle_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// serving starts a container that sends back what it gets, and waits until it listens.
func serving(t testing.TB, eng *coracle.Engine, spec coracle.ContainerSpec, args ...string) *coracle.Container {
	t.Helper()
	out := &syncBuffer{}
	spec.Image, spec.Args = "tool", append([]string{"serve"}, args...)
	withoutNetwork(&spec)
	if !spec.Detached {
		spec.Stdout, spec.Stderr = out, out
	}
	c, err := eng.Create(t.Context(), &spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Remove(context.Background(), &coracle.RemoveOptions{Force: true}) })
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the container listens", func() bool {
		if spec.Detached {
			c.CopyLogs(t.Context(), out, out, nil)
		}
		return strings.Contains(out.String(), "listening") || strings.Contains(out.String(), "backlog")
	})
	return c
}

// echoed dials and expects to get back what is sent.
func echoed(t testing.TB, dial func() (net.Conn, error)) net.Conn {
	t.Helper()
	conn, err := dial()
	if err != nil {
		t.Error(err)
		return nil
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Error(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "hello" {
		t.Errorf("got back %q, %v", buf, err)
	}
	return conn
}

func TestDial(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, fstest.MapFS{"link": {Data: []byte("/srv"), Mode: fs.ModeSymlink | 0o777}, "srv": {Mode: fs.ModeDir | 0o777}})
	for _, test := range []struct {
		name, network, listen string
		dials                 map[string]string // address: network
		remote                string
	}{
		{"tcp4", "tcp", "127.0.0.1:5432", map[string]string{"127.0.0.1:5432": "tcp", "localhost:5432": "tcp", ":5432": "tcp4", "[::ffff:127.0.0.1]:5432": "tcp"}, "127.0.0.1:5432"},
		{"tcp6", "tcp", "[::1]:80", map[string]string{"[::1]:80": "tcp6", "localhost:80": "tcp", "localhost:http": "tcp6", "[::1%lo]:80": "tcp", "[::1%1]:80": "tcp"}, "[::1]:80"},
		{"udp", "udp", "127.0.0.1:53", map[string]string{"127.0.0.1:53": "udp", "localhost:53": "udp4"}, "127.0.0.1:53"},
		{"abstract", "unix", "@name", map[string]string{"@name": "unix"}, "@name"},
		{"path", "unix", "/srv/socket", map[string]string{"/srv/socket": "unix", "srv/socket": "unix", "/link/socket": "unix", "/../../srv/socket": "unix"}, "/srv/socket"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := serving(t, eng, coracle.ContainerSpec{}, test.network, test.listen)
			for address, network := range test.dials {
				conn := echoed(t, func() (net.Conn, error) { return c.Dial(network, address) })
				if conn == nil {
					t.Errorf("above: %s %s", network, address)
				} else if conn.RemoteAddr().String() != test.remote {
					t.Errorf("%s %s: the peer is %s", network, address, conn.RemoteAddr())
				}
			}
		})
	}
}

// TestDialElsewhere dials into a detached container, as the engine that started it and as another one, and into one that
// has the host's network.
func TestDialElsewhere(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := serving(t, eng, coracle.ContainerSpec{Name: "kept", Detached: true}, "tcp", "127.0.0.1:7")
	echoed(t, func() (net.Conn, error) { return c.Dial("tcp", "127.0.0.1:7") })
	serving(t, eng, coracle.ContainerSpec{Name: "attached"}, "tcp", "127.0.0.1:7")
	other := openAgain(t, eng.Root())
	for _, name := range []string{"kept", "attached"} {
		c, err := other.Container(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		echoed(t, func() (net.Conn, error) { return c.Dial("tcp", "127.0.0.1:7") })
	}
	host := serving(t, eng, coracle.ContainerSpec{Networks: []coracle.Attachment{{Network: coracle.NetworkHost}}}, "unix", "@coracle-dial-"+filepath.Base(eng.Root()))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "outside") }))
	defer server.Close()
	transport := &http.Transport{DialContext: host.DialContext}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "outside" {
		t.Errorf("%q, %v", body, err)
	}
	// With a network of its own it does not see the host's.
	if _, err := c.Dial("tcp", server.Listener.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the host's server from a container: %v", err)
	}
}

func TestDialErrors(t *testing.T) {
	eng := engine(t)
	ctx := t.Context()
	outside := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", outside)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	toolImage(t, eng, fstest.MapFS{
		"out":  {Data: []byte(outside), Mode: fs.ModeSymlink | 0o777},
		"up":   {Data: []byte("../../../../../.." + outside), Mode: fs.ModeSymlink | 0o777},
		"self": {Data: []byte("/proc/self/root" + outside), Mode: fs.ModeSymlink | 0o777},
		"file": {Data: []byte("x"), Mode: 0o644},
	})
	c := serving(t, eng, coracle.ContainerSpec{Networks: onNetworks(coracle.NetworkNone)}, "tcp", "127.0.0.1:7", "-1")
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	for _, test := range []struct {
		ctx              context.Context
		network, address string
		want             error
	}{
		{ctx, "tcp", "127.0.0.1:8", syscall.ECONNREFUSED},
		{ctx, "tcp", "localhost:8", syscall.ECONNREFUSED},
		{ctx, "udp", "[2001:db8::1]:53", syscall.ENETUNREACH},
		{ctx, "tcp", "10.1.2.3:1", syscall.ENETUNREACH},
		{ctx, "unix", "@nobody", syscall.ECONNREFUSED},
		{ctx, "unix", "/nothing", fs.ErrNotExist},
		{ctx, "unix", "/out", fs.ErrNotExist},
		{ctx, "unix", "/up", fs.ErrNotExist},
		{ctx, "unix", "/self", fs.ErrNotExist},
		{ctx, "unix", outside, fs.ErrNotExist},
		{ctx, "unix", "/proc/1/root" + outside, syscall.ELOOP},
		{ctx, "unix", "/file", syscall.ENOTSOCK},
		{ctx, "unix", "", coracle.ErrInvalid},
		{ctx, "unix", "@", coracle.ErrInvalid},
		{ctx, "unix", "@" + strings.Repeat("x", 108), coracle.ErrInvalid},
		{ctx, "unix", "/a\x00b", coracle.ErrInvalid},
		{ctx, "tcp", "127.0.0.1", coracle.ErrInvalid},
		{ctx, "tcp", "127.0.0.1:65536", coracle.ErrInvalid},
		{ctx, "tcp", "127.0.0.1:no-such-service", coracle.ErrInvalid},
		{ctx, "tcp6", "127.0.0.1:1", coracle.ErrInvalid},
		{ctx, "tcp4", "[::1]:1", coracle.ErrInvalid},
		{ctx, "sctp", "127.0.0.1:1", coracle.ErrInvalid},
		{ctx, "", "127.0.0.1:1", coracle.ErrInvalid},
		{ctx, "tcp", "example.org:80", errors.ErrUnsupported},
		{ctx, "tcp", "[fe80::1%nothing]:80", syscall.ENODEV},
		{canceled, "tcp", "127.0.0.1:7", context.Canceled},
	} {
		conn, err := c.DialContext(test.ctx, test.network, test.address)
		var op *coracle.OpError
		if !errors.Is(err, test.want) || !errors.As(err, &op) || conn != nil {
			t.Errorf("%s %q: %v, %v; want %v", test.network, test.address, conn, err, test.want)
		}
	}
	// Nobody takes connections, and the queue is full after some.
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	var dialErr error
	for range 10 {
		var conn net.Conn
		if conn, dialErr = c.DialContext(short, "tcp", "127.0.0.1:7"); dialErr != nil {
			break
		}
		defer conn.Close()
	}
	var timeout net.Error
	if !errors.Is(dialErr, context.DeadlineExceeded) || !errors.As(dialErr, &timeout) || !timeout.Timeout() {
		t.Errorf("a full queue: %v", dialErr)
	}
	if err := c.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	c.Wait(ctx)
	if _, err := c.Dial("tcp", "127.0.0.1:7"); !errors.Is(err, coracle.ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
	created, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := created.Dial("tcp", "127.0.0.1:7"); !errors.Is(err, coracle.ErrNotRunning) {
		t.Errorf("before the start: %v", err)
	}
	if err := created.Remove(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := created.Dial("tcp", "127.0.0.1:7"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the removal: %v", err)
	}
}

// TestDialThreads dials a thousand times at once, while goroutines and all threads of the program are looked at: none is in
// another network namespace but those that make sockets, which end.
func TestDialThreads(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := serving(t, eng, coracle.ContainerSpec{}, "tcp", "127.0.0.1:7")
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	before := testutil.Resources()
	stop := make(chan struct{})
	var looks atomic.Int64
	var lookers, dialers sync.WaitGroup
	for range 4 {
		lookers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if ns, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || ns != home {
					t.Errorf("a goroutine is in %s, %v, not in %s", ns, err, home)
					return
				}
				looks.Add(1)
			}
		})
	}
	const dials = 1000
	for i := range dials {
		dialers.Go(func() {
			conn, err := c.DialContext(t.Context(), "tcp", "127.0.0.1:7")
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			text := fmt.Sprintf("dial %06d", i)
			if _, err := io.WriteString(conn, text); err != nil {
				t.Error(err)
			}
			buf := make([]byte, len(text))
			if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != text {
				t.Errorf("%q, %v", buf, err)
			}
			if ns, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || ns != home {
				t.Errorf("who has dialed is in %s, %v", ns, err)
			}
		})
	}
	dialers.Wait()
	close(stop)
	lookers.Wait()
	if looks.Load() < dials {
		t.Errorf("only %d looks", looks.Load())
	}
	eventually(t, "all threads are at home", func() bool {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			if ns, err := os.Readlink("/proc/self/task/" + thread.Name() + "/ns/net"); err == nil && ns != home {
				return false
			}
		}
		return true
	})
	if threads, _ := os.ReadDir("/proc/self/task"); len(threads) > 200 {
		t.Errorf("%d threads", len(threads))
	}
	testutil.Settled(t, before)
}

func BenchmarkDial(b *testing.B) {
	eng := engine(b)
	toolImage(b, eng, nil)
	c := serving(b, eng, coracle.ContainerSpec{}, "tcp", "127.0.0.1:7")
	for b.Loop() {
		conn, err := c.DialContext(b.Context(), "tcp", "127.0.0.1:7")
		if err != nil {
			b.Fatal(err)
		}
		conn.Close()
	}
}
