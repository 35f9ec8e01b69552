package coracle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A PullError says what of an image could not be had from a registry. Its cause matches fs.ErrNotExist where the
// registry has no such thing, fs.ErrPermission where it refuses or where asking would have given something away,
// os.ErrDeadlineExceeded where it stopped to answer, and [ErrCorrupt] where it sent something else.
type PullError struct {
	// Registry is the host that was asked.
	Registry string
	// Part is what was wanted: "registry" (its greeting, or a token), "manifest", "config" or "layer".
	Part string
	// Digest is its digest, or empty where only a tag was known.
	Digest digest.Digest
	// Status is the HTTP status of the answer, or 0.
	Status int
	// Err is why.
	Err error
}

// Error names registry, part and cause.
func (e *PullError) Error() string {
	s := "registry " + e.Registry + ": "
	if e.Part != "registry" {
		s += e.Part
		if e.Digest != "" {
			s += " " + string(e.Digest)
		}
		s += ": "
	}
	return s + e.Err.Error()
}

// Unwrap returns the cause.
func (e *PullError) Unwrap() error { return e.Err }

// registryClient speaks to one repository of one registry.
type registryClient struct {
	ref   Reference
	http  *http.Client
	close func()
}

// ggcrName is the registry in the terms of the client library.
func ggcrName(ref Reference, plain bool) (name.Registry, error) {
	if plain {
		return name.NewRegistry(ref.apiHost(), name.Insecure)
	}
	return name.NewRegistry(ref.apiHost())
}

// newRegistryClient greets the registry and logs in. The caller closes it.
func newRegistryClient(ctx context.Context, ref Reference, config RegistryConfig, opts *PullOptions) (_ *registryClient, err error) {
	plain := opts.PlainHTTP || isLoopback(ref.Registry) || slices.Contains(config.PlainHTTP, ref.Registry)
	c := &registryClient{ref: ref, close: func() {}}
	base := config.Transport
	if base == nil {
		own := newBaseTransport()
		base, c.close = own, own.CloseIdleConnections
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	creds, err := credentials(ctx, ref, config, opts)
	if err != nil {
		return nil, c.failed(ctx, "registry", "", err)
	}
	reg, err := ggcrName(ref, plain)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", quoteShort(ref.Registry), ErrInvalid)
	}
	idle := config.IdleTimeout
	if idle <= 0 {
		idle = defaultIdleTimeout
	}
	rt := &registryTransport{base: base, idle: idle, plain: func(host string) bool {
		return plain && (host == ref.apiHost() || isLoopback(host) && isLoopback(ref.Registry)) || slices.Contains(config.PlainHTTP, host)
	}}
	auth := authn.Anonymous
	if creds != (Credentials{}) {
		auth = authn.FromConfig(authn.AuthConfig{Username: creds.Username, Password: creds.Password, IdentityToken: creds.IdentityToken, RegistryToken: creds.RegistryToken})
	}
	authorized, err := transport.NewWithContext(ctx, reg, auth, rt, []string{"repository:" + ref.Repository + ":pull"})
	if err != nil {
		return nil, c.failed(ctx, "registry", "", err)
	}
	c.http = &http.Client{Transport: authorized, CheckRedirect: checkRedirect}
	return c, nil
}

func credentials(ctx context.Context, ref Reference, config RegistryConfig, opts *PullOptions) (Credentials, error) {
	if opts.Credentials != nil {
		return *opts.Credentials, nil
	}
	if config.Keychain == nil {
		return DockerKeychain{}.Credentials(ctx, ref)
	}
	return config.Keychain.Credentials(ctx, ref)
}

// checkRedirect refuses to be sent from a public host to an address of the inner network, such as a cloud's metadata
// service. The number of hops is bounded by the transport, for token requests too.
func checkRedirect(req *http.Request, via []*http.Request) error {
	from, to := via[0].URL.Hostname(), req.URL.Hostname()
	if from == to || isInner(from) || !isInner(to) {
		return nil
	}
	return fmt.Errorf("redirected from %s to the private address %s: %w", quoteShort(from), quoteShort(to), os.ErrPermission)
}

// isInner says whether a host is an address that is not on the public internet. Names are not looked up, but one
// whose last part is a number is an address in an odd form.
func isInner(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		addr = addr.WithZone("").Unmap()
		return addr.IsLoopback() || addr.IsPrivate() || addr.IsLinkLocalUnicast() || addr.IsLinkLocalMulticast() || addr.IsUnspecified()
	}
	last := host[strings.LastIndexByte(host, '.')+1:]
	return last != "" && (strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x"))
}

// get sends a GET below the repository and returns an answer of status 200, whose body the caller closes.
func (c *registryClient) get(ctx context.Context, part string, d digest.Digest, path string, accept []string) (*http.Response, error) {
	u := url.URL{Scheme: "https", Host: c.ref.apiHost(), Path: "/v2/" + c.ref.Repository + "/" + path}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, c.failed(ctx, part, d, err)
	}
	// A transport that knows no better would ask for gzip and take it off again, and the digest with it.
	req.Header.Set("Accept-Encoding", "identity")
	if len(accept) > 0 {
		req.Header.Set("Accept", strings.Join(accept, ", "))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.failed(ctx, part, d, err)
	}
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		resp.Body.Close()
		return nil, c.failed(ctx, part, d, err)
	}
	return resp, nil
}

var manifestTypes = []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerManifestList, dockerManifest}

