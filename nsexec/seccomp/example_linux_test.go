package seccomp_test

import (
	"fmt"

	"github.com/coracle-dev/coracle/nsexec/seccomp"
)

func ExampleDefaultProfile() {
	profile, err := seccomp.DefaultProfile([]string{"CAP_CHOWN", "CAP_NET_RAW"}, "amd64", seccomp.KernelVersion{})
	if err != nil {
		fmt.Println(err)
		return
	}
	program, err := seccomp.Compile(profile, &seccomp.Options{Arch: "amd64"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(profile.Architectures, len(program.Instructions) <= 250)
	// Output: [SCMP_ARCH_X86_64 SCMP_ARCH_X86 SCMP_ARCH_X32] true
}
