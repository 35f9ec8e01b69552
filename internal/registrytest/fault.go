package registrytest

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"
)

// Fault replaces the answer to some requests.
type Fault struct {
	// Path is a part of the URL's path; empty matches all.
	Path string
	// Serve answers. next is the registry without the fault.
	Serve func(w http.ResponseWriter, req *http.Request, next http.Handler)

	left int
}

func (f *Fault) matches(req *http.Request) bool { return strings.Contains(req.URL.Path, f.Path) }

// Inject makes the next n requests whose path contains path fail; a negative n means all. The first fault that
// matches wins.
func (r *Registry) Inject(path string, n int, serve func(w http.ResponseWriter, req *http.Request, next http.Handler)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, &Fault{Path: path, Serve: serve, left: n})
}

// Heal removes all faults.
func (r *Registry) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// answer is what the registry would say.
func answer(req *http.Request, next http.Handler) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, req)
	return rec
}

func copyHeader(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
}

// Altered flips a bit in the middle of the body.
func Altered(w http.ResponseWriter, req *http.Request, next http.Handler) {
	rec := answer(req, next)
	copyHeader(w, rec)
	w.WriteHeader(rec.Code)
	body := rec.Body.Bytes()
	if len(body) > 0 {
		body[len(body)/2] ^= 0x10
	}
	_, _ = w.Write(body)
}

// Truncated promises the whole body, sends half, and closes the connection in order.
func Truncated(w http.ResponseWriter, req *http.Request, next http.Handler) {
	half(w, req, next, true)
	panic(http.ErrAbortHandler)
}

// ShortWithoutLength sends half of the body without saying how long it should be.
func ShortWithoutLength(w http.ResponseWriter, req *http.Request, next http.Handler) {
	half(w, req, next, false)
}

func half(w http.ResponseWriter, req *http.Request, next http.Handler, length bool) {
	rec := answer(req, next)
	copyHeader(w, rec)
	if !length {
		w.Header().Del("Content-Length")
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
	flush(w)
}

// Reset sends half of the body and resets the connection.
func Reset(w http.ResponseWriter, req *http.Request, next http.Handler) {
	half(w, req, next, true)
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if c, ok := conn.(interface{ SetLinger(int) error }); ok {
		_ = c.SetLinger(0)
	}
	conn.Close()
}

// Endless never stops to send.
func Endless(w http.ResponseWriter, req *http.Request, next http.Handler) {
	rec := answer(req, next)
	copyHeader(w, rec)
	w.Header().Del("Content-Length")
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes())
	zeros := make([]byte, 64<<10)
	for req.Context().Err() == nil {
		if _, err := w.Write(zeros); err != nil {
			return
		}
	}
}

// SlowLoris sends the header and then a byte at each interval.
func SlowLoris(interval time.Duration) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		rec := answer(req, next)
		copyHeader(w, rec)
		w.WriteHeader(rec.Code)
		for _, b := range rec.Body.Bytes() {
			select {
			case <-time.After(interval):
			case <-req.Context().Done():
				return
			}
			if _, err := w.Write([]byte{b}); err != nil {
				return
			}
			flush(w)
		}
	}
}

// Hang answers nothing until the client gives up.
func Hang(_ http.ResponseWriter, req *http.Request, _ http.Handler) { <-req.Context().Done() }

// HangBody answers with half of the body and then nothing.
func HangBody(w http.ResponseWriter, req *http.Request, next http.Handler) {
	half(w, req, next, true)
	<-req.Context().Done()
}

// Status answers with a status and, where it is not empty, a Retry-After header.
func Status(code int, retryAfter string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		fail(w, code, "TEST", fmt.Sprintf("status %d on request", code))
	}
}

// Redirect sends the client to the same path and query on another registry.
func Redirect(code int, to string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, req *http.Request, _ http.Handler) {
		http.Redirect(w, req, to+req.URL.RequestURI(), code)
	}
}

