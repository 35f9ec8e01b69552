package coracle

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

const someDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseReference(t *testing.T) {
	tests := []struct{ in, want string }{
		{"alpine", "docker.io/library/alpine:latest"},
		{"alpine:3.22", "docker.io/library/alpine:3.22"},
		{"library/alpine", "docker.io/library/alpine:latest"},
		{"docker.io/alpine", "docker.io/library/alpine:latest"},
		{"index.docker.io/alpine", "docker.io/library/alpine:latest"},
		{"index.docker.io/library/alpine:3", "docker.io/library/alpine:3"},
		{"grafana/grafana", "docker.io/grafana/grafana:latest"},
		{"alpine@" + someDigest, "docker.io/library/alpine@" + someDigest},
		{"alpine:3@" + someDigest, "docker.io/library/alpine:3@" + someDigest},
		{"localhost/x", "localhost/x:latest"},
		{"localhost:5000/x:y", "localhost:5000/x:y"},
		{"127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"},
		{"[::1]:5000/a", "[::1]:5000/a:latest"},
		{"[::1]/a", "[::1]/a:latest"},
		{"quay.io/a__b/c-d--e.f_g:V1.0-x", "quay.io/a__b/c-d--e.f_g:V1.0-x"},
		{"Registry/a", "Registry/a:latest"}, // a capital letter makes it a host, as in Docker
		{"host:5000", "docker.io/library/host:5000"},
	}
	for _, tt := range tests {
		r, err := ParseReference(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if r.String() != tt.want {
			t.Errorf("%s: got %s, want %s", tt.in, r, tt.want)
		}
		if again, err := ParseReference(r.String()); err != nil || again != r {
			t.Errorf("%s: its full form %s reads as %v, %v", tt.in, r, again, err)
		}
	}
}

func TestParseReferenceInvalid(t *testing.T) {
	for _, in := range []string{
		"", ":", "/", "@", "a:", ":a", "a//b", "/a", "a/", "a b", "a\x00", "UPPER", "a/Upper", "-a", "a-", "a___b", "a..b",
		"a:.x", "a:-x", "a:" + strings.Repeat("x", 129), "a@sha256:1234", "a@md5:1234",
		"a@sha512:" + strings.Repeat("0", 128), strings.Repeat("0", 64), someDigest, strings.Repeat("a", 250),
		"host.:5000/a", "h..h/a", "host:99999/a", "host:x/a", "[::1/a", "[::1]x/a", "[127.0.0.1]:1/a", "-h.x/a", "http://h/a",
		"user@host/a", "host.x/../a", "host.x/a/../b", "host.x/a?b", "host.x/a#b", "host.x/a%2fb", "höst/a",
	} {
		r, err := ParseReference(in)
		if err == nil {
			t.Errorf("%q was read as %q", in, r)
		} else if !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v does not match ErrInvalid", in, err)
		}
	}
}

func TestReferenceKeyDropsTagBesideDigest(t *testing.T) {
	r, err := ParseReference("alpine:3@" + someDigest)
	if err != nil {
		t.Fatal(err)
	}
	if want := "docker.io/library/alpine@" + someDigest; r.key() != want {
		t.Errorf("got %s, want %s", r.key(), want)
	}
}

func TestIsLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1": true, "127.9.8.7:1": true, "[::1]": true, "[::1]:80": true, "::1": true,
		"localhost.example.com": false, "a.localhost": false, "127.0.0.1.example.com": false, "10.0.0.1:80": false, "192.168.0.1": false,
		"0.0.0.0": false, "[::]": false, "example.com": false, "": false, "index.docker.io": false,
	} {
		if got := isLoopback(host); got != want {
			t.Errorf("%q: got %v", host, got)
		}
	}
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"alpine", "a/b:c", "localhost:5000/x@" + someDigest, "[::1]:5000/a", "A/b", "a:b:c", "h.h:1/a__b", "a@b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		full := r.String()
		if again, err := ParseReference(full); err != nil || again != r {
			t.Fatalf("%q -> %q -> %v, %v", s, full, again, err)
		}
		if len(r.Name()) > maxNameLength || strings.ContainsAny(full, " \t\r\n\\?#%") || strings.Contains(full, "..") || strings.Contains(full, "//") {
			t.Fatalf("%q -> %q", s, full)
		}
		if _, err := ggcrName(r, false); err != nil {
			t.Fatalf("%q: the registry client refuses %q: %v", s, full, err)
		}
	})
}

func ExampleParseReference() {
	for _, s := range []string{"alpine", "grafana/grafana:12.0", "localhost:5000/app"} {
		r, err := ParseReference(s)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(r)
	}
	// Output:
	// docker.io/library/alpine:latest
	// docker.io/grafana/grafana:12.0
	// localhost:5000/app:latest
}

func ExampleReference() {
	r := Reference{Registry: "quay.io", Repository: "team/app", Tag: "v2"}
	fmt.Println(r.Name(), r)
	// Output: quay.io/team/app quay.io/team/app:v2
}
