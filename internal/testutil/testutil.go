// Package testutil holds what the tests of every package share: skips that CI can forbid, and the check that a test
// binary leaves the host as it found it.
package testutil

import (
	"os"
	"testing"
)

// RequireEnv is the variable that turns every skip into a failure when its value is "all".
const RequireEnv = "CORACLE_TEST_REQUIRE"

// Skip skips the test with a reason, or fails it where CI promised that nothing is missing.
func Skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv(RequireEnv) == "all" {
		t.Fatalf("%s=all, but: %s", RequireEnv, reason)
	}
	t.Skip(reason)
}

// RequireRoot skips the test where the process is not root.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "needs root: run the tests as root to include it")
	}
}

// VMEnv is set to 1 where the tests run in the virtual machine, which has their binaries and little else.
const VMEnv = "CORACLE_TEST_VM"

// InVM reports whether the test runs in the virtual machine.
func InVM() bool { return os.Getenv(VMEnv) == "1" }

// NotInVM skips the test in the virtual machine, with the reason: what it needs is there on the machine around it.
func NotInVM(t testing.TB, reason string) {
	t.Helper()
	if InVM() {
		t.Skip("in the virtual machine: " + reason)
	}
}

// KernelLacks skips the test where the kernel has not what it needs. That is promised of the virtual machine's kernel only.
func KernelLacks(t testing.TB, reason string) {
	t.Helper()
	if InVM() {
		Skip(t, reason)
	}
	t.Skip(reason)
}

// Short reports whether tests that take minutes are to do less: with -short, and in the emulated machine, where all takes
// ten times as long.
func Short() bool { return testing.Short() || os.Getenv("CORACLE_TEST_VM") != "" }
