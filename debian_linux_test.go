package coracle_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/debian"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// TestDebian pulls a real Debian image, with gzip and with zstd layers, from a real registry, runs Python in it, and
// compares its tree with GNU tar's extraction of the same layers, entry by entry.
func TestDebian(t *testing.T) {
	testutil.RequireRoot(t)
	fixture := debian.Image(t)
	ctx := t.Context()
	reference := t.TempDir()
	if err := debian.Extract(ctx, reference, fixture.Layers); err != nil {
		t.Fatal(err)
	}
	want, err := debian.List(reference)
	if err != nil {
		t.Fatal(err)
	}
	if len(want) < 1000 {
		t.Fatalf("GNU tar extracted %d entries only", len(want))
	}
	for name, ref := range map[string]string{"gzip": fixture.GzipRef, "zstd": fixture.ZstdRef, "index": fixture.IndexRef} {
		t.Run(name, func(t *testing.T) {
			eng := engine(t)
			img, err := eng.Pull(ctx, ref, nil)
			if err != nil {
				t.Fatal(err)
			}
			out, err := eng.Output(ctx, &coracle.ContainerSpec{Image: ref, Args: []string{"python3", "-c", "print(6*7)"}})
			if err != nil || string(out) != "42\n" {
				t.Fatalf("output %q, %v", out, err)
			}
			root, remove, err := eng.MountImage(ctx, img)
			if err != nil {
				t.Fatal(err)
			}
			defer remove()
			got, err := debian.List(fmt.Sprintf("/proc/self/fd/%d/.", root.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				if len(diff) > 4000 {
					diff = diff[:4000] + "..."
				}
				t.Errorf("the tree differs from GNU tar's (-want +got):\n%s", diff)
			}
			t.Logf("%d entries are equal", len(got))
		})
	}
}

// TestDebianUserland runs what real programs do that the tests' own tool does not: a shell with jobs, a change of user,
// package queries, threads.
func TestDebianUserland(t *testing.T) {
	testutil.RequireRoot(t)
	fixture := debian.Image(t)
	eng := engine(t)
	for _, test := range []struct{ name, script, want string }{
		{"pipes and jobs", "for i in 1 2 3; do (echo $i; sleep 0.01) & done; wait; seq 5 | tail -n 1", "5"},
		{"id", "id -u; id -un", "0\nroot"},
		{"another user", "setpriv --reuid 33 --regid 33 --clear-groups id -un", "www-data"},
		{"dpkg", "dpkg-query -W -f '${db:Status-Status}' bash", "installed"},
		{"temporary files", "f=$(mktemp) && echo x > $f && cat $f && rm $f", "x"},
		{"devices", "head -c 3 /dev/zero | od -An -tx1; echo lost > /dev/null; [ -c /dev/urandom ] && echo ok", "ok"},
		{"pseudo terminals", "python3 -c 'import os; m, s = os.openpty(); print(os.ttyname(s))'", "/dev/pts/0"},
		{"shared memory", "echo x > /dev/shm/x && cat /dev/shm/x", "x"},
		{"loopback", "python3 -c 'import socket; s = socket.create_server((\"127.0.0.1\", 0)); c = socket.create_connection(s.getsockname()); print(\"up\")'", "up"},
		{"threads", "python3 -c 'import threading; t = [threading.Thread(target=lambda: None) for _ in range(50)]; [x.start() for x in t]; [x.join() for x in t]; print(\"joined\")'", "joined"},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, err := eng.Output(t.Context(), &coracle.ContainerSpec{Image: fixture.GzipRef, Args: []string{"bash", "-c", test.script}})
			if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), test.want) {
				t.Errorf("output %q, %v", out, err)
			}
		})
	}
}
