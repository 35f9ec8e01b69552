package coracletest

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coracle-dev/coracle"
)

// HTTPOptions say what [ForHTTP] asks and which answer it waits for; nil means a GET without TLS whose status is 2xx.
type HTTPOptions struct {
	// Method is that of the request. Empty means GET.
	Method string
	// Header is sent along; "Host" in it is the name of the server that is asked for. Nil means none.
	Header http.Header
	// Status are the status codes to wait for. None stand for 200 to 299. Redirections are not followed.
	Status []int
	// Body is an expression that matches the answer's body, of which at most 1 MB is read. Nil means any body.
	Body *regexp.Regexp
	// TLS makes it https. The server's certificate has to be one for TLS.ServerName, or "localhost" if that is empty,
	// unless TLS.InsecureSkipVerify is set. Nil means http.
	TLS *tls.Config
}

// An attempt may not take longer: the server may have been too young for an answer.
const httpAttempt = 5 * time.Second

const maxHTTPBody = 1 << 20

// ForHTTP waits until a server in the container answers on a port of its localhost. It is asked through the container's
// network namespace, so no port has to be published.
func ForHTTP(port int, path string, opts *HTTPOptions) Wait {
	w := httpWait{port: port, path: path}
	if opts != nil {
		w.opts = *opts
	}
	return w
}

type httpWait struct {
	port int
	path string
	opts HTTPOptions
}

func (w httpWait) Wait(ctx context.Context, c *coracle.Container) error {
	scheme := "http"
	if w.opts.TLS != nil {
		scheme = "https"
	}
	method := w.opts.Method
	if method == "" {
		method = http.MethodGet
	}
	path := w.path
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	url := scheme + "://" + net.JoinHostPort("localhost", strconv.Itoa(w.port)) + path
	transport := &http.Transport{DialContext: c.DialContext, TLSClientConfig: w.opts.TLS, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return poll(ctx, c, method+" "+url, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, httpAttempt)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, url, nil)
		if err != nil {
			return errUseless{err}
		}
		if w.opts.Header != nil {
			req.Header = w.opts.Header.Clone()
			req.Host = req.Header.Get("Host")
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		return w.check(resp)
	})
}

func (w httpWait) check(resp *http.Response) error {
	if ok := slices.Contains(w.opts.Status, resp.StatusCode) || len(w.opts.Status) == 0 && resp.StatusCode/100 == 2; !ok {
		return fmt.Errorf("the status is %q", resp.Status)
	}
	if w.opts.Body == nil {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxHTTPBody))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if !w.opts.Body.Match(body) {
		return fmt.Errorf("the body does not match /%s/: %q", w.opts.Body, body[:min(len(body), 200)])
	}
	return nil
}
