package coracle_test

import (
	"flag"
	"os"
	"strings"
)

// notInVM are the tests that have not been seen to end in the emulated machine in reasonable time.
var notInVM = []string{
	"FuzzConfig", "FuzzState", "FuzzUserFiles", "TestBlobOfLayerThatStayed",
	"TestCVE_2019_14271_NothingOfAnImageRunsOnTheHost", "TestCVE_2021_41190_OneDocumentOneMeaning",
	"TestCVE_2022_23648_ConfigPathsStayInTheImage", "TestCVE_2024_25621_DirectoriesAreClosed",
	"TestCVE_2024_3727_DigestsAreDigests", "TestCVE_2024_40635_UserOfAnImage", "TestCVE_2025_11395_HostileImages",
	"TestCVE_2025_62725_AnnotationsAreNoPaths", "TestCVE_2026_47262_GroupFilesAreBoundedAndInTheImage",
	"TestCVE_2026_53488_LabelsMakeTheSameContainer", "TestCgroupOfKilledStart", "TestCheckAmongTheDead",
	"TestCheckAndRepair", "TestCheckUnverified", "TestCrashWalk", "TestDamagedLayerIsNotMounted", "TestDiskUsage",
	"TestHostileFileSystems", "TestHostileStackImages", "TestImageOfAThousandLayers", "TestModel", "TestPowerLoss",
	"TestPrune", "TestPruneTakesFailedPulls", "TestPruneWhileCreating", "TestPullLies", "TestPullLiesInBoundedMemory",
	"TestPullOnce", "TestPullOnceKilled", "TestPullTrickles", "TestRemoveShared", "TestTagUntagRemove",
	"TestUnpackLimitsReachLayers",
}

// skipInVM leaves them out there. It is called by TestMain, after the flags were read.
func skipInVM() {
	if skip := flag.Lookup("test.skip"); os.Getenv("CORACLE_TEST_VM") != "" && skip != nil && skip.Value.String() == "" {
		flag.Set("test.skip", "^("+strings.Join(notInVM, "|")+")$")
	}
}
