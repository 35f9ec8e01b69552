package coracle

import (
	"fmt"
	"net"
	"strings"

	"github.com/opencontainers/go-digest"
)

const (
	defaultRegistry = "docker.io"
	defaultTag      = "latest"
	maxTagLength    = 128
	maxNameLength   = 255
)

// A Reference names an image in a registry. It is comparable, and its text form is what Docker prints in full:
// "docker.io/library/alpine:latest".
type Reference struct {
	// Registry is the host, with its port if it has one: "docker.io", "localhost:5000", "[::1]:5000".
	Registry string
	// Repository is the path below it: "library/alpine".
	Repository string
	// Tag is never empty where Digest is.
	Tag string
	// Digest, if not empty, decides alone which image is meant; a Tag beside it is decoration, as in Docker.
	Digest digest.Digest
}

// ParseReference reads a reference as Docker does: a first component without dot, colon and capital letter that is not
// "localhost" is no host but part of a Docker Hub name; Docker Hub names of one component begin with "library/"; and
// without tag and digest the tag is "latest". An error matches [ErrInvalid].
func ParseReference(s string) (Reference, error) {
	r, why := parseReference(s)
	if why != "" {
		return Reference{}, fmt.Errorf("image reference %s: %s: %w", quoteShort(s), why, ErrInvalid)
	}
	return r, nil
}

// parseReference returns what is wrong, or an empty string.
func parseReference(s string) (Reference, string) {
	var r Reference
	if s == "" {
		return r, "it is empty"
	}
	if id := strings.TrimPrefix(s, "sha256:"); isHex(id) && len(id) == 64 {
		return r, "64 hexadecimal digits are the id of an image, not a name"
	}
	rest := s
	if name, d, ok := strings.Cut(rest, "@"); ok {
		r.Digest = digest.Digest(d)
		if err := r.Digest.Validate(); err != nil {
			return r, "the part after @ is not a digest such as sha256:0123…"
		}
		if r.Digest.Algorithm() != digest.SHA256 {
			return r, "only sha256 digests are supported"
		}
		rest = name
	}
	// A colon after the last slash begins the tag; one before it belongs to the port.
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		r.Tag = rest[i+1:]
		if !validTag(r.Tag) {
			return r, "the tag must be 1 to 128 letters, digits, \"_\", \".\" or \"-\", and not begin with \".\" or \"-\""
		}
		rest = rest[:i]
	}
	r.Registry, r.Repository = defaultRegistry, rest
	if host, path, ok := strings.Cut(rest, "/"); ok && isHost(host) {
		r.Registry, r.Repository = host, path
	}
	if r.Registry == "index.docker.io" {
		r.Registry = defaultRegistry
	}
	if !validHost(r.Registry) {
		return r, "the registry is not a host name, optionally with a port"
	}
	if r.Registry == defaultRegistry && !strings.Contains(r.Repository, "/") {
		r.Repository = "library/" + r.Repository
	}
	if len(r.Registry)+1+len(r.Repository) > maxNameLength {
		return r, "the name is longer than 255 characters"
	}
	if strings.ToLower(r.Repository) != r.Repository {
		return r, "the repository must be lower case"
	}
	for c := range strings.SplitSeq(r.Repository, "/") {
		if !validComponent(c) {
			return r, "each part of the repository must be letters and digits, separated by \".\", \"_\", \"__\" or dashes"
		}
	}
	if r.Tag == "" && r.Digest == "" {
		r.Tag = defaultTag
	}
	return r, ""
}

// Name returns the reference without tag and digest: "docker.io/library/alpine".
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// String returns the full form, which [ParseReference] reads back.
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}

// key is the name under which the store keeps the image: a tag beside a digest means nothing.
func (r Reference) key() string {
	if r.Digest != "" {
		return r.Name() + "@" + string(r.Digest)
	}
	return r.String()
}

// apiHost is where the registry's API is served.
func (r Reference) apiHost() string {
	if r.Registry == defaultRegistry {
		return "index.docker.io"
	}
	return r.Registry
}

func isHost(s string) bool {
	return s == "localhost" || strings.ContainsAny(s, ".:") || strings.ToLower(s) != s
}

func validHost(s string) bool {
	host := s
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 || net.ParseIP(s[1:end]) == nil || !strings.Contains(s[1:end], ":") {
			return false
		}
		if host = s[end+1:]; host == "" {
			return true
		}
		if host[0] != ':' {
			return false
		}
		return validPort(host[1:])
	}
	if h, port, ok := strings.Cut(s, ":"); ok {
		if !validPort(port) {
			return false
		}
		host = h
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !isAlnum(c) && !('A' <= c && c <= 'Z') && c != '-' {
				return false
			}
		}
	}
	return true
}

func validPort(s string) bool {
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' || len(s) > 5 {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return s != "" && n <= 65535
}

func validTag(s string) bool {
	if s == "" || len(s) > maxTagLength || s[0] == '.' || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if !isAlnum(c) && !('A' <= c && c <= 'Z') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

// validComponent: runs of lower-case letters and digits, with one of ".", "_", "__" and any number of "-" between them.
func validComponent(s string) bool {
	if s == "" || !isAlnum(s[0]) || !isAlnum(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); {
		if isAlnum(s[i]) {
			i++
			continue
		}
		j := i
		for !isAlnum(s[j]) {
			j++
		}
		if sep := s[i:j]; sep != "." && sep != "_" && sep != "__" && strings.Trim(sep, "-") != "" {
			return false
		}
		i = j
	}
	return true
}

func isAlnum(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return false
		}
	}
	return s != ""
}

// quoteShort quotes foreign text for an error: no control characters, and not more than a line of it.
func quoteShort(s string) string {
	const most = 200
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}

// isLoopback says whether a host, with or without port, can only be this machine.
func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
