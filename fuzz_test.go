package coracle

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle/internal/registrytest"
)

// FuzzConfig feeds foreign bytes to what reads image configurations, and what is accepted to what uses them: the rules of
// the image specification for a container, and the OCI runtime spec of its start.
func FuzzConfig(f *testing.F) {
	img := registrytest.RandomImage(1, 1, 10)
	img.Config.Config = ocispec.ImageConfig{User: "1:2", Env: []string{"A=b", "=", "C", "A"}, Entrypoint: []string{"/x"}, Cmd: []string{"y"}, WorkingDir: "../../etc", StopSignal: "SIGRTMIN+3",
		Volumes: map[string]struct{}{"/../x": {}}, ExposedPorts: map[string]struct{}{"80/tcp": {}}, Labels: map[string]string{"a": "b"}}
	m, config := img.Manifest()
	f.Add(config)
	for _, change := range [][2]string{{`"User":"1:2"`, `"User":"4294967296"`}, {`"User"`, `"user":"0","User"`}, {`"SIGRTMIN+3"`, `"99"`}, {`"os":"linux"`, `"os":"windows"`}, {`"Env":[`, `"Env":[null,`},
		{`"diff_ids":[`, `"diff_ids":["sha256:x",`}, {`"rootfs":{`, `"rootfs":{"type":"x",`}, {`"config":{`, `"config":{"Healthcheck":{"Test":["NONE"]},`}} {
		f.Add([]byte(strings.Replace(string(config), change[0], change[1], 1)))
	}
	f.Add([]byte(`{"rootfs":{"type":"layers","diff_ids":["` + string(m.Layers[0].Digest) + `"]},"history":[{"created":"0001-01-01T00:00:00Z","empty_layer":true}],"created":"9999-12-31T23:59:59Z"}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`[[[[[[`))
	want, err := parsePlatform("linux/amd64")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseConfig(data, &m)
		if err != nil {
			return
		}
		if len(c.RootFS.DiffIDs) != 1 || c.RootFS.DiffIDs[0].Algorithm() != digest.SHA256 || c.RootFS.DiffIDs[0].Validate() != nil {
			t.Fatalf("accepted the diff_ids %q", c.RootFS.DiffIDs)
		}
		_ = runsOn(c, want)
		_ = platformString(c.Platform)
		spec := &ContainerSpec{Image: "x"}
		r, err := spec.resolve(c.Config, strings.Repeat("0", idLength))
		if err != nil {
			return
		}
		if len(r.Args) == 0 || r.Args[0] == "" || !strings.HasPrefix(r.WorkingDir, "/") || strings.Contains(r.WorkingDir+"/", "/../") {
			t.Fatalf("resolved to %+v", r)
		}
		if _, err := parseSignal(r.StopSignal); err != nil {
			t.Fatal(err)
		}
		empty := func() ([]byte, error) { return []byte("mallory:x:0:0::/:\nroot:x:0:0::/root:\n"), nil }
		if u, _, err := lookUpUser(r.User, nil, empty, empty); err == nil {
			name, group, _ := strings.Cut(r.User, ":")
			if u.UID > maxID || u.GID > maxID {
				t.Fatalf("user %q became %d:%d", r.User, u.UID, u.GID)
			}
			// Root is who is called so, and who is nobody else.
			if u.UID == 0 && strings.Trim(name, "0") != "" && name != "root" && name != "mallory" {
				t.Fatalf("user %q became root (group %q)", r.User, group)
			}
		}
		st := &containerState{Spec: *spec, Resolved: r}
		e := &Engine{}
		if _, err := e.runtimeSpec(st); err != nil {
			return
		}
	})
}

// FuzzUserFiles: whatever stands in an image's passwd and group files, nobody becomes root by a number that is none.
func FuzzUserFiles(f *testing.F) {
	f.Add("root", "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:\n", "wheel:x:10:alice,root\n")
	f.Add("1000", "1000:x:0:0:::\n", "1000:x:0:\n")
	f.Add("a:b", "a:x:4294967296:-1\na:x:+5:1\na:x: 7:1\n", "b:x:18446744073709551616:a\n")
	f.Add("a:", "a:x:1\n:::\n\x00:x:0:0\n", ":x:0:a")
	f.Fuzz(func(t *testing.T, user, passwd, group string) {
		text := func(s string) func() ([]byte, error) { return func() ([]byte, error) { return []byte(s), nil } }
		u, home, err := lookUpUser(user, nil, text(passwd), text(group))
		if err != nil {
			return
		}
		if u.UID > maxID || u.GID > maxID || home == "" {
			t.Fatalf("%d:%d, home %q", u.UID, u.GID, home)
		}
		if name, _, _ := strings.Cut(user, ":"); u.UID == 0 && strings.Trim(name, "0") != "" && !hasRootLine(passwd, name) {
			t.Fatalf("%q became root of %q", user, passwd)
		}
	})
}

// hasRootLine says whether the file calls somebody root in so many words.
func hasRootLine(passwd, name string) bool {
	for line := range strings.SplitSeq(passwd, "\n") {
		f := strings.Split(line, ":")
		if len(f) > 3 && f[0] == name && f[2] != "" && strings.Trim(f[2], "0") == "" {
			return true
		}
	}
	return false
}

// FuzzState feeds foreign bytes to what reads a container's state.
func FuzzState(f *testing.F) {
	st := containerState{Version: stateVersion, ID: strings.Repeat("a", idLength), Name: "x", Status: StatusCreated, Exit: &ExitStatus{}}
	good, err := json.Marshal(st)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"Version":1,"ID":"../x"}`))
	f.Add([]byte(`{"Spec":{"StopTimeout":-1e300}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var st containerState
		if err := json.Unmarshal(data, &st); err != nil {
			return
		}
		// What could be read can be written and read again, and means the same.
		again, err := json.Marshal(st)
		if err != nil {
			return // a time beyond the year 9999
		}
		var copy containerState
		if err := json.Unmarshal(again, &copy); err != nil {
			t.Fatalf("%v: %s", err, again)
		}
		_ = copy.Spec.validate()
		third, err := json.Marshal(copy)
		if err != nil || string(third) != string(again) {
			t.Fatalf("%v\n%s\n%s", err, again, third)
		}
	})
}
