package coracle

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-dev/coracle/internal/statefile"
)

// FuzzProc feeds foreign bytes to what reads files in /proc, where a container chooses names and command lines.
func FuzzProc(f *testing.F) {
	for _, name := range []string{"stat", "status", "cmdline"} {
		b, err := os.ReadFile("/proc/self/" + name)
		if err != nil {
			f.Skip(err)
		}
		f.Add(b)
	}
	f.Add([]byte("7 (x) R 1 1 (y)) S 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24"))
	f.Add([]byte("Uid:\t0\nNSpid:\t\nGid:\t99999999999\t1\t1\t1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var p ProcessInfo
		if parseStat(data, time.Unix(0, 0), &p) && (strings.Contains(p.State, " ") || p.State == "") {
			t.Fatalf("state %q", p.State)
		}
		parseStatus(data, &p)
		args := parseArgs(data)
		if n := len(strings.Join(args, "\x00")); n > len(data) {
			t.Fatalf("%d bytes of arguments of %d bytes", n, len(data))
		}
		if len(data) > 0 && !bytes.Equal([]byte(strings.Join(args, "\x00")), bytes.TrimSuffix(data, []byte{0})) {
			t.Fatalf("arguments %q of %q", args, data)
		}
	})
}

// FuzzChanges: changes of a container that were read are sound.
func FuzzChanges(f *testing.F) {
	f.Add([]byte(`{"Version":1,"Name":"x","Limits":{"Memory":1}}`))
	f.Add([]byte(`{"Version":1,"Name":"../x"}`))
	f.Add([]byte(`{"Version":2}`))
	f.Add([]byte(`null`))
	id := strings.Repeat("0", idLength)
	f.Fuzz(func(t *testing.T, data []byte) {
		e := &Engine{root: t.TempDir()}
		if err := os.MkdirAll(e.containerDir(id), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(e.containerDir(id), changesFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
		ch, err := e.changes(id)
		if err != nil {
			return
		}
		if ch.Version != stateVersion || ch.Name != "" && !validName(ch.Name) {
			t.Fatalf("%+v", ch)
		}
		var again containerChanges
		b, err := json.Marshal(ch)
		if err == nil {
			err = json.Unmarshal(b, &again)
		}
		if err != nil || again.Name != ch.Name || len(b) > statefile.Max {
			t.Fatalf("%s: %v", b, err)
		}
	})
}
