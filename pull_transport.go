package coracle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

const (
	maxRedirects = 10
	// maxAnswer is the most of any answer but a layer that is read.
	maxAnswer = 4 << 20
	// maxAttempts and maxRetryAfter bound what a registry may ask us to wait.
	maxAttempts   = 3
	maxRetryAfter = 30 * time.Second
	// minPerWindow bytes must arrive within each idle timeout, or a body of one byte a minute lasts for ever.
	minPerWindow = 4 << 10
)

// Errors of the transport, which the pull turns into a PullError.
var (
	errPlainHTTP = fmt.Errorf("plain http is for registries on this machine only: serve https, or name the host in RegistryConfig.PlainHTTP: %w", os.ErrPermission)
	errRedirects = fmt.Errorf("more than %d redirects", maxRedirects)
	errTooLarge  = fmt.Errorf("the answer is larger than %d bytes: %w", maxAnswer, ErrInvalid)
)

// blobRequest marks the context of a request whose answer is a layer: its size is checked against the manifest, by
// whoever reads it.
type blobRequest struct{}

// registryTransport is below everything else that talks to one registry, token servers and redirects included. It
// decides what may be sent where in clear, how long an answer may take and how large it may be, and it waits where a
// registry asks to.
type registryTransport struct {
	base http.RoundTripper
	// plain says whether a host may be spoken to without TLS.
	plain func(host string) bool
	idle  time.Duration
}

// newBaseTransport is made for each pull and thrown away with its connections.
func newBaseTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   8,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
		// Ten times less than by default; registries send a few hundred bytes.
		MaxResponseHeaderBytes: 1 << 20,
		// A layer is compressed already, and decompressing here would break its digest.
		DisableCompression: true,
	}
}

// RoundTrip sends the request, again if the registry is busy and says when to come back.
func (t *registryTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := t.check(req); err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		resp, err := t.once(req)
		if err != nil || attempt == maxAttempts || (req.Method != http.MethodGet && req.Method != http.MethodHead) {
			return resp, err
		}
		if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
			return resp, nil
		}
		wait, ok := retryAfter(resp.Header.Get("Retry-After"), time.Now())
		if !ok {
			return resp, nil
		}
		resp.Body.Close()
		select {
		case <-time.After(wait):
		case <-req.Context().Done():
			return nil, context.Cause(req.Context())
		}
	}
}

// check refuses what must not be sent.
func (t *registryTransport) check(req *http.Request) error {
	switch req.URL.Scheme {
	case "https":
	case "http":
		if !t.plain(req.URL.Host) {
			return fmt.Errorf("%s: %w", quoteShort(req.URL.Host), errPlainHTTP)
		}
	default:
		return fmt.Errorf("URL scheme %s: %w", quoteShort(req.URL.Scheme), errors.ErrUnsupported)
	}
	// The registry client above has no bound of its own on redirects.
	hops := 0
	for r := req; r.Response != nil && r.Response.Request != nil; r = r.Response.Request {
		if hops++; hops > maxRedirects {
			return errRedirects
		}
		prev := r.Response.Request
		// 307 and 308 repeat the body, and the body of a token request is a credential.
		if req.Method == http.MethodPost && (prev.URL.Host != req.URL.Host || prev.URL.Scheme != req.URL.Scheme) {
			return fmt.Errorf("the token server redirects a credential to another host: %w", os.ErrPermission)
		}
	}
	return nil
}

// retryAfter reads the header of RFC 9110, section 10.2.3. It is false where there is nothing to wait for, or too long.
func retryAfter(header string, now time.Time) (time.Duration, bool) {
	if header == "" {
		return 0, false
	}
	var wait time.Duration
	if n, err := strconv.ParseUint(header, 10, 32); err == nil {
		wait = time.Duration(n) * time.Second
	} else if at, err := http.ParseTime(header); err == nil {
		wait = max(at.Sub(now), 0)
	} else {
		return 0, false
	}
	return wait, wait <= maxRetryAfter
}

// once sends the request one time, under the idle timeout.
func (t *registryTransport) once(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	idle := &idleError{host: req.URL.Host, after: t.idle}
	timer := time.AfterFunc(t.idle, func() { cancel(idle) })
	resp, err := t.base.RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		var timeout net.Error
		if context.Cause(ctx) == idle {
			err = idle
		} else if req.Context().Err() == nil && errors.As(err, &timeout) && timeout.Timeout() {
			err = fmt.Errorf("%w: %w", err, os.ErrDeadlineExceeded)
		}
		cancel(nil)
		return nil, err
	}
	body := &boundedBody{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, timer: timer, window: t.idle, left: t.idle, max: maxAnswer}
	if req.Context().Value(blobRequest{}) != nil {
		body.max = -1
	}
	resp.Body = body
	return resp, nil
}

// idleError says that a server stopped to answer.
type idleError struct {
	host  string
	after time.Duration
}

func (e *idleError) Error() string {
	return fmt.Sprintf("%s sent nothing, or next to nothing, for %v (RegistryConfig.IdleTimeout)", quoteShort(e.host), e.after)
}

func (e *idleError) Unwrap() error { return os.ErrDeadlineExceeded }

// boundedBody ends with an error where too little or too much comes. The time counts only while somebody waits for the
// network: unpacking may be slower than that.
type boundedBody struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	window time.Duration
	left   time.Duration // of the present window
	got    int           // bytes in the present window
	max    int64         // bytes that may still come; negative: any number
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.max == 0 {
		var one [1]byte
		p = one[:] // to tell the end from more
	} else if b.max > 0 && int64(len(p)) > b.max {
		p = p[:b.max]
	}
	start := time.Now()
	b.timer.Reset(b.left)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if b.max == 0 && n > 0 {
		return 0, errTooLarge
	}
	if b.max > 0 {
		b.max -= int64(n)
	}
	if b.got += n; b.got >= minPerWindow {
		b.got, b.left = 0, b.window
	} else {
		b.left = max(b.left-time.Since(start), time.Nanosecond)
	}
	if err != nil && err != io.EOF {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (b *boundedBody) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}
