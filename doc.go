// Package coracle runs containers in the importing program: no daemon, no command-line tool, no helper binary.
//
// An [Engine] is an open root directory with images and containers. Any number of programs may have one open at once.
//
//	eng, err := coracle.Open(ctx, coracle.Config{})
//	defer eng.Close()
//	out, err := eng.Output(ctx, &coracle.ContainerSpec{Image: "debian:12-slim", Args: []string{"uname", "-a"}})
//
// # Specs, handles and options
//
// A spec ([ContainerSpec], [cgroup.Limits], [nsexec.Security]) is plain data that says what is to be; the zero value of
// each field is documented and useful. A handle ([Engine], [Image], [Container]) is something live whose methods act.
// Options ([PullOptions], [StopOptions]) are for one call; nil means the defaults.
//
// What blocks takes a context. Cancelling a Wait ends the waiting; cancelling a [Engine.Run] kills the container.
//
// # Images
//
// [Engine.Pull] fetches an image from a registry, [Engine.ImageFromFS] makes one of files that the program has. Layers
// are verified and unpacked once, and shared by all containers.
//
// # Containers
//
// [Engine.Create] makes a container, [Container.Start] starts it, [Container.Wait] tells how it ended, exactly as the
// kernel gave it, and [Container.Remove] takes it away. [Engine.Run] and [Engine.Output] do all of that.
//
// [Container.Command] runs a command in a running container: a [Cmd] has the fields and methods of os/exec's. Any engine
// that sees the container can, and the command ends with that engine.
//
// A container is attached: it ends with the engine, and with the program however that ends. syscall.Exec in the program
// ends its containers too. What a killed program leaves on disk goes with the next [Open] of the root.
//
// With [ContainerSpec].Detached it is kept by a small process of its own and ends with that and nothing else: any program that
// has the root open finds it, waits for it, stops it, runs commands in it and learns exactly how it ended.
//
// What a container writes is in its log ([Container.Logs]), unless the spec takes the stream itself. [Container.Attach] and
// [Container.Input] connect programs to a running one, [Container.DialContext] opens connections inside its network
// namespace, [Container.Listen] serves it something there, and [Engine.Events] tells what happens to all of them.
//
// [ContainerSpec].Restart and Health say when a detached container is to be started again and how its health is checked.
// [Engine.Supervise] does both, in whichever programs call it.
//
// A container is on the bridge of its root unless [ContainerSpec].Networks says otherwise: from there it reaches the world,
// and others by name. [Engine.CreateNetwork] makes further networks, [ContainerSpec].Ports publishes ports on the host, on
// 127.0.0.1 unless asked for more, and [Container.Addr] tells where. For tests, [Network.Partition] keeps containers from each
// other and [Network.SetFaults] makes what they send late or lost.
//
// The defaults are Docker's: namespaces, capabilities, seccomp profile, masked paths, device rules, entrypoint rules.
//
// # Errors
//
// Every error of this package is or wraps an [*OpError], which names the operation and the object. What does not exist
// matches fs.ErrNotExist, what exists already fs.ErrExist, what is forbidden fs.ErrPermission, what this machine cannot
// do errors.ErrUnsupported, and a spec that makes no sense [ErrInvalid]. Errors of the kernel keep their errno. A
// container that ran and did not end with code 0 is an [*ExitError].
//
// # Requirements
//
// Linux 5.14 or later, amd64 or arm64, and root. On other systems Open returns an error that matches
// errors.ErrUnsupported.
package coracle
