// Package registrytest is an image registry for tests: it serves what it is given over HTTP on loopback, records what it
// is asked, and misbehaves on request. Unlike a real one it checks nothing that is put into it, so that it can serve what
// no real one would.
package registrytest

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is a running registry. Close it in the end.
type Registry struct {
	// Host is its address as it appears in a reference: "127.0.0.1:40123".
	Host string

	server *httptest.Server

	mu        sync.Mutex
	manifests map[string]blob // by repository and digest or tag, "app:v1", "app@sha256:…"
	blobs     map[digest.Digest][]byte
	requests  []Request
	faults    []*Fault
	auth      *auth
}

type blob struct {
	mediaType string
	data      []byte
}

// Request is one that the registry received.
type Request struct {
	Method, Path, Host string
	// Authorization is the header, and Body what a POST sent.
	Authorization, Body string
}

// New starts a registry on a port of 127.0.0.1.
func New() *Registry { return start(httptest.NewServer) }

// NewTLS starts one that speaks https, with a certificate that only Client trusts.
func NewTLS() *Registry { return start(httptest.NewTLSServer) }

func start(serve func(http.Handler) *httptest.Server) *Registry {
	r := &Registry{manifests: make(map[string]blob), blobs: make(map[digest.Digest][]byte)}
	r.server = serve(r)
	r.server.Config.ErrorLog = nil
	r.Host = r.server.Listener.Addr().String()
	return r
}

// Transport is one that trusts the certificate of NewTLS.
func (r *Registry) Transport() *http.Transport {
	return r.server.Client().Transport.(*http.Transport).Clone()
}

// URL is where the registry is, without a path.
func (r *Registry) URL() string { return r.server.URL }

// Localhost is Host with the name localhost in place of the address.
func (r *Registry) Localhost() string {
	_, port, _ := net.SplitHostPort(r.Host)
	return net.JoinHostPort("localhost", port)
}

// Close ends all connections and the registry.
func (r *Registry) Close() {
	r.server.CloseClientConnections()
	r.server.Close()
}

// PutBlob stores a blob, for every repository.
func (r *Registry) PutBlob(data []byte) digest.Digest {
	d := digest.FromBytes(data)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[d] = data
	return d
}

// RemoveBlob removes a blob.
func (r *Registry) RemoveBlob(d digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.blobs, d)
}

// PutManifest stores any bytes as a manifest, by digest and, if tag is not empty, by tag.
func (r *Registry) PutManifest(repo, tag, mediaType string, data []byte) ocispec.Descriptor {
	d := digest.FromBytes(data)
	r.mu.Lock()
	defer r.mu.Unlock()
	b := blob{mediaType, data}
	r.manifests[repo+"@"+string(d)] = b
	if tag != "" {
		r.manifests[repo+":"+tag] = b
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// Requests returns what has been asked so far, and forgets it.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.requests
	r.requests = nil
	return list
}

// Count says how many of the requests have a path that contains part.
func Count(requests []Request, part string) int {
	n := 0
	for _, q := range requests {
		if strings.Contains(q.Path, part) {
			n++
		}
	}
	return n
}

// ServeHTTP answers as the OCI distribution specification says, but for pushes, which have methods of their own here.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var body bytes.Buffer
	if req.Method == http.MethodPost {
		_, _ = body.ReadFrom(http.MaxBytesReader(w, req.Body, 1<<20))
	}
	r.mu.Lock()
	r.requests = append(r.requests, Request{Method: req.Method, Path: req.URL.Path, Host: req.Host, Authorization: req.Header.Get("Authorization"), Body: body.String()})
	var fault *Fault
	for _, f := range r.faults {
		if f.matches(req) && f.left != 0 {
			if f.left > 0 {
				f.left--
			}
			fault = f
			break
		}
	}
	auth := r.auth
	r.mu.Unlock()
	if fault != nil {
		fault.Serve(w, req, http.HandlerFunc(r.serve))
		return
	}
	if auth != nil && !auth.allow(r, w, req, body.String()) {
		return
	}
	r.serve(w, req)
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry is read-only")
		return
	}
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok {
		fail(w, http.StatusNotFound, "NAME_INVALID", "no such path")
		return
	}
	if path == "" {
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		return
	}
	if repo, id, ok := cutLast(path, "/manifests/"); ok {
		sep := ":"
		if strings.Contains(id, ":") {
			sep = "@"
		}
		r.mu.Lock()
		b, ok := r.manifests[repo+sep+id]
		r.mu.Unlock()
		if !ok {
			fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
			return
		}
		w.Header().Set("Content-Type", b.mediaType)
		w.Header().Set("Docker-Content-Digest", string(digest.FromBytes(b.data)))
		send(w, req, b.data)
		return
	}
	if _, id, ok := cutLast(path, "/blobs/"); ok {
		r.mu.Lock()
		data, ok := r.blobs[digest.Digest(id)]
		r.mu.Unlock()
		if !ok {
			fail(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown")
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Docker-Content-Digest", id)
		send(w, req, data)
		return
	}
	fail(w, http.StatusNotFound, "NAME_UNKNOWN", "no such path")
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func send(w http.ResponseWriter, req *http.Request, data []byte) {
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	if req.Method == http.MethodGet {
		_, _ = w.Write(data) // a client that goes away is its own affair
	}
}

// fail answers with an error in the form of the standard.
func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}
