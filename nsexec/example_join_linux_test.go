package nsexec_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/nsexec"
)

// exampleContainer starts a container that waits to be killed, and returns a pidfd of it.
func exampleContainer(ctx context.Context, launcher *nsexec.Launcher) (spec *specs.Spec, pidfd *os.File, done func()) {
	root := exampleRoot()
	pause := &nsexec.Plan{}
	pause.Syscall("wait", unix.SYS_PPOLL).Ignore()
	b, err := pause.ELF()
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "pause"), b, 0o755); err != nil {
		log.Fatal(err)
	}
	spec = nsexec.DefaultSpec()
	spec.Root.Path, spec.Process.Args = root, []string{"/pause"}
	prog, err := nsexec.Compile(spec, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer prog.Close()
	p, err := launcher.Start(ctx, prog, nil)
	if err != nil {
		log.Fatal(err)
	}
	fd, err := unix.PidfdOpen(p.PID(), 0)
	if err != nil {
		log.Fatal(err)
	}
	pidfd = os.NewFile(uintptr(fd), "pidfd")
	return spec, pidfd, func() {
		pidfd.Close()
		launcher.Close()
		os.RemoveAll(root)
	}
}

// A process that joins a running container.
func ExampleTarget() {
	ctx := context.Background()
	var launcher nsexec.Launcher
	spec, pidfd, done := exampleContainer(ctx, &launcher)
	defer done()
	target, err := nsexec.NewTarget(spec, &nsexec.TargetOptions{Process: pidfd})
	if err != nil {
		log.Fatal(err)
	}
	defer target.Close()
	process := *spec.Process
	process.Args = []string{"/hello"}
	prog, err := target.Compile(&process)
	if err != nil {
		log.Fatal(err)
	}
	defer prog.Close()
	p, err := launcher.Start(ctx, prog, &nsexec.Stdio{Stdout: os.Stdout})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(p.Wait(ctx))
	// Output:
	// hello
	// exit status 0 <nil>
}

// What is wrong with a process is found before anything starts.
func ExampleTargetOptions() {
	ctx := context.Background()
	var launcher nsexec.Launcher
	spec, pidfd, done := exampleContainer(ctx, &launcher)
	defer done()
	opts := &nsexec.TargetOptions{
		Process: pidfd, // and the container's cgroups, so that its limits count: see package cgroup
	}
	target, err := nsexec.NewTarget(spec, opts)
	if err != nil {
		log.Fatal(err)
	}
	defer target.Close()
	_, err = target.Compile(&specs.Process{Args: []string{"/hello"}, Cwd: "relative"})
	fmt.Println(err)
	// Output: nsexec: spec: process.cwd: "relative" is not an absolute path
}

// A process with a terminal of the container's own.
func ExampleProcess_Terminal() {
	ctx := context.Background()
	var launcher nsexec.Launcher
	spec, pidfd, done := exampleContainer(ctx, &launcher)
	defer done()
	target, err := nsexec.NewTarget(spec, &nsexec.TargetOptions{Process: pidfd})
	if err != nil {
		log.Fatal(err)
	}
	defer target.Close()
	process := *spec.Process
	process.Args, process.Terminal = []string{"/hello"}, true
	prog, err := target.Compile(&process)
	if err != nil {
		log.Fatal(err)
	}
	p, err := launcher.Start(ctx, prog, nil)
	if err != nil {
		log.Fatal(err)
	}
	terminal := p.Terminal()
	defer terminal.Close()
	line := make([]byte, 100)
	n, err := terminal.Read(line)
	fmt.Printf("%q %v\n", line[:n], err)
	p.Wait(ctx)
	// Output: "hello\r\n" <nil>
}
