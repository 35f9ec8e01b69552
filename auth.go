package coracle

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Credentials are what a registry is told about who asks. The zero value means anonymous. They print as "redacted".
type Credentials struct {
	// Username and Password are for basic authentication, or for a token in exchange.
	Username, Password string
	// IdentityToken, if set, is exchanged for a token in place of a password (an OAuth2 refresh token).
	IdentityToken string
	// RegistryToken, if set, is sent to the registry as it is (a bearer token).
	RegistryToken string
}

// String hides the secrets, and the name with them.
func (c Credentials) String() string {
	if c == (Credentials{}) {
		return "anonymous"
	}
	return "redacted"
}

// GoString is String, for %#v.
func (c Credentials) GoString() string { return "coracle.Credentials{" + c.String() + "}" }

// LogValue is String, for slog.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// A Keychain knows the credentials for registries. It is called from many goroutines.
type Keychain interface {
	// Credentials returns what to tell the registry, or the zero value where there is nothing to tell. The reference
	// is the image that is wanted. An error ends the pull.
	Credentials(ctx context.Context, ref Reference) (Credentials, error)
}

// A KeychainFunc is a function used as a [Keychain].
type KeychainFunc func(ctx context.Context, ref Reference) (Credentials, error)

// Credentials calls the function.
func (f KeychainFunc) Credentials(ctx context.Context, ref Reference) (Credentials, error) {
	return f(ctx, ref)
}

// helperTimeout is what a credential helper has to answer in, unless the context ends first. It may ask its user to
// unlock a key ring.
const helperTimeout = 2 * time.Minute

const (
	maxAuthFile   = 4 << 20
	maxHelperText = 1 << 20
)

// DockerKeychain reads the configuration file of the Docker client, as `docker login` writes it, with its credential
// helpers (credHelpers and credsStore, programs called docker-credential-NAME on the PATH). Where there is no such
// file it reads the ones of Podman. The files are read anew each time. The zero value works.
//
// Of several entries the one for the repository wins over the one for its registry, and a helper over the file's own
// text.
type DockerKeychain struct {
	// Dir is the directory that holds config.json. Empty means $DOCKER_CONFIG, or .docker in the home directory; and
	// only then Podman's $REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json and
	// ~/.config/containers/auth.json are tried too.
	Dir string
}

// dockerConfig is the part of config.json that concerns credentials.
type dockerConfig struct {
	Auths       map[string]dockerAuth `json:"auths"`
	CredHelpers map[string]string     `json:"credHelpers"`
	CredsStore  string                `json:"credsStore"`
}

type dockerAuth struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// dockerHubKey is what Docker calls its own registry in config.json, for historical reasons.
const dockerHubKey = "https://index.docker.io/v1/"

// Credentials looks the registry up. That there is no file and no entry is no error; a file that cannot be read, a
// helper that is missing, fails or does not answer is one.
func (k DockerKeychain) Credentials(ctx context.Context, ref Reference) (Credentials, error) {
	config, path, err := k.load()
	if err != nil || path == "" {
		return Credentials{}, err
	}
	keys := []string{ref.Name(), ref.Registry}
	if ref.Registry == defaultRegistry {
		keys = []string{dockerHubKey, defaultRegistry, "index.docker.io"}
	}
	for _, key := range keys {
		helper := config.CredsStore
		if h, ok := config.CredHelpers[key]; ok {
			helper = h
		}
		if helper != "" {
			c, err := runHelper(ctx, helper, key)
			if err != nil {
				return Credentials{}, err
			}
			if c != (Credentials{}) {
				return c, nil
			}
		}
		if entry, ok := config.entry(key); ok {
			c, err := entry.credentials()
			if err != nil {
				return Credentials{}, fmt.Errorf("credentials for %s in %s: %w: log in again", key, path, err)
			}
			if c != (Credentials{}) {
				return c, nil
			}
		}
	}
	return Credentials{}, nil
}

// load reads the first file there is.
func (k DockerKeychain) load() (dockerConfig, string, error) {
	var config dockerConfig
	for _, path := range k.files() {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return config, path, fmt.Errorf("registry credentials: %w", err)
		}
		data, err := io.ReadAll(io.LimitReader(f, maxAuthFile+1))
		f.Close()
		switch {
		case err != nil:
			return config, path, fmt.Errorf("registry credentials: %w", err)
		case len(data) > maxAuthFile:
			return config, path, fmt.Errorf("registry credentials: %s is larger than %d bytes: %w", path, maxAuthFile, ErrInvalid)
		case len(bytes.TrimSpace(data)) == 0:
			return config, path, nil
		}
		if err := json.Unmarshal(data, &config); err != nil {
			// The decoder's own message may quote the file.
			return config, path, fmt.Errorf("registry credentials: %s is not what the Docker client writes: %w", path, ErrInvalid)
		}
		return config, path, nil
	}
	return config, "", nil
}