// RedirectLoop sends the client back to where it came from.
func RedirectLoop(w http.ResponseWriter, req *http.Request, _ http.Handler) {
	http.Redirect(w, req, req.URL.RequestURI(), http.StatusTemporaryRedirect)
}

// MediaType replaces the Content-Type.
func MediaType(t string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		rec := answer(req, next)
		copyHeader(w, rec)
		w.Header()["Content-Type"] = nil // nothing, and no guess either
		if t != "" {
			w.Header().Set("Content-Type", t)
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	}
}

// RedirectURL sends the client to a fixed URL.
func RedirectURL(url string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Location", url)
		w.WriteHeader(http.StatusTemporaryRedirect)
	}
}

// HugeHeader adds so many bytes of header to the answer.
func HugeHeader(n int) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		for i := 0; i < n; i += 1000 {
			w.Header().Add("X-Huge", strings.Repeat("x", 1000))
		}
		next.ServeHTTP(w, req)
	}
}

// HeaderTrickles sends a header line without end, a byte at each interval.
func HeaderTrickles(interval time.Duration) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, req *http.Request, _ http.Handler) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		text := "HTTP/1.1 200 OK\r\nX-Slow: "
		for err == nil && req.Context().Err() == nil {
			_, err = conn.Write([]byte(text))
			text = "x"
			time.Sleep(interval)
		}
	}
}

// Informational sends one 103 answer after the other and never a final one.
func Informational(w http.ResponseWriter, req *http.Request, _ http.Handler) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	for err == nil && req.Context().Err() == nil {
		_, err = conn.Write([]byte("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"))
	}
}

// GzipBomb answers with so many megabytes of zeros in gzip's Content-Encoding, asked for or not.
func GzipBomb(megabytes int) func(http.ResponseWriter, *http.Request, http.Handler) {
	var buf bytes.Buffer
	z, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	must(err)
	for range megabytes {
		_, err := z.Write(make([]byte, 1<<20))
		must(err)
	}
	must(z.Close())
	return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		rec := answer(req, next)
		copyHeader(w, rec)
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Length", fmt.Sprint(buf.Len()))
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(buf.Bytes())
	}
}

// Gzipped answers in gzip's Content-Encoding, though nobody asked for it.
func Gzipped(w http.ResponseWriter, req *http.Request, next http.Handler) {
	rec := answer(req, next)
	copyHeader(w, rec)
	w.Header().Del("Content-Length")
	w.Header().Set("Content-Encoding", "gzip")
	w.WriteHeader(rec.Code)
	z := gzip.NewWriter(w)
	_, _ = z.Write(rec.Body.Bytes())
	_ = z.Close()
}

// Partial answers 206 with the second half, though the whole was asked for.
func Partial(w http.ResponseWriter, req *http.Request, next http.Handler) {
	rec := answer(req, next)
	copyHeader(w, rec)
	body := rec.Body.Bytes()
	half := len(body) / 2
	w.Header().Set("Content-Length", fmt.Sprint(len(body)-half))
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", half, len(body)-1, len(body)))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(body[half:])
}

// Longer adds bytes to the body and says so.
func Longer(w http.ResponseWriter, req *http.Request, next http.Handler) {
	rec := answer(req, next)
	copyHeader(w, rec)
	w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()+100))
	w.WriteHeader(rec.Code)
	_, _ = w.Write(append(rec.Body.Bytes(), make([]byte, 100)...))
}

// ErrorEndless answers with an error status and a body without end.
func ErrorEndless(code int) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, req *http.Request, _ http.Handler) {
		w.WriteHeader(code)
		text := bytes.Repeat([]byte("error "), 10_000)
		for req.Context().Err() == nil {
			if _, err := w.Write(text); err != nil {
				return
			}
		}
	}
}

// ContentDigest says that the content has another digest.
func ContentDigest(d string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		rec := answer(req, next)
		copyHeader(w, rec)
		w.Header().Set("Docker-Content-Digest", d)
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	}
}

func flush(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }
