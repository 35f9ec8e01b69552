package coracle_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
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

// callFrom has a process of the container call an address, and returns what it got.
func callFrom(t testing.TB, c *coracle.Container, user, network, address, text string) string {
	t.Helper()
	cmd := c.Command("/tool", "call", network, address, text)
	cmd.User = user
	out, err := cmd.Output(t.Context())
	if err != nil {
		var exit *coracle.ExitError
		if errors.As(err, &exit) {
			return "error: " + strings.TrimSpace(string(exit.Stderr))
		}
		t.Errorf("%s %s: %v", network, address, err)
	}
	return string(out)
}

// answering answers what comes to a listener until that is closed.
func answering(t testing.TB, l net.Listener) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				return
			}
			buf := make([]byte, 100)
			n, _ := conn.Read(buf)
			fmt.Fprintf(conn, "%s to you", buf[:n])
			conn.Close()
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
}

func echoing(t testing.TB, p net.PacketConn) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for buf := make([]byte, 100); ; {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				return
			}
			if _, err := p.WriteTo([]byte(string(buf[:n])+" to you"), from); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(func() {
		p.Close()
		wg.Wait()
	})
}

func TestListen(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, fstest.MapFS{"srv": {Mode: fs.ModeDir | 0o755}, "link": {Data: []byte("/srv"), Mode: fs.ModeSymlink | 0o777}})
	for _, test := range []struct {
		network, address string
		calls            []string // network and address
		refused          []string
	}{
		{"tcp", "127.0.0.1:80", []string{"tcp 127.0.0.1:80"}, []string{"tcp [::1]:80", "tcp 127.0.0.2:80"}},
		{"tcp", "localhost:http", []string{"tcp 127.0.0.1:80"}, []string{"tcp [::1]:80"}},
		{"tcp6", "localhost:80", []string{"tcp [::1]:80"}, []string{"tcp 127.0.0.1:80"}},
		{"tcp", "[::1%lo]:80", []string{"tcp [::1]:80"}, []string{"tcp 127.0.0.1:80"}},
		{"tcp", ":80", []string{"tcp 127.0.0.1:80", "tcp [::1]:80", "tcp 127.0.0.2:80"}, nil},
		{"tcp", "0.0.0.0:80", []string{"tcp 127.0.0.1:80", "tcp [::1]:80"}, nil},
		{"tcp", "[::]:80", []string{"tcp 127.0.0.1:80", "tcp [::1]:80"}, nil},
		{"tcp4", ":80", []string{"tcp 127.0.0.1:80"}, []string{"tcp [::1]:80"}},
		{"tcp6", ":80", []string{"tcp [::1]:80"}, []string{"tcp 127.0.0.1:80"}},
		{"udp", "127.0.0.1:53", []string{"udp 127.0.0.1:53"}, []string{"udp [::1]:53"}},
		{"udp", ":53", []string{"udp 127.0.0.1:53", "udp [::1]:53"}, nil},
		{"udp6", ":53", []string{"udp [::1]:53"}, []string{"udp 127.0.0.1:53"}},
		{"unix", "@name", []string{"unix @name"}, []string{"unix @other"}},
		{"unixgram", "@name", []string{"unixgram @name"}, nil},
		{"unix", "/srv/socket", []string{"unix /srv/socket", "unix /link/socket"}, nil},
		{"unix", "link/../srv/@socket", []string{"unix /srv/@socket"}, []string{"unix @socket"}},
		{"unixgram", "/srv/socket", []string{"unixgram /srv/socket"}, nil},
	} {
		t.Run(test.network+" "+test.address, func(t *testing.T) {
			c := running(t, eng, coracle.ContainerSpec{})
			if strings.HasPrefix(test.network, "udp") || test.network == "unixgram" {
				p, err := c.ListenPacket(t.Context(), test.network, test.address)
				if err != nil {
					t.Fatal(err)
				}
				echoing(t, p)
			} else {
				l, err := c.Listen(t.Context(), test.network, test.address)
				if err != nil {
					t.Fatal(err)
				}
				answering(t, l)
			}
			for _, call := range test.calls {
				network, address, _ := strings.Cut(call, " ")
				for _, user := range []string{"", "1000:1000"} {
					if got := callFrom(t, c, user, network, address, "hello"); got != "hello to you" {
						t.Errorf("%s as %q: %q", call, user, got)
					}
				}
			}
			for _, call := range test.refused {
				network, address, _ := strings.Cut(call, " ")
				if got := callFrom(t, c, "", network, address, "hello"); !strings.Contains(got, "refused") {
					t.Errorf("%s: %q", call, got)
				}
			}
		})
	}
}

