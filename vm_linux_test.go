package coracle_test

import (
	"flag"
	"os"
	"runtime"
)

// skipInVM leaves out, in the virtual machine of another architecture, what takes minutes where every instruction is
// emulated and does not depend on the architecture. It is called by TestMain, after the flags were read.
func skipInVM() {
	skip := flag.Lookup("test.skip")
	if os.Getenv("CORACLE_TEST_VM") != "" && runtime.GOARCH != "amd64" && skip != nil && skip.Value.String() == "" {
		flag.Set("test.skip", "Model|Crash|Killed|Hostile|Supervis|Storm|Pull|Check|Flood|CVE_20(19|2[1-6])|Restart|Thousand|RealReg")
	}
}
