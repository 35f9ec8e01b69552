package nsexec

import specs "github.com/opencontainers/runtime-spec/specs-go"

func defaultSeccomp() *specs.LinuxSeccomp { return nil }