// TestListenHTTP serves a container something on its own localhost, through the standard library's server, and another
// container nothing.
func TestListenHTTP(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{})
	l, err := c.Listen(t.Context(), "tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "path %s", r.URL.Path) })}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	address := l.Addr().String()
	if got := callFrom(t, c, "", "tcp", address, "GET /fake HTTP/1.0\r\n\r\n"); !strings.HasSuffix(got, "\r\n\r\npath /fake") {
		t.Errorf("the container got %q", got)
	}
	transport := &http.Transport{DialContext: c.DialContext}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://" + address + "/dial")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "path /dial" {
		t.Errorf("by Dial: %q, %v", body, err)
	}
	other := running(t, eng, coracle.ContainerSpec{})
	if got := callFrom(t, other, "", "tcp", address, "x"); !strings.Contains(got, "refused") {
		t.Errorf("another container: %q", got)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve: %v", err)
	}
}

// TestListenPorts: a port is held for both families or one, is free again at once, and the queue has room.
func TestListenPorts(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	c := running(t, eng, coracle.ContainerSpec{})
	listen := func(network, address string) net.Listener {
		t.Helper()
		l, err := c.Listen(t.Context(), network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	four, six := listen("tcp4", ":80"), listen("tcp6", ":80")
	if _, err := c.Listen(t.Context(), "tcp", ":80"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Error(err)
	}
	conn := func() net.Conn {
		conn, err := c.Dial("tcp", "127.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	conn()
	accepted, err := four.Accept()
	if err != nil {
		t.Fatal(err)
	}
	accepted.Close() // first: the port has a connection that waits for its end
	four.Close()
	six.Close()
	if err := six.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a second Close: %v", err)
	}
	l := listen("tcp", ":80")
	if l.Addr().String() != "[::]:80" {
		t.Errorf("the address is %s", l.Addr())
	}
	for range 200 { // nobody accepts
		conn()
	}
	early := listen("tcp", ":0")
	early.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now())
	if _, err := early.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	p, err := c.ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if a, ok := p.LocalAddr().(*net.UDPAddr); !ok || a.Port == 0 {
		t.Errorf("the address is %v", p.LocalAddr())
	}
	options := p.(interface{ SetReadBuffer(int) error })
	if err := options.SetReadBuffer(1 << 16); err != nil {
		t.Error(err)
	}
	p.SetReadDeadline(time.Now())
	if _, _, err := p.ReadFrom(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

// TestListenPath: a socket's path is one of the container's, whatever links its image has.
func TestListenPath(t *testing.T) {
	eng := engine(t)
	outside := t.TempDir()
	toolImage(t, eng, fstest.MapFS{
		"srv":      {Mode: fs.ModeDir | 0o755},
		"out":      {Data: []byte(outside), Mode: fs.ModeSymlink | 0o777},
		"up":       {Data: []byte("../../../../.." + outside), Mode: fs.ModeSymlink | 0o777},
		"srv/name": {Data: []byte(outside + "/socket"), Mode: fs.ModeSymlink | 0o777},
		"srv/self": {Data: []byte("/srv/other"), Mode: fs.ModeSymlink | 0o777},
		"file":     {Data: []byte("x"), Mode: 0o644},
	})
	c := running(t, eng, coracle.ContainerSpec{})
	for address, want := range map[string]error{
		"/out/socket":                  fs.ErrNotExist,
		"/up/socket":                   fs.ErrNotExist,
		outside + "/socket":            fs.ErrNotExist,
		"/srv/../.." + outside + "/s":  fs.ErrNotExist,
		"/srv/name":                    syscall.EADDRINUSE,
		"/srv/self":                    syscall.EADDRINUSE,
		"/file":                        syscall.EADDRINUSE,
		"/srv":                         syscall.EADDRINUSE,
		"/file/socket":                 syscall.ENOTDIR,
		"/none/socket":                 fs.ErrNotExist,
		"/proc/self/root/srv/x":        fs.ErrNotExist,
		"/proc/1/root/srv/x":           syscall.ELOOP,
		"/proc/1/fd/socket":            fs.ErrNotExist,
		"/sys/socket":                  syscall.EROFS,
		"/srv/":                        coracle.ErrInvalid,
		"/srv/..":                      coracle.ErrInvalid,
		"/":                            coracle.ErrInvalid,
		".":                            coracle.ErrInvalid,
		"/" + strings.Repeat("x", 106): coracle.ErrInvalid,
	} {
		if l, err := c.Listen(t.Context(), "unix", address); !errors.Is(err, want) {
			t.Errorf("%s: %v, %v, want %v", address, l, err, want)
			if err == nil {
				l.Close()
			}
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 0 {
		t.Errorf("on the host: %v, %v", entries, err)
	}
	ls := func(dir string) string {
		out, err := c.Command("/tool", "ls", dir).Output(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	l, err := c.Listen(t.Context(), "unix", "srv/./socket")
	if err != nil {
		t.Fatal(err)
	}
	if l.Addr().String() != "/srv/socket" || l.Addr().Network() != "unix" {
		t.Errorf("the address is %s %s", l.Addr().Network(), l.Addr())
	}
	if got := ls("/srv"); !strings.Contains(got, "socket") {
		t.Errorf("/srv has %q", got)
	}
	if _, err := c.Listen(t.Context(), "unix", "/srv/socket"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second time: %v", err)
	}
	l.Close()
	if got := ls("/srv"); strings.Contains(got, "socket") {
		t.Errorf("after Close /srv has %q", got)
	}
	// What has taken its place stays.
	if l, err = c.Listen(t.Context(), "unix", "/srv/socket"); err != nil {
		t.Fatal(err)
	}
	if out, err := c.Command("/tool", "attack", "link", "elsewhere", "/srv/socket").Output(t.Context()); err != nil {
		t.Fatal(err, string(out))
	}
	l.Close()
	if got := ls("/srv"); !strings.Contains(got, "socket") {
		t.Errorf("somebody else's was removed: %q", got)
	}
	// The longest name there is.
	longest := "/srv/" + strings.Repeat("x", 105)
	if l, err = c.Listen(t.Context(), "unix", longest); err != nil {
		t.Fatal(err)
	}
	answering(t, l)
	conn, err := c.Dial("unix", longest)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "hello")
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello to you" {
		t.Errorf("%q, %v", got, err)
	}
	if umask := syscall.Umask(0o22); umask != 0o22 {
		t.Errorf("the program's umask has become %o", umask)
	}
}

func TestListenErrors(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	ctx := t.Context()
	c := running(t, eng, coracle.ContainerSpec{})
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	for _, test := range []struct {
		ctx              context.Context
		network, address string
		want             error
	}{
		{ctx, "tcp", "10.1.2.3:80", syscall.EADDRNOTAVAIL},
		{ctx, "tcp", "[2001:db8::1]:80", syscall.EADDRNOTAVAIL},
		{ctx, "tcp", "127.0.0.1", coracle.ErrInvalid},
		{ctx, "tcp", "", coracle.ErrInvalid},
		{ctx, "tcp", "127.0.0.1:65536", coracle.ErrInvalid},
		{ctx, "tcp", "127.0.0.1:no-such-service", coracle.ErrInvalid},
		{ctx, "tcp6", "127.0.0.1:1", coracle.ErrInvalid},
		{ctx, "tcp6", "0.0.0.0:1", coracle.ErrInvalid},
		{ctx, "tcp4", "[::1]:1", coracle.ErrInvalid},
		{ctx, "tcp4", "[::]:1", coracle.ErrInvalid},
		{ctx, "udp", "127.0.0.1:1", coracle.ErrInvalid}, // no network of Listen
		{ctx, "sctp", "127.0.0.1:1", coracle.ErrInvalid},
		{ctx, "", "127.0.0.1:1", coracle.ErrInvalid},
		{ctx, "tcp", "example.org:80", errors.ErrUnsupported},
		{ctx, "tcp", "[fe80::1%nothing]:80", syscall.ENODEV},
		{ctx, "unix", "", coracle.ErrInvalid},
		{ctx, "unix", "@", coracle.ErrInvalid},
		{ctx, "unix", "@" + strings.Repeat("x", 108), coracle.ErrInvalid},
		{ctx, "unix", "/a\x00b", coracle.ErrInvalid},
		{canceled, "tcp", "127.0.0.1:7", context.Canceled},
		{canceled, "unix", "/socket", context.Canceled},
	} {
		l, err := c.Listen(test.ctx, test.network, test.address)
		var op *coracle.OpError
		if !errors.Is(err, test.want) || !errors.As(err, &op) || l != nil {
			t.Errorf("%s %q: %v, %v; want %v", test.network, test.address, l, err, test.want)
		}
	}
	for _, network := range []string{"tcp", "unix", "ip", "udp5", ""} {
		if p, err := c.ListenPacket(ctx, network, "127.0.0.1:1"); !errors.Is(err, coracle.ErrInvalid) || p != nil {
			t.Errorf("ListenPacket of %q: %v, %v", network, p, err)
		}
	}
	if _, err := c.ListenPacket(ctx, "udp", "10.1.2.3:80"); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Error(err)
	}
	created, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "tool"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := created.Listen(ctx, "tcp", ":0"); !errors.Is(err, coracle.ErrNotRunning) {
		t.Errorf("before the start: %v", err)
	}
	if err := created.Remove(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := created.Listen(ctx, "tcp", ":0"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the removal: %v", err)
	}
	closed := openAgain(t, eng.Root())
	handle, err := closed.Container(ctx, c.ID())
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	if _, err := handle.Listen(ctx, "tcp", ":0"); !errors.Is(err, coracle.ErrClosed) {
		t.Errorf("of a closed engine: %v", err)
	}
}

// TestListenEnds: listeners end with their container and with their engine, by whichever engine they were made.
func TestListenEnds(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, fstest.MapFS{"srv": {Mode: fs.ModeDir | 0o755}})
	ctx := t.Context()
	// Accept and ReadFrom return what ended them.
	waits := func(c *coracle.Container) (net.Listener, net.Listener, net.PacketConn, chan error) {
		t.Helper()
		l, err := c.Listen(ctx, "tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		u, err := c.Listen(ctx, "unix", "/srv/socket")
		if err != nil {
			t.Fatal(err)
		}
		p, err := c.ListenPacket(ctx, "udp", ":53")
		if err != nil {
			t.Fatal(err)
		}
		errs := make(chan error, 3)
		for _, l := range []net.Listener{l, u} {
			go func() {
				_, err := l.Accept()
				errs <- err
			}()
		}
		go func() {
			_, _, err := p.ReadFrom(make([]byte, 1))
			errs <- err
		}()
		return l, u, p, errs
	}
	for name, test := range map[string]struct {
		detached, other bool // another engine listens
		end             func(c *coracle.Container, listener *coracle.Engine) error
		want            error
	}{
		"attached, killed":            {false, false, func(c *coracle.Container, _ *coracle.Engine) error { return c.Kill(ctx) }, coracle.ErrNotRunning},
		"attached, killed, elsewhere": {false, true, func(c *coracle.Container, _ *coracle.Engine) error { return c.Kill(ctx) }, coracle.ErrNotRunning},
		"detached, killed":            {true, false, func(c *coracle.Container, _ *coracle.Engine) error { return c.Kill(ctx) }, coracle.ErrNotRunning},
		"detached, killed, elsewhere": {true, true, func(c *coracle.Container, _ *coracle.Engine) error { return c.Kill(ctx) }, coracle.ErrNotRunning},
		"detached, engine closed":     {true, true, func(_ *coracle.Container, e *coracle.Engine) error { return e.Close() }, coracle.ErrClosed},
		"attached, engine closed":     {false, true, func(_ *coracle.Container, e *coracle.Engine) error { return e.Close() }, coracle.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			c := running(t, eng, coracle.ContainerSpec{Detached: test.detached})
			listens, by := c, eng
			if test.other {
				by = openAgain(t, eng.Root())
				var err error
				if listens, err = by.Container(ctx, c.ID()); err != nil {
					t.Fatal(err)
				}
			}
			before := sockets() // the engine may be about to open more of other kinds, for a container that it follows
			l, u, p, errs := waits(listens)
			if err := test.end(c, by); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				var op *coracle.OpError
				if err := <-errs; !errors.Is(err, test.want) || !errors.Is(err, net.ErrClosed) || !errors.As(err, &op) {
					t.Errorf("it returned %v", err)
				}
			}
			if _, err := l.Accept(); !errors.Is(err, test.want) {
				t.Errorf("later it returns %v", err)
			}
			if _, err := p.WriteTo([]byte("x"), p.LocalAddr()); !errors.Is(err, test.want) {
				t.Errorf("later it returns %v", err)
			}
			for _, closer := range []io.Closer{l, u, p} {
				if err := closer.Close(); err != nil {
					t.Errorf("Close after the end: %v", err)
				}
			}
			if now := sockets(); now > before { // an attached container's own has gone
				t.Errorf("%d sockets are open, %d were", now, before)
			}
			if test.want != coracle.ErrNotRunning {
				return
			}
			// A new start has a namespace of its own, and the path is free.
			c.Wait(ctx)
			eventually(t, "it starts again", func() bool { return c.Start(ctx) == nil })
			l, u, p, errs = waits(c)
			l.Close()
			u.Close()
			p.Close()
			for range 3 {
				if err := <-errs; !errors.Is(err, net.ErrClosed) || errors.Is(err, coracle.ErrNotRunning) {
					t.Errorf("closed by the program: %v", err)
				}
			}
		})
	}
}

// sockets counts the program's open sockets.
func sockets() int {
	n := 0
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}

// TestListenRace: a container ends, and its listeners are closed, while others are made.
func TestListenRace(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	if err := eng.Run(t.Context(), &coracle.ContainerSpec{Image: "tool", Args: []string{"true"}}); err != nil { // opens what stays open
		t.Fatal(err)
	}
	before := testutil.Resources()
	for range 20 {
		c, err := eng.Create(t.Context(), &coracle.ContainerSpec{Image: "tool", Args: []string{"stubborn"}, AutoRemove: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		var makers sync.WaitGroup
		for range 4 {
			makers.Go(func() {
				for {
					l, err := c.Listen(t.Context(), "tcp", "127.0.0.1:0")
					if errors.Is(err, coracle.ErrNotRunning) || errors.Is(err, fs.ErrNotExist) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					go l.Close()
					l.Accept()
				}
			})
		}
		if err := c.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		makers.Wait()
	}
	testutil.Settled(t, before)
}

// TestListenNamespace looks at an interface of the host's whose other end is in the container: it goes with the container's
// network namespace. An open listener does not keep that; a connection does until it is closed.
func TestListenNamespace(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, nil)
	testutil.NotInVM(t, "there is no ip command")
	if _, err := exec.LookPath("ip"); err != nil {
		testutil.Skip(t, "needs ip, of Debian's iproute2: "+err.Error())
	}
	for _, detached := range []bool{false, true} {
		t.Run(fmt.Sprintf("detached %t", detached), func(t *testing.T) {
			c := running(t, eng, coracle.ContainerSpec{Detached: detached})
			info, err := c.Inspect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			link := "cort" + c.ID()[:10]
			out, err := exec.Command("ip", "link", "add", link, "type", "veth", "peer", "name", "eth7", "netns", strconv.Itoa(info.PID)).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			t.Cleanup(func() { exec.Command("ip", "link", "delete", link).Run() })
			there := func() bool {
				_, err := net.InterfaceByName(link)
				return err == nil
			}
			l, err := c.Listen(t.Context(), "tcp", ":0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			p, err := c.ListenPacket(t.Context(), "udp", ":0")
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			conn, err := c.Dial("tcp", "localhost"+l.Addr().String()[len("[::]"):])
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := c.Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
			c.Wait(t.Context())
			for {
				accepted, err := l.Accept() // the connection, if it comes before the end
				if err != nil {
					if !errors.Is(err, coracle.ErrNotRunning) {
						t.Errorf("Accept: %v", err)
					}
					break
				}
				accepted.Close()
			}
			if !there() {
				t.Error("the namespace has gone while a connection is open")
			}
			conn.Close()
			eventually(t, "the network namespace goes", func() bool { return !there() })
		})
	}
}

// TestListenThreads makes sockets from many goroutines while all threads of the program are looked at: none that runs
// goroutines is in another network namespace, or has another root or working directory.
func TestListenThreads(t *testing.T) {
	eng := engine(t)
	toolImage(t, eng, fstest.MapFS{"srv": {Mode: fs.ModeDir | 0o755}})
	c := serving(t, eng, coracle.ContainerSpec{}, "tcp", "127.0.0.1:7")
	home := func() string {
		ns, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Error(err)
		}
		cwd, err := os.Readlink("/proc/thread-self/cwd")
		if err != nil {
			t.Error(err)
		}
		return ns + " " + cwd
	}
	want := home()
	ns, cwd, _ := strings.Cut(want, " ")
	before := testutil.Resources()
	away := threadsAway(cwd) // the store has a thread that is, where overlayfs knows no lowerdir+
	var looks, others atomic.Int64
	stop := make(chan struct{})
	var lookers, makers sync.WaitGroup
	for range 4 {
		lookers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if at := home(); at != want {
					t.Errorf("a goroutine is at %s, not %s", at, want)
					return
				}
				looks.Add(1)
			}
		})
	}
	lookers.Go(func() { // what the lookers must not see exists
		for {
			select {
			case <-stop:
				return
			default:
			}
			others.Add(int64(len(threadsElsewhere(ns))))
			time.Sleep(time.Millisecond)
		}
	})
	rounds := 30
	if testutil.Short() {
		rounds = 8
	}
	for i := range 16 {
		makers.Go(func() {
			for n := range rounds {
				network, address := "tcp", "127.0.0.1:0"
				if n%3 == 0 {
					network, address = "unix", fmt.Sprintf("/srv/%d-%d", i, n)
				}
				l, err := c.Listen(t.Context(), network, address)
				if err != nil {
					t.Error(err)
					return
				}
				go func() {
					if conn, err := l.Accept(); err == nil {
						io.Copy(conn, conn)
						conn.Close()
					}
				}()
				conn, err := c.Dial(network, l.Addr().String())
				if err != nil {
					t.Error(err)
				} else {
					io.WriteString(conn, "x")
					if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
						t.Error(err)
					}
					conn.Close()
				}
				l.Close()
				if at := home(); at != want {
					t.Errorf("who has listened is at %s", at)
				}
			}
		})
	}
	makers.Wait()
	close(stop)
	lookers.Wait()
	t.Logf("%d looks at goroutines, %d sights of threads elsewhere", looks.Load(), others.Load())
	eventually(t, "all threads are at home", func() bool { return len(threadsElsewhere(ns)) == 0 })
	for thread, at := range threadsAway(cwd) {
		if away[thread] != at {
			t.Errorf("thread %s is in %s", thread, at)
		}
	}
	threads, _ := os.ReadDir("/proc/self/task")
	if len(threads) > 200 {
		t.Errorf("%d threads", len(threads))
	}
	testutil.Settled(t, before)
}

// threadsElsewhere lists the threads of this program that are in another network namespace.
func threadsElsewhere(home string) []string {
	var list []string
	threads, _ := os.ReadDir("/proc/self/task")
	for _, thread := range threads {
		if ns, err := os.Readlink("/proc/self/task/" + thread.Name() + "/ns/net"); err == nil && ns != home {
			list = append(list, thread.Name())
		}
	}
	return list
}

// threadsAway lists the threads of this program that have another working directory, with that.
func threadsAway(cwd string) map[string]string {
	list := make(map[string]string)
	threads, _ := os.ReadDir("/proc/self/task")
	for _, thread := range threads {
		if at, err := os.Readlink(filepath.Join("/proc/self/task", thread.Name(), "cwd")); err == nil && at != cwd {
			list[thread.Name()] = at
		}
	}
	return list
}

func BenchmarkListen(b *testing.B) {
	eng := engine(b)
	toolImage(b, eng, nil)
	c := running(b, eng, coracle.ContainerSpec{})
	for _, test := range [][2]string{{"tcp", "127.0.0.1:0"}, {"unix", "/socket"}} {
		b.Run(test[0], func(b *testing.B) {
			for b.Loop() {
				l, err := c.Listen(b.Context(), test[0], test[1])
				if err != nil {
					b.Fatal(err)
				}
				l.Close()
			}
		})
	}
}
