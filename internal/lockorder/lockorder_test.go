package lockorder_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/coracle-dev/coracle/internal/lockorder"
)

func TestEnforce(t *testing.T) {
	var violations []string
	stop := lockorder.Enforce(func(v string) { violations = append(violations, v) })
	defer stop()

	chain := lockorder.Taken(lockorder.Chain, "c-1")
	diff := lockorder.Taken(lockorder.DiffID, "d-1")
	lockorder.Taken(lockorder.Index, "index")()
	if len(violations) != 0 {
		t.Fatalf("in order: %q", violations)
	}
	lockorder.Taken(lockorder.Operation, "container")()
	if len(violations) != 1 || !slices.ContainsFunc(violations, func(v string) bool { return strings.Contains(v, "operation") }) {
		t.Fatalf("an operation under two locks of a layer: %q", violations)
	}
	violations = nil
	lockorder.Taken(lockorder.DiffID, "d-2")()
	if len(violations) != 1 {
		t.Fatalf("two locks of one rank: %q", violations)
	}

	// Another goroutine holds nothing, and may give back what this one took.
	violations = nil
	done := make(chan struct{})
	go func() {
		defer close(done)
		lockorder.Taken(lockorder.Operation, "container")()
		diff()
		chain()
	}()
	<-done
	lockorder.Taken(lockorder.Root, "root")()
	if len(violations) != 0 {
		t.Fatalf("after all was given back: %q", violations)
	}
	stop()
	lockorder.Taken(lockorder.Index, "index")
	lockorder.Taken(lockorder.Root, "root")
	if len(violations) != 0 {
		t.Fatalf("after the end: %q", violations)
	}
}
