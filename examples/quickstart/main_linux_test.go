package main

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/coracle-dev/coracle/internal/testutil"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "inside" {
		lookAround() // this binary is the image
		return
	}
	os.Exit(testutil.LeakCheck(m))
}

func TestQuickstart(t *testing.T) {
	testutil.RequireRoot(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stdout := os.Stdout
	os.Stdout = w
	said := make(chan string)
	go func() {
		b, _ := io.ReadAll(r)
		said <- string(b)
	}()
	err = run(t.Context())
	os.Stdout = stdout
	w.Close()
	out := <-said
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"hello from a container", "pid 1, parent 0, uid 0", "00000000a80425fb", "2 (2 is: filtered)", "remove it"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if !strings.Contains(out, "67108864") {
		t.Errorf("no memory limit of 64 MB in\n%s", out)
	}
}
