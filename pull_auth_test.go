package coracle

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coracle-dev/coracle/internal/registrytest"
)

// init makes the test binary a credential helper where it is called by the name of one. What it answers is in a file
// beside it.
func init() {
	name := filepath.Base(os.Args[0])
	if !strings.HasPrefix(name, "docker-credential-") {
		return
	}
	server, _ := io.ReadAll(os.Stdin)
	switch kind := strings.TrimPrefix(name, "docker-credential-"); kind {
	case "good":
		if string(server) != os.Getenv("CORACLE_TEST_SERVER") || len(os.Args) != 2 || os.Args[1] != "get" {
			fmt.Printf("unexpected call %q for %q", os.Args, server)
			os.Exit(1)
		}
		fmt.Printf(`{"ServerURL":%q,"Username":"helped","Secret":"s3cret"}`, server)
	case "identity":
		fmt.Printf(`{"ServerURL":%q,"Username":"<token>","Secret":"id3ntity"}`, server)
	case "empty":
		fmt.Println("credentials not found in native keychain")
		os.Exit(1)
	case "locked":
		fmt.Println("key ring is locked\x1b[31m")
		os.Exit(1)
	case "leaky":
		fmt.Println(`{"Username":"helped","Secret":"s3cret"}`)
		os.Exit(1)
	case "garbage":
		fmt.Print("s3cret")
	case "endless":
		for {
			if _, err := os.Stdout.Write(make([]byte, 1<<16)); err != nil {
				os.Exit(1)
			}
			if os.Getppid() == 1 {
				os.Exit(1)
			}
		}
	case "hang":
		time.Sleep(time.Hour)
	}
	os.Exit(0)
}