func (k DockerKeychain) files() []string {
	if k.Dir != "" {
		return []string{filepath.Join(k.Dir, "config.json")}
	}
	home, _ := os.UserHomeDir() // without one the places below it are not looked at
	var files []string
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		files = append(files, filepath.Join(dir, "config.json"))
	} else if home != "" {
		files = append(files, filepath.Join(home, ".docker", "config.json"))
	}
	if file := os.Getenv("REGISTRY_AUTH_FILE"); file != "" {
		return append(files, file)
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		files = append(files, filepath.Join(dir, "containers", "auth.json"))
	}
	if dir := os.Getenv("XDG_CONFIG_HOME"); dir != "" {
		files = append(files, filepath.Join(dir, "containers", "auth.json"))
	} else if home != "" {
		files = append(files, filepath.Join(home, ".config", "containers", "auth.json"))
	}
	return files
}

// entry finds an entry by its key, else by the host name in an old key such as "https://host/v1/".
func (c *dockerConfig) entry(key string) (dockerAuth, bool) {
	if a, ok := c.Auths[key]; ok {
		return a, true
	}
	for k, a := range c.Auths {
		host := strings.TrimPrefix(strings.TrimPrefix(k, "https://"), "http://")
		if host == k {
			continue // only a URL is taken apart: "host/team" is an entry for that repository alone
		}
		if host, _, _ = strings.Cut(host, "/"); host == key {
			return a, true
		}
	}
	return dockerAuth{}, false
}

func (a dockerAuth) credentials() (Credentials, error) {
	c := Credentials{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if a.Auth == "" {
		return c, nil
	}
	text, err := base64.StdEncoding.DecodeString(a.Auth)
	if err != nil {
		return Credentials{}, fmt.Errorf("the field auth is not base64: %w", ErrInvalid)
	}
	user, password, ok := strings.Cut(string(text), ":")
	if !ok || user == "" {
		return Credentials{}, fmt.Errorf("the field auth has no user name: %w", ErrInvalid)
	}
	c.Username, c.Password = user, strings.Trim(password, "\x00")
	return c, nil
}

// runHelper asks a credential helper: the server on its standard input, JSON on its standard output, and nothing but
// a line of text and exit status 1 where it has none. It is killed when the context ends.
func runHelper(ctx context.Context, name, server string) (Credentials, error) {
	program := "docker-credential-" + name
	failed := func(err error) error {
		return fmt.Errorf("credential helper %s for %s: %w", program, server, err)
	}
	if name != filepath.Base(name) || name == "." || name == ".." {
		return Credentials{}, failed(fmt.Errorf("%w: not the name of a program", ErrInvalid))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, helperTimeout, fmt.Errorf("no answer within %v: %w", helperTimeout, os.ErrDeadlineExceeded))
	defer cancel()
	var stdout limitedBuffer
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin = strings.NewReader(server)
	cmd.Stdout = &stdout
	cmd.WaitDelay = time.Second // what it started may hold the pipe
	err := cmd.Run()
	if ctx.Err() != nil {
		return Credentials{}, failed(context.Cause(ctx))
	}
	var exit *exec.ExitError
	switch {
	case errors.Is(err, errHelperText):
		return Credentials{}, failed(err)
	case errors.As(err, &exit) && stdout.buf.Len() >= maxHelperText/2:
		return Credentials{}, failed(errHelperText) // it was ended by our refusal to read on
	case errors.As(err, &exit):
		// The protocol has no code for "nothing there": this text is it (docker-credential-helpers, errors.go).
		text := strings.TrimSpace(stdout.buf.String())
		if text == "credentials not found in native keychain" {
			return Credentials{}, nil
		}
		if strings.ContainsAny(text, "{\"") {
			text = "" // no message, and perhaps a secret
		}
		return Credentials{}, failed(fmt.Errorf("%w: it says %s", err, quoteShort(text)))
	case err != nil:
		return Credentials{}, failed(err)
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(stdout.buf.Bytes(), &answer); err != nil {
		return Credentials{}, failed(fmt.Errorf("its answer is not JSON: %w", ErrInvalid))
	}
	if answer.Username == "<token>" {
		return Credentials{IdentityToken: answer.Secret}, nil
	}
	return Credentials{Username: answer.Username, Password: answer.Secret}, nil
}

// limitedBuffer refuses what is too much, which ends the copying, and the helper with it. The buffer is not embedded:
// its ReadFrom would pass the limit by.
type limitedBuffer struct{ buf bytes.Buffer }

var errHelperText = fmt.Errorf("its answer is larger than %d bytes: %w", maxHelperText, ErrInvalid)

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.buf.Len()+len(p) > maxHelperText {
		return 0, errHelperText
	}
	return b.buf.Write(p)
}
