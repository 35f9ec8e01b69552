// Package nsexec starts processes in namespaces: an OCI runtime spec is compiled to a launch plan, and the plan is the
// program that sets the container up.
//
//	spec := nsexec.DefaultSpec()              // Docker's isolation
//	spec.Root.Path = "/srv/rootfs"
//	spec.Process.Args = []string{"/bin/sh", "-c", "id; mount"}
//	prog, err := nsexec.Compile(spec, nil)
//	defer prog.Close()
//	var l nsexec.Launcher
//	defer l.Close()
//	p, err := l.Start(ctx, prog, &nsexec.Stdio{Stdout: os.Stdout, Stderr: os.Stderr})
//	status, err := p.Wait(ctx)
//
// # Plans
//
// A [Plan] is a flat list of system calls with labels, whose results feed later steps, and a few control steps. [Compile]
// makes it, all decisions included, before any process exists. The plan is laid out as a tiny static executable: an
// interpreter of some 400 bytes of machine code, then steps and data. Nothing of the importing program, no runtime and
// no library ever runs in the container.
//
// # Guard and payload
//
// [Launcher.Start] forks the guard, the first process of an outer pid namespace, which dies with the launcher's thread.
// The guard clones the payload into the container's namespaces; the payload performs the plan's steps and executes the
// container's program. If the guard dies, by whatever cause, the kernel ends everything in the container. What goes
// between the three is drawn in guard_linux.go.
//
// # Joining
//
// A [Target] is a running container made ready for more processes: [Target.Compile] makes programs that start in its
// namespaces and cgroups, with the rights that their process asks for. See join_linux.go.
//
// # Terminals
//
// A process whose spec asks for a terminal gets one of the container's own devpts, and the program gets the other end:
// [Process.Terminal]. A container's first process also finds it as /dev/console.
//
// # Errors
//
// [Compile] returns a [*SpecError] that names the field of the spec. Start returns a [*StepError] that names the step and
// keeps the errno, or an [*ExecError] if the set-up was done and the program could not be executed. Nothing is left
// behind then.
//
// # Standards
//
// The spec is that of github.com/opencontainers/runtime-spec, version 1.3. Hooks and cgroups are the business of whoever
// calls: cgroups are joined through files in [Options].
package nsexec
