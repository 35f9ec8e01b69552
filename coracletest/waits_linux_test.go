package coracletest_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/coracletest"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// within gives a wait 20 s.
func within(w coracletest.Wait) coracletest.Wait { return coracletest.WithTimeout(20*time.Second, w) }

// brief gives a wait what one look takes, and not more than it takes to fail.
func brief(w coracletest.Wait) coracletest.Wait { return coracletest.WithTimeout(briefly(), w) }

func briefly() time.Duration {
	if os.Getenv(testutil.VMEnv) != "" { // where all takes ten times as long
		return 3 * time.Second
	}
	return time.Second
}

// TestWaits: each wait succeeds when what it waits for comes, and not before.
func TestWaits(t *testing.T) {
	eng := tool(t)
	exec := func(args ...string) func(*testing.T, *coracle.Container) {
		return func(t *testing.T, c *coracle.Container) {
			if err := c.Command("/tool", args...).Run(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	start := func(args ...string) func(*testing.T, *coracle.Container) {
		return func(t *testing.T, c *coracle.Container) {
			cmd := c.Command("/tool", args...)
			if err := cmd.Start(context.Background()); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		}
	}
	kill := func(t *testing.T, c *coracle.Container) {
		if err := c.Signal(t.Context(), syscall.SIGUSR1); err != nil {
			t.Error(err)
		}
	}
	var calls atomic.Int32
	for _, test := range []struct {
		name  string
		wait  coracletest.Wait
		cause func(t *testing.T, c *coracle.Container)
	}{
		{"log", coracletest.ForLog("ready", 1), nil},
		{"log, any number", coracletest.ForLog("ready", 0), nil},
		{"log, matched", coracletest.ForLogMatch(regexp.MustCompile("^re.dy$"), 1), nil},
		{"port", coracletest.ForPort("5432"), start("serve", "tcp", "127.0.0.1:5432")},
		{"port, tcp", coracletest.ForPort("5432/tcp"), start("serve", "tcp", "0.0.0.0:5432")},
		{"port, IPv6", coracletest.ForPort("5432/tcp"), start("serve", "tcp", "[::1]:5432")},
		{"port, udp", coracletest.ForPort("53/udp"), start("serve", "udp", "127.0.0.1:53")},
		{"port, udp, IPv6", coracletest.ForPort("53/udp"), start("serve", "udp", "[::]:53")},
		{"exec", coracletest.ForExec("/tool", "cat", "/made"), exec("write", "/made", "x")},
		{"file", coracletest.ForFile("/dir/made"), exec("mkdirs", "/dir/made")},
		{"file, mounted", coracletest.ForFile("/dev/shm/made"), exec("write", "/dev/shm/made", "x")},
		{"exit", coracletest.ForExit(int(syscall.SIGUSR1)), kill},
		{"exit, one of", coracletest.ForExit(1, int(syscall.SIGUSR1), 3), kill},
		{"all", coracletest.All(coracletest.ForLog("ready", 1), coracletest.ForFile("/dir/made")), exec("mkdirs", "/dir/made")},
		{"all of none", coracletest.All(), nil},
		{"any", coracletest.Any(coracletest.ForLog("never", 1), coracletest.ForPort("1"), coracletest.ForFile("/dir/made")), exec("mkdirs", "/dir/made")},
		{"any, one of them hopeless", coracletest.Any(coracletest.ForPort("no port"), coracletest.ForLog("ready", 1)), nil},
		{"function", coracletest.WaitFunc(func(context.Context, *coracle.Container) error {
			if calls.Add(1) < 5 {
				return errors.New("not yet")
			}
			return nil
		}), func(*testing.T, *coracle.Container) {}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := coracletest.RunIn(t, eng, spec("obey"))
			if test.cause != nil {
				if err := coracletest.ForLog("ready", 1).Wait(t.Context(), c); err != nil {
					t.Fatal(err)
				}
				if test.name != "function" {
					if err := coracletest.WithTimeout(20*time.Millisecond, test.wait).Wait(t.Context(), c); !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("too early: %v", err)
					}
				}
				test.cause(t, c)
			}
			if err := within(test.wait).Wait(t.Context(), c); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLogTimes: lines are counted, of both streams, and a wait without WithTimeout has some time.
func TestLogTimes(t *testing.T) {
	tool(t)
	c := coracletest.Run(t, spec("say", "x ready x", "else", "ready"), coracletest.ForLog("ready", 2))
	err := brief(coracletest.ForLog("ready", 3)).Wait(t.Context(), c)
	var w *coracletest.WaitError
	if !errors.As(err, &w) || w.What != `3 log lines with "ready"` || w.Last.Error() != "2 so far" || len(w.Log) != 3 || w.Log[1] != "stdout | else" {
		t.Errorf("%#v", err)
	}
	// What a container that has ended wrote counts too.
	coracletest.Run(t, spec("echo2", "to the other stream"), coracletest.ForLog("other stream", 1), coracletest.ForExit(), coracletest.ForLog("other", 1))
}

// TestWaitErrors: what was waited for, for how long, how the last look failed, and the end of the log.
func TestWaitErrors(t *testing.T) {
	eng := tool(t)
	c := coracletest.RunIn(t, eng, spec("say", "one", "two\x1b[2J"), coracletest.ForLog("two", 1))
	boom := errors.New("boom")
	tests := []struct {
		wait       coracletest.Wait
		what, last string
		is         error
	}{
		{coracletest.ForLog("never", 1), `a log line with "never"`, "", nil},
		{coracletest.ForLogMatch(regexp.MustCompile("^$"), 1), `a log line with /^$/`, "", nil},
		{coracletest.ForPort("5432/tcp"), "port 5432/tcp", "nobody listens", nil},
		{coracletest.ForPort("5432/udp"), "port 5432/udp", "nobody listens", nil},
		{coracletest.ForHTTP(80, "ready", nil), "GET http://localhost:80/ready", "connection refused", syscall.ECONNREFUSED},
		{coracletest.ForHTTP(443, "/", &coracletest.HTTPOptions{Method: "HEAD", TLS: &tls.Config{}}), "HEAD https://localhost:443/", "connection refused", syscall.ECONNREFUSED},
		{coracletest.ForExec("/tool", "cat", "/nothing"), "the command /tool cat /nothing", `exit status 1: open /nothing: no such file`, nil},
		{coracletest.ForExec("/nothing"), "the command /nothing", "no such file", syscall.ENOENT},
		{coracletest.ForFile("/nothing"), "the file /nothing", "no such file", syscall.ENOENT},
		{coracletest.ForFile("/proc/1/root/etc"), "the file /proc/1/root/etc", "too many levels", syscall.ELOOP},
		{coracletest.ForExit(), "its end", "", nil},
		{coracletest.WaitFunc(func(context.Context, *coracle.Container) error { return boom }), "a function", "boom", boom},
		{coracletest.All(coracletest.ForLog("one", 1), coracletest.ForPort("1")), "port 1", "nobody listens", nil},
	}
	errs := make([]error, len(tests))
	var all sync.WaitGroup
	for i, test := range tests { // at the same time, however many processors there are
		all.Go(func() { errs[i] = brief(test.wait).Wait(t.Context(), c) })
	}
	all.Wait()
	for i, test := range tests {
		t.Run(test.what, func(t *testing.T) {
			err := errs[i]
			var w *coracletest.WaitError
			if !errors.As(err, &w) || !errors.Is(err, context.DeadlineExceeded) || test.is != nil && !errors.Is(err, test.is) {
				t.Fatalf("%#v", err)
			}
			if w.What != test.what || w.Container != c.Name() || w.After < briefly()/2 || w.After > briefly()+20*time.Second {
				t.Errorf("%+v", w)
			}
			if (w.Last == nil) != (test.last == "") || w.Last != nil && !strings.Contains(w.Last.Error(), test.last) {
				t.Errorf("last: %v", w.Last)
			}
			if text := err.Error(); !strings.HasSuffix(text, "\nthe last 2 lines of its log:\n    stdout | one\n    stdout | two\\x1b[2J") || strings.Count(text, "\n") != 3 {
				t.Errorf("%q", text)
			}
		})
	}
	t.Run("any", func(t *testing.T) {
		err := coracletest.Any(brief(coracletest.ForPort("1")), brief(coracletest.ForLog("never", 1))).Wait(t.Context(), c)
		if text := fmt.Sprint(err); !strings.Contains(text, "port 1") || !strings.Contains(text, "never") {
			t.Errorf("%v", err)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for _, w := range []coracletest.Wait{coracletest.ForPort("1"), coracletest.ForLog("never", 1), coracletest.ForExit(), coracletest.ForHTTP(1, "/", nil)} {
			if err := w.Wait(ctx, c); !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
		}
	})
	t.Run("no log", func(t *testing.T) {
		s := spec("say", "ready")
		s.Log.Mode = coracle.LogNone
		c := coracletest.RunIn(t, eng, s)
		if err := coracletest.ForLog("ready", 1).Wait(t.Context(), c); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "nothing") {
			t.Errorf("%v", err)
		}
	})
	t.Run("never", func(t *testing.T) { // there is no sense in waiting
		for _, test := range []struct {
			wait coracletest.Wait
			want error
		}{
			{coracletest.ForPort(""), coracle.ErrInvalid}, {coracletest.ForPort("0"), coracle.ErrInvalid}, {coracletest.ForPort("65536"), coracle.ErrInvalid},
			{coracletest.ForPort("80/"), coracle.ErrInvalid}, {coracletest.ForPort("80/sctp"), coracle.ErrInvalid}, {coracletest.ForPort("tcp/80"), coracle.ErrInvalid},
			{coracletest.Any(), coracle.ErrInvalid},
		} {
			began := time.Now()
			if err := test.wait.Wait(t.Context(), c); !errors.Is(err, test.want) || time.Since(began) > 5*time.Second {
				t.Errorf("%v after %v", err, time.Since(began))
			}
		}
	})
}

// TestDies: a container that ends makes each wait end at once, with how it ended.
func TestDies(t *testing.T) {
	eng := tool(t)
	waits := map[string]coracletest.Wait{
		"log": coracletest.ForLog("never", 1), "port": coracletest.ForPort("1"), "http": coracletest.ForHTTP(1, "/", nil),
		"exec": coracletest.ForExec("/tool", "exit", "1"), "file": coracletest.ForFile("/never"), "exit": coracletest.ForExit(9),
		"any":      coracletest.Any(coracletest.ForPort("1"), coracletest.ForLog("never", 1)),
		"all":      coracletest.All(coracletest.ForLog("ready", 1), coracletest.ForPort("1")),
		"long":     coracletest.WithTimeout(time.Hour, coracletest.ForPort("1")),
		"function": coracletest.WaitFunc(func(context.Context, *coracle.Container) error { return errors.New("not yet") }),
	}
	for name, wait := range waits {
		t.Run(name, func(t *testing.T) {
			for _, detached := range []bool{false, true} {
				s := spec("obey")
				s.Detached = detached
				c := coracletest.RunIn(t, eng, s, coracletest.ForLog("ready", 1))
				time.AfterFunc(50*time.Millisecond, func() { c.Signal(context.Background(), syscall.SIGTERM) })
				began := time.Now()
				err := wait.Wait(t.Context(), c)
				var exit *coracle.ExitError
				var w *coracletest.WaitError
				if !errors.As(err, &w) || !errors.As(err, &exit) || exit.Code != int(syscall.SIGTERM) || time.Since(began) > 10*time.Second {
					t.Errorf("detached %t: after %v: %#v", detached, time.Since(began), err)
				} else if len(w.Log) != 1 || w.Log[0] != "stdout | ready" {
					t.Errorf("log %q", w.Log)
				}
				// And one that has ended already.
				if err := wait.Wait(t.Context(), c); !errors.As(err, &exit) {
					t.Errorf("detached %t: after the end: %v", detached, err)
				}
			}
		})
	}
	t.Run("code 0", func(t *testing.T) {
		var exit *coracle.ExitError
		if _, err := coracletest.Start(t, eng, spec("true"), coracletest.ForPort("1")); !errors.As(err, &exit) || exit.Code != 0 {
			t.Errorf("%v", err)
		}
	})
	t.Run("never started", func(t *testing.T) {
		s := spec("true")
		c, err := eng.Create(t.Context(), &s)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Remove(t.Context(), nil)
		for name, wait := range waits {
			if err := wait.Wait(t.Context(), c); !errors.Is(err, coracle.ErrNotRunning) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// TestForHTTP asks servers of the test through a container that has the host's network.
func TestForHTTP(t *testing.T) {
	eng := tool(t)
	s := spec("say", "ready")
	s.Networks = []coracle.Attachment{{Network: coracle.NetworkHost}}
	c := coracletest.RunIn(t, eng, s)
	var asked atomic.Int32
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow": // starts to answer the third one
			if asked.Add(1) < 3 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		case "/moved":
			http.Redirect(w, r, "/", http.StatusFound)
		case "/method":
			fmt.Fprintf(w, "%s %s %s", r.Method, r.Host, r.Header.Get("X-Mine"))
		case "/large":
			io.Copy(w, strings.NewReader(strings.Repeat("x", 2<<20)))
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewUnstartedServer(handler)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer plain.Close()
	defer secure.Close()
	port := func(s *httptest.Server) int { return s.Listener.Addr().(*net.TCPAddr).Port }
	trust := secure.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	trust.ServerName = "example.com"
	for _, test := range []struct {
		name   string
		server *httptest.Server
		path   string
		opts   *coracletest.HTTPOptions
		fails  string
	}{
		{"defaults", plain, "/", nil, ""},
		{"not at once", plain, "/slow", nil, ""},
		{"another status", plain, "/moved", &coracletest.HTTPOptions{Status: []int{200, 302}}, ""},
		{"not followed", plain, "/moved", nil, `the status is "302 Found"`},
		{"request", plain, "method", &coracletest.HTTPOptions{Method: "POST", Header: http.Header{"Host": {"app.test"}, "X-Mine": {"yes"}}, Body: regexp.MustCompile("^POST app.test yes$")}, ""},
		{"another body", plain, "method", &coracletest.HTTPOptions{Body: regexp.MustCompile("^POST")}, `the body does not match /^POST/: "GET localhost`},
		{"large", plain, "/large", &coracletest.HTTPOptions{Body: regexp.MustCompile("y")}, "xxx"},
		{"TLS", secure, "/", &coracletest.HTTPOptions{TLS: trust}, ""},
		{"TLS, not verified", secure, "/", &coracletest.HTTPOptions{TLS: &tls.Config{InsecureSkipVerify: true}}, ""},
		{"TLS, not trusted", secure, "/", &coracletest.HTTPOptions{TLS: &tls.Config{}}, "certificate"},
		{"no TLS there", plain, "/", &coracletest.HTTPOptions{TLS: &tls.Config{}}, "HTTP response to HTTPS client"},
	} {
		t.Run(test.name, func(t *testing.T) {
			wait := coracletest.ForHTTP(port(test.server), test.path, test.opts)
			if test.fails == "" {
				if err := within(wait).Wait(t.Context(), c); err != nil {
					t.Error(err)
				}
				return
			}
			if err := brief(wait).Wait(t.Context(), c); err == nil || !strings.Contains(err.Error(), test.fails) && !strings.Contains(errors.Unwrap(err).Error(), test.fails) {
				t.Errorf("%v", err)
			}
		})
	}
}