// manifest fetches a manifest or index by tag, or by digest if there is one, and verifies it.
func (c *registryClient) manifest(ctx context.Context, tag string, d digest.Digest) ([]byte, ocispec.Descriptor, error) {
	id := tag
	if d != "" {
		id = string(d)
	}
	resp, err := c.get(ctx, "manifest", d, "manifests/"+id, manifestTypes)
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	defer resp.Body.Close()
	data, err := c.readAll(ctx, "manifest", d, resp.Body, maxManifest)
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	if d == "" {
		// Registries say what they think they send: a broken proxy between us and them shows here.
		if h := digest.Digest(resp.Header.Get("Docker-Content-Digest")); h.Validate() == nil && h.Algorithm() == digest.SHA256 {
			d = h
		}
	}
	got := digest.FromBytes(data)
	if d != "" && got != d {
		return nil, ocispec.Descriptor{}, c.failed(ctx, "manifest", d, fmt.Errorf("what came has the digest %s: %w", got, ErrCorrupt))
	}
	return data, ocispec.Descriptor{MediaType: resp.Header.Get("Content-Type"), Digest: got, Size: int64(len(data))}, nil
}

// config fetches a small blob whole, and verifies it.
func (c *registryClient) config(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	resp, err := c.get(ctx, "config", desc.Digest, "blobs/"+string(desc.Digest), nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := c.readAll(ctx, "config", desc.Digest, resp.Body, desc.Size)
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(data); got != desc.Digest {
		return nil, c.failed(ctx, "config", desc.Digest, fmt.Errorf("what came has the digest %s: %w", got, ErrCorrupt))
	}
	return data, nil
}

func (c *registryClient) readAll(ctx context.Context, part string, d digest.Digest, r io.Reader, max int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, max+1))
	if err == nil && int64(len(data)) > max {
		err = fmt.Errorf("it is larger than %d bytes: %w", max, ErrCorrupt)
	}
	if err != nil {
		return nil, c.failed(ctx, part, d, err)
	}
	return data, nil
}

// layer starts reading a layer, which whoever reads it verifies.
func (c *registryClient) layer(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	ctx = context.WithValue(ctx, blobRequest{}, true)
	resp, err := c.get(ctx, "layer", desc.Digest, "blobs/"+string(desc.Digest), nil)
	if err != nil {
		return nil, err
	}
	if n := resp.ContentLength; n >= 0 && n != desc.Size {
		resp.Body.Close()
		return nil, c.failed(ctx, "layer", desc.Digest, fmt.Errorf("the registry has %d bytes, the manifest says %d: %w", n, desc.Size, ErrCorrupt))
	}
	return &layerReader{ReadCloser: resp.Body, failed: func(err error) error { return c.failed(ctx, "layer", desc.Digest, err) }}, nil
}

// layerReader makes the errors of a layer's body say whose they are.
type layerReader struct {
	io.ReadCloser
	failed func(error) error
}

func (r *layerReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = r.failed(err)
	}
	return n, err
}

// failed makes a PullError. What the registry and the libraries say is cut down to what cannot hold a secret: no URL
// (signed ones are credentials), no body but the first error message of the standard's form, quoted.
func (c *registryClient) failed(ctx context.Context, part string, d digest.Digest, err error) error {
	var pull *PullError
	if errors.As(err, &pull) {
		return err
	}
	pull = &PullError{Registry: c.ref.Registry, Part: part, Digest: d}
	var answer *transport.Error
	var u *url.Error
	var late *idleError
	switch {
	case ctx.Err() != nil:
		pull.Err = context.Cause(ctx)
	case errors.As(err, &late):
		pull.Err = late
	case errors.Is(err, errPlainHTTP):
		pull.Err = errPlainHTTP
	case errors.As(err, &answer):
		pull.Status, pull.Err = answer.StatusCode, statusError(answer)
	case errors.As(err, &u):
		pull.Err = terse(u.Err)
	default:
		pull.Err = terse(err)
	}
	return pull
}

// terseError keeps the first line of a text that may go on with what a server sent.
type terseError struct {
	text string
	err  error
}

func (e *terseError) Error() string { return e.text }
func (e *terseError) Unwrap() error { return e.err }

func terse(err error) error {
	const most = 500
	text, _, cut := strings.Cut(err.Error(), "\n")
	if len(text) > most {
		text, cut = text[:most], true
	}
	if !cut {
		return err
	}
	return &terseError{text: strings.TrimSuffix(text, ":"), err: err}
}

// statusError puts an HTTP status in words.
func statusError(e *transport.Error) error {
	text := fmt.Sprintf("HTTP status %d %s", e.StatusCode, http.StatusText(e.StatusCode))
	if len(e.Errors) > 0 {
		text += ": " + quoteShort(string(e.Errors[0].Code)+": "+e.Errors[0].Message)
	}
	switch e.StatusCode {
	case http.StatusUnauthorized:
		return fmt.Errorf("%s: log in, or check the name (some registries say this of images that do not exist): %w", text, fs.ErrPermission)
	case http.StatusForbidden:
		return fmt.Errorf("%s: %w", text, fs.ErrPermission)
	case http.StatusNotFound:
		return fmt.Errorf("%s: %w", text, fs.ErrNotExist)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return fmt.Errorf("%s: try again later", text)
	}
	return errors.New(text)
}

// defaultIdleTimeout: see RegistryConfig.
const defaultIdleTimeout = time.Minute
