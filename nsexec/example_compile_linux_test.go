package nsexec_test

import (
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/nsexec"
)

// A spec becomes a plan, which can be read before it runs.
func ExampleCompile() {
	spec := nsexec.DefaultSpec()
	spec.Root.Path = "/srv/rootfs"
	spec.Process.Args = []string{"sleep", "1"}
	spec.Hostname = "box"

	prog, err := nsexec.Compile(spec, &nsexec.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer prog.Close()
	fmt.Println(len(prog.Plan.String()) > 0)
	// Output: true
}

// What cannot be done as asked is an error that names the field.
func ExampleSpecError() {
	spec := nsexec.DefaultSpec()
	spec.Root.Path = "/srv/rootfs"
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: "/srv/data", Options: []string{"idmap"}})

	_, err := nsexec.Compile(spec, nil)
	var se *nsexec.SpecError
	if errors.As(err, &se) {
		fmt.Println(se.Field, errors.Is(err, errors.ErrUnsupported))
	}
	// Output: mounts[7].options[0] true
}

func ExampleSecurity() {
	security := nsexec.Security{CapDrop: []string{"ALL"}, CapAdd: []string{"net_bind_service"}, NoNewPrivileges: true}
	spec := nsexec.DefaultSpec()
	if err := security.Apply(spec); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(spec.Process.Capabilities.Effective, spec.Process.NoNewPrivileges)
	// Output: [CAP_NET_BIND_SERVICE] true
}

func ExampleSecurityError() {
	err := (&nsexec.Security{CapAdd: []string{"FLY"}}).Apply(nsexec.DefaultSpec())
	fmt.Println(err)
	// Output: nsexec: security: CapAdd[0]: unknown capability "FLY"
}
