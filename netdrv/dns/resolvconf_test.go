package dns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseResolvConf(t *testing.T) {
	for name, test := range map[string]struct {
		text, servers, search, options string
	}{
		"empty":    {"", "", "", ""},
		"usual":    {"nameserver 10.0.0.1\nnameserver 10.0.0.2\nsearch a.example b.example\noptions ndots:2 timeout:1\n", "10.0.0.1:53 10.0.0.2:53", "a.example b.example", "ndots:2 timeout:1"},
		"no end":   {"nameserver 10.0.0.1", "10.0.0.1:53", "", ""},
		"dos":      {"nameserver 10.0.0.1\r\nsearch a.example\r\n", "10.0.0.1:53", "a.example", ""},
		"tabs":     {"nameserver\t\t10.0.0.1 \n \tsearch\ta\n", "10.0.0.1:53", "a", ""},
		"comments": {"# nameserver 10.0.0.1\n;nameserver 10.0.0.2\nnameserver 10.0.0.3 # the third\nsearch a ;b\n", "10.0.0.3:53", "a", ""},
		"ipv6":     {"nameserver 2001:db8::1\nnameserver fe80::1%eth0\nnameserver ::ffff:10.0.0.1\n", "[2001:db8::1]:53 [fe80::1%eth0]:53 10.0.0.1:53", "", ""},
		"wrong":    {"nameserver\nnameserver dns.example\nnameserver 10.0.0.256\nnameserver 10.0.0.1:53\nnonsense 1\nNameserver 10.0.0.9\n", "", "", ""},
		"twice":    {"nameserver 10.0.0.1\nnameserver 10.0.0.1\n", "10.0.0.1:53", "", ""},
		"domain":   {"search a b\ndomain c d\n", "", "c", ""},
		"search":   {"domain c\nsearch a b\nsearch e\n", "", "e", ""},
		"options":  {"options ndots:5\noptions rotate\noptions\n", "", "", "ndots:5 rotate"},
		"binary":   {"\x00\xff\xfenameserver 10.0.0.1\nnameserver 10.0.0.2\n", "10.0.0.2:53", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := ParseResolvConf(strings.NewReader(test.text))
			if err != nil {
				t.Fatal(err)
			}
			servers := strings.Trim(fmt.Sprint(c.Servers), "[]")
			if len(c.Servers) > 0 {
				servers = fmt.Sprint(c.Servers)
				servers = servers[1 : len(servers)-1]
			}
			if servers != test.servers || strings.Join(c.Search, " ") != test.search || strings.Join(c.Options, " ") != test.options {
				t.Errorf("got %+v", c)
			}
			same(t, c)
		})
	}
	if c, err := ParseResolvConf(strings.NewReader(strings.Repeat("nameserver 10.0.0.1\n", 10_000))); !errors.Is(err, ErrTooLarge) || len(c.Servers) != 0 {
		t.Errorf("a file of 200 kB: %v, %v", c, err)
	}
	if _, err := ParseResolvConf(strings.NewReader("search " + strings.Repeat("x", 1<<20))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a line of 1 MB: %v", err)
	}
	var many strings.Builder
	for i := range 200 {
		fmt.Fprintf(&many, "nameserver 10.0.0.%d\noptions o%d\n", i, i)
	}
	many.WriteString("search" + strings.Repeat(" d", 500))
	if c, err := ParseResolvConf(strings.NewReader(many.String())); err != nil || len(c.Servers) != maxServers || len(c.Options) != maxOptions || len(c.Search) != maxSearch {
		t.Errorf("too many of everything: %v, %v", c, err)
	}
}

// same writes the configuration and reads it again.
func same(t *testing.T, c Resolv) {
	t.Helper()
	again, err := ParseResolvConf(strings.NewReader(c.String()))
	if err != nil || !slices.Equal(again.Servers, c.Servers) || !slices.Equal(again.Search, c.Search) || !slices.Equal(again.Options, c.Options) {
		t.Errorf("%q is read as %+v, %v", c.String(), again, err)
	}
}

func TestContainerResolvers(t *testing.T) {
	const upstream = "nameserver 10.1.0.1\nsearch from.systemd\n"
	for name, test := range map[string]struct{ host, systemd, want string }{
		"usual":              {"nameserver 10.0.0.1\nsearch a\n", upstream, "nameserver 10.0.0.1\nsearch a\n"},
		"systemd's stub":     {"nameserver 127.0.0.53\nsearch a\noptions edns0\n", upstream, upstream},
		"a loopback server":  {"nameserver 127.0.0.1\nnameserver ::1\n", upstream, upstream},
		"loopback and other": {"nameserver 127.0.0.1\nnameserver 10.0.0.1\n", upstream, "nameserver 10.0.0.1\n"},
		"loopback only":      {"nameserver 127.0.0.1\nsearch a\n", "", "search a\n"},
		"link-local":         {"nameserver fe80::1%eth0\nnameserver fe80::1\nnameserver 0.0.0.0\nnameserver 10.0.0.1\n", "", "nameserver 10.0.0.1\n"},
		"none":               {"search a\n", upstream, "search a\n"},
		"no file":            {"", upstream, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			host, systemd := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "systemd")
			for path, text := range map[string]string{host: test.host, systemd: test.systemd} {
				if text != "" {
					if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			if c, err := containerResolvers(host, systemd); err != nil || c.String() != test.want {
				t.Errorf("%q, %v, want %q", c, err, test.want)
			}
		})
	}
	if _, err := ReadResolvConf(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := HostResolvers(); err != nil {
		t.Error(err)
	}
	if _, err := ContainerResolvers(); err != nil {
		t.Error(err)
	}
}
