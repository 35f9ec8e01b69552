package coracle_test

import (
	"flag"
	"os"
	"runtime"
)

// onOtherArchitectures is what depends on the architecture: launching, joining, keeping, and what is done to containers.
const onOtherArchitectures = "^(TestRun|TestLifecycle|TestStop|TestStreams|TestInside|TestLimits|TestMounts|TestUsers|TestOOM|TestTwoPrograms|TestKill9|" +
	"TestDetached|TestDetachedExits|TestDetachedAutoRemove|TestKeeperCgroups|TestAttach|TestTerminal|" +
	"TestCommand|TestCommandTerminal|TestCommandStreams|TestCommandIsolation|TestCommandUser|TestInitContainer|" +
	"TestPause|TestUpdate|TestStats|TestTop|TestWaitFor|TestDial|TestHealth|TestRestart|TestLogs|TestEventSequences|TestPull|TestImageFromFS|" +
	"TestCVE_20(16|19|22|24_21626|25_5).*|Example.*)$"

// chooseInVM leaves out, in the virtual machine of another architecture, where every instruction is emulated, what would
// be the same there. It is called by TestMain, after the flags were read.
func chooseInVM() {
	run := flag.Lookup("test.run")
	if os.Getenv("CORACLE_TEST_VM") != "" && runtime.GOARCH != "amd64" && run != nil && run.Value.String() == "" {
		flag.Set("test.run", onOtherArchitectures)
	}
}
