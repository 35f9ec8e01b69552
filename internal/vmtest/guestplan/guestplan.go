// Package guestplan is what the two halves of vmtest tell each other.
package guestplan

import "time"

// A Plan is what the guest has to run: /vmtest/plan.json on its disk.
type Plan struct {
	Tests   []Test
	Env     []string      // NAME=VALUE, added to the guest's own few variables
	Run     string        // -test.run
	Bench   string        // -test.bench
	Short   bool          // -test.short
	Verbose bool          // print the output of passing tests too
	Timeout time.Duration // of each binary
}

// A Test is one test binary.
type Test struct {
	Package string // import path
	Binary  string // absolute, in the guest
	Dir     string // absolute, in the guest
}

// The guest's kernel command line has Nonce=<word>. Its last words are one line, Marker, that word, "pass" or "fail",
// separated by spaces: nothing that a test prints can be taken for them.
const (
	Nonce  = "vmtest.nonce"
	Marker = "vmtest-end"
)

// With vmtest -reboot the command line has Boot=1 and then Boot=2 too. The tests see the number in BootEnv; after the first
// boot the guest resets the machine as a power failure would, without writing out what is not on the disk.
const (
	Boot    = "vmtest.boot"
	BootEnv = "CORACLE_TEST_BOOT"
)
