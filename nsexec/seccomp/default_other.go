//go:build !linux

package seccomp

import (
	"errors"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultProfile returns Docker's default profile. Its data is available on Linux only: here it returns
// errors.ErrUnsupported.
func DefaultProfile(caps []string, arch string, kernel KernelVersion) (*specs.LinuxSeccomp, error) {
	return nil, fmt.Errorf("seccomp: Docker's default profile: %w", errors.ErrUnsupported)
}