// helpers puts the named credential helpers, and nothing else, on the PATH.
func helpers(t *testing.T, names ...string) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("the test binary is called by another name through symbolic links")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, n := range names {
		if err := os.Symlink(exe, filepath.Join(dir, "docker-credential-"+n)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func basicAuth(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

func TestDockerKeychain(t *testing.T) {
	helpers(t, "good", "identity", "empty", "locked", "leaky", "garbage")
	t.Setenv("CORACLE_TEST_SERVER", "reg.example:5000")
	file := Credentials{Username: "u", Password: "p:q"}
	tests := []struct {
		name, config, ref string
		want              Credentials
		fails             bool
	}{
		{"host", `{"auths":{"reg.example:5000":{"auth":"` + basicAuth("u", "p:q") + `"}}}`, "reg.example:5000/app", file, false},
		{"other port", `{"auths":{"reg.example:5000":{"auth":"` + basicAuth("u", "p:q") + `"}}}`, "reg.example:5001/app", Credentials{}, false},
		{"other host", `{"auths":{"reg.example":{"auth":"` + basicAuth("u", "p:q") + `"}}}`, "evil.reg.example/app", Credentials{}, false},
		{"repository of another", `{"auths":{"reg.example/team":{"auth":"` + basicAuth("u", "p:q") + `"}}}`, "reg.example/other", Credentials{}, false},
		{"repository", `{"auths":{"reg.example/team":{"auth":"` + basicAuth("u", "p:q") + `"},"reg.example":{"auth":"` + basicAuth("x", "y") + `"}}}`, "reg.example/team", file, false},
		{"URL", `{"auths":{"https://reg.example/v1/":{"auth":"` + basicAuth("u", "p:q") + `"}}}`, "reg.example/app", file, false},
		{"Docker Hub", `{"auths":{"https://index.docker.io/v1/":{"auth":"` + basicAuth("u", "p:q") + `"}}}`, "alpine", file, false},
		{"plain fields", `{"auths":{"reg.example":{"username":"u","password":"p:q"}}}`, "reg.example/app", file, false},
		{"identity token", `{"auths":{"reg.example":{"identitytoken":"t"}}}`, "reg.example/app", Credentials{IdentityToken: "t"}, false},
		{"registry token", `{"auths":{"reg.example":{"registrytoken":"t"}}}`, "reg.example/app", Credentials{RegistryToken: "t"}, false},
		{"helper for the host", `{"credHelpers":{"reg.example:5000":"good"}}`, "reg.example:5000/app", Credentials{Username: "helped", Password: "s3cret"}, false},
		{"helper for another", `{"credHelpers":{"reg.example":"good"}}`, "reg.example:5000/app", Credentials{}, false},
		{"helper wins over the store", `{"credsStore":"locked","credHelpers":{"reg.example:5000":"good"}}`, "reg.example:5000/app", Credentials{}, true},
		{"store gives a token", `{"credsStore":"identity"}`, "reg.example/app", Credentials{IdentityToken: "id3ntity"}, false},
		{"store has nothing", `{"credsStore":"empty"}`, "reg.example/app", Credentials{}, false},
		{"store has nothing, the file does", `{"credsStore":"empty","auths":{"reg.example":{"username":"u","password":"p:q"}}}`, "reg.example/app", file, false},
		{"store fails", `{"credsStore":"locked"}`, "reg.example/app", Credentials{}, true},
		{"helper fails with an answer", `{"credsStore":"leaky"}`, "reg.example/app", Credentials{}, true},
		{"helper answers nonsense", `{"credsStore":"garbage"}`, "reg.example/app", Credentials{}, true},
		{"helper missing", `{"credsStore":"nowhere"}`, "reg.example/app", Credentials{}, true},
		{"helper is a path", `{"credsStore":"../good"}`, "reg.example/app", Credentials{}, true},
		{"no base64", `{"auths":{"reg.example":{"auth":"s3cret!"}}}`, "reg.example/app", Credentials{}, true},
		{"no JSON", `s3cret`, "reg.example/app", Credentials{}, true},
		{"empty file", ` `, "reg.example/app", Credentials{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ref, err := ParseReference(tt.ref)
			if err != nil {
				t.Fatal(err)
			}
			got, err := DockerKeychain{Dir: writeConfig(t, tt.config)}.Credentials(t.Context(), ref)
			if (err != nil) != tt.fails || got != tt.want {
				t.Errorf("got %q %q %q %q, %v", got.Username, got.Password, got.IdentityToken, got.RegistryToken, err)
			}
			if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.ContainsRune(err.Error(), 0x1b)) {
				t.Errorf("the error tells too much: %q", err)
			}
		})
	}
}

func TestDockerKeychainFiles(t *testing.T) {
	home := t.TempDir()
	for _, v := range []string{"DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"} {
		t.Setenv(v, "")
	}
	t.Setenv("HOME", home)
	t.Setenv("USERPROFILE", home)
	ref := Reference{Registry: "reg.example", Repository: "app", Tag: "latest"}
	put := func(user string, path ...string) {
		file := filepath.Join(path...)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(`{"auths":{"reg.example":{"username":"`+user+`","password":"p"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want string) {
		t.Helper()
		if c, err := (DockerKeychain{}).Credentials(t.Context(), ref); err != nil || c.Username != want {
			t.Errorf("got %q, %v, want %q", c.Username, err, want)
		}
	}
	check("")
	put("podman", home, ".config", "containers", "auth.json")
	check("podman")
	put("run", home, "run", "containers", "auth.json")
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(home, "run"))
	check("run")
	put("file", home, "auth-file")
	t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(home, "auth-file"))
	check("file")
	put("docker", home, ".docker", "config.json")
	check("docker")
	put("elsewhere", home, "else", "config.json")
	t.Setenv("DOCKER_CONFIG", filepath.Join(home, "else"))
	check("elsewhere")
}

func TestDockerKeychainHelperThatHangs(t *testing.T) {
	noLeftGoroutines(t)
	helpers(t, "hang", "endless")
	for name, want := range map[string]error{"hang": context.Canceled, "endless": ErrInvalid} {
		ctx, cancel := context.WithCancel(t.Context())
		if name == "hang" {
			time.AfterFunc(300*time.Millisecond, cancel)
		}
		_, err := DockerKeychain{Dir: writeConfig(t, `{"credsStore":"`+name+`"}`)}.Credentials(ctx, Reference{Registry: "reg.example", Repository: "app"})
		cancel()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCredentialsDoNotPrint(t *testing.T) {
	c := Credentials{Username: "us3r", Password: "s3cret", IdentityToken: "s3cret", RegistryToken: "s3cret"}
	var buf bytes.Buffer
	slog.New(slog.NewTextHandler(&buf, nil)).Info("x", "credentials", c, "options", PullOptions{Credentials: &c})
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		fmt.Fprintf(&buf, verb+" "+verb+"\n", c, &c)
	}
	if s := buf.String(); strings.Contains(s, "s3cret") || strings.Contains(s, "us3r") {
		t.Errorf("they print:\n%s", s)
	}
}

func TestPullAuth(t *testing.T) {
	good := Credentials{Username: "user", Password: "s3cret"}
	tests := []struct {
		name    string
		require func(*registrytest.Registry)
		creds   Credentials
		ok      bool
	}{
		{"basic", func(r *registrytest.Registry) { r.RequireBasic("user", "s3cret") }, good, true},
		{"basic, wrong", func(r *registrytest.Registry) { r.RequireBasic("user", "other") }, good, false},
		{"basic, anonymous", func(r *registrytest.Registry) { r.RequireBasic("user", "s3cret") }, Credentials{}, false},
		{"token", func(r *registrytest.Registry) { r.RequireToken("user", "s3cret", "", "") }, good, true},
		{"token, anonymous", func(r *registrytest.Registry) { r.RequireToken("", "", "", "") }, Credentials{}, true},
		{"token, wrong", func(r *registrytest.Registry) { r.RequireToken("user", "other", "", "") }, good, false},
		{"token by identity", func(r *registrytest.Registry) { r.RequireToken("user", "x", "id3ntity", "") }, Credentials{IdentityToken: "id3ntity"}, true},
		{"registry token", func(r *registrytest.Registry) { r.RequireToken("user", "x", "", "") }, Credentials{RegistryToken: "issued-token"}, true},
		{"registry token, wrong", func(r *registrytest.Registry) { r.RequireToken("user", "x", "", "") }, Credentials{RegistryToken: "s3cret"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			noLeftGoroutines(t)
			reg := newRegistry(t)
			reg.Push("app", "v1", registrytest.RandomImage(70, 2, 1000))
			tt.require(reg)
			e := newImageEngine(t, RegistryConfig{})
			_, err := e.Pull(t.Context(), reg.Host+"/app:v1", &PullOptions{Credentials: &tt.creds})
			if (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
			if err != nil {
				if !errors.Is(err, fs.ErrPermission) {
					t.Errorf("%v does not match fs.ErrPermission", err)
				}
				if strings.Contains(err.Error(), "s3cret") {
					t.Errorf("the error tells too much: %v", err)
				}
				checkUntouched(t, e)
			}
		})
	}
}

// TestPullWithHelper goes all the way from config.json through a helper to the registry.
func TestPullWithHelper(t *testing.T) {
	reg := newRegistry(t)
	reg.Push("app", "v1", registrytest.RandomImage(71, 1, 100))
	reg.RequireToken("helped", "s3cret", "", "")
	helpers(t, "good")
	t.Setenv("CORACLE_TEST_SERVER", reg.Host)
	e := newImageEngine(t, RegistryConfig{Keychain: DockerKeychain{Dir: writeConfig(t, `{"credHelpers":{"`+reg.Host+`":"good"}}`)}})
	if _, err := e.Pull(t.Context(), reg.Host+"/app:v1", nil); err != nil {
		t.Error(err)
	}
}

func TestPullTokenServerFaults(t *testing.T) {
	for name, fault := range map[string]func(http.ResponseWriter, *http.Request, http.Handler){
		"hangs": registrytest.Hang, "endless": registrytest.Endless, "redirects for ever": registrytest.RedirectLoop,
		"no token": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			fmt.Fprint(w, `{"refresh_token":"s3cret"}`)
		},
		"error": registrytest.Status(500, ""),
	} {
		t.Run(name, func(t *testing.T) {
			noLeftGoroutines(t)
			reg := newRegistry(t)
			reg.Push("app", "v1", registrytest.RandomImage(72, 1, 100))
			reg.RequireToken("user", "s3cret", "", "")
			reg.Inject("/token", -1, fault)
			e := newImageEngine(t, RegistryConfig{IdleTimeout: 300 * time.Millisecond})
			_, err := e.Pull(t.Context(), reg.Host+"/app:v1", &PullOptions{Credentials: &Credentials{Username: "user", Password: "s3cret"}})
			var pe *PullError
			if !errors.As(err, &pe) || pe.Part != "registry" || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("got %v", err)
			}
			t.Log(err)
			checkUntouched(t, e)
		})
	}
}

// dialer leads every connection to one address.
func dialer(addr string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}

// routes leads the connections to host names to registries.
type routes map[string]*registrytest.Registry

func (r routes) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	reg := r[addr]
	if reg == nil {
		return nil, fmt.Errorf("no route to %s", addr)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", reg.Host)
}

// TestRedirectsKeepCredentials: layers often lie elsewhere, and elsewhere gets no credential.
func TestRedirectsKeepCredentials(t *testing.T) {
	for _, token := range []bool{false, true} {
		for _, other := range []string{"cdn.example:80", "sub.reg.example:80", "reg.example:8080"} {
			t.Run(fmt.Sprintf("token=%v %s", token, other), func(t *testing.T) {
				reg, cdn := newRegistry(t), newRegistry(t)
				src := registrytest.RandomImage(73, 2, 1000)
				reg.Push("app", "v1", src)
				cdn.Push("app", "v1", src)
				if token {
					reg.RequireToken("user", "s3cret", "", "http://reg.example:80/token")
				} else {
					reg.RequireBasic("user", "s3cret")
				}
				reg.Inject("/blobs/", -1, registrytest.Redirect(307, "http://"+other))
				reg.Inject("/manifests/", -1, registrytest.Redirect(302, "http://"+other))
				tr := &http.Transport{DialContext: routes{"reg.example:80": reg, other: cdn}.dial}
				t.Cleanup(tr.CloseIdleConnections)
				e := newImageEngine(t, RegistryConfig{Transport: tr, PlainHTTP: []string{"reg.example:80", other}})
				if _, err := e.Pull(t.Context(), "reg.example:80/app:v1", &PullOptions{Credentials: &Credentials{Username: "user", Password: "s3cret"}}); err != nil {
					t.Fatal(err)
				}
				q := cdn.Requests()
				if registrytest.Count(q, "/blobs/") != 3 || registrytest.Count(q, "/manifests/") != 1 {
					t.Errorf("elsewhere was asked for %v", q)
				}
				for _, r := range q {
					if r.Authorization != "" {
						t.Errorf("elsewhere got %q with %s", r.Authorization, r.Path)
					}
				}
			})
		}
	}
}

// TestTokenRedirectKeepsCredentials: the body of a token request holds a refresh token, and 307 would repeat it.
func TestTokenRedirectKeepsCredentials(t *testing.T) {
	for _, creds := range []Credentials{{IdentityToken: "id3ntity"}, {Username: "user", Password: "s3cret"}} {
		reg, evil := newRegistry(t), newRegistry(t)
		reg.Push("app", "v1", registrytest.RandomImage(74, 1, 100))
		reg.RequireToken("user", "s3cret", "id3ntity", "http://reg.example:80/token")
		evil.RequireToken("", "", "", "")
		reg.Inject("/token", -1, registrytest.Redirect(307, "http://evil.example:80"))
		tr := &http.Transport{DialContext: routes{"reg.example:80": reg, "evil.example:80": evil}.dial}
		t.Cleanup(tr.CloseIdleConnections)
		e := newImageEngine(t, RegistryConfig{Transport: tr, PlainHTTP: []string{"reg.example:80", "evil.example:80"}})
		_, err := e.Pull(t.Context(), "reg.example:80/app:v1", &PullOptions{Credentials: &creds})
		t.Log(err)
		for _, r := range evil.Requests() {
			if strings.Contains(r.Authorization, basicAuth("user", "s3cret")) || strings.Contains(r.Body, "id3ntity") {
				t.Errorf("elsewhere got %+v", r)
			}
		}
	}
}

// TestRedirectToClear: a registry with TLS that sends us to plain http is not followed, and one in public not to inner
// addresses.
func TestRedirectToClear(t *testing.T) {
	for _, target := range []string{"http://cdn.example:80", "http://127.0.0.1:80", "https://169.254.169.254:443", "https://127.0.0.1:443", "https://2130706433:443", "http://reg.example:80"} {
		t.Run(target, func(t *testing.T) {
			noLeftGoroutines(t)
			reg, other := registrytest.NewTLS(), newRegistry(t)
			t.Cleanup(reg.Close)
			src := registrytest.RandomImage(75, 1, 100)
			reg.Push("app", "v1", src)
			other.Push("app", "v1", src)
			reg.RequireBasic("user", "s3cret")
			reg.Inject("/blobs/", -1, registrytest.Redirect(307, target))
			tr := reg.Transport()
			tr.TLSClientConfig.ServerName = "example.com" // what the test certificate is for
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if addr == "reg.example:443" {
					return routes{addr: reg}.dial(ctx, network, addr)
				}
				return routes{addr: other}.dial(ctx, network, addr)
			}
			t.Cleanup(tr.CloseIdleConnections)
			e := newImageEngine(t, RegistryConfig{Transport: tr})
			_, err := e.Pull(t.Context(), "reg.example/app:v1", &PullOptions{Credentials: &Credentials{Username: "user", Password: "s3cret"}})
			if !errors.Is(err, fs.ErrPermission) {
				t.Errorf("got %v", err)
			}
			if q := other.Requests(); len(q) != 0 {
				t.Errorf("it was followed: %v", q)
			}
			checkUntouched(t, e)
		})
	}
}
