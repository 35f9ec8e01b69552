// Vmtest runs the test binaries of packages under another kernel: Debian's cloud kernel in qemu, with pure cgroup v2,
// AppArmor and an ext4 root filesystem, as root.
//
//	go run ./internal/vmtest [flags] [packages]
//
// It compiles the tests of each package (./... when none is named), puts them with busybox and a copy of the module's
// source tree on a disk image, boots the kernel and runs one binary after the other, each in its package's directory
// as go test does. The kernel comes from [debian.Kernel]. By default qemu translates code: a /dev/kvm that is there but does
// not work, as in some nested machines, would hang; -accel kvm uses it.
//
// Tests see CORACLE_TEST_VM=1 in their environment. CORACLE_TEST_REQUIRE is passed on; a test of something that is
// never in the virtual machine (the go tool, a real Debian image, another container engine) asks for CORACLE_TEST_VM
// before it asks for CORACLE_TEST_REQUIRE and skips.
//
// The exit status is 0 only if the guest said, in its last words, that every binary passed: a panic of the kernel, a
// hang and a silent end are failures.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/coracle-dev/coracle/internal/debian"
	"github.com/coracle-dev/coracle/internal/vmtest/guestplan"
)

type options struct {
	arch    string
	memory  string
	cpus    int
	timeout time.Duration
	accel   string
	keep    bool
	reboot  bool
	plan    guestplan.Plan
}

func main() {
	var o options
	var env listFlag
	flag.StringVar(&o.arch, "arch", runtime.GOARCH, "architecture of the virtual machine: amd64 or arm64")
	flag.StringVar(&o.memory, "m", "2G", "memory of the virtual machine")
	flag.IntVar(&o.cpus, "smp", 2, "processors of the virtual machine")
	flag.DurationVar(&o.timeout, "timeout", 30*time.Minute, "time limit of the virtual machine")
	flag.DurationVar(&o.plan.Timeout, "test.timeout", 10*time.Minute, "time limit of each test binary")
	flag.StringVar(&o.accel, "accel", "tcg", "qemu accelerator: tcg, which works everywhere, or kvm")
	flag.BoolVar(&o.keep, "work", false, "keep the directory with the disk image and print its name")
	flag.BoolVar(&o.reboot, "reboot", false, "run the tests, reset the machine without a sync, and run them once more: they see "+guestplan.BootEnv+"=1 and then 2")
	flag.BoolVar(&o.plan.Verbose, "v", false, "print the output of passing tests too")
	flag.BoolVar(&o.plan.Short, "short", false, "tell tests to be short")
	flag.StringVar(&o.plan.Run, "run", "", "only tests that match this regular expression")
	flag.StringVar(&o.plan.Bench, "bench", "", "benchmarks that match this regular expression, once each")
	flag.Var(&env, "env", "NAME=VALUE for the tests' environment; may be repeated")
	flag.Parse()
	packages := flag.Args()
	if len(packages) == 0 {
		packages = []string{"./..."}
	}
	o.plan.Env = append(env, "CORACLE_TEST_VM=1")
	if v := os.Getenv("CORACLE_TEST_REQUIRE"); v != "" {
		o.plan.Env = append(o.plan.Env, "CORACLE_TEST_REQUIRE="+v)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := run(ctx, &o, packages)
	switch {
	case errors.Is(err, errTests):
		os.Exit(1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "vmtest:", err)
		os.Exit(2)
	}
}

type listFlag []string

func (l *listFlag) String() string { return strings.Join(*l, " ") }

func (l *listFlag) Set(s string) error {
	*l = append(*l, s)
	return nil
}

func run(ctx context.Context, o *options, packages []string) error {
	work, err := os.MkdirTemp("", "coracle-vm-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Println("vmtest: work directory", work)
	} else {
		defer os.RemoveAll(work)
	}

	step := stopwatch()
	kernel, err := debian.Kernel(ctx, o.arch)
	if err != nil {
		return fmt.Errorf("get a kernel: %w", err)
	}
	busybox, err := debian.Busybox(ctx, o.arch)
	if err != nil {
		return fmt.Errorf("get busybox: %w", err)
	}
	tar, err := debian.GNUTar(ctx, o.arch)
	if err != nil {
		return fmt.Errorf("get GNU tar: %w", err)
	}
	step("kernel, busybox and tar")

	root := filepath.Join(work, "root")
	if err := makeTree(root, busybox, tar); err != nil {
		return fmt.Errorf("make the root filesystem: %w", err)
	}
	guest := filepath.Join(root, "vmtest/guest")
	if err := goBuild(ctx, o.arch, "build", guest, "github.com/coracle-dev/coracle/internal/vmtest/guest"); err != nil {
		return err
	}
	if o.plan.Tests, err = compileTests(ctx, o.arch, root, packages); err != nil {
		return err
	}
	if len(o.plan.Tests) == 0 {
		return fmt.Errorf("no tests in %s", strings.Join(packages, " "))
	}
	plan, err := json.MarshalIndent(&o.plan, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "vmtest/plan.json"), plan, 0o644); err != nil {
		return err
	}
	step(fmt.Sprintf("%d test binaries", len(o.plan.Tests)))

	vm := machine{options: o}
	if vm.kernel, err = findKernel(kernel); err != nil {
		return err
	}
	vm.initrd = filepath.Join(work, "initrd")
	if err := writeInitrd(vm.initrd, guest, kernel); err != nil {
		return fmt.Errorf("make the initial ramdisk: %w", err)
	}
	vm.disk = filepath.Join(work, "root.img")
	if err := makeDisk(ctx, vm.disk, root); err != nil {
		return err
	}
	step("disk and ramdisk")

	if o.reboot {
		vm.boot = 1
		if err := vm.run(ctx, os.Stdout); err != nil {
			return err
		}
		step("virtual machine, until it was reset")
		vm.boot = 2
	}
	err = vm.run(ctx, os.Stdout)
	step("virtual machine")
	return err
}

// stopwatch returns a function that prints what was just done and how long it took.
func stopwatch() func(what string) {
	last := time.Now()
	return func(what string) {
		now := time.Now()
		fmt.Printf("vmtest: %s: %.1fs\n", what, now.Sub(last).Seconds())
		last = now
	}
}
